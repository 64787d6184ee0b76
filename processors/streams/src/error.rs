//! What can stop a task or a thread.
//!
//! Guarantees: the text says what was attempted and, where people must act, what to do.
//! Never: a source repeated in the text.

use event_log::ErrorAction;

/// Result of a runtime call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a task or a stream thread stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The log failed.
    #[error("log failed for {who}")]
    EventLog {
        /// Thread or task.
        who: String,
        /// The log's error.
        #[source]
        source: event_log::Error,
    },
    /// The state store failed.
    #[error(
        "state store failed; mend what its file system says and start again: what the store lacks comes from the log"
    )]
    Store(#[from] state_store::Error),
    /// The processor or what it needs failed.
    #[error("processor {name} failed: {reason}")]
    Processor {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
        /// Whether it is worth another try.
        fate: ErrorAction,
    },
    /// The application cannot run on this log as it is.
    #[error("application {name} cannot start: {reason}")]
    Application {
        /// Its name.
        name: String,
        /// Why, with the fix.
        reason: String,
    },
    /// Another process runs under this thread's name.
    #[error(
        "fenced: another process runs as {who} ({reason}); stop one of the two, or give each an instance name of its own"
    )]
    Fenced {
        /// The thread's name.
        who: String,
        /// The log's words.
        reason: String,
    },
    /// What a store or changelog holds cannot be read.
    #[error("stored state of {who} cannot be read")]
    Format {
        /// The task.
        who: String,
        /// Why.
        #[source]
        source: crate::commit_record::FormatError,
    },
    /// A thread could not be started.
    #[error("cannot start stream thread {who}")]
    Thread {
        /// The thread's name.
        who: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Says the one way to go on.
    pub fn action(&self) -> ErrorAction {
        match self {
            Error::EventLog { source, .. } => source.action(),
            Error::Processor { fate, .. } => *fate,
            Error::Store(_) | Error::Application { .. } | Error::Fenced { .. } => ErrorAction::Stop,
            Error::Format { .. } | Error::Thread { .. } => ErrorAction::Stop,
        }
    }
}
