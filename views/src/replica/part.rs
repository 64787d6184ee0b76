//! What is shown of one partition, and whether it may be.
//!
//! Guarantees: an answer is given from here and from the store under one read lock, so it is of one instant.

use super::Times;
use super::pending::PendingRows;
use crate::BucketId;
use crate::cursor::Point;
use event_log::{Millis, Offset};
use std::collections::{BTreeSet, HashMap};

/// What is known of a bucket without the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketState {
    /// Name.
    pub name: Box<str>,
    /// The last closing that changed it: an idle poll looks at nothing else.
    pub changed: Offset,
    /// Visible rows.
    pub rows: u64,
    /// Sum of the visible rows' shares.
    pub hash: u128,
}

/// What is shown of a partition.
#[derive(Debug)]
pub struct Shown {
    /// Next offset to read.
    pub position: Offset,
    /// T: the last closing applied; -1 before the first.
    pub closed: Offset,
    /// A broker time at which nothing at or after the position had been written yet.
    pub as_of: Millis,
    /// When the reader last had everything stable, by a proof; not stored.
    pub current_ms: Millis,
    /// E: the end offset when the position first reached young records; `None` while it is behind.
    pub end: Option<Offset>,
    /// A closing is being applied piece by piece: nothing may be shown.
    pub mid_closing: bool,
    /// Smallest held-back offset and time.
    pub held: Option<(Offset, Millis)>,
    /// Buckets.
    pub buckets: HashMap<BucketId, BucketState>,
    /// Views that are stale, each with the writer that says so.
    pub stale: BTreeSet<(String, u64)>,
    /// The last closing that changed them; -1 before the first.
    pub stale_changed: Offset,
}

impl Shown {
    /// Takes over what is held back.
    pub fn refresh(&mut self, held: &PendingRows) {
        self.held = held.smallest();
    }

    /// Whether everything below E is applied: before that, compaction may have removed what an open transaction
    /// superseded. The position counts, not T: the end counts a control record that T never reaches.
    pub fn complete(&self) -> bool {
        let Some(end) = self.end else { return false };
        !self.mid_closing && self.position >= end && self.held.is_none_or(|(offset, _)| offset >= end)
    }

    /// The point that a cursor takes from here.
    pub fn point(&self) -> Point {
        let low = self.held.map(|(offset, _)| offset).filter(|o| *o <= self.closed);
        let time = self.held.map_or(self.as_of, |(_, time)| time);
        Point {
            closed: self.closed,
            low: low.unwrap_or(self.closed + 1),
            time,
        }
    }
}

/// Why a partition may not be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// Still reading, or fallen behind: this many records are known to be missing, at least.
    Incomplete {
        /// Partition.
        partition: i32,
        /// Next offset to read.
        position: Offset,
        /// Where it is complete, once known.
        end: Option<Offset>,
    },
    /// Nothing has proven for so long that the replica is current.
    Unproven {
        /// Partition.
        partition: i32,
        /// Milliseconds since the last proof.
        since_ms: i64,
    },
    /// The partition is not served here.
    NotServed {
        /// Partition.
        partition: i32,
    },
}

/// How a partition stands, for readiness and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Partition.
    pub partition: i32,
    /// Next offset to read.
    pub position: Offset,
    /// T.
    pub closed: Offset,
    /// Why it may not be shown, if so.
    pub not_ready: Option<NotReady>,
    /// Buckets with rows or tombstones.
    pub buckets: usize,
    /// Whether rows are held back.
    pub holds_back: bool,
}

impl Health {
    pub(super) fn of(partition: i32, shown: &Shown, times: &Times, now: Millis) -> Self {
        Health {
            partition,
            position: shown.position,
            closed: shown.closed,
            not_ready: ready(partition, shown, times, now).err(),
            buckets: shown.buckets.len(),
            holds_back: shown.held.is_some(),
        }
    }
}

/// Whether a partition may be shown now.
pub fn ready(partition: i32, shown: &Shown, times: &Times, now: Millis) -> Result<(), NotReady> {
    if !shown.complete() {
        return Err(NotReady::Incomplete {
            partition,
            position: shown.position,
            end: shown.end,
        });
    }
    let since_ms = now - shown.current_ms;
    if since_ms > times.proof_ms {
        return Err(NotReady::Unproven { partition, since_ms });
    }
    Ok(())
}
