//! Consumers: [`GroupConsumer`] reads as a member of a consumer group, [`Reader`] reads explicitly assigned partitions.
//!
//! A group consumer has no rebalance callback: `poll` returns assignment changes as [`Event`]s, in the order in which
//! they happen. No record of a partition is returned before [`GroupConsumer::start`] was called for it, nor after the
//! `Revoked` or `Lost` event of the partition. Offsets are never committed or reset automatically.

use crate::{Millis, Offset, RecordBatch, Result, TopicPartition};
use std::sync::Arc;
use std::time::Duration;

/// Isolation level of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Returns records of committed transactions and records outside transactions, up to the last stable offset.
    ReadCommitted,
    /// Returns all records up to the log end, including those of open and aborted transactions.
    ReadUncommitted,
}

/// The rebalance protocol of a consumer group. All members of a group should use the same protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupProtocol {
    /// A rebalance revokes all partitions from all members and assigns them again. A member that joins with the
    /// instance name of an active member fences it.
    #[default]
    Classic,
    /// Kafka's `group.protocol=consumer` (KIP-848): a rebalance revokes only the partitions that move. An instance name
    /// belongs to its member until that member leaves or its session times out; until then no other member can join
    /// with that name. Session timeout and heartbeat interval are settings of the broker. The generation may rise
    /// without an event, so [`GroupConsumer::group_metadata`] must be called before each commit.
    Consumer,
}

/// Options of a group consumer. It uses the range assignor, `read_committed`, no auto-commit and no offset reset.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// Group id.
    pub group: String,
    /// Instance name for static membership (KIP-345): a member that restarts with the same name gets its old
    /// partitions back without a rebalance.
    pub instance: Option<String>,
    /// Topics to subscribe to; all must exist.
    pub topics: Vec<Arc<str>>,
    /// Time without heartbeats after which the member loses its partitions. With [`GroupProtocol::Consumer`] it applies
    /// to the embedded log only; Kafka uses the broker's `group.consumer.session.timeout.ms`.
    pub session_timeout: Duration,
    /// The rebalance protocol.
    pub protocol: GroupProtocol,
}

/// The membership under which records were read. [`crate::TransactionalProducer::commit`] sends it with the offsets, so
/// that a member that lost its partitions cannot commit for them (KIP-447, invariant C6 of `docs/protocol/commit.md`).
///
/// Must not be kept after an `Assigned`, `Revoked` or `Lost` event. With [`GroupProtocol::Consumer`] it is valid for one
/// commit only.
#[derive(Debug, Clone)]
pub struct GroupMetadata {
    /// Group id.
    pub group: String,
    /// Generation id (member epoch with KIP-848), for logs and tests.
    pub generation: i32,
    pub(crate) token: MemberToken,
}

impl GroupMetadata {
    /// Returns group metadata for a simulated event log in tests.
    pub fn simulated(group: impl Into<String>, generation: i32) -> Self {
        GroupMetadata {
            group: group.into(),
            generation,
            token: MemberToken::Embedded(0),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum MemberToken {
    Kafka(Arc<crate::kafka::group_metadata::KafkaGroupMetadata>),
    Embedded(u64),
}

/// Result of [`GroupConsumer::poll`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The batch contains records.
    Records,
    /// No record arrived before the timeout.
    Idle,
    /// These partitions were added to the assignment. Call [`GroupConsumer::start`] for each of them to read it.
    Assigned(Vec<TopicPartition>),
    /// These partitions are about to be revoked. Their offsets can still be committed; the next `poll` gives the
    /// partitions up. Other partitions of the member are not affected.
    Revoked(Vec<TopicPartition>),
    /// These partitions already belong to another member. Discard their uncommitted work: a commit would be rejected.
    Lost(Vec<TopicPartition>),
}

/// A member of a consumer group, used by one thread. A consumer that is dropped without [`GroupConsumer::close`] looks
/// to the group like a consumer that crashed; the embedded log notices it immediately.
pub trait GroupConsumer: Send {
    /// Clears `batch` and returns the next event. On [`Event::Records`] the batch has at most about `max_bytes` of
    /// records. Waits up to `timeout` for the first record, but not for further records.
    ///
    /// # Errors
    /// - An error whose [`crate::Error::scope`] is a partition: it cannot be read, for example because the log no longer
    ///   has the record at its position. Returned once, after all records before it; the partition is then not read
    ///   until `start`. A paused partition returns no error. Other partitions are not affected.
    /// - An error whose scope is a topic: a subscribed topic was deleted, or access to it was denied. Returned once.
    /// - [`crate::Error::Fenced`]: another process joined with the same instance name and owns the partitions.
    /// - [`crate::Error::Occupied`]: an active member has the instance name ([`GroupProtocol::Consumer`] only).
    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<Event>;

    /// Starts to read an assigned partition at an offset, or continues at that offset if the partition was already
    /// started, including after an error of the partition. A paused partition remains paused.
    fn start(&mut self, at: &TopicPartition, offset: Offset) -> Result<()>;

    /// Pauses these partitions. Records that were fetched but not returned are fetched again after the resume.
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Resumes paused partitions at the offset after the last record returned.
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Returns the subscribed topics that have a partition without a known owner in the group. Empty when every
    /// partition of the subscription is known to be assigned to a member.
    fn unassigned(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    /// Returns the group metadata for the next commit.
    fn group_metadata(&self) -> Result<GroupMetadata>;

    /// Commits offsets (each the offset *after* the last processed record) outside a transaction and waits until the
    /// commit is durable. For consumers with at-least-once processing.
    ///
    /// # Errors
    /// [`crate::Error::Fenced`] if the member was removed from the group or a newer generation has begun;
    /// nothing is committed.
    fn commit(&mut self, _offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        Err(crate::Error::Rejected {
            attempted: "commit offsets outside a transaction".to_owned(),
            reason: "this event log commits offsets in transactions only".to_owned(),
        })
    }

    /// Leaves the group. A static member keeps its partitions until its session times out.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Where a reader starts to read a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFrom {
    /// At this offset. [`crate::Error::OutOfRange`] if the log does not have it.
    Offset(Offset),
    /// At the earliest offset.
    Earliest,
    /// At the end that the reader's isolation level sees when the partition is assigned: the log end or the last stable
    /// offset. [`Reader::position`] returns it once it is known.
    LogEnd,
}

/// A reader of explicitly assigned partitions, used by one thread.
pub trait Reader: Send {
    /// Replaces the assignment.
    ///
    /// # Errors
    /// [`crate::Error::UnknownTopic`] if a topic or partition does not exist. Either this call or a later poll
    /// returns it.
    fn assign(&mut self, partitions: &[(TopicPartition, StartFrom)]) -> Result<()>;

    /// Clears `batch`, fills it with at most about `max_bytes` of records, and returns their number. Waits up to
    /// `timeout` for the first record, but not for further records.
    ///
    /// # Errors
    /// An error whose [`crate::Error::scope`] is a partition, if that partition cannot be read, for example because the log
    /// does not have the record at its position. Once no other partition has records, every poll returns the error until
    /// the next `assign`.
    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<usize>;

    /// Returns the offset of the next record to read. The position also advances over control records and aborted
    /// records. At the end of the partition it equals the end that the isolation level sees.
    fn position(&self, at: &TopicPartition) -> Option<Offset>;

    /// Returns the latest time in ms, by the clock of the broker or of this machine, at which the reader is known to have
    /// read everything up to its end of the partition; `None` if it has not reached the end since the assignment. While
    /// the reader is polled and stays at the end, the time is refreshed about once a second.
    fn at_end(&self, at: &TopicPartition) -> Option<Millis>;
}
