//! Producers: [`TransactionalProducer`] writes in transactions, [`Producer`] without.
//!
//! The records of a transaction and the consumed offsets passed to `commit` become visible together or not at all
//! (invariant C2 of `docs/protocol/commit.md`). After [`Outcome::Unknown`], after fencing and after any other failed
//! commit the producer can only be replaced with [`TransactionalProducer::init_transactions`], which also commits or
//! aborts the transaction. A commit with an unknown outcome is never retried (C5).

use crate::{GroupMetadata, Millis, Offset, OutBatch, Result, TopicPartition};
use std::time::Duration;

/// Options of a transactional producer.
#[derive(Debug, Clone)]
pub struct TransactionalProducerConfig {
    /// Transactional id. Opening a second producer with the same id fences the first.
    pub transactional_id: String,
    /// Time from the first record after which the broker aborts an open transaction and fences its producer. Kafka
    /// rejects a value above `transaction.max.timeout.ms` (15 minutes by default).
    pub transaction_timeout: Duration,
}

/// Offsets of the records written to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produced {
    /// The partition.
    pub at: TopicPartition,
    /// Offset of the first record written by this transaction, flush or append.
    pub first_offset: Offset,
    /// Offset of the last record written, plus one. The control record that ends a transaction is not counted.
    pub next_offset: Offset,
    /// Timestamp of the last record in ms; the broker's time if the topic uses `LogAppendTime`.
    pub timestamp: Millis,
}

/// Result of a commit.
#[derive(Debug)]
pub enum Outcome {
    /// Records and offsets are committed.
    Committed(Vec<Produced>),
    /// Nothing of the transaction is or will become visible. The producer needs
    /// [`TransactionalProducer::init_transactions`], except after a commit without an open transaction, which has no
    /// effect.
    Aborted {
        /// Another producer with the same id, or a newer generation of the group, has taken over, or the transaction
        /// timed out.
        fenced: bool,
        /// The cause, as reported by the log.
        reason: String,
    },
    /// The transaction may have been committed. Call [`TransactionalProducer::init_transactions`], then read the committed
    /// offsets to find out.
    Unknown {
        /// The cause, as reported by the log.
        reason: String,
    },
}

/// An idempotent producer without transactions, used by one thread.
///
/// Records are sent as soon as they are queued. Records of one partition keep their order, and no record is written
/// twice.
pub trait Producer: Send {
    /// Queues records; blocks while the queue is full.
    ///
    /// # Errors
    /// As for [`TransactionalProducer::send`]. Records queued before the failing one may be written.
    fn send(&mut self, records: &OutBatch) -> Result<()>;

    /// Waits until all records sent since the last flush are durable and returns their offsets.
    ///
    /// # Errors
    /// The error of the first record that is not known to be durable. Any record since the last flush may have been
    /// written or may still be written, and the producer must not be used again.
    fn flush(&mut self) -> Result<Vec<Produced>>;
}

/// A transactional producer, used by one thread.
pub trait TransactionalProducer: Send {
    /// Begins a transaction. This is a local operation: a fenced producer gets the error only when it sends or commits.
    ///
    /// # Errors
    /// [`crate::Error::Rejected`] while a transaction is open, and after a failed commit until
    /// [`TransactionalProducer::init_transactions`].
    fn begin(&mut self) -> Result<()>;

    /// Queues records in the open transaction; blocks while the queue is full.
    ///
    /// # Errors
    /// [`crate::Error::TooLarge`] for a record larger than the limit of its topic or of the client. The rest of the batch
    /// is not queued, and the transaction can only be aborted: committing it returns [`Outcome::Aborted`] without
    /// fencing. A topic that does not exist is [`crate::Error::UnknownTopic`] here or an aborted commit later.
    fn send(&mut self, records: &OutBatch) -> Result<()>;

    /// Waits until all records sent in the open transaction are written. A commit flushes on its own; an abort does not,
    /// and writes no control record to a partition that received no records.
    ///
    /// # Errors
    /// As for `send`: the transaction can then only be aborted.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Commits the transaction: waits until the records are written, adds the consumed offsets (each the offset *after*
    /// the last processed record) under the group metadata of the consumer that read them, and ends the transaction.
    fn commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome;

    /// Aborts the open transaction, if any. The next transaction can begin immediately. Records that were still queued are
    /// discarded and get no offset.
    fn abort(&mut self) -> Result<()>;

    /// Replaces the underlying producer with a new one of the same transactional id. Fences all earlier producers of
    /// the id, including those of other processes, and aborts their open transaction.
    fn init_transactions(&mut self) -> Result<()>;

    /// Returns the transactional id.
    fn transactional_id(&self) -> &str;
}
