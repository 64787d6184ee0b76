//! A wall clock that tests can set.
//!
//! Code that needs the time takes a [`SharedClock`]. Only [`System`] reads the system clock; clippy.toml forbids it
//! elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Milliseconds since the Unix epoch. May jump in either direction when the system clock is set.
    fn now_ms(&self) -> i64;
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// The system clock as a shared clock.
pub fn system() -> SharedClock {
    Arc::new(System)
}

/// The system clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Clock for System {
    #[expect(clippy::disallowed_methods, reason = "the only place that reads the system clock")]
    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A clock whose time changes only when it is set. Clones share the time.
#[derive(Debug, Clone, Default)]
pub struct Manual(Arc<AtomicI64>);

impl Manual {
    /// Creates a clock with the time `now_ms`.
    pub fn at(now_ms: i64) -> Self {
        Self(Arc::new(AtomicI64::new(now_ms)))
    }

    /// Sets the time.
    pub fn set(&self, now_ms: i64) {
        self.0.store(now_ms, Ordering::SeqCst);
    }

    /// Advances the time by `by_ms`, which may be negative.
    pub fn advance(&self, by_ms: i64) {
        self.0.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// A shared clock with the same time.
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
    fn manual_clock_moves_only_when_set() {
        let clock = Manual::at(5);
        let shared = clock.shared();
        clock.advance(10);
        assert_eq!(shared.now_ms(), 15);
        clock.set(3);
        assert_eq!(shared.now_ms(), 3);
    }

    #[test]
    fn system_clock_is_after_2020() {
        assert!(system().now_ms() > 1_600_000_000_000);
    }
}
