//! Fires the timers of a task that are due.

use crate::api::context::Context;
use crate::api::error::Result;
use crate::api::output::Output;
use crate::api::state::State;
use crate::api::timer::{Timer, TimerClock};
use event_log::Millis;

/// Result of one call of [`fire`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Fired {
    /// Number of timers that fired.
    pub count: usize,
    /// The last timer that fired.
    pub last: Option<Timer>,
    /// Greatest delay of the wall-clock timers that fired, in ms.
    pub late_ms: Option<Millis>,
}

/// Removes up to `count_max` due timers and calls `call` for each.
pub(crate) fn fire(
    context: Context,
    state: &mut State,
    output: &mut Output,
    count_max: usize,
    call: &mut dyn FnMut(&Timer, &mut State, &mut Output) -> Result<()>,
) -> Result<Fired> {
    let mut fired = Fired::default();
    for clock in TimerClock::ALL {
        let now = clock.now(context);
        while fired.count < count_max {
            let due = state.due_timers(clock, now, count_max - fired.count)?;
            if due.is_empty() {
                break;
            }
            for timer in due {
                // The previous timer may have set an earlier timer, or cancelled this one.
                if state.take_earliest_set(clock).is_some_and(|set| set < timer.at) {
                    break;
                }
                if state.take_timer(&timer)? {
                    output.clear_cause();
                    call(&timer, state, output)?;
                    fired.count += 1;
                    if clock == TimerClock::Wall {
                        fired.late_ms = fired.late_ms.max(Some(now.saturating_sub(timer.at)));
                    }
                    fired.last = Some(timer);
                }
            }
            state.take_earliest_set(clock);
        }
    }
    Ok(fired)
}
