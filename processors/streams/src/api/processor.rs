//! The [`Processor`] trait.

use crate::api::context::Context;
use crate::api::error::Result;
use crate::api::output::Output;
use crate::api::state::State;
use crate::api::timer::Timer;
use event_log::{RecordRef, RecordSlice};

/// What happens to a timer whose effects were rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectedTimer {
    /// A dead letter is written for it.
    DeadLetter,
    /// The processor has set it again, with less to do.
    Retried,
}

/// Code of a stream processor. The runtime creates one instance per task and calls it on one thread at a time.
/// `docs/examples` contains a complete example.
///
/// Committed output, state and offsets are equal to those of a sequential run over the task's input in which each
/// record is processed once. A step itself can run more than once: after a crash, an aborted transaction or a
/// rebalance, with the same or different batch boundaries. It must therefore depend only on its records, its state and
/// its [`Context`], and write only to [`State`] and [`Output`]: no IO, no clock, no randomness. Records of one
/// partition arrive in offset order. There is no order between the inputs of a task.
///
/// Pass a record that cannot be processed to [`Output::dead_letter`] and continue with the next one. Return an error only
/// for a bug in the processor or a failure of its environment; it stops the task.
///
/// | Failure | Reaction |
/// | --- | --- |
/// | [`Output::dead_letter`] is called | the record is written to `<topic>.dlq` in the same commit; processing continues |
/// | `prepare` fails with [`event_log::ErrorAction::Retry`] | the task pauses for 100 ms up to 5 s and retries; other tasks continue |
/// | `prepare` fails otherwise; `process`, `on_timer` or `before_commit` fails | the transaction is aborted and the task stops; readiness shows the reason; other tasks continue; a restart retries |
/// | output exceeds `max.message.bytes`, or a state key exceeds the store's limit | the batch is bisected until the record is found, which becomes a dead letter ([`Processor::on_dead_letter`]); a timer is handled the same way ([`Processor::on_rejected_timer`]), and the dead letter names the timer |
/// | an output topic does not exist | the task stops, readiness names the topic, and the task retries every 10 seconds |
/// | panic | the process ends; after a restart it continues from the last commit |
///
/// A stopped task does not block other tasks. It commits nothing more, and its input stays in the topic.
pub trait Processor: Send {
    /// Performs the IO that `process` needs for these records, such as fetching unknown schemas. May be called again for the
    /// same records.
    ///
    /// # Errors
    /// An error with [`event_log::ErrorAction::Retry`] pauses the task, which then retries. Any other error stops it.
    fn prepare(&mut self, _records: RecordSlice<'_>) -> Result<()> {
        Ok(())
    }

    /// Processes records of this task, 1 to 1,024, in order.
    ///
    /// # Errors
    /// Any error stops the task.
    fn process(
        &mut self,
        context: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()>;

    /// Called instead of `process` for a record that becomes a dead letter because the log or the store rejected its
    /// output or state. Use it to store that the record's effect is missing. Its writes are committed together with the
    /// dead letter. If that transaction is rejected too, the dead letter is written without the record's key, value and
    /// headers, and this method is not called again.
    ///
    /// # Errors
    /// Any error stops the task.
    fn on_dead_letter(
        &mut self,
        _context: Context,
        _record: RecordRef<'_>,
        _state: &mut State,
        _output: &mut Output,
    ) -> Result<()> {
        Ok(())
    }

    /// Called when a timer that was set with [`State::set_timer`] is due. Timers of one clock fire in the order of their
    /// times. The timer is removed in the same transaction, so it fires exactly once. It may be set again here.
    ///
    /// # Errors
    /// Any error stops the task.
    fn on_timer(&mut self, _context: Context, _timer: &Timer, _state: &mut State, _output: &mut Output) -> Result<()> {
        Ok(())
    }

    /// Called instead of `on_timer` for a timer whose output or state the log or the store rejected, alone in its
    /// transaction. A processor that does less in its next step can find the cause by itself: it sets the timer again and
    /// returns [`RejectedTimer::Retried`].
    ///
    /// # Errors
    /// Any error stops the task.
    fn on_rejected_timer(
        &mut self,
        _context: Context,
        _timer: &Timer,
        _state: &mut State,
        _output: &mut Output,
    ) -> Result<RejectedTimer> {
        Ok(RejectedTimer::DeadLetter)
    }

    /// Called once before each commit in which this task takes part: the last opportunity to write state or output in this
    /// transaction, for example to record that a source transaction is still open.
    ///
    /// # Errors
    /// Any error stops the task.
    fn before_commit(&mut self, _context: Context, _state: &mut State, _output: &mut Output) -> Result<()> {
        Ok(())
    }

    /// Called before the first step after the task's state was restored or rolled back to the last commit. It must
    /// rebuild from `state` whatever the instance keeps in memory.
    ///
    /// # Errors
    /// An error stops the task, which retries every 10 seconds.
    fn restore(&mut self, _state: &State) -> Result<()> {
        Ok(())
    }

    /// Whether the processor has something to write although no record or timer is due, for example because it was
    /// restored with another configuration. Called after [`Processor::restore`]. If true, the task commits before it
    /// reads a record, so that [`Processor::before_commit`] is called.
    fn wants_commit(&self) -> bool {
        false
    }
}
