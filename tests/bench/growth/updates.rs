//! Random updates of existing rows, and the measurement of their cost.

use crate::figures::memory_mb;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use service::telemetry::usage;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Rows of one source transaction.
pub const TRANSACTION_ROWS: usize = 1_000;

/// A store that wrote nothing for this time has no running compaction.
const IDLE: Duration = Duration::from_secs(2);
const COMPACTIONS_LIMIT: Duration = Duration::from_secs(300);

/// Results of a measurement.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Figures {
    pub wall_us: f64,
    pub cpu_us: f64,
    /// Bytes per row that the updating thread read from files.
    pub read_bytes: f64,
    /// Bytes per row that the process wrote to files.
    pub written_bytes: f64,
    pub state_mb: f64,
    pub peak_mb: f64,
}

/// Random updates to measure.
#[derive(Debug, Clone, Copy)]
pub struct Updates {
    /// Rows of the state.
    pub rows: usize,
    /// Number of updates.
    pub count: usize,
}

impl Updates {
    /// Calls `update` for each source transaction, with the rows to update and the number of the transaction.
    pub fn measure(self, mut update: impl FnMut(&[usize], usize) -> anyhow::Result<()>) -> anyhow::Result<Figures> {
        let mut random = Random::new(u64::try_from(self.count)?);
        let mut chosen = Vec::with_capacity(TRANSACTION_ROWS);
        self.measure_once(|| {
            for transaction in 0..self.count / TRANSACTION_ROWS {
                chosen.clear();
                chosen.extend((0..TRANSACTION_ROWS).map(|_| random.below(self.rows)));
                update(&chosen, transaction)?;
            }
            Ok(())
        })
    }

    /// Measures one call that changes `count` rows.
    pub fn measure_once(self, change: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Figures> {
        let (began, before) = (Instant::now(), Counters::now()?);
        change()?;
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
            // Only the reads of this thread: compactions read whole tables on another thread.
            read: number("/proc/thread-self/io", "rchar:")?,
            written: number("/proc/self/io", "wchar:")?,
        })
    }
}

/// Waits until the compactions that a build left behind have ended, so that a measurement does not include them.
pub fn wait_for_compactions() -> anyhow::Result<()> {
    let end = Instant::now() + COMPACTIONS_LIMIT;
    let mut before = Counters::now()?.written;
    loop {
        sleep(IDLE);
        let now = Counters::now()?.written;
        #[expect(clippy::float_cmp, reason = "an integer counter")]
        if now == before {
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < end,
            "the store still writes {COMPACTIONS_LIMIT:?} after the build"
        );
        before = now;
    }
}

/// xorshift64*, with the same seed in each run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        usize::try_from(self.number() % end).unwrap_or_default()
    }

    /// Random hexadecimal digits, which compress to half at best.
    pub fn text(&mut self, length: usize) -> String {
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            text.push_str(&format!("{:016x}", self.number()));
        }
        text.truncate(length);
        text
    }
}

/// The number of a row in its key: all have nine digits, so keys are ordered as numbers.
pub fn row_number(row: usize) -> usize {
    100_000_000 + row
}
