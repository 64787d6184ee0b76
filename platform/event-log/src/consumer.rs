//! Reading: as a member of a group, or from partitions of one's own choice.
//!
//! Guarantees: assignment changes are values that `poll` returns, in the order in which they happen; nothing is read
//! from a partition before its `Assigned` was answered with `start`, nor after its `Revoked` or `Lost` was returned.
//! Never: an automatic commit, an automatic offset reset.

use crate::{Millis, Offset, RecordBatch, Result, TopicPartition};
use std::sync::Arc;
use std::time::Duration;

/// Which records a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Records of committed transactions and records without one, up to the last stable offset.
    ReadCommitted,
    /// Everything that was appended.
    ReadUncommitted,
}

/// How the members of a group agree on who reads what. All members of a group should speak the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupProtocol {
    /// Every change takes every partition from every member and deals them anew. The same instance name fences the
    /// member before.
    #[default]
    Classic,
    /// Kafka's `group.protocol=consumer` (KIP-848): only what moves is revoked, the rest goes on being read. An instance
    /// name belongs to the member that has it until that one leaves or its session is over; the next waits. Sessions and
    /// heartbeats are the broker's settings, and [`GroupMetadata`] must be asked for before each commit, as its generation may
    /// rise without an event.
    Consumer,
}

/// How to join a group. Range assignor, read_committed, no automatic commit or reset.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// Group id.
    pub group: String,
    /// Static membership: the same name after a restart takes its old partitions without a rebalance.
    pub instance: Option<String>,
    /// Topics to subscribe to; all must exist.
    pub topics: Vec<Arc<str>>,
    /// How long a silent member keeps its partitions. With [`GroupProtocol::Consumer`] Kafka's brokers say that, by
    /// `group.consumer.session.timeout.ms`, and this is for the embedded log alone.
    pub session_timeout: Duration,
    /// The protocol of the group.
    pub protocol: GroupProtocol,
}

/// The membership under which records were read: `TransactionalProducer::commit` carries it, so that a member which has lost its
/// partitions cannot commit. Opaque; never kept over an `Assigned`, `Revoked` or `Lost`, and with
/// [`GroupProtocol::Consumer`] for one commit only.
#[derive(Debug, Clone)]
pub struct GroupMetadata {
    /// Group id.
    pub group: String,
    /// Generation, for logs and tests.
    pub generation: i32,
    pub(crate) token: MemberToken,
}

impl GroupMetadata {
    /// The membership of a log that is neither of the two homes: for simulators in tests.
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
    Kafka(Arc<crate::kafka::KafkaGroupMetadata>),
    Embedded(u64),
}

/// What `poll` returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Records were put into the batch.
    Records,
    /// Nothing within the time limit, or nothing more to read.
    Idle,
    /// These partitions are now this member's, beside those it has. Nothing is read from them before
    /// [`GroupConsumer::start`].
    Assigned(Vec<TopicPartition>),
    /// These partitions are about to be taken: a commit still fits. The next `poll` gives them up. Others that the
    /// member has stay as they are.
    Revoked(Vec<TopicPartition>),
    /// These partitions are already another's: drop what was not committed, a commit would be refused.
    Lost(Vec<TopicPartition>),
}

/// A member of a consumer group. Used by one thread.
pub trait GroupConsumer: Send {
    /// Returns the next event; `Records` fills `batch` (cleared first) with at most about `max_bytes`. Waits at most
    /// `timeout` for the first record and not at all for more.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] when a position is not kept (there is no automatic reset): again at every poll until
    /// `start` moves that partition; [`crate::Error::Fenced`] when another process has joined under the same instance
    /// name, which has the partitions now; [`crate::Error::Occupied`] while another member has the instance name, which
    /// keeps it ([`GroupProtocol::Consumer`]); [`crate::Error::UnknownTopic`] when a topic was deleted.
    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<Event>;

    /// Starts reading an assigned partition at an offset, or moves it there, also after it was out of range. A paused
    /// partition stays paused.
    fn start(&mut self, at: &TopicPartition, offset: Offset) -> Result<()>;

    /// Stops fetching these partitions until [`GroupConsumer::resume`]; records already fetched are not returned.
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Goes on with paused partitions at the offset after the last record returned.
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Subscribed topics that no member of the group is known to read yet. Empty once the group's assignment is known to
    /// cover the subscription.
    fn unassigned(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    /// The membership for the next commit.
    fn group_metadata(&self) -> Result<GroupMetadata>;

    /// Commits offsets (each the offset *after* the last record consumed) outside any transaction, and waits until that is
    /// durable. For whoever does without transactions; the next owner of the partitions finds them.
    ///
    /// # Errors
    /// [`crate::Error::Fenced`] when the member has lost its seat or its generation is over: nothing is committed then.
    fn commit(&mut self, _offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        Err(crate::Error::Refused {
            attempted: "commit offsets as a member".to_owned(),
            reason: "this log commits them in transactions alone".to_owned(),
        })
    }

    /// Leaves the group. A static member's seat is kept until its session timeout. A member that is dropped without is
    /// as one that crashed; in the embedded log that is known at once.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Where a reader starts in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFrom {
    /// At this offset; [`crate::Error::OutOfRange`] when it is no longer kept.
    Offset(Offset),
    /// At the first offset kept.
    Earliest,
    /// At the reader's own end when it is assigned: the stable end when it is read_committed. Settled once
    /// [`Reader::position`] tells it.
    LogEnd,
}

/// A reader of explicitly assigned partitions. Used by one thread.
pub trait Reader: Send {
    /// Replaces the partitions that are read. What does not exist is [`crate::Error::UnknownTopic`], here or at a poll.
    fn assign(&mut self, partitions: &[(TopicPartition, StartFrom)]) -> Result<()>;

    /// Fills `batch` (cleared first) with at most about `max_bytes`; waits at most `timeout` for the first record and
    /// not at all for more. Returns the number of records.
    ///
    /// # Errors
    /// [`crate::Error::OutOfRange`] when a position is not kept, again at every poll until another assignment.
    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<usize>;

    /// The next offset to be read: past control records and aborted records too, once they were passed over. At the
    /// end of a partition it equals the (stable, when read_committed) end.
    fn position(&self, at: &TopicPartition) -> Option<Offset>;

    /// When, by the broker's or this machine's clock in ms, the reader last stood at the end of the partition, if it
    /// did since it was assigned: a proof that it had seen everything stable at that time. It is renewed for as long as
    /// the reader is polled and stays at the end, within a second or so.
    fn at_end(&self, at: &TopicPartition) -> Option<Millis>;
}
