//! Errors of connectors, the connector state that results from each error, and its fix.
//!
//! Messages contain the names of systems, tables and users, but never a password or a token.

use crate::status::State;

/// A lower-level error, as the source of an [`Error`].
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a connector cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The external system does not answer. The connector retries.
    #[error("{system} is unreachable: cannot {attempted}")]
    Unavailable {
        /// The system, such as `PostgreSQL at 127.0.0.1:5432/shop`.
        system: String,
        /// The attempted operation.
        attempted: &'static str,
        /// The underlying error.
        #[source]
        source: Cause,
    },
    /// The external system or the configuration is not set up as required, or the system rejects the operation. The
    /// connector retries with increasing delays, so it recovers once the cause is fixed.
    #[error("{reason}")]
    Rejected {
        /// What is wrong.
        reason: String,
        /// The command or statement that resolves the error.
        fix: String,
    },
    /// A record of the external system cannot be published.
    #[error("cannot publish {what}: {reason}")]
    Unpublishable {
        /// The table, column and position, or the record.
        what: String,
        /// Why the record cannot be published.
        reason: String,
        /// How to resolve the cause.
        fix: String,
    },
    /// The stored position is incompatible with the source, so continuing could lose changes. A resync is required.
    #[error("{reason}")]
    NeedsResync {
        /// Which part of the position is incompatible.
        reason: String,
    },
    /// A call to the log failed.
    #[error("cannot {attempted}")]
    EventLog {
        /// The attempted operation.
        attempted: &'static str,
        /// The log's error.
        #[source]
        source: event_log::Error,
    },
    /// A call to the schema registry failed.
    #[error("cannot register the schema of subject {subject}")]
    Registry {
        /// The subject.
        subject: String,
        /// Whether the same call can succeed later.
        retry: bool,
        /// What resolves the rejection of the schema, if that is known.
        fix: Option<String>,
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
    /// Builds [`Error::EventLog`] for `map_err`.
    pub(crate) fn log(attempted: &'static str) -> impl Fn(event_log::Error) -> Error {
        move |source| Error::EventLog { attempted, source }
    }

    /// The connector state that results from this error.
    pub fn state(&self) -> State {
        match self {
            Error::Unavailable { .. } => State::Retrying,
            // Fencing by another process is `Error::Fenced`. This error means that the transaction exceeded its
            // timeout: the log aborted it, and the records are read again from the stored position.
            Error::EventLog { source, .. } if source.action() == event_log::ErrorAction::Retry || is_fenced(source) => {
                State::Retrying
            }
            Error::Registry { retry: true, .. } => State::Retrying,
            Error::NeedsResync { .. } => State::NeedsResync,
            Error::Rejected { .. } | Error::Unpublishable { .. } | Error::EventLog { .. } | Error::Registry { .. } => {
                State::Failed
            }
            Error::Fenced { .. } => State::Stopped,
        }
    }

    /// What an operator must do to resolve the error.
    pub fn fix(&self, connector: &str) -> String {
        match self {
            Error::Unavailable { system, .. } => {
                format!("make sure that {system} is running and reachable; the connector retries")
            }
            Error::Rejected { fix, .. } | Error::Unpublishable { fix, .. } => fix.clone(),
            Error::NeedsResync { .. } => format!(
                "verify that this is the right database, then run `trunkline connect resync {connector}`; it takes a new \
                 snapshot under a new source epoch"
            ),
            Error::EventLog { source, .. } if source.action() == event_log::ErrorAction::Retry => {
                String::from("make sure that the log is running and reachable; the connector retries")
            }
            Error::EventLog { .. } => String::from("run `trunkline doctor`"),
            Error::Registry { retry: true, .. } => {
                String::from("make sure that the schema registry is running and reachable; the connector retries")
            }
            Error::Registry { fix: Some(fix), .. } => fix.clone(),
            Error::Registry { subject, .. } => {
                format!("compare the declared columns with the latest schema of subject {subject}")
            }
            Error::Fenced { .. } => format!(
                "stop one of the two processes; `trunkline connect restart {connector}` starts the connector here again"
            ),
        }
    }
}

fn is_fenced(error: &event_log::Error) -> bool {
    matches!(error, event_log::Error::Fenced { .. })
}
