//! Durable timers: rows of a task's state that are due at a time, by stream time or by the wall clock.
//!
//! A timer is the state key `["~timer", clock, time in ms with 20 digits, key]`, so that it is changelogged, restored
//! and rolled back as every other row, and timers of a clock stand in the order of their times. It fires in the
//! transaction that removes it: exactly once, after any crash.
//! Guarantees: timers of one clock fire in order, never before their time; one that was cancelled does not fire.
//! Never: an upper bound for the delay. Stream time stands still while no record comes.

use crate::{Context, Output, Result, State};
use event_log::Millis;

/// What every timer's state key begins with.
pub(crate) const TIMER: &[u8] = b"[\"~timer\",";

/// Which clock a timer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimerClock {
    /// The greatest record timestamp that the task has seen ([`Context::stream_time`]).
    Stream,
    /// The process's clock ([`Context::now`]).
    Wall,
}

impl TimerClock {
    /// Both.
    pub(crate) const ALL: [TimerClock; 2] = [TimerClock::Stream, TimerClock::Wall];

    /// Its place among them.
    pub(crate) fn index(self) -> usize {
        match self {
            TimerClock::Stream => 0,
            TimerClock::Wall => 1,
        }
    }

    /// The time by this clock.
    pub(crate) fn now(self, context: Context) -> Millis {
        match self {
            TimerClock::Stream => context.stream_time,
            TimerClock::Wall => context.now,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            TimerClock::Stream => "stream",
            TimerClock::Wall => "wall",
        }
    }

    /// What the keys of this clock's timers begin with.
    pub(crate) fn prefix(self) -> Vec<u8> {
        format!("[\"~timer\",\"{}\",", self.name()).into_bytes()
    }

    /// What the keys of this clock's timers from a time on are not below.
    pub(crate) fn rows_from(self, at: Millis) -> Vec<u8> {
        format!("[\"~timer\",\"{}\",\"{:020}\"", self.name(), at.max(0)).into_bytes()
    }
}

/// A timer. It is a row of the task's state: it survives what state survives, moves with the task, and costs a changelog
/// record when it is set and one when it fires or is cancelled. There may be millions of them.
///
/// By stream time it fires in the first batch whose newest record is not older than its time; by the wall clock within
/// about 100 ms while the task runs, and at once after a restart when it was due meanwhile. Either way the order within
/// a clock is that of the times. Stream time stands while no record comes to the task: what must happen without one
/// needs the wall clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// Its clock.
    pub clock: TimerClock,
    /// When it is due, in ms; a time before 1970 counts as 0.
    pub at: Millis,
    /// The processor's own name for it; clock, time and key together are one timer.
    pub key: String,
}

impl Timer {
    /// A timer.
    pub fn new(clock: TimerClock, at: Millis, key: impl Into<String>) -> Self {
        Timer {
            clock,
            at: at.max(0),
            key: key.into(),
        }
    }

    /// Its state key.
    pub(crate) fn row(&self) -> Vec<u8> {
        let Timer { clock, at, key } = self;
        let key = serde_json::Value::from(key.as_str());
        format!("[\"~timer\",\"{}\",\"{:020}\",{key}]", clock.name(), at.max(&0)).into_bytes()
    }

    /// The timer of a state key; `None` for another key.
    pub(crate) fn of_row(clock: TimerClock, row: &[u8]) -> Option<Timer> {
        let (_, _, at, key): (String, String, String, String) = serde_json::from_slice(row).ok()?;
        let at = at.parse().ok()?;
        Some(Timer { clock, at, key })
    }
}

/// What has fired at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Fired {
    /// How many timers.
    pub count: usize,
    /// The latest of them.
    pub last: Option<Timer>,
    /// How late the latest of those was that wait for the wall clock, in ms.
    pub late_ms: Option<Millis>,
}

/// Calls a processor for its timers that are due, at most so many; returns what fired.
pub(crate) fn fire(
    context: Context,
    state: &mut State,
    output: &mut Output,
    at_most: usize,
    call: &mut dyn FnMut(&Timer, &mut State, &mut Output) -> Result<()>,
) -> Result<Fired> {
    let mut fired = Fired::default();
    for clock in TimerClock::ALL {
        let now = clock.now(context);
        while fired.count < at_most {
            let due = state.due(clock, now, at_most - fired.count)?;
            if due.is_empty() {
                break;
            }
            for timer in due {
                // One that fired before may have set an earlier one, or cancelled this.
                if state.was_set(clock).is_some_and(|set| set < timer.at) {
                    break;
                }
                if state.take_timer(&timer)? {
                    output.uncaused();
                    call(&timer, state, output)?;
                    fired.count += 1;
                    if clock == TimerClock::Wall {
                        fired.late_ms = fired.late_ms.max(Some(now.saturating_sub(timer.at)));
                    }
                    fired.last = Some(timer);
                }
            }
            state.was_set(clock);
        }
    }
    Ok(fired)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Processor;
    use crate::driver::StepDriver;
    use event_log::{OutRecord, RecordBatch};
    use std::ops::Range;
    use std::sync::Arc;

    /// Says when its timers fire; `again` sets itself anew, `first` cancels `second`.
    struct Alarm;

    impl Processor for Alarm {
        fn process(
            &mut self,
            _: Context,
            _: &RecordBatch,
            _: Range<usize>,
            _: &mut State,
            _: &mut Output,
        ) -> Result<()> {
            Ok(())
        }

        fn on_timer(&mut self, context: Context, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
            let text = format!("{} at {}", timer.key, timer.at);
            let record = OutRecord {
                topic: &Arc::from("out"),
                partition: None,
                timestamp: None,
                key: None,
                value: Some(text.as_bytes()),
            };
            output.send(record, []);
            match timer.key.as_str() {
                "early" => state.set_timer(Timer::new(timer.clock, timer.at + 1, "between")),
                "again" if timer.at < 300 => state.set_timer(Timer::new(timer.clock, timer.at + 100, "again")),
                "first" => state.cancel_timer(&Timer::new(TimerClock::Wall, context.now, "second")),
                _ => {}
            }
            Ok(())
        }
    }

    fn fired(driver: &mut StepDriver, now: Millis) -> Vec<String> {
        driver.advance(now).unwrap();
        let said = driver.commit().unwrap();
        said.into_iter()
            .map(|w| String::from_utf8(w.value.unwrap()).unwrap())
            .collect()
    }

    #[test]
    fn timers_fire_in_order_once_and_not_before_their_time() {
        let mut driver = StepDriver::new("alarm", Box::new(Alarm)).unwrap();
        let wall = |at, key: &str| Timer::new(TimerClock::Wall, at, key);
        for timer in [
            wall(20, "b"),
            wall(3, "a \"quoted\" name"),
            wall(20, "a"),
            wall(1_000, "late"),
        ] {
            driver.state_mut().set_timer(timer);
        }
        assert_eq!(fired(&mut driver, 2), [""; 0]);
        assert_eq!(fired(&mut driver, 20), ["a \"quoted\" name at 3", "a at 20", "b at 20"]);
        assert_eq!(fired(&mut driver, 999), [""; 0]);
        assert_eq!(fired(&mut driver, 5_000), ["late at 1000"]);
        assert_eq!(fired(&mut driver, 9_000), [""; 0]);
    }

    #[test]
    fn a_timer_may_set_itself_anew_and_cancel_another_that_is_due() {
        let mut driver = StepDriver::new("alarm", Box::new(Alarm)).unwrap();
        driver.state_mut().set_timer(Timer::new(TimerClock::Wall, 100, "again"));
        assert_eq!(
            fired(&mut driver, 1_000),
            ["again at 100", "again at 200", "again at 300"]
        );
        driver
            .state_mut()
            .set_timer(Timer::new(TimerClock::Wall, 2_000, "first"));
        driver
            .state_mut()
            .set_timer(Timer::new(TimerClock::Wall, 2_000, "second"));
        assert_eq!(fired(&mut driver, 2_000), ["first at 2000"]);
    }

    #[test]
    fn a_timer_that_is_set_in_between_fires_in_between() {
        let mut driver = StepDriver::new("alarm", Box::new(Alarm)).unwrap();
        for (at, key) in [(10, "early"), (20, "late"), (30, "later")] {
            driver.state_mut().set_timer(Timer::new(TimerClock::Wall, at, key));
        }
        let want = ["early at 10", "between at 11", "late at 20", "later at 30"];
        assert_eq!(fired(&mut driver, 100), want);
    }

    #[test]
    fn a_rolled_back_timer_fires_again_and_stream_time_waits_for_records() {
        let mut driver = StepDriver::new("alarm", Box::new(Alarm)).unwrap();
        driver.state_mut().set_timer(Timer::new(TimerClock::Wall, 10, "wall"));
        driver
            .state_mut()
            .set_timer(Timer::new(TimerClock::Stream, 10, "stream"));
        driver.commit().unwrap();
        driver.advance(50).unwrap();
        driver.abort().unwrap();
        assert_eq!(fired(&mut driver, 50), ["wall at 10"]);
        let (mut out, mut records) = (event_log::OutBatch::default(), RecordBatch::default());
        records.intern(&event_log::TopicPartition::new("in", 0));
        records.push(
            0,
            0,
            10,
            event_log::TimestampType::Create,
            None,
            None,
            std::iter::empty(),
        );
        out.clear();
        driver.feed(&records).unwrap();
        let said = driver.commit().unwrap();
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].value.as_deref(), Some(&b"stream at 10"[..]));
    }

    #[test]
    fn a_processor_does_not_meet_its_timers_as_rows() {
        let mut driver = StepDriver::new("alarm", Box::new(Alarm)).unwrap();
        driver.state_mut().set_timer(Timer::new(TimerClock::Wall, 10, "x"));
        driver.state_mut().put(b"[\"row\"]", vec![1]);
        let mut keys = Vec::new();
        let each = &mut |key: &[u8], _: &[u8]| {
            keys.push(key.to_vec());
            std::ops::ControlFlow::Continue(())
        };
        driver.state().scan(b"", each).unwrap();
        assert_eq!(keys, [b"[\"row\"]".to_vec()]);
    }
}
