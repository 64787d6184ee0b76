//! Reading of partitions, for readers and group members.
//!
//! Records near the end of a partition come from the cache, older ones from the store, in the same blocks. A reader gets no
//! record above its end, no aborted record and no record twice. Records that retention removed are reported as out of
//! range. No lock is held while the store is read or blocks are parsed.

use super::block::{Block, Place, Sink, is_full};
use super::broker::Broker;
use super::format::PartId;
use super::signal::Signal;
use super::state::{Part, State, unknown};
use crate::{Error, Isolation, Millis, Offset, RecordBatch, Result, StartFrom, TopicPartition};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Upper limit of `max_bytes`: a batch cannot exceed 4 GiB.
const BATCH_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Read position in a partition.
pub(super) struct Cursor {
    pub at: TopicPartition,
    pub position: Offset,
    pub paused: bool,
    /// Whether a group member was given the error of this partition, which is not read until `start`.
    failed: bool,
    /// When the position last was at the end of the partition.
    pub at_end: Option<Millis>,
    part: PartId,
    place: Option<Place>,
}

/// The partitions of one reader.
pub(super) struct Fetcher {
    pub broker: Arc<Broker>,
    pub signal: Arc<Signal>,
    pub cursors: Vec<Cursor>,
    isolation: Isolation,
    /// Whether the error of a partition is returned only once.
    reports_once: bool,
    turn: usize,
}

/// Blocks to read next, and the aborted transactions among them.
struct Plan {
    blocks: Vec<Block>,
    limit: Offset,
    aborted: Arc<BTreeMap<u64, Offset>>,
    stored: bool,
}

fn out_of_range(cursor: &Cursor, part: &Part) -> Error {
    let (start, end) = (part.start, part.end);
    Error::OutOfRange {
        at: cursor.at.clone(),
        offset: cursor.position,
        start,
        end,
    }
}

impl Cursor {
    /// Returns the partition if the position is within it.
    fn within<'s>(&self, state: &'s State) -> Result<&'s Part> {
        let part = state.parts.get(&self.part).ok_or_else(|| unknown(&self.at.topic))?;
        match (part.start..=part.end).contains(&self.position) {
            true => Ok(part),
            false => Err(out_of_range(self, part)),
        }
    }

    /// Plans the next read; `None` if the position is at the end of the partition.
    fn plan(&self, state: &State, isolation: Isolation, bytes: usize) -> Result<Option<Plan>> {
        let part = self.within(state)?;
        let limit = part.limit(isolation);
        if self.position >= limit {
            return Ok(None);
        }
        let aborted = part.aborted.clone();
        let stored = part.tail.front().is_none_or(|block| block.base > self.position);
        let mut blocks = Vec::new();
        if !stored {
            let first = part.tail.partition_point(|block| block.next() <= self.position);
            let mut planned = 0;
            for block in part.tail.range(first..).take_while(|block| block.base < limit) {
                blocks.push(block.clone());
                planned += block.bytes.len();
                if planned >= bytes {
                    break;
                }
            }
        }
        Ok(Some(Plan {
            blocks,
            limit,
            aborted,
            stored,
        }))
    }
}

impl Fetcher {
    pub fn new(broker: Arc<Broker>, isolation: Isolation) -> Self {
        Fetcher {
            broker,
            signal: Arc::default(),
            cursors: Vec::new(),
            isolation,
            reports_once: false,
            turn: 0,
        }
    }

    /// Returns the fetcher of a group member, which returns the error of a partition once.
    pub fn reporting_once(mut self) -> Self {
        self.reports_once = true;
        self
    }

    /// Starts to read a partition, or sets another position in it.
    pub fn start(&mut self, at: &TopicPartition, from: StartFrom) -> Result<()> {
        let mut state = self.broker.state();
        let id = state.resolve(at)?;
        let part = state.parts.get_mut(&id).ok_or_else(|| unknown(&at.topic))?;
        let position = match from {
            StartFrom::Offset(offset) => offset,
            StartFrom::Earliest => part.start,
            StartFrom::LogEnd => part.limit(self.isolation),
        };
        let cursor = Cursor {
            at: at.clone(),
            position,
            paused: false,
            failed: false,
            at_end: None,
            part: id,
            place: None,
        };
        match self.cursors.iter_mut().find(|known| known.at == *at) {
            Some(known) if known.part == id => {
                *known = Cursor {
                    paused: known.paused,
                    ..cursor
                }
            }
            Some(known) => {
                part.listen(self.isolation, &self.signal);
                *known = cursor;
            }
            None => {
                part.listen(self.isolation, &self.signal);
                self.cursors.push(cursor);
            }
        }
        Ok(())
    }

    /// Stops reading these partitions.
    pub fn stop(&mut self, partitions: &[TopicPartition]) {
        let mut state = self.broker.state();
        self.cursors.retain(|cursor| {
            let stops = partitions.contains(&cursor.at);
            if stops && let Some(part) = state.parts.get_mut(&cursor.part) {
                part.unlisten(&self.signal);
            }
            !stops
        });
    }

    pub fn stop_all(&mut self) {
        let all: Vec<TopicPartition> = self.cursors.iter().map(|cursor| cursor.at.clone()).collect();
        self.stop(&all);
    }

    pub fn cursor(&self, at: &TopicPartition) -> Option<&Cursor> {
        self.cursors.iter().find(|cursor| cursor.at == *at)
    }

    pub fn cursor_mut(&mut self, at: &TopicPartition) -> Option<&mut Cursor> {
        self.cursors.iter_mut().find(|cursor| cursor.at == *at)
    }

    /// Adds available records to an empty batch.
    pub fn fill(&mut self, batch: &mut RecordBatch, max_bytes: usize) -> Result<()> {
        self.broker.expire()?;
        let now = self.broker.now();
        let max_bytes = max_bytes.min(BATCH_BYTES_MAX);
        let count = self.cursors.len();
        self.turn = self.turn.wrapping_add(1);
        for n in 0..count {
            if is_full(batch, max_bytes) {
                break;
            }
            let index = self.turn.wrapping_add(n) % count;
            let cursor = self.cursors.get_mut(index).expect("the index is below the count");
            if cursor.paused || cursor.failed {
                continue;
            }
            let read = Read {
                broker: &self.broker,
                isolation: self.isolation,
                max_bytes,
                now,
            };
            if let Err(error) = read.fill(cursor, batch) {
                if !batch.is_empty() {
                    // Returns the records that were read. The next call starts with this partition.
                    self.turn = self.turn.wrapping_add(n).wrapping_sub(1);
                    break;
                }
                let error = error.in_partition(&cursor.at, cursor.position);
                cursor.failed = self.reports_once && error.scope().is_some();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits until a partition has new records, `ready` returns true, or the time `until` is reached. Returns false in
    /// the last case.
    pub fn wait(
        &self,
        until: Instant,
        deadline: impl Fn(&State) -> Option<Millis>,
        ready: impl Fn(&State) -> bool,
    ) -> bool {
        let mut state = self.broker.state();
        loop {
            // A position outside the partition counts as ready, because the next read returns its error.
            let grown = |cursor: &Cursor| {
                let wakes = |part: &Part| {
                    cursor.position < part.limit(self.isolation) || !(part.start..=part.end).contains(&cursor.position)
                };
                !cursor.paused && !cursor.failed && state.parts.get(&cursor.part).is_none_or(wakes)
            };
            if ready(&state) || self.cursors.iter().any(grown) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let next = state.next_deadline().into_iter().chain(deadline(&state)).min();
            let due = next.map(|next| next.saturating_sub(self.broker.now()).max(1));
            let due = due
                .and_then(|ms| u64::try_from(ms).ok())
                .map_or(left, Duration::from_millis);
            state = self.signal.wait(state, left.min(due));
            if due < left {
                // A transaction or session may have timed out, which the caller checks.
                return true;
            }
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.stop_all();
    }
}

/// Options of reading one partition.
struct Read<'b> {
    broker: &'b Broker,
    isolation: Isolation,
    max_bytes: usize,
    now: Millis,
}

impl Read<'_> {
    /// Adds available records of a partition to the batch.
    fn fill(&self, cursor: &mut Cursor, batch: &mut RecordBatch) -> Result<()> {
        let mut index = None;
        loop {
            let wanted = self.max_bytes.saturating_sub(batch.byte_len());
            let Some(mut plan) = cursor.plan(&self.broker.state(), self.isolation, wanted)? else {
                cursor.at_end = Some(self.now);
                return Ok(());
            };
            if plan.stored {
                plan.blocks = stored(self.broker, cursor, plan.limit, wanted)?;
            } else if plan.blocks.is_empty() {
                // Compaction has removed all records up to the limit.
                (cursor.position, cursor.place) = (plan.limit, None);
            }
            let read_committed = self.isolation == Isolation::ReadCommitted;
            for block in plan.blocks {
                let aborted = read_committed && plan.aborted.contains_key(&block.head.transaction);
                if block.head.control.is_some() || aborted || block.is_over(cursor.position, cursor.place)? {
                    (cursor.position, cursor.place) = (block.next(), None);
                    continue;
                }
                if is_full(batch, self.max_bytes) {
                    return Ok(());
                }
                let partition = *index.get_or_insert_with(|| batch.intern(&cursor.at));
                let sink = Sink {
                    batch: &mut *batch,
                    partition,
                    max_bytes: self.max_bytes,
                };
                let (next, place) = block.read(cursor.position, cursor.place, sink)?;
                (cursor.position, cursor.place) = (next, place);
                if place.is_some() {
                    // The rest of this block must be read before the next one.
                    return Ok(());
                }
            }
            if is_full(batch, self.max_bytes) {
                return Ok(());
            }
        }
    }
}

/// Returns blocks from the store, starting with the one that contains the position.
fn stored(broker: &Broker, cursor: &mut Cursor, limit: Offset, wanted: usize) -> Result<Vec<Block>> {
    let (id, position) = (cursor.part, cursor.position);
    let (mut blocks, mut bytes): (Vec<Block>, usize) = (Vec::new(), 0);
    let scanned = broker.blocks_holding(id, position..limit, &mut |block| {
        bytes += block.bytes.len();
        blocks.push(block);
        Ok(match bytes >= wanted {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    });
    if blocks.is_empty() {
        // If blocks were read before the error, they are returned. The next read encounters the error again.
        scanned?;
    }
    let mut next = position;
    let joined = blocks.iter().take_while(|block| {
        let joins = block.base <= next;
        next = if joins { block.next() } else { next };
        joins
    });
    let joined = joined.count();
    if joined < blocks.len() || joined == 0 {
        let state = broker.state();
        if state.parts.get(&id).is_none_or(|part| next < part.start) {
            // Retention removed blocks during the scan. They must not be skipped: the next plan reports the position as
            // out of range.
            blocks.truncate(joined);
        } else if joined == 0 {
            // Compaction has removed all records up to the next block.
            (cursor.position, cursor.place) = (blocks.first().map_or(limit, |block| block.base), None);
        }
    }
    Ok(blocks)
}
