//! Why a transaction is aborted, as a value that is returned to the thread's loop.

use crate::api::context::TaskId;
use crate::api::error::Error;

/// Why a transaction did not become a known commit.
#[derive(Debug)]
pub(super) enum Abort {
    /// A newer producer of the same transactional id exists, or the group has a newer generation.
    Fenced(String),
    /// The log or the store rejects what this task wrote.
    Rejected { task: TaskId, reason: String },
    /// This task fails and must stop; the other tasks recover. With `retry`, the task recovers again later.
    TaskFailed { task: TaskId, reason: String, retry: bool },
    /// Any other cause, such as an unknown outcome.
    Failed(String),
}

/// Why an iteration of the thread's loop ends early.
#[derive(Debug)]
pub(super) enum Interrupt {
    /// The transaction is aborted, and all tasks recover.
    Abort(Abort),
    /// The thread cannot continue.
    Fatal(Error),
}

impl From<Abort> for Interrupt {
    fn from(abort: Abort) -> Self {
        Interrupt::Abort(abort)
    }
}

impl From<Error> for Interrupt {
    fn from(error: Error) -> Self {
        Interrupt::Fatal(error)
    }
}

impl From<state_store::Error> for Interrupt {
    fn from(error: state_store::Error) -> Self {
        Interrupt::Fatal(error.into())
    }
}
