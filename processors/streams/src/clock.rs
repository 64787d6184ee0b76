//! Time as the runtime sees it: the process's clock, and a time that never goes back.
//!
//! Guarantees: both are injected, so that a test can move them.
//! Never: asks the system for the date itself.

use event_log::Millis;
use service::SharedClock;
use std::time::{Duration, Instant};

/// Time as the runtime sees it.
pub trait Clock: Send + Sync {
    /// Now, in ms since the Unix epoch. May jump either way.
    fn now(&self) -> Millis;
    /// Time since a fixed moment, never going back: for pauses, ages and rates.
    fn elapsed(&self) -> Duration;
}

/// The clock of a process.
#[derive(Debug)]
pub struct ProcessClock {
    clock: SharedClock,
    since: Instant,
}

impl ProcessClock {
    /// The date from this clock, the rest from the system's steady one.
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

/// For tests: both times are the hands of a clock that stands until it is moved.
impl Clock for service::clock::Manual {
    fn now(&self) -> Millis {
        service::Clock::now_ms(self)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(u64::try_from(service::Clock::now_ms(self)).unwrap_or_default())
    }
}
