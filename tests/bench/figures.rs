//! Statistics and process figures that the benchmarks share.

use std::fs;
use std::time::Duration;

/// Rows per second.
#[expect(clippy::as_conversions, reason = "a printed figure")]
pub fn rate(rows: usize, elapsed: Duration) -> f64 {
    rows as f64 / elapsed.as_secs_f64()
}

/// Durations in ascending order.
pub struct Times(Vec<Duration>);

impl Times {
    pub fn new(mut all: Vec<Duration>) -> Times {
        all.sort_unstable();
        Times(all)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Quantile in per mille; zero if there are no durations.
    pub fn at(&self, per_mille: usize) -> Duration {
        self.0.get(self.0.len() * per_mille / 1000).copied().unwrap_or_default()
    }

    pub fn longest(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }
}

/// CPU seconds of a process, its running children and its children that have ended.
pub fn cpu_s(pid: u32) -> f64 {
    let all = fs::read_dir("/proc").expect("Linux").flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children = ids.filter_map(stat).filter(|(parent, _)| *parent == pid);
    let children: f64 = children.map(|(_, cpu)| cpu).sum();
    children + stat(pid).map_or(0.0, |(_, cpu)| cpu)
}

/// Parent and CPU seconds from `/proc/PID/stat`: fields 4 and 14 to 17 of proc(5), in ticks of 10 ms.
fn stat(pid: u32) -> Option<(u32, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<f64>().ok());
    Some((fields.get(1)?.parse().ok()?, ticks.sum::<f64>() / 100.0))
}

/// A size in `/proc/PID/status`, such as `VmRSS:`, in MB.
pub fn memory_mb(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or_default() * 1024.0 / 1e6
}
