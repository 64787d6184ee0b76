//! The progress of a task's recovery.

use crate::recovery::verdict::Start;
use crate::task::commit_record::CommitRecord;
use event_log::{Millis, Offset};
use service::backoff::Backoff;
use std::time::Duration;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Committed offsets of a task's inputs, in the order of the inputs.
pub(crate) type Offsets = Vec<Option<Offset>>;

/// Next step of a recovery, with the results of the previous steps.
#[derive(Debug, Clone, Default)]
pub(crate) enum Step {
    /// Open the store.
    #[default]
    Open,
    /// Read the committed offsets.
    Offsets,
    /// Look up the log end of the changelog.
    End(Offsets),
    /// Read the changelog up to that end.
    Restore(RestoreTarget),
}

/// The log end up to which a restore must read.
#[derive(Debug, Clone)]
pub(crate) struct RestoreTarget {
    pub offsets: Offsets,
    /// Log end of the changelog.
    pub end: Offset,
    /// Time that was read before the log end was looked up. Nothing at or after `end` had been written at this time.
    pub as_of: Millis,
}

/// A difference between commit record and committed offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub offsets: Offsets,
    pub commit_record: Option<CommitRecord>,
}

/// Progress of a task's recovery.
#[derive(Debug, Clone)]
pub(crate) struct Recovery {
    pub step: Step,
    /// Difference found by the first comparison.
    pub difference: Option<Difference>,
    /// Quarantines in this recovery.
    pub quarantines: u32,
    /// Delays after failed attempts in a row.
    pub backoff: Backoff,
    /// No attempt before this time, on the monotonic clock.
    pub not_before: Duration,
    /// Since when the offsets have been part of an undecided transaction.
    pub undecided_since: Option<Duration>,
    /// Whether the undecided offsets are treated as absent.
    pub offsets_ignored: bool,
    /// Changelog records read so far.
    pub restored: u64,
    /// Why the recovery waits.
    pub waits_for: Option<String>,
}

impl Default for Recovery {
    fn default() -> Self {
        Recovery {
            step: Step::Open,
            difference: None,
            quarantines: 0,
            // Use a fixed seed, so that a simulation depends only on its own seed.
            backoff: Backoff::seeded(BACKOFF_MIN, BACKOFF_MAX, 0),
            not_before: Duration::ZERO,
            undecided_since: None,
            offsets_ignored: false,
            restored: 0,
            waits_for: None,
        }
    }
}

impl Recovery {
    /// While the changelog is being read: the log end up to which it is read.
    pub(crate) fn restoring_until(&self) -> Option<Offset> {
        match &self.step {
            Step::Restore(target) => Some(target.end),
            _ => None,
        }
    }
}

/// Result of one step of a recovery.
pub(crate) enum Next {
    /// The next step can follow immediately.
    Continue,
    /// The changelog must be read further, or a pause must elapse.
    Wait,
    /// A request has failed and is repeated after a pause.
    BackOff,
    /// The task can start.
    Start(StartPlan),
    /// An operator must act.
    Stop(String),
}

/// The positions at which a recovered task starts.
pub(crate) struct StartPlan {
    /// Start of each input, in the order of the inputs.
    pub starts: Vec<Start>,
    /// Whether a position is not yet a committed offset, so that the positions must be committed before any record is
    /// processed.
    pub commit_first: bool,
}
