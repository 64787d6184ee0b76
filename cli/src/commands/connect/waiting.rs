//! Waits until a connector has reached a state, and shows the progress on stderr.

use crate::connectors_client::{self, Found, Health as _, Level, Report, Table, TableHealth as _};
use crate::processes::Processes;
use anyhow::{Result, bail};
use indicatif::ProgressBar;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// Interval between two requests.
const EVERY: Duration = Duration::from_millis(250);
/// How long a failure may last before it ends the wait: a restarted connector may fail a few times until, for example,
/// PostgreSQL has noticed that the slot is free.
const FAILURE_MAX: Duration = Duration::from_secs(5);

/// The state to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// The connector is paused.
    Paused,
    /// The connector streams.
    Running,
    /// The snapshots of these tables have ended.
    Tables(Vec<String>),
}

impl Goal {
    fn is_reached(&self, report: &Report) -> bool {
        match self {
            Goal::Paused => report.state == "PAUSED",
            Goal::Running => report.state == "RUNNING",
            Goal::Tables(names) => {
                let runs = |table: &&Table| names.contains(&table.table) && table.state == "RUNNING";
                let pending = report.pending_snapshots.iter().any(|table| names.contains(table));
                !pending && report.tables.iter().filter(runs).count() == names.len()
            }
        }
    }

    /// Why the goal is not reached without another command.
    fn obstacle(&self, report: &Report) -> Option<String> {
        if report.level() == Level::Bad && report.state != "STARTING" {
            let (cause, fix) = (report.cause.as_deref(), report.fix.as_deref());
            return Some(format!(
                "connector {} is {}: {}; {}",
                report.connector,
                report.state,
                cause.unwrap_or("unknown cause"),
                fix.unwrap_or("see the log of the process")
            ));
        }
        let Goal::Tables(names) = self else { return None };
        let stopped = report
            .tables
            .iter()
            .find(|table| names.contains(&table.table) && table.needs_snapshot());
        stopped.map(|table| {
            format!(
                "table {} still needs a snapshot: {}; {}",
                table.table,
                table.cause.as_deref().unwrap_or("unknown cause"),
                table.fix.as_deref().unwrap_or("see the log of the process")
            )
        })
    }
}

/// A connector whose state is read.
pub struct Waiting<'w> {
    /// The processes.
    pub processes: &'w Processes,
    /// URL of the process with the connector.
    pub at: &'w str,
    /// The connector.
    pub name: &'w str,
}

impl Waiting<'_> {
    /// The current state.
    pub fn now(&self) -> Result<Found> {
        connectors_client::status(self.processes, self.at, self.name)
    }

    /// Waits until the goal is reached, and returns the state.
    pub fn until(&self, goal: &Goal, timeout: Option<Duration>) -> Result<Found> {
        let (started, mut failing) = (Instant::now(), None::<Instant>);
        let bar = ProgressBar::new_spinner();
        let mut shown = String::new();
        loop {
            let found = self.now()?;
            if goal.is_reached(&found.report) {
                bar.finish_and_clear();
                return Ok(found);
            }
            if found.report.state == "PAUSED" && *goal != Goal::Paused {
                bail!(
                    "connector {} is paused, so nothing happens; `trunkline connect resume {}` continues",
                    self.name,
                    self.name
                );
            }
            let text = progress(&found.report);
            show(&bar, &mut shown, text);
            match goal.obstacle(&found.report) {
                Some(obstacle) => {
                    let since = failing.get_or_insert_with(Instant::now);
                    if since.elapsed() > FAILURE_MAX {
                        bail!("{obstacle}");
                    }
                }
                None => failing = None,
            }
            if let Some(limit) = timeout.filter(|limit| started.elapsed() > *limit) {
                bail!(
                    "connector {} has not reached the state within {} s ({shown}); it continues, see `trunkline connect status`",
                    self.name,
                    limit.as_secs()
                );
            }
            std::thread::sleep(EVERY);
        }
    }
}

/// Shows a text if it has changed: as a spinner on a terminal, else as a line.
fn show(bar: &ProgressBar, shown: &mut String, text: String) {
    bar.tick();
    if *shown == text {
        return;
    }
    if std::io::stderr().is_terminal() {
        bar.set_message(text.clone());
    } else {
        eprintln!("{text}");
    }
    *shown = text;
}

fn progress(report: &Report) -> String {
    let detail = report.progress.clone().or_else(|| report.cause.clone());
    match detail {
        Some(detail) => format!("{}: {}: {detail}", report.connector, report.state),
        None => format!("{}: {}", report.connector, report.state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: &str, table: &str) -> Report {
        serde_json::from_value(serde_json::json!({
            "connector": "shop", "state": state, "position": "", "records_total": 0, "target": "running",
            "tables": [{ "table": "orders", "state": table, "cause": "it was replaced" }],
        }))
        .unwrap()
    }

    #[test]
    fn snapshot_has_ended_when_no_table_waits_or_is_copied() {
        let goal = Goal::Tables(vec!["orders".to_owned()]);
        assert!(!goal.is_reached(&report("RUNNING", "SNAPSHOTTING")));
        assert!(goal.is_reached(&report("RUNNING", "RUNNING")));
        let mut pending = report("RUNNING", "RUNNING");
        pending.pending_snapshots.push("orders".to_owned());
        assert!(!goal.is_reached(&pending));
    }

    #[test]
    fn failure_names_the_table_or_the_connector() {
        let goal = Goal::Tables(vec!["orders".to_owned()]);
        assert_eq!(goal.obstacle(&report("RUNNING", "SNAPSHOTTING")), None);
        let obstacle = goal.obstacle(&report("RUNNING", "NEEDS_SNAPSHOT")).unwrap();
        assert!(obstacle.contains("table orders still needs a snapshot: it was replaced"));
        assert_eq!(Goal::Running.obstacle(&report("STARTING", "RUNNING")), None);
        let obstacle = Goal::Running.obstacle(&report("FAILED", "RUNNING")).unwrap();
        assert!(obstacle.starts_with("connector shop is FAILED"));
    }
}
