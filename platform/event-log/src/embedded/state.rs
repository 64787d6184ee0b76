//! In-memory state of the embedded log: topics, partition ends, open transactions, groups, and the newest blocks.
//!
//! Changes are published here after the store has committed them, so no reader sees a record that a crash could remove.
//! The cached tail of a partition has no gaps, and the cache stays within its limits.

use super::block::Block;
use super::format::{Cleaned, IndexEntry, PartId, PartRecord};
use super::group::Group;
use super::settings::Rules;
use super::signal::Signal;
use crate::{Error, Isolation, Millis, Offset, Result, TopicPartition};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use uuid::Uuid;

/// Maximum number of cached blocks, regardless of their size.
const CACHED_BLOCKS_MAX: usize = 65_536;
/// Estimated overhead of a cached block in bytes.
const CACHED_BLOCK_BYTES: usize = 160;

/// A topic. Changing its settings replaces the whole value.
#[derive(Debug)]
pub(super) struct Topic {
    pub number: u32,
    pub name: Arc<str>,
    pub id: Uuid,
    pub partitions: u32,
    /// Settings that differ from the defaults.
    pub given: BTreeMap<String, String>,
    pub rules: Rules,
}

impl Topic {
    /// Returns the id of a partition, if it exists.
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

/// A reader that waits for new records of a partition.
struct Listener {
    isolation: Isolation,
    signal: Arc<Signal>,
}

/// A partition.
#[derive(Default)]
pub(super) struct Part {
    /// Earliest offset.
    pub start: Offset,
    /// Bytes that retention has removed, all below `start`.
    pub start_bytes: u64,
    pub cleaned: Cleaned,
    /// Compaction may have removed whole blocks below this offset. At or above it, a gap between blocks means lost
    /// records, unless retention caused it.
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
    /// Aborted transactions whose records may still exist, with the offset of their abort marker. Copied on write,
    /// because readers share it.
    pub aborted: Arc<BTreeMap<u64, Offset>>,
    /// The newest blocks.
    pub tail: VecDeque<Block>,
    listeners: Vec<Listener>,
}

impl Part {
    /// Returns the stored record of the partition.
    pub fn record(&self) -> PartRecord {
        PartRecord {
            start: self.start,
            start_bytes: self.start_bytes,
            cleaned: self.cleaned,
        }
    }

    /// Returns the bytes that retention and compaction have removed.
    pub fn gone_bytes(&self) -> u64 {
        self.start_bytes + self.cleaned.removed_bytes
    }

    /// The last stable offset.
    pub fn stable(&self) -> Offset {
        self.open.first_key_value().map_or(self.end, |(first, _)| *first)
    }

    /// Returns the end that a reader with this isolation level sees.
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

    /// Wakes readers for which new records became visible.
    pub fn wake(&self, stable_before: Offset) {
        let stable = self.stable();
        for listener in &self.listeners {
            if listener.isolation == Isolation::ReadUncommitted || stable > stable_before {
                listener.signal.wake();
            }
        }
    }

    /// Wakes all readers, because the partition was deleted.
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

/// A transaction that has written records and is not decided.
#[derive(Debug)]
pub(super) struct OpenTransaction {
    pub transactional_id: String,
    pub deadline: Millis,
    pub parts: BTreeMap<PartId, Touched>,
}

/// The current producer of a transactional id.
#[derive(Debug)]
pub(super) struct ProducerState {
    pub epoch: u64,
    pub transaction: Option<u64>,
}

/// Change of a partition by one step of compaction or merging.
#[derive(Default)]
pub(super) struct Change {
    /// New blocks by base offset; `None` removes the block.
    pub blocks: BTreeMap<Offset, Option<Block>>,
    pub removed_bytes: u64,
    /// Index entries that are no longer needed, in order.
    pub index_dropped: Vec<Offset>,
    /// Aborted transactions without any remaining record.
    pub aborted_dropped: Vec<u64>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.index_dropped.is_empty() && self.aborted_dropped.is_empty()
    }
}

/// The in-memory state.
#[derive(Default)]
pub(super) struct State {
    pub topics: BTreeMap<Arc<str>, Arc<Topic>>,
    pub names: HashMap<u32, Arc<str>>,
    pub parts: HashMap<PartId, Part>,
    pub groups: BTreeMap<String, Group>,
    pub producers: HashMap<String, ProducerState>,
    pub transactions: BTreeMap<u64, OpenTransaction>,
    /// Last number that was assigned as epoch or member id.
    pub numbers: u64,
    /// Number of the next transaction.
    pub next_transaction: u64,
    /// Partitions of the cached blocks, in the order of eviction.
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

    /// Returns a number that has not been returned before.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Removes a producer that has been closed, unless its transaction is open: the next producer with its id must
    /// abort that.
    pub fn forget_producer(&mut self, transactional_id: &str, epoch: u64) {
        let known = self.producers.get(transactional_id);
        if known.is_some_and(|producer| producer.epoch == epoch && producer.transaction.is_none()) {
            self.producers.remove(transactional_id);
        }
    }

    pub fn topic(&self, name: &str) -> Result<&Arc<Topic>> {
        self.topics.get(name).ok_or_else(|| unknown(name))
    }

    /// Returns the id of a partition.
    pub fn resolve(&self, at: &TopicPartition) -> Result<PartId> {
        self.topic(&at.topic)?
            .part(at.partition)
            .ok_or_else(|| unknown(&at.to_string()))
    }

    pub fn part(&self, at: &TopicPartition) -> Result<&Part> {
        self.parts.get(&self.resolve(at)?).ok_or_else(|| unknown(&at.topic))
    }

    /// Returns the name of a partition that exists.
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

    /// Returns when the next open transaction times out.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.transactions.values().map(|open| open.deadline).min()
    }

    /// Appends a stored block to the tail of its partition.
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

    /// Moves the start of a partition.
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

    /// Publishes a step of compaction or merging. A cached block that was merged into an uncached block is removed from
    /// the cache.
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

    /// Removes a topic's partitions, what open transactions have written to them, and the topic's committed offsets.
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
        self.groups.retain(|_, group| !group.is_unused());
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
    fn cached_tails_have_no_gaps_and_respect_limit() {
        let mut state = State::new(3_000);
        let parts = [0, 1].map(|partition| PartId { topic: 1, partition });
        for id in parts {
            state.parts.insert(id, Part::default());
        }
        for n in 0..40 {
            state.push(parts[usize::from(n % 3 == 0)], block(0, 400));
            let cached: usize = state.parts.values().flat_map(|part| &part.tail).map(cost).sum();
            assert_eq!(cached, state.cached_bytes);
            assert!(cached <= 3_000);
        }
        state.push(parts[0], block(0, 4_000));
        assert_eq!(state.cached_bytes, 0, "a block larger than the cache is not cached");
    }
}
