//! Options of the embedded log.

use crate::Millis;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Returns the time in ms since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;

/// Durability of acknowledged writes against a crash of the host. With every setting they survive the end of the
/// process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The operating system decides when to write to the disk, usually within 30 s. A crash of the host loses what was
    /// not written yet.
    Os,
    /// Writes are synced at this interval. A crash of the host can lose the writes of one interval and of the duration
    /// of one sync.
    Interval(Duration),
    /// Each write is synced before it is acknowledged and before readers see it. A crash of the host loses nothing.
    Commit,
}

/// Options of an embedded log.
#[derive(Clone)]
pub struct Config {
    /// The directory; `None` keeps everything in memory.
    pub dir: Option<PathBuf>,
    /// Clock for append times, transaction timeouts, sessions and retention.
    pub clock: Clock,
    /// Size of the cache of the newest records in bytes. 32 MiB by default.
    pub cache_bytes: usize,
    /// Durability of acknowledged writes if the log has a directory. [`Durability::Os`] by default.
    pub durability: Durability,
    /// Writes fail while the disk has less free space than this number of bytes. The reserve allows retention and
    /// flushes of earlier writes to complete. By default 128 MiB, but at most an eighth of the disk.
    pub reserve_bytes: Option<u64>,
    /// Size of the store's block cache in bytes, for older records. 16 MiB by default.
    pub store_cache_bytes: u64,
    /// Maximum number of keys that compaction holds in memory. A partition with more dirty keys is cleaned in pieces.
    /// 400,000 by default, which uses 13 MB.
    pub cleaner_keys_max: usize,
    /// Interval of the cleaner thread. With `None` there is no such thread: the log is only cleaned by
    /// [`super::EmbeddedLog::clean`], and timed-out transactions are aborted by later calls. 5 minutes by default, as
    /// in Kafka.
    pub clean_every: Option<Duration>,
    /// How long committed offsets of a group without members are kept. 7 days by default, as Kafka's
    /// `offsets.retention.minutes`.
    pub offsets_retention: Duration,
    /// How long `committed` waits for a transaction that is neither committed nor aborted. 30 s by default.
    pub request_timeout: Duration,
}

impl Config {
    /// Creates options with the defaults, for a log in a directory or in memory.
    pub fn new(dir: Option<PathBuf>, clock: Clock) -> Self {
        Config {
            dir,
            clock,
            cache_bytes: 32 * 1024 * 1024,
            durability: Durability::Os,
            reserve_bytes: None,
            store_cache_bytes: 16 * 1024 * 1024,
            cleaner_keys_max: 400_000,
            clean_every: Some(Duration::from_secs(300)),
            offsets_retention: Duration::from_secs(7 * 24 * 3_600),
            request_timeout: Duration::from_secs(30),
        }
    }
}
