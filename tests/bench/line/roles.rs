//! What each process of the line uses: CPU and memory, from `/proc`, children included.

use super::bank::Bank;
use crate::figures::{cpu_s, memory_mb};
use std::collections::BTreeMap;
use std::time::Duration;

/// The roles that are ours, in the order of the way.
pub const OURS: [&str; 3] = ["connector", "processor", "edge-1"];

/// The CPU seconds of each process at an instant.
pub struct Roles(BTreeMap<&'static str, f64>);

impl Roles {
    pub fn look(bank: &Bank) -> Roles {
        Roles(
            processes(bank)
                .into_iter()
                .map(|(name, pid)| (name, cpu_s(pid)))
                .collect(),
        )
    }

    /// CPU a row since then, and memory.
    pub fn print_rows(&self, bank: &Bank, rows: usize) {
        #[expect(clippy::as_conversions, reason = "a figure for people")]
        let rows = rows as f64;
        self.print(bank, |cpu| format!("{:6.1} µs CPU a row", cpu * 1e6 / rows));
    }

    /// Share of a core since then, and memory.
    pub fn print_share(&self, bank: &Bank, took: Duration) {
        self.print(bank, |cpu| {
            format!("{:6.1} % of a core", cpu * 100.0 / took.as_secs_f64())
        });
    }

    fn print(&self, bank: &Bank, figure: impl Fn(f64) -> String) {
        for (name, pid) in processes(bank) {
            // A process that was started in between began with nothing.
            let before = self.0.get(name).copied().unwrap_or_default();
            let cpu = cpu_s(pid);
            let used = if cpu >= before { cpu - before } else { cpu };
            let asked = if OURS.contains(&name) {
                " (asked for: < 200)"
            } else {
                ""
            };
            println!(
                "  {name:<10} {}, resident {:4.0} MB, of that its own {:4.0} MB, at most {:4.0} MB{asked}",
                figure(used),
                memory_mb(pid, "VmRSS:"),
                memory_mb(pid, "RssAnon:"),
                memory_mb(pid, "VmHWM:"),
            );
        }
    }
}

fn processes(bank: &Bank) -> Vec<(&'static str, u32)> {
    let ours = OURS.iter().filter_map(|role| Some((*role, bank.fleet.running(role)?)));
    let others = [("Kafka", bank.broker.pid()), ("PostgreSQL", bank.postgres.pid())];
    ours.chain(others).collect()
}
