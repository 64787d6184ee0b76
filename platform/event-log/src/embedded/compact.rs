//! Compaction: of each key only the newest committed record stays, with its offset, timestamp and headers.
//!
//! A pass reads what is dirty into a map of keys (`keys`) and then goes through the partition from its start
//! (`sweep`): in one atomic batch after another it takes out what a newer record shadows, what an aborted transaction
//! wrote, tombstones and markers whose time is over, and what has no key. Dirty is what no pass has reached yet, below
//! the last stable offset, up to the first block with a record that is younger than `min.compaction.lag.ms`. A block
//! is what a segment is in Kafka, but there is no active one: all of it may be cleaned, as the partition's end is kept
//! by its index. A pass runs when the dirty part is more than `min.cleanable.dirty.ratio` of all, is older than
//! `max.compaction.lag.ms`, or when the time of a tombstone is over (Kafka waits for new records for that).
//!
//! Guarantees: memory for [`super::Config::cleaner_keys_max`] keys and one step; with more keys the dirty part is
//! cleaned in pieces. A process that dies in a pass leaves each block old or new; the next pass begins again, and a
//! tombstone never goes before what it deletes. A tombstone or a marker stays `delete.retention.ms` from the first pass
//! that reached it. Never: work under the writer's lock but one step's batch; a change at or behind the stable offset.

mod keys;
mod sweep;

use super::backing::{Space, Writes};
use super::block::{Block, Marker};
use super::broker::{Broker, lock};
use super::format::{self, Cleaned, IndexEntry, PartId};
use super::settings::Rules;
use super::state::{Change, Part};
use super::topics::REMOVED_AT_ONCE;
use super::write::INDEX_BYTES;
use crate::{Millis, Offset, Result};
use keys::Keys;
use std::collections::BTreeMap;
use std::iter::Rev;
use std::ops::ControlFlow;
use std::sync::Arc;
use sweep::{Sweep, Verdict};

/// Bytes that one step looks at, at most one block more.
const STEP_BYTES: u64 = 2 * 1024 * 1024;

/// What a pass has to do in one partition.
struct Job {
    id: PartId,
    start: Offset,
    /// The dirty part.
    dirty: Mark,
    upto: Mark,
    aborted: Arc<BTreeMap<u64, Offset>>,
}

/// A place in a partition, with the bytes ever written below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    offset: Offset,
    bytes: u64,
}

/// The keys of a piece of the dirty part, and where it ends.
struct Piece {
    keys: Keys,
    upto: Mark,
}

/// How far a sweep has come.
struct Walk {
    next: Offset,
    upto: Offset,
    /// Index entries ahead, and the bytes that were kept since the last one that was.
    index: Rev<std::vec::IntoIter<Offset>>,
    entry: Option<Offset>,
    kept_bytes: u64,
}

impl Walk {
    /// Drops the index entries up to here that stand too close to the one before.
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
    /// Compacts a partition as far as its settings want it at this time.
    pub fn compact(&self, id: PartId, rules: &Rules, now: Millis) -> Result<()> {
        let Some(job) = self.job(id, rules, now)? else {
            return Ok(());
        };
        let mut from = job.dirty;
        loop {
            let piece = self.piece(&job, from)?;
            let horizon = now.saturating_add(rules.delete_retention_ms);
            let mut sweep = Sweep::new(&piece.keys, &job.aborted, now, horizon);
            if !self.sweep(&job, &piece, &mut sweep)? || piece.upto.offset >= job.upto.offset {
                return Ok(());
            }
            from = piece.upto;
        }
    }

    /// What is to be done, if it is worth a pass.
    fn job(&self, id: PartId, rules: &Rules, now: Millis) -> Result<Option<Job>> {
        let old = match rules.min_compaction_lag_ms {
            0 => Millis::MAX,
            lag => now.saturating_sub(lag),
        };
        let (mut job, stable, end, cleaned, gone_bytes) = {
            let state = self.state();
            let Some(part) = state.parts.get(&id) else {
                return Ok(None);
            };
            let dirty = dirty(part);
            let known = part.index.iter().rev();
            let mut known = known.filter(|entry| entry.offset <= part.stable() && entry.max_timestamp <= old);
            let upto = known.next().filter(|entry| entry.offset > dirty.offset);
            let job = Job {
                id,
                start: part.start,
                dirty,
                upto: upto.map_or(dirty, |entry| Mark {
                    offset: entry.offset,
                    bytes: entry.bytes,
                }),
                aborted: part.aborted.clone(),
            };
            let end = Mark {
                offset: part.end,
                bytes: part.bytes,
            };
            (job, part.stable(), end, part.cleaned, part.gone_bytes())
        };
        if old == Millis::MAX && stable == end.offset {
            job.upto = end;
        }
        let mut young = false;
        let from = job.upto.offset;
        self.blocks(id, from, stable, &mut |block| {
            young = block.head.control.is_none() && block.head.max_timestamp > old;
            if young {
                return Ok(ControlFlow::Break(()));
            }
            job.upto = job.upto.behind(&block);
            Ok(ControlFlow::Continue(()))
        })?;
        if !young {
            job.upto.offset = job.upto.offset.max(stable);
        }
        let dirty_bytes = job.upto.bytes.saturating_sub(job.dirty.bytes);
        let all_bytes = job.upto.bytes.saturating_sub(gone_bytes);
        let is_dirty = job.upto.offset > job.dirty.offset;
        let wanted = cleaned.due <= now
            || (is_dirty && exceeds(dirty_bytes, all_bytes, rules.dirty_ratio_min))
            || (is_dirty && self.is_overdue(&job, rules, now)?);
        Ok(wanted.then_some(job))
    }

    /// Whether the first dirty record is older than the topic lets it be.
    fn is_overdue(&self, job: &Job, rules: &Rules, now: Millis) -> Result<bool> {
        if rules.max_compaction_lag_ms == Millis::MAX {
            return Ok(false);
        }
        let mut first = None;
        self.blocks(job.id, job.dirty.offset, job.upto.offset, &mut |block| {
            first = block.head.control.is_none().then_some(block.head.base_timestamp);
            Ok(match first {
                None => ControlFlow::Continue(()),
                Some(_) => ControlFlow::Break(()),
            })
        })?;
        Ok(first.is_some_and(|first| now.saturating_sub(first) > rules.max_compaction_lag_ms))
    }

    /// Reads keys of the dirty part until it ends or memory does.
    fn piece(&self, job: &Job, from: Mark) -> Result<Piece> {
        let mut keys = Keys::default();
        let mut upto = from;
        let mut more = true;
        while more && upto.offset < job.upto.offset {
            let (mut seen, mut full) = (0, false);
            more = self.blocks(job.id, upto.offset, job.upto.offset, &mut |block| {
                if block.head.control.is_none() && !job.aborted.contains_key(&block.head.transaction) {
                    for item in block.items() {
                        let item = item?;
                        if let Some(key) = item.key {
                            keys.put(key, item.offset);
                        }
                    }
                }
                upto = upto.behind(&block);
                seen += block.size();
                full = keys.len() >= self.cleaner_keys_max;
                Ok(match full || seen >= STEP_BYTES {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            })?;
            if full || self.stops() {
                return Ok(Piece { keys, upto });
            }
        }
        Ok(Piece { keys, upto: job.upto })
    }

    /// Goes through a partition up to the end of a piece; says whether there is reason to go on.
    fn sweep(&self, job: &Job, piece: &Piece, sweep: &mut Sweep<'_>) -> Result<bool> {
        let upto = piece.upto.offset;
        let index: Vec<Offset> = match self.state().parts.get_mut(&job.id) {
            Some(part) => {
                // Before the first block goes, as readers take a gap above it for a loss.
                part.thinned = part.thinned.max(upto);
                // The last one stays: what stands behind it was never compacted, so that the end is found from there.
                let index = part.index.iter().rev().skip(1).map(|e| e.offset);
                index.filter(|e| *e < upto).collect()
            }
            None => return Ok(false),
        };
        let mut index = index.into_iter().rev();
        let mut walk = Walk {
            next: job.start,
            upto,
            entry: index.next(),
            index,
            kept_bytes: 0,
        };
        while walk.next < upto {
            self.expire()?;
            let change = self.step(job.id, sweep, &mut walk)?;
            // A pass that does not finish is due again. That also records that this partition has gaps: its topic may no
            // longer be compacted when the log is opened next.
            let due_again = |cleaned: &mut Cleaned| cleaned.due = cleaned.due.min(sweep.now);
            if !change.is_empty() && !self.apply(job.id, &change, due_again)? {
                return Ok(false);
            }
            if self.stops() {
                return Ok(false);
            }
        }
        let due = sweep.due;
        self.apply(job.id, &Change::default(), |cleaned| {
            (cleaned.next, cleaned.next_bytes, cleaned.due) = (upto, piece.upto.bytes, due);
            // What is left may be small.
            cleaned.merged = 0;
        })
    }

    /// Whether the log is being closed: the next opening cleans again.
    pub(super) fn stops(&self) -> bool {
        lock(&self.janitor.0).stop
    }

    /// Judges the next blocks.
    fn step(&self, id: PartId, sweep: &mut Sweep<'_>, walk: &mut Walk) -> Result<Change> {
        let mut change = Change::default();
        let (mut seen, from, upto) = (0, walk.next, walk.upto);
        let more = self.blocks(id, from, upto, &mut |block| {
            walk.thin(block.base, &mut change);
            walk.next = block.next();
            seen += block.size();
            if block.head.control == Some(Marker::Abort) {
                // What it ended stands before it, and is gone with this step at the latest.
                change.aborted_dropped.push(block.head.transaction);
            }
            let kept = match sweep.judge(&block)? {
                Verdict::Keep => block.size(),
                Verdict::Replace(by) => {
                    let size = by.size();
                    change.removed_bytes += block.size() - size;
                    change.blocks.insert(block.base, Some(by));
                    size
                }
                Verdict::Remove => {
                    change.removed_bytes += block.size();
                    change.blocks.insert(block.base, None);
                    0
                }
            };
            walk.kept_bytes += kept;
            Ok(match seen < STEP_BYTES && change.blocks.len() < REMOVED_AT_ONCE {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
        })?;
        if !more {
            walk.thin(upto, &mut change);
            walk.next = upto;
        }
        Ok(change)
    }

    /// Makes a step's change durable and shows it; says whether the partition still exists.
    pub(super) fn apply(&self, id: PartId, change: &Change, progress: impl FnOnce(&mut Cleaned)) -> Result<bool> {
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
        progress(&mut record.cleaned);
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

    /// Visits the blocks whose base is in a range; says whether the visitor was given all of them.
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

impl Mark {
    fn behind(self, block: &Block) -> Mark {
        Mark {
            offset: block.next(),
            bytes: self.bytes + block.size(),
        }
    }
}

/// Where the dirty part of a partition begins.
fn dirty(part: &Part) -> Mark {
    if part.cleaned.next >= part.start {
        return Mark {
            offset: part.cleaned.next,
            bytes: part.cleaned.next_bytes,
        };
    }
    // Retention has passed by what was cleaned, so that both have removed only what is below the start.
    Mark {
        offset: part.start,
        bytes: part.gone_bytes(),
    }
}

/// The index entry that keeps the partition's end when what stands behind the last entry is changed.
fn end_entry(part: &Part, change: &Change) -> Option<IndexEntry> {
    let (last, _) = change.blocks.last_key_value()?;
    let known = part.index.back().is_some_and(|entry| entry.offset > *last);
    (!known).then(|| IndexEntry {
        offset: part.end,
        max_timestamp: part.max_timestamp.unwrap_or(Millis::MIN),
        bytes: part.bytes,
    })
}

/// Whether a part is more than this share of the whole.
fn exceeds(part: u64, whole: u64, share: f64) -> bool {
    // Both are brought into the 32 bits that a float holds.
    let shift = 32_u32.saturating_sub(whole.max(part).leading_zeros());
    let float = |bytes: u64| f64::from(u32::try_from(bytes >> shift).unwrap_or(u32::MAX));
    part > 0 && float(part) > share * float(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dirty_share_is_compared_as_kafka_does() {
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
