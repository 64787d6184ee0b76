//! Tests of single situations: one stream thread with the embedded log in memory and stores on disk.
//!
//! Only the tests advance the clock, and nothing waits. Random faults are in [`crate::simulation`].

mod clock;
mod harness;
mod rejected;
mod timeouts;
mod unreadable;

use crate::{StepDriver, record, written};
use event_log::{Millis, NewRecord, OffsetSpec, OutBatch, TopicPartition};
use harness::{Counter, Harness, TURNS, settle, until_cause};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use streams::{Error, FirstStart, offsets};

const DAY: Millis = 24 * 60 * 60 * 1000;

#[test]
fn state_and_output_survive_restart_and_crash() {
    let harness = Harness::new();
    harness.append(0, &[("a", ""), ("a", ""), ("b", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2", "b=1"]);
    assert_eq!(harness.committed(0), Some(3));
    thread.finish().unwrap();
    harness.append(0, &[("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2", "b=1", "a=3"]);
    // The process crashes with uncommitted work. None of it is visible, and it is processed again.
    harness.append(0, &[("b", "")]);
    thread.turn().unwrap();
    drop(thread);
    assert_eq!(harness.read("out", 0).len(), 4);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2", "b=1", "a=3", "b=2"]);
    assert_eq!(harness.quarantined(), 0, "no store is quarantined");
}

#[test]
fn lost_store_is_restored_from_changelog() {
    let harness = Harness::new();
    harness.append(1, &[("a", ""), ("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    drop(thread);
    std::fs::remove_dir_all(harness.store(1)).unwrap();
    harness.append(1, &[("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 1), ["a=1", "a=2", "a=3"]);
}

#[test]
fn invalid_record_becomes_dead_letter() {
    let harness = Harness::new();
    harness.append(1, &[("a", ""), ("x", "bad"), ("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 1), ["a=1", "a=2"]);
    let dead_letters = harness.records("in.dlq", 1);
    let [(key, value, headers)] = dead_letters.as_slice() else {
        panic!("{dead_letters:?}")
    };
    assert_eq!((key.as_str(), value.as_str()), ("x", "bad"));
    assert_eq!(headers["origin"], "test");
    assert_eq!(headers["__connect.errors.offset"], "1");
    assert_eq!(headers["__connect.errors.stage"], "VALUE_CONVERTER");
    assert_eq!(headers["__connect.errors.exception.message"], "the value is bad");
}

#[test]
fn record_with_rejected_output_is_isolated() {
    let harness = Harness::new();
    let mut records = vec![("a", ""); 100];
    records[37] = ("c", "big");
    harness.append(0, &records);
    harness.append(1, &[("b", ""), ("b", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    let mut want: Vec<String> = (1..100).map(|n| format!("a={n}")).collect();
    // `on_dead_letter` is called in the order of the records.
    want.insert(37, "c=dead letter".to_owned());
    assert_eq!(harness.read("out", 0), want);
    assert_eq!(harness.read("out", 1), ["b=1", "b=2"]);
    let dead_letters = harness.records("in.dlq", 0);
    let [(key, value, headers)] = dead_letters.as_slice() else {
        panic!("{dead_letters:?}")
    };
    assert_eq!((key.as_str(), value.as_str()), ("c", "big"));
    assert_eq!(headers["__connect.errors.stage"], "KAFKA_PRODUCE");
    assert_eq!(harness.committed(0), Some(100));
}

#[test]
fn rejected_dead_letter_is_reduced_to_headers() {
    let harness = Harness::new();
    // The limit suffices for the error headers, but not for the record.
    harness.topic("in.dlq", 2, |config| config.max_message_bytes = Some(1200));
    let long = "k".repeat(3000);
    harness.append(0, &[("a", ""), (&long, "bad"), ("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2"]);
    let dead_letters = harness.records("in.dlq", 0);
    let [(key, value, headers)] = dead_letters.as_slice() else {
        panic!("{dead_letters:?}")
    };
    assert_eq!((key.as_str(), value.as_str()), ("null", "null"));
    assert_eq!(headers["__connect.errors.offset"], "1");
}

#[test]
fn task_stops_if_no_dead_letter_fits() {
    let harness = Harness::new();
    harness.topic("in.dlq", 2, |config| config.max_message_bytes = Some(100));
    harness.append(0, &[("a", ""), ("c", "bad"), ("a", "")]);
    harness.append(1, &[("b", "")]);
    let mut thread = harness.start();
    let cause = until_cause(&mut thread, &harness.clock, "task count/0: stopped");
    assert!(cause.contains("the dead letter was rejected as well"), "{cause}");
    for _ in 0..TURNS {
        harness.clock.advance(10);
        thread.turn().unwrap();
    }
    assert_eq!(
        (harness.read("out", 0), harness.read("out", 1)),
        (vec!["a=1".to_owned()], vec!["b=1".to_owned()])
    );
}

#[test]
fn unready_processor_pauses_only_its_task() {
    let harness = Harness::new();
    harness.append(0, &[("a", ""), ("a", "wait")]);
    harness.append(1, &[("b", "")]);
    let mut thread = harness.start();
    let cause = until_cause(&mut thread, &harness.clock, "paused");
    assert!(
        cause.contains("count/0") && cause.contains("schema 7 is not known yet"),
        "{cause}"
    );
    harness.append(1, &[("b", "")]);
    for _ in 0..TURNS {
        harness.clock.advance(10);
        thread.turn().unwrap();
    }
    assert_eq!(harness.read("out", 1), ["b=1", "b=2"]);
    harness.ready.store(true, Ordering::SeqCst);
    harness.clock.advance(5000);
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2"]);
}

#[test]
fn failed_step_stops_its_task_without_effects() {
    let harness = Harness::new();
    harness.append(0, &[("a", ""), ("a", "stop")]);
    harness.append(1, &[("b", "")]);
    let mut thread = harness.start();
    let cause = until_cause(&mut thread, &harness.clock, "stopped");
    assert!(cause.contains("cannot continue"), "{cause}");
    for _ in 0..TURNS {
        harness.clock.advance(10);
        thread.turn().unwrap();
    }
    assert_eq!(harness.read("out", 1), ["b=1"]);
    assert_eq!(harness.read("out", 0), Vec::<String>::new());
}

#[test]
fn first_start_is_committed_at_once() {
    let harness = Harness::new();
    harness.append(0, &[("a", ""), ("a", "")]);
    let latest = harness.application(&["in"], FirstStart::Latest);
    let mut thread = harness.try_start(&latest, "one").unwrap();
    settle(&mut thread, &harness.clock);
    assert_eq!((harness.committed(0), harness.committed(1)), (Some(2), Some(0)));
    drop(thread);
    // Records that arrive while no thread runs are not skipped, because `first_start` applies only to the first start.
    harness.append(0, &[("a", "")]);
    let mut thread = harness.try_start(&latest, "one").unwrap();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1"]);
}

#[test]
fn task_stops_if_offsets_differ_from_state() {
    let harness = Harness::new();
    harness.append(0, &[("a", ""), ("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    thread.finish().unwrap();
    harness.clock.advance(120_000);
    let at = TopicPartition::new("in", 0);
    harness.log.set_committed("app", &[(at.clone(), 1)]).unwrap();
    let mut thread = harness.start();
    let cause = until_cause(&mut thread, &harness.clock, "stopped");
    assert!(
        cause.contains("state contains in/0 up to 2, but the committed offset is 1"),
        "{cause}"
    );
    assert!(cause.contains("trunkline offsets accept app counts/0"), "{cause}");
    assert!(cause.contains("trunkline offsets restore app counts/0"), "{cause}");
    // `restore` returns to what the state contains, so the output is the same as without the difference.
    drop(thread);
    harness.clock.advance(120_000);
    let changelog = TopicPartition::new("app.changelog.counts", 0);
    let commit_record = offsets::restore(&*harness.log, "app", &changelog).unwrap();
    assert_eq!(commit_record.next_offset(&at), Some(2));
    harness.append(0, &[("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2", "a=3"]);
    thread.finish().unwrap();
    // `accept` continues from the committed offsets, so the records are counted again. A stopped task retries by
    // itself.
    harness.clock.advance(120_000);
    harness.log.set_committed("app", &[(at.clone(), 1)]).unwrap();
    let mut thread = harness.start();
    until_cause(&mut thread, &harness.clock, "stopped");
    offsets::accept(&*harness.log, "app", &changelog, std::slice::from_ref(&at)).unwrap();
    harness.clock.advance(20_000);
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2", "a=3", "a=4", "a=5"]);
}

#[test]
fn store_older_than_tombstones_is_quarantined() {
    let harness = Harness::new();
    harness.append(0, &[("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    thread.finish().unwrap();
    harness.clock.advance(5 * DAY);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(
        harness.quarantined(),
        0,
        "a store of five days is usable if tombstones are kept for seven"
    );
    thread.finish().unwrap();
    harness.clock.advance(6 * DAY + 1000);
    harness.append(0, &[("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.quarantined(), 2);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2"]);
}

#[test]
fn idle_task_commits_before_its_store_is_too_old() {
    let harness = Harness::new();
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    for _ in 0..20 {
        let changelog = TopicPartition::new("app.changelog.counts", 1);
        let before = harness.log.offset(&changelog, OffsetSpec::LogEnd).unwrap();
        harness.clock.advance(2 * DAY);
        settle(&mut thread, &harness.clock);
        assert!(harness.log.offset(&changelog, OffsetSpec::LogEnd).unwrap() > before);
    }
    drop(thread);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.quarantined(), 0);
}

#[test]
fn store_of_another_log_is_quarantined() {
    let (harness, other) = (Harness::new(), Harness::new());
    other.append(0, &[("a", ""), ("a", ""), ("a", "")]);
    let mut thread = other.start();
    settle(&mut thread, &other.clock);
    drop(thread);
    std::fs::rename(other.dir.path().join("app"), harness.dir.path().join("app")).unwrap();
    harness.append(0, &[("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1"]);
    assert_eq!(harness.quarantined(), 2);
}

#[test]
fn tasks_move_between_threads_exactly_once() {
    let harness = Harness::new();
    let application = harness.application(&["in"], FirstStart::Earliest);
    let mut one = harness.try_start(&application, "one").unwrap();
    harness.append(0, &[("a", ""), ("a", "")]);
    harness.append(1, &[("b", "")]);
    settle(&mut one, &harness.clock);
    let mut two = harness.try_start(&application, "two").unwrap();
    harness.append(0, &[("a", "")]);
    harness.append(1, &[("b", "")]);
    for _ in 0..TURNS {
        harness.clock.advance(10);
        one.turn().unwrap();
        two.turn().unwrap();
    }
    assert_eq!((one.causes(), two.causes()), (vec![], vec![]));
    assert_eq!(harness.read("out", 0), ["a=1", "a=2", "a=3"]);
    assert_eq!(harness.read("out", 1), ["b=1", "b=2"]);
    // The second instance crashes; its partitions are reassigned after the session timeout.
    harness.append(0, &[("a", "")]);
    harness.append(1, &[("b", "")]);
    two.turn().unwrap();
    drop(two);
    harness.clock.advance(60_000);
    for _ in 0..TURNS {
        harness.clock.advance(10);
        one.turn().unwrap();
    }
    assert_eq!(one.causes(), Vec::<String>::new());
    assert_eq!(harness.read("out", 0), ["a=1", "a=2", "a=3", "a=4"]);
    assert_eq!(harness.read("out", 1), ["b=1", "b=2", "b=3"]);
}

#[test]
fn second_process_of_same_name_fences_the_first() {
    let harness = Harness::new();
    let mut first = harness.start();
    harness.append(0, &[("a", "")]);
    settle(&mut first, &harness.clock);
    let mut second = harness.start();
    let mut ended = None;
    for _ in 0..TURNS {
        harness.clock.advance(100);
        second.turn().unwrap();
        harness.append(0, &[("a", "")]);
        if let Err(error) = first.turn() {
            ended = Some(error);
            break;
        }
    }
    assert!(matches!(ended, Some(Error::Fenced { .. })), "{ended:?}");
    drop(first);
    settle(&mut second, &harness.clock);
    let out = harness.read("out", 0);
    let want: Vec<String> = (1..=out.len()).map(|n| format!("a={n}")).collect();
    assert_eq!(out, want);
}

#[test]
fn unfit_topics_are_rejected_with_a_fix() {
    let harness = Harness::new();
    harness.topic("other", 3, |_| {});
    let rejection = |inputs: &[&str]| {
        let application = harness.application(inputs, FirstStart::Earliest);
        harness
            .try_start(&application, "one")
            .err()
            .map(|error| error.to_string())
            .unwrap()
    };
    let text = rejection(&["in", "other"]);
    assert!(
        text.contains("in has 2 and other has 3") && text.contains("repartition"),
        "{text}"
    );
    let text = rejection(&["missing"]);
    assert!(text.contains("input topic missing does not exist"), "{text}");
    let text = rejection(&["in", "in"]);
    assert!(text.contains("an input twice"), "{text}");
    harness.topic("app.changelog.counts", 2, |_| {});
    let text = rejection(&["in"]);
    assert!(text.contains("cleanup.policy must be compact"), "{text}");
}

#[test]
fn inputs_read_together_are_one_task() {
    let harness = Harness::new();
    harness.topic("more", 2, |_| {});
    let application = harness.application(&["in", "more"], FirstStart::Earliest);
    harness.append_to("in", 1, &[("a", "")]);
    harness.append_to("more", 1, &[("a", ""), ("a", "")]);
    let mut thread = harness.try_start(&application, "one").unwrap();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 1), ["a=1", "a=2", "a=3"]);
    drop(thread);
    harness.append_to("more", 1, &[("a", "")]);
    let mut thread = harness.try_start(&application, "one").unwrap();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 1), ["a=1", "a=2", "a=3", "a=4"]);
}

#[test]
fn step_driver_runs_a_processor_alone() {
    let counter = Counter {
        partition: 0,
        ready: Arc::default(),
    };
    let mut driver = StepDriver::new("count", Box::new(counter)).unwrap();
    let new = NewRecord {
        offset: 0,
        timestamp: 5,
        timestamp_type: event_log::TimestampType::Create,
        key: Some(b"a"),
        value: Some(b""),
    };
    let records = record(&TopicPartition::new("in", 0), new, []);
    driver.feed(&records).unwrap();
    driver.abort().unwrap();
    driver.feed(&records).unwrap();
    driver.feed(&records).unwrap();
    let out = driver.commit().unwrap();
    let values: Vec<_> = out.iter().map(|w| w.value.clone().unwrap()).collect();
    assert_eq!(values, [b"1", b"2"]);
    assert_eq!(driver.state().get(b"a").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(written(&OutBatch::default()), []);
}
