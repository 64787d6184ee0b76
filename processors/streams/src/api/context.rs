//! The context of a processor: its task and the current time; and the names that are derived from an application's
//! declaration.

use event_log::{Millis, TopicId};
use std::fmt;
use std::sync::Arc;

/// The times that a step may depend on.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Current wall-clock time of the injected clock, in ms.
    pub now: Millis,
    /// Greatest record timestamp that the task has seen, in ms.
    pub stream_time: Millis,
}

/// Identifies a task: partition *n* of a sub-topology.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// Name of the sub-topology.
    pub subtopology: Arc<str>,
    /// Partition of each input and of the changelog.
    pub partition: i32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.subtopology, self.partition)
    }
}

/// An input topic as it was found when the application started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputTopic {
    /// Name.
    pub name: Arc<str>,
    /// Topic id. A topic that is deleted and created again has the same name and another id.
    pub id: TopicId,
}

/// Describes a task to the factory of its processor.
#[derive(Debug, Clone)]
pub struct TaskInfo {
    /// Name of the application.
    pub application: Arc<str>,
    /// Task id.
    pub id: TaskId,
    /// Inputs in the declared order.
    pub inputs: Vec<InputTopic>,
}

/// Name of a store's changelog topic: `<application>.changelog.<store>`.
pub fn changelog_topic(application: &str, store: &str) -> String {
    format!("{application}.changelog.{store}")
}
