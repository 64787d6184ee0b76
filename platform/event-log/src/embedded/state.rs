//! What the embedded log knows without asking its store: topics, partitions' ends, open transactions, groups, and the
//! newest records.
//!
//! Everything here is published only after the store has it, so that no reader ever acts on a record that a crash
//! takes back. Guarantees: of a partition's blocks at or behind the first one in its cached tail none is missing there;
//! the cache stays within its bytes. Never: IO.

use super::block::Block;
use super::format::{Cleaned, IndexEntry, PartId, PartRecord};
use super::group::Group;
use super::settings::Rules;
use super::signal::Signal;
use crate::{Error, Isolation, Millis, Offset, Result, TopicPartition};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use uuid::Uuid;

/// Blocks that the cache holds at most, however small they are.
const CACHED_BLOCKS_MAX: usize = 65_536;
/// What a cached block costs beside its bytes.
const CACHED_BLOCK_BYTES: usize = 160;

/// A topic; replaced as a whole when it is altered.
#[derive(Debug)]
pub(super) struct Topic {
    pub number: u32,
    pub name: Arc<str>,
    pub id: Uuid,
    pub partitions: u32,
    /// The settings that were given.
    pub given: BTreeMap<String, String>,
    pub rules: Rules,
}

impl Topic {
    /// A partition of it by the trait's number.
    pub fn part(&self, partition: i32) -> Option<PartId> {
        let partition = u32::try_from(partition).ok().filter(|p| *p < self.partitions)?;
        Some(PartId {
            topic: self.number,
            partition,
        })
    }

    pub fn parts(&self) -> impl Iterator<Item = PartId> + use<> {
        let topic = self.number;
        (0..self.partitions).map(move |partition| PartId { topic, partition })
    }
}

/// Who waits for a partition to grow.
struct Listener {
    isolation: Isolation,
    signal: Arc<Signal>,
}

/// A partition.
#[derive(Default)]
pub(super) struct Part {
    /// First offset kept.
    pub start: Offset,
    /// Bytes that retention has removed, all below `start`.
    pub start_bytes: u64,
    pub cleaned: Cleaned,
    /// Compaction may have removed whole blocks below this offset. At or behind it, a gap between blocks that retention
    /// did not make is a loss.
    pub thinned: Offset,
    /// Offset of the next block.
    pub end: Offset,
    /// Bytes ever written.
    pub bytes: u64,
    /// Greatest timestamp ever written.
    pub max_timestamp: Option<Millis>,
    pub index: VecDeque<IndexEntry>,
    /// First offsets of open transactions.
    pub open: BTreeMap<Offset, u64>,
    /// Aborted transactions of which records may still be kept, with the offset of their marker. Copied on write:
    /// readers take it along.
    pub aborted: Arc<BTreeMap<u64, Offset>>,
    /// The newest blocks.
    pub tail: VecDeque<Block>,
    listeners: Vec<Listener>,
}

impl Part {
    /// What is kept of it beside its blocks.
    pub fn record(&self) -> PartRecord {
        PartRecord {
            start: self.start,
            start_bytes: self.start_bytes,
            cleaned: self.cleaned,
        }
    }

    /// Bytes of `bytes` that are no longer there.
    pub fn gone_bytes(&self) -> u64 {
        self.start_bytes + self.cleaned.removed_bytes
    }

    /// The last stable offset.
    pub fn stable(&self) -> Offset {
        self.open.first_key_value().map_or(self.end, |(first, _)| *first)
    }

    /// Where a reader's view ends.
    pub fn limit(&self, isolation: Isolation) -> Offset {
        match isolation {
            Isolation::ReadCommitted => self.stable(),
            Isolation::ReadUncommitted => self.end,
        }
    }

    pub fn listen(&mut self, isolation: Isolation, signal: &Arc<Signal>) {
        self.listeners.push(Listener {
            isolation,
            signal: signal.clone(),
        });
    }

    pub fn unlisten(&mut self, signal: &Arc<Signal>) {
        self.listeners.retain(|listener| !Arc::ptr_eq(&listener.signal, signal));
    }

    /// Wakes those whose view has grown.
    pub fn wake(&self, stable_before: Offset) {
        let stable = self.stable();
        for listener in &self.listeners {
            if listener.isolation == Isolation::ReadUncommitted || stable > stable_before {
                listener.signal.wake();
            }
        }
    }

    /// Wakes everybody: the partition is gone.
    pub fn wake_all(&self) {
        self.listeners.iter().for_each(|listener| listener.signal.wake());
    }
}

/// An open transaction's records in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Touched {
    pub first: Offset,
    /// The last record's offset, plus one.
    pub next: Offset,
    /// The last record's timestamp.
    pub timestamp: Millis,
}

/// A transaction that has written and is not decided.
#[derive(Debug)]
pub(super) struct OpenTransaction {
    pub transactional_id: String,
    pub deadline: Millis,
    pub parts: BTreeMap<PartId, Touched>,
}

/// The one live session of a transactional id.
#[derive(Debug)]
pub(super) struct ProducerState {
    pub epoch: u64,
    pub transaction: Option<u64>,
}

/// What one step of compaction or of merging changes in a partition.
#[derive(Default)]
pub(super) struct Change {
    /// Blocks by their base; `None` is removed.
    pub blocks: BTreeMap<Offset, Option<Block>>,
    pub removed_bytes: u64,
    /// Index entries that stand closer together than they need to, in order.
    pub index_dropped: Vec<Offset>,
    /// Aborted transactions of which nothing is left.
    pub aborted_dropped: Vec<u64>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.index_dropped.is_empty() && self.aborted_dropped.is_empty()
    }
}

/// Everything that is known.
#[derive(Default)]
pub(super) struct State {
    pub topics: BTreeMap<Arc<str>, Arc<Topic>>,
    pub names: HashMap<u32, Arc<str>>,
    pub parts: HashMap<PartId, Part>,
    pub groups: BTreeMap<String, Group>,
    pub producers: HashMap<String, ProducerState>,
    pub transactions: BTreeMap<u64, OpenTransaction>,
    /// Numbers given out: epochs and members.
    pub numbers: u64,
    /// The next transaction's number.
    pub next_transaction: u64,
    /// Which partition's oldest cached block goes next.
    cached: VecDeque<PartId>,
    cached_bytes: usize,
    cached_bytes_max: usize,
}

impl State {
    pub fn new(cached_bytes_max: usize) -> Self {
        State {
            cached_bytes_max,
            ..State::default()
        }
    }

    /// A number that was not given out before.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn topic(&self, name: &str) -> Result<&Arc<Topic>> {
        self.topics.get(name).ok_or_else(|| unknown(name))
    }

    /// Resolves a partition.
    pub fn resolve(&self, at: &TopicPartition) -> Result<PartId> {
        self.topic(&at.topic)?
            .part(at.partition)
            .ok_or_else(|| unknown(&at.to_string()))
    }

    pub fn part(&self, at: &TopicPartition) -> Result<&Part> {
        self.parts.get(&self.resolve(at)?).ok_or_else(|| unknown(&at.topic))
    }

    /// The name of a partition that exists.
    pub fn name(&self, part: PartId) -> Option<TopicPartition> {
        let topic = self.names.get(&part.topic)?;
        Some(TopicPartition {
            topic: topic.clone(),
            partition: part.number(),
        })
    }

    pub fn add_topic(&mut self, topic: Arc<Topic>) {
        self.names.insert(topic.number, topic.name.clone());
        self.topics.insert(topic.name.clone(), topic);
    }

    /// When the first open transaction times out.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.transactions.values().map(|open| open.deadline).min()
    }

    /// Appends a stored block to its partition's tail.
    pub fn push(&mut self, id: PartId, block: Block) {
        let Some(part) = self.parts.get_mut(&id) else {
            return;
        };
        part.end = block.next();
        part.bytes += block.size();
        if block.head.control.is_none() {
            part.max_timestamp = part.max_timestamp.max(Some(block.head.max_timestamp));
        }
        self.cached_bytes += cost(&block);
        part.tail.push_back(block);
        self.cached.push_back(id);
        while self.cached_bytes > self.cached_bytes_max || self.cached.len() > CACHED_BLOCKS_MAX {
            let Some(oldest) = self.cached.pop_front() else {
                break;
            };
            let evicted = self.parts.get_mut(&oldest).and_then(|part| part.tail.pop_front());
            self.cached_bytes -= evicted.map_or(0, |block| cost(&block));
        }
    }

    /// Moves a partition's start.
    pub fn cut(&mut self, id: PartId, start: Offset, start_bytes: u64) {
        let Some(part) = self.parts.get_mut(&id) else {
            return;
        };
        (part.start, part.start_bytes) = (start, start_bytes);
        while part.tail.front().is_some_and(|block| block.base < start) {
            self.cached_bytes -= part.tail.pop_front().map_or(0, |block| cost(&block));
        }
        while part.index.front().is_some_and(|entry| entry.offset < start) {
            part.index.pop_front();
        }
        if part.aborted.values().any(|marker| *marker < start) {
            let kept = part.aborted.iter().filter(|(_, marker)| **marker >= start);
            part.aborted = Arc::new(kept.map(|(transaction, marker)| (*transaction, *marker)).collect());
        }
    }

    /// Shows a step of compaction or of merging. A block that becomes a part of one that is not cached is not, either.
    pub fn compacted(&mut self, id: PartId, change: &Change, cleaned: Cleaned, entry: Option<IndexEntry>) {
        let Some(part) = self.parts.get_mut(&id) else {
            return;
        };
        part.cleaned = cleaned;
        if !change.index_dropped.is_empty() {
            let dropped = |entry: &IndexEntry| change.index_dropped.binary_search(&entry.offset).is_ok();
            part.index.retain(|entry| !dropped(entry));
        }
        part.index.extend(entry);
        if change.aborted_dropped.iter().any(|t| part.aborted.contains_key(t)) {
            let aborted = Arc::make_mut(&mut part.aborted);
            for transaction in &change.aborted_dropped {
                aborted.remove(transaction);
            }
        }
        let first = part.tail.front().map_or(Offset::MAX, |block| block.base);
        if change.blocks.range(first..).next().is_none() {
            return;
        }
        let cached_bytes = &mut self.cached_bytes;
        part.tail.retain_mut(|block| {
            let Some(change) = change.blocks.get(&block.base) else {
                return true;
            };
            *cached_bytes -= cost(block);
            if let Some(by) = change {
                *cached_bytes += cost(by);
                *block = by.clone();
            }
            change.is_some()
        });
    }

    /// Forgets a topic's partitions, its place in transactions, and its committed offsets.
    pub fn remove_topic(&mut self, topic: &Topic) {
        self.topics.remove(&topic.name);
        self.names.remove(&topic.number);
        for id in topic.parts() {
            if let Some(part) = self.parts.remove(&id) {
                self.cached_bytes -= part.tail.iter().map(cost).sum::<usize>();
                part.wake_all();
            }
            for open in self.transactions.values_mut() {
                open.parts.remove(&id);
            }
        }
        for group in self.groups.values_mut() {
            group.offsets.retain(|at, _| at.topic != topic.name);
            if group.offsets.is_empty() {
                group.idle_stored = None;
            }
        }
        self.groups.retain(|_, group| !group.is_gone());
    }
}

fn cost(block: &Block) -> usize {
    block.bytes.len() + CACHED_BLOCK_BYTES
}

pub(super) fn unknown(topic: &str) -> Error {
    Error::UnknownTopic {
        topic: topic.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::Builder;
    use super::*;

    fn block(base: Offset, bytes: usize) -> Block {
        let mut builder = Builder::new();
        builder.push(0, None, Some(&vec![0; bytes]), std::iter::empty());
        builder.finish(base, 0, None)
    }

    #[test]
    fn the_cache_keeps_gapless_tails_within_its_bytes() {
        let mut state = State::new(3_000);
        let parts = [0, 1].map(|partition| PartId { topic: 1, partition });
        for id in parts {
            state.parts.insert(id, Part::default());
        }
        for n in 0..40 {
            state.push(parts[usize::from(n % 3 == 0)], block(0, 400));
            let held: usize = state.parts.values().flat_map(|part| &part.tail).map(cost).sum();
            assert_eq!(held, state.cached_bytes);
            assert!(held <= 3_000);
        }
        state.push(parts[0], block(0, 4_000));
        assert_eq!(state.cached_bytes, 0, "a block larger than the cache is not kept");
    }
}
