//! The [`Source`] trait and the loop that calls it.
//!
//! A source is an external system with a position, whose records are published in the order in which it returns them.
//! [`run`] owns the transactional producer, the stored position, retries and states, so a source implements only
//! `open`, `next`, `committed` and `close`. `committed` is called only with positions that were committed in the
//! transaction of their records.

mod context;
mod dlq;
mod lifecycle;
mod positions;
mod pump;
mod register;
mod retry;
mod run;

pub use context::{Context, OnMismatch, TRANSACTION_TIMEOUT};
pub use positions::positions_spec;
pub(crate) use register::register;
pub use run::run;

use crate::error::{Error, Result};
use crate::status::{Handle, TableReport};
use event_log::OutBatch;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Reason why a stored position cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The position was written by a newer release.
    #[error("{0}")]
    Newer(String),
    /// The position has an older format, belongs to another kind of connector, or is corrupt. The connector can
    /// continue only with a new source epoch.
    #[error("{0}")]
    StartOver(String),
}

/// The static record of a position. It is stored only when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticPart<'p> {
    /// Identifies the content.
    pub revision: &'p str,
    /// The content, as JSON.
    pub json: &'p str,
}

/// The position at which a source continues. It is stored in the positions topic.
///
/// A position consists of a small moving record, which is written with every commit, and an optional static record,
/// which is written only when it changes. The moving record contains the revision of the static record.
pub trait Position: Clone + fmt::Display + Send + 'static {
    /// The moving record, as JSON. The first member, `"v"`, is the format version; `"epoch"` is the source epoch.
    fn to_json(&self) -> String;

    /// The static record; `None` if the position has none.
    fn static_part(&self) -> Option<StaticPart<'_>> {
        None
    }

    /// The last source transaction that is stored completely, in the source's notation (an LSN for PostgreSQL); empty if
    /// there is none yet.
    fn complete(&self) -> String;

    /// Parses the moving record and, if present, the static record.
    ///
    /// # Errors
    /// [`Unreadable`], such as a newer format version.
    fn from_json(json: &str, static_json: Option<&str>) -> std::result::Result<Self, Unreadable>;

    /// Whether this position is beyond `other`: a source that failed at `other` and has reached this position has made
    /// progress.
    fn is_beyond(&self, other: &Self) -> bool;
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
    /// How many of the records are dead letters.
    pub dead_letters: u64,
}

impl<P> Default for Batch<P> {
    fn default() -> Self {
        Batch {
            records: OutBatch::default(),
            position: None,
            store_now: false,
            dead_letters: 0,
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

/// A request of an operator to an open source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Take a new snapshot of these tables while the other changes continue to be published.
    Snapshot {
        /// Names of the tables, as declared in the topology.
        tables: Vec<String>,
    },
}

/// What a source reports besides its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Description of the progress while the source copies tables; `None` otherwise.
    pub snapshot: Option<String>,
    /// Bytes of the source's log that are not yet acknowledged.
    pub lag_bytes: Option<u64>,
    /// State of each table; empty if the source does not report them.
    pub tables: Arc<[TableReport]>,
}

/// An external system whose changes are published. One thread uses it and provides the async runtime.
#[expect(
    async_fn_in_trait,
    reason = "the loop drives each source on its own thread, so its futures need not be Send"
)]
pub trait Source {
    /// The position type of the source.
    type Position: Position;

    /// Called once before the source is opened for the first time, inside the runtime. Tasks that report to the handle also
    /// while the source is closed start here.
    fn start(&mut self, _handle: &Handle) {}

    /// Returns the source's topic if the source writes dead letters to `<topic>.dlq`; `None` if it writes no dead
    /// letters.
    fn topic(&self) -> Option<&str> {
        None
    }

    /// Opens the source at the stored position; `None` if no position was ever stored. `record_bytes_max` is the size
    /// of the largest record that the source's topic accepts, or `usize::MAX` if the source writes no dead letters.
    ///
    /// # Errors
    /// [`Error::NeedsResync`] if continuing from that position could lose changes.
    async fn open(&mut self, position: Option<Self::Position>, record_bytes_max: usize) -> Result<()>;

    /// Appends the next records to the batch. Not cancel safe: after the future is dropped before it completes, the
    /// source must be closed.
    async fn next(&mut self, batch: &mut Batch<Self::Position>, budget: Budget) -> Result<Boundary>;

    /// Called after everything up to this position has been committed together with the position, so that the external
    /// system may discard it (invariant C14).
    fn committed(&mut self, position: &Self::Position);

    /// Releases all external resources immediately, without a further acknowledgement. The source can be opened again.
    fn close(&mut self);

    /// Returns the first position of the source epoch after `epoch`, which reads everything again; `None` if the source
    /// cannot do that. `stored` is the stored position, if it can be read.
    fn restart_position(&self, stored: Option<&Self::Position>, epoch: u32) -> Option<Self::Position>;

    /// Accepts a request. It is durable once the next position that the source returns is committed.
    ///
    /// # Errors
    /// [`Error::Rejected`] if the source cannot do this.
    fn request(&mut self, request: &Request) -> Result<()> {
        let Request::Snapshot { tables } = request;
        Err(Error::Rejected {
            reason: format!(
                "cannot take a snapshot of {}: this kind of source has no snapshots",
                tables.join(", ")
            ),
            fix: String::from("post the rows again"),
        })
    }

    /// Progress for reports and metrics.
    fn progress(&self) -> Progress {
        Progress::default()
    }
}
