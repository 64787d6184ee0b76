//! What is measured beside the threads every few seconds: how far the inputs are behind, and what the stores occupy.
//!
//! Guarantees: no work of it is on a stream thread; what is no longer this process's is shown as nothing.
//! Never: a read of an input. What it says of waiting is said from ends and times alone.

use crate::status::Cause;
use crate::thread::{Place, Shared};
use crate::{Result, TaskId};
use event_log::{ErrorAction, Millis, Offset, OffsetSpec, TopicPartition};
use service::{Drain, chain};
use std::collections::{BTreeSet, HashMap};
use std::sync::PoisonError;
use std::time::Duration;

/// How often the lag is measured.
const EVERY: Duration = Duration::from_secs(2);
/// Every so many measures the stores' sizes are asked for, which costs a look at their files.
const STORES_EVERY: u32 = 3;

/// The end of an input, as it was last read.
#[derive(Debug, Clone, Copy)]
struct Seen {
    end: Offset,
    /// When, on the monotonic clock.
    read: Duration,
    /// The last time at which everything that stood in the input is known to be committed by now.
    whole: Option<Duration>,
}

/// The measurer of one application.
#[derive(Default)]
pub(crate) struct Sampler {
    seen: HashMap<TopicPartition, Seen>,
    stores: BTreeSet<TaskId>,
    rounds: u32,
}

/// Measures until the drain.
///
/// # Errors
/// None so far; it is a task's end.
pub(crate) fn run(env: &Shared, drain: &Drain) -> Result<()> {
    let mut sampler = Sampler::default();
    while drain.sleep_blocking(EVERY) {
        sampler.turn(env);
    }
    Ok(())
}

impl Sampler {
    /// Measures once.
    pub(crate) fn turn(&mut self, env: &Shared) {
        self.lag(env);
        if self.rounds.is_multiple_of(STORES_EVERY) {
            self.sizes(env);
        }
        self.rounds = self.rounds.wrapping_add(1);
    }

    /// Tells for each input how far its committed place is behind the end that was read at the last measure.
    fn lag(&mut self, env: &Shared) {
        let places = env.places.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.seen.retain(|at, _| {
            let stays = places.contains_key(at);
            if !stays {
                env.metrics.lag(at, 0, Some(Duration::ZERO));
            }
            stays
        });
        for (at, place) in &places {
            let now = env.clock.elapsed();
            let mut whole = None;
            if let Some(seen) = self.seen.get(at) {
                let lag = behind(place, seen);
                whole = if lag == 0 { Some(seen.read) } else { seen.whole };
                env.metrics
                    .lag(at, lag, waits(lag, whole, place.stream_time, now, env.clock.now()));
            }
            match env.log.offset(at, OffsetSpec::LastStable) {
                Ok(end) => {
                    self.seen.insert(at.clone(), Seen { end, read: now, whole });
                    env.status.set("lag", None);
                }
                Err(error) if error.action() == ErrorAction::Retry => {
                    env.status.set("lag", Some(Cause::outside(chain(&error))));
                    break;
                }
                Err(error) => tracing::warn!(%at, reason = chain(&error), "lag is not known"),
            }
        }
    }

    fn sizes(&mut self, env: &Shared) {
        let tasks: BTreeSet<TaskId> = env.serving().keys().cloned().collect();
        for gone in self.stores.difference(&tasks) {
            env.metrics.store(gone, state_store::Stats::default());
        }
        for task in &tasks {
            // One at a time and not for long: a store that is in use here cannot be opened by its next owner.
            let store = env.serving().get(task).cloned();
            if let Some(store) = store {
                env.metrics.store(task, store.stats());
            }
        }
        self.stores = tasks;
    }
}

/// Offsets from a place to an end. A control record after the last record would count for ever, so an input that was
/// seen drained after its end was read has no lag.
fn behind(place: &Place, seen: &Seen) -> Offset {
    if place.drained.is_some_and(|drained| drained > seen.read) {
        0
    } else {
        seen.end.saturating_sub(place.next).max(0)
    }
}

/// How long the oldest record waits that is not committed: the lesser of two times that it cannot have waited longer
/// than. One is the time since everything that stood in the input was committed, which is exact to one measure; the
/// other the time since the greatest timestamp that was committed, which is known after a restart too, and holds as
/// long as timestamps do not fall. `None` when neither is known.
fn waits(lag: Offset, whole: Option<Duration>, stream_time: Millis, now: Duration, date: Millis) -> Option<Duration> {
    if lag == 0 {
        return Some(Duration::ZERO);
    }
    let since_whole = whole.map(|whole| now.saturating_sub(whole));
    let since_newest = (stream_time > 0)
        .then(|| Duration::from_millis(u64::try_from(date.saturating_sub(stream_time)).unwrap_or_default()));
    since_whole.into_iter().chain(since_newest).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn an_input_that_was_drained_after_its_end_was_read_is_not_behind() {
        let seen = Seen {
            end: 10,
            read: s(5),
            whole: None,
        };
        let place = |next, drained| Place {
            next,
            drained,
            stream_time: 0,
        };
        assert_eq!(behind(&place(7, None), &seen), 3);
        assert_eq!(behind(&place(9, Some(s(4))), &seen), 1);
        assert_eq!(behind(&place(9, Some(s(6))), &seen), 0);
        assert_eq!(behind(&place(12, None), &seen), 0);
    }

    #[test]
    fn a_record_waits_no_longer_than_since_the_input_was_whole_or_since_the_newest_that_was_committed() {
        let date = 1_000_000;
        assert_eq!(waits(0, None, 0, s(100), date), Some(s(0)));
        assert_eq!(waits(1, None, 0, s(100), date), None, "nothing is known");
        assert_eq!(waits(1, Some(s(98)), 0, s(100), date), Some(s(2)));
        assert_eq!(waits(1, None, date - 3_000, s(100), date), Some(s(3)));
        // A record a day: the last one is old, and the new one has just come.
        assert_eq!(waits(1, Some(s(98)), date - 86_400_000, s(100), date), Some(s(2)));
        // Never quite at the end, and never far from it.
        assert_eq!(
            waits(1, Some(s(10)), date - 500, s(100), date),
            Some(Duration::from_millis(500))
        );
        // A timestamp from the future.
        assert_eq!(waits(1, None, date + 5, s(100), date), Some(s(0)));
    }
}
