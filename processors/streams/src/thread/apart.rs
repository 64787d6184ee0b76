//! How a timer is found of which something was made that the log refuses, so that it does not stop the line.
//!
//! Timers that fired in a refused transaction fire from then on in transactions of their own, in ever smaller numbers
//! while those are refused; the one timer whose own transaction is refused fires once more without its processor, and
//! a dead letter names it.
//!
//! Guarantees: pure; ends after a number of transactions logarithmic in the timers of the first one.
//! Never: a timer given up because of a record, or of another timer.

use crate::Timer;

/// The timer that its processor must not be called for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Poison {
    pub timer: Timer,
    pub reason: String,
}

/// A task's way through the timers of a refused transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Apart {
    /// Timers in one transaction, in which nothing else is.
    pub at_most: usize,
    poison: Option<Poison>,
}

impl Apart {
    /// Timers were refused together with records: nobody knows yet which of them are to blame.
    pub(crate) fn from_records(before: Option<Apart>, fired: usize) -> Apart {
        before.unwrap_or(Apart {
            at_most: fired.max(1),
            poison: None,
        })
    }

    /// The way on after a transaction of timers alone, of which this is the latest, was refused; `None` when the log
    /// refuses even the dead letter of the one timer in it.
    pub(crate) fn after(before: Option<Apart>, fired: usize, timer: &Timer, reason: String) -> Option<Apart> {
        if fired > 1 {
            return Some(Apart {
                at_most: fired / 2,
                poison: None,
            });
        }
        let is_known = before.is_some_and(|before| before.poison(timer).is_some());
        (!is_known).then(|| Apart {
            at_most: 1,
            poison: Some(Poison {
                timer: timer.clone(),
                reason,
            }),
        })
    }

    /// Why a timer is given up, if it is.
    pub(crate) fn poison(&self, timer: &Timer) -> Option<&Poison> {
        self.poison.as_ref().filter(|poison| poison.timer == *timer)
    }

    /// So many timers were committed by themselves: more may follow; `None` when there were no more to fire.
    pub(crate) fn committed(self, fired: usize) -> Option<Apart> {
        (fired >= self.at_most).then(|| Apart {
            at_most: self.at_most.saturating_mul(2),
            poison: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TimerClock;

    fn timer(at: usize) -> Timer {
        Timer::new(TimerClock::Wall, i64::try_from(at).unwrap(), "x")
    }

    /// Fires timers 0..n where what `bad` makes is refused, and its dead letter too if `deaf`; how many transactions it
    /// took, and which timers were given up.
    fn run(n: usize, bad: usize, deaf: bool) -> Option<(usize, Vec<usize>)> {
        let (mut next, mut transactions, mut buried) = (0, 0, Vec::new());
        let mut apart = Some(Apart::from_records(None, n));
        while next < n {
            transactions += 1;
            assert!(transactions < 1000, "does not end");
            let end = apart.as_ref().map_or(n, |apart| (next + apart.at_most).min(n));
            let is_poison = |at: &usize| apart.as_ref().is_some_and(|a| a.poison(&timer(*at)).is_some());
            let on_dead_letter: Vec<usize> = (next..end).filter(is_poison).collect();
            if (next..end).contains(&bad) && (deaf || !on_dead_letter.contains(&bad)) {
                apart = Some(Apart::after(
                    apart,
                    end - next,
                    &timer(end - 1),
                    "too large".to_owned(),
                )?);
            } else {
                buried.extend(on_dead_letter);
                apart = apart.and_then(|apart| apart.committed(end - next));
                next = end;
            }
        }
        Some((transactions, buried))
    }

    #[test]
    fn the_one_timer_is_found_and_given_up_in_logarithmically_many_transactions() {
        for bad in [0, 1, 511, 998, 999] {
            let (transactions, buried) = run(1000, bad, false).unwrap();
            assert_eq!(buried, [bad]);
            assert!(transactions < 40, "{transactions} transactions for timer {bad}");
        }
    }

    #[test]
    fn a_dead_letter_that_is_refused_too_is_the_end() {
        assert_eq!(run(10, 3, true), None);
    }
}
