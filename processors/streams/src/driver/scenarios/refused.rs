//! What a task writes and the log or the store does not take: the record or the timer that it is made of is given up
//! alone, and nothing ends or begins again for ever.
//!
//! Guarantees: every case is settled within a bounded number of turns, with a letter or a cause that names it. Never: a
//! limit of the test's own beside the topics' and the store's.

use super::super::ThreadDriver;
use super::bench::{Bench, TURNS, settle, until_cause};
use crate::{
    Application, Context, Factory, FirstStart, Output, ProcessingGuarantee, Processor, Result, State, SubTopology,
    TaskInfo, Timer, TimerClock,
};
use event_log::{OutRecord, RecordBatch};
use std::ops::Range;
use std::sync::Arc;

#[test]
fn a_state_key_that_no_store_takes_is_found_before_the_commit_and_its_record_is_a_dead_letter() {
    let bench = Bench::new();
    let long = "k".repeat(state_store::KEY_BYTES_MAX + 1);
    let mut records = vec![("a", ""); 50];
    (records[7], records[8], records[40]) = (("", ""), (long.as_str(), ""), ("", ""));
    bench.append(0, &records);
    bench.append(1, &[("b", ""), ("b", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    let want: Vec<String> = (1..=47).map(|n| format!("a={n}")).collect();
    assert_eq!(bench.read("out", 0), want);
    assert_eq!(bench.read("out", 1), ["b=1", "b=2"]);
    let letters = bench.records("in.dlq", 0);
    let lengths: Vec<usize> = letters.iter().map(|(key, _, _)| key.len()).collect();
    assert_eq!(lengths, [0, long.len(), 0]);
    let why = &letters[1].2["__connect.errors.exception.message"];
    assert!(why.contains("has 1 to 65535 bytes, this one has 65536"), "{why}");
    assert_eq!(bench.committed(0), Some(50));
    // The changelog has nothing of them.
    drop(thread);
    std::fs::remove_dir_all(bench.store(0)).unwrap();
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0).last().map(String::as_str), Some("a=48"));
}

/// Sets a timer for each record, of a time after it; what the timer makes is what the record's value says.
struct Later;

impl Later {
    fn say(output: &mut Output, topic: &str, value: &str) {
        let record = OutRecord {
            topic: &Arc::from(topic),
            partition: Some(0),
            timestamp: None,
            key: None,
            value: Some(value.as_bytes()),
        };
        output.send(record, []);
    }
}

impl Processor for Later {
    fn process(
        &mut self,
        context: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        for record in range.filter_map(|index| records.get(index)) {
            let [key, value] = [record.key(), record.value()].map(|b| std::str::from_utf8(b.unwrap()).unwrap());
            let (clock, at) = match value {
                "now" => (TimerClock::Stream, record.timestamp()),
                "lost" => {
                    Later::say(output, "nowhere", key);
                    continue;
                }
                _ => (TimerClock::Wall, context.now + 1000),
            };
            Later::say(output, "out", key);
            state.set_timer(Timer::new(clock, at, format!("{key} {value}")));
        }
        Ok(())
    }

    fn on_timer(&mut self, _: Context, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        let (key, value) = timer.key.split_once(' ').unwrap();
        match value {
            "state" => state.put(b"[\"x\"]", noise(1_200_000)),
            "key" => state.put(b"", vec![1]),
            "out" | "now" if key.starts_with("bad") => Later::say(output, "out", &"x".repeat(4000)),
            "nowhere" => Later::say(output, "nowhere", key),
            _ => {}
        }
        Later::say(output, "out", &format!("{key} fired"));
        Ok(())
    }
}

/// Bytes that do not become fewer when they are compressed.
fn noise(bytes: usize) -> Vec<u8> {
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()[7]
    };
    (0..bytes).map(|_| next()).collect()
}

fn application() -> Application {
    let factory: Factory = Arc::new(|_: &TaskInfo| Box::new(Later));
    let sub = SubTopology {
        name: "later".to_owned(),
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

/// Takes so many turns that every timer has fired, also after pauses that grow from one refusal to the next.
fn fire_all(bench: &Bench, thread: &mut ThreadDriver) {
    for _ in 0..TURNS {
        bench.clock.advance(100);
        thread.turn().unwrap();
    }
    assert_eq!(thread.causes(), Vec::<String>::new());
}

fn said(bench: &Bench) -> Vec<String> {
    let said = bench.records("out", 0).into_iter().map(|(_, value, _)| value);
    said.collect()
}

#[test]
fn a_timer_of_which_something_refused_is_made_is_given_up_alone_and_named() {
    for value in ["out", "state", "key"] {
        let bench = Bench::new();
        let names: Vec<String> = (0..40).map(|n| format!("t{n:02}")).collect();
        let mut records: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "later")).collect();
        records[23] = ("bad", value);
        bench.append(0, &records);
        let mut thread = bench.try_start(&application(), "one").unwrap();
        fire_all(&bench, &mut thread);
        let mut want: Vec<String> = records.iter().map(|(key, _)| (*key).to_owned()).collect();
        // Timers of one time fire in the order of their names.
        let mut fired: Vec<&str> = want.iter().map(String::as_str).filter(|key| *key != "bad").collect();
        fired.sort_unstable();
        let fired: Vec<String> = fired.iter().map(|key| format!("{key} fired")).collect();
        want.extend(fired);
        assert_eq!(said(&bench), want, "{value}");
        let letters = bench.records("in.dlq", 0);
        let [(key, body, headers)] = letters.as_slice() else {
            panic!("{letters:?}")
        };
        assert_eq!((key.as_str(), body.as_str()), ("null", "null"));
        let why = &headers["__connect.errors.exception.message"];
        let named = format!("output of timer `bad {value}` (wall clock, due at ");
        assert!(why.starts_with(&named), "{why}");
        assert_eq!(headers["__connect.errors.stage"], "KAFKA_PRODUCE");
        assert_eq!(headers.get("__connect.errors.offset"), None);
        // It is over, for a restart too.
        drop(thread);
        std::fs::remove_dir_all(bench.store(0)).unwrap();
        let mut thread = bench.try_start(&application(), "one").unwrap();
        settle(&mut thread, &bench.clock);
        assert_eq!(said(&bench).len(), want.len());
    }
}

#[test]
fn a_record_is_not_given_up_for_a_timer_that_fires_beside_it() {
    let bench = Bench::new();
    bench.append(0, &[("a", "now")]);
    bench.clock.advance(5);
    bench.append(0, &[("bad", "now")]);
    bench.clock.advance(5);
    bench.append(0, &[("b", "now"), ("c", "later")]);
    let mut thread = bench.try_start(&application(), "one").unwrap();
    fire_all(&bench, &mut thread);
    let mut found = said(&bench);
    found.sort_unstable();
    assert_eq!(found, ["a", "a fired", "b", "b fired", "bad", "c", "c fired"]);
    assert_eq!(bench.records("in.dlq", 0).len(), 1);
    assert_eq!(bench.committed(0), Some(4));
}

#[test]
fn at_least_once_a_timer_is_given_up_too() {
    let bench = Bench::new();
    bench.append(0, &[("a", "later"), ("bad", "out"), ("b", "later"), ("bad2", "key")]);
    let mut thread = bench.start_with(&application(), |config| {
        config.commit.guarantee = ProcessingGuarantee::AtLeastOnce
    });
    fire_all(&bench, &mut thread);
    assert_eq!(bench.records("in.dlq", 0).len(), 2);
    let found = said(&bench);
    assert!(
        found.contains(&"a fired".to_owned()) && found.contains(&"b fired".to_owned()),
        "{found:?}"
    );
    assert_eq!(bench.committed(0), Some(4));
}

#[test]
fn output_to_a_topic_that_is_not_there_stops_its_task_alone_until_it_is() {
    for value in ["lost", "nowhere"] {
        let bench = Bench::new();
        bench.append(0, &[("a", "later"), ("b", value)]);
        bench.append(1, &[("c", "later")]);
        let mut thread = bench.try_start(&application(), "one").unwrap();
        if value == "nowhere" {
            settle(&mut thread, &bench.clock);
            bench.clock.advance(1000);
        }
        let cause = until_cause(&mut thread, &bench.clock, "task later/0: stopped");
        assert!(cause.contains("topic nowhere does not exist; create it"), "{cause}");
        for _ in 0..TURNS {
            bench.clock.advance(10);
            thread.turn().unwrap();
        }
        let found = said(&bench);
        assert!(
            found.contains(&"c".to_owned()) && found.contains(&"c fired".to_owned()),
            "{found:?}"
        );
        assert!(!found.contains(&"a fired".to_owned()), "{found:?}");
        bench.topic("nowhere", 1, |_| {});
        bench.clock.advance(10_000);
        fire_all(&bench, &mut thread);
        assert_eq!(bench.records("nowhere", 0).len(), 1, "{value}");
        assert!(said(&bench).contains(&"a fired".to_owned()));
        assert_eq!(bench.committed(0), Some(2));
    }
}
