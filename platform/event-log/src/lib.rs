//! The event log: one interface to topics, consumer groups, readers and transactional producers.
//!
//! [`EventLog`] has two backends, Apache Kafka ([`kafka`]) and an embedded log for development and tests
//! ([`embedded`]). The conformance suite in `tests/conformance/event_log.rs` runs with both, so code above this crate
//! need not know which one it uses. All calls block the calling thread; the crate has no async code and no callbacks.

mod batch;
mod consumer;
mod dead_letters;
mod error;
mod parallel;
mod topic;
mod transactional_producer;

pub mod embedded;
pub mod kafka;
pub mod partitioner;

pub use batch::{Header, Headers, NewRecord, OutBatch, OutRecord, RecordBatch, RecordRef, RecordSlice, TimestampType};
pub use consumer::{Event, GroupConfig, GroupConsumer, GroupMetadata, GroupProtocol, Isolation, Reader, StartFrom};
pub use dead_letters::{DeadLetterTopics, dead_letter_topic, origin_of_dead_letters};
pub use error::{Error, ErrorAction, ErrorScope, Result};
pub use parallel::in_parallel;
pub use topic::{
    Cleanup, GroupInfo, MemberInfo, TimestampPolicy, TopicConfig, TopicId, TopicInfo, TopicPartition, TopicSpec,
};
pub use transactional_producer::{Outcome, Produced, Producer, TransactionalProducer, TransactionalProducerConfig};

use std::collections::BTreeMap;
use std::sync::Arc;

/// An offset in a partition. Offsets increase strictly but have gaps, left by control records, aborted transactions and
/// compaction.
pub type Offset = i64;

/// Milliseconds since the Unix epoch, by the broker's clock unless stated otherwise.
pub type Millis = i64;

/// Which offset of a partition to look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first offset that is still kept.
    Earliest,
    /// The log end: the offset after the last record or control record, including those of open transactions. The end
    /// that a `read_uncommitted` reader sees.
    LogEnd,
    /// The last stable offset: the first offset of an open transaction, or the log end. The end that a `read_committed`
    /// reader sees.
    LastStable,
    /// The offset of the first record whose timestamp is at or after the given time, or the log end if there is none. The
    /// record may belong to an open or aborted transaction, so a reader may return a later one first.
    Timestamp(Millis),
}

/// Committed offsets of a group by partition; `None` for a partition without a committed offset.
pub type Committed = BTreeMap<TopicPartition, Option<Offset>>;

/// An event log: topics, offsets, consumer groups, readers and producers. Shared between threads as [`SharedEventLog`].
pub trait EventLog: Send + Sync {
    /// Creates the topics that do not exist. Returns for each topic whether it was created (`true`) or existed already
    /// (`false`). Existing topics are not changed; compare their settings with [`EventLog::describe`].
    ///
    /// # Errors
    /// [`Error::InvalidTopic`] if a name, partition count or setting is invalid; [`Error::Unavailable`] after the request
    /// timeout.
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<bool>>;

    /// Returns a topic's id, partition count and settings, or `None` if it does not exist.
    fn describe(&self, topic: &str) -> Result<Option<TopicInfo>>;

    /// Lists the names of all topics in sorted order, without internal topics (`__…`).
    fn topics(&self) -> Result<Vec<String>>;

    /// Changes settings of a topic, by their Kafka names such as `retention.ms`. Other settings keep their values.
    fn alter_topic(&self, topic: &str, settings: &[(String, String)]) -> Result<()>;

    /// Deletes a topic and its records. Committed offsets of the topic are deleted shortly afterwards, and its readers fail
    /// with [`Error::UnknownTopic`].
    ///
    /// # Errors
    /// [`Error::UnknownTopic`] if the topic does not exist.
    fn delete_topic(&self, topic: &str) -> Result<()>;

    /// Looks up one offset of a partition.
    fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> Result<Offset>;

    /// Looks up the same offset of several partitions and returns the results in their order. Kafka answers all of them
    /// in one request.
    fn offsets(&self, partitions: &[TopicPartition], which: OffsetSpec) -> Result<Vec<Offset>> {
        partitions.iter().map(|at| self.offset(at, which)).collect()
    }

    /// Fetches the stable committed offsets of a group (`require_stable`, KIP-447): waits until pending transactional
    /// commits of these partitions are decided.
    ///
    /// # Errors
    /// [`Error::Undecided`] if such a commit is still pending after the request timeout.
    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Committed>;

    /// Sets committed offsets of a group outside a transaction, for resets and for the first start of a partition.
    ///
    /// Either the group has no active members, or a member in this process owns the partitions and has not yet called
    /// [`GroupConsumer::start`] for them.
    fn set_committed(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Result<()>;

    /// Lists all groups with their members and committed offsets.
    fn groups(&self) -> Result<Vec<GroupInfo>>;

    /// Describes one group. A group that does not exist is `None` or, on some brokers, an empty group in state `Dead`.
    fn group_info(&self, group: &str) -> Result<Option<GroupInfo>> {
        Ok(self.groups()?.into_iter().find(|info| info.group == group))
    }

    /// Joins a consumer group.
    fn group(&self, config: GroupConfig) -> Result<Box<dyn GroupConsumer>>;

    /// Opens a reader of explicitly assigned partitions, without a consumer group.
    fn reader(&self, isolation: Isolation) -> Result<Box<dyn Reader>>;

    /// Opens a transactional producer. Before it returns, earlier producers with the same `transactional_id` are fenced
    /// and their open transaction is committed or aborted.
    fn transactional_producer(&self, config: TransactionalProducerConfig) -> Result<Box<dyn TransactionalProducer>>;

    /// Appends records outside a transaction, waits until they are durable and returns their offsets by partition. For
    /// writers of single records; use [`EventLog::producer`] for many.
    ///
    /// # Errors
    /// The error of the first record that was not written. Other records of the batch may have been written.
    fn append(&self, records: &OutBatch) -> Result<Vec<Produced>>;

    /// Appends several batches as [`EventLog::append`] would, and returns their results in the same order. Kafka's backend
    /// sends all of them before it waits, so that they share requests.
    fn append_each(&self, batches: &[OutBatch]) -> Vec<Result<Vec<Produced>>> {
        batches.iter().map(|records| self.append(records)).collect()
    }

    /// Opens an idempotent producer without transactions.
    fn producer(&self) -> Result<Box<dyn Producer>> {
        Err(Error::Rejected {
            attempted: "open a producer without transactions".to_owned(),
            reason: "this event log supports transactional producers only".to_owned(),
        })
    }

    /// Fails if no broker has answered for 3 s, or if an embedded log rejects writes. Uses the state of existing
    /// connections and sends no request.
    fn check_reachable(&self) -> Result<()> {
        Ok(())
    }

    /// Returns a notice for operators if an embedded log cut or lost data when it was opened.
    fn notice(&self) -> Option<Notice> {
        None
    }

    /// Returns a description for logs and messages: `kafka 127.0.0.1:9092` or `embedded DIR`.
    fn description(&self) -> String;

    /// Returns the log epoch, which identifies this log: Kafka's cluster id, or a UUID of the embedded log. A log that was
    /// recreated has another epoch, so positions in the old one are meaningless in it.
    fn log_epoch(&self) -> Result<String>;
}

/// Data that an embedded log cut or lost when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Description for operators.
    pub text: String,
    /// Whether acknowledged writes may be lost.
    pub is_loss: bool,
}

/// An event log shared between threads.
pub type SharedEventLog = Arc<dyn EventLog>;
