//! What each process of the line uses: CPU and memory, from `/proc`, children included.

use super::bank::Bank;
use std::collections::BTreeMap;
use std::fs;
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

/// CPU seconds of a process, of its children that live, and of those that have ended.
fn cpu_s(pid: u32) -> f64 {
    let all = fs::read_dir("/proc").expect("Linux").flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children = ids.filter_map(stat).filter(|(parent, _)| *parent == pid);
    let children: f64 = children.map(|(_, cpu)| cpu).sum();
    children + stat(pid).map_or(0.0, |(_, cpu)| cpu)
}

/// Parent and CPU seconds, from `/proc/PID/stat`: fields 4 and 14 to 17 of proc(5), in ticks of 10 ms.
fn stat(pid: u32) -> Option<(u32, f64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<f64>().ok());
    Some((fields.get(1)?.parse().ok()?, ticks.sum::<f64>() / 100.0))
}

fn memory_mb(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or_default() * 1024.0 / 1e6
}
