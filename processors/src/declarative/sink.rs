//! The interface between the reader of inputs and the code that applies their deltas.

use super::delta::Delta;
use super::loading::Loading;
use super::shape::Shaped;
use crate::dead_letter::{RecordError, StepError, stop};
use crate::step::Step;
use event_log::Millis;
use streams::{Error, Output, Result, Stage, State, Timer};
use topology::Side;

/// Receiver of deltas: an aggregate, a join, or the writer of a repartition topic.
pub trait Sink: Send {
    /// Advances stream time. Called for every record with its timestamp, limited to the wall-clock time.
    fn advance(&mut self, _at: Millis) {}

    /// Applies a change. Returns a reason if the record becomes a dead letter although its change was applied, for
    /// example because a sum is out of range.
    fn apply(&mut self, change: Change<'_>, step: &mut Step<'_>) -> Result<Option<String>>;

    /// A timer is due.
    fn on_timer(&mut self, _timer: &Timer, _state: &mut State, _output: &mut Output) -> Result<()> {
        Ok(())
    }

    /// Writes the buffered changes.
    fn before_commit(&mut self, _state: &mut State, _output: &mut Output) -> Result<()> {
        Ok(())
    }

    /// Discards what is buffered, and reads the committed state.
    fn restore(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }
}

/// A delta of an input.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The input that changed.
    pub side: Side,
    /// The change.
    pub delta: Delta<'a>,
    /// The record's timestamp in ms.
    pub at: Millis,
}

/// What a record is passed through: its evaluation into `shaped`, and then the sink.
pub struct Pipeline<'p> {
    /// The processor's name, for errors.
    pub name: &'p str,
    /// The sink that receives the deltas.
    pub sink: &'p mut dyn Sink,
    /// The inputs whose first snapshot has not ended.
    pub loading: &'p mut Loading,
    /// Reused buffer for contributions.
    pub shaped: &'p mut Shaped,
    /// Time, state and output.
    pub step: Step<'p>,
}

impl Pipeline<'_> {
    /// Applies a change. [`StepError::Record`] does not mean that the change was not applied; see [`Sink::apply`].
    pub fn apply(&mut self, change: Change<'_>) -> Result<(), StepError> {
        match self.sink.apply(change, &mut self.step)? {
            None => Ok(()),
            Some(reason) => Err(RecordError::new(Stage::Transformation, reason).into()),
        }
    }

    /// An error that stops the task because its state cannot be read.
    pub fn damaged(&self, reason: impl ToString) -> Error {
        stop(self.name, reason)
    }
}
