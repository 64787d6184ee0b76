//! How a blocked reader is woken.
//!
//! Guarantees: a wake between the check and the wait is not lost, because both happen under the state's lock.
//! Never: a polling loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The end of a wait that begins now; whoever asks for ever gets a year.
pub(super) fn until(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
    Instant::now() + timeout.min(YEAR)
}

/// One reader's bell. Rung and waited for under one and the same lock.
#[derive(Default)]
pub(super) struct Signal {
    waiting: AtomicBool,
    bell: Condvar,
}

impl Signal {
    /// Wakes the reader, if it waits.
    pub fn wake(&self) {
        if self.waiting.load(Ordering::Relaxed) {
            self.bell.notify_all();
        }
    }

    /// Waits until woken, at most this long; it may also wake for no reason.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>, at_most: Duration) -> MutexGuard<'a, T> {
        self.waiting.store(true, Ordering::Relaxed);
        let (guard, _) = self
            .bell
            .wait_timeout(guard, at_most)
            .unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(false, Ordering::Relaxed);
        guard
    }
}
