//! One log, two homes: the narrow trait behind which Kafka and the embedded log are the same thing.
//!
//! Guarantees: the cases of `tests/conformance/event_log.rs` hold for every implementation; nothing above this crate can tell
//! which one runs. Every call blocks the calling thread (no async here): callers own their threads.
//! Never: an event, a topic name or a policy of Trunkline; a callback into business code.

mod batch;
mod consumer;
mod error;
mod topic;
mod transactional_producer;

pub mod embedded;
pub mod kafka;
pub mod partitioner;

pub use batch::{Header, Headers, OutBatch, OutRecord, RecordBatch, RecordRef, TimestampType};
pub use consumer::{Event, GroupConfig, GroupConsumer, GroupMetadata, GroupProtocol, Isolation, Reader, StartFrom};
pub use error::{Error, ErrorAction, Result};
pub use topic::{
    Cleanup, GroupInfo, MemberInfo, TimestampPolicy, TopicConfig, TopicId, TopicInfo, TopicPartition, TopicSpec,
};
pub use transactional_producer::{Outcome, Produced, Producer, TransactionalProducer, TransactionalProducerConfig};

use std::collections::BTreeMap;
use std::sync::Arc;

/// An offset in a partition. Offsets rise strictly; gaps are normal (aborted records, control records, compaction).
pub type Offset = i64;

/// Milliseconds since the Unix epoch, by the broker's clock unless said otherwise.
pub type Millis = i64;

/// Which offset of a partition is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first offset that is still kept.
    Earliest,
    /// The offset after the last record or control record, open transactions included (read_uncommitted end).
    LogEnd,
    /// The last stable offset: below it no transaction is open (read_committed end).
    LastStable,
    /// The first offset whose record's timestamp is at or after the given time, in ms; the end when there is none. Where
    /// to begin reading from: the record that was found may be an aborted or still open one, or a control record.
    Timestamp(Millis),
}

/// Committed offsets of a group; a partition without one is `None`.
pub type Committed = BTreeMap<TopicPartition, Option<Offset>>;

/// One log: topics, offsets, groups, readers, sessions. Cheap to clone behind its `Arc`, safe to share.
pub trait EventLog: Send + Sync {
    /// Creates the topics that do not exist and says, per topic, whether it did (`true`) or it was there (`false`).
    /// An existing topic's partition count and configuration are left alone: compare with [`EventLog::describe`].
    ///
    /// # Errors
    /// [`Error::InvalidTopic`] for a refused name, count or setting; [`Error::Unavailable`] after the time limit.
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<bool>>;

    /// Describes a topic with its id, partition count and configuration; `None` when it does not exist.
    fn describe(&self, topic: &str) -> Result<Option<TopicInfo>>;

    /// Lists the names of all topics, sorted, internal ones (`__…`) left out.
    fn topics(&self) -> Result<Vec<String>>;

    /// Alters settings of a topic (names as in Kafka, such as `retention.ms`); settings not named keep their values.
    fn alter_topic(&self, topic: &str, settings: &[(String, String)]) -> Result<()>;

    /// Deletes a topic, its records, and, soon after, the groups' offsets of it. Deleting a topic that does not exist is
    /// [`Error::UnknownTopic`]. Who reads it gets that error too.
    fn delete_topic(&self, topic: &str) -> Result<()>;

    /// Looks one offset of a partition up.
    fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> Result<Offset>;

    /// Looks one offset of each of these partitions up, in their order; in one request where the log can.
    fn offsets(&self, partitions: &[TopicPartition], which: OffsetSpec) -> Result<Vec<Offset>> {
        partitions.iter().map(|at| self.offset(at, which)).collect()
    }

    /// Fetches the *stable* committed offsets of a group: waits for pending transactional commits of these
    /// partitions to be decided (`require_stable`), at most the request's time limit.
    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Committed>;

    /// Sets a group's offsets outside a transaction, for operators' resets and for explicit first starts. The group
    /// must have no live member, or must be the caller's own, and the partitions not yet started.
    fn set_committed(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Result<()>;

    /// Lists the groups with their members and committed offsets.
    fn groups(&self) -> Result<Vec<GroupInfo>>;

    /// Describes one group; `None` when there is none of this name (some logs tell an empty, `Dead` one instead).
    fn group_info(&self, group: &str) -> Result<Option<GroupInfo>> {
        Ok(self.groups()?.into_iter().find(|info| info.group == group))
    }

    /// Joins a consumer group.
    fn group(&self, config: GroupConfig) -> Result<Box<dyn GroupConsumer>>;

    /// Opens a reader of explicitly assigned partitions, outside every group.
    fn reader(&self, isolation: Isolation) -> Result<Box<dyn Reader>>;

    /// Opens a transactional session: fences every earlier session of the same `transactional_id` and ends its open
    /// transaction before it returns.
    fn transactional_producer(&self, config: TransactionalProducerConfig) -> Result<Box<dyn TransactionalProducer>>;

    /// Appends records outside any transaction and waits until they are durable; returns where each batch's records
    /// ended up, as [`Produced`]. For single-record writers such as the HTTP ingest.
    ///
    /// # Errors
    /// The first record's that is not taken; records of other partitions may be written all the same.
    fn append(&self, records: &OutBatch) -> Result<Vec<Produced>>;

    /// Opens an producer: an idempotent producer of its caller's own.
    fn producer(&self) -> Result<Box<dyn Producer>> {
        Err(Error::Refused {
            attempted: "open an producer".to_owned(),
            reason: "this log writes in transactions alone".to_owned(),
        })
    }

    /// Whether the log is in reach, as far as is known without asking: fails when no broker has answered for 3 s.
    fn check_reach(&self) -> Result<()> {
        Ok(())
    }

    /// Names the log for people: `kafka 127.0.0.1:9092` or `embedded DIR`.
    fn describe_self(&self) -> String;

    /// The log's log_epoch: an id that changes when the log is rebuilt from nothing (Kafka: the cluster id).
    fn log_epoch(&self) -> Result<String>;
}

/// A shared log.
pub type SharedEventLog = Arc<dyn EventLog>;
