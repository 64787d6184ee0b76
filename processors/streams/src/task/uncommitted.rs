//! What a task has done since the last commit.

use crate::api::output::Output;
use crate::api::timer::Timer;
use crate::task::commit_record::CommitRecord;
use event_log::{Millis, Offset, TopicPartition};

#[derive(Default)]
pub(crate) struct Uncommitted {
    pub output: Output,
    /// Whether the position changed, or must be committed although it did not change.
    pub position_moved: bool,
    /// Number of records processed.
    pub records: usize,
    /// The first of these records, which has waited the longest.
    pub first: Option<FirstRecord>,
    /// Number of timers fired.
    pub timers: usize,
    pub last_timer: Option<Timer>,
    /// The task's commit record in the commit in progress.
    pub commit_record: Option<CommitRecord>,
}

/// A record by its position.
#[derive(Debug, Clone)]
pub(crate) struct FirstRecord {
    pub at: TopicPartition,
    pub offset: Offset,
    pub timestamp: Millis,
}

impl Uncommitted {
    pub(crate) fn new(output: Output) -> Self {
        Uncommitted {
            output,
            ..Uncommitted::default()
        }
    }

    /// Clears everything, after a commit or a rollback (C7).
    pub(crate) fn clear(&mut self) {
        self.output.clear();
        *self = Uncommitted::new(std::mem::take(&mut self.output));
    }

    /// Timestamp of the first record, in ms; `None` without a record.
    pub(crate) fn first_timestamp(&self) -> Option<Millis> {
        self.first.as_ref().map(|first| first.timestamp)
    }
}
