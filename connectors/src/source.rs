//! The [`Source`] trait and the loop that calls it.
//!
//! A source is an external system with a position, whose records are published in the order in which it returns them.
//! [`run`] owns the transactional producer, the stored position, retries and states, so a source implements only
//! `open`, `next`, `committed` and `close`. `committed` is called only with positions that were committed in the
//! transaction of their records.

mod positions;
mod register;
mod run;

pub use positions::positions_spec;
pub(crate) use register::register;
pub use run::{Context, OnMismatch, run};

use crate::error::Result;
use event_log::OutBatch;
use std::fmt;
use std::time::Duration;

/// A position in a source, from which it can continue. It is stored in the positions topic.
pub trait Position: Clone + fmt::Display + Send + 'static {
    /// The stored JSON. Its first member, `"v"`, is the format version.
    fn to_json(&self) -> String;

    /// The last source transaction that is stored completely, in the source's notation (an LSN for PostgreSQL); empty if
    /// there is none yet.
    fn complete(&self) -> String;

    /// Parses the output of [`Position::to_json`].
    ///
    /// # Errors
    /// The reason, such as a newer format version.
    fn from_json(json: &str) -> std::result::Result<Self, String>;
}

/// Limits of one call of [`Source::next`].
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// How long to wait for the first record. The call does not wait for further records.
    pub wait: Duration,
    /// The call returns once the batch has about this number of bytes.
    pub bytes_max: usize,
    /// The call returns once the batch has this number of records.
    pub records_max: usize,
}

/// Records and the position after them.
#[derive(Debug)]
pub struct Batch<P> {
    /// Records in the order of the source.
    pub records: OutBatch,
    /// The position after the records; `None` if it has not changed.
    pub position: Option<P>,
    /// Whether the position must be committed before the next call of [`Source::next`], even if there are no records.
    pub store_now: bool,
}

impl<P> Default for Batch<P> {
    fn default() -> Self {
        Batch {
            records: OutBatch::default(),
            position: None,
            store_now: false,
        }
    }
}

/// Why [`Source::next`] returned. In each case, the batch may end within a source transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// Nothing arrived within the wait time.
    Idle,
    /// Everything that was ready is in the batch.
    Drained,
    /// The batch is full; more is probably ready.
    Full,
}

/// What a source reports besides its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Description of the progress while the source copies tables; `None` otherwise.
    pub snapshot: Option<String>,
    /// Bytes of the source's log that are not yet acknowledged.
    pub lag_bytes: Option<u64>,
}

/// An external system whose changes are published. One thread uses it and provides the async runtime.
#[expect(
    async_fn_in_trait,
    reason = "the loop drives each source on its own thread, so its futures need not be Send"
)]
pub trait Source {
    /// Its position.
    type Position: Position;

    /// Opens the source at the stored position; `None` if no position has been stored yet.
    ///
    /// # Errors
    /// [`crate::Error::NeedsResync`] if continuing from that position could lose changes.
    async fn open(&mut self, position: Option<Self::Position>) -> Result<()>;

    /// Appends the next records to the batch. Not cancel safe: after the future is dropped before it completes, the
    /// source must be closed.
    async fn next(&mut self, batch: &mut Batch<Self::Position>, budget: Budget) -> Result<Boundary>;

    /// Called after everything up to this position has been committed together with the position, so that the external
    /// system may discard it (invariant C14).
    fn committed(&mut self, position: &Self::Position);

    /// Releases all external resources immediately, without a further acknowledgement. The source can be opened again.
    fn close(&mut self);

    /// The position of a new source epoch, which starts by reading everything again; `None` if the source cannot do that.
    fn restart_position(&self, stored: Option<&Self::Position>) -> Option<Self::Position>;

    /// Progress for reports and metrics.
    fn progress(&self) -> Progress {
        Progress::default()
    }
}
