//! What a processor uses while it processes one record.

use streams::{Context, Output, State};

/// The time, state and output of the call that processes a record.
pub struct Step<'s> {
    /// Wall-clock time and stream time.
    pub context: Context,
    /// The task's state.
    pub state: &'s mut State,
    /// Where records and dead letters are sent.
    pub output: &'s mut Output,
}
