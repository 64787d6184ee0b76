//! Time, so that tests can set it.
//!
//! Guarantees: whoever tells the time takes a [`SharedClock`]; this is the only place that asks the system.
//! Never: sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Milliseconds since 1970, UTC. May jump either way with the system's clock.
    fn now_ms(&self) -> i64;
}

/// A clock for many.
pub type SharedClock = Arc<dyn Clock>;

/// The system's clock, shared.
pub fn system() -> SharedClock {
    Arc::new(System)
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Clock for System {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system for the time"
    )]
    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A clock that stands until it is moved; clones share the hands.
#[derive(Debug, Clone, Default)]
pub struct Manual(Arc<AtomicI64>);

impl Manual {
    /// A clock that stands at `now_ms`.
    pub fn at(now_ms: i64) -> Self {
        Self(Arc::new(AtomicI64::new(now_ms)))
    }

    /// Sets it.
    pub fn set(&self, now_ms: i64) {
        self.0.store(now_ms, Ordering::SeqCst);
    }

    /// Moves it on by `by_ms`, back when negative.
    pub fn advance(&self, by_ms: i64) {
        self.0.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// As a shared clock with the same hands.
    pub fn shared(&self) -> SharedClock {
        Arc::new(self.clone())
    }
}

impl Clock for Manual {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_when_it_is_told_to() {
        let clock = Manual::at(5);
        let shared = clock.shared();
        clock.advance(10);
        assert_eq!(shared.now_ms(), 15);
        clock.set(3);
        assert_eq!(shared.now_ms(), 3);
    }

    #[test]
    fn the_system_has_left_the_year_2020_behind() {
        assert!(system().now_ms() > 1_600_000_000_000);
    }
}
