//! Commits the position of the replica in a consumer group, so that operators and connectors see how far the edge is behind.
//!
//! It has a separate thread, because a request waits for a coordinator that is not available, and the replica must not.
//! The replica itself continues at the position in its store.

use event_log::{Offset, SharedEventLog, TopicPartition};
use service::backoff::Backoff;
use service::{Drain, chain};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Interval of commits.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// Longest pause after an error.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Offsets of the next records of all partitions.
type Offsets = Vec<(TopicPartition, Offset)>;

/// The newest position.
#[derive(Clone, Default)]
pub struct ReplicaPosition(Arc<Mutex<Offsets>>);

impl ReplicaPosition {
    /// Replaces the position.
    pub fn set(&self, offsets: Offsets) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = offsets;
    }

    /// Commits the position whenever it has changed, until the drain starts. Blocks.
    pub fn commit(&self, log: &SharedEventLog, group: &str, drain: &Drain) {
        let (mut committed, mut has_failed) = (Offsets::new(), false);
        let mut backoff = Backoff::new(COMMIT_INTERVAL, BACKOFF_MAX);
        while drain.sleep_blocking(COMMIT_INTERVAL) {
            let offsets = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if offsets == committed {
                continue;
            }
            match log.set_committed(group, &offsets) {
                Ok(()) => {
                    (committed, has_failed) = (offsets, false);
                    backoff.reset();
                }
                Err(error) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        let error = chain(&error);
                        tracing::warn!(group, error, "position of the replica not committed, the edge retries");
                    }
                    backoff.pause_blocking(drain);
                }
            }
        }
    }
}
