//! Effects that the log or the store rejects: only the record or timer that caused them becomes a dead letter, and
//! nothing is retried forever. Each case must be completed within a limited number of iterations.

use super::harness::{Harness, TURNS, settle, until_cause};
use crate::ThreadDriver;
use event_log::{OutRecord, RecordSlice};
use std::sync::Arc;
use streams::{
    Application, Context, Factory, FirstStart, Output, ProcessingGuarantee, Processor, RejectedTimer, Result, State,
    SubTopology, TaskInfo, Timer, TimerClock,
};

#[test]
fn invalid_state_key_makes_a_dead_letter() {
    let harness = Harness::new();
    let long = "k".repeat(state_store::KEY_BYTES_MAX + 1);
    let mut records = vec![("a", ""); 50];
    (records[7], records[8], records[40]) = (("", ""), (long.as_str(), ""), ("", ""));
    harness.append(0, &records);
    harness.append(1, &[("b", ""), ("b", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    let want: Vec<String> = (1..=47).map(|n| format!("a={n}")).collect();
    assert_eq!(harness.read("out", 0), want);
    assert_eq!(harness.read("out", 1), ["b=1", "b=2"]);
    let dead_letters = harness.records("in.dlq", 0);
    let lengths: Vec<usize> = dead_letters.iter().map(|(key, _, _)| key.len()).collect();
    assert_eq!(lengths, [0, long.len(), 0]);
    let why = &dead_letters[1].2["__connect.errors.exception.message"];
    assert!(
        why.contains("a key of 65536 bytes rejected; a key has 1 to 65535 bytes"),
        "{why}"
    );
    assert_eq!(harness.committed(0), Some(50));
    // The changelog contains none of the rejected rows.
    drop(thread);
    std::fs::remove_dir_all(harness.store(0)).unwrap();
    harness.append(0, &[("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0).last().map(String::as_str), Some("a=48"));
}

/// Sets a timer for each record; the value of the record determines what the timer does.
struct Later;

impl Later {
    fn send(output: &mut Output, topic: &str, value: &str) {
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
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        for record in records.iter() {
            let [key, value] = [record.key(), record.value()].map(|b| std::str::from_utf8(b.unwrap()).unwrap());
            let (clock, at) = match value {
                "now" => (TimerClock::Stream, record.timestamp()),
                "lost" => {
                    Later::send(output, "nowhere", key);
                    continue;
                }
                _ => (TimerClock::Wall, context.now + 1000),
            };
            Later::send(output, "out", key);
            state.set_timer(Timer::new(clock, at, format!("{key} {value}")));
        }
        Ok(())
    }

    fn on_timer(&mut self, _: Context, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        let (key, value) = timer.key.split_once(' ').unwrap();
        match value {
            "state" => state.put(b"[\"x\"]", noise(1_200_000)),
            "key" => state.put(b"", vec![1]),
            "out" | "now" | "split" if key.starts_with("bad") => Later::send(output, "out", &"x".repeat(4000)),
            "nowhere" => Later::send(output, "nowhere", key),
            _ => {}
        }
        Later::send(output, "out", &format!("{key} fired"));
        Ok(())
    }

    fn on_rejected_timer(
        &mut self,
        context: Context,
        timer: &Timer,
        state: &mut State,
        _: &mut Output,
    ) -> Result<RejectedTimer> {
        let Some(key) = timer.key.strip_suffix(" split") else {
            return Ok(RejectedTimer::DeadLetter);
        };
        state.set_timer(Timer::new(TimerClock::Wall, context.now + 1, format!("{key} later")));
        Ok(RejectedTimer::Retried)
    }
}

/// Incompressible bytes.
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

/// Performs enough iterations for every timer to fire, even with the backoff between rejections.
fn fire_all(harness: &Harness, thread: &mut ThreadDriver) {
    for _ in 0..TURNS {
        harness.clock.advance(100);
        thread.turn().unwrap();
    }
    assert_eq!(thread.causes(), Vec::<String>::new());
}

fn sent(harness: &Harness) -> Vec<String> {
    let values = harness.records("out", 0).into_iter().map(|(_, value, _)| value);
    values.collect()
}

#[test]
fn timer_with_rejected_output_is_isolated() {
    for value in ["out", "state", "key"] {
        let harness = Harness::new();
        let names: Vec<String> = (0..40).map(|n| format!("t{n:02}")).collect();
        let mut records: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "later")).collect();
        records[23] = ("bad", value);
        harness.append(0, &records);
        let mut thread = harness.try_start(&application(), "one").unwrap();
        fire_all(&harness, &mut thread);
        let mut want: Vec<String> = records.iter().map(|(key, _)| (*key).to_owned()).collect();
        // Timers with the same time fire in the order of their names.
        let mut fired: Vec<&str> = want.iter().map(String::as_str).filter(|key| *key != "bad").collect();
        fired.sort_unstable();
        let fired: Vec<String> = fired.iter().map(|key| format!("{key} fired")).collect();
        want.extend(fired);
        assert_eq!(sent(&harness), want, "{value}");
        let dead_letters = harness.records("in.dlq", 0);
        let [(key, body, headers)] = dead_letters.as_slice() else {
            panic!("{dead_letters:?}")
        };
        assert_eq!((key.as_str(), body.as_str()), ("null", "null"));
        let why = &headers["__connect.errors.exception.message"];
        let named = format!("output of timer `bad {value}` (wall clock, due at ");
        assert!(why.starts_with(&named), "{why}");
        assert_eq!(headers["__connect.errors.stage"], "KAFKA_PRODUCE");
        assert_eq!(headers.get("__connect.errors.offset"), None);
        // The timer does not fire again after a restart.
        drop(thread);
        std::fs::remove_dir_all(harness.store(0)).unwrap();
        let mut thread = harness.try_start(&application(), "one").unwrap();
        settle(&mut thread, &harness.clock);
        assert_eq!(sent(&harness).len(), want.len());
    }
}

#[test]
fn rejected_timer_that_its_processor_splits_is_no_dead_letter() {
    let harness = Harness::new();
    harness.append(0, &[("a", "later"), ("bad", "split"), ("b", "later")]);
    let mut thread = harness.try_start(&application(), "one").unwrap();
    fire_all(&harness, &mut thread);
    let mut found = sent(&harness);
    found.sort_unstable();
    assert_eq!(found, ["a", "a fired", "b", "b fired", "bad", "bad fired"]);
    assert_eq!(harness.records("in.dlq", 0).len(), 0);
}

#[test]
fn rejected_timer_does_not_affect_its_record() {
    let harness = Harness::new();
    harness.append(0, &[("a", "now")]);
    harness.clock.advance(5);
    harness.append(0, &[("bad", "now")]);
    harness.clock.advance(5);
    harness.append(0, &[("b", "now"), ("c", "later")]);
    let mut thread = harness.try_start(&application(), "one").unwrap();
    fire_all(&harness, &mut thread);
    let mut found = sent(&harness);
    found.sort_unstable();
    assert_eq!(found, ["a", "a fired", "b", "b fired", "bad", "c", "c fired"]);
    assert_eq!(harness.records("in.dlq", 0).len(), 1);
    assert_eq!(harness.committed(0), Some(4));
}

#[test]
fn rejected_timer_is_isolated_at_least_once() {
    let harness = Harness::new();
    harness.append(0, &[("a", "later"), ("bad", "out"), ("b", "later"), ("bad2", "key")]);
    let mut thread = harness.start_with(&application(), |config| {
        config.commit.guarantee = ProcessingGuarantee::AtLeastOnce
    });
    fire_all(&harness, &mut thread);
    assert_eq!(harness.records("in.dlq", 0).len(), 2);
    let found = sent(&harness);
    assert!(
        found.contains(&"a fired".to_owned()) && found.contains(&"b fired".to_owned()),
        "{found:?}"
    );
    assert_eq!(harness.committed(0), Some(4));
}

#[test]
fn missing_output_topic_stops_only_its_task() {
    for value in ["lost", "nowhere"] {
        let harness = Harness::new();
        harness.append(0, &[("a", "later"), ("b", value)]);
        harness.append(1, &[("c", "later")]);
        let mut thread = harness.try_start(&application(), "one").unwrap();
        if value == "nowhere" {
            settle(&mut thread, &harness.clock);
            harness.clock.advance(1000);
        }
        let cause = until_cause(&mut thread, &harness.clock, "task later/0: stopped");
        assert!(cause.contains("topic nowhere does not exist; create it"), "{cause}");
        for _ in 0..TURNS {
            harness.clock.advance(10);
            thread.turn().unwrap();
        }
        let found = sent(&harness);
        assert!(
            found.contains(&"c".to_owned()) && found.contains(&"c fired".to_owned()),
            "{found:?}"
        );
        assert!(!found.contains(&"a fired".to_owned()), "{found:?}");
        harness.topic("nowhere", 1, |_| {});
        harness.clock.advance(10_000);
        fire_all(&harness, &mut thread);
        assert_eq!(harness.records("nowhere", 0).len(), 1, "{value}");
        assert!(sent(&harness).contains(&"a fired".to_owned()));
        assert_eq!(harness.committed(0), Some(2));
    }
}
