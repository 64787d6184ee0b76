//! Errors of the stream runtime.
//!
//! The text of an error names what failed and, where an operator must act, the fix. Causes are in `source`, not in the text.

use event_log::ErrorAction;

/// Result of the stream runtime.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a task or a stream thread stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request to the log failed.
    #[error("request to the log failed for {who}")]
    EventLog {
        /// Application, thread or task.
        who: String,
        /// The log's error.
        #[source]
        source: event_log::Error,
    },
    /// The state store failed.
    #[error(
        "state store failed; fix the underlying I/O problem and restart (missing state is restored from the changelog)"
    )]
    Store(#[from] state_store::Error),
    /// The processor, or a service that it depends on, failed.
    #[error("processor {name} failed: {reason}")]
    Processor {
        /// Name of the processor.
        name: String,
        /// Why.
        reason: String,
        /// How the runtime reacts to the error.
        action: ErrorAction,
    },
    /// The application cannot run on this log.
    #[error("application {name} cannot start: {reason}")]
    Application {
        /// Name of the application.
        name: String,
        /// Why, and the fix.
        reason: String,
    },
    /// Another process uses the transactional id and member name of this thread.
    #[error(
        "fenced: another process runs as {who} ({reason}); stop one of them, or give each process a unique instance name"
    )]
    Fenced {
        /// Name of the thread.
        who: String,
        /// The log's error.
        reason: String,
    },
    /// The contents of a store or changelog cannot be decoded.
    #[error("cannot decode the stored state of {who}")]
    Format {
        /// The task.
        who: String,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// The operating system did not start a thread.
    #[error("cannot start stream thread {who}")]
    Thread {
        /// Name of the thread.
        who: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// The reaction of the runtime to this error.
    pub fn action(&self) -> ErrorAction {
        match self {
            Error::EventLog { source, .. } => source.action(),
            Error::Processor { action, .. } => *action,
            Error::Store(_) | Error::Application { .. } | Error::Fenced { .. } => ErrorAction::Stop,
            Error::Format { .. } | Error::Thread { .. } => ErrorAction::Stop,
        }
    }
}

/// Why bytes that the runtime stored cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A newer version of Trunkline wrote them.
    #[error("{what} has format {found}, but this version reads formats up to {known}; run the newer version")]
    Newer {
        /// What was read.
        what: &'static str,
        /// Format version that was found.
        found: u8,
        /// Newest format version that this program reads.
        known: u8,
    },
    /// The format version is missing.
    #[error("{what} is empty, expected a format version")]
    Empty {
        /// What was read.
        what: &'static str,
    },
    /// A commit record is not valid JSON, or does not have the expected fields.
    #[error("cannot decode commit record")]
    CommitRecord {
        /// The JSON error.
        #[source]
        source: serde_json::Error,
    },
    /// A record of the members topic is not valid JSON, or does not have the expected fields.
    #[error("cannot decode member address")]
    MemberAddress {
        /// The JSON error.
        #[source]
        source: serde_json::Error,
    },
    /// A checkpoint is not valid JSON, or does not have the expected fields.
    #[error("cannot decode checkpoint")]
    Checkpoint {
        /// The JSON error.
        #[source]
        source: serde_json::Error,
    },
}
