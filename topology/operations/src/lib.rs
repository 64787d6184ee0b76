//! Engines of what operators do: look into topics, measure lag, replay. The command line and the console share them.
//!
//! Guarantees: nothing here prints; progress and results are values. Reading disturbs no consumer group.
//! Never: a change to the topology.

mod decode;
pub mod lag;
pub mod replay;
pub mod topics;

pub use decode::{Decoded, Decoder, FetchSchema};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The log failed.
    #[error("cannot {attempted}")]
    EventLog {
        /// What was attempted.
        attempted: String,
        /// The log's error.
        #[source]
        source: event_log::Error,
    },
    /// The topic does not exist.
    #[error("topic `{topic}` does not exist; `trunkline topics list` shows those that do{near}")]
    UnknownTopic {
        /// The topic asked for.
        topic: String,
        /// A name that is near, with the words around it; may be empty.
        near: String,
    },
    /// The request cannot be done as it is asked.
    #[error("{0}")]
    Refused(String),
}

/// Result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn failed(attempted: impl Into<String>) -> impl FnOnce(event_log::Error) -> Error {
    let attempted = attempted.into();
    move |source| Error::EventLog { attempted, source }
}
