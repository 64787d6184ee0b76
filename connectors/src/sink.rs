//! What a sink is: something outside that takes the records of topics, in the order of each partition.
//!
//! The loop that drives sinks, with its retries, dead letters and offsets, comes with the first of them; a sink is only
//! `open`, `write`, `flush`, as a source is only `open`, `next`, `committed`.
//! Guarantees: a record counts as delivered only when a `flush` after its `write` has succeeded.
//! Never: an offset, a retry or a state in a sink.

use crate::error::Result;
use event_log::RecordBatch;

/// What became of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// Taken; a flush makes it last.
    Taken,
    /// Not taken now, such as by a limit of the other side; it and the rest of its partition are offered again.
    Later {
        /// Why, for people.
        reason: String,
    },
    /// Never going to be taken: it becomes a dead letter, and its partition goes on.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// Something outside that takes records. Used by one thread, which lends it an async runtime.
#[expect(
    async_fn_in_trait,
    reason = "the loop drives a sink on a thread of its own: no future crosses a thread"
)]
pub trait Sink {
    /// Connects; also after [`Sink::close`].
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] and [`crate::Error::Refused`] are tried again, less and less often.
    async fn open(&mut self) -> Result<()>;

    /// Offers records. Each is offered at least once; a sink that can tell a record from its repetition, by topic,
    /// partition and offset, makes that exactly once. Gives what became of each, in the batch's order.
    ///
    /// # Errors
    /// When it is not known what became of the batch: all of it is offered again.
    async fn write(&mut self, records: &RecordBatch) -> Result<Vec<Delivery>>;

    /// Returns when everything that was taken will outlive a crash of the other side.
    ///
    /// # Errors
    /// When that is not known: everything since the last success is offered again.
    async fn flush(&mut self) -> Result<()>;

    /// Lets go of everything outside at once. Then it can be opened again.
    fn close(&mut self);
}
