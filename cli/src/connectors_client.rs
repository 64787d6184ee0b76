//! The connectors of all processes, read from their admin listeners.

use crate::processes::Processes;
use anyhow::{Context, Result, bail};
use connectors::status;
use event_log::in_parallel;
use serde::Serialize;
use serde_json::Value;

/// State of a connector, as its process reports it.
pub type Report = status::Report<String, String, String>;

/// State of a table.
pub type Table = status::TableReport<String>;

/// What operators read from the state of a table.
pub trait TableHealth {
    /// Why it needs a snapshot, or the progress of its snapshot.
    fn detail(&self) -> Option<String>;

    /// Whether its changes are skipped.
    fn needs_snapshot(&self) -> bool;
}

impl TableHealth for Table {
    fn detail(&self) -> Option<String> {
        let progress = self.progress.map(|progress| match progress.rows_estimated {
            Some(all) => format!("{} of about {all} rows", progress.rows),
            None => format!("{} rows", progress.rows),
        });
        self.cause.clone().or(progress)
    }

    fn needs_snapshot(&self) -> bool {
        self.state == "NEEDS_SNAPSHOT"
    }
}

/// How serious a state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// Intended or temporary.
    Warn,
    /// Red in readiness.
    Bad,
}

/// What operators read from the state of a connector.
pub trait Health {
    /// How serious the state of the connector is, without its tables.
    fn level(&self) -> Level;

    /// Whether the connector and all its tables work, or an operator has paused it, and there is no other problem.
    fn is_healthy(&self) -> bool;
}

impl Health for Report {
    fn level(&self) -> Level {
        match self.state.as_str() {
            "RUNNING" | "SNAPSHOTTING" => Level::Ok,
            "PAUSED" => Level::Warn,
            _ => Level::Bad,
        }
    }

    fn is_healthy(&self) -> bool {
        self.level() < Level::Bad && self.alarm.is_none() && !self.tables.iter().any(TableHealth::needs_snapshot)
    }
}

/// A connector in a process.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// URL of the process.
    pub at: String,
    /// Its state.
    #[serde(flatten)]
    pub report: Report,
}

/// The connectors of all processes that answered.
#[derive(Debug, Default)]
pub struct Connectors {
    /// The connectors, by name.
    pub found: Vec<Found>,
    /// Why a process did not answer.
    pub failures: Vec<anyhow::Error>,
}

impl Connectors {
    /// Asks all processes.
    pub fn read(processes: &Processes) -> Self {
        let mut connectors = Connectors::default();
        for found in in_parallel(&processes.urls, |url| of_process(processes, url)) {
            match found {
                Ok(found) => connectors.found.extend(found),
                Err(error) => connectors.failures.push(error),
            }
        }
        connectors
            .found
            .sort_by(|a, b| a.report.connector.cmp(&b.report.connector));
        connectors
    }

    /// The process in which commands for a connector are executed. A process that has lost its connector to another one
    /// is used only if no other process has it.
    pub fn named(&self, name: &str) -> Result<&Found> {
        let mut all: Vec<&Found> = self
            .found
            .iter()
            .filter(|found| found.report.connector == name)
            .collect();
        all.sort_by_key(|found| found.report.state == "STOPPED");
        match all.first() {
            Some(found) => Ok(found),
            None => bail!(self.unknown(name)),
        }
    }

    /// The message for a connector that no process has.
    fn unknown(&self, name: &str) -> String {
        let mut names: Vec<&str> = self.found.iter().map(|found| found.report.connector.as_str()).collect();
        names.dedup();
        let available = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        let failures = self.failures.iter().map(|error| format!("; {error:#}"));
        format!(
            "no process runs a connector `{name}`; running connectors: {available}{}",
            failures.collect::<String>()
        )
    }
}

/// The connectors of one process.
pub fn of_process(processes: &Processes, url: &str) -> Result<Vec<Found>> {
    let (status, answer) = processes.get(url, &["connectors"], "expand=status")?;
    if status == 503 {
        let detail = answer.get("detail").and_then(Value::as_str);
        bail!("{url}: {}", detail.unwrap_or("the connectors have not started yet"));
    }
    let statuses = answer.as_object().into_iter().flatten();
    statuses
        .map(|(_, item)| report_of(url, item.get("status").unwrap_or(&Value::Null)))
        .collect()
}

/// The state of one connector.
pub fn status(processes: &Processes, url: &str, name: &str) -> Result<Found> {
    let (_, answer) = processes.get(url, &["connectors", name, "status"], "")?;
    report_of(url, &answer)
}

fn report_of(url: &str, status: &Value) -> Result<Found> {
    let report = status.get("trunkline").cloned().unwrap_or_default();
    let report = serde_json::from_value(report)
        .with_context(|| format!("cannot parse the answer of {url}; it may run another version of trunkline"))?;
    Ok(Found {
        at: url.to_owned(),
        report,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use connectors::status::{Alarm, TableProgress};

    fn found(at: &str, name: &str, state: &str) -> Found {
        let report = serde_json::json!({
            "connector": name, "state": state, "position": "", "records_total": 0, "target": "running", "tables": [],
        });
        Found {
            at: at.to_owned(),
            report: serde_json::from_value(report).unwrap(),
        }
    }

    #[test]
    fn commands_go_to_the_process_that_has_the_connector() {
        let connectors = Connectors {
            found: vec![
                found("a", "shop", "STOPPED"),
                found("b", "shop", "RUNNING"),
                found("c", "x", "STOPPED"),
            ],
            failures: vec![anyhow::anyhow!("cannot reach d")],
        };
        assert_eq!(connectors.named("shop").unwrap().at, "b");
        assert_eq!(connectors.named("x").unwrap().at, "c");
        let error = connectors.named("shp").unwrap_err().to_string();
        let expected = "no process runs a connector `shp`; running connectors: shop, x; cannot reach d";
        assert_eq!(error, expected);
    }

    #[test]
    fn states_of_a_newer_process_are_read() {
        let report = serde_json::json!({
            "connector": "shop", "state": "MIGRATING", "position": "", "records_total": 0, "target": "drained",
            "tables": [{ "table": "orders", "state": "MOVING" }], "more": true,
        });
        let read: Report = serde_json::from_value(report).unwrap();
        assert_eq!((read.state.as_str(), read.target.as_str()), ("MIGRATING", "drained"));
        assert_eq!((read.level(), read.tables[0].needs_snapshot()), (Level::Bad, false));
    }

    #[test]
    fn everything_that_a_process_reports_is_read() {
        let component = service::Readiness::new().register("connector shop");
        let mut report = connectors::status::Handle::new("shop", component).report();
        (report.lag_bytes, report.retained_bytes) = (Some(1), Some(2));
        (report.cause, report.fix) = (Some(String::from("c")), Some(String::from("f")));
        (report.progress, report.pending_snapshots) = (Some(String::from("p")), vec![String::from("orders")]);
        report.alarm = Some(Alarm {
            cause: String::from("much WAL is retained"),
            fix: String::from("let it catch up"),
        });
        report.tables = [connectors::status::TableReport {
            table: String::from("orders"),
            state: connectors::status::TableState::Snapshotting,
            cause: None,
            fix: None,
            progress: Some(TableProgress {
                rows: 3,
                rows_estimated: Some(9),
            }),
        }]
        .into();
        let sent = serde_json::to_value(&report).unwrap();
        let read: Report = serde_json::from_value(sent.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), sent);
        assert_eq!(read.tables[0].detail().unwrap(), "3 of about 9 rows");
    }

    #[test]
    fn alarm_beside_a_running_connector_is_not_healthy() {
        let mut report = found("a", "shop", "RUNNING").report;
        assert!(report.is_healthy());
        report.alarm = Some(Alarm {
            cause: String::from("much WAL is retained"),
            fix: String::from("let it catch up"),
        });
        assert!(!report.is_healthy());
    }

    #[test]
    fn paused_is_a_warning_and_other_states_without_records_are_bad() {
        for (state, level) in [
            ("RUNNING", Level::Ok),
            ("SNAPSHOTTING", Level::Ok),
            ("PAUSED", Level::Warn),
            ("STARTING", Level::Bad),
            ("RETRYING", Level::Bad),
            ("FAILED", Level::Bad),
            ("NEEDS_RESYNC", Level::Bad),
            ("STOPPED", Level::Bad),
        ] {
            assert_eq!(found("a", "shop", state).report.level(), level, "{state}");
        }
    }
}
