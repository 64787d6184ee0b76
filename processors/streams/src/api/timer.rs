//! Durable timers: rows of a task's state that become due at a stream time or wall-clock time.
//!
//! A timer is the state key `["~timer", clock, time in ms with 20 digits, key]`. It is therefore written to the
//! changelog, restored and rolled back like any other row, and the timers of a clock sort by time. A timer fires in the
//! transaction that removes its row, so it fires exactly once (invariant C12). Timers of one clock fire in the order of
//! their times and never early. The delay has no upper bound, because stream time does not advance without records.

use crate::api::context::Context;
use event_log::Millis;

/// Prefix of the state keys of all timers.
pub(crate) const TIMER_PREFIX: &[u8] = b"[\"~timer\",";

/// Clock of a timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimerClock {
    /// Greatest record timestamp that the task has seen ([`Context::stream_time`]).
    Stream,
    /// Clock of the process ([`Context::now`]).
    Wall,
}

impl TimerClock {
    /// All clocks.
    pub(crate) const ALL: [TimerClock; 2] = [TimerClock::Stream, TimerClock::Wall];

    /// Index in [`TimerClock::ALL`].
    pub(crate) fn index(self) -> usize {
        match self {
            TimerClock::Stream => 0,
            TimerClock::Wall => 1,
        }
    }

    /// Current time of this clock.
    pub(crate) fn now(self, context: Context) -> Millis {
        match self {
            TimerClock::Stream => context.stream_time,
            TimerClock::Wall => context.now,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            TimerClock::Stream => "stream",
            TimerClock::Wall => "wall",
        }
    }

    /// Prefix of the state keys of this clock's timers.
    pub(crate) fn prefix(self) -> Vec<u8> {
        format!("[\"~timer\",\"{}\",", self.name()).into_bytes()
    }

    /// Lower bound of the state keys of this clock's timers that are due at `at` or later.
    pub(crate) fn rows_from(self, at: Millis) -> Vec<u8> {
        format!("[\"~timer\",\"{}\",\"{:020}\"", self.name(), at.max(0)).into_bytes()
    }
}

/// A timer. It is a row of the task's state: durable like state, moved with the task, and it costs a changelog record
/// when it is set, and another one when it fires or is cancelled. A task can have millions of timers.
///
/// A stream-time timer fires with the first batch whose newest record is at or after its time. A wall-clock timer fires
/// within about 100 ms while the task runs, or immediately after a restart if it became due while the task was not
/// running. Timers of one clock fire in the order of their times. Stream time does not advance without records; use the
/// wall clock for timeouts of idle inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// Clock.
    pub clock: TimerClock,
    /// Due time in ms; a time before 1970 counts as 0.
    pub at: Millis,
    /// Name chosen by the processor. Clock, time and key identify the timer.
    pub key: String,
}

impl Timer {
    /// Creates a timer, to be set with [`crate::State::set_timer`].
    pub fn new(clock: TimerClock, at: Millis, key: impl Into<String>) -> Self {
        Timer {
            clock,
            at: at.max(0),
            key: key.into(),
        }
    }

    /// State key of the timer.
    pub(crate) fn row(&self) -> Vec<u8> {
        let Timer { clock, at, key } = self;
        let key = serde_json::Value::from(key.as_str());
        format!("[\"~timer\",\"{}\",\"{:020}\",{key}]", clock.name(), at.max(&0)).into_bytes()
    }

    /// Parses the state key of a timer; `None` if the key is not the key of a timer.
    pub(crate) fn of_row(clock: TimerClock, row: &[u8]) -> Option<Timer> {
        let (_, _, at, key): (String, String, String, String) = serde_json::from_slice(row).ok()?;
        let at = at.parse().ok()?;
        Some(Timer { clock, at, key })
    }
}
