//! Copies librdkafka messages into batches of records, for group members and readers.
//!
//! Each record is copied once, and the records of a partition keep their order. Messages of paused partitions and
//! messages above the byte limit remain in the inbox. Messages of partitions that are not started are discarded, and so
//! are those after an error of their partition: librdkafka continues after a corrupt batch, which would skip its records.

use super::client::admin::{Admin, END, START};
use super::client::consumer::{Disposition, Inbox, Message, inbox};
use super::client::list::List;
use super::client::producer::Topic;
use super::client::{ClientError, Code, Handle, Queue, Waker};
use super::errors;
use crate::{Error, Isolation, Millis, NewRecord, Offset, RecordBatch, Result, TopicPartition};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages taken from librdkafka at a time, and the maximum number of records in a batch.
const TAKE: usize = 2048;
const BATCH_RECORDS_MAX: usize = 200_000;
/// Maximum time to wait before the queues are polled again without a wake-up.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// How often [`Fetcher::take`] returns the error of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorReports {
    /// Until another position is set, but only if no other partition has records.
    Repeated,
    /// Once, before further records of other partitions.
    Once,
}

/// Why a partition is not read.
#[derive(Debug)]
pub struct FetchFailure {
    /// Offset of the next record.
    offset: Offset,
    error: ClientError,
    /// Whether [`Fetcher::take`] has returned the error.
    pub reported: bool,
}

/// State of an assigned partition.
#[derive(Debug)]
pub struct PartitionState {
    /// The partition.
    pub at: TopicPartition,
    /// Whether its records may be returned.
    pub started: bool,
    /// Whether its records remain in the inbox.
    pub paused: bool,
    /// Offset of the next record, if known.
    pub position: Option<Offset>,
    /// A time at which everything up to the end of the partition had been read.
    pub at_end: Option<Millis>,
    /// Set if fetching failed. The partition is not read until another position is set.
    pub failed: Option<FetchFailure>,
    /// Number of a batch, and the index of the partition in it.
    interned: (u64, u16),
}

/// Fetches assigned partitions through one inbox.
#[derive(Debug)]
pub struct Fetcher {
    inbox: Inbox,
    states: PartitionStates,
    waker: Arc<Waker>,
    reports: ErrorReports,
    /// The last time at which the inbox was empty.
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
    /// Creates a fetcher without partitions.
    pub fn new(handle: &Arc<Handle>, waker: Arc<Waker>, reports: ErrorReports) -> Fetcher {
        let inbox = inbox(handle, &waker, TAKE);
        Fetcher {
            inbox,
            states: PartitionStates::default(),
            waker,
            reports,
            drained_at: now(),
            batches: 0,
        }
    }

    /// Returns the client.
    pub fn handle(&self) -> &Arc<Handle> {
        self.inbox.queue().handle()
    }

    /// Returns the queue that receives the messages of all partitions.
    pub fn queue(&self) -> &Queue {
        self.inbox.queue()
    }

    /// Opens a topic, or returns the open one.
    pub fn topic(&mut self, name: &Arc<str>) -> Result<&Topic> {
        let handle = self.inbox.queue().handle().clone();
        match self.states.topics.entry(name.clone()) {
            std::collections::hash_map::Entry::Occupied(open) => Ok(open.into_mut()),
            std::collections::hash_map::Entry::Vacant(free) => {
                let topic = Topic::new(&handle, name);
                Ok(
                    free.insert(
                        topic.map_err(|found| errors::topic_error(name, format!("open topic {name}"), &found))?,
                    ),
                )
            }
        }
    }

    /// Returns an open topic and the queue that receives messages.
    pub fn topic_and_queue(&mut self, name: &Arc<str>) -> Result<(&Topic, &Queue)> {
        self.topic(name)?;
        let missing = || Error::UnknownTopic {
            topic: name.to_string(),
        };
        Ok((self.states.topics.get(name).ok_or_else(missing)?, self.inbox.queue()))
    }

    /// Returns the partitions in sorted order.
    pub fn partitions(&self) -> Vec<TopicPartition> {
        let mut partitions: Vec<_> = self.states.all.iter().map(|state| state.at.clone()).collect();
        partitions.sort();
        partitions
    }

    /// Replaces the partitions and discards all messages.
    pub fn replace(&mut self, partitions: impl Iterator<Item = (TopicPartition, bool, Option<Offset>)>) -> Result<()> {
        self.states.all.clear();
        self.inbox.visit(|_| Disposition::Drop);
        self.states
            .all
            .extend(partitions.map(|(at, started, position)| PartitionState::new(at, started, position)));
        self.drained_at = now();
        self.index()
    }

    /// Adds partitions that are not started. Messages of other partitions are kept.
    pub fn add(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.remove(partitions)?;
        self.states
            .all
            .extend(partitions.iter().map(|at| PartitionState::new(at.clone(), false, None)));
        self.index()
    }

    /// Removes partitions and discards their messages. Messages of other partitions are kept.
    pub fn remove(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.states.all.retain(|state| !partitions.contains(&state.at));
        self.index()?;
        let states = &mut self.states;
        self.inbox
            .visit(|message| states.of(&message).map_or(Disposition::Drop, |_| Disposition::Keep));
        Ok(())
    }

    /// Rebuilds the lookup by topic address after the partitions changed.
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

    /// Returns the state of all partitions.
    pub fn states(&self) -> &[PartitionState] {
        &self.states.all
    }

    /// Returns the state of one partition.
    pub fn state(&mut self, at: &TopicPartition) -> Option<&mut PartitionState> {
        self.states.all.iter_mut().find(|state| state.at == *at)
    }

    /// Discards the messages of a partition that will be read from another offset.
    pub fn forget(&mut self, at: &TopicPartition) {
        let states = &mut self.states;
        self.inbox.visit(|message| match states.of(&message) {
            Some(state) if state.at != *at => Disposition::Keep,
            _ => Disposition::Drop,
        });
    }

    /// Fills the batch with available messages, without waiting. The error of a partition is returned after all records
    /// before it have been returned.
    pub fn take(&mut self, batch: &mut RecordBatch, max_bytes: usize) -> Result<usize> {
        self.batches += 1;
        let (number, drained_at) = (self.batches, self.drained_at);
        if self.reports == ErrorReports::Once {
            // Otherwise the error would wait until no other partition has records.
            self.check_partitions()?;
        }
        loop {
            let mut full = false;
            let states = &mut self.states;
            self.inbox.visit(|message| {
                let readable = |state: &&mut PartitionState| state.started && state.failed.is_none();
                let Some(state) = states.of(&message).filter(readable) else {
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
                        let found = message.error();
                        if stops(&found) {
                            let at = state.position.unwrap_or_else(|| message.offset());
                            state.failed = Some(FetchFailure {
                                offset: at,
                                error: found,
                                reported: false,
                            });
                        } else {
                            tracing::debug!(target: "event_log::kafka", at = %state.at, error = found.text, "transient fetch error");
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

    /// Fails if a partition cannot be read, unless it is paused or its error was reported before.
    fn check_partitions(&mut self) -> Result<()> {
        let reports = self.reports;
        let failed = self.states.all.iter_mut().find_map(|state| {
            let failure = state.failed.as_mut().filter(|_| !state.paused)?;
            if reports == ErrorReports::Once && std::mem::replace(&mut failure.reported, true) {
                return None;
            }
            Some((state.at.clone(), failure.offset, failure.error.clone()))
        });
        failed.map_or(Ok(()), |(at, offset, found)| Err(self.meaning(at, offset, &found)))
    }

    /// Waits for a wake-up of a queue until `end`. Returns false if `end` is in the past.
    pub fn wait(&self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        self.waker.wait(left.min(WAIT_MAX));
        true
    }

    /// Fails if no broker has answered for a while, because then an empty poll does not mean that there are no records.
    pub fn check_reachable(&self, attempted: &str) -> Result<()> {
        self.handle().remind();
        self.handle().connectivity().check(attempted)
    }

    /// Converts the error of a partition.
    fn meaning(&self, at: TopicPartition, offset: Offset, found: &ClientError) -> Error {
        use Code as C;
        match found.code {
            C::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | C::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
                let (start, end) = (self.edge(&at, START), self.edge(&at, END));
                Error::OutOfRange { at, offset, start, end }
            }
            C::RD_KAFKA_RESP_ERR__BAD_MSG
            | C::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
            | C::RD_KAFKA_RESP_ERR_INVALID_MSG => {
                let corrupt = Error::Corrupt {
                    place: format!("{at}@{offset}"),
                    reason: found.text.clone(),
                };
                corrupt.in_partition(&at, offset)
            }
            _ => errors::topic_error(&at.topic, format!("read {at}"), found).in_partition(&at, offset),
        }
    }

    /// Looks up the earliest offset or the end of a partition for an error message; −1 if the lookup fails.
    fn edge(&self, at: &TopicPartition, mark: Offset) -> Offset {
        let admin = Admin::new(self.handle(), Duration::from_secs(5));
        let wanted = List::of(std::iter::once((at, mark)));
        let found = admin.offsets(&wanted, Isolation::ReadUncommitted).ok();
        found
            .and_then(|entries| entries.first().map(|entry| entry.offset))
            .unwrap_or(-1)
    }
}

/// Returns whether an error prevents further reading of the partition. librdkafka recovers from all other errors
/// itself.
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
    /// Returns the state of a message's partition.
    fn of(&mut self, message: &Message<'_>) -> Option<&mut PartitionState> {
        let (address, partition) = (message.topic_address(), message.partition());
        if (self.last.0, self.last.1) != (address, partition) {
            let found = self.by_address.get(&(address, partition)).copied().or_else(|| {
                // Error messages may refer to another topic object of the same name.
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
            NewRecord {
                offset,
                timestamp,
                timestamp_type: kind,
                key: message.key(),
                value: message.value(),
            },
            message.headers(),
        );
        self.position = Some(offset + 1);
    }
}

/// Returns the current time of this machine.
#[expect(
    clippy::disallowed_methods,
    reason = "lower bound of the age of what was read; no decision in this crate depends on it"
)]
pub fn now() -> Millis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
