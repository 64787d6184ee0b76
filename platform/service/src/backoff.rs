//! Exponential backoff with jitter and a cap.
//!
//! The nth delay lies between half and the whole of `min(cap, base · 2ⁿ)`: clients that failed together do not retry
//! together, and no retry is immediate. The same seed gives the same delays. A drain interrupts every pause. The caller
//! limits the number of attempts. `crate::retry` repeats an operation with these delays.

use crate::Drain;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The delays of one operation that is retried.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempts: u32,
    random: u64,
}

impl Backoff {
    /// Delays that start at `base` and double up to `cap`, with a random seed for the jitter.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self::seeded(base, cap, RandomState::new().hash_one(base))
    }

    /// The same with a fixed seed for the jitter.
    pub fn seeded(base: Duration, cap: Duration, seed: u64) -> Self {
        Self {
            base,
            cap,
            attempts: 0,
            random: seed,
        }
    }

    /// Number of delays since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Records a success: the next delay is the shortest again.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let whole = self
            .base
            .saturating_mul(2_u32.saturating_pow(self.attempts))
            .min(self.cap);
        self.attempts = self.attempts.saturating_add(1);
        // SplitMix64 (Steele, Lea and Flood, 2014) is good enough to spread clients and needs no dependency.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = u32::try_from((mixed ^ (mixed >> 31)) >> 48).expect("16 bits are left");
        let half = whole / 2;
        half + (whole - half) * share / u32::from(u16::MAX)
    }

    /// Pauses a task. Returns `false` when the drain interrupted the pause.
    pub async fn pause(&mut self, drain: &Drain) -> bool {
        drain.sleep(self.next_delay()).await
    }

    /// Blocks a thread. Returns `false` when the drain interrupted the pause.
    pub fn pause_blocking(&mut self, drain: &Drain) -> bool {
        drain.sleep_blocking(self.next_delay())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn delays_double_up_to_the_cap_and_reset_on_success() {
        let mut backoff = Backoff::seeded(100 * MS, 3000 * MS, 7);
        for whole in [100, 200, 400, 800, 1600, 3000, 3000] {
            let delay = backoff.next_delay();
            assert!(
                delay >= whole * MS / 2 && delay <= whole * MS,
                "{delay:?} of {whole} ms"
            );
        }
        assert_eq!(backoff.attempts(), 7);
        backoff.reset();
        assert!(backoff.next_delay() <= 100 * MS);
    }

    #[test]
    fn delays_depend_on_the_seed_only() {
        let pauses = |seed| {
            let mut backoff = Backoff::seeded(MS * 1000, MS * 60_000, seed);
            std::iter::repeat_with(|| backoff.next_delay())
                .take(50)
                .collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }

    #[test]
    fn many_attempts_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(3600), Duration::MAX);
        assert!((0..200).all(|_| backoff.next_delay() >= Duration::from_secs(1800)));
    }

    #[tokio::test(start_paused = true)]
    async fn drain_interrupts_a_pause() {
        let drain = Drain::new();
        let mut backoff = Backoff::new(MS * 1000, MS * 1000);
        assert!(backoff.pause(&drain).await);
        drain.start();
        assert!(!backoff.pause(&drain).await);
        assert!(!backoff.pause_blocking(&drain));
    }
}
