//! The clock of the runtime: wall-clock time and a monotonic time, both injected so that tests control them.

use event_log::Millis;
use service::SharedClock;
use std::time::{Duration, Instant};

/// Source of time for the runtime.
pub trait Clock: Send + Sync {
    /// Wall-clock time in ms since the Unix epoch. May jump in both directions.
    fn now(&self) -> Millis;
    /// Monotonic time since a fixed instant, for pauses, ages and rates.
    fn elapsed(&self) -> Duration;
}

/// Clock of a process.
#[derive(Debug)]
pub struct ProcessClock {
    clock: SharedClock,
    since: Instant,
}

impl ProcessClock {
    /// Creates a clock with the wall-clock time of `clock` and the monotonic time of the system.
    pub fn new(clock: SharedClock) -> Self {
        ProcessClock {
            clock,
            since: Instant::now(),
        }
    }
}

impl Clock for ProcessClock {
    fn now(&self) -> Millis {
        self.clock.now_ms()
    }

    fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

/// For tests: both times are those of a clock that the test sets.
impl Clock for service::clock::Manual {
    fn now(&self) -> Millis {
        service::Clock::now_ms(self)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(u64::try_from(service::Clock::now_ms(self)).unwrap_or_default())
    }
}
