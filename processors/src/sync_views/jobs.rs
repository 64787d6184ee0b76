//! The jobs of a source stream: what they do, and which rows they visit.

use crate::input::{JobQueue, KeySpan, StepLimits, Sweep};
use serde::{Deserialize, Serialize};

/// Prefix of the keys of jobs.
const JOB: &str = "[\"job\",";
/// Key of the timer of the next step.
const TIMER: &str = "job";

/// The jobs of a source stream.
pub(super) type Jobs = JobQueue<Work>;

/// The jobs of a source stream without state.
pub(super) fn queue(limits: StepLimits) -> Jobs {
    JobQueue::new(JOB.to_owned(), TIMER.to_owned(), limits)
}

/// What a job visits next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Rows.
    Rows,
    /// Missing entries.
    Missing,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Task {
    /// Removes rows that a record shows to be gone, and missing entries whose rows it proves.
    Sweep(TableSweep),
    /// Writes the rows of a table as changed rules require.
    Rebuild(Rebuild),
}

/// A job's task, and what it visits next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Work {
    #[serde(rename = "work")]
    pub(super) task: Task,
    pub(super) phase: Phase,
}

/// The removal of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableSweep {
    pub(super) sweep: Sweep,
    /// Whether missing entries are removed.
    pub(super) covers: bool,
    /// Whether the record was a dead letter and was redriven.
    #[serde(default)]
    pub(super) redriven: bool,
}

/// The rebuild of the views of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rebuild {
    pub(super) table: String,
    /// Views that do not exist any more.
    pub(super) removed: Vec<String>,
    /// Views that read another table before.
    #[serde(default)]
    pub(super) moved: Vec<String>,
    /// Whether no view read the table before, so that the state does not contain its rows.
    pub(super) is_new: bool,
}

impl Work {
    pub(super) fn new(task: Task) -> Work {
        Work {
            task,
            phase: Phase::Rows,
        }
    }

    pub(super) fn table(&self) -> &str {
        match &self.task {
            Task::Sweep(of) => &of.sweep.table,
            Task::Rebuild(rebuild) => &rebuild.table,
        }
    }

    /// Ranges of state keys that contain all rows that the job visits.
    pub(super) fn spans(&self) -> Vec<KeySpan> {
        match &self.task {
            Task::Sweep(of) => of.sweep.spans(),
            Task::Rebuild(rebuild) => vec![KeySpan::of_table(&rebuild.table)],
        }
    }
}

/// The sweeps of a table, in order.
pub(super) fn sweeps_of(jobs: &Jobs, table: &str) -> Vec<TableSweep> {
    let sweep = |work: &Work| match &work.task {
        Task::Sweep(of) if of.sweep.table == table => Some(of.clone()),
        Task::Sweep(_) | Task::Rebuild(_) => None,
    };
    jobs.works().filter_map(sweep).collect()
}
