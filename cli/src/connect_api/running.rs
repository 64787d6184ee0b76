//! The connectors of a process, and their state in Kafka Connect's terms.

use axum::http::StatusCode;
use connectors::commands::{CommandError, Reply, Target};
use connectors::sources::postgres::ServerObjects;
use connectors::status::{Handle, Report, State, TableState};
use serde_json::{Map, Value, json};
use service::Problem;
use service::problem::{self, Kind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The process does not run the connector.
pub(super) const CONNECTOR_NOT_FOUND: Kind = Kind::new(
    "connector-not-found",
    StatusCode::NOT_FOUND,
    "There is no such connector here",
);
/// Connectors are declared in the topology.
pub(super) const CONNECTOR_DECLARED: Kind = Kind::new(
    "connector-declared",
    StatusCode::CONFLICT,
    "Connectors are declared in the topology",
);
/// The connector cannot execute the command.
const COMMAND_REJECTED: Kind = Kind::new(
    "command-rejected",
    StatusCode::CONFLICT,
    "The connector rejects the command",
);
/// The only task of a connector.
pub(super) const TASK: u32 = 0;

/// A connector that runs in this process.
#[derive(Debug, Clone)]
pub struct RunningConnector {
    /// Its name.
    pub name: String,
    /// State and commands.
    pub handle: Handle,
    /// The topic to which it publishes.
    pub topic: String,
    /// Names of its tables.
    pub tables: Vec<String>,
    /// What it uses on a PostgreSQL server; `None` for a source of another kind.
    pub objects: Option<ServerObjects>,
}

/// The connectors of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct RunningConnectors {
    /// `None` until the roles start.
    all: Arc<Mutex<Option<Vec<RunningConnector>>>>,
}

impl RunningConnectors {
    /// Sets the connectors when they have started.
    pub fn set(&self, started: Vec<RunningConnector>) {
        *self.lock() = Some(started);
    }

    /// All connectors.
    pub fn all(&self) -> Vec<RunningConnector> {
        self.lock().clone().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<RunningConnector>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn started(&self) -> Result<Vec<RunningConnector>, Box<Problem>> {
        let started = self.lock().clone();
        started.ok_or_else(|| {
            Box::new(fail(
                &problem::UNAVAILABLE,
                "the connectors have not started yet; see /readyz",
            ))
        })
    }

    pub(super) fn find(&self, name: &str) -> Result<RunningConnector, Box<Problem>> {
        let all = self.started()?;
        let names: Vec<String> = all.iter().map(|connector| connector.name.clone()).collect();
        let found = all.into_iter().find(|connector| connector.name == name);
        found.ok_or_else(|| {
            let names = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            };
            let detail = format!("connector `{name}` does not run in this process (running here: {names})");
            Box::new(fail(&CONNECTOR_NOT_FOUND, detail))
        })
    }
}

/// State of the routes.
#[derive(Clone)]
pub struct Worker {
    /// The name of the process in a status.
    pub id: String,
    /// Its connectors.
    pub connectors: RunningConnectors,
}

/// Creates a problem with the members of Kafka Connect's errors.
pub(super) fn fail(kind: &Kind, detail: impl Into<String>) -> Problem {
    let detail = detail.into();
    let mut problem = kind.detail(detail.clone());
    let members = &mut problem.members;
    members.insert("error_code".to_owned(), kind.status.as_u16().into());
    members.insert("message".to_owned(), detail.into());
    problem
}

impl RunningConnector {
    fn kind(&self) -> &'static str {
        if self.objects.is_some() { "postgres" } else { "http" }
    }

    /// The configuration, without addresses with credentials.
    pub(super) fn config(&self) -> Map<String, Value> {
        let mut config = Map::new();
        let mut set = |name: &str, value: &str| drop(config.insert(name.to_owned(), value.into()));
        set("name", &self.name);
        set("connector.class", self.kind());
        set("tasks.max", "1");
        set("topic", &self.topic);
        set("tables", &self.tables.join(","));
        if let Some(objects) = &self.objects {
            set("database", &objects.server);
            set("slot", &objects.slot);
            set("publication", &objects.publication);
        }
        config
    }

    pub(super) fn info(&self) -> Value {
        json!({
            "name": self.name,
            "config": self.config(),
            "tasks": [{ "connector": self.name, "task": TASK }],
            "type": "source",
        })
    }

    pub(super) fn status(&self, worker: &str) -> Value {
        let report = self.handle.report();
        let state = connect_state(&report);
        let mut connector = json!({ "state": state, "worker_id": worker });
        let mut task = json!({ "id": TASK, "state": state, "worker_id": worker });
        if let Some(trace) = trace(&report) {
            for part in [&mut connector, &mut task].into_iter().filter_map(Value::as_object_mut) {
                part.insert("trace".to_owned(), trace.clone().into());
            }
        }
        json!({
            "name": self.name,
            "connector": connector,
            "tasks": [task],
            "type": "source",
            "trunkline": report,
        })
    }

    /// Tables that need a snapshot.
    pub(super) fn stopped_tables(&self) -> Vec<String> {
        let report = self.handle.report();
        let stopped = report
            .tables
            .iter()
            .filter(|table| table.state == TableState::NeedsSnapshot);
        stopped.map(|table| table.table.clone()).collect()
    }

    /// Waits until the effect of a command is stored.
    pub(super) async fn stored(&self, sent: Result<Reply, CommandError>, limit: Duration) -> Result<(), Box<Problem>> {
        let rejected = |error: CommandError| Box::new(fail(&COMMAND_REJECTED, error.to_string()));
        let reply = sent.map_err(rejected)?;
        match tokio::time::timeout(limit, reply).await {
            Ok(Ok(result)) => result.map_err(rejected),
            Ok(Err(_)) => {
                let detail = format!(
                    "connector {} failed before the command was stored; repeat it ({})",
                    self.name,
                    described(&self.handle.report())
                );
                Err(Box::new(fail(&problem::UNAVAILABLE, detail)))
            }
            Err(_) => {
                let detail = format!(
                    "connector {} has not stored the command yet ({}); it executes the command later, unless the process \
                     ends before",
                    self.name,
                    described(&self.handle.report())
                );
                Err(Box::new(fail(&problem::UNAVAILABLE, detail)))
            }
        }
    }
}

/// The state with its cause.
fn described(report: &Report) -> String {
    match &report.cause {
        Some(cause) => format!("{}: {cause}", report.state.name()),
        None => report.state.name().to_owned(),
    }
}

/// The state in Kafka Connect's terms.
fn connect_state(report: &Report) -> &'static str {
    match report.state {
        State::Running | State::Snapshotting => "RUNNING",
        State::Paused if report.target == Target::Stopped => "STOPPED",
        State::Paused => "PAUSED",
        State::Retrying | State::Failed | State::NeedsResync => "FAILED",
        State::Starting | State::Stopped => "UNASSIGNED",
    }
}

/// The exact state with cause and fix, if the state of Kafka Connect does not say everything.
fn trace(report: &Report) -> Option<String> {
    let connector = report.cause.as_ref().map(|cause| {
        let fix = report.fix.as_deref().unwrap_or_default();
        format!("{}: {cause}; {fix}", report.state.name())
    });
    let tables = report
        .tables
        .iter()
        .filter(|table| table.state == TableState::NeedsSnapshot);
    let tables = tables.map(|table| {
        let (cause, fix) = (table.cause.as_deref(), table.fix.as_deref());
        format!(
            "table {} needs a snapshot: {}; {}",
            table.table,
            cause.unwrap_or_default(),
            fix.unwrap_or_default()
        )
    });
    let lines: Vec<String> = connector.into_iter().chain(tables).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests;
