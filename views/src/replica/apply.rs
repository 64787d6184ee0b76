//! Taking records in: held back until their writer closes them, then shown, in one store batch a polled batch.
//!
//! A closing larger than [`Options::flush_bytes`] is applied in pieces, each one store batch; until the last piece the
//! partition is incomplete. A piece is committed with the closing's own offset as the position, so after a crash the
//! closing is read again but the rows before it are not. Invariant: at every commit each row below the position is in
//! `ROWS` (or superseded there), or in `HELD`.
//! Never: showing a row before its writer's closing.

use super::bytes::{self, Newest, RowValue, space};
use super::part::{BucketState, Shown};
use super::pending::{self, Held, PendingRows};
use super::{Applied, Error, Options, Result, write};
use crate::BucketId;
use crate::bucket::row_hash;
use crate::cursor::hash_of;
use crate::record::{self, RecordError, ViewRecord};
use event_log::{Millis, Offset, RecordRef};
use state_store::{Batch, Direction, KeyRange, Store};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::RwLock;

/// What only the applying thread knows of a partition.
pub struct Apply {
    partition: i32,
    pub(super) held: PendingRows,
    /// Where the partition stands has changed without a batch.
    pub(super) meta_dirty: bool,
    /// A batch has begun and not ended. After an error or a panic `held` is ahead of the store: rows were taken out, or
    /// marked as stored, for a commit that never happened. Whatever is committed from it after that would lose them.
    pub(super) unfinished: bool,
}

/// Reads back where a partition stood.
pub fn load(store: &dyn Store, partition: i32, options: &Options) -> Result<(Apply, Shown)> {
    let mut shown = Shown {
        position: 0,
        closed: -1,
        as_of: options.now,
        current_ms: Millis::MIN / 2,
        end: None,
        mid_closing: false,
        held: None,
        buckets: HashMap::new(),
        stale: BTreeSet::new(),
        stale_changed: -1,
    };
    if let Some(meta) = store.get(space::META, &bytes::meta_key(partition))? {
        let meta: Meta = serde_json::from_slice(&meta).map_err(|e| Error::Foreign(format!("its meta: {e}")))?;
        meta.show(&mut shown);
    }
    let (from, to) = bytes::part_range(partition);
    let mut damaged = false;
    store.scan(
        space::BUCKETS,
        KeyRange::new(&from, Some(&to)),
        Direction::Forward,
        &mut |key, value| {
            match (bytes::bucket_of(key), decode_bucket(value)) {
                (Some(id), Some(bucket)) => drop(shown.buckets.insert(id, bucket)),
                _ => damaged = true,
            }
            ControlFlow::Continue(())
        },
    )?;
    if damaged {
        return Err(Error::Foreign("a bucket entry is damaged".into()));
    }
    let held = PendingRows::load(store, partition, options.held_bytes_max)?;
    shown.refresh(&held);
    Ok((
        Apply {
            partition,
            held,
            meta_dirty: false,
            unfinished: false,
        },
        shown,
    ))
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Meta {
    position: Offset,
    closed: Offset,
    as_of: Millis,
    mid_closing: bool,
    stale: BTreeSet<(String, u64)>,
    stale_changed: Offset,
}

impl Meta {
    fn of(shown: &Shown) -> Self {
        Meta {
            position: shown.position,
            closed: shown.closed,
            as_of: shown.as_of,
            mid_closing: shown.mid_closing,
            stale: shown.stale.clone(),
            stale_changed: shown.stale_changed,
        }
    }

    fn show(self, shown: &mut Shown) {
        shown.position = self.position;
        shown.closed = self.closed;
        shown.as_of = self.as_of;
        shown.mid_closing = self.mid_closing;
        shown.stale = self.stale;
        shown.stale_changed = self.stale_changed;
    }
}

fn encode_bucket(bucket: &BucketState) -> Vec<u8> {
    let mut out = bucket.changed.to_be_bytes().to_vec();
    out.extend_from_slice(&bucket.rows.to_be_bytes());
    out.extend_from_slice(&bucket.hash.to_be_bytes());
    out.extend_from_slice(bucket.name.as_bytes());
    out
}

fn decode_bucket(value: &[u8]) -> Option<BucketState> {
    let (changed, rest) = value.split_first_chunk::<8>()?;
    let (rows, rest) = rest.split_first_chunk::<8>()?;
    let (hash, name) = rest.split_first_chunk::<16>()?;
    Some(BucketState {
        name: std::str::from_utf8(name).ok()?.into(),
        changed: i64::from_be_bytes(*changed),
        rows: u64::from_be_bytes(*rows),
        hash: u128::from_be_bytes(*hash),
    })
}

/// Changes on their way into the store and into what is shown.
struct Work<'a> {
    apply: &'a mut Apply,
    store: &'a dyn Store,
    shown: &'a RwLock<Shown>,
    position: Offset,
    closed: Offset,
    as_of: Millis,
    current_ms: Millis,
    end: Option<Offset>,
    mid_closing: bool,
    rows: BTreeMap<(BucketId, Offset), Option<Vec<u8>>>,
    tombstones: Vec<(Millis, BucketId, Offset)>,
    index: HashMap<Vec<u8>, Newest>,
    buckets: HashMap<BucketId, BucketState>,
    held_gone: Vec<(u64, Offset)>,
    stale: Vec<((String, u64), bool, Offset)>,
    staged_bytes: usize,
    touched: HashSet<BucketId>,
    flush_bytes: usize,
}

/// Applies records; see [`super::Replica::apply`].
pub fn apply<'r>(
    apply: &mut Apply,
    store: &dyn Store,
    options: &Options,
    shown: &RwLock<Shown>,
    records: impl Iterator<Item = RecordRef<'r>>,
    now: Millis,
) -> Result<Applied> {
    let partition = apply.partition;
    let mut work = Work::new(apply, store, shown, options.flush_bytes);
    let mut applied = Applied::default();
    let young = now - options.times.compaction_lag_ms / 2;
    for record in records {
        let (offset, time) = (record.offset(), record.timestamp());
        if offset < work.position {
            continue;
        }
        if time <= young {
            work.end = None;
        }
        match record::parse(&record) {
            Ok(ViewRecord::TransactionEnd { writer, at_ms }) => {
                work.position = offset;
                work.close(hash_of(&[&writer]), offset)?;
                work.closed = offset;
                applied.closed_at_ms = Some(at_ms).filter(|at| *at > 0);
            }
            Ok(held) => {
                let writer = hash_of(&[writer_of(&held)]);
                work.apply.held.push(writer, offset, time, &held);
            }
            Err(source @ RecordError::Newer { .. }) => {
                return Err(Error::Record {
                    partition,
                    offset,
                    source,
                });
            }
            Err(source) => {
                applied.refused += 1;
                tracing::warn!(partition, offset, reason = %source, "a record of view.log cannot be read; passed over");
            }
        }
        work.position = offset + 1;
        work.as_of = work.as_of.max(time);
        work.current_ms = work.current_ms.max(time);
        applied.need_end = work.end.is_none() && time > young;
    }
    work.flush()?;
    work.apply.held.spill(options.held_bytes_max);
    applied.buckets = work.touched.into_iter().collect();
    Ok(applied)
}

fn writer_of<'a>(record: &'a ViewRecord<'_>) -> &'a str {
    match record {
        ViewRecord::Row(row) => &row.writer,
        ViewRecord::TransactionEnd { writer, .. }
        | ViewRecord::Open { writer }
        | ViewRecord::Stale { writer, .. }
        | ViewRecord::Grant { writer } => writer,
    }
}

impl<'a> Work<'a> {
    fn new(apply: &'a mut Apply, store: &'a dyn Store, shown: &'a RwLock<Shown>, flush_bytes: usize) -> Self {
        let now = super::read(shown);
        let (position, closed, as_of, current_ms, end) = (now.position, now.closed, now.as_of, now.current_ms, now.end);
        drop(now);
        Work {
            apply,
            store,
            shown,
            position,
            closed,
            as_of,
            current_ms,
            end,
            mid_closing: false,
            rows: BTreeMap::new(),
            tombstones: Vec::new(),
            index: HashMap::new(),
            buckets: HashMap::new(),
            held_gone: Vec::new(),
            stale: Vec::new(),
            staged_bytes: 0,
            touched: HashSet::new(),
            flush_bytes,
        }
    }

    /// Shows everything that a writer has before the closing at `closing`, in pieces if it is large.
    fn close(&mut self, writer: u64, closing: Offset) -> Result<()> {
        if self.staged_bytes > 0 && self.staged_bytes + self.apply.held.bytes_of(writer) > self.flush_bytes {
            // Commit the closings before this one first: polls are refused between two pieces, but not between closings.
            self.flush()?;
        }
        let partition = self.apply.partition;
        loop {
            // Rows leave `held` only with the piece that shows them. `flush` stores what is left there, so a crash after
            // any piece finds the remaining rows in the store. No estimate of the closing's size can replace this: the
            // size of spilled rows is unknown, and a staged row is larger than a held one.
            let held = &mut self.apply.held;
            let piece = held.take_piece(self.store, partition, writer, self.flush_bytes / 2)?;
            if piece.is_empty() {
                return Ok(());
            }
            for row in &piece {
                if row.stored {
                    self.held_gone.push((writer, row.offset));
                }
                self.show(writer, row.offset, &row.value, closing)?;
            }
            if self.staged_bytes > self.flush_bytes && self.apply.held.holds(writer) {
                self.flush_mid_closing()?;
            }
        }
    }

    fn flush_mid_closing(&mut self) -> Result<()> {
        failpoint::hit("replica.mid_closing");
        self.mid_closing = true;
        let done = self.flush();
        self.mid_closing = false;
        done
    }

    fn show(&mut self, writer: u64, offset: Offset, value: &[u8], closing: Offset) -> Result<()> {
        match pending::decode(value)? {
            Held::Mark => {}
            Held::Stale { view, stale } => self.stale.push(((view.to_owned(), writer), stale, closing)),
            Held::Row { bucket, row } => self.show_row(offset, bucket, &RowValue { closed: closing, ..row })?,
        }
        Ok(())
    }

    fn show_row(&mut self, offset: Offset, name: &str, row: &RowValue<'_>) -> Result<()> {
        let id = BucketId::of(name);
        let partition = self.apply.partition;
        let index_key = bytes::index_key(partition, id, row.view, row.key);
        let newest = match self.index.get(&index_key) {
            Some(newest) => Some(*newest),
            None => match self.store.get(space::INDEX, &index_key)? {
                Some(found) => Some(Newest::from_bytes(&found)?),
                None => None,
            },
        };
        if newest.is_some_and(|n| n.offset >= offset) {
            return Ok(());
        }
        let bucket = self.bucket(id, name);
        if *bucket.name != *name {
            tracing::error!(bucket = name, other = %bucket.name, "two bucket names have one id; this row is not shown");
            return Ok(());
        }
        bucket.changed = bucket.changed.max(row.closed);
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
            self.tombstones.push((row.time, id, offset));
        }
        if let Some(old) = newest {
            self.supersede(id, old.offset);
        }
        let value = bytes::put_row(row);
        self.staged_bytes += value.len() + index_key.len() + 64;
        self.rows.insert((id, offset), Some(value));
        self.index.insert(
            index_key,
            Newest {
                offset,
                live: row.json.is_some(),
                version: row.version,
            },
        );
        self.touched.insert(id);
        Ok(())
    }

    fn supersede(&mut self, bucket: BucketId, offset: Offset) {
        // A row staged in this very batch never needs to be written at all.
        if self.rows.remove(&(bucket, offset)).is_none() {
            self.rows.insert((bucket, offset), None);
        }
    }

    fn bucket(&mut self, id: BucketId, name: &str) -> &mut BucketState {
        let shown = self.shown;
        self.buckets.entry(id).or_insert_with(|| {
            let known = super::read(shown).buckets.get(&id).cloned();
            known.unwrap_or_else(|| BucketState {
                name: name.into(),
                changed: -1,
                rows: 0,
                hash: 0,
            })
        })
    }

    /// Commits what is staged, and shows it in the same instant.
    fn flush(&mut self) -> Result<()> {
        let partition = self.apply.partition;
        let mut batch = Batch::default();
        for ((bucket, offset), value) in std::mem::take(&mut self.rows) {
            let key = bytes::row_key(partition, bucket, offset);
            match value {
                Some(value) => batch.put(space::ROWS, key, value),
                None => batch.delete(space::ROWS, key),
            }
        }
        for (time, bucket, offset) in self.tombstones.drain(..) {
            batch.put(
                space::TOMBSTONES,
                bytes::tombstone_key(partition, time, bucket, offset),
                Vec::new(),
            );
        }
        for (key, newest) in self.index.drain() {
            batch.put(space::INDEX, key, newest.to_bytes());
        }
        for (id, bucket) in &self.buckets {
            batch.put(space::BUCKETS, bytes::bucket_key(partition, *id), encode_bucket(bucket));
        }
        for (writer, offset) in self.held_gone.drain(..) {
            batch.delete(space::HELD, bytes::held_key(partition, writer, offset));
        }
        // Also between two pieces: the position is past every held row, so a row that only memory has would be lost.
        self.apply.held.stage(partition, &mut batch);
        self.staged_bytes = 0;
        let mut shown = write(self.shown);
        let mut meta = Meta::of(&shown);
        for (view, stale, closing) in self.stale.drain(..) {
            let changed = if stale {
                meta.stale.insert(view)
            } else {
                meta.stale.remove(&view)
            };
            if changed {
                meta.stale_changed = closing;
            }
        }
        meta.position = self.position;
        meta.closed = self.closed;
        meta.as_of = self.as_of;
        meta.mid_closing = self.mid_closing;
        put_meta(&mut batch, partition, &meta);
        failpoint::hit("replica.before_commit");
        self.store.commit(batch)?;
        failpoint::hit("replica.after_commit");
        // Not before the commit: if it fails, polls must not see a T or a position whose rows are not in the store.
        meta.show(&mut shown);
        shown.current_ms = shown.current_ms.max(self.current_ms);
        shown.end = self.end;
        shown.buckets.extend(self.buckets.drain());
        shown.refresh(&self.apply.held);
        self.apply.meta_dirty = false;
        Ok(())
    }
}

fn put_meta(batch: &mut Batch, partition: i32, meta: &Meta) {
    let meta = serde_json::to_vec(meta).expect("numbers and texts always have a JSON form");
    batch.put(space::META, bytes::meta_key(partition), meta);
}

/// Removes old tombstones; see [`super::Replica::prune`].
pub fn prune(
    apply: &mut Apply,
    store: &dyn Store,
    options: &Options,
    shown: &RwLock<Shown>,
    (partition, now, max): (i32, Millis, usize),
) -> Result<usize> {
    let (from, to) = bytes::tombstone_range(partition, now - options.times.horizon_ms());
    let mut old = Vec::new();
    store.scan(
        space::TOMBSTONES,
        KeyRange::new(&from, Some(&to)),
        Direction::Forward,
        &mut |key, _| {
            old.push(key.to_vec());
            if old.len() < max {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        },
    )?;
    let mut batch = Batch::default();
    for key in &old {
        batch.delete(space::TOMBSTONES, key.clone());
        let Some((bucket, offset)) = bytes::tombstone_place(key) else {
            continue;
        };
        let row_key = bytes::row_key(partition, bucket, offset);
        // A row that was written again since has another offset: then only the mark of its old tombstone goes.
        let Some(value) = store.get(space::ROWS, &row_key)? else {
            continue;
        };
        if let Some(row) = bytes::row_value(&value) {
            batch.delete(space::INDEX, bytes::index_key(partition, bucket, row.view, row.key));
        }
        batch.delete(space::ROWS, row_key);
    }
    let shown = write(shown);
    if old.is_empty() && !apply.meta_dirty {
        return Ok(0);
    }
    put_meta(&mut batch, partition, &Meta::of(&shown));
    store.commit(batch)?;
    apply.meta_dirty = false;
    Ok(old.len())
}
