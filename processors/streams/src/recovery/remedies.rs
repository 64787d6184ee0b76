//! Texts for readiness and logs, each with the command with which an operator can resolve the cause of a stopped task.

use crate::plan::Sub;
use event_log::{Error, TopicPartition};

/// An input was deleted and created again.
pub(crate) fn recreated_input(topic: &str) -> String {
    format!("topic {topic} was deleted and created again; restart the process to read the new topic")
}

/// The target of an operator command: application and task.
pub(crate) struct CommandTarget<'t> {
    pub sub: &'t Sub,
    pub partition: i32,
    pub inputs: &'t [TopicPartition],
}

impl CommandTarget<'_> {
    /// Commit record and committed offsets differ.
    pub(crate) fn resolve_difference(&self) -> String {
        let task = self.task();
        format!(
            "to keep the state and continue at the committed offsets: `trunkline offsets accept {task}`; \
             to set the offsets to the commit record: `trunkline offsets restore {task}`"
        )
    }

    /// There are committed offsets, but the changelog is empty.
    pub(crate) fn resolve_missing_state(&self) -> String {
        let (task, inputs) = (self.task(), self.input_arguments());
        format!(
            "if the store was renamed, declare its former name; to process the inputs again from their beginning: \
             `trunkline offsets reset --to-earliest {task}{inputs}`; to continue at the committed offsets without state: \
             `trunkline offsets accept {task}{inputs}`"
        )
    }

    /// The state was built from other inputs.
    pub(crate) fn resolve_replaced_inputs(&self) -> String {
        let (task, inputs) = (self.task(), self.input_arguments());
        format!(
            "declare the former inputs, or rename the store to start without state; to continue with this state: \
             `trunkline offsets accept {task}{inputs}`"
        )
    }

    /// An input has another topic id than the topic from which the state was built, but a committed offset.
    pub(crate) fn resolve_recreated_input(&self) -> String {
        let (task, inputs) = (self.task(), self.input_arguments());
        format!(
            "to continue with this state at the committed offsets: `trunkline offsets accept {task}{inputs}`; to read the \
             topic from another offset: `trunkline offsets skip {task} --input TOPIC --to OFFSET`"
        )
    }

    /// An input cannot be read. `None` if the error itself states what to do, after which the task retries.
    pub(crate) fn resolve_unreadable_input(&self, error: &Error) -> Option<String> {
        let task = self.task();
        match error {
            Error::OutOfRange { at, offset, end, .. } if offset > end => Some(format!(
                "the topic was deleted and created again, or lost records; to continue at its end: \
                 `trunkline offsets skip {task} --input {} --to {end}`",
                at.topic
            )),
            Error::OutOfRange { .. } => Some(format!(
                "records that were not processed have been deleted, by retention or by hand; to continue without them: \
                 `trunkline offsets skip {task}`"
            )),
            Error::Unreadable { at, cause, .. } if matches!(**cause, Error::Corrupt { .. }) => Some(format!(
                "to continue without the damaged records, at the first offset after them: \
                 `trunkline offsets skip {task} --input {} --to OFFSET`",
                at.topic
            )),
            _ => None,
        }
    }

    fn task(&self) -> String {
        format!("{} {}/{}", self.sub.application, self.sub.store, self.partition)
    }

    fn input_arguments(&self) -> String {
        let arguments = self.inputs.iter().map(|input| format!(" --input {}", input.topic));
        arguments.collect()
    }
}
