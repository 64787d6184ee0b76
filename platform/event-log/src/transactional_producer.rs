//! Writing in transactions.
//!
//! Guarantees: records, and the consumed offsets given to `commit`, become visible together or not at all. After an
//! `Unknown` outcome or a fencing the session is of no use until [`TransactionalProducer::init_transactions`]; `init_transactions` fences whatever may
//! still be under way, so that after it the outcome is settled.
//! Never: a retry of a commit whose outcome is unknown.

use crate::{GroupMetadata, Millis, Offset, OutBatch, Result, TopicPartition};
use std::time::Duration;

/// How to open a session.
#[derive(Debug, Clone)]
pub struct TransactionalProducerConfig {
    /// Transactional id: one live session each; a second one fences the first.
    pub transactional_id: String,
    /// After this long from its first record an open transaction is aborted, whether its session is dead or slow; a slow
    /// one learns it as a fencing, as from Kafka. At most the broker's limit (15 minutes by default).
    pub transaction_timeout: Duration,
}

/// Where records of one partition ended up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produced {
    /// The partition.
    pub at: TopicPartition,
    /// Offset of the first record written to it in this transaction (or append).
    pub first_offset: Offset,
    /// Offset of the last record written to it, plus one (the control record is not counted).
    pub next_offset: Offset,
    /// The last record's timestamp in ms; the broker's append time where the topic stamps at the append.
    pub timestamp: Millis,
}

/// How a transaction ended.
#[derive(Debug)]
pub enum Outcome {
    /// Committed: records and offsets are visible.
    Committed(Vec<Produced>),
    /// Aborted: nothing of it is or will be visible. `fenced` when another session or member has taken over, or the
    /// transaction's time limit was reached; the session needs [`TransactionalProducer::init_transactions`] in every case. A commit without a
    /// `begin` is aborted too, and changes nothing.
    Aborted {
        /// Another session of the id, or another generation of the group, was the reason.
        fenced: bool,
        /// Why, in the log's words.
        reason: String,
    },
    /// Nobody knows: [`TransactionalProducer::init_transactions`], then look.
    Unknown {
        /// Why, in the log's words.
        reason: String,
    },
}

/// Appends outside transactions, many records at a time: what is sent goes out at once, and is waited for by a flush.
/// Records of one partition keep their order, and none is written twice by it. Used by one thread.
pub trait Producer: Send {
    /// Queues records; waits while the queue is full.
    ///
    /// # Errors
    /// As for [`TransactionalProducer::send`]. What was queued before may be written all the same.
    fn send(&mut self, records: &OutBatch) -> Result<()>;

    /// Waits until everything sent since the last flush is durable, and says where it is.
    ///
    /// # Errors
    /// The first record's that is not, or not provably so: any of them may be written or not, now or a little later, and
    /// the producer is of no more use.
    fn flush(&mut self) -> Result<Vec<Produced>>;
}

/// A transactional producer. Used by one thread.
pub trait TransactionalProducer: Send {
    /// Begins a transaction. Refused while one is open, and after a failed commit until [`TransactionalProducer::init_transactions`]. Nobody is asked:
    /// a session that another has fenced learns it with what it sends or commits.
    fn begin(&mut self) -> Result<()>;

    /// Queues records in the open transaction; waits while the queue is full.
    ///
    /// # Errors
    /// [`crate::Error::TooLarge`] for a record that is larger than its topic or the client takes: nothing of this batch
    /// after it was queued, and the transaction can only be aborted (a commit is [`Outcome::Aborted`], not fenced). A
    /// topic that does not exist is [`crate::Error::UnknownTopic`] here, or an aborted commit.
    fn send(&mut self, records: &OutBatch) -> Result<()>;

    /// Waits until what was sent in the open transaction is written. A commit does so by itself; an abort does not, and
    /// leaves no mark where nothing was written.
    ///
    /// # Errors
    /// As for `send`: the transaction can then only be aborted.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Ends the transaction: waits until the records are written, adds the consumed offsets (each the offset *after*
    /// the last record consumed) under the membership that read them, and commits.
    fn commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome;

    /// Aborts the open transaction, if there is one; the next may begin at once. What still waited in a queue takes no
    /// offset.
    fn abort(&mut self) -> Result<()>;

    /// Replaces the inner producer by a new one of the same id, at any time: fences the old one, and whoever else has
    /// taken the id over, and ends the open transaction.
    fn init_transactions(&mut self) -> Result<()>;

    /// The transactional id.
    fn transactional_id(&self) -> &str;
}
