//! Operator functions behind the command line and the console: inspect topics and dead letters, measure
//! lag, replay, redrive.
//!
//! Functions do not print: they return results and progress as values. Reading does not affect consumer groups, and the
//! topology is never changed.

pub mod dead_letters;
mod decode;
pub mod lag;
pub mod replay;
mod scan;
pub mod tail;
pub mod topics;

pub use decode::{Decoded, Decoder, FetchSchema};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call to the log failed.
    #[error("cannot {attempted}")]
    EventLog {
        /// The attempted operation.
        attempted: String,
        /// The log's error.
        #[source]
        source: event_log::Error,
    },
    /// The topic does not exist.
    #[error("topic `{topic}` does not exist; {fix}")]
    UnknownTopic {
        /// The requested topic.
        topic: String,
        /// A similar name, or how to find the right one.
        fix: String,
    },
    /// The request is not valid, or it could not be completed.
    #[error("{0}")]
    Rejected(String),
}

/// Result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn failed(attempted: impl Into<String>) -> impl FnOnce(event_log::Error) -> Error {
    let attempted = attempted.into();
    move |source| Error::EventLog { attempted, source }
}
