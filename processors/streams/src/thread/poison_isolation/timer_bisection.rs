//! Isolates a poison timer by bisection, so that one rejected output does not block the task (C13).
//!
//! Timers that fired in a rejected transaction fire again in transactions that contain only timers, in smaller and
//! smaller numbers while these are rejected. The timer whose own transaction is rejected is removed without a call of
//! the processor, and a dead letter is written for it.
//!
//! The number of transactions is logarithmic in the number of timers. A timer never becomes a dead letter because a
//! record or another timer was rejected. The code is pure.

use crate::api::timer::Timer;

/// The poison timer, which is removed without calling the processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoisonTimer {
    pub timer: Timer,
    pub reason: String,
}

/// Progress of a bisection through the timers of a rejected transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimerBisection {
    /// Maximum number of timers in a transaction, which contains nothing else.
    pub chunk: usize,
    poison: Option<PoisonTimer>,
}

impl TimerBisection {
    /// State after timers were rejected together with records, so that it is unknown whether a record or a timer caused
    /// the rejection.
    pub(crate) fn from_records(before: Option<TimerBisection>, fired: usize) -> TimerBisection {
        before.unwrap_or(TimerBisection {
            chunk: fired.max(1),
            poison: None,
        })
    }

    /// Next state after the rejection of a transaction that contained only timers; `timer` is the last of them. Returns
    /// `None` if even the dead letter of a single timer was rejected.
    pub(crate) fn after(
        before: Option<TimerBisection>,
        fired: usize,
        timer: &Timer,
        reason: String,
    ) -> Option<TimerBisection> {
        if fired > 1 {
            return Some(TimerBisection {
                chunk: fired / 2,
                poison: None,
            });
        }
        let is_known = before.is_some_and(|before| before.poison(timer).is_some());
        (!is_known).then(|| TimerBisection {
            chunk: 1,
            poison: Some(PoisonTimer {
                timer: timer.clone(),
                reason,
            }),
        })
    }

    /// Returns the poison timer if it is equal to `timer`.
    pub(crate) fn poison(&self, timer: &Timer) -> Option<&PoisonTimer> {
        self.poison.as_ref().filter(|poison| poison.timer == *timer)
    }

    /// Next state after this number of timers was committed: transactions get larger. `None` if no more timers were
    /// due.
    pub(crate) fn committed(self, fired: usize) -> Option<TimerBisection> {
        (fired >= self.chunk).then(|| TimerBisection {
            chunk: self.chunk.saturating_mul(2),
            poison: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::timer::TimerClock;

    fn timer(at: usize) -> Timer {
        Timer::new(TimerClock::Wall, i64::try_from(at).unwrap(), "x")
    }

    /// Fires timers 0..n where the output of `bad` is rejected, and its dead letter too if `reject_all`. Returns the number of
    /// transactions and the poison timers.
    fn run(n: usize, bad: usize, reject_all: bool) -> Option<(usize, Vec<usize>)> {
        let (mut next, mut transactions, mut isolated) = (0, 0, Vec::new());
        let mut bisection = Some(TimerBisection::from_records(None, n));
        while next < n {
            transactions += 1;
            assert!(transactions < 1000, "does not end");
            let end = bisection
                .as_ref()
                .map_or(n, |bisection| (next + bisection.chunk).min(n));
            let is_poison = |at: &usize| bisection.as_ref().is_some_and(|a| a.poison(&timer(*at)).is_some());
            let poisoned: Vec<usize> = (next..end).filter(is_poison).collect();
            if (next..end).contains(&bad) && (reject_all || !poisoned.contains(&bad)) {
                bisection = Some(TimerBisection::after(
                    bisection,
                    end - next,
                    &timer(end - 1),
                    "too large".to_owned(),
                )?);
            } else {
                isolated.extend(poisoned);
                bisection = bisection.and_then(|bisection| bisection.committed(end - next));
                next = end;
            }
        }
        Some((transactions, isolated))
    }

    #[test]
    fn poison_timer_is_found_in_logarithmic_transactions() {
        for bad in [0, 1, 511, 998, 999] {
            let (transactions, isolated) = run(1000, bad, false).unwrap();
            assert_eq!(isolated, [bad]);
            assert!(transactions < 40, "{transactions} transactions for timer {bad}");
        }
    }

    #[test]
    fn rejected_dead_letter_ends_the_bisection() {
        assert_eq!(run(10, 3, true), None);
    }
}
