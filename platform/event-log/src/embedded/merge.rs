//! Small blocks become larger ones: what many small commits left, and what compaction thinned.
//!
//! A transaction of one record is two blocks, its record's and its marker's. Between two entries of a partition's index
//! there are about 256 KiB of them, thousands of blocks; they are made one, once. What stands behind the last entry is left
//! as it is, and so are records of aborted transactions with their markers, whose place must be known, and blocks whose
//! tombstones or markers wait for their time. Where records are removed by age, a block spans a small part of that age
//! only, as it goes as a whole.
//!
//! Guarantees: readers see no difference, wherever they are; a process that dies in between leaves each stretch old or new.
//! Never: work under the writer's lock but one step's batch; a change at or behind the stable offset.

use super::block::{Block, Marker, Merge};
use super::broker::Broker;
use super::format::PartId;
use super::settings::Rules;
use super::state::Change;
use super::topics::REMOVED_AT_ONCE;
use super::write::INDEX_BYTES;
use crate::{Millis, Offset, Result};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Bytes that one step looks at, at most one block more.
const STEP_BYTES: u64 = 2 * 1024 * 1024;
/// A block of that size is large enough.
const LARGE_BYTES: u64 = 64 * 1024;
/// The part of the age at which records are removed that one block may span.
const SPAN: Millis = 64;

/// Marks that one step looks up to.
const MARKS_MAX: usize = 256;

/// What is looked at.
struct Stretch {
    from: Offset,
    upto: Offset,
    /// Places in between that no block may span, in order: index entries, and the end of what was compacted. A block need
    /// not begin there: compaction may have removed it.
    marks: Vec<Offset>,
    aborted: Arc<BTreeMap<u64, Offset>>,
    span_ms: Millis,
}

/// The blocks that were taken together since the last that was not, and what becomes of those before.
struct Gather {
    open: Option<Merge>,
    change: Change,
    seen: u64,
    /// Up to where everything is as it should be after the change.
    done: Offset,
}

impl Broker {
    /// Merges what is small in a partition, as far as it was not looked at before.
    pub fn merge(&self, id: PartId, rules: &Rules) -> Result<()> {
        while let Some(stretch) = self.stretch(id, rules) {
            let (change, done) = self.gather(id, &stretch)?;
            if !self.apply(id, &change, |cleaned| cleaned.merged = done)? || self.stops() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn stretch(&self, id: PartId, rules: &Rules) -> Option<Stretch> {
        let state = self.state();
        let part = state.parts.get(&id)?;
        let from = part.cleaned.merged.max(part.start);
        // What compaction has not reached is read by it block by block.
        let reached = if rules.compacts { part.cleaned.next } else { Offset::MAX };
        let limit = part.stable().min(reached);
        let first = part.index.partition_point(|entry| entry.offset <= from);
        let index = part.index.range(first..).map(|entry| entry.offset);
        let mut marks: Vec<Offset> = index.take_while(|offset| *offset <= limit).take(MARKS_MAX).collect();
        let upto = marks.pop()?;
        // A pass of compaction begins there, also where the topic was not compacted for a while.
        let cleaned = part.cleaned.next;
        if (from + 1..upto).contains(&cleaned) {
            marks.insert(marks.partition_point(|mark| *mark < cleaned), cleaned);
        }
        Some(Stretch {
            from,
            upto,
            marks,
            aborted: part.aborted.clone(),
            span_ms: match rules.deletes && rules.retention_ms >= 0 {
                true => rules.retention_ms / SPAN,
                false => Millis::MAX,
            },
        })
    }

    fn gather(&self, id: PartId, stretch: &Stretch) -> Result<(Change, Offset)> {
        let mut gather = Gather {
            open: None,
            change: Change::default(),
            seen: 0,
            done: stretch.from,
        };
        let mut marks = stretch.marks.iter().copied().peekable();
        let more = self.blocks(id, stretch.from, stretch.upto, &mut |block| {
            let passed = std::iter::from_fn(|| marks.next_if(|mark| *mark <= block.base)).last();
            if let Some(mark) = passed {
                gather.close();
                gather.done = mark;
                // Only between two marks is a step at an end, so that what is one stretch becomes one block.
                if gather.seen >= STEP_BYTES || gather.change.blocks.len() >= REMOVED_AT_ONCE {
                    return Ok(ControlFlow::Break(()));
                }
            }
            gather.seen += block.size();
            gather.add(&block, stretch)?;
            Ok(ControlFlow::Continue(()))
        })?;
        if !more {
            gather.close();
            gather.done = stretch.upto;
        }
        Ok((gather.change, gather.done))
    }
}

impl Gather {
    fn add(&mut self, block: &Block, stretch: &Stretch) -> Result<()> {
        let head = &block.head;
        let stays = head.horizon.is_some()
            || head.control == Some(Marker::Abort)
            || stretch.aborted.contains_key(&head.transaction)
            || block.size() >= LARGE_BYTES;
        if stays {
            self.close();
            return Ok(());
        }
        let fits = |open: &Merge| {
            let since = open
                .begins()
                .map_or(0, |begins| head.max_timestamp.saturating_sub(begins).abs());
            open.size < INDEX_BYTES && open.takes(block) && since <= stretch.span_ms
        };
        if !self.open.as_ref().is_some_and(fits) {
            self.close();
        }
        self.open.get_or_insert_with(|| Merge::at(block.base)).add(block)
    }

    /// Takes what was gathered as one block, if it is worth it.
    fn close(&mut self) {
        let Some(merge) = self.open.take().filter(|merge| merge.blocks.len() > 1) else {
            return;
        };
        let (blocks, size) = (merge.blocks.clone(), merge.size);
        let one = merge.finish();
        // Two blocks of many tiny records may be smaller than one, whose offsets and times are further from its first.
        let Some(saved) = size.checked_sub(one.size()) else {
            return;
        };
        self.change.removed_bytes += saved;
        self.change.blocks.extend(blocks.into_iter().map(|base| (base, None)));
        self.change.blocks.insert(one.base, Some(one));
    }
}
