//! The [`Source`] trait and the loop that drives it.
//!
//! A source is an external system with a position, whose records are published in the order in which it returns them.
//! [`run`] owns the transactional producer, the stored position, retries and states, so a source implements `open`,
//! `next`, `committed` and `close` only. `committed` is called only with positions that were committed in the
//! transaction of their records.

mod positions;
mod register;
mod run;

pub use positions::{POSITIONS_TOPIC, positions_spec};
pub(crate) use register::register;
pub use run::{Context, OnMismatch, run};

use crate::error::Result;
use event_log::OutBatch;
use std::fmt;
use std::time::Duration;

/// A source's position: where it continues. It is stored in the positions topic.
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
    /// Return once the batch has about this many bytes.
    pub bytes_max: usize,
    /// Return once the batch has this many records.
    pub records_max: usize,
}

/// Records and the position after them.
#[derive(Debug)]
pub struct Batch<P> {
    /// Records in the order of the source.
    pub records: OutBatch,
    /// The position after the records; `None` if it has not changed.
    pub position: Option<P>,
    /// Commit the position before the next call of [`Source::next`], even if there are no records.
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

/// Why [`Source::next`] returned. In every case the batch may end inside a source transaction.
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
    /// While it copies tables: a human-readable description of the progress.
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

    /// Opens it at the stored position; `None` if no position was ever stored.
    ///
    /// # Errors
    /// [`crate::Error::NeedsResync`] if continuing from that position could lose changes.
    async fn open(&mut self, position: Option<Self::Position>) -> Result<()>;

    /// Appends the next records to the batch. The call may be cancelled if the source is closed afterwards.
    async fn next(&mut self, batch: &mut Batch<Self::Position>, budget: Budget) -> Result<Boundary>;

    /// Everything up to this position is committed together with it, so the external system may discard it (C14).
    fn committed(&mut self, position: &Self::Position);

    /// Releases all external resources immediately, without a further acknowledgement. It can be opened again.
    fn close(&mut self);

    /// The position of a new source epoch, which starts by reading everything again; `None` if the source cannot do that.
    fn restart_position(&self, stored: Option<&Self::Position>) -> Option<Self::Position>;

    /// Progress for reports and metrics.
    fn progress(&self) -> Progress {
        Progress::default()
    }
}
