//! A wall clock that jumps: what is due by it waits, and nothing else does.
//!
//! Guarantees: the broker's clock and the steady one go on as they were. Never: a jump of those.

use super::bench::{Bench, TURNS, settle};
use crate::{
    Application, Clock, Context, Factory, FirstStart, Output, Processor, Result, State, SubTopology, TaskInfo, Timer,
    TimerClock,
};
use event_log::{Millis, OutRecord, RecordBatch};
use service::clock::Manual;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

const DAY: Millis = 24 * 60 * 60 * 1000;

/// A process's clock: its date is off by so much.
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

/// Says each key at once, and once more a second later by the wall clock.
struct Echo;

impl Echo {
    fn say(output: &mut Output, key: &[u8], value: &str) {
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
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        for record in range.filter_map(|index| records.get(index)) {
            let key = record.key().unwrap();
            Echo::say(output, key, "now");
            let name = std::str::from_utf8(key).unwrap();
            state.set_timer(Timer::new(TimerClock::Wall, context.now + 1000, name));
        }
        Ok(())
    }

    fn on_timer(&mut self, _: Context, timer: &Timer, _: &mut State, output: &mut Output) -> Result<()> {
        Echo::say(output, timer.key.as_bytes(), "later");
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
fn a_clock_that_jumps_back_holds_up_its_timers_and_nothing_else() {
    let bench = Bench::new();
    let clock = Arc::new(Skewed {
        steady: bench.clock.clone(),
        by: AtomicI64::new(0),
    });
    let start = || bench.start_by(clock.clone(), &application(), "one").unwrap();
    let mut thread = start();
    bench.append(0, &[("a", "")]);
    settle(&mut thread, &bench.clock);
    clock.by.store(-10 * DAY, Ordering::SeqCst);
    bench.append(0, &[("b", "")]);
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=now", "b=now"]);
    assert_eq!(bench.committed(0), Some(2), "commits go by the steady clock");
    // Two seconds later the newer one is due by the clock as it is, the older one is not.
    bench.clock.advance(2000);
    for _ in 0..TURNS {
        thread.turn().unwrap();
    }
    assert_eq!(bench.read("out", 0).last().map(String::as_str), Some("b=later"));
    // A start with the wrong date: the store is taken as it is, and nothing is said twice.
    drop(thread);
    let mut thread = start();
    bench.append(0, &[("c", "")]);
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.asides(), 0);
    assert_eq!(bench.read("out", 0), ["a=now", "b=now", "b=later", "c=now"]);
    // The date is right again: what waited is due, once.
    clock.by.store(0, Ordering::SeqCst);
    settle(&mut thread, &bench.clock);
    drop(thread);
    let mut thread = start();
    settle(&mut thread, &bench.clock);
    let said = bench.read("out", 0);
    for late in ["a=later", "b=later", "c=later"] {
        assert_eq!(said.iter().filter(|said| *said == late).count(), 1, "{late}: {said:?}");
    }
    assert_eq!(bench.asides(), 0);
}

#[test]
fn dead_letters_age_by_the_broker_s_clock() {
    let bench = Bench::new();
    drop(bench.start());
    let letters = bench.log.describe("in.dlq").unwrap().unwrap();
    assert_eq!(letters.settings["message.timestamp.type"], "LogAppendTime");
}
