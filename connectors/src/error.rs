//! What can go wrong between the outside and a topic, and what a person does about it.
//!
//! Guarantees: every error says what was attempted, and the next command or statement that mends it.
//! Never: a secret in a text.

use crate::status::State;

/// What a library said, as the cause of an [`Error`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a connector cannot go on as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The outside does not answer. Tried again by itself.
    #[error("{system} is out of reach: cannot {attempted}")]
    Unavailable {
        /// What does not answer, such as `PostgreSQL at 127.0.0.1:5432/shop`.
        system: String,
        /// What was attempted.
        attempted: &'static str,
        /// The library's error.
        #[source]
        source: Cause,
    },
    /// The outside is not set up as it must be, or refuses. Tried again by itself, less and less often, so that it
    /// goes on once somebody has mended it.
    #[error("{reason}")]
    Refused {
        /// What is wrong.
        reason: String,
        /// The command or statement that mends it.
        next: String,
    },
    /// What the outside sent cannot be published.
    #[error("cannot publish {what}: {reason}")]
    Unpublishable {
        /// The table, column and position, or the record.
        what: String,
        /// Why.
        reason: String,
        /// What mends it.
        next: String,
    },
    /// The stored position does not fit the source: going on could lose changes. Stays until a resync is asked for.
    #[error("{reason}")]
    NeedsResync {
        /// What does not fit.
        reason: String,
    },
    /// A call to the log failed.
    #[error("cannot {attempted}")]
    EventLog {
        /// What was attempted.
        attempted: &'static str,
        /// The log's error.
        #[source]
        source: event_log::Error,
    },
    /// A call to the schema registry failed.
    #[error("cannot register the schema of {subject}")]
    Registry {
        /// The subject.
        subject: String,
        /// Whether it can be tried again as it is.
        retry: bool,
        /// The registry's error.
        #[source]
        source: Cause,
    },
    /// Another process runs a connector of the same name on the same log.
    #[error("another process runs connector {connector} on this log and has taken over")]
    Fenced {
        /// The connector.
        connector: String,
    },
}

/// Result of a connector's call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Builds [`Error::Log`] for `map_err`.
    pub(crate) fn log(attempted: &'static str) -> impl Fn(event_log::Error) -> Error {
        move |source| Error::EventLog { attempted, source }
    }

    /// The state that a connector is in because of it.
    pub fn state(&self) -> State {
        match self {
            Error::Unavailable { .. } => State::Retrying,
            // A fencing that is not another process's is a transaction that the log has ended: it is read anew.
            Error::EventLog { source, .. } if source.action() == event_log::ErrorAction::Retry || is_fenced(source) => {
                State::Retrying
            }
            Error::Registry { retry: true, .. } => State::Retrying,
            Error::NeedsResync { .. } => State::NeedsResync,
            Error::Refused { .. } | Error::Unpublishable { .. } | Error::EventLog { .. } | Error::Registry { .. } => {
                State::Failed
            }
            Error::Fenced { .. } => State::Stopped,
        }
    }

    /// What a person does about it.
    pub fn next(&self, connector: &str) -> String {
        match self {
            Error::Unavailable { system, .. } => format!("start {system}; the connector goes on by itself"),
            Error::Refused { next, .. } | Error::Unpublishable { next, .. } => next.clone(),
            Error::NeedsResync { .. } => format!(
                "after making sure that this is the right database: set `on_mismatch = \"resync\"` for connector \
                 {connector} and restart it; it takes a new snapshot under a new incarnation"
            ),
            Error::EventLog { source, .. } if source.action() == event_log::ErrorAction::Retry => {
                String::from("start the log; the connector goes on by itself")
            }
            Error::EventLog { .. } => String::from("see `trunkline doctor`"),
            Error::Registry { retry: true, .. } => {
                String::from("start the schema registry; the connector goes on by itself")
            }
            Error::Registry { subject, .. } => {
                format!("compare the declared columns with the newest schema of subject {subject}")
            }
            Error::Fenced { .. } => {
                String::from("stop one of the two processes, or give one of the connectors another name")
            }
        }
    }
}

fn is_fenced(error: &event_log::Error) -> bool {
    matches!(error, event_log::Error::Fenced { .. })
}
