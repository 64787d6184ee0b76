//! From the library's messages to batches of records, for group members and readers alike.
//!
//! Guarantees: a record is copied once; a partition's records stay in order; what is held back (paused, or over the
//! byte limit) is handed on later; nothing of a partition that is not being read is handed on. Never: a wait.

use super::client::admin::{Admin, END, START};
use super::client::consumer::{Inbox, Message, Disposition, inbox};
use super::client::list::List;
use super::client::producer::Topic;
use super::client::{Code, ClientError, Handle, Queue, Waker};
use super::errors;
use crate::{Error, Isolation, Millis, Offset, RecordBatch, Result, TopicPartition};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages taken out of the library at a time, and records in a batch at most.
const TAKE: usize = 2048;
const BATCH_RECORDS_MAX: usize = 200_000;
/// How long a wait lasts before the queues are looked at again without having been told to.
const LOOK: Duration = Duration::from_millis(100);

/// One partition that may be read.
#[derive(Debug)]
pub struct PartitionState {
    /// The partition.
    pub at: TopicPartition,
    /// Whether its records are wanted.
    pub started: bool,
    /// Whether its records wait.
    pub paused: bool,
    /// The next offset, as far as it is known.
    pub position: Option<Offset>,
    /// A time at which everything stable had been seen.
    pub at_end: Option<Millis>,
    /// The offset at which it could not be read; it is not read on until it is moved.
    pub failed: Option<(Offset, ClientError)>,
    /// Its index in the batch of that number.
    interned: (u64, u16),
}

/// Partitions that are read into one inbox.
#[derive(Debug)]
pub struct Fetcher {
    inbox: Inbox,
    states: PartitionStates,
    waker: Arc<Waker>,
    /// A time at which nothing waited to be seen.
    drained_at: Millis,
    batches: u64,
}

#[derive(Debug, Default)]
struct PartitionStates {
    topics: HashMap<Arc<str>, Topic>,
    all: Vec<PartitionState>,
    by_address: HashMap<(usize, i32), usize>,
    last: (usize, i32, usize),
}

impl Fetcher {
    /// Reads nothing yet.
    pub fn new(handle: &Arc<Handle>, waker: Arc<Waker>) -> Fetcher {
        let inbox = inbox(handle, &waker, TAKE);
        Fetcher {
            inbox,
            states: PartitionStates::default(),
            waker,
            drained_at: now(),
            batches: 0,
        }
    }

    /// The client instance.
    pub fn handle(&self) -> &Arc<Handle> {
        self.inbox.queue().handle()
    }

    /// The queue that partitions are read into.
    pub fn queue(&self) -> &Queue {
        self.inbox.queue()
    }

    /// Opens a topic, or finds it open.
    pub fn topic(&mut self, name: &Arc<str>) -> Result<&Topic> {
        let handle = self.inbox.queue().handle().clone();
        match self.states.topics.entry(name.clone()) {
            std::collections::hash_map::Entry::Occupied(open) => Ok(open.into_mut()),
            std::collections::hash_map::Entry::Vacant(free) => {
                let topic = Topic::new(&handle, name);
                Ok(free.insert(topic.map_err(|found| errors::topic_error(name, format!("open topic {name}"), &found))?))
            }
        }
    }

    /// An open topic, and the queue to read it into.
    pub fn topic_and_queue(&mut self, name: &Arc<str>) -> Result<(&Topic, &Queue)> {
        self.topic(name)?;
        let missing = || Error::UnknownTopic {
            topic: name.to_string(),
        };
        Ok((self.states.topics.get(name).ok_or_else(missing)?, self.inbox.queue()))
    }

    /// The partitions, sorted.
    pub fn partitions(&self) -> Vec<TopicPartition> {
        let mut partitions: Vec<_> = self.states.all.iter().map(|state| state.at.clone()).collect();
        partitions.sort();
        partitions
    }

    /// Replaces the partitions; what was held of others is dropped.
    pub fn replace(&mut self, partitions: impl Iterator<Item = (TopicPartition, bool, Option<Offset>)>) -> Result<()> {
        self.states.all.clear();
        self.inbox.visit(|_| Disposition::Drop);
        self.states
            .all
            .extend(partitions.map(|(at, started, position)| PartitionState::new(at, started, position)));
        self.drained_at = now();
        self.index()
    }

    /// Adds partitions that are not read yet; what is held of others stays.
    pub fn add(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.remove(partitions)?;
        self.states
            .all
            .extend(partitions.iter().map(|at| PartitionState::new(at.clone(), false, None)));
        self.index()
    }

    /// Removes partitions, and drops what is held of them; what is held of others stays.
    pub fn remove(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.states.all.retain(|state| !partitions.contains(&state.at));
        self.index()?;
        let states = &mut self.states;
        self.inbox
            .sort(|message| states.of(&message).map_or(Disposition::Drop, |_| Disposition::Keep));
        Ok(())
    }

    /// Finds the partitions' topics anew, after they have changed.
    fn index(&mut self) -> Result<()> {
        self.states.by_address.clear();
        self.states.last = (0, 0, 0);
        let all: Vec<_> = self.states.all.iter().map(|state| state.at.clone()).collect();
        for (place, at) in all.into_iter().enumerate() {
            let address = self.topic(&at.topic)?.address();
            self.states.by_address.insert((address, at.partition), place);
        }
        Ok(())
    }

    /// The partitions.
    pub fn states(&self) -> &[PartitionState] {
        &self.states.all
    }

    /// One of the partitions.
    pub fn state(&mut self, at: &TopicPartition) -> Option<&mut PartitionState> {
        self.states.all.iter_mut().find(|state| state.at == *at)
    }

    /// Drops what is held of a partition, which is about to be read from elsewhere.
    pub fn forget(&mut self, at: &TopicPartition) {
        let states = &mut self.states;
        self.inbox.visit(|message| match states.of(&message) {
            Some(state) if state.at != *at => Disposition::Keep,
            _ => Disposition::Drop,
        });
    }

    /// Fills the batch with what is there, without waiting. An error of a partition is returned when no record is
    /// left before it.
    pub fn take(&mut self, batch: &mut RecordBatch, max_bytes: usize) -> Result<usize> {
        self.batches += 1;
        let (number, drained_at) = (self.batches, self.drained_at);
        loop {
            let mut full = false;
            let states = &mut self.states;
            self.inbox.visit(|message| {
                let Some(state) = states.of(&message).filter(|state| state.started) else {
                    return Disposition::Drop;
                };
                match message.code() {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR if state.paused => Disposition::Keep,
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
                        full = batch.byte_len() >= max_bytes || batch.len() >= BATCH_RECORDS_MAX;
                        if full {
                            return Disposition::Stop;
                        }
                        state.copy(batch, number, &message);
                        Disposition::Drop
                    }
                    Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                        state.position = Some(message.offset());
                        state.at_end = Some(drained_at);
                        Disposition::Drop
                    }
                    _ => {
                        let found = message.fault();
                        if stops(&found) {
                            let at = state.position.unwrap_or_else(|| message.offset());
                            state.failed = Some((at, found));
                        } else {
                            tracing::debug!(target: "event_log::kafka", at = %state.at, "{}", found.text);
                        }
                        Disposition::Drop
                    }
                }
            });
            if full {
                return Ok(batch.len());
            }
            if self.inbox.fill() == 0 {
                self.drained_at = now();
                return if batch.is_empty() {
                    self.check_partitions().map(|()| 0)
                } else {
                    Ok(batch.len())
                };
            }
        }
    }

    /// Fails for a partition that cannot be read on.
    fn check_partitions(&self) -> Result<()> {
        let failed = self
            .states
            .all
            .iter()
            .find_map(|state| Some((&state.at, state.failed.as_ref()?)));
        failed.map_or(Ok(()), |(at, (offset, found))| {
            Err(self.meaning(at.clone(), *offset, found))
        })
    }

    /// Waits for an entry of a queue that wakes this, at most until `end`; false when that has passed.
    pub fn wait(&self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        self.waker.wait(left.min(LOOK));
        true
    }

    /// Fails when no broker has answered for a while: nothing to read is then no news.
    pub fn check_reach(&self, attempted: &str) -> Result<()> {
        self.handle().remind();
        self.handle().reach().check(attempted)
    }

    /// What a partition's error means.
    fn meaning(&self, at: TopicPartition, offset: Offset, found: &ClientError) -> Error {
        use Code as C;
        match found.code {
            C::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | C::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
                let (start, end) = (self.edge(&at, START), self.edge(&at, END));
                Error::OutOfRange { at, offset, start, end }
            }
            C::RD_KAFKA_RESP_ERR__BAD_MSG
            | C::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
            | C::RD_KAFKA_RESP_ERR_INVALID_MSG => Error::Corrupt {
                place: format!("{at}@{offset}"),
                reason: found.text.clone(),
            },
            _ => errors::topic_error(&at.topic, format!("read {at}"), found),
        }
    }

    /// An edge of a partition for a message; −1 when it cannot be had.
    fn edge(&self, at: &TopicPartition, mark: Offset) -> Offset {
        let admin = Admin::new(self.handle(), Duration::from_secs(5));
        let wanted = List::of(std::iter::once((at, mark)));
        let found = admin.offsets(&wanted, Isolation::ReadUncommitted).ok();
        found
            .and_then(|entries| entries.first().map(|entry| entry.offset))
            .unwrap_or(-1)
    }
}

/// Whether an error ends the reading of a partition; others the library mends by itself.
fn stops(found: &ClientError) -> bool {
    use Code as C;
    matches!(
        found.code,
        C::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
            | C::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE
            | C::RD_KAFKA_RESP_ERR__BAD_MSG
            | C::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
            | C::RD_KAFKA_RESP_ERR_INVALID_MSG
            | C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | C::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | C::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
            | C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID
            | C::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
    )
}

impl PartitionStates {
    /// The partition of a message.
    fn of(&mut self, message: &Message<'_>) -> Option<&mut PartitionState> {
        let (address, partition) = (message.topic_address(), message.partition());
        if (self.last.0, self.last.1) != (address, partition) {
            let found = self.by_address.get(&(address, partition)).copied().or_else(|| {
                // Error messages may name their topic by another object.
                let name = message.topic();
                self.all
                    .iter()
                    .position(|state| *state.at.topic == *name && state.at.partition == partition)
            })?;
            self.last = (address, partition, found);
        }
        self.all.get_mut(self.last.2)
    }
}

impl PartitionState {
    fn new(at: TopicPartition, started: bool, position: Option<Offset>) -> PartitionState {
        PartitionState {
            at,
            started,
            paused: false,
            position,
            at_end: None,
            failed: None,
            interned: (0, 0),
        }
    }

    fn copy(&mut self, batch: &mut RecordBatch, number: u64, message: &Message<'_>) {
        if self.interned.0 != number {
            self.interned = (number, batch.intern(&self.at));
        }
        let (timestamp, kind) = message.timestamp();
        let offset = message.offset();
        batch.push(
            self.interned.1,
            offset,
            timestamp,
            kind,
            message.key(),
            message.value(),
            message.headers(),
        );
        self.position = Some(offset + 1);
    }
}

/// This machine's time.
#[expect(
    clippy::disallowed_methods,
    reason = "a bound on the age of what was read; nothing is decided by it here"
)]
pub fn now() -> Millis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
