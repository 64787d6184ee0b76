//! What a source is: something outside that has a position, and whose records go to topics in the order in which it
//! yields them.
//!
//! One loop ([`run`]) drives every source: it owns the log session, the stored position, retries and states, so that
//! a source is only `open`, `next`, `committed`.
//! Guarantees: a source never sees a position acknowledged that was not stored with its records.
//! Never: a commit, a retry or a state in a source.

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

/// Where a source stands, as it is stored.
pub trait Position: Clone + fmt::Display + Send + 'static {
    /// The versioned JSON that is stored. Its first member is `"v"`.
    fn to_json(&self) -> String;

    /// The last source transaction that is stored whole, in the source's own words; empty: none yet.
    fn complete(&self) -> String;

    /// Reads what [`Position::to_json`] wrote.
    ///
    /// # Errors
    /// A text that says why it cannot be read, such as a newer version.
    fn from_json(json: &str) -> std::result::Result<Self, String>;
}

/// How much a call of [`Source::next`] may gather.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// How long to wait for the first record; afterwards only what is ready is taken.
    pub wait: Duration,
    /// Stop after about so many bytes in the batch.
    pub bytes_max: usize,
    /// Stop after so many records in the batch.
    pub records_max: usize,
}

/// Records, and where the source stands after them.
#[derive(Debug)]
pub struct Batch<P> {
    /// Records in the order of the source.
    pub records: OutBatch,
    /// Where the source stands after the records; `None` when it did not move.
    pub position: Option<P>,
    /// Store the position even without records, and before anything else is done.
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

/// How a call of [`Source::next`] ended. A batch may end inside a source transaction in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// Nothing came within the time.
    Idle,
    /// All that was ready is in the batch.
    Drained,
    /// The batch is full; more is probably ready.
    Full,
}

/// What a source reports beside its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Copying tables: what is being copied, for people.
    pub snapshot: Option<String>,
    /// Bytes of the source's log that are not yet acknowledged.
    pub lag_bytes: Option<u64>,
}

/// Something outside that changes. Used by one thread, which lends it an async runtime.
#[expect(
    async_fn_in_trait,
    reason = "the loop drives a source on a thread of its own: no future crosses a thread"
)]
pub trait Source {
    /// Where it stands.
    type Position: Position;

    /// Opens it at a stored position; `None` is the first start ever.
    ///
    /// # Errors
    /// [`crate::Error::NeedsResync`] when going on from that position could lose changes.
    async fn open(&mut self, position: Option<Self::Position>) -> Result<()>;

    /// Appends what comes next to the batch. Cancelling the call is allowed when the source is closed next.
    async fn next(&mut self, batch: &mut Batch<Self::Position>, budget: Budget) -> Result<Boundary>;

    /// Everything up to this position is stored with it: the source may forget it.
    fn committed(&mut self, position: &Self::Position);

    /// Lets go of everything outside at once, acknowledging nothing more. Then it can be opened again.
    fn close(&mut self);

    /// The position of a new incarnation, which begins by reading everything anew; `None` when the source cannot.
    fn restarted(&self, stored: Option<&Self::Position>) -> Option<Self::Position>;

    /// What to report.
    fn progress(&self) -> Progress {
        Progress::default()
    }
}
