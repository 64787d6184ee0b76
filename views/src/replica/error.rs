//! Errors of a replica.

use crate::record::RecordError;
use event_log::Offset;

/// Why a replica failed. [`Error::Unusable`] requires a quarantine of the store; after any other error the store is intact
/// and the replica can be opened again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store failed.
    #[error("cannot access the store of the view replica")]
    Store(#[from] state_store::Error),
    /// The store was written by another release, belongs to another log, or is corrupt.
    #[error("the store of the view replica is unusable: {0}; quarantine it and read view.log from its start")]
    Unusable(String),
    /// A record has a format that this release does not support.
    #[error("cannot read record {offset} of view.log/{partition}")]
    Record {
        /// Partition.
        partition: i32,
        /// Offset.
        offset: Offset,
        /// Cause.
        #[source]
        source: RecordError,
    },
    /// The replica does not serve this partition.
    #[error("partition {0} of view.log is not served by this replica")]
    NotServed(i32),
    /// An earlier batch failed, so the replica's memory may be ahead of its store.
    #[error("an earlier batch of view.log/{0} failed; close the replica and open its store again")]
    Unfinished(i32),
}

/// Result of a call to a replica.
pub type Result<T, E = Error> = std::result::Result<T, E>;
