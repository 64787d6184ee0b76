//! What a processor is.
//!
//! Guarantees: one instance serves one task (one partition of its inputs) on one thread. Never: IO in `step`.

use crate::{Output, Result, State, Timer};
use event_log::{Millis, RecordBatch, RecordRef};
use std::ops::Range;

/// What a step may know of the world: values only.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Now, by the injected clock, in ms.
    pub now: Millis,
    /// The greatest record timestamp that the task has seen, in ms.
    pub stream_time: Millis,
}

/// At which stage a record failed, as Kafka Connect names it in `__connect.errors.stage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The key could not be decoded.
    KeyConverter,
    /// The value could not be decoded.
    ValueConverter,
    /// A header that is needed is missing or wrong.
    HeaderConverter,
    /// The record was decoded and then refused.
    Transformation,
    /// The log or the store refuses what was made of the record, as it is too large.
    Produce,
}

impl Stage {
    /// The name in `__connect.errors.stage`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::KeyConverter => "KEY_CONVERTER",
            Stage::ValueConverter => "VALUE_CONVERTER",
            Stage::HeaderConverter => "HEADER_CONVERTER",
            Stage::Transformation => "TRANSFORMATION",
            Stage::Produce => "KAFKA_PRODUCE",
        }
    }
}

/// A stream processor: one instance a task. A worked example is in `docs/examples`.
///
/// A record that cannot be processed goes to [`Output::dead_letter`] and the step goes on with the next one; an
/// error returned from `step` stops the task, because it is the processor's own or its surroundings'.
///
/// What is guaranteed: the committed output, state and offsets are those of one run over the task's input in which no
/// step was repeated and none left out. A step itself may well run again, after a crash, an aborted transaction or a move
/// to another process, over the same or other batches: so it must depend on nothing but its records, its state and its
/// context, and do nothing but write to `state` and `output`. Records of one partition come in the order of their
/// offsets; between the inputs of a task there is no order.
///
/// | what goes wrong | what happens |
/// | --- | --- |
/// | [`Output::dead_letter`] | the record is in `<topic>.dlq` with the same commit; the line goes on |
/// | `prepare` fails with fate `Retry` | the task rests, from 100 ms up to 5 s, and tries again; the others go on |
/// | `prepare` fails otherwise, or `step`, `timer`, `before_commit` fail | the transaction is aborted, the task stops and says why in readiness; the others go on. A restart tries again |
/// | output or state is too large for its topic, or a state key for the store | the record that it was made of becomes a dead letter ([`Processor::on_dead_letter`]); a timer too, which names the timer |
/// | the topic of an output does not exist | the task stops, says so in readiness, and looks again every 10 seconds |
/// | a panic | the process ends, and goes on from the last commit when it is started again |
///
/// A stopped task holds no other one up, but commits nothing more: its input waits in the topic.
pub trait Processor: Send {
    /// Makes ready what `step` will need for these records and what takes IO, such as schemas not yet known. May be
    /// called again for the same records.
    ///
    /// # Errors
    /// An error whose fate is `Retry` pauses the task and is tried again; any other stops it.
    fn prepare(&mut self, _records: &RecordBatch, _range: Range<usize>) -> Result<()> {
        Ok(())
    }

    /// Processes the records `range` of the batch, all of this task's inputs, in order: 1 to 1,024 of them. Never look at
    /// the batch's other records; they may be another task's.
    ///
    /// # Errors
    /// Any error stops the task.
    fn process(
        &mut self,
        context: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()>;

    /// Called instead of `step` for a record that becomes a dead letter because the log or the store refuses what is made
    /// of it: the place to note that it is missing. What is written here is in the dead letter's transaction; if that is
    /// refused too, the dead letter goes without the record's body, and this is not called again.
    ///
    /// # Errors
    /// As for `step`: any error stops the task.
    fn on_dead_letter(
        &mut self,
        _context: Context,
        _record: RecordRef<'_>,
        _state: &mut State,
        _effects: &mut Output,
    ) -> Result<()> {
        Ok(())
    }

    /// Called when a timer is due that [`State::set_timer`] has set, in the order of their times. The timer is removed in
    /// the same transaction, so it fires exactly once; it may be set anew here.
    ///
    /// # Errors
    /// As for `step`: any error stops the task.
    fn on_timer(&mut self, _context: Context, _timer: &Timer, _state: &mut State, _effects: &mut Output) -> Result<()> {
        Ok(())
    }

    /// Called once before each commit in which this task takes part: the last chance to write state or output, for
    /// what must be said of an unfinished thing.
    fn before_commit(&mut self, _context: Context, _state: &mut State, _effects: &mut Output) -> Result<()> {
        Ok(())
    }

    /// Called after the task's state was restored or rolled back to the last commit, before the first step: whatever
    /// the instance keeps in memory beside `state` must be read from `state` anew.
    fn restore(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }
}
