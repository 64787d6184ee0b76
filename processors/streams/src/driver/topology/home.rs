//! The log as the instances of a driven application see it: the embedded one, with a fault at a commit where the test
//! asked for one.
//!
//! Guarantees: a fault befalls exactly one commit, in the order in which they were asked for; everything else is the
//! embedded log. Members have no static seat: who leaves or dies is missed at once.
//! Never: a fault by chance.

use event_log::{
    Committed, EventLog, GroupConfig, GroupConsumer, GroupInfo, GroupMetadata, Isolation, Offset, OffsetSpec, OutBatch,
    Outcome, Produced, Reader, Result, SharedEventLog, TopicInfo, TopicPartition, TopicSpec, TransactionalProducer,
    TransactionalProducerConfig,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What befalls a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process dies with its transaction open.
    CrashBefore,
    /// The process dies when the transaction is committed and the store not yet written.
    CrashAfter,
    /// The log aborts the transaction and says so.
    Abort,
    /// The log commits it, and the answer is lost.
    LostAnswer,
}

/// What the thread of a process that dies unwinds with.
pub(super) struct Crashed;

/// The faults that are still to come.
pub(super) type Faults = Arc<Mutex<VecDeque<Fault>>>;

/// The faults, to be read or changed.
pub(super) fn locked(faults: &Faults) -> MutexGuard<'_, VecDeque<Fault>> {
    faults.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The log with its faults.
pub(super) struct Home {
    pub log: SharedEventLog,
    pub faults: Faults,
}

impl EventLog for Home {
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
        let session = self.log.transactional_producer(config)?;
        let faults = self.faults.clone();
        Ok(Box::new(Frail { session, faults }))
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

/// A session whose next commit may fail.
struct Frail {
    session: Box<dyn TransactionalProducer>,
    faults: Faults,
}

impl TransactionalProducer for Frail {
    fn begin(&mut self) -> Result<()> {
        self.session.begin()
    }

    fn send(&mut self, records: &OutBatch) -> Result<()> {
        self.session.send(records)
    }

    fn flush(&mut self) -> Result<()> {
        self.session.flush()
    }

    fn commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome {
        let fault = locked(&self.faults).pop_front();
        let reason = "the test asked for it".to_owned();
        match fault {
            None => self.session.commit(consumed),
            Some(Fault::CrashBefore) => std::panic::resume_unwind(Box::new(Crashed)),
            Some(Fault::CrashAfter) => {
                let outcome = self.session.commit(consumed);
                assert!(
                    matches!(outcome, Outcome::Committed(_)),
                    "a crash after a commit needs one: {outcome:?}"
                );
                std::panic::resume_unwind(Box::new(Crashed))
            }
            Some(Fault::Abort) => match self.session.abort() {
                Ok(()) => Outcome::Aborted { fenced: false, reason },
                Err(error) => Outcome::Unknown {
                    reason: error.to_string(),
                },
            },
            Some(Fault::LostAnswer) => {
                drop(self.session.commit(consumed));
                Outcome::Unknown { reason }
            }
        }
    }

    fn abort(&mut self) -> Result<()> {
        self.session.abort()
    }

    fn init_transactions(&mut self) -> Result<()> {
        self.session.init_transactions()
    }

    fn transactional_id(&self) -> &str {
        self.session.transactional_id()
    }
}
