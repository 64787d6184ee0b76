//! Errors of store calls.

use crate::key::KEY_BYTES_MAX;
use std::path::PathBuf;

/// Result of a store call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store call failed. No error loses data: everything in a store can be restored from the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the directory open.
    #[error("store {dir} is in use by another process; stop that process, or configure another data directory")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The files of the store are corrupt.
    #[error("store {dir} is corrupt; it must be quarantined and restored from the log")]
    Corrupt {
        /// The directory.
        dir: PathBuf,
        /// The engine's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A batch contains a key that is empty or too long. Nothing of the batch was written.
    #[error("batch with a key of {bytes} bytes rejected; a key has 1 to {KEY_BYTES_MAX} bytes")]
    KeyLength {
        /// Length of the key.
        bytes: usize,
    },
    /// The engine failed. The store accepts no more writes: drop it and open it again.
    #[error("the store's engine failed to {attempted}")]
    Engine {
        /// What was attempted.
        attempted: &'static str,
        /// The engine's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A call into sled missed its deadline, or an earlier one did. The store is unusable, and its directory stays locked
    /// until the process ends. A batch whose commit failed with this error is written in whole or not at all.
    #[error(
        "store {dir} is stuck: sled did not finish a call within {seconds} s; restart the process, and switch to the \
         engine fjall if it happens again"
    )]
    Stuck {
        /// The directory.
        dir: PathBuf,
        /// The time limit of the call, in seconds.
        seconds: u64,
    },
    /// The operating system returned an error. For example, the disk is full or the directory is read-only.
    #[error("cannot {attempted}")]
    Io {
        /// What was attempted.
        attempted: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}
