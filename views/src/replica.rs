//! A replica: what one edge knows of `view.log`, kept in a store of its own.
//!
//! One thread applies batches of records; any number of threads ask for deltas. Rows whose source transaction is not
//! closed are held back and never shown; a closing makes all of its writer's rows of that partition visible at once.
//! Guarantees: what is shown is the state at the last closing applied (T); after a crash the store stands where one
//! of its batches left it and the log's tail is applied again; a replica that may lack something says that it is
//! incomplete and shows nothing.
//! Never: reading the log itself; the log is given to it, batch by batch, in offset order.

mod apply;
mod bytes;
mod part;
mod pending;
#[cfg(test)]
mod tests;

pub use part::{Health, NotReady};

use crate::BucketId;
use crate::record::RecordError;
use apply::Apply;
use bytes::space;
use event_log::{Millis, Offset, RecordRef};

use state_store::SharedStore;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard};

/// Times that bound what a replica may do; all in ms. They mirror the settings of the topic `view.log`.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// `min.compaction.lag.ms` of `view.log`.
    pub compaction_lag_ms: i64,
    /// `delete.retention.ms` of `view.log`: a tombstone is kept so long after it was first cleaned.
    pub delete_retention_ms: i64,
    /// Taken off the retention everywhere, for clocks that differ and passes that are late.
    pub margin_ms: i64,
    /// A cursor that is older than this is given a fresh one even when nothing is new.
    pub refresh_ms: i64,
    /// Without a proof of being current for so long, data routes answer that the replica is not ready.
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
    /// The horizon H: how long tombstones are kept here, and how old a cursor may be.
    pub fn horizon_ms(&self) -> i64 {
        self.delete_retention_ms - self.margin_ms
    }
}

/// [`Options::flush_bytes`] of an edge: bounds the memory and the duration of one store commit.
pub const FLUSH_BYTES: usize = 2 << 20;

/// How to open a replica.
#[derive(Debug, Clone)]
pub struct Options {
    /// Partitions of `view.log` that are served.
    pub partitions: Vec<i32>,
    /// Times.
    pub times: Times,
    /// Hash of the log's incarnation and the topic's id: a store of another one is refused.
    pub log: u64,
    /// Held-back rows beyond so many bytes a partition stay in the store only.
    pub held_bytes_max: usize,
    /// Staged bytes beyond which changes are committed before the batch ends, also in the middle of a closing. An edge
    /// uses [`FLUSH_BYTES`]; tests use less to reach every commit with few rows.
    pub flush_bytes: usize,
    /// Now, in ms: the `as_of` of a replica that starts from nothing.
    pub now: Millis,
}

/// Why a replica failed; the cure is always the same: set the store aside and read `view.log` from its start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store failed.
    #[error("store of the view replica failed")]
    Store(#[from] state_store::Error),
    /// The store was written by a newer release, for another log, or is damaged.
    #[error("store of the view replica cannot be used: {0}")]
    Foreign(String),
    /// A record cannot be read by this release.
    #[error("view.log/{partition}@{offset}")]
    Record {
        /// Partition.
        partition: i32,
        /// Offset.
        offset: Offset,
        /// What is wrong.
        #[source]
        source: RecordError,
    },
    /// A partition that this replica does not serve.
    #[error("partition {0} of view.log is not served by this replica")]
    Partition(i32),
    /// An earlier batch failed, so this replica's memory is ahead of its store. The store itself is good.
    #[error("an earlier batch of view.log/{0} failed; close the replica and open its store again")]
    Unfinished(i32),
}

/// Result of a replica's call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a batch has brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Buckets in which something became visible.
    pub buckets: Vec<BucketId>,
    /// The position has reached young records and the end offset of then is not known yet: ask the log for the
    /// partition's `End` and give it to [`Replica::set_end`].
    pub need_end: bool,
    /// Source commit time in ms of the newest closing of the batch, for latency figures.
    pub closed_at_ms: Option<i64>,
    /// Records that could not be read and were passed over, with the reason of the first one.
    pub refused: u64,
}

struct Partition {
    apply: Mutex<Apply>,
    shown: RwLock<Shown>,
}

impl Partition {
    /// The applying side, unless a batch has failed there.
    fn apply(&self, number: i32) -> Result<MutexGuard<'_, Apply>> {
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

/// Spaces of the store, in the order of `state_store::Options::spaces`.
pub const SPACES: [&str; 6] = ["meta", "rows", "index", "buckets", "held", "tombstones"];

/// Where an edge keeps its replica, below a data directory.
pub fn dir(data: &std::path::Path) -> PathBuf {
    data.join("view-replica")
}

impl Replica {
    /// Opens a replica over a store with [`SPACES`], and reads back what it held.
    ///
    /// # Errors
    /// [`Error::Foreign`] for a store of another log or format: set it aside.
    pub fn open(store: SharedStore, options: Options) -> Result<Self> {
        bytes::check_format(store.as_ref(), options.log)?;
        let mut partitions = BTreeMap::new();
        for number in &options.partitions {
            let (apply, shown) = apply::load(store.as_ref(), *number, &options)?;
            partitions.insert(
                *number,
                Partition {
                    apply: Mutex::new(apply),
                    shown: RwLock::new(shown),
                },
            );
        }
        Ok(Replica {
            store,
            options,
            partitions,
        })
    }

    /// The partitions served, each with the next offset to read.
    pub fn positions(&self) -> Vec<(i32, Offset)> {
        self.partitions
            .iter()
            .map(|(n, p)| (*n, read(&p.shown).position))
            .collect()
    }

    /// Applies records of one partition, in offset order.
    ///
    /// # Errors
    /// [`Error::Record`] for a record of a newer format; the store's errors. A record that is merely malformed is
    /// counted and passed over: it cannot belong to any row. After an error the partition takes nothing more: drop the
    /// replica and open it from its store again.
    pub fn apply<'r>(
        &self,
        partition: i32,
        records: impl Iterator<Item = RecordRef<'r>>,
        now: Millis,
    ) -> Result<Applied> {
        let part = self.partitions.get(&partition).ok_or(Error::Partition(partition))?;
        let mut apply = part.apply(partition)?;
        apply.unfinished = true;
        let applied = apply::apply(
            &mut apply,
            self.store.as_ref(),
            &self.options,
            &part.shown,
            records,
            now,
        )?;
        apply.unfinished = false;
        Ok(applied)
    }

    /// Notes that a partition's end offset (read_uncommitted) was `end` after young records were reached: the replica
    /// is complete once its position has come there.
    pub fn set_end(&self, partition: i32, end: Offset) -> Result<()> {
        let part = self.partitions.get(&partition).ok_or(Error::Partition(partition))?;
        let apply = part.apply(partition)?;
        let mut shown = write(&part.shown);
        shown.end.get_or_insert(end);
        shown.refresh(&apply.held);
        Ok(())
    }

    /// Notes that the reader has passed over everything stable below `position`, when the partition's end
    /// (read_uncommitted), asked for at `asked_ms`, was `end`. With `position = end` nothing is left to be seen.
    pub fn at_end(&self, partition: i32, position: Offset, end: Offset, asked_ms: Millis) -> Result<()> {
        let part = self.partitions.get(&partition).ok_or(Error::Partition(partition))?;
        let mut apply = part.apply(partition)?;
        let mut shown = write(&part.shown);
        shown.position = shown.position.max(position);
        shown.current_ms = shown.current_ms.max(asked_ms);
        if shown.position >= end {
            shown.as_of = shown.as_of.max(asked_ms);
            shown.end.get_or_insert(end);
            apply.meta_dirty = true;
        }
        shown.refresh(&apply.held);
        Ok(())
    }

    /// Whether tombstones may have been missed: the store must be set aside and `view.log` read from its start.
    pub fn expired(&self, now: Millis) -> bool {
        let limit = self.options.times.delete_retention_ms - self.options.times.margin_ms;
        self.partitions.values().any(|p| now - read(&p.shown).as_of > limit)
    }

    /// Removes tombstones that are older than the horizon, at most `max` a partition, and stores where the replica
    /// stands if only time has moved. Returns how many went.
    pub fn prune(&self, now: Millis, max: usize) -> Result<usize> {
        let mut gone = 0;
        for (number, part) in &self.partitions {
            let mut apply = part.apply(*number)?;
            gone += apply::prune(
                &mut apply,
                self.store.as_ref(),
                &self.options,
                &part.shown,
                (*number, now, max),
            )?;
        }
        Ok(gone)
    }

    /// How each partition stands.
    pub fn health(&self, now: Millis) -> Vec<Health> {
        let times = &self.options.times;
        self.partitions
            .iter()
            .map(|(n, p)| Health::of(*n, &read(&p.shown), times, now))
            .collect()
    }

    /// The times it was opened with.
    pub fn times(&self) -> &Times {
        &self.options.times
    }

    /// Hash of the log's incarnation it was opened for.
    pub fn log(&self) -> u64 {
        self.options.log
    }

    /// Every visible row of a bucket, in offset order: for `trunkline explain` and for tests.
    pub fn rows(&self, partition: i32, bucket: BucketId) -> Result<Vec<crate::Change>> {
        let part = self.partitions.get(&partition).ok_or(Error::Partition(partition))?;
        let _shown = read(&part.shown);
        let mut rows = Vec::new();
        let (from, to) = bytes::row_range(partition, bucket, 0, Offset::MAX);
        self.store.scan(
            space::ROWS,
            state_store::KeyRange::new(&from, Some(&to)),
            state_store::Direction::Forward,
            &mut |key, value| {
                rows.extend(crate::Change::from_store(key, value));
                std::ops::ControlFlow::Continue(())
            },
        )?;
        Ok(rows)
    }

    pub(crate) fn shown(&self, partition: i32) -> Option<RwLockReadGuard<'_, Shown>> {
        self.partitions.get(&partition).map(|p| read(&p.shown))
    }

    pub(crate) fn store(&self) -> &dyn state_store::Store {
        self.store.as_ref()
    }
}

pub(crate) use bytes::{RowValue, row_place, row_range, row_value, space as spaces};
pub(crate) use part::{Shown, ready as part_ready};

/// Poisoning is ignored: what is shown changes only after its commit, and [`Apply::unfinished`] stays set after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}
