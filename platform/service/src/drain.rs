//! The shutdown signal that tasks and threads observe.
//!
//! A drain starts once and never ends. Its start wakes all sleeping tasks and threads. It does not wait for their end;
//! [`crate::Tasks`] does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A shutdown signal, shared by its clones.
#[derive(Clone, Default)]
pub struct Drain {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    draining: AtomicBool,
    token: CancellationToken,
    asleep: Mutex<Vec<Weak<Shared>>>,
    wake: Condvar,
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain").field("draining", &self.is_draining()).finish()
    }
}

impl Drain {
    /// Creates a drain that has not started.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the drain has started. One atomic load, cheap enough for inner loops.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire)
    }

    /// Starts the drain. Returns whether this call started it.
    pub fn start(&self) -> bool {
        self.shared.start()
    }

    /// Waits until the drain starts. Cancellation-safe.
    pub async fn started(&self) {
        self.shared.token.cancelled().await;
    }

    /// A token that is cancelled when the drain starts. Cancelling the token does not start the drain.
    pub fn token(&self) -> CancellationToken {
        self.shared.token.child_token()
    }

    /// Creates a drain that starts with this drain or separately, for a part of the process that can be stopped alone.
    pub fn child(&self) -> Self {
        let child = Self {
            shared: Arc::new(Shared {
                token: self.shared.token.child_token(),
                ..Shared::default()
            }),
        };
        let mut asleep = self.shared.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        asleep.retain(|child| child.strong_count() > 0);
        asleep.push(Arc::downgrade(&child.shared));
        let late = self.is_draining();
        drop(asleep);
        if late {
            child.start();
        }
        child
    }

    /// Sleeps in a task. Returns `false` when the drain interrupted the sleep. Cancellation-safe.
    pub async fn sleep(&self, time: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.started() => false,
            () = tokio::time::sleep(time) => true,
        }
    }

    /// Blocks the thread. Returns `false` when the drain interrupted the sleep.
    pub fn sleep_blocking(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut asleep = self.shared.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_draining() {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return true;
            }
            asleep = self
                .shared
                .wake
                .wait_timeout(asleep, rest)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        false
    }
}

impl Shared {
    fn start(&self) -> bool {
        // Under the lock, because otherwise a sleeper could miss the wake-up between its check and its wait, and a
        // child that is being added could be missed.
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        if self.draining.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.wake.notify_all();
        let children = std::mem::take(&mut *asleep);
        drop(asleep);
        for child in children.iter().filter_map(Weak::upgrade) {
            child.start();
        }
        self.token.cancel();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_starts_once_with_its_children() {
        let drain = Drain::new();
        let (child, other) = (drain.child(), drain.child());
        assert!(child.start());
        assert!(child.is_draining() && child.token().is_cancelled());
        assert!(!drain.is_draining() && !other.is_draining());
        assert!(drain.start());
        assert!(!drain.start(), "only the first call starts it");
        assert!(other.is_draining() && drain.child().is_draining());
    }

    #[test]
    fn token_is_cancelled_by_the_drain_only() {
        let drain = Drain::new();
        drain.token().cancel();
        assert!(!drain.is_draining());
        let token = drain.token();
        drain.start();
        assert!(token.is_cancelled());
    }

    #[test]
    fn drain_wakes_a_sleeping_thread() {
        let drain = Drain::new();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| drain.child().sleep_blocking(Duration::from_secs(3600)));
            drain.start();
            assert!(!sleeper.join().unwrap());
        });
        assert!(!drain.sleep_blocking(Duration::from_secs(3600)));
        assert!(Drain::new().sleep_blocking(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn drain_wakes_a_sleeping_task() {
        let drain = Drain::new();
        assert!(drain.sleep(Duration::from_secs(3600)).await);
        drain.start();
        assert!(!drain.sleep(Duration::from_secs(3600)).await);
    }
}
