//! Merging of small blocks, which small transactions and compaction leave behind.
//!
//! A transaction of one record writes two blocks, its record and its control record, so there can be thousands of
//! blocks between two index entries (about 256 KiB). Small blocks are merged once. Not merged are blocks after the last
//! index entry, records of aborted transactions and their abort markers, which readers must be able to recognize, and
//! blocks with tombstones or control records that have not expired. In topics with retention by age, a merged block
//! spans only a small part of the retention time, because a block is deleted as a whole.
//!
//! Readers see no difference at any position. If the process is killed during a pass, each range has either its old
//! blocks or the merged block. The writer lock is held only for the batch of a step.

use super::block::{Block, Marker, Merge};
use super::broker::Broker;
use super::format::PartId;
use super::settings::Rules;
use super::state::Change;
use super::topics::REMOVALS_MAX;
use super::write::INDEX_BYTES;
use crate::{Millis, Offset, Result};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Bytes that one step visits, plus up to one block.
const STEP_BYTES: u64 = 2 * 1024 * 1024;
/// Blocks of this size are not merged.
const LARGE_BYTES: u64 = 64 * 1024;
/// A merged block spans at most this fraction of `retention.ms`.
const SPAN_FRACTION: Millis = 64;

/// Maximum number of boundaries of one step.
const BOUNDARIES_MAX: usize = 256;

/// A range of blocks to merge.
struct MergeRange {
    from: Offset,
    upto: Offset,
    /// Offsets that no merged block may span, in order: index entries and the end of the compacted part. A boundary
    /// need not be the base offset of a block, because compaction may have removed that block.
    boundaries: Vec<Offset>,
    aborted: Arc<BTreeMap<u64, Offset>>,
    span_ms: Millis,
}

/// The blocks collected since the last block that remains unchanged, and the change so far.
struct Collector {
    open: Option<Merge>,
    change: Change,
    seen: u64,
    /// Everything below this offset is in its final state after the change.
    done: Offset,
}

impl Broker {
    /// Merges the small blocks of a partition that no earlier call has visited.
    pub fn merge(&self, id: PartId, rules: &Rules) -> Result<()> {
        while let Some(range) = self.range(id, rules) {
            let (change, done) = self.collect(id, &range)?;
            if !self.apply(id, &change, |cleaned| cleaned.merged = done)? || self.is_closing() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn range(&self, id: PartId, rules: &Rules) -> Option<MergeRange> {
        let state = self.state();
        let part = state.parts.get(&id)?;
        let from = part.cleaned.merged.max(part.start);
        // Blocks that compaction has not visited yet are not merged; compaction will rewrite them.
        let reached = if rules.compacts { part.cleaned.next } else { Offset::MAX };
        let limit = part.stable().min(reached);
        let first = part.index.partition_point(|entry| entry.offset <= from);
        let index = part.index.range(first..).map(|entry| entry.offset);
        let mut boundaries: Vec<Offset> = index
            .take_while(|offset| *offset <= limit)
            .take(BOUNDARIES_MAX)
            .collect();
        let upto = boundaries.pop()?;
        // Compaction continues from this offset, even if the topic was not compacted for a while.
        let cleaned = part.cleaned.next;
        if (from + 1..upto).contains(&cleaned) {
            boundaries.insert(boundaries.partition_point(|boundary| *boundary < cleaned), cleaned);
        }
        Some(MergeRange {
            from,
            upto,
            boundaries,
            aborted: part.aborted.clone(),
            span_ms: match rules.deletes && rules.retention_ms >= 0 {
                true => rules.retention_ms / SPAN_FRACTION,
                false => Millis::MAX,
            },
        })
    }

    fn collect(&self, id: PartId, range: &MergeRange) -> Result<(Change, Offset)> {
        let mut collector = Collector {
            open: None,
            change: Change::default(),
            seen: 0,
            done: range.from,
        };
        let mut boundaries = range.boundaries.iter().copied().peekable();
        let more = self.blocks(id, range.from, range.upto, &mut |block| {
            let passed = std::iter::from_fn(|| boundaries.next_if(|boundary| *boundary <= block.base)).last();
            if let Some(boundary) = passed {
                collector.close();
                collector.done = boundary;
                // A step ends at boundaries only, so that each range between two boundaries becomes as few blocks as
                // possible.
                if collector.seen >= STEP_BYTES || collector.change.blocks.len() >= REMOVALS_MAX {
                    return Ok(ControlFlow::Break(()));
                }
            }
            collector.seen += block.size();
            collector.add(&block, range)?;
            Ok(ControlFlow::Continue(()))
        })?;
        if !more {
            collector.close();
            collector.done = range.upto;
        }
        Ok((collector.change, collector.done))
    }
}

impl Collector {
    fn add(&mut self, block: &Block, range: &MergeRange) -> Result<()> {
        let head = &block.head;
        let stays = head.horizon.is_some()
            || head.control == Some(Marker::Abort)
            || range.aborted.contains_key(&head.transaction)
            || block.size() >= LARGE_BYTES;
        if stays {
            self.close();
            return Ok(());
        }
        let fits = |open: &Merge| {
            let since = open
                .begins()
                .map_or(0, |begins| head.max_timestamp.saturating_sub(begins).abs());
            open.size < INDEX_BYTES && open.takes(block) && since <= range.span_ms
        };
        if !self.open.as_ref().is_some_and(fits) {
            self.close();
        }
        self.open.get_or_insert_with(|| Merge::at(block.base)).add(block)
    }

    /// Replaces the collected blocks by a merged one if that is smaller.
    fn close(&mut self) {
        let Some(merge) = self.open.take().filter(|merge| merge.blocks.len() > 1) else {
            return;
        };
        let (blocks, size) = (merge.blocks.clone(), merge.size);
        let one = merge.finish();
        // The merged block can be larger: its records have larger offset and timestamp deltas.
        let Some(saved) = size.checked_sub(one.size()) else {
            return;
        };
        self.change.removed_bytes += saved;
        self.change.blocks.extend(blocks.into_iter().map(|base| (base, None)));
        self.change.blocks.insert(one.base, Some(one));
    }
}
