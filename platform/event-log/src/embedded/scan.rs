//! Scans of a partition's blocks for readers and for lookups by time.
//!
//! The cleaner replaces and removes blocks while a scan runs. Every offset of a partition is in the range of a block
//! unless retention or compaction removed the block. So a gap between two blocks has one of these causes: retention,
//! compaction, a store that showed only a part of a batch to the scan, or lost records. A gap without a known cause is
//! scanned a second time and then reported as an error: a reader that skipped it would commit an offset beyond records
//! that it never saw.

use super::backing::Space;
use super::block::Block;
use super::broker::Broker;
use super::format::{self, PartId};
use crate::{Error, Offset, Result};
use std::ops::{ControlFlow, Range};

/// Progress of the scans of one lookup.
struct Progress {
    /// The first offset after the visited blocks.
    next: Offset,
    to: Offset,
    /// Where the previous scan found a gap without a known cause.
    suspect: Option<Offset>,
    /// Last known value of the partition's `thinned`. It only increases, so most gaps of a compacted partition need no
    /// lock.
    thinned: Offset,
}

/// Result of a scan.
enum Scanned {
    /// The visitor stopped the scan, or the scan reached the end.
    Done,
    /// The block with the first offset was merged into an earlier one after it was looked up.
    Moved,
    /// No block contains these offsets, and no cause is known.
    Gap(Range<Offset>),
}

impl Broker {
    /// Visits the blocks of a range of offsets, in order, starting with the block that contains the first offset. After
    /// a second scan, the visitor may get a merged block that begins with offsets that were already visited.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if blocks are missing that neither retention nor compaction removed.
    pub fn blocks_holding(
        &self,
        id: PartId,
        offsets: Range<Offset>,
        visit: &mut dyn FnMut(Block) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut progress = Progress {
            next: offsets.start,
            to: offsets.end,
            suspect: None,
            thinned: 0,
        };
        loop {
            match self.scan_from_holder(id, &mut progress, visit)? {
                Scanned::Done => return Ok(()),
                Scanned::Moved => {}
                Scanned::Gap(gap) if progress.suspect == Some(gap.start) => {
                    // Retention may have removed these blocks in a batch whose outcome is unknown.
                    self.check_outcomes_known("read: the outcome of an earlier batch is unknown; open the log again")?;
                    return Err(self.missing(id, &gap));
                }
                // If blocks were merged during a scan without a snapshot, the block before the gap now contains them.
                Scanned::Gap(gap) => progress.suspect = Some(gap.start),
            }
        }
    }

    fn scan_from_holder(
        &self,
        id: PartId,
        progress: &mut Progress,
        visit: &mut dyn FnMut(Block) -> Result<ControlFlow<()>>,
    ) -> Result<Scanned> {
        let [least, next, to] = [0, progress.next, progress.to].map(|offset| format::block_key(id, offset));
        if next >= to {
            return Ok(Scanned::Done);
        }
        let found = self.backing.last(Space::Records, &least, &next)?;
        let holder = found.map(|(key, _)| key);
        let (mut awaited, mut ended) = (holder.as_deref(), None);
        let from = holder.as_deref().unwrap_or(&next);
        self.backing.scan(Space::Records, from, &to, &mut |key, value| {
            let scanned = match awaited.take() {
                Some(holder) if holder != key => Ok(Some(Scanned::Moved)),
                _ => format::block_base(key)
                    .and_then(|base| Block::parse(base, value))
                    .and_then(|block| self.pass(id, progress, block, visit)),
            };
            ended = scanned.transpose();
            match ended {
                None => ControlFlow::Continue(()),
                Some(_) => ControlFlow::Break(()),
            }
        })?;
        match ended {
            Some(ended) => ended,
            None if awaited.is_some() => Ok(Scanned::Moved),
            None => Ok(self.gap(id, progress, progress.to).map_or(Scanned::Done, Scanned::Gap)),
        }
    }

    /// Passes a block to the visitor if it directly follows the previous block. Returns a result if the scan ends here.
    fn pass(
        &self,
        id: PartId,
        progress: &mut Progress,
        block: Block,
        visit: &mut dyn FnMut(Block) -> Result<ControlFlow<()>>,
    ) -> Result<Option<Scanned>> {
        if block.next() <= progress.next {
            return Ok(None);
        }
        if let Some(gap) = self.gap(id, progress, block.base) {
            return Ok(Some(Scanned::Gap(gap)));
        }
        progress.next = block.next();
        Ok(visit(block)?.is_break().then_some(Scanned::Done))
    }

    /// Returns the offsets between the last visited block and `to`, if no cause is known for the gap.
    fn gap(&self, id: PartId, progress: &mut Progress, to: Offset) -> Option<Range<Offset>> {
        if to <= progress.next.max(progress.thinned) {
            return None;
        }
        // The cause is published before the blocks are removed, so it must be looked up after the gap was found.
        let state = self.state();
        // The topic was deleted. The reader notices that when it next uses the state.
        let part = state.parts.get(&id)?;
        progress.thinned = part.thinned;
        (to > part.start.max(part.thinned)).then_some(progress.next..to)
    }

    fn missing(&self, id: PartId, gap: &Range<Offset>) -> Error {
        let name = self.state().name(id);
        Error::Corrupt {
            place: name.map_or_else(|| "a deleted topic".to_owned(), |at| at.to_string()),
            reason: format!(
                "offsets {} to {} are missing although neither retention nor compaction removed them; restore the log's \
                 directory from a backup, or move its consumers to offset {}",
                gap.start,
                gap.end - 1,
                gap.end
            ),
        }
    }
}
