//! The real thread over the embedded log in memory and stores on disk: what a thread does in each situation that has
//! a rule of its own.
//!
//! Guarantees: the clock stands until a test moves it; nothing waits. Never: a fault by chance; that is `simulation`.

mod bench;
mod clock;
mod refused;

use super::written;
use crate::{Error, FirstStart, offsets};
use bench::{Bench, Counter, TURNS, settle, until_cause};
use event_log::{Millis, OffsetSpec, OutBatch, RecordBatch, TopicPartition};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const DAY: Millis = 24 * 60 * 60 * 1000;

#[test]
fn state_output_and_offsets_survive_a_restart_and_a_crash() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", ""), ("b", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "b=1"]);
    assert_eq!(bench.committed(0), Some(3));
    thread.finish().unwrap();
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "b=1", "a=3"]);
    // A crash with uncommitted work: nothing of it is seen, and it is done again.
    bench.append(0, &[("b", "")]);
    thread.turn().unwrap();
    drop(thread);
    assert_eq!(bench.read("out", 0).len(), 4);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "b=1", "a=3", "b=2"]);
    assert_eq!(bench.asides(), 0, "nothing is wiped");
}

#[test]
fn a_lost_store_is_restored_from_its_changelog() {
    let bench = Bench::new();
    bench.append(1, &[("a", ""), ("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    drop(thread);
    std::fs::remove_dir_all(bench.store(1)).unwrap();
    bench.append(1, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 1), ["a=1", "a=2", "a=3"]);
}

#[test]
fn a_record_that_cannot_be_decoded_is_a_dead_letter_beside_the_line() {
    let bench = Bench::new();
    bench.append(1, &[("a", ""), ("x", "bad"), ("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 1), ["a=1", "a=2"]);
    let letters = bench.records("in.dlq", 1);
    let [(key, value, headers)] = letters.as_slice() else {
        panic!("{letters:?}")
    };
    assert_eq!((key.as_str(), value.as_str()), ("x", "bad"));
    assert_eq!(headers["origin"], "test");
    assert_eq!(headers["__connect.errors.offset"], "1");
    assert_eq!(headers["__connect.errors.stage"], "VALUE_CONVERTER");
    assert_eq!(headers["__connect.errors.exception.message"], "the value is bad");
}

#[test]
fn a_record_whose_output_is_refused_is_found_and_becomes_a_dead_letter() {
    let bench = Bench::new();
    let mut records = vec![("a", ""); 100];
    records[37] = ("c", "big");
    bench.append(0, &records);
    bench.append(1, &[("b", ""), ("b", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    let mut want: Vec<String> = (1..100).map(|n| format!("a={n}")).collect();
    // Its processor hears of it, in its place.
    want.insert(37, "c=given up".to_owned());
    assert_eq!(bench.read("out", 0), want);
    assert_eq!(bench.read("out", 1), ["b=1", "b=2"]);
    let letters = bench.records("in.dlq", 0);
    let [(key, value, headers)] = letters.as_slice() else {
        panic!("{letters:?}")
    };
    assert_eq!((key.as_str(), value.as_str()), ("c", "big"));
    assert_eq!(headers["__connect.errors.stage"], "KAFKA_PRODUCE");
    assert_eq!(bench.committed(0), Some(100));
}

#[test]
fn a_dead_letter_that_is_refused_itself_does_not_loop() {
    let bench = Bench::new();
    // Room for the errors' headers, not for the record's own.
    bench.topic("in.dlq", 2, |config| config.max_message_bytes = Some(1200));
    let long = "k".repeat(3000);
    bench.append(0, &[("a", ""), (&long, "bad"), ("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2"]);
    let letters = bench.records("in.dlq", 0);
    let [(key, value, headers)] = letters.as_slice() else {
        panic!("{letters:?}")
    };
    assert_eq!((key.as_str(), value.as_str()), ("null", "null"));
    assert_eq!(headers["__connect.errors.offset"], "1");
}

#[test]
fn where_not_even_that_fits_only_the_task_stops() {
    let bench = Bench::new();
    bench.topic("in.dlq", 2, |config| config.max_message_bytes = Some(100));
    bench.append(0, &[("a", ""), ("c", "bad"), ("a", "")]);
    bench.append(1, &[("b", "")]);
    let mut thread = bench.start();
    let cause = until_cause(&mut thread, &bench.clock, "task count/0: stopped");
    assert!(cause.contains("the dead letter was rejected as well"), "{cause}");
    for _ in 0..TURNS {
        bench.clock.advance(10);
        thread.turn().unwrap();
    }
    assert_eq!(
        (bench.read("out", 0), bench.read("out", 1)),
        (vec!["a=1".to_owned()], vec!["b=1".to_owned()])
    );
}

#[test]
fn a_processor_that_is_not_ready_pauses_its_task_and_no_other() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", "wait")]);
    bench.append(1, &[("b", "")]);
    let mut thread = bench.start();
    let cause = until_cause(&mut thread, &bench.clock, "paused");
    assert!(
        cause.contains("count/0") && cause.contains("schema 7 is not known yet"),
        "{cause}"
    );
    bench.append(1, &[("b", "")]);
    for _ in 0..TURNS {
        bench.clock.advance(10);
        thread.turn().unwrap();
    }
    assert_eq!(bench.read("out", 1), ["b=1", "b=2"]);
    bench.ready.store(true, Ordering::SeqCst);
    bench.clock.advance(5000);
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2"]);
}

#[test]
fn a_step_that_fails_stops_its_task_and_leaves_no_trace() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", "stop")]);
    bench.append(1, &[("b", "")]);
    let mut thread = bench.start();
    let cause = until_cause(&mut thread, &bench.clock, "stopped");
    assert!(cause.contains("cannot go on"), "{cause}");
    for _ in 0..TURNS {
        bench.clock.advance(10);
        thread.turn().unwrap();
    }
    assert_eq!(bench.read("out", 1), ["b=1"]);
    assert_eq!(bench.read("out", 0), Vec::<String>::new());
}

#[test]
fn the_first_start_is_where_it_is_declared_and_is_written_down_at_once() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", "")]);
    let latest = bench.application(&["in"], FirstStart::Latest);
    let mut thread = bench.try_start(&latest, "one").unwrap();
    settle(&mut thread, &bench.clock);
    assert_eq!((bench.committed(0), bench.committed(1)), (Some(2), Some(0)));
    drop(thread);
    // What comes while nobody runs is not skipped: the first start was the first one.
    bench.append(0, &[("a", "")]);
    let mut thread = bench.try_start(&latest, "one").unwrap();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1"]);
}

#[test]
fn offsets_that_differ_from_the_state_stop_the_task_until_they_are_mended() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    thread.finish().unwrap();
    bench.clock.advance(120_000);
    let at = TopicPartition::new("in", 0);
    bench.log.set_committed("app", &[(at.clone(), 1)]).unwrap();
    let mut thread = bench.start();
    let cause = until_cause(&mut thread, &bench.clock, "stopped");
    assert!(
        cause.contains("state contains in/0 up to 2, but the committed offset is 1"),
        "{cause}"
    );
    assert!(cause.contains("trunkline offsets accept app counts/0"), "{cause}");
    assert!(cause.contains("trunkline offsets restore app counts/0"), "{cause}");
    // Going back to what the state contains: the same answer as if nothing had happened.
    drop(thread);
    bench.clock.advance(120_000);
    let changelog = TopicPartition::new("app.changelog.counts", 0);
    let commit_record = offsets::restore(&*bench.log, "app", &changelog).unwrap();
    assert_eq!(commit_record.next_offset(&at), Some(2));
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "a=3"]);
    thread.finish().unwrap();
    // Or going on from the offsets: an operator wants two records counted again. A stopped task sees it by itself.
    bench.clock.advance(120_000);
    bench.log.set_committed("app", &[(at.clone(), 1)]).unwrap();
    let mut thread = bench.start();
    until_cause(&mut thread, &bench.clock, "stopped");
    offsets::accept(&*bench.log, "app", &changelog, std::slice::from_ref(&at)).unwrap();
    bench.clock.advance(20_000);
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "a=3", "a=4", "a=5"]);
}

#[test]
fn a_store_older_than_its_tombstones_is_set_aside_and_restored_in_full() {
    let bench = Bench::new();
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    thread.finish().unwrap();
    bench.clock.advance(5 * DAY);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.asides(), 0, "five of seven days are no reason");
    thread.finish().unwrap();
    bench.clock.advance(6 * DAY + 1000);
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.asides(), 2);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2"]);
}

#[test]
fn an_idle_task_commits_marker_and_offsets_alone_before_its_store_grows_old() {
    let bench = Bench::new();
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    for _ in 0..20 {
        let changelog = TopicPartition::new("app.changelog.counts", 1);
        let before = bench.log.offset(&changelog, OffsetSpec::LogEnd).unwrap();
        bench.clock.advance(2 * DAY);
        settle(&mut thread, &bench.clock);
        assert!(bench.log.offset(&changelog, OffsetSpec::LogEnd).unwrap() > before);
    }
    drop(thread);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.asides(), 0);
}

#[test]
fn a_store_of_another_log_is_set_aside() {
    let (bench, other) = (Bench::new(), Bench::new());
    other.append(0, &[("a", ""), ("a", ""), ("a", "")]);
    let mut thread = other.start();
    settle(&mut thread, &other.clock);
    drop(thread);
    std::fs::rename(other.dir.path().join("app"), bench.dir.path().join("app")).unwrap();
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1"]);
    assert_eq!(bench.asides(), 2);
}

#[test]
fn tasks_move_between_threads_with_nothing_lost_or_doubled() {
    let bench = Bench::new();
    let application = bench.application(&["in"], FirstStart::Earliest);
    let mut one = bench.try_start(&application, "one").unwrap();
    bench.append(0, &[("a", ""), ("a", "")]);
    bench.append(1, &[("b", "")]);
    settle(&mut one, &bench.clock);
    let mut two = bench.try_start(&application, "two").unwrap();
    bench.append(0, &[("a", "")]);
    bench.append(1, &[("b", "")]);
    for _ in 0..TURNS {
        bench.clock.advance(10);
        one.turn().unwrap();
        two.turn().unwrap();
    }
    assert_eq!((one.causes(), two.causes()), (vec![], vec![]));
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "a=3"]);
    assert_eq!(bench.read("out", 1), ["b=1", "b=2"]);
    // The second one crashes; its partitions come back after its session.
    bench.append(0, &[("a", "")]);
    bench.append(1, &[("b", "")]);
    two.turn().unwrap();
    drop(two);
    bench.clock.advance(60_000);
    for _ in 0..TURNS {
        bench.clock.advance(10);
        one.turn().unwrap();
    }
    assert_eq!(one.causes(), Vec::<String>::new());
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "a=3", "a=4"]);
    assert_eq!(bench.read("out", 1), ["b=1", "b=2", "b=3"]);
}

#[test]
fn a_second_process_of_the_same_name_makes_the_first_one_end() {
    let bench = Bench::new();
    let mut first = bench.start();
    bench.append(0, &[("a", "")]);
    settle(&mut first, &bench.clock);
    let mut second = bench.start();
    let mut ended = None;
    for _ in 0..TURNS {
        bench.clock.advance(100);
        second.turn().unwrap();
        bench.append(0, &[("a", "")]);
        if let Err(error) = first.turn() {
            ended = Some(error);
            break;
        }
    }
    assert!(matches!(ended, Some(Error::Fenced { .. })), "{ended:?}");
    drop(first);
    settle(&mut second, &bench.clock);
    let out = bench.read("out", 0);
    let want: Vec<String> = (1..=out.len()).map(|n| format!("a={n}")).collect();
    assert_eq!(out, want);
}

#[test]
fn what_does_not_fit_the_log_is_refused_with_the_fix() {
    let bench = Bench::new();
    bench.topic("other", 3, |_| {});
    let refused = |inputs: &[&str]| {
        let application = bench.application(inputs, FirstStart::Earliest);
        bench
            .try_start(&application, "one")
            .err()
            .map(|error| error.to_string())
            .unwrap()
    };
    let text = refused(&["in", "other"]);
    assert!(
        text.contains("in has 2 and other has 3") && text.contains("repartition"),
        "{text}"
    );
    let text = refused(&["missing"]);
    assert!(text.contains("input topic missing does not exist"), "{text}");
    let text = refused(&["in", "in"]);
    assert!(text.contains("an input twice"), "{text}");
    bench.topic("app.changelog.counts", 2, |_| {});
    let text = refused(&["in"]);
    assert!(text.contains("cleanup.policy must be compact"), "{text}");
}

#[test]
fn inputs_read_together_are_one_task() {
    let bench = Bench::new();
    bench.topic("more", 2, |_| {});
    let application = bench.application(&["in", "more"], FirstStart::Earliest);
    bench.append_to("in", 1, &[("a", "")]);
    bench.append_to("more", 1, &[("a", ""), ("a", "")]);
    let mut thread = bench.try_start(&application, "one").unwrap();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 1), ["a=1", "a=2", "a=3"]);
    drop(thread);
    bench.append_to("more", 1, &[("a", "")]);
    let mut thread = bench.try_start(&application, "one").unwrap();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 1), ["a=1", "a=2", "a=3", "a=4"]);
}

#[test]
fn a_processor_runs_over_values_alone() {
    let counter = Counter {
        partition: 0,
        ready: Arc::default(),
    };
    let mut driver = super::StepDriver::new("count", Box::new(counter)).unwrap();
    let mut records = RecordBatch::default();
    let at = records.intern(&TopicPartition::new("in", 0));
    records.push(at, 0, 5, event_log::TimestampType::Create, Some(b"a"), Some(b""), []);
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
