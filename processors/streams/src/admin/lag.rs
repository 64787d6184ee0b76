//! Measures input lag and store sizes every few seconds, and checks the ids of the inputs, on a separate thread.
//!
//! The inputs are not read: the lag is computed from log ends, committed positions and timestamps.

use crate::admin::status::Cause;
use crate::api::context::TaskId;
use crate::api::error::Result;
use crate::shared::{CommittedPosition, Shared};
use event_log::{ErrorAction, Millis, Offset, OffsetSpec, TopicPartition};
use service::{Drain, chain};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Interval between measurements of the lag.
const EVERY: Duration = Duration::from_secs(2);
/// A greatest timestamp that is later than now by more than this does not bound the waiting time: a record from the future
/// would hide the lag until then. A smaller difference is one of clocks.
const CLOCK_DIFFERENCE_MAX: Millis = 60_000;
/// Store sizes are measured every third time, because the engine has to inspect its files.
const STORES_EVERY: u32 = 3;
/// The ids of the inputs are looked up every third time.
const TOPICS_EVERY: u32 = 3;

/// Log end of an input at the last measurement.
#[derive(Debug, Clone, Copy)]
struct MeasuredEnd {
    end: Offset,
    /// Time of the measurement, on the monotonic clock.
    read: Duration,
    /// The latest time for which all records before it are known to be committed.
    caught_up: Option<Duration>,
}

/// Measurements of one application.
#[derive(Default)]
pub(crate) struct Sampler {
    ends: HashMap<TopicPartition, MeasuredEnd>,
    stores: BTreeSet<TaskId>,
    rounds: u32,
}

/// Measures until the process drains.
///
/// # Errors
/// None; the result type is that of a process task.
pub(crate) fn run(shared: &Shared, drain: &Drain) -> Result<()> {
    let mut sampler = Sampler::default();
    while drain.sleep_blocking(EVERY) {
        sampler.turn(shared);
    }
    Ok(())
}

impl Sampler {
    /// Measures once.
    pub(crate) fn turn(&mut self, shared: &Shared) {
        self.lag(shared);
        if self.rounds.is_multiple_of(STORES_EVERY) {
            self.sizes(shared);
        }
        if self.rounds.is_multiple_of(TOPICS_EVERY) {
            note_recreated(shared);
        }
        self.rounds = self.rounds.wrapping_add(1);
    }

    /// Publishes the lag of each input, relative to the log end of the last measurement.
    fn lag(&mut self, shared: &Shared) {
        let positions = shared.positions().clone();
        self.ends.retain(|at, _| {
            let owned = positions.contains_key(at);
            if !owned {
                shared.metrics.lag(at, 0, Some(Duration::ZERO));
            }
            owned
        });
        for (at, position) in &positions {
            let now = shared.clock.elapsed();
            let mut caught_up = None;
            if let Some(seen) = self.ends.get(at) {
                let lag = behind(position, seen);
                caught_up = if lag == 0 { Some(seen.read) } else { seen.caught_up };
                let measured = Lag {
                    offsets: lag,
                    caught_up,
                    stream_time: position.stream_time,
                };
                let waits = waiting_time(&measured, now, shared.clock.now());
                shared.metrics.lag(at, lag, waits);
            }
            match shared.log.offset(at, OffsetSpec::LastStable) {
                Ok(end) => {
                    self.ends.insert(
                        at.clone(),
                        MeasuredEnd {
                            end,
                            read: now,
                            caught_up,
                        },
                    );
                    shared.status.set("lag", None);
                }
                Err(error) if error.action() == ErrorAction::Retry => {
                    shared.status.set("lag", Some(Cause::unavailable(chain(&error))));
                    break;
                }
                Err(error) => tracing::warn!(%at, reason = chain(&error), "cannot measure lag"),
            }
        }
    }

    fn sizes(&mut self, shared: &Shared) {
        let tasks: BTreeSet<TaskId> = shared.serving().keys().cloned().collect();
        for gone in self.stores.difference(&tasks) {
            shared.metrics.store(gone, state_store::Stats::default());
        }
        for task in &tasks {
            // Only one store is held at a time, and only briefly, because its next owner cannot open it while it is in
            // use here.
            let store = shared.serving().get(task).cloned();
            if let Some(store) = store {
                shared.metrics.store(task, store.stats());
            }
        }
        self.stores = tasks;
    }
}

/// Notes inputs that were deleted and created again. A consumer of Kafka addresses a topic by name and would continue in the
/// new topic at the position in the former one.
pub(crate) fn note_recreated(shared: &Shared) {
    for input in shared.plan.subs.iter().flat_map(|sub| &sub.inputs) {
        match shared.log.describe(&input.name) {
            Ok(Some(info)) if info.id != input.id => {
                shared.recreated().insert(input.name.clone());
            }
            // A topic that is missing is reported by the task that reads it.
            Ok(_) => {}
            Err(error) => tracing::debug!(topic = %input.name, reason = chain(&error), "topic id not checked"),
        }
    }
}

/// Number of offsets from a position to a log end. Zero for an input that was read completely after the log end was
/// measured: otherwise, a control record after the last record would count forever.
fn behind(position: &CommittedPosition, seen: &MeasuredEnd) -> Offset {
    if position.drained.is_some_and(|drained| drained > seen.read) {
        0
    } else {
        seen.end.saturating_sub(position.next).max(0)
    }
}

/// Lag of an input in records, and in time if it is known.
struct Lag {
    offsets: Offset,
    caught_up: Option<Duration>,
    stream_time: Millis,
}

/// How long the oldest uncommitted record has been waiting: the smaller of two upper bounds. One is the time since all
/// records were last known to be committed, which is exact to one measurement interval. The other is the time since the
/// greatest committed timestamp, which is also known after a restart, and valid if timestamps do not decrease. `None`
/// if neither is known.
fn waiting_time(lag: &Lag, now: Duration, date: Millis) -> Option<Duration> {
    if lag.offsets == 0 {
        return Some(Duration::ZERO);
    }
    let since_caught_up = lag.caught_up.map(|at| now.saturating_sub(at));
    let newest_ms = date.saturating_sub(lag.stream_time);
    let known = lag.stream_time > 0 && lag.stream_time <= date.saturating_add(CLOCK_DIFFERENCE_MAX);
    let since_newest = known.then(|| Duration::from_millis(u64::try_from(newest_ms).unwrap_or_default()));
    since_caught_up.into_iter().chain(since_newest).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn input_drained_after_its_end_was_read_has_no_lag() {
        let seen = MeasuredEnd {
            end: 10,
            read: s(5),
            caught_up: None,
        };
        let position = |next, drained| CommittedPosition {
            next,
            drained,
            stream_time: 0,
        };
        assert_eq!(behind(&position(7, None), &seen), 3);
        assert_eq!(behind(&position(9, Some(s(4))), &seen), 1);
        assert_eq!(behind(&position(9, Some(s(6))), &seen), 0);
        assert_eq!(behind(&position(12, None), &seen), 0);
    }

    #[test]
    fn waiting_time_is_the_smaller_upper_bound() {
        let date = 1_000_000;
        let waits = |offsets, caught_up, stream_time| {
            let lag = Lag {
                offsets,
                caught_up,
                stream_time,
            };
            waiting_time(&lag, s(100), date)
        };
        assert_eq!(waits(0, None, 0), Some(s(0)));
        assert_eq!(waits(1, None, 0), None, "neither bound is known");
        assert_eq!(waits(1, Some(s(98)), 0), Some(s(2)));
        assert_eq!(waits(1, None, date - 3_000), Some(s(3)));
        // One record a day: the last record is old, the new one has just arrived.
        assert_eq!(waits(1, Some(s(98)), date - 86_400_000), Some(s(2)));
        // An input that is always slightly behind.
        assert_eq!(waits(1, Some(s(10)), date - 500), Some(Duration::from_millis(500)));
        // The clock that set the timestamp is slightly ahead.
        assert_eq!(waits(1, None, date + 5), Some(s(0)));
        // A record dated next year.
        let next_year = date + 365 * 86_400_000;
        assert_eq!(waits(1, Some(s(40)), next_year), Some(s(60)));
        assert_eq!(waits(1, None, next_year), None);
    }
}
