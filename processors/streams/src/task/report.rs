//! The status of a task, as shown to operators.

use event_log::Offset;
use serde::Serialize;

/// Status of a task in this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskReport {
    /// Task id, `sub-topology/partition`.
    pub task: String,
    /// Store of the task.
    pub store: String,
    /// Partition of the task.
    pub partition: i32,
    /// `running`, `restoring`, `recovering`, `paused`, `stopped`, `waiting`, or `standby` for a task of another process.
    pub phase: &'static str,
    /// Why the task does not run.
    pub cause: Option<String>,
    /// Topic, partition and next offset of each input.
    pub inputs: Vec<(String, i32, Offset)>,
    /// Next changelog offset of the store.
    pub changelog_next: Option<Offset>,
    /// Number of changelog offsets that must still be read before the task can run.
    pub restore_left: Option<Offset>,
    /// Number of changelog records that the last recovery read.
    pub restored: u64,
}
