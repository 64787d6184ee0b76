//! The log of the instances of the tested application: the embedded log, with faults at commits.
//!
//! Each fault applies to one commit, in the order in which the test requested them. Members are not static, so a member
//! that leaves or crashes is removed immediately.

use event_log::{
    Committed, EventLog, GroupConfig, GroupConsumer, GroupInfo, GroupMetadata, Isolation, Offset, OffsetSpec, OutBatch,
    Outcome, Produced, Reader, Result, SharedEventLog, TopicInfo, TopicPartition, TopicSpec, TransactionalProducer,
    TransactionalProducerConfig,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A fault of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process crashes with its transaction open.
    CrashBefore,
    /// The process crashes after the transaction has been committed, and before the store is written.
    CrashAfter,
    /// The log aborts the transaction.
    Abort,
    /// The log commits the transaction, but the response is lost.
    LostAnswer,
}

/// Panic payload of a crashed process.
pub(super) struct Crashed;

/// The pending faults.
pub(super) type Faults = Arc<Mutex<VecDeque<Fault>>>;

/// Locks the faults.
pub(super) fn locked(faults: &Faults) -> MutexGuard<'_, VecDeque<Fault>> {
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The embedded log, with the requested faults.
pub(super) struct FaultyLog {
    pub log: SharedEventLog,
    pub faults: Faults,
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
        self.log.committed(group, partitions)
    }

    fn set_committed(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        self.log.set_committed(group, offsets)
    }

    fn groups(&self) -> Result<Vec<GroupInfo>> {
        self.log.groups()
    }

    fn group(&self, config: GroupConfig) -> Result<Box<dyn GroupConsumer>> {
        let instance = None;
        self.log.group(GroupConfig { instance, ..config })
    }

    fn reader(&self, isolation: Isolation) -> Result<Box<dyn Reader>> {
        self.log.reader(isolation)
    }

    fn transactional_producer(&self, config: TransactionalProducerConfig) -> Result<Box<dyn TransactionalProducer>> {
        let producer = self.log.transactional_producer(config)?;
        let faults = self.faults.clone();
        Ok(Box::new(FaultyProducer { producer, faults }))
    }

    fn append(&self, records: &OutBatch) -> Result<Vec<Produced>> {
        self.log.append(records)
    }

    fn describe_self(&self) -> String {
        self.log.describe_self()
    }

    fn log_epoch(&self) -> Result<String> {
        self.log.log_epoch()
    }
}

/// A transactional producer whose next commit may fail.
struct FaultyProducer {
    producer: Box<dyn TransactionalProducer>,
    faults: Faults,
}

impl TransactionalProducer for FaultyProducer {
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
        let fault = locked(&self.faults).pop_front();
        let reason = "injected by the test".to_owned();
        match fault {
            None => self.producer.commit(consumed),
            Some(Fault::CrashBefore) => std::panic::resume_unwind(Box::new(Crashed)),
            Some(Fault::CrashAfter) => {
                let outcome = self.producer.commit(consumed);
                assert!(
                    matches!(outcome, Outcome::Committed(_)),
                    "a crash after the commit requires a commit: {outcome:?}"
                );
                std::panic::resume_unwind(Box::new(Crashed))
            }
            Some(Fault::Abort) => match self.producer.abort() {
                Ok(()) => Outcome::Aborted { fenced: false, reason },
                Err(error) => Outcome::Unknown {
                    reason: error.to_string(),
                },
            },
            Some(Fault::LostAnswer) => {
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
