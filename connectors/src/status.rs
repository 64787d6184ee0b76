//! State of a connector, for readiness, metrics and operators, and the commands with which operators control it.
//!
//! Reading the state never waits for the connector.

use service::Component;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// States of a connector, named as in Kafka Connect where possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Opening the producer and the source.
    Starting,
    /// Copying tables before streaming.
    Snapshotting,
    /// Streaming changes.
    Running,
    /// Paused by an operator.
    Paused,
    /// A dependency is unavailable; the connector retries.
    Retrying,
    /// An error that an operator must resolve; the connector keeps retrying.
    Failed,
    /// The stored position is incompatible with the source; a resync is required.
    NeedsResync,
    /// Ended; the connector does not start again in this process.
    Stopped,
}

impl State {
    /// The state's name: `RUNNING`.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "STARTING",
            State::Snapshotting => "SNAPSHOTTING",
            State::Running => "RUNNING",
            State::Paused => "PAUSED",
            State::Retrying => "RETRYING",
            State::Failed => "FAILED",
            State::NeedsResync => "NEEDS_RESYNC",
            State::Stopped => "STOPPED",
        }
    }

    /// Whether the connector publishes records, or an operator paused it.
    pub fn is_healthy(self) -> bool {
        matches!(self, State::Running | State::Snapshotting | State::Paused)
    }
}

/// States of a table of a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TableState {
    /// Its changes are published.
    Running,
    /// The table is being copied, or waits to be copied.
    Snapshotting,
    /// The table's changes are skipped, because publishing them would be incorrect. A new snapshot is required.
    NeedsSnapshot,
}

impl TableState {
    /// All states.
    pub const ALL: [TableState; 3] = [TableState::Running, TableState::Snapshotting, TableState::NeedsSnapshot];

    /// The state's name: `RUNNING`.
    pub fn name(self) -> &'static str {
        match self {
            TableState::Running => "RUNNING",
            TableState::Snapshotting => "SNAPSHOTTING",
            TableState::NeedsSnapshot => "NEEDS_SNAPSHOT",
        }
    }
}

/// The state of a table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TableReport {
    /// The table.
    pub table: String,
    /// Its state.
    pub state: TableState,
    /// Why it needs a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The command or statement that fixes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// A snapshot of a connector's state.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The connector.
    pub connector: String,
    /// Its state.
    pub state: State,
    /// Why the connector is not running: the error with its causes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The command or statement that resolves the cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Description of the stored position.
    pub position: String,
    /// Records published by this process.
    pub records_total: u64,
    /// Bytes of the source's log that are not yet acknowledged; `None` while unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<u64>,
    /// State of each table.
    #[serde(serialize_with = "serialize_tables")]
    pub tables: Arc<[TableReport]>,
}

fn serialize_tables<S: serde::Serializer>(tables: &Arc<[TableReport]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(tables.iter())
}

/// What an operator has requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DesiredState {
    pub(crate) paused: bool,
    pub(crate) resync: bool,
}

/// Handle to observe and control a running connector. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    component: Arc<Component>,
    report: Arc<Mutex<Report>>,
    desired: Arc<watch::Sender<DesiredState>>,
}

impl Handle {
    /// Creates the handle of a connector that has not started; `component` is its entry in the process's readiness.
    pub fn new(connector: &str, component: Component) -> Self {
        let report = Report {
            connector: connector.to_owned(),
            state: State::Starting,
            cause: None,
            fix: None,
            position: String::new(),
            records_total: 0,
            lag_bytes: None,
            tables: Arc::new([]),
        };
        Handle {
            component: Arc::new(component),
            report: Arc::new(Mutex::new(report)),
            desired: Arc::new(watch::Sender::new(DesiredState::default())),
        }
    }

    /// The current state.
    pub fn report(&self) -> Report {
        self.lock().clone()
    }

    /// Closes the source until [`Handle::resume`]. A paused PostgreSQL source keeps its replication slot, so the server
    /// retains all WAL since the last acknowledgement.
    pub fn pause(&self) {
        self.desired.send_modify(|desired| desired.paused = true);
    }

    /// Continues after [`Handle::pause`] at the stored position.
    pub fn resume(&self) {
        self.desired.send_modify(|desired| desired.paused = false);
    }

    /// Starts a new source epoch: everything is read again, and readers remove rows that no longer exist.
    pub fn resync(&self) {
        self.desired.send_modify(|desired| desired.resync = true);
    }

    /// Clears the resync request once the position of the new source epoch is stored.
    pub(crate) fn resync_started(&self) {
        self.desired.send_modify(|desired| desired.resync = false);
    }

    pub(crate) fn desired(&self) -> watch::Receiver<DesiredState> {
        self.desired.subscribe()
    }

    pub(crate) fn set(&self, state: State, cause: Option<String>, fix: Option<String>) {
        match (&cause, &fix) {
            (Some(cause), Some(fix)) => self.component.not_ready(cause, fix),
            _ if state.is_healthy() => self.report_healthy(&self.report().tables),
            _ => self
                .component
                .not_ready(state.name(), "wait; the process log names the operation in progress"),
        }
        let mut report = self.lock();
        (report.state, report.cause, report.fix) = (state, cause, fix);
    }

    /// Reports the connector as ready, unless a table needs a snapshot.
    fn report_healthy(&self, tables: &[TableReport]) {
        let stopped: Vec<&TableReport> = tables.iter().filter(|t| t.state == TableState::NeedsSnapshot).collect();
        let Some(first) = stopped.first() else {
            return self.component.ready();
        };
        let texts = stopped.iter().map(|t| {
            format!(
                "table {} needs a snapshot: {}",
                t.table,
                t.cause.as_deref().unwrap_or_default()
            )
        });
        let cause = texts.collect::<Vec<_>>().join("; ");
        self.component
            .not_ready(&cause, first.fix.as_deref().unwrap_or_default());
    }

    /// Publishes the states of the tables, if they changed.
    pub(crate) fn set_tables(&self, tables: &Arc<[TableReport]>) {
        let report = self.report();
        if Arc::ptr_eq(&report.tables, tables) || report.tables == *tables {
            return;
        }
        for table in tables.iter() {
            for state in TableState::ALL {
                let value = if table.state == state { 1.0 } else { 0.0 };
                metrics::gauge!("trunkline_connector_table_state", "connector" => report.connector.clone(),
                    "table" => table.table.clone(), "state" => state.name())
                .set(value);
            }
        }
        self.update(|report| report.tables = Arc::clone(tables));
        if report.state.is_healthy() && report.cause.is_none() {
            self.report_healthy(tables);
        }
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::Readiness;

    #[test]
    fn table_that_needs_a_snapshot_is_shown_in_readiness_while_the_connector_runs() {
        let readiness = Readiness::new();
        let handle = Handle::new("shop", readiness.register("connector shop"));
        let tables = |state| -> Arc<[TableReport]> {
            let stopped = state == TableState::NeedsSnapshot;
            let report = TableReport {
                table: String::from("orders"),
                state,
                cause: stopped.then(|| String::from("it was replaced")),
                fix: stopped.then(|| String::from("resync it")),
            };
            [report].into()
        };
        handle.set(State::Running, None, None);
        handle.set_tables(&tables(TableState::Running));
        assert!(readiness.report().ready);
        handle.set_tables(&tables(TableState::NeedsSnapshot));
        // The state of the connector does not hide the state of the table.
        handle.set(State::Running, None, None);
        let component = readiness.report().components.remove(0);
        assert_eq!(
            component.cause.as_deref(),
            Some("table orders needs a snapshot: it was replaced")
        );
        assert_eq!(component.fix.as_deref(), Some("resync it"));
        let json = serde_json::to_value(handle.report()).unwrap();
        assert_eq!(json["tables"][0]["state"], "NEEDS_SNAPSHOT");
        handle.set_tables(&tables(TableState::Running));
        assert!(readiness.report().ready);
    }
}
