//! Replica: an edge's copy of `view.log` in a local store (docs/protocol/view-sync.md, "The replica").
//!
//! One thread applies batches of records in offset order with [`Replica::apply`]; any number of threads compute deltas.
//! Rows are pending until a transaction end marker of their writer makes all rows of that writer in that partition
//! visible at once (invariant I3, no partial transaction). A partition that may lack rows is not served (invariant I6,
//! equal replicas). Kafka is the write-ahead log: after a crash the store has the state of one of its commits, and the
//! records after it are read again (invariant I8, no gap). Reading the log is the caller's task.

mod apply;
pub(crate) mod bytes;
mod error;
mod locks;
mod meta;
mod options;
mod partition;
mod pending;
mod prune;
#[cfg(test)]
mod tests;

pub use apply::Applied;
pub use bytes::SPACES;
pub use error::{Error, Result};
pub use options::{FLUSH_BYTES, Options, Times};
pub use partition::{Health, NotReady};
pub(crate) use partition::{PartitionState, check_ready};

use crate::{BucketId, Change};
use apply::{ApplyState, Target};
use bytes::space;
use event_log::{Millis, Offset, RecordRef};
use locks::{lock, read, write};
use state_store::SharedStore;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

/// A partition: the state of the applying thread and the state that deltas read.
///
/// Locks are taken in the order of the fields. Deltas take only the second one, so that they wait for a store commit at
/// most, not for a whole batch.
struct Partition {
    apply: Mutex<ApplyState>,
    state: RwLock<PartitionState>,
}

impl Partition {
    /// Locks the apply state, unless a batch has failed.
    fn lock_apply(&self, number: i32) -> Result<MutexGuard<'_, ApplyState>> {
        let apply = lock(&self.apply);
        if apply.unfinished {
            return Err(Error::Unfinished(number));
        }
        Ok(apply)
    }
}

/// A replica of `view.log`.
pub struct Replica {
    store: SharedStore,
    options: Options,
    partitions: BTreeMap<i32, Partition>,
}

/// Directory of the replica's store in the data directory of an edge.
pub fn dir(data: &std::path::Path) -> PathBuf {
    data.join("view-replica")
}

impl Replica {
    /// Opens a replica in a store with the keyspaces [`SPACES`].
    ///
    /// # Errors
    /// [`Error::Unusable`] if the store belongs to another log, has another layout, or is corrupt.
    pub fn open(store: SharedStore, options: Options) -> Result<Self> {
        bytes::check_format(store.as_ref(), options.log)?;
        let mut partitions = BTreeMap::new();
        for number in &options.partitions {
            let (apply, state) = ApplyState::load(store.as_ref(), *number, &options)?;
            partitions.insert(
                *number,
                Partition {
                    apply: Mutex::new(apply),
                    state: RwLock::new(state),
                },
            );
        }
        Ok(Replica {
            store,
            options,
            partitions,
        })
    }

    /// The served partitions, each with the offset of the next record to read.
    pub fn positions(&self) -> Vec<(i32, Offset)> {
        self.partitions
            .iter()
            .map(|(n, p)| (*n, read(&p.state).position))
            .collect()
    }

    /// Applies records of one partition, in offset order, up to the first transaction end marker of a transaction that is
    /// applied in pieces; of that transaction, one piece. Then [`Applied::is_partial`] is set, and the caller must call again
    /// with the same records, so that other partitions need not wait for the whole transaction. Records below the position
    /// are ignored. Malformed records are counted and skipped.
    ///
    /// # Errors
    /// [`Error::Record`] for a record of a newer format, or an error of the store. After an error every further call for
    /// the partition fails with [`Error::Unfinished`]: drop the replica and open it again from its store.
    pub fn apply_piece<'r>(
        &self,
        partition: i32,
        records: impl Iterator<Item = RecordRef<'r>>,
        now: Millis,
    ) -> Result<Applied> {
        let part = self.partition(partition)?;
        let mut apply = part.lock_apply(partition)?;
        // Stays set after an error or a panic; see `ApplyState::unfinished`.
        apply.unfinished = true;
        let applied = apply::apply(&mut apply, self.target(part), records, now)?;
        apply.unfinished = false;
        Ok(applied)
    }

    /// Applies records of one partition as [`Replica::apply_piece`] does, with all pieces of large transactions.
    ///
    /// # Errors
    /// As [`Replica::apply_piece`].
    pub fn apply<'r>(
        &self,
        partition: i32,
        records: impl Iterator<Item = RecordRef<'r>> + Clone,
        now: Millis,
    ) -> Result<Applied> {
        let mut all = Applied::default();
        loop {
            let applied = self.apply_piece(partition, records.clone(), now)?;
            let is_partial = applied.is_partial;
            all.add(applied);
            if !is_partial {
                return Ok(all);
            }
        }
    }

    /// Sets E to `end`: the log end (`read_uncommitted`), looked up after the position reached records that are too
    /// young to be compacted. Has no effect if E is already known.
    ///
    /// # Errors
    /// The partition is not served, or an earlier batch failed.
    pub fn set_end(&self, partition: i32, end: Offset) -> Result<()> {
        let part = self.partition(partition)?;
        let apply = part.lock_apply(partition)?;
        let mut state = write(&part.state);
        state.end.get_or_insert(end);
        state.refresh(&apply.pending);
        Ok(())
    }

    /// Records that the partition was current: at `asked_ms` the reader's `position` was at the last stable offset, and
    /// the log end (`read_uncommitted`) was `end`, or [`Offset::MAX`] if the log end is unknown.
    ///
    /// A position at the log end additionally proves that no record after it was older than `asked_ms`, so it advances
    /// `as_of`. The position may be beyond the last applied record, because control records take offsets too. Has no effect
    /// while a transaction is applied in pieces.
    ///
    /// # Errors
    /// The partition is not served, or an earlier batch failed.
    pub fn at_end(&self, partition: i32, position: Offset, end: Offset, asked_ms: Millis) -> Result<()> {
        let part = self.partition(partition)?;
        let mut apply = part.lock_apply(partition)?;
        let mut state = write(&part.state);
        if state.mid_apply {
            // The marker at the position must be read again.
            return Ok(());
        }
        state.position = state.position.max(position);
        state.current_ms = state.current_ms.max(asked_ms);
        if state.position >= end {
            state.as_of = state.as_of.max(asked_ms);
            state.end.get_or_insert(end);
            apply.meta_dirty = true;
        }
        state.refresh(&apply.pending);
        Ok(())
    }

    /// Whether the log may have removed tombstones that this replica has not read, so that deleted rows would stay
    /// visible. If so, the caller must quarantine the store and read `view.log` from its start.
    pub fn expired(&self, now: Millis) -> bool {
        let limit = self.options.times.delete_retention_ms - self.options.times.margin_ms;
        self.partitions.values().any(|p| now - read(&p.state).as_of > limit)
    }

    /// Removes tombstones that are older than the horizon, at most `max` per partition, and stores progress that was made
    /// without a batch. Returns the number of removed tombstones.
    ///
    /// # Errors
    /// An error of the store, or an earlier batch failed.
    pub fn prune(&self, now: Millis, max: usize) -> Result<usize> {
        let mut removed = 0;
        for (number, part) in &self.partitions {
            let mut apply = part.lock_apply(*number)?;
            removed += prune::prune(&mut apply, &self.target(part), now, max)?;
        }
        Ok(removed)
    }

    /// Status of each partition.
    pub fn health(&self, now: Millis) -> Vec<Health> {
        let times = &self.options.times;
        self.partitions
            .iter()
            .map(|(n, p)| Health::of(*n, &read(&p.state), times, now))
            .collect()
    }

    /// Time limits.
    pub fn times(&self) -> &Times {
        &self.options.times
    }

    /// Hash of the log epoch and topic id.
    pub fn log(&self) -> u64 {
        self.options.log
    }

    /// All visible rows and tombstones of a bucket, in offset order, whether or not the partition is ready.
    ///
    /// # Errors
    /// The partition is not served, or an error of the store.
    pub fn rows(&self, partition: i32, bucket: BucketId) -> Result<Vec<Change>> {
        let part = self.partition(partition)?;
        let _state = read(&part.state);
        let mut rows = Vec::new();
        let (from, to) = bytes::row_range(partition, bucket, 0, Offset::MAX);
        self.store.scan(
            space::ROWS,
            state_store::KeyRange::new(&from, Some(&to)),
            state_store::Direction::Forward,
            &mut |key, value| {
                rows.extend(Change::from_store(key, value));
                std::ops::ControlFlow::Continue(())
            },
        )?;
        Ok(rows)
    }

    /// Locks the visible state of a partition. The partition's rows in the store do not change while the guard is held.
    pub(crate) fn state(&self, partition: i32) -> Option<RwLockReadGuard<'_, PartitionState>> {
        self.partitions.get(&partition).map(|p| read(&p.state))
    }

    pub(crate) fn store(&self) -> &dyn state_store::Store {
        self.store.as_ref()
    }

    fn partition(&self, number: i32) -> Result<&Partition> {
        self.partitions.get(&number).ok_or(Error::NotServed(number))
    }

    fn target<'a>(&'a self, partition: &'a Partition) -> Target<'a> {
        Target {
            store: self.store.as_ref(),
            options: &self.options,
            state: &partition.state,
        }
    }
}
