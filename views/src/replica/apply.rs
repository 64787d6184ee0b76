//! Applies records of `view.log` to a replica: rows become pending, and a transaction end marker makes the pending rows of
//! its writer visible (docs/protocol/view-sync.md, "The replica").
//!
//! A polled batch is one store batch. A source transaction larger than [`Options::flush_bytes`] is applied in pieces, one
//! store batch each, and the partition is incomplete until the last piece. Pieces are committed with the marker's own
//! offset as the position, so that the next call and a restart read the marker again but no row before it.
//!
//! Invariant at each commit (I8): every row below the position is in `ROWS`, superseded by a row in `ROWS`, or in
//! `PENDING`.

use super::bytes::{self, Newest, RowValue, space};
use super::error::{Error, Result};
use super::locks::{read, write};
use super::meta::{self, Meta, encode_bucket};
use super::options::Options;
use super::partition::{BucketState, PartitionState};
use super::pending::{self, Pending, PendingRows};
use crate::BucketId;
use crate::bucket::row_hash;
use crate::cursor::hash_of;
use crate::record::{self, RecordError, ViewRecord};
use event_log::{Millis, Offset, RecordRef};
use state_store::{Batch, Store};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::RwLock;

/// State of a partition that only the apply thread uses.
pub struct ApplyState {
    pub(super) partition: i32,
    pub(super) pending: PendingRows,
    /// Whether the partition's metadata changed outside of a batch, by a proof that the partition is current.
    pub(super) meta_dirty: bool,
    /// Whether a batch was started and not finished. After an error or a panic, `pending` is ahead of the store: rows
    /// were removed from it, or marked as stored, for a commit that did not happen. The next commit would lose them, so
    /// the replica must be opened again from its store.
    pub(super) unfinished: bool,
    /// What the pieces of the current source transaction have changed. It is visible, and so returned, with the last
    /// piece.
    hidden: Visible,
}

/// What a batch makes visible.
#[derive(Default)]
struct Visible {
    buckets: HashSet<BucketId>,
    /// Whether a view became loaded.
    loaded: bool,
}

impl ApplyState {
    /// Loads a partition with its pending rows.
    pub fn load(store: &dyn Store, partition: i32, options: &Options) -> Result<(Self, PartitionState)> {
        let mut state = meta::load(store, partition, options.now)?;
        let pending = PendingRows::load(store, partition, options.pending_bytes_max)?;
        state.refresh(&pending);
        let apply = ApplyState {
            partition,
            pending,
            meta_dirty: false,
            unfinished: false,
            hidden: Visible::default(),
        };
        Ok((apply, state))
    }
}

/// The store and the visible state to which changes of a partition are applied.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub store: &'a dyn Store,
    pub options: &'a Options,
    pub state: &'a RwLock<PartitionState>,
}

/// Result of applying a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Buckets with a visible change.
    pub buckets: Vec<BucketId>,
    /// Whether a view became loaded, so that pages of any bucket may be complete now.
    pub loaded: bool,
    /// Whether the position reached records that are too young to be compacted while E is unknown. The caller must look
    /// up the log end and pass it to [`super::Replica::set_end`].
    pub need_end: bool,
    /// Source commit time in ms of the last transaction end marker of the batch, for latency metrics.
    pub closed_at_ms: Option<i64>,
    /// Number of malformed records that were skipped.
    pub rejected: u64,
    /// Whether the batch ended at a transaction end marker of which only a piece was applied. The caller must call again
    /// with the records from that marker on.
    pub is_partial: bool,
}

impl Applied {
    /// Adds the result of the next call for the same partition.
    pub(super) fn add(&mut self, next: Applied) {
        self.buckets.extend(next.buckets);
        self.loaded |= next.loaded;
        self.need_end = next.need_end;
        self.closed_at_ms = next.closed_at_ms.or(self.closed_at_ms);
        self.rejected += next.rejected;
        self.is_partial = next.is_partial;
    }
}

/// What the next commit stores for the partition, apart from rows.
struct Progress {
    position: Offset,
    end_marker: Offset,
    as_of: Millis,
    current_ms: Millis,
    end: Option<Offset>,
    mid_apply: bool,
}

/// A stale or loaded mark that becomes visible.
struct Mark {
    kind: MarkKind,
    view: String,
    writer: u64,
    is_set: bool,
    end_marker: Offset,
}

#[derive(Clone, Copy)]
enum MarkKind {
    Stale,
    Loaded,
}

/// Changes for the next commit.
#[derive(Default)]
struct Staged {
    /// Rows to put, or to delete if `None`.
    rows: BTreeMap<(BucketId, Offset), Option<Vec<u8>>>,
    tombstones: Vec<(Millis, BucketId, Offset)>,
    index: HashMap<Vec<u8>, Newest>,
    buckets: HashMap<BucketId, BucketState>,
    /// Stored pending rows to delete, because they are visible now: writer and offset.
    applied_pending: Vec<(u64, Offset)>,
    marks: Vec<Mark>,
    bytes: usize,
}

/// Applies one polled batch.
struct Applier<'a> {
    apply: &'a mut ApplyState,
    target: Target<'a>,
    progress: Progress,
    staged: Staged,
}

/// Applies records; see [`super::Replica::apply_piece`].
pub fn apply<'r>(
    apply: &mut ApplyState,
    target: Target<'_>,
    records: impl Iterator<Item = RecordRef<'r>>,
    now: Millis,
) -> Result<Applied> {
    let partition = apply.partition;
    let options = target.options;
    let mut applier = Applier::new(apply, target);
    let mut applied = Applied::default();
    // Records younger than `min.compaction.lag.ms` are never compacted. Only half of it is used, because this read
    // itself takes time.
    let young = now - options.times.compaction_lag_ms / 2;
    for record in records {
        let (offset, time) = (record.offset(), record.timestamp());
        if offset < applier.progress.position {
            continue;
        }
        if time <= young {
            // These records may have been compacted, so an earlier E is no longer valid.
            applier.progress.end = None;
        }
        match record::parse(&record) {
            Ok(ViewRecord::TransactionEnd { writer, at_ms }) => {
                // If the transaction is applied in pieces, each piece is committed at this position.
                applier.progress.position = offset;
                if !applier.end_transaction(hash_of(&[&writer]), offset)? {
                    applied.is_partial = true;
                    applier.apply.pending.spill(options.pending_bytes_max);
                    return Ok(applied);
                }
                applier.progress.mid_apply = false;
                applier.progress.end_marker = offset;
                applied.closed_at_ms = Some(at_ms).filter(|at| *at > 0);
            }
            Ok(pending) => {
                let writer = hash_of(&[writer_of(&pending)]);
                applier.apply.pending.push(writer, offset, time, &pending);
            }
            // Skipping the record would lose a row. A newer release can read it.
            Err(source @ RecordError::Newer { .. }) => {
                return Err(Error::Record {
                    partition,
                    offset,
                    source,
                });
            }
            // No writer of Trunkline produces such a record, so no row is lost by skipping it.
            Err(error) => {
                applied.rejected += 1;
                tracing::warn!(partition, offset, %error, "malformed record of view.log skipped");
            }
        }
        applier.progress.position = offset + 1;
        applier.progress.as_of = applier.progress.as_of.max(time);
        applier.progress.current_ms = applier.progress.current_ms.max(time);
        applied.need_end = applier.progress.end.is_none() && time > young;
    }
    applier.flush()?;
    applier.apply.pending.spill(options.pending_bytes_max);
    let visible = std::mem::take(&mut apply.hidden);
    applied.buckets = visible.buckets.into_iter().collect();
    applied.loaded = visible.loaded;
    Ok(applied)
}

fn writer_of<'a>(record: &'a ViewRecord<'_>) -> &'a str {
    match record {
        ViewRecord::Row(row) => &row.writer,
        ViewRecord::TransactionEnd { writer, .. }
        | ViewRecord::TransactionBegin { writer }
        | ViewRecord::Stale { writer, .. }
        | ViewRecord::Loaded { writer, .. }
        | ViewRecord::Grant { writer } => writer,
    }
}

impl<'a> Applier<'a> {
    fn new(apply: &'a mut ApplyState, target: Target<'a>) -> Self {
        let progress = {
            let state = read(target.state);
            Progress {
                position: state.position,
                end_marker: state.end_marker,
                as_of: state.as_of,
                current_ms: state.current_ms,
                end: state.end,
                mid_apply: state.mid_apply,
            }
        };
        Applier {
            apply,
            target,
            progress,
            staged: Staged::default(),
        }
    }

    /// Makes the pending rows of a writer visible. `end_marker` is the marker's offset. If they are large, commits one piece
    /// of them and returns false.
    fn end_transaction(&mut self, writer: u64, end_marker: Offset) -> Result<bool> {
        let flush_bytes = self.target.options.flush_bytes;
        if self.staged.bytes > 0 && self.staged.bytes + self.apply.pending.bytes_of(writer) > flush_bytes {
            // The earlier transactions are committed first, so that they become visible. In one batch with the first
            // piece they would be hidden until the last piece is applied.
            self.flush()?;
        }
        let partition = self.apply.partition;
        loop {
            // Rows leave `pending` only with the piece that makes them visible, and `flush` stores those that remain, so
            // that a crash after any piece finds them in the store (I8). A size estimate cannot replace this: the size of
            // spilled rows is unknown, and a staged row is larger than a pending one.
            let pending = &mut self.apply.pending;
            let piece = pending.take_piece(self.target.store, partition, writer, flush_bytes / 2)?;
            if piece.is_empty() {
                return Ok(true);
            }
            for row in &piece {
                if row.stored {
                    self.staged.applied_pending.push((writer, row.offset));
                }
                self.stage(writer, row.offset, &row.value, end_marker)?;
            }
            if self.staged.bytes > flush_bytes && self.apply.pending.contains(writer) {
                self.flush_piece()?;
                return Ok(false);
            }
        }
    }

    /// Commits a piece of a transaction. The partition is incomplete from here to the commit of the last piece (I3).
    fn flush_piece(&mut self) -> Result<()> {
        failpoint::hit("replica.mid_apply");
        self.progress.mid_apply = true;
        self.flush()
    }

    fn stage(&mut self, writer: u64, offset: Offset, value: &[u8], end_marker: Offset) -> Result<()> {
        match pending::decode(value)? {
            Pending::Invisible => {}
            Pending::Stale { view, stale } => self.staged.marks.push(Mark {
                kind: MarkKind::Stale,
                view: view.to_owned(),
                writer,
                is_set: stale,
                end_marker,
            }),
            Pending::Loaded { view, loaded } => self.staged.marks.push(Mark {
                kind: MarkKind::Loaded,
                view: view.to_owned(),
                writer,
                is_set: loaded,
                end_marker,
            }),
            Pending::Row { bucket, row } => {
                let row = RowValue { end_marker, ..row };
                self.stage_row(offset, bucket, &row)?;
            }
        }
        Ok(())
    }

    fn stage_row(&mut self, offset: Offset, name: &str, row: &RowValue<'_>) -> Result<()> {
        let id = BucketId::of(name);
        let index_key = bytes::index_key(self.apply.partition, id, row.view, row.key);
        let newest = self.newest(&index_key)?;
        // If a key gets another writer, its rows can become visible in an order other than their order in the log. The
        // row with the greatest offset wins.
        if newest.is_some_and(|n| n.offset >= offset) {
            return Ok(());
        }
        let bucket = self.bucket(id, name);
        if *bucket.name != *name {
            // Two bucket names have the same 64-bit id. Mixing the two buckets could show rows to the wrong principal
            // (invariant I5, authorization).
            tracing::error!(bucket = name, other = %bucket.name, "bucket id collision, row not shown");
            return Ok(());
        }
        bucket.changed = bucket.changed.max(row.end_marker);
        if let Some(old) = newest.filter(|n| n.live) {
            bucket.rows -= 1;
            bucket.hash = bucket
                .hash
                .wrapping_sub(row_hash(row.view, row.key.as_bytes(), &old.version));
        }
        if row.json.is_some() {
            bucket.rows += 1;
            bucket.hash = bucket
                .hash
                .wrapping_add(row_hash(row.view, row.key.as_bytes(), &row.version));
        } else {
            self.staged.tombstones.push((row.time, id, offset));
        }
        if let Some(old) = newest {
            self.staged.delete_row(id, old.offset);
        }
        let value = bytes::encode_row(row);
        self.staged.bytes += value.len() + index_key.len() + 64;
        self.staged.rows.insert((id, offset), Some(value));
        self.staged.index.insert(
            index_key,
            Newest {
                offset,
                live: row.json.is_some(),
                version: row.version,
            },
        );
        self.apply.hidden.buckets.insert(id);
        Ok(())
    }

    /// The newest visible version of a row, staged or stored.
    fn newest(&self, index_key: &[u8]) -> Result<Option<Newest>> {
        if let Some(staged) = self.staged.index.get(index_key) {
            return Ok(Some(*staged));
        }
        let stored = self.target.store.get(space::INDEX, index_key)?;
        stored.map(|bytes| Newest::from_bytes(&bytes)).transpose()
    }

    fn bucket(&mut self, id: BucketId, name: &str) -> &mut BucketState {
        let state = self.target.state;
        self.staged.buckets.entry(id).or_insert_with(|| {
            let known = read(state).buckets.get(&id).cloned();
            known.unwrap_or_else(|| BucketState {
                name: name.into(),
                changed: -1,
                rows: 0,
                hash: 0,
            })
        })
    }

    /// Commits the staged changes and makes them visible, under one write lock.
    fn flush(&mut self) -> Result<()> {
        let partition = self.apply.partition;
        let mut batch = Batch::default();
        self.staged.put(partition, &mut batch);
        // Also between two pieces: the position is beyond all pending rows, so a crash would lose those that are only
        // in memory (I8).
        self.apply.pending.stage(partition, &mut batch);
        let mut state = write(self.target.state);
        let mut meta = Meta::of(&state);
        self.apply.hidden.loaded |= self.staged.apply_marks(&mut meta);
        meta.position = self.progress.position;
        meta.end_marker = self.progress.end_marker;
        meta.as_of = self.progress.as_of;
        meta.mid_apply = self.progress.mid_apply;
        meta.put(partition, &mut batch);
        failpoint::hit("replica.before_commit");
        self.target.store.commit(batch)?;
        failpoint::hit("replica.after_commit");
        // Only after the commit: if the commit fails, polls must not see a T or a position whose rows are not in the
        // store.
        meta.publish(&mut state);
        state.current_ms = state.current_ms.max(self.progress.current_ms);
        state.end = self.progress.end;
        state.buckets.extend(self.staged.buckets.drain());
        state.refresh(&self.apply.pending);
        self.apply.meta_dirty = false;
        Ok(())
    }
}

impl Staged {
    fn delete_row(&mut self, bucket: BucketId, offset: Offset) {
        // The row is staged for this commit and not in the store yet, so it is removed from the staged rows.
        if self.rows.remove(&(bucket, offset)).is_none() {
            self.rows.insert((bucket, offset), None);
        }
    }

    /// Moves everything but marks into a batch. The buckets also remain here, because they are published after
    /// the commit.
    fn put(&mut self, partition: i32, batch: &mut Batch) {
        for ((bucket, offset), value) in std::mem::take(&mut self.rows) {
            let key = bytes::row_key(partition, bucket, offset);
            match value {
                Some(value) => batch.put(space::ROWS, key, value),
                None => batch.delete(space::ROWS, key),
            }
        }
        for (time, bucket, offset) in self.tombstones.drain(..) {
            let key = bytes::tombstone_key(partition, time, bucket, offset);
            batch.put(space::TOMBSTONES, key, Vec::new());
        }
        for (key, newest) in self.index.drain() {
            batch.put(space::INDEX, key, newest.to_bytes());
        }
        for (id, bucket) in &self.buckets {
            batch.put(space::BUCKETS, bytes::bucket_key(partition, *id), encode_bucket(bucket));
        }
        for (writer, offset) in self.applied_pending.drain(..) {
            batch.delete(space::PENDING, bytes::pending_key(partition, writer, offset));
        }
        self.bytes = 0;
    }

    /// Applies marks, and returns whether a view became loaded.
    fn apply_marks(&mut self, meta: &mut Meta) -> bool {
        let mut became_loaded = false;
        for mark in self.marks.drain(..) {
            let set = match mark.kind {
                MarkKind::Stale => &mut meta.stale,
                MarkKind::Loaded => &mut meta.loaded,
            };
            // One entry per writer: a view is stale as long as any writer's mark is set (I3).
            let entry = (mark.view, mark.writer);
            let changed = if mark.is_set {
                set.insert(entry)
            } else {
                set.remove(&entry)
            };
            if changed {
                meta.stale_changed = mark.end_marker;
                became_loaded |= mark.is_set && matches!(mark.kind, MarkKind::Loaded);
            }
        }
        became_loaded
    }
}
