//! State of a connector, for readiness, metrics and operators, and the handle with which operators control it.
//!
//! Reading the state never waits for the connector.

use crate::commands::{self, Command, CommandError, DesiredState, Inbox, Reply, Target, Waiting};
use serde::{Deserialize, Serialize};
use service::Component;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

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
    /// Ended. If another process has taken over, the connector starts again only if an operator restarts it.
    Stopped,
}

impl State {
    /// All states.
    pub const ALL: [State; 8] = [
        State::Starting,
        State::Snapshotting,
        State::Running,
        State::Paused,
        State::Retrying,
        State::Failed,
        State::NeedsResync,
        State::Stopped,
    ];

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

/// Progress of the snapshot of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TableProgress {
    /// Number of rows that were read.
    pub rows: u64,
    /// Estimated number of rows of the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_estimated: Option<u64>,
}

/// The state of a table. A client reads the state as text, so that it also reads states that it does not know.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TableReport<T = TableState> {
    /// The table.
    pub table: String,
    /// Its state.
    pub state: T,
    /// Why it needs a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The command or statement that fixes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Progress of its snapshot, while one is running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<TableProgress>,
}

/// A snapshot of a connector's state. A client reads state, target and states of tables as text, so that it also reads those
/// of a newer process.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(bound(
    serialize = "S: Serialize, T: Serialize, G: Serialize",
    deserialize = "S: Deserialize<'de>, T: Deserialize<'de>, G: Deserialize<'de>"
))]
pub struct Report<S = State, T = TableState, G = Target> {
    /// The connector.
    pub connector: String,
    /// Its state.
    pub state: S,
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
    /// Bytes of the source's log that the external system retains for the connector, in every state; `None` while unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained_bytes: Option<u64>,
    /// A problem beside the state that an operator must resolve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm: Option<Alarm>,
    /// What operators have requested. A connector can fail while it should run.
    pub target: G,
    /// Progress of a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Tables whose requested snapshot waits until the source is open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_snapshots: Vec<String>,
    /// State of each table.
    #[serde(serialize_with = "serialize_tables", deserialize_with = "deserialize_tables")]
    pub tables: Arc<[TableReport<T>]>,
}

/// A problem beside the state of a connector.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Alarm {
    /// What is wrong.
    pub cause: String,
    /// The command or statement that resolves it.
    pub fix: String,
}

fn serialize_tables<T: Serialize, S: serde::Serializer>(
    tables: &Arc<[TableReport<T>]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(tables.iter())
}

fn deserialize_tables<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<[TableReport<T>]>, D::Error> {
    Vec::deserialize(deserializer).map(Arc::from)
}

/// Handle to observe and control a running connector. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    component: Arc<Component>,
    report: Arc<Mutex<Report>>,
    commands: mpsc::Sender<Waiting>,
    /// The commands, while no loop executes them.
    inbox: Arc<Mutex<Option<Inbox>>>,
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
            retained_bytes: None,
            alarm: None,
            target: Target::Running,
            progress: None,
            pending_snapshots: Vec::new(),
            tables: Arc::new([]),
        };
        export_state(connector, State::Starting);
        let (commands, inbox) = commands::channel();
        Handle {
            component: Arc::new(component),
            report: Arc::new(Mutex::new(report)),
            commands,
            inbox: Arc::new(Mutex::new(Some(inbox))),
        }
    }

    /// The current state.
    pub fn report(&self) -> Report {
        self.lock().clone()
    }

    /// Sends a command. The reply arrives when its effect is stored; until then the command may be lost with the process.
    ///
    /// # Errors
    /// [`CommandError::Busy`] if too many commands wait.
    pub fn send(&self, command: Command) -> Result<Reply, CommandError> {
        let connector = self.report().connector;
        commands::send(&self.commands, &connector, command)
    }

    /// The commands. Only one loop at a time executes them.
    pub(crate) fn take_inbox(&self) -> Inbox {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        inbox.expect("a handle belongs to one running connector")
    }

    /// Returns the commands when the loop ends.
    pub(crate) fn return_inbox(&self, inbox: Inbox) {
        *self.inbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(inbox);
    }

    pub(crate) fn set_desired(&self, desired: &DesiredState) {
        self.update(|report| {
            report.target = desired.target;
            report.pending_snapshots = desired.snapshot.iter().cloned().collect();
        });
    }

    pub(crate) fn set(&self, state: State, cause: Option<String>, fix: Option<String>) {
        let mut report = self.lock();
        if report.state != state {
            export_state(&report.connector, state);
        }
        if (report.state == State::Paused) != (state == State::Paused) {
            let notice = || {
                format!(
                    "paused by an operator; `trunkline connect resume {}` continues",
                    report.connector
                )
            };
            self.component.set_detail((state == State::Paused).then(notice));
        }
        (report.state, report.cause, report.fix) = (state, cause, fix);
        self.publish(&report);
    }

    /// Sets or clears the problem beside the state.
    pub(crate) fn set_alarm(&self, alarm: Option<Alarm>) {
        let mut report = self.lock();
        if report.alarm != alarm {
            report.alarm = alarm;
            self.publish(&report);
        }
    }

    /// Publishes how much of its log the external system retains, and how much of it is not acknowledged; `None` if it
    /// retains nothing for this connector.
    pub(crate) fn set_retained(&self, retained: Option<u64>, unacknowledged: Option<u64>) {
        let mut report = self.lock();
        report.retained_bytes = Some(retained.unwrap_or_default());
        report.lag_bytes = Some(unacknowledged.unwrap_or_default());
        let labels = [("connector", report.connector.clone())];
        metrics::gauge!("trunkline_connector_retained_wal_bytes", &labels).set(float(retained.unwrap_or_default()));
        metrics::gauge!("trunkline_connector_slot_lag_bytes", &labels).set(float(unacknowledged.unwrap_or_default()));
    }

    /// Publishes readiness: the error or the tables that need a snapshot, and the alarm.
    fn publish(&self, report: &Report) {
        let mut problem = match (&report.cause, &report.fix) {
            (Some(cause), Some(fix)) => Some((cause.clone(), fix.clone())),
            _ if report.state.is_healthy() => stopped_tables(&report.tables),
            _ => Some((
                report.state.name().to_owned(),
                String::from("wait; the process log names the operation in progress"),
            )),
        };
        if let Some(alarm) = &report.alarm {
            problem = Some(match problem {
                Some((cause, fix)) => (format!("{cause}; {}", alarm.cause), format!("{fix}; {}", alarm.fix)),
                None => (alarm.cause.clone(), alarm.fix.clone()),
            });
        }
        match problem {
            Some((cause, fix)) => self.component.not_ready(&cause, &fix),
            None => self.component.ready(),
        }
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
        let mut report = self.lock();
        report.tables = Arc::clone(tables);
        self.publish(&report);
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cause and fix for tables that need a snapshot.
fn stopped_tables(tables: &[TableReport]) -> Option<(String, String)> {
    let stopped: Vec<&TableReport> = tables.iter().filter(|t| t.state == TableState::NeedsSnapshot).collect();
    let first = stopped.first()?;
    let texts = stopped.iter().map(|t| {
        format!(
            "table {} needs a snapshot: {}",
            t.table,
            t.cause.as_deref().unwrap_or_default()
        )
    });
    let cause = texts.collect::<Vec<_>>().join("; ");
    Some((cause, first.fix.clone().unwrap_or_default()))
}

/// Sets the gauge of the state: one for the state of the connector, zero for the others.
fn export_state(connector: &str, current: State) {
    for state in State::ALL {
        metrics::gauge!("trunkline_connector_state", "connector" => connector.to_owned(), "state" => state.name())
            .set(if state == current { 1.0 } else { 0.0 });
    }
}

#[expect(
    clippy::as_conversions,
    reason = "gauges are floats, which are exact up to 2^53 bytes"
)]
fn float(bytes: u64) -> f64 {
    bytes as f64
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
                progress: None,
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

    #[test]
    fn alarm_is_shown_in_each_state_and_does_not_hide_an_error() {
        let readiness = Readiness::new();
        let handle = Handle::new("shop", readiness.register("connector shop"));
        let cause = || readiness.report().components.remove(0).cause.unwrap_or_default();
        handle.set(State::Running, None, None);
        handle.set_retained(Some(7), Some(5));
        handle.set_alarm(Some(Alarm {
            cause: String::from("the slot retains too much"),
            fix: String::from("drop it"),
        }));
        assert_eq!(cause(), "the slot retains too much");
        handle.set(State::Paused, None, None);
        assert_eq!(cause(), "the slot retains too much");
        handle.set(
            State::Failed,
            Some(String::from("no table")),
            Some(String::from("create it")),
        );
        assert_eq!(cause(), "no table; the slot retains too much");
        assert_eq!(handle.report().retained_bytes, Some(7));
        handle.set(State::Running, None, None);
        handle.set_alarm(None);
        assert!(readiness.report().ready);
    }
}
