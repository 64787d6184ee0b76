//! A log with injected faults: requested faults of commits, and random failures of writes without transactions.
//!
//! It wraps another log, in tests the embedded log. Reads of chosen partitions fail. The simulation tests faults of the network and of
//! the broker, and `platform/event-log` tests faults of the disk below the embedded log.

use crate::simulation::Rng;
use event_log::{
    Committed, Error, Event, EventLog, GroupConfig, GroupConsumer, GroupInfo, GroupMetadata, Isolation, Millis, Offset,
    OffsetSpec, OutBatch, Outcome, Produced, Producer, Reader, RecordBatch, Result, SharedEventLog, StartFrom,
    TopicInfo, TopicPartition, TopicSpec, TransactionalProducer, TransactionalProducerConfig,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A fault of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFault {
    /// The process crashes with its transaction open.
    CrashBefore,
    /// The process crashes when the transaction is committed, before the store is written.
    CrashAfter,
    /// The log aborts the transaction.
    Abort,
    /// The log commits the transaction, and the response is lost.
    LostAnswer,
}

/// Panic payload of a crashed process.
pub(crate) struct Crashed;

struct State {
    /// The faults of the next commits, one per commit.
    commits: VecDeque<CommitFault>,
    /// Probability that a write without a transaction fails.
    writes: f64,
    /// Partitions that cannot be read, with the error of a read at an offset.
    unreadable: BTreeMap<TopicPartition, ReadError>,
    /// Whether reads of committed offsets fail, and how many have failed.
    offsets: (bool, usize),
    rng: Rng,
}

/// Creates the error of a read of a partition at an offset.
pub type ReadError = Arc<dyn Fn(&TopicPartition, Offset) -> Error + Send + Sync>;

/// The faults of a log; clones share them.
#[derive(Clone)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

impl Faults {
    /// Creates an empty set of faults. `rng` chooses the random faults.
    pub fn new(rng: Rng) -> Self {
        let state = State {
            commits: VecDeque::new(),
            writes: 0.0,
            unreadable: BTreeMap::new(),
            offsets: (false, 0),
            rng,
        };
        Faults {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Requests a fault for the next commit that has none yet.
    pub fn at_commit(&self, fault: CommitFault) {
        self.lock().commits.push_back(fault);
    }

    /// Number of requested faults that have not happened yet.
    pub fn pending(&self) -> usize {
        self.lock().commits.len()
    }

    /// Makes each write without a transaction fail with this probability, before, after or in the middle of the write.
    pub fn fail_writes(&self, probability: f64) {
        self.lock().writes = probability;
    }

    /// Makes reads of a partition fail until [`Faults::make_readable`].
    pub fn make_unreadable(&self, at: &TopicPartition, error: ReadError) {
        self.lock().unreadable.insert(at.clone(), error);
    }

    /// Makes reads of committed offsets fail, or no longer.
    pub fn fail_offsets(&self, fails: bool) {
        self.lock().offsets.0 = fails;
    }

    /// Number of reads of committed offsets that have failed.
    pub fn failed_offsets(&self) -> usize {
        self.lock().offsets.1
    }

    fn offsets(&self) -> Result<()> {
        let (fails, failed) = &mut self.lock().offsets;
        if !*fails {
            return Ok(());
        }
        *failed += 1;
        Err(injected("fetch offsets"))
    }

    /// Makes a partition readable again.
    pub fn make_readable(&self, at: &TopicPartition) {
        self.lock().unreadable.remove(at);
    }

    fn read_error(&self, at: &TopicPartition, offset: Offset) -> Option<Error> {
        let error = self.lock().unreadable.get(at).cloned();
        error.map(|error| error(at, offset))
    }

    fn next_commit(&self) -> Option<CommitFault> {
        self.lock().commits.pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next write fails.
    fn fails(&self) -> bool {
        let mut state = self.lock();
        let probability = state.writes;
        probability > 0.0 && state.rng.chance(probability)
    }

    /// Runs a write, or fails before or after running it.
    fn write<T>(&self, write: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.fails() {
            return write();
        }
        let takes_effect = self.lock().rng.chance(0.5);
        if takes_effect {
            drop(write()?);
        }
        Err(injected("write"))
    }
}

fn injected(attempted: &str) -> Error {
    Error::Unavailable {
        attempted: attempted.to_owned(),
        reason: "injected failure".to_owned(),
    }
}

/// A log with faults.
pub struct FaultyLog {
    log: SharedEventLog,
    faults: Faults,
    static_members: bool,
}

impl FaultyLog {
    /// Wraps a log with these faults.
    pub fn new(log: SharedEventLog, faults: Faults) -> Self {
        FaultyLog {
            log,
            faults,
            static_members: true,
        }
    }

    /// Returns the log with members that are not static, so that the group removes a member immediately when it leaves
    /// or crashes.
    #[must_use]
    pub fn with_dynamic_members(self) -> Self {
        FaultyLog {
            static_members: false,
            ..self
        }
    }
}

impl EventLog for FaultyLog {
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<bool>> {
        self.log.create_topics(topics)
    }

    fn describe(&self, topic: &str) -> Result<Option<TopicInfo>> {
        self.log.describe(topic)
    }

    fn topics(&self) -> Result<Vec<String>> {
        self.log.topics()
    }

    fn alter_topic(&self, topic: &str, settings: &[(String, String)]) -> Result<()> {
        self.log.alter_topic(topic, settings)
    }

    fn delete_topic(&self, topic: &str) -> Result<()> {
        self.log.delete_topic(topic)
    }

    fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> Result<Offset> {
        self.log.offset(at, which)
    }

    fn offsets(&self, partitions: &[TopicPartition], which: OffsetSpec) -> Result<Vec<Offset>> {
        self.log.offsets(partitions, which)
    }

    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Committed> {
        self.faults.offsets()?;
        self.log.committed(group, partitions)
    }

    fn set_committed(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        self.log.set_committed(group, offsets)
    }

    fn groups(&self) -> Result<Vec<GroupInfo>> {
        self.log.groups()
    }

    fn group(&self, config: GroupConfig) -> Result<Box<dyn GroupConsumer>> {
        let instance = config.instance.filter(|_| self.static_members);
        let consumer = self.log.group(GroupConfig { instance, ..config })?;
        let faults = self.faults.clone();
        Ok(Box::new(FaultyConsumer {
            consumer,
            started: BTreeMap::new(),
            faults,
        }))
    }

    fn reader(&self, isolation: Isolation) -> Result<Box<dyn Reader>> {
        Ok(Box::new(FaultyReader {
            reader: self.log.reader(isolation)?,
            assigned: Vec::new(),
            faults: self.faults.clone(),
        }))
    }

    fn transactional_producer(&self, config: TransactionalProducerConfig) -> Result<Box<dyn TransactionalProducer>> {
        let producer = self.log.transactional_producer(config)?;
        let faults = self.faults.clone();
        Ok(Box::new(FaultyTransactionalProducer { producer, faults }))
    }

    fn producer(&self) -> Result<Box<dyn Producer>> {
        let producer = self.log.producer()?;
        let faults = self.faults.clone();
        Ok(Box::new(FaultyProducer { producer, faults }))
    }

    fn append(&self, records: &OutBatch) -> Result<Vec<Produced>> {
        self.log.append(records)
    }

    fn description(&self) -> String {
        self.log.description()
    }

    fn log_epoch(&self) -> Result<String> {
        self.log.log_epoch()
    }
}

/// A transactional producer whose next commit may fail.
struct FaultyTransactionalProducer {
    producer: Box<dyn TransactionalProducer>,
    faults: Faults,
}

impl TransactionalProducer for FaultyTransactionalProducer {
    fn begin(&mut self) -> Result<()> {
        self.producer.begin()
    }

    fn send(&mut self, records: &OutBatch) -> Result<()> {
        self.producer.send(records)
    }

    fn flush(&mut self) -> Result<()> {
        self.producer.flush()
    }

    fn commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome {
        let fault = self.faults.next_commit();
        let reason = "injected by the test".to_owned();
        match fault {
            None => self.producer.commit(consumed),
            Some(CommitFault::CrashBefore) => std::panic::resume_unwind(Box::new(Crashed)),
            Some(CommitFault::CrashAfter) => {
                let outcome = self.producer.commit(consumed);
                assert!(
                    matches!(outcome, Outcome::Committed(_)),
                    "a crash after the commit requires a commit: {outcome:?}"
                );
                std::panic::resume_unwind(Box::new(Crashed))
            }
            Some(CommitFault::Abort) => match self.producer.abort() {
                Ok(()) => Outcome::Aborted { fenced: false, reason },
                Err(error) => Outcome::Unknown {
                    reason: error.to_string(),
                },
            },
            Some(CommitFault::LostAnswer) => {
                drop(self.producer.commit(consumed));
                Outcome::Unknown { reason }
            }
        }
    }

    fn abort(&mut self) -> Result<()> {
        self.producer.abort()
    }

    fn init_transactions(&mut self) -> Result<()> {
        self.producer.init_transactions()
    }

    fn transactional_id(&self) -> &str {
        self.producer.transactional_id()
    }
}

/// A producer without transactions whose writes may fail.
struct FaultyProducer {
    producer: Box<dyn Producer>,
    faults: Faults,
}

impl Producer for FaultyProducer {
    fn send(&mut self, records: &OutBatch) -> Result<()> {
        if !self.faults.fails() {
            return self.producer.send(records);
        }
        // Write only some of the records, as a producer that crashes does.
        let kept = self.faults.lock().rng.below(8);
        let mut part = OutBatch::default();
        for (record, headers) in records.iter().take(kept) {
            part.push(record, headers);
        }
        self.producer.send(&part)?;
        Err(injected("append"))
    }

    fn flush(&mut self) -> Result<Vec<Produced>> {
        self.faults.write(|| self.producer.flush())
    }
}

/// A reader that fails while a partition of it cannot be read.
struct FaultyReader {
    reader: Box<dyn Reader>,
    assigned: Vec<TopicPartition>,
    faults: Faults,
}

impl Reader for FaultyReader {
    fn assign(&mut self, partitions: &[(TopicPartition, StartFrom)]) -> Result<()> {
        self.assigned = partitions.iter().map(|(at, _)| at.clone()).collect();
        self.reader.assign(partitions)
    }

    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<usize> {
        for at in &self.assigned {
            let position = self.reader.position(at).unwrap_or_default();
            if let Some(error) = self.faults.read_error(at, position) {
                batch.clear();
                return Err(error);
            }
        }
        self.reader.poll(batch, max_bytes, timeout)
    }

    fn position(&self, at: &TopicPartition) -> Option<Offset> {
        self.reader.position(at)
    }

    fn at_end(&self, at: &TopicPartition) -> Option<Millis> {
        self.reader.at_end(at)
    }
}

/// A member of a group whose commits of offsets may fail, and that cannot read some partitions.
struct FaultyConsumer {
    consumer: Box<dyn GroupConsumer>,
    /// Offsets at which partitions were started, until their error is returned.
    started: BTreeMap<TopicPartition, Offset>,
    faults: Faults,
}

impl GroupConsumer for FaultyConsumer {
    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<Event> {
        for (at, offset) in &self.started {
            if let Some(error) = self.faults.read_error(at, *offset) {
                let at = at.clone();
                self.started.remove(&at);
                self.consumer.pause(std::slice::from_ref(&at))?;
                batch.clear();
                return Err(error);
            }
        }
        self.consumer.poll(batch, max_bytes, timeout)
    }

    fn start(&mut self, at: &TopicPartition, offset: Offset) -> Result<()> {
        self.started.insert(at.clone(), offset);
        self.consumer.start(at, offset)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.consumer.pause(partitions)
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.consumer.resume(partitions)
    }

    fn unassigned(&self) -> Vec<Arc<str>> {
        self.consumer.unassigned()
    }

    fn group_metadata(&self) -> Result<GroupMetadata> {
        self.consumer.group_metadata()
    }

    fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        self.faults.write(|| self.consumer.commit(offsets))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.consumer.close()
    }
}
