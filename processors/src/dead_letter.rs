//! Errors while processing a record: some make the record a dead letter, the others stop the task.

use event_log::ErrorAction;
use std::error::Error as StdError;
use streams::{Error, Stage};

/// A record that cannot be processed. It becomes a dead letter, and the task continues with the next record.
#[derive(Debug)]
pub struct RecordError {
    /// What failed; stated in the dead letter's headers.
    pub stage: Stage,
    /// Why.
    pub source: Box<dyn StdError>,
}

impl RecordError {
    /// An error of a stage.
    pub fn new(stage: Stage, source: impl Into<Box<dyn StdError>>) -> Self {
        RecordError {
            stage,
            source: source.into(),
        }
    }
}

/// Why a step did not succeed.
pub enum StepError {
    /// The record is the cause, and becomes a dead letter.
    Record(RecordError),
    /// The task is the cause, for example because its state is corrupt. The task stops.
    Task(Error),
}

impl From<Error> for StepError {
    fn from(error: Error) -> Self {
        StepError::Task(error)
    }
}

impl From<RecordError> for StepError {
    fn from(error: RecordError) -> Self {
        StepError::Record(error)
    }
}

/// An error that stops the task of a processor, because its state cannot be used. Other records would fail too.
pub fn stop(processor: &str, reason: impl ToString) -> Error {
    Error::Processor {
        name: processor.to_owned(),
        reason: reason.to_string(),
        action: ErrorAction::Stop,
    }
}
