//! Sweeps of a table: a TRUNCATE or the end of a snapshot chunk removes any number of rows, in steps that fit a
//! transaction.
//!
//! Other records are processed between the steps. Before a record reads a row, the sweep that removes the row is applied
//! to it, so a record never notices that a sweep has not reached its row yet.

use super::stored_row::{Row, StateError};
use crate::input::{ChangeRecord, Found, Job, JobQueue, StepLimits, Sweep, find, keys};
use event_log::Millis;
use schemas::version::Version;
use serde::{Deserialize, Serialize};
use streams::{Error, Result, State};

/// The sweeps of one table in one task.
pub type Sweeps = JobQueue<TableSweep>;

/// The removal of the rows that one record shows to be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSweep {
    /// Which rows are removed. In state keys, the table has the name of the processor's input.
    pub sweep: Sweep,
    /// Timestamp of the record in ms.
    pub timestamp: Millis,
}

/// The sweeps of a table without state.
pub fn queue(table: &str, limits: StepLimits) -> Sweeps {
    JobQueue::new(format!("[\"sweep\",\"{table}\","), format!("sweep:{table}"), limits)
}

/// A sweep as JSON; `None` if the bytes are not a sweep.
pub fn readable(bytes: &[u8]) -> Option<serde_json::Value> {
    serde_json::to_value(Job::<TableSweep>::decode(bytes).ok()?).ok()
}

impl TableSweep {
    /// The sweep of a TRUNCATE or of the end of a chunk, in the rows of a table with this name in the state.
    pub fn of(input: &ChangeRecord<'_>, table: &str, timestamp: Millis) -> Option<TableSweep> {
        let sweep = Sweep {
            table: table.to_owned(),
            ..Sweep::of(input)?
        };
        Some(TableSweep { sweep, timestamp })
    }
}

/// The sweep that removes a live row with this version, because it has not reached the row yet.
pub fn removing<'s>(sweeps: &'s Sweeps, row_key: &str, version: Version) -> Option<&'s TableSweep> {
    sweeps.works().find(|of| of.sweep.removes(row_key, version))
}

/// The rows that the next step of a sweep removes. `damaged` makes the error of a row that cannot be read.
pub fn find_rows(
    job: &Job<TableSweep>,
    budget: &mut StepLimits,
    state: &State,
    damaged: &dyn Fn(StateError) -> Error,
) -> Result<Found> {
    let sweep = &job.work.sweep;
    let prefix = keys::table_prefix(&sweep.table).len();
    find(
        state,
        &sweep.spans(),
        job.cursor.as_bytes(),
        budget,
        &mut |key, value| {
            let header = Row::header(value).map_err(damaged)?;
            Ok(!header.is_deleted && sweep.removes(keys::row_key_of(key, prefix), header.version))
        },
    )
}
