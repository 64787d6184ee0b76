//! Wakes blocked readers. Check and wait happen under the lock of the state, so no wake-up is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Returns the time at which a wait that starts now ends. The timeout is limited to a year so that the addition cannot
/// overflow.
pub(super) fn until(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3_600);
    Instant::now() + timeout.min(YEAR)
}

/// Wakes one reader. `wake` and `wait` must be called under the same lock.
#[derive(Default)]
pub(super) struct Signal {
    waiting: AtomicBool,
    bell: Condvar,
}

impl Signal {
    /// Wakes the reader if it is waiting.
    pub fn wake(&self) {
        if self.waiting.load(Ordering::Relaxed) {
            self.bell.notify_all();
        }
    }

    /// Waits until the reader is woken or the time has elapsed. Spurious wake-ups are possible.
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
