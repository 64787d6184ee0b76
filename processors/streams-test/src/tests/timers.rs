//! Tests of durable timers.

use crate::{StepDriver, record};
use event_log::{Millis, NewRecord, OutRecord, RecordSlice, TimestampType, TopicPartition};
use std::sync::Arc;
use streams::{Context, Output, Processor, Result, State, Timer, TimerClock};

/// Sends the key and time of each timer that fires. Timer `again` sets itself again; timer `first` cancels timer
/// `second`.
struct Alarm;

impl Processor for Alarm {
    fn process(&mut self, _: Context, _: RecordSlice<'_>, _: &mut State, _: &mut Output) -> Result<()> {
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
    let sent = driver.commit().unwrap();
    sent.into_iter()
        .map(|w| String::from_utf8(w.value.unwrap()).unwrap())
        .collect()
}

#[test]
fn timers_fire_in_order_once_and_not_early() {
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
fn timer_sets_itself_again_and_cancels_a_due_one() {
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
fn timer_set_while_firing_fires_in_order() {
    let mut driver = StepDriver::new("alarm", Box::new(Alarm)).unwrap();
    for (at, key) in [(10, "early"), (20, "late"), (30, "later")] {
        driver.state_mut().set_timer(Timer::new(TimerClock::Wall, at, key));
    }
    let want = ["early at 10", "between at 11", "late at 20", "later at 30"];
    assert_eq!(fired(&mut driver, 100), want);
}

#[test]
fn rolled_back_timer_fires_again() {
    let mut driver = StepDriver::new("alarm", Box::new(Alarm)).unwrap();
    driver.state_mut().set_timer(Timer::new(TimerClock::Wall, 10, "wall"));
    driver
        .state_mut()
        .set_timer(Timer::new(TimerClock::Stream, 10, "stream"));
    driver.commit().unwrap();
    driver.advance(50).unwrap();
    driver.abort().unwrap();
    assert_eq!(fired(&mut driver, 50), ["wall at 10"]);
    let new = NewRecord {
        offset: 0,
        timestamp: 10,
        timestamp_type: TimestampType::Create,
        key: None,
        value: None,
    };
    let records = record(&TopicPartition::new("in", 0), new, []);
    driver.feed(&records).unwrap();
    let sent = driver.commit().unwrap();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].value.as_deref(), Some(&b"stream at 10"[..]));
}

#[test]
fn scan_hides_timers_from_the_processor() {
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
