//! Visible state of a partition, and whether it may be served.
//!
//! A delta reads this state and the store under one read lock, so that a page shows one instant (I2). The apply thread
//! holds the write lock during its store commit.

use super::options::Times;
use super::pending::PendingRows;
use crate::cursor::Point;
use crate::{BucketId, SnapshotView};
use event_log::{Millis, Offset};
use std::collections::{BTreeSet, HashMap};

/// Summary of a bucket, kept in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketState {
    /// Name.
    pub name: Box<str>,
    /// Offset of the last transaction end marker that changed the bucket. An idle poll compares only this.
    pub changed: Offset,
    /// Number of visible rows.
    pub rows: u64,
    /// Sum of the hashes of the visible rows (I10).
    pub hash: u128,
}

/// Visible state of a partition.
#[derive(Debug)]
pub struct PartitionState {
    /// Offset of the next record to read.
    pub position: Offset,
    /// T: offset of the last applied transaction end marker; -1 before the first.
    pub end_marker: Offset,
    /// A broker time at which no record at or after the position had been appended. The replica can only have missed
    /// tombstones that were appended later and have been compacted away since.
    pub as_of: Millis,
    /// Time of the last proof that the partition is current. Not stored, because it must be proven again after a
    /// restart.
    pub current_ms: Millis,
    /// E: the log end when the position first reached records that are too young to be compacted; `None` until then.
    pub end: Option<Offset>,
    /// Whether a source transaction is being applied in pieces, so that only a part of its rows is visible.
    pub mid_apply: bool,
    /// Smallest offset and smallest append time of the pending rows.
    pub pending: Option<(Offset, Millis)>,
    /// Buckets.
    pub buckets: HashMap<BucketId, BucketState>,
    /// Stale views, each with the writer that set the mark.
    pub stale: BTreeSet<(String, u64)>,
    /// Loaded views, each with the writer that set the mark.
    pub loaded: BTreeSet<(String, u64)>,
    /// Offset of the last transaction end marker that changed `stale` or `loaded`; -1 before the first.
    pub stale_changed: Offset,
}

impl PartitionState {
    /// State of a partition that has read nothing.
    pub fn empty(now: Millis) -> Self {
        PartitionState {
            position: 0,
            end_marker: -1,
            as_of: now,
            current_ms: Millis::MIN / 2,
            end: None,
            mid_apply: false,
            pending: None,
            buckets: HashMap::new(),
            stale: BTreeSet::new(),
            loaded: BTreeSet::new(),
            stale_changed: -1,
        }
    }

    /// Whether the first snapshot of the view's table has ended, as all its writers state.
    pub fn is_loaded(&self, view: &SnapshotView) -> bool {
        let marks = self.loaded.iter().filter(|(loaded, _)| **loaded == *view.name);
        marks.count() >= view.writers
    }

    /// Updates the summary of the pending rows.
    pub fn refresh(&mut self, pending: &PendingRows) {
        self.pending = pending.oldest();
    }

    /// Whether the partition has every row that a reader of the whole log would show (invariant I6, equal replicas).
    ///
    /// Compaction may have removed a visible row that a pending row below E supersedes, so pending rows below E make
    /// the partition incomplete. The position is compared with E and not T: the log end counts Kafka's control records
    /// and open transactions, so on a log without new records T never reaches E (invariant I13, progress).
    pub fn complete(&self) -> bool {
        let Some(end) = self.end else { return false };
        !self.mid_apply && self.position >= end && self.pending.is_none_or(|(offset, _)| offset >= end)
    }

    /// The point that a cursor stores for this partition.
    ///
    /// When a later marker makes a pending row visible, the row keeps its own offset, which may be below T. `low`
    /// therefore states where the next delta must start (I2), and `time` must not exceed the time of the oldest pending
    /// row (I9).
    pub fn point(&self) -> Point {
        let low = self.pending.map(|(offset, _)| offset).filter(|o| *o <= self.end_marker);
        let time = self.pending.map_or(self.as_of, |(_, time)| time);
        Point {
            end_marker: self.end_marker,
            low: low.unwrap_or(self.end_marker + 1),
            time,
        }
    }
}

/// Why a partition cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReady {
    /// Rows may be missing: the position has not reached E, a row below E is pending, or a large transaction is being
    /// applied.
    Incomplete {
        /// Partition.
        partition: i32,
        /// Offset of the next record to read.
        position: Offset,
        /// E, if it is known.
        end: Option<Offset>,
    },
    /// The last proof that the partition is current is too old.
    Unproven {
        /// Partition.
        partition: i32,
        /// Milliseconds since the last proof.
        since_ms: i64,
    },
    /// The replica does not serve this partition.
    NotServed {
        /// Partition.
        partition: i32,
    },
}

/// Status of a partition, for readiness and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Partition.
    pub partition: i32,
    /// Offset of the next record to read.
    pub position: Offset,
    /// T.
    pub end_marker: Offset,
    /// Why the partition cannot be served; `None` if it can.
    pub not_ready: Option<NotReady>,
    /// Number of buckets with rows or tombstones.
    pub buckets: usize,
    /// Whether there are pending rows.
    pub has_pending_rows: bool,
}

impl Health {
    pub(super) fn of(partition: i32, state: &PartitionState, times: &Times, now: Millis) -> Self {
        Health {
            partition,
            position: state.position,
            end_marker: state.end_marker,
            not_ready: check_ready(partition, state, times, now).err(),
            buckets: state.buckets.len(),
            has_pending_rows: state.pending.is_some(),
        }
    }
}

/// Checks whether a partition may be served at `now`.
pub fn check_ready(partition: i32, state: &PartitionState, times: &Times, now: Millis) -> Result<(), NotReady> {
    if !state.complete() {
        return Err(NotReady::Incomplete {
            partition,
            position: state.position,
            end: state.end,
        });
    }
    // An edge that lost the connection to its log would otherwise serve revoked data forever (I5).
    let since_ms = now - state.current_ms;
    if since_ms > times.proof_ms {
        return Err(NotReady::Unproven { partition, since_ms });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_is_loaded_by_all_its_writers() {
        let mut state = PartitionState::empty(0);
        let view = SnapshotView {
            name: "v".into(),
            writers: 2,
        };
        for (marked, writer, is_loaded) in [("v", 1, false), ("w", 2, false), ("v", 1, false), ("v", 2, true)] {
            state.loaded.insert((marked.to_owned(), writer));
            assert_eq!(state.is_loaded(&view), is_loaded, "{marked} by {writer}");
        }
    }
}
