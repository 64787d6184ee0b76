//! Cost of a row update as the state grows: random updates of existing rows of about 200 B, by sync-views and by the
//! edge, each with the memory settings that it has by default.
//!
//! Each measurement runs in a process of its own over a state that another process has built, so that it starts with an
//! empty block cache and its peak memory is that of the updates. The first leaves the files in the page cache, as far as
//! the memory of the machine allows, and is long enough for compactions to be a part of the cost. The second drops them
//! from the page cache, and ends before the smaller states are back in it: its wall time is mostly that of the disk.

mod replica;
mod sync_views;

use crate::figures::memory_mb;
use anyhow::Context;
use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use service::telemetry::usage;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The word that makes this program a process that builds or measures one state.
pub const CHILD: &str = "growth-process";
/// Sizes in millions of rows.
const SIZES: [&str; 3] = ["1", "5", "20"];
/// Enough that the updated rows pass through more than one level of the tree.
const UPDATES: usize = 1_000_000;
/// A small share of the blocks of a million rows.
const COLD_UPDATES: usize = 10_000;
/// Rows of one source transaction.
const TRANSACTION_ROWS: usize = 1_000;

/// Who keeps the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Role {
    SyncViews,
    Edge,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::SyncViews => "sync-views",
            Role::Edge => "edge",
        }
    }
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Build,
    /// With the files in the page cache.
    Measure,
    /// With the files dropped from the page cache.
    MeasureCold,
}

/// One state, and what a process does with it.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    role: Role,
    rows: usize,
    dir: PathBuf,
    phase: Phase,
}

/// What a process measured.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Figures {
    wall_us: f64,
    cpu_us: f64,
    /// Bytes that the updating thread read from files, a row.
    read_bytes: f64,
    /// Bytes that the process wrote to files, a row.
    written_bytes: f64,
    state_mb: f64,
    peak_mb: f64,
}

/// `growth [MILLION ROWS ...]`.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let sizes = if words.is_empty() {
        SIZES.as_slice()
    } else {
        words.as_slice()
    };
    let sizes = sizes.iter().map(|word| million(word));
    let sizes = sizes.collect::<anyhow::Result<Vec<usize>>>()?;
    println!(
        "{UPDATES} random updates of existing rows with the files in the page cache, then {COLD_UPDATES} with the files \
         dropped from it; the block cache is empty at the start of both\n\
         required: at most 1.5 times the cost at the first size, peak resident memory at most 300 MB"
    );
    println!("role       files         rows    state  µs/row  CPU µs  ratio  CPU ratio  B read  B written  peak MB");
    for role in [Role::SyncViews, Role::Edge] {
        let mut first: [Option<Figures>; 2] = [None, None];
        for rows in &sizes {
            let dir = tempfile::Builder::new().prefix("trunkline-growth-").tempdir()?;
            let part = |phase| Part {
                role,
                rows: *rows,
                dir: dir.path().join("state"),
                phase,
            };
            child_process(&part(Phase::Build))?;
            for (phase, first) in [Phase::Measure, Phase::MeasureCold].into_iter().zip(&mut first) {
                let part = part(phase);
                let figures = child_process(&part)?.context("the measuring process printed no figures")?;
                print(&part, &figures, first.get_or_insert(figures));
            }
        }
    }
    Ok(())
}

fn print(part: &Part, figures: &Figures, first: &Figures) {
    println!(
        "{:<10} {:<7} {:>10} {:>5.0} MB {:>7.1} {:>7.1} {:>6.2} {:>10.2} {:>7.0} {:>10.0} {:>8.0}",
        part.role.name(),
        if part.phase == Phase::MeasureCold {
            "dropped"
        } else {
            "cached"
        },
        part.rows,
        figures.state_mb,
        figures.wall_us,
        figures.cpu_us,
        figures.wall_us / first.wall_us,
        figures.cpu_us / first.cpu_us,
        figures.read_bytes,
        figures.written_bytes,
        figures.peak_mb,
    );
}

fn million(word: &str) -> anyhow::Result<usize> {
    let rows: f64 = word.parse().with_context(|| format!("{word}: millions of rows"))?;
    anyhow::ensure!((0.1..=100.0).contains(&rows), "{word}: 0.1 to 100 million rows");
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a small positive number"
    )]
    Ok((rows * 1e6) as usize)
}

fn child_process(part: &Part) -> anyhow::Result<Option<Figures>> {
    let output = Command::new(std::env::current_exe()?)
        .args([CHILD, &serde_json::to_string(part)?])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(output.status.success(), "{part:?} ended with {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs one phase and prints its figures as JSON, or `null`.
pub fn child(words: &[String]) -> anyhow::Result<()> {
    let part: Part = serde_json::from_str(words.first().context("what to do")?)?;
    let figures = if part.phase == Phase::Build {
        match part.role {
            Role::SyncViews => self::sync_views::build(&part.dir, part.rows)?,
            Role::Edge => self::replica::build(&part.dir, part.rows)?,
        }
        None
    } else {
        let cold = part.phase == Phase::MeasureCold;
        let state_mb = file_bytes(&part.dir, cold)? / 1e6;
        let updates = Updates {
            rows: part.rows,
            count: if cold { COLD_UPDATES } else { UPDATES },
        };
        let figures = match part.role {
            Role::SyncViews => self::sync_views::measure(&part.dir, updates)?,
            Role::Edge => self::replica::measure(&part.dir, updates)?,
        };
        Some(Figures { state_mb, ..figures })
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// Bytes of all files; writes them back first, and then drops them from the page cache, which keeps dirty pages.
fn file_bytes(dir: &Path, drops: bool) -> anyhow::Result<f64> {
    let mut bytes = 0.0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            bytes += file_bytes(&path, drops)?;
            continue;
        }
        let file = File::open(&path)?;
        file.sync_all()?;
        if drops {
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a figure")]
        let length = file.metadata()?.len() as f64;
        bytes += length;
    }
    Ok(bytes)
}

/// Random updates to measure.
#[derive(Debug, Clone, Copy)]
struct Updates {
    /// Rows of the state.
    rows: usize,
    /// Number of updates.
    count: usize,
}

impl Updates {
    /// Calls `update` for each source transaction, with the rows to update and the number of the transaction.
    fn measure(self, mut update: impl FnMut(&[usize], usize) -> anyhow::Result<()>) -> anyhow::Result<Figures> {
        let mut random = Random::new(u64::try_from(self.count)?);
        let mut chosen = Vec::with_capacity(TRANSACTION_ROWS);
        let (began, before) = (Instant::now(), Counters::now()?);
        for transaction in 0..self.count / TRANSACTION_ROWS {
            chosen.clear();
            chosen.extend((0..TRANSACTION_ROWS).map(|_| random.below(self.rows)));
            update(&chosen, transaction)?;
        }
        let (wall_s, after) = (began.elapsed().as_secs_f64(), Counters::now()?);
        let count = f64::from(u32::try_from(self.count)?);
        Ok(Figures {
            wall_us: wall_s / count * 1e6,
            cpu_us: (after.cpu_s - before.cpu_s) / count * 1e6,
            read_bytes: (after.read - before.read) / count,
            written_bytes: (after.written - before.written) / count,
            state_mb: 0.0,
            peak_mb: memory_mb(std::process::id(), "VmHWM:"),
        })
    }
}

struct Counters {
    cpu_s: f64,
    read: f64,
    written: f64,
}

impl Counters {
    fn now() -> anyhow::Result<Counters> {
        let number = |path: &str, name: &str| -> anyhow::Result<f64> {
            let text = fs::read_to_string(path)?;
            let value = text.lines().find_map(|line| line.strip_prefix(name));
            Ok(value.with_context(|| format!("{name} in {path}"))?.trim().parse()?)
        };
        Ok(Counters {
            cpu_s: usage().cpu_s,
            // Only the reads of this thread: a compaction reads whole tables on another one.
            read: number("/proc/thread-self/io", "rchar:")?,
            written: number("/proc/self/io", "wchar:")?,
        })
    }
}

/// xorshift64*: the same rows in each run.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        usize::try_from(self.number() % end).unwrap_or_default()
    }

    /// Hexadecimal digits: a text that compresses to no less than half.
    fn text(&mut self, length: usize) -> String {
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            text.push_str(&format!("{:016x}", self.number()));
        }
        text.truncate(length);
        text
    }
}

/// Rows have numbers of nine digits, so that the order of their keys is that of the numbers.
fn row_number(row: usize) -> usize {
    100_000_000 + row
}
