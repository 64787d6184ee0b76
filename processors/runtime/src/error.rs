//! What can stop a task or a thread.

use log::Fate;

/// Result of a runtime call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a task or a stream thread stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The log failed.
    #[error("log failed for {who}")]
    Log {
        /// Thread or task.
        who: String,
        /// The log's error.
        #[source]
        source: log::Error,
    },
    /// The state store failed.
    #[error("state store failed")]
    Store(#[from] store::Error),
    /// The processor or what it needs failed.
    #[error("processor {name} failed: {reason}")]
    Processor {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
        /// Whether it is worth another try.
        fate: Fate,
    },
}

impl Error {
    /// Says the one way to go on.
    pub fn fate(&self) -> Fate {
        match self {
            Error::Log { source, .. } => source.fate(),
            Error::Store(_) => Fate::Stop,
            Error::Processor { fate, .. } => *fate,
        }
    }
}
