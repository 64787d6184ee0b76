//! How a connector is doing, as values that readiness, metrics and operators read; and what they ask of it.
//!
//! Guarantees: reading never waits for the connector. Never: a decision about what to do; that is the loop's.

use service::Component;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// States of a connector; names as in Kafka Connect, where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Opening the log and the source.
    Starting,
    /// Copying tables before it streams.
    Snapshotting,
    /// Publishing changes as they come.
    Running,
    /// Stopped for a while by an operator.
    Paused,
    /// Something is out of reach; tried again by itself.
    Retrying,
    /// Refused or not publishable; tried again by itself, and needs somebody.
    Failed,
    /// The stored position does not fit the source; waits for the command.
    NeedsResync,
    /// Ended.
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

    /// Whether the connector publishes, or does not because somebody asked it to.
    pub fn is_healthy(self) -> bool {
        matches!(self, State::Running | State::Snapshotting | State::Paused)
    }
}

/// A connector as it is now.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The connector.
    pub connector: String,
    /// Its state.
    pub state: State,
    /// Why it is not running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The command or statement that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The stored position, as text for people.
    pub position: String,
    /// Records published by this process.
    pub records_total: u64,
    /// Bytes of the source's log that are not yet published; `None` while unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<u64>,
}

/// What somebody wants of a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DesiredState {
    pub(crate) paused: bool,
    pub(crate) resync: bool,
}

/// A connector from outside: look at it, pause it, resume it, resync it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    component: Arc<Component>,
    report: Arc<Mutex<Report>>,
    wish: Arc<watch::Sender<DesiredState>>,
}

impl Handle {
    /// A handle of a connector that has not started; `component` is its word in the process's readiness.
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
            wish: Arc::new(watch::Sender::new(DesiredState::default())),
        }
    }

    /// The connector as it is now.
    pub fn report(&self) -> Report {
        self.lock().clone()
    }

    /// Closes the source and publishes nothing until [`Handle::resume`]. A paused PostgreSQL source keeps its slot,
    /// and the database keeps what it has not acknowledged.
    pub fn pause(&self) {
        self.wish.send_modify(|wish| wish.paused = true);
    }

    /// Goes on where it was.
    pub fn resume(&self) {
        self.wish.send_modify(|wish| wish.paused = false);
    }

    /// Starts a new incarnation of the source: everything is read anew, and readers drop what is gone meanwhile.
    pub fn resync(&self) {
        self.wish.send_modify(|wish| wish.resync = true);
    }

    /// The new incarnation's position is stored: the wish is done.
    pub(crate) fn resync_begun(&self) {
        self.wish.send_modify(|wish| wish.resync = false);
    }

    pub(crate) fn desired(&self) -> watch::Receiver<DesiredState> {
        self.wish.subscribe()
    }

    pub(crate) fn set(&self, state: State, cause: Option<String>, next: Option<String>) {
        match (&cause, &next) {
            (Some(cause), Some(next)) => self.component.not_ready(cause, next),
            _ if state.is_healthy() => self.component.ready(),
            _ => self
                .component
                .not_ready(state.name(), "wait; the log says what it waits for"),
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
