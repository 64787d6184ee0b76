//! Benchmark of the cost of a row update as the state grows: random updates of existing rows of about 200 B, by sync-views
//! and by the edge, each with its default memory settings.
//!
//! One process builds a state and waits until its compactions have ended; others measure the state. So a measurement
//! starts with an empty block cache, and its peak memory is that of the updates. The first measurement leaves the files
//! in the page cache, as far as memory allows, and is long enough to include compactions. The second measurement drops
//! the files from the page cache, and ends before the smaller states are cached again, so most of its wall time is spent
//! on the disk.

mod replica;
mod sync_views;
mod updates;

use self::updates::{Figures, Updates};

use anyhow::Context;
use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Argument that starts a process which builds or measures one state.
pub const CHILD: &str = "growth-process";
/// Sizes in millions of rows.
const SIZES: [&str; 3] = ["1", "5", "20"];
/// Enough for the updated rows to reach the second level of the tree.
const UPDATES: usize = 1_000_000;
/// These updates read a small part of the blocks of a million rows.
const COLD_UPDATES: usize = 10_000;
/// The owner of the state.
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

/// Phase of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Build,
    /// With the files in the page cache.
    Measure,
    /// With the files dropped from the page cache.
    MeasureCold,
    /// Removes all rows in one source transaction.
    Truncate,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Build => "build",
            Phase::Measure => "cached",
            Phase::MeasureCold => "dropped",
            Phase::Truncate => "TRUNCATE",
        }
    }
}

/// Task of a process.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    role: Role,
    rows: usize,
    dir: PathBuf,
    phase: Phase,
}

/// `growth [ROLE] [MILLION ROWS ...]`.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (roles, words) = match words.split_first() {
        Some((first, rest)) => match [Role::SyncViews, Role::Edge]
            .into_iter()
            .find(|role| role.name() == *first)
        {
            Some(role) => (vec![role], rest.to_vec()),
            None => (vec![Role::SyncViews, Role::Edge], words),
        },
        None => (vec![Role::SyncViews, Role::Edge], words),
    };
    let sizes = if words.is_empty() {
        SIZES.as_slice()
    } else {
        words.as_slice()
    };
    let sizes = sizes.iter().map(|word| million(word));
    let sizes = sizes.collect::<anyhow::Result<Vec<usize>>>()?;
    println!(
        "{UPDATES} random updates of existing rows with the files in the page cache, then {COLD_UPDATES} with the files \
         dropped from it, then at the edge a transaction that removes all rows; the block cache is empty at the start of \
         each\n\
         required: at most 1.5 times the cost at the first size, peak resident memory at most 300 MB"
    );
    println!("role       files          rows    state  µs/row  CPU µs  ratio  CPU ratio  B read  B written  peak MB");
    for role in roles {
        let mut first: [Option<Figures>; 3] = [None; 3];
        let phases = match role {
            Role::SyncViews => [Phase::Measure, Phase::MeasureCold].as_slice(),
            Role::Edge => [Phase::Measure, Phase::MeasureCold, Phase::Truncate].as_slice(),
        };
        for rows in &sizes {
            let dir = tempfile::Builder::new().prefix("trunkline-growth-").tempdir()?;
            let task = |phase| Task {
                role,
                rows: *rows,
                dir: dir.path().join("state"),
                phase,
            };
            child_process(&task(Phase::Build))?;
            for (phase, first) in phases.iter().zip(&mut first) {
                let task = task(*phase);
                let figures = child_process(&task)?.context("the measuring process printed no figures")?;
                print(&task, &figures, first.get_or_insert(figures));
            }
        }
    }
    Ok(())
}

fn print(task: &Task, figures: &Figures, first: &Figures) {
    println!(
        "{:<10} {:<8} {:>10} {:>5.0} MB {:>7.1} {:>7.1} {:>6.2} {:>10.2} {:>7.0} {:>10.0} {:>8.0}",
        task.role.name(),
        task.phase.name(),
        task.rows,
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
    let rows: f64 = word
        .parse()
        .with_context(|| format!("invalid size {word}; sizes are millions of rows"))?;
    anyhow::ensure!(
        (0.1..=100.0).contains(&rows),
        "invalid size {word}; sizes are 0.1 to 100 million rows"
    );
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive number"
    )]
    Ok((rows * 1e6) as usize)
}

fn child_process(task: &Task) -> anyhow::Result<Option<Figures>> {
    let output = Command::new(std::env::current_exe()?)
        .args([CHILD, &serde_json::to_string(task)?])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(output.status.success(), "{task:?} ended with {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs one phase and prints its figures as JSON, or `null`.
pub fn child(words: &[String]) -> anyhow::Result<()> {
    let task: Task = serde_json::from_str(words.first().context("the task is missing")?)?;
    let state_mb = file_bytes(&task.dir, task.phase == Phase::MeasureCold)? / 1e6;
    let updates = Updates {
        rows: task.rows,
        count: if task.phase == Phase::MeasureCold {
            COLD_UPDATES
        } else {
            UPDATES
        },
    };
    let figures = match (task.phase, task.role) {
        (Phase::Build, Role::SyncViews) => self::sync_views::build(&task.dir, task.rows).map(|()| None)?,
        (Phase::Build, Role::Edge) => self::replica::build(&task.dir, task.rows).map(|()| None)?,
        (Phase::Truncate, _) => Some(self::replica::truncate(&task.dir, task.rows)?),
        (_, Role::SyncViews) => Some(self::sync_views::measure(&task.dir, updates)?),
        (_, Role::Edge) => Some(self::replica::measure(&task.dir, updates)?),
    };
    let figures = figures.map(|figures| Figures { state_mb, ..figures });
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// Bytes of all files. Writes them back first, since the page cache does not drop dirty pages.
fn file_bytes(dir: &Path, drops: bool) -> anyhow::Result<f64> {
    let mut bytes = 0.0;
    if !dir.exists() {
        return Ok(bytes);
    }
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
        #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a printed figure")]
        let length = file.metadata()?.len() as f64;
        bytes += length;
    }
    Ok(bytes)
}
