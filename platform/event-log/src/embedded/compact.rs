//! Compaction: for each key, only the newest committed record is kept, with its offset, timestamp and headers.
//!
//! A pass reads the keys of the dirty part into a map (`keys`) and then visits the partition from its start (`sweep`). In
//! a sequence of atomic batches it removes records with a newer record of the same key, records of aborted transactions,
//! records without a key, and tombstones and control records that have expired.
//!
//! The dirty part contains the offsets that no pass has visited yet. It ends at the last stable offset or before the
//! first block with a record younger than `min.compaction.lag.ms`. Kafka excludes its active segment; blocks need no
//! such exclusion, because the index contains the partition's end. A pass runs if the dirty part exceeds
//! `min.cleanable.dirty.ratio`, if it is older than `max.compaction.lag.ms`, or if a tombstone has expired (Kafka waits
//! for new records in that case).
//!
//! A tombstone or control record expires `delete.retention.ms` after the first pass that visited it (KIP-534), and
//! never before the records that it deletes. Memory is bounded by [`super::config::Config::cleaner_keys_max`] keys and
//! one step; with more keys the dirty part is cleaned in pieces. If the process is killed during a pass, each block is
//! either old or new, and the next pass starts from the beginning. The writer lock is held only for the batch of a
//! step.

mod keys;
mod sweep;

use super::backing::{Space, Writes};
use super::block::{Block, Marker};
use super::broker::{Broker, lock};
use super::format::{self, Cleaned, IndexEntry, PartId};
use super::settings::Rules;
use super::state::{Change, Part};
use super::topics::REMOVALS_MAX;
use super::write::INDEX_BYTES;
use crate::{Millis, Offset, Result};
use keys::Keys;
use std::collections::BTreeMap;
use std::iter::Rev;
use std::ops::ControlFlow;
use std::sync::Arc;
use sweep::{Decision, Sweep};

/// Bytes that one step visits, plus up to one block.
const STEP_BYTES: u64 = 2 * 1024 * 1024;

/// What a pass has to do in one partition.
struct Work {
    id: PartId,
    start: Offset,
    /// Bounds of the dirty part.
    dirty: Bound,
    upto: Bound,
    aborted: Arc<BTreeMap<u64, Offset>>,
}

/// An offset, and the number of bytes that were ever written below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    offset: Offset,
    bytes: u64,
}

/// Keys of a piece of the dirty part, and the end of that piece.
struct Piece {
    keys: Keys,
    upto: Bound,
}

/// Progress of a sweep.
struct Progress {
    next: Offset,
    upto: Offset,
    /// Remaining index entries, and the bytes kept since the last kept entry.
    index: Rev<std::vec::IntoIter<Offset>>,
    entry: Option<Offset>,
    kept_bytes: u64,
}

impl Progress {
    /// Drops index entries up to an offset if they are too close to the previous entry.
    fn thin(&mut self, here: Offset, change: &mut Change) {
        while let Some(entry) = self.entry.filter(|entry| *entry <= here) {
            match self.kept_bytes < INDEX_BYTES {
                true => change.index_dropped.push(entry),
                false => self.kept_bytes = 0,
            }
            self.entry = self.index.next();
        }
    }
}

impl Broker {
    /// Compacts a partition if its settings require it at this time.
    pub fn compact(&self, id: PartId, rules: &Rules, now: Millis) -> Result<()> {
        let Some(work) = self.work(id, rules, now)? else {
            return Ok(());
        };
        let mut from = work.dirty;
        loop {
            let piece = self.piece(&work, from)?;
            let horizon = now.saturating_add(rules.delete_retention_ms);
            let mut sweep = Sweep::new(&piece.keys, &work.aborted, now, horizon);
            if !self.sweep(&work, &piece, &mut sweep)? || piece.upto.offset >= work.upto.offset {
                return Ok(());
            }
            from = piece.upto;
        }
    }

    /// Returns what a pass has to do; `None` if no pass is due.
    fn work(&self, id: PartId, rules: &Rules, now: Millis) -> Result<Option<Work>> {
        let old = match rules.min_compaction_lag_ms {
            0 => Millis::MAX,
            lag => now.saturating_sub(lag),
        };
        let (mut work, stable, end, cleaned, gone_bytes) = {
            let state = self.state();
            let Some(part) = state.parts.get(&id) else {
                return Ok(None);
            };
            let dirty = dirty(part);
            let known = part.index.iter().rev();
            let mut known = known.filter(|entry| entry.offset <= part.stable() && entry.max_timestamp <= old);
            let upto = known.next().filter(|entry| entry.offset > dirty.offset);
            let work = Work {
                id,
                start: part.start,
                dirty,
                upto: upto.map_or(dirty, |entry| Bound {
                    offset: entry.offset,
                    bytes: entry.bytes,
                }),
                aborted: part.aborted.clone(),
            };
            let end = Bound {
                offset: part.end,
                bytes: part.bytes,
            };
            (work, part.stable(), end, part.cleaned, part.gone_bytes())
        };
        if old == Millis::MAX && stable == end.offset {
            work.upto = end;
        }
        let mut young = false;
        let from = work.upto.offset;
        self.blocks(id, from, stable, &mut |block| {
            young = block.head.control.is_none() && block.head.max_timestamp > old;
            if young {
                return Ok(ControlFlow::Break(()));
            }
            work.upto = work.upto.after(&block);
            Ok(ControlFlow::Continue(()))
        })?;
        if !young {
            work.upto.offset = work.upto.offset.max(stable);
        }
        let dirty_bytes = work.upto.bytes.saturating_sub(work.dirty.bytes);
        let all_bytes = work.upto.bytes.saturating_sub(gone_bytes);
        let is_dirty = work.upto.offset > work.dirty.offset;
        let wanted = cleaned.due <= now
            || (is_dirty && exceeds(dirty_bytes, all_bytes, rules.dirty_ratio_min))
            || (is_dirty && self.is_overdue(&work, rules, now)?);
        Ok(wanted.then_some(work))
    }

    /// Returns whether the first dirty record is older than `max.compaction.lag.ms`.
    fn is_overdue(&self, work: &Work, rules: &Rules, now: Millis) -> Result<bool> {
        if rules.max_compaction_lag_ms == Millis::MAX {
            return Ok(false);
        }
        let mut first = None;
        self.blocks(work.id, work.dirty.offset, work.upto.offset, &mut |block| {
            first = block.head.control.is_none().then_some(block.head.base_timestamp);
            Ok(match first {
                None => ControlFlow::Continue(()),
                Some(_) => ControlFlow::Break(()),
            })
        })?;
        Ok(first.is_some_and(|first| now.saturating_sub(first) > rules.max_compaction_lag_ms))
    }

    /// Reads the keys of the dirty part until it ends or the map is full.
    fn piece(&self, work: &Work, from: Bound) -> Result<Piece> {
        let mut keys = Keys::default();
        let mut upto = from;
        let mut more = true;
        while more && upto.offset < work.upto.offset {
            let (mut seen, mut full) = (0, false);
            more = self.blocks(work.id, upto.offset, work.upto.offset, &mut |block| {
                if block.head.control.is_none() && !work.aborted.contains_key(&block.head.transaction) {
                    for item in block.items() {
                        let item = item?;
                        if let Some(key) = item.key {
                            keys.put(key, item.offset);
                        }
                    }
                }
                upto = upto.after(&block);
                seen += block.size();
                full = keys.len() >= self.cleaner_keys_max;
                Ok(match full || seen >= STEP_BYTES {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            })?;
            if full || self.is_closing() {
                return Ok(Piece { keys, upto });
            }
        }
        Ok(Piece { keys, upto: work.upto })
    }

    /// Sweeps a partition up to the end of a piece. Returns whether the pass may continue.
    fn sweep(&self, work: &Work, piece: &Piece, sweep: &mut Sweep<'_>) -> Result<bool> {
        let upto = piece.upto.offset;
        let index: Vec<Offset> = match self.state().parts.get_mut(&work.id) {
            Some(part) => {
                // Set before the first block is removed, because a reader reports a gap at or above `thinned` as lost
                // records.
                part.thinned = part.thinned.max(upto);
                // The last entry is kept, because the log finds the partition's end from there when it is opened.
                let index = part.index.iter().rev().skip(1).map(|e| e.offset);
                index.filter(|e| *e < upto).collect()
            }
            None => return Ok(false),
        };
        let mut index = index.into_iter().rev();
        let mut progress = Progress {
            next: work.start,
            upto,
            entry: index.next(),
            index,
            kept_bytes: 0,
        };
        while progress.next < upto {
            self.expire()?;
            let change = self.step(work.id, sweep, &mut progress)?;
            // A due time makes an unfinished pass due again. It also shows that the partition has gaps, which matters
            // if the topic is no longer compacted when the log is opened again.
            let due_again = |cleaned: &mut Cleaned| cleaned.due = cleaned.due.min(sweep.now);
            if !change.is_empty() && !self.apply(work.id, &change, due_again)? {
                return Ok(false);
            }
            if self.is_closing() {
                return Ok(false);
            }
        }
        let due = sweep.due;
        self.apply(work.id, &Change::default(), |cleaned| {
            (cleaned.next, cleaned.next_bytes, cleaned.due) = (upto, piece.upto.bytes, due);
            // The remaining blocks may be small, so they are candidates for merging again.
            cleaned.merged = 0;
        })
    }

    /// Returns whether the log is being closed. The next start of the log begins a new pass.
    pub(super) fn is_closing(&self) -> bool {
        lock(&self.cleaner_thread.0).stop
    }

    /// Decides about the next blocks.
    fn step(&self, id: PartId, sweep: &mut Sweep<'_>, progress: &mut Progress) -> Result<Change> {
        let mut change = Change::default();
        let (mut seen, from, upto) = (0, progress.next, progress.upto);
        let more = self.blocks(id, from, upto, &mut |block| {
            progress.thin(block.base, &mut change);
            progress.next = block.next();
            seen += block.size();
            if block.head.control == Some(Marker::Abort) {
                // All records of this transaction precede its abort marker and are removed by this step or an earlier one.
                change.aborted_dropped.push(block.head.transaction);
            }
            let kept = match sweep.decide(&block)? {
                Decision::Keep => block.size(),
                Decision::Replace(by) => {
                    let size = by.size();
                    change.removed_bytes += block.size() - size;
                    change.blocks.insert(block.base, Some(by));
                    size
                }
                Decision::Remove => {
                    change.removed_bytes += block.size();
                    change.blocks.insert(block.base, None);
                    0
                }
            };
            progress.kept_bytes += kept;
            Ok(match seen < STEP_BYTES && change.blocks.len() < REMOVALS_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
        })?;
        if !more {
            progress.thin(upto, &mut change);
            progress.next = upto;
        }
        Ok(change)
    }

    /// Stores a step's change and publishes it. Returns whether the partition still exists.
    pub(super) fn apply(&self, id: PartId, change: &Change, update: impl FnOnce(&mut Cleaned)) -> Result<bool> {
        let _writer = self.writer();
        let mut writes = Writes::default();
        let (mut record, entry) = {
            let state = self.state();
            let Some(part) = state.parts.get(&id) else {
                return Ok(false);
            };
            for transaction in &change.aborted_dropped {
                if part.aborted.contains_key(transaction) {
                    writes.remove(Space::Meta, format::aborted_key(id, *transaction));
                }
            }
            (part.record(), end_entry(part, change))
        };
        record.cleaned.removed_bytes += change.removed_bytes;
        update(&mut record.cleaned);
        for (base, block) in &change.blocks {
            let key = format::block_key(id, *base);
            match block {
                Some(block) => writes.put(Space::Records, key, block.bytes.clone()),
                None => writes.remove(Space::Records, key),
            }
        }
        for offset in &change.index_dropped {
            writes.remove(Space::Meta, format::index_key(id, *offset));
        }
        if let Some(entry) = &entry {
            writes.put(Space::Meta, format::index_key(id, entry.offset), entry.encode());
        }
        let key = format::part_key(format::PARTITIONS, id);
        writes.put(Space::Meta, key, record.encode());
        self.store(&writes)?;
        self.state().compacted(id, change, record.cleaned, entry);
        Ok(true)
    }

    /// Visits the blocks whose base offset is in a range. Returns whether the visitor stopped before the end.
    pub(super) fn blocks(
        &self,
        id: PartId,
        from: Offset,
        to: Offset,
        visit: &mut dyn FnMut(Block) -> Result<ControlFlow<()>>,
    ) -> Result<bool> {
        if from >= to {
            return Ok(false);
        }
        let (from, to) = (format::block_key(id, from), format::block_key(id, to));
        let (mut failed, mut more) = (None, false);
        self.backing.scan(Space::Records, &from, &to, &mut |key, value| {
            let visited = format::block_base(key)
                .and_then(|base| Block::parse(base, value))
                .and_then(&mut *visit);
            match visited {
                Ok(ControlFlow::Continue(())) => return ControlFlow::Continue(()),
                Ok(ControlFlow::Break(())) => more = true,
                Err(error) => failed = Some(error),
            }
            ControlFlow::Break(())
        })?;
        failed.map_or(Ok(more), Err)
    }
}

impl Bound {
    fn after(self, block: &Block) -> Bound {
        Bound {
            offset: block.next(),
            bytes: self.bytes + block.size(),
        }
    }
}

/// Returns the start of the dirty part.
fn dirty(part: &Part) -> Bound {
    if part.cleaned.next >= part.start {
        return Bound {
            offset: part.cleaned.next,
            bytes: part.cleaned.next_bytes,
        };
    }
    // Retention has removed more than compaction has visited, so everything that either of them removed is below the
    // start.
    Bound {
        offset: part.start,
        bytes: part.gone_bytes(),
    }
}

/// Returns an index entry that preserves the partition's end if blocks after the last entry change.
fn end_entry(part: &Part, change: &Change) -> Option<IndexEntry> {
    let (last, _) = change.blocks.last_key_value()?;
    let known = part.index.back().is_some_and(|entry| entry.offset > *last);
    (!known).then(|| IndexEntry {
        offset: part.end,
        max_timestamp: part.max_timestamp.unwrap_or(Millis::MIN),
        bytes: part.bytes,
    })
}

/// Returns whether `part` exceeds this share of `whole`.
fn exceeds(part: u64, whole: u64, share: f64) -> bool {
    // Both are shifted to 32 bits, which f64 represents exactly.
    let shift = 32_u32.saturating_sub(whole.max(part).leading_zeros());
    let float = |bytes: u64| f64::from(u32::try_from(bytes >> shift).unwrap_or(u32::MAX));
    part > 0 && float(part) > share * float(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_ratio_is_compared_as_in_kafka() {
        let cases = [
            (0, 0, 0.0, false),
            (1, 100, 0.0, true),
            (50, 100, 0.5, false),
            (51, 100, 0.5, true),
            (100, 100, 1.0, false),
            (u64::MAX / 2, u64::MAX, 0.4, true),
            (u64::MAX / 2, u64::MAX, 0.6, false),
        ];
        for (part, whole, share, more) in cases {
            assert_eq!(exceeds(part, whole, share), more, "{part} of {whole}, {share}");
        }
    }
}
