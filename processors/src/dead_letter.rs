//! Errors of processing one record: those that make it a dead letter, and those that stop the task.

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
    /// The record is at fault: it becomes a dead letter.
    Record(RecordError),
    /// The task is at fault, such as damaged state: it stops.
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

/// An error that stops the task of a processor: its state cannot be used, and no other record would change that.
pub fn stop(processor: &str, reason: impl ToString) -> Error {
    Error::Processor {
        name: processor.to_owned(),
        reason: reason.to_string(),
        fate: ErrorAction::Stop,
    }
}
