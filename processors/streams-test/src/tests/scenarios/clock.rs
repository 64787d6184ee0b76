//! A process whose wall clock jumps. Only its wall-clock timers are affected. The broker's clock and the monotonic
//! clock do not jump.

use super::harness::{Harness, TURNS, settle};
use event_log::{Millis, OutRecord, RecordSlice};
use service::clock::Manual;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use streams::{
    Application, Clock, Context, Factory, FirstStart, Output, Processor, Result, State, SubTopology, TaskInfo, Timer,
    TimerClock,
};

const DAY: Millis = 24 * 60 * 60 * 1000;

/// A wall clock that differs by `by` ms from the correct time.
struct Skewed {
    steady: Manual,
    by: AtomicI64,
}

impl Clock for Skewed {
    fn now(&self) -> Millis {
        service::Clock::now_ms(&self.steady) + self.by.load(Ordering::SeqCst)
    }

    fn elapsed(&self) -> Duration {
        Clock::elapsed(&self.steady)
    }
}

/// Sends each key immediately, and again one second later by the wall clock.
struct Echo;

impl Echo {
    fn send(output: &mut Output, key: &[u8], value: &str) {
        let (topic, value) = (Arc::from("out"), Some(value.as_bytes()));
        let (key, partition) = (Some(key), Some(0));
        let out = OutRecord {
            topic: &topic,
            partition,
            timestamp: None,
            key,
            value,
        };
        output.send(out, []);
    }
}

impl Processor for Echo {
    fn process(
        &mut self,
        context: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        for record in records.iter() {
            let key = record.key().unwrap();
            Echo::send(output, key, "now");
            let name = std::str::from_utf8(key).unwrap();
            state.set_timer(Timer::new(TimerClock::Wall, context.now + 1000, name));
        }
        Ok(())
    }

    fn on_timer(&mut self, _: Context, timer: &Timer, _: &mut State, output: &mut Output) -> Result<()> {
        Echo::send(output, timer.key.as_bytes(), "later");
        Ok(())
    }
}

fn application() -> Application {
    let factory: Factory = Arc::new(|_: &TaskInfo| Box::new(Echo));
    let sub = SubTopology {
        name: "echo".to_owned(),
        inputs: vec!["in".to_owned()],
        store: "counts".to_owned(),
        factory,
        first_start: FirstStart::Earliest,
    };
    Application {
        name: "app".to_owned(),
        subtopologies: vec![sub],
    }
}

#[test]
fn backward_clock_jump_delays_only_timers() {
    let harness = Harness::new();
    let clock = Arc::new(Skewed {
        steady: harness.clock.clone(),
        by: AtomicI64::new(0),
    });
    let start = || harness.start_by(clock.clone(), &application(), "one").unwrap();
    let mut thread = start();
    harness.append(0, &[("a", "")]);
    settle(&mut thread, &harness.clock);
    clock.by.store(-10 * DAY, Ordering::SeqCst);
    harness.append(0, &[("b", "")]);
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=now", "b=now"]);
    assert_eq!(harness.committed(0), Some(2), "commits use the monotonic clock");
    // Two seconds later, the newer timer is due by the wall clock, but the older timer is not.
    harness.clock.advance(2000);
    for _ in 0..TURNS {
        thread.turn().unwrap();
    }
    assert_eq!(harness.read("out", 0).last().map(String::as_str), Some("b=later"));
    // A restart with the wrong time: the store is used, and no record is sent twice.
    drop(thread);
    let mut thread = start();
    harness.append(0, &[("c", "")]);
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.quarantined(), 0);
    assert_eq!(harness.read("out", 0), ["a=now", "b=now", "b=later", "c=now"]);
    // The wall clock is correct again, so the pending timers fire once.
    clock.by.store(0, Ordering::SeqCst);
    settle(&mut thread, &harness.clock);
    drop(thread);
    let mut thread = start();
    settle(&mut thread, &harness.clock);
    let sent = harness.read("out", 0);
    for late in ["a=later", "b=later", "c=later"] {
        assert_eq!(
            sent.iter().filter(|value| *value == late).count(),
            1,
            "{late}: {sent:?}"
        );
    }
    assert_eq!(harness.quarantined(), 0);
}

#[test]
fn dead_letters_use_log_append_time() {
    let harness = Harness::new();
    drop(harness.start());
    let dead_letters = harness.log.describe("in.dlq").unwrap().unwrap();
    assert_eq!(dead_letters.settings["message.timestamp.type"], "LogAppendTime");
}
