//! `trunkline connect`: shows and controls the connectors of running processes.

mod waiting;

use crate::args::{self, ConnectChange, ConnectCommand, ConnectResync, ConnectSnapshot, Output};
use crate::connectors_client::{Connectors, Found, Health as _, Level, Table, TableHealth as _};
use crate::exit::Failed;
use crate::print;
use crate::processes::Processes;
use anyhow::{Result, bail};
use reqwest::Method;
use serde_json::json;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;
use waiting::{Goal, Waiting};

/// Timeout of a request. A command is answered when its effect is stored, at most 30 s later.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Runs the subcommand.
pub fn run(output: Output, connect: &args::Connect) -> Result<()> {
    let processes = Processes::find(&connect.target, &connect.admin, TIMEOUT)?;
    let connectors = Connectors::read(&processes);
    let commands = Commands {
        output,
        processes: &processes,
        connectors: &connectors,
    };
    match &connect.command {
        ConnectCommand::List => commands.list(),
        ConnectCommand::Status(status) => commands.status(&status.connector),
        ConnectCommand::Pause(change) => commands.change(change, &Method::PUT, "pause", &Goal::Paused),
        ConnectCommand::Resume(change) => commands.change(change, &Method::PUT, "resume", &Goal::Running),
        ConnectCommand::Restart(change) => commands.change(change, &Method::POST, "restart", &Goal::Running),
        ConnectCommand::Resync(resync) => commands.resync(resync),
        ConnectCommand::Snapshot(snapshot) => commands.snapshot(snapshot),
    }
}

struct Commands<'c> {
    output: Output,
    processes: &'c Processes,
    connectors: &'c Connectors,
}

impl Commands<'_> {
    fn list(&self) -> Result<()> {
        self.warn_of_failures()?;
        let columns = ["connector", "state", "tables", "lag_bytes", "records", "cause", "at"];
        print::list(self.output, &self.connectors.found, &columns, |found| {
            let report = &found.report;
            vec![
                report.connector.clone(),
                report.state.clone(),
                tables(&report.tables),
                report.lag_bytes.map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
                report.records_total.to_string(),
                report.cause.clone().unwrap_or_else(|| "-".to_owned()),
                found.at.clone(),
            ]
        })
    }

    fn status(&self, names: &[String]) -> Result<()> {
        for name in names {
            self.connectors.named(name)?;
        }
        self.warn_of_failures()?;
        let is_named = |found: &&Found| names.is_empty() || names.contains(&found.report.connector);
        let shown: Vec<Found> = self.connectors.found.iter().filter(is_named).cloned().collect();
        self.print(&shown)?;
        let healthy = shown.iter().all(|found| found.report.is_healthy());
        if healthy && self.connectors.failures.is_empty() {
            Ok(())
        } else {
            Err(Failed.into())
        }
    }

    /// Reports processes that did not answer. Fails if none did.
    fn warn_of_failures(&self) -> Result<()> {
        for error in &self.connectors.failures {
            eprintln!("trunkline: {error:#}");
        }
        if self.connectors.failures.len() == self.processes.urls.len() {
            return Err(Failed.into());
        }
        Ok(())
    }

    /// Prints the complete state of connectors.
    fn print(&self, shown: &[Found]) -> Result<()> {
        if self.output == Output::Json {
            return print::json(shown);
        }
        let mut rows = Vec::new();
        for found in shown {
            let report = &found.report;
            let detail = report.cause.clone().or_else(|| report.progress.clone());
            rows.push([
                report.connector.clone(),
                String::new(),
                report.state.clone(),
                detail.unwrap_or_default(),
                report.fix.clone().unwrap_or_default(),
            ]);
            if let Some(alarm) = &report.alarm {
                let (cause, fix) = (alarm.cause.clone(), alarm.fix.clone());
                rows.push([
                    report.connector.clone(),
                    String::new(),
                    String::from("ALARM"),
                    cause,
                    fix,
                ]);
            }
            for table in report.tables.iter() {
                let is_pending = report.pending_snapshots.contains(&table.table);
                let pending = is_pending.then(|| "a requested snapshot waits until the connector runs".to_owned());
                rows.push([
                    String::new(),
                    table.table.clone(),
                    table.state.clone(),
                    table.detail().or(pending).unwrap_or_default(),
                    table.fix.clone().unwrap_or_default(),
                ]);
            }
        }
        let columns = ["connector", "table", "state", "cause or progress", "fix"];
        print::list(self.output, &rows, &columns, |row| row.to_vec())
    }

    fn change(&self, change: &ConnectChange, method: &Method, action: &str, goal: &Goal) -> Result<()> {
        // All names are checked before the first connector changes.
        let targets: Vec<&Found> = change
            .connector
            .iter()
            .map(|name| self.connectors.named(name))
            .collect::<Result<_>>()?;
        for target in &targets {
            let path = ["connectors", &target.report.connector, action];
            self.processes.send(method.clone(), &target.at, &path, None)?;
        }
        self.finish(&targets, &change.wait, goal)
    }

    fn resync(&self, resync: &ConnectResync) -> Result<()> {
        let target = self.connectors.named(&resync.connector)?;
        if !resync.yes {
            confirm(&resync.connector)?;
        }
        let path = ["connectors", &resync.connector, "resync"];
        self.processes.send(Method::POST, &target.at, &path, None)?;
        self.finish(&[target], &resync.wait, &Goal::Running)
    }

    fn snapshot(&self, snapshot: &ConnectSnapshot) -> Result<()> {
        let target = self.connectors.named(&snapshot.connector)?;
        let path = ["connectors", &snapshot.connector, "snapshot"];
        let body = json!({ "tables": snapshot.table });
        let answer = self.processes.send(Method::POST, &target.at, &path, Some(&body))?;
        let requested = answer.get("tables").cloned().unwrap_or_default();
        let goal = Goal::Tables(serde_json::from_value(requested).unwrap_or_default());
        self.finish(&[target], &snapshot.wait, &goal)
    }

    /// Waits if required, and prints the state.
    fn finish(&self, targets: &[&Found], wait: &args::ConnectWait, goal: &Goal) -> Result<()> {
        let mut shown = Vec::new();
        for target in targets {
            let waiting = Waiting {
                processes: self.processes,
                at: &target.at,
                name: &target.report.connector,
            };
            let timeout = wait.timeout.map(Duration::from_secs);
            shown.push(match wait.wait {
                true => waiting.until(goal, timeout)?,
                false => waiting.now()?,
            });
        }
        self.print(&shown)?;
        let failed = |found: &Found| found.report.level() == Level::Bad;
        if wait.wait && shown.iter().any(failed) {
            return Err(Failed.into());
        }
        Ok(())
    }
}

/// `3`, or `3, 1 needs a snapshot`.
fn tables(tables: &[Table]) -> String {
    match tables.iter().filter(|table| table.needs_snapshot()).count() {
        0 => tables.len().to_string(),
        1 => format!("{}, 1 needs a snapshot", tables.len()),
        stopped => format!("{}, {stopped} need a snapshot", tables.len()),
    }
}

fn confirm(name: &str) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("a resync of connector {name} publishes all its rows again; confirm with --yes");
    }
    eprint!("Connector {name} reads its source again from the start and publishes all rows. Continue? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("cancelled; connector {name} is unchanged");
    }
    Ok(())
}
