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
    pub next: Option<String>,
    /// Description of the stored position.
    pub position: String,
    /// Records published by this process.
    pub records_total: u64,
    /// Bytes of the source's log that are not yet acknowledged; `None` while unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<u64>,
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
            next: None,
            position: String::new(),
            records_total: 0,
            lag_bytes: None,
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

    pub(crate) fn set(&self, state: State, cause: Option<String>, next: Option<String>) {
        match (&cause, &next) {
            (Some(cause), Some(next)) => self.component.not_ready(cause, next),
            _ if state.is_healthy() => self.component.ready(),
            _ => self
                .component
                .not_ready(state.name(), "wait; the process log names the operation in progress"),
        }
        let mut report = self.lock();
        (report.state, report.cause, report.next) = (state, cause, next);
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
