//! Limits and settings of a replica.

use event_log::Millis;

/// Time limits of a replica, in ms. The first two are settings of the topic `view.log`. See docs/protocol/view-sync.md,
/// "Horizons".
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// `min.compaction.lag.ms`: younger records are never compacted.
    pub compaction_lag_ms: i64,
    /// `delete.retention.ms`: a tombstone is kept for at least this long after it was first compacted.
    pub delete_retention_ms: i64,
    /// Subtracted from the retention, to allow for clock differences and late compaction.
    pub margin_ms: i64,
    /// Age at which a cursor is replaced even if nothing changed.
    pub refresh_ms: i64,
    /// A partition whose last proof that it is current is older than this is not served.
    pub proof_ms: i64,
}

impl Default for Times {
    fn default() -> Self {
        const HOUR: i64 = 3_600_000;
        Times {
            compaction_lag_ms: 6 * HOUR,
            delete_retention_ms: 7 * 24 * HOUR,
            margin_ms: 24 * HOUR,
            refresh_ms: 24 * HOUR,
            proof_ms: 30_000,
        }
    }
}

impl Times {
    /// The horizon H: how long the replica keeps tombstones, and the maximum age of a cursor (invariant I9: an older
    /// cursor leads to a reset).
    pub fn horizon_ms(&self) -> i64 {
        self.delete_retention_ms - self.margin_ms
    }
}

/// [`Options::flush_bytes`] of an edge: bounds memory and duration of one store commit, and so how long a change of another
/// partition waits for a large transaction.
pub const FLUSH_BYTES: usize = 1 << 20;

/// How to open a replica.
#[derive(Debug, Clone)]
pub struct Options {
    /// Partitions of `view.log` to serve.
    pub partitions: Vec<i32>,
    /// Time limits.
    pub times: Times,
    /// Hash of the log epoch and the topic id. A store of another pair is rejected.
    pub log: u64,
    /// Maximum memory of pending rows, in bytes per partition. Rows beyond the limit are kept in the store only.
    pub pending_bytes_max: usize,
    /// Staged bytes above which changes are committed before the batch ends, even within a source transaction. An edge
    /// uses [`FLUSH_BYTES`]; tests use a smaller value, so that few rows cause several commits.
    pub flush_bytes: usize,
    /// Current time in ms: initial `as_of` of a replica whose store is empty.
    pub now: Millis,
}
