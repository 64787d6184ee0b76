//! CPU and memory of each process of the pipeline, including its children, from `/proc`.

use super::bank::Bank;
use crate::figures::{cpu_s, memory_mb};
use std::collections::BTreeMap;
use std::time::Duration;

/// The roles that nodes run, in the direction of the data flow.
pub const OURS: [&str; 3] = ["connector", "processor", "edge-1"];

/// CPU seconds of each process at an instant.
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

    /// Prints the CPU per row since `look`, and memory.
    pub fn print_rows(&self, bank: &Bank, rows: usize) {
        #[expect(clippy::as_conversions, reason = "a printed figure")]
        let rows = rows as f64;
        self.print(bank, |cpu| format!("{:6.1} µs CPU per row", cpu * 1e6 / rows));
    }

    /// Prints the share of a core since `look`, and memory.
    pub fn print_share(&self, bank: &Bank, took: Duration) {
        self.print(bank, |cpu| {
            format!("{:6.1} % of a core", cpu * 100.0 / took.as_secs_f64())
        });
    }

    fn print(&self, bank: &Bank, figure: impl Fn(f64) -> String) {
        for (name, pid) in processes(bank) {
            // The counter of a process that was restarted since `look` began at zero.
            let before = self.0.get(name).copied().unwrap_or_default();
            let cpu = cpu_s(pid);
            let used = if cpu >= before { cpu - before } else { cpu };
            let target = if OURS.contains(&name) { " (target: < 200)" } else { "" };
            println!(
                "  {name:<10} {}, resident {:4.0} MB, anonymous {:4.0} MB, peak {:4.0} MB{target}",
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
