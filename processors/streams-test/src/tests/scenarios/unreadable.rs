//! Inputs and changelogs that cannot be read stop their task only, with a cause that names the fix.

use super::harness::{Harness, TURNS, settle, until_cause};
use crate::ThreadDriver;
use crate::faulty_log::{Faults, FaultyLog};
use crate::simulation::Rng;
use event_log::{Error, OffsetSpec, TopicPartition};
use std::sync::Arc;
use streams::{Application, Config, Directory, FirstStart, offsets};

const RETRY: i64 = 11_000;

fn corrupt(at: &TopicPartition, offset: i64) -> Error {
    let cause = Error::Corrupt {
        place: at.to_string(),
        reason: "checksum mismatch".to_owned(),
    };
    unreadable(at, offset, cause)
}

fn denied(at: &TopicPartition, offset: i64) -> Error {
    let cause = Error::AccessDenied {
        topic: at.topic.to_string(),
        reason: "Topic authorization failed".to_owned(),
    };
    unreadable(at, offset, cause)
}

fn unreadable(at: &TopicPartition, offset: i64, cause: Error) -> Error {
    Error::Unreadable {
        at: at.clone(),
        offset,
        cause: Box::new(cause),
    }
}

/// Replaces the harness's log by one with faults.
fn with_faults(harness: Harness) -> (Harness, Faults) {
    let faults = Faults::new(Rng::of_seed(1));
    let log = Arc::new(FaultyLog::new(harness.log.clone(), faults.clone()));
    (Harness { log, ..harness }, faults)
}

fn turns(thread: &mut ThreadDriver, harness: &Harness) {
    for _ in 0..TURNS {
        harness.clock.advance(10);
        thread.turn().unwrap();
    }
}

#[test]
fn corrupt_input_stops_only_its_task() {
    let (harness, faults) = with_faults(Harness::new());
    let at = TopicPartition::new("in", 0);
    harness.append(0, &[("a", ""), ("a", "")]);
    harness.append(1, &[("b", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    faults.make_unreadable(&at, Arc::new(corrupt));
    harness.append(0, &[("a", ""), ("a", "")]);
    harness.append(1, &[("b", "")]);
    let cause = until_cause(&mut thread, &harness.clock, "task count/0: stopped");
    for part in [
        "cannot read in/0 at offset",
        "checksum mismatch",
        "`trunkline offsets skip app counts/0 --input in --to OFFSET`",
    ] {
        assert!(cause.contains(part), "{part:?} is not in: {cause}");
    }
    turns(&mut thread, &harness);
    assert_eq!(harness.read("out", 1), ["b=1", "b=2"], "the other task continues");
    assert_eq!(thread.causes().len(), 1, "{:?}", thread.causes());
    // The task retries, and stops again while the records are damaged.
    harness.clock.advance(RETRY);
    until_cause(&mut thread, &harness.clock, "task count/0: stopped");
    // An operator skips the damaged record.
    faults.make_readable(&at);
    drop(thread);
    harness.clock.advance(120_000);
    let changelog = TopicPartition::new("app.changelog.counts", 0);
    let skip = |offset| offsets::skip_to(&*harness.log, "app", &changelog, None, offset);
    assert!(skip(2).unwrap_err().to_string().contains("has already processed"));
    assert!(skip(5).unwrap_err().to_string().contains("is not in the log"));
    assert_eq!(skip(3).unwrap().next_offset(&at), Some(3));
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(
        harness.read("out", 0),
        ["a=1", "a=2", "a=3"],
        "one of two records is skipped"
    );
}

#[test]
fn denied_input_is_read_once_access_is_granted() {
    let (harness, faults) = with_faults(Harness::new());
    let at = TopicPartition::new("in", 0);
    harness.append(0, &[("a", "")]);
    faults.make_unreadable(&at, Arc::new(denied));
    let mut thread = harness.start();
    let cause = until_cause(&mut thread, &harness.clock, "task count/0: stopped");
    assert!(
        cause.contains("access to topic in was denied") && cause.contains("grant the required ACL"),
        "{cause}"
    );
    faults.make_readable(&at);
    harness.clock.advance(RETRY);
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1"]);
}

#[test]
fn recreated_input_needs_a_restart() {
    let (harness, faults) = with_faults(Harness::new());
    harness.topic("more", 2, |_| {});
    let application = harness.application(&["more"], FirstStart::Earliest);
    harness.append_to("more", 0, &[("a", ""), ("a", ""), ("a", "")]);
    let mut thread = harness.try_start(&application, "one").unwrap();
    settle(&mut thread, &harness.clock);
    harness.log.delete_topic("more").unwrap();
    let cause = until_cause(&mut thread, &harness.clock, "stopped");
    assert!(cause.contains("topic more does not exist"), "{cause}");
    turns(&mut thread, &harness);
    harness.topic("more", 2, |_| {});
    harness.clock.advance(RETRY);
    let cause = until_cause(&mut thread, &harness.clock, "created again");
    assert!(cause.contains("restart the process"), "{cause}");
    drop((thread, faults));
    harness.append_to("more", 0, &[("b", "")]);
    harness.clock.advance(120_000);
    let mut thread = harness.try_start(&application, "one").unwrap();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2", "a=3", "b=1"]);
}

/// Runs an application on topic `more` with three records.
fn run_once(harness: &Harness, first_start: FirstStart) -> Application {
    harness.topic("more", 2, |_| {});
    let application = harness.application(&["more"], first_start);
    let mut thread = harness.try_start(&application, "one").unwrap();
    settle(&mut thread, &harness.clock);
    harness.append_to("more", 0, &[("a", ""), ("a", ""), ("a", "")]);
    settle(&mut thread, &harness.clock);
    thread.finish().unwrap();
    harness.clock.advance(120_000);
    application
}

/// Replaces topic `more` by one with five records.
fn recreate(harness: &Harness) {
    harness.log.delete_topic("more").unwrap();
    harness.topic("more", 2, |_| {});
    harness.append_to("more", 0, &[("b", ""), ("b", ""), ("c", ""), ("c", ""), ("c", "")]);
}

/// The process looks up its topics when it starts, and the group assigns them later.
#[test]
fn input_recreated_after_the_start_is_not_read_at_the_old_position() {
    let harness = Harness::new();
    let application = run_once(&harness, FirstStart::Earliest);
    let mut thread = harness.try_start(&application, "one").unwrap();
    recreate(&harness);
    until_cause(&mut thread, &harness.clock, "topic more was deleted and created again");
    assert_eq!(harness.read("out", 0), ["a=1", "a=2", "a=3"]);
}

#[test]
fn input_recreated_while_stopped_is_read_from_its_first_record() {
    for first_start in [FirstStart::Earliest, FirstStart::Latest] {
        let harness = Harness::new();
        let application = run_once(&harness, first_start);
        recreate(&harness);
        let mut thread = harness.try_start(&application, "one").unwrap();
        settle(&mut thread, &harness.clock);
        let counts = ["a=1", "a=2", "a=3", "b=1", "b=2", "c=1", "c=2", "c=3"];
        assert_eq!(harness.read("out", 0), counts);
        // The new topic id is committed, so the next start continues.
        thread.finish().unwrap();
        harness.append_to("more", 0, &[("b", "")]);
        harness.clock.advance(120_000);
        let mut thread = harness.try_start(&application, "one").unwrap();
        settle(&mut thread, &harness.clock);
        assert_eq!(harness.read("out", 0).last().map(String::as_str), Some("b=3"));
    }
}

#[test]
fn committed_offset_of_a_recreated_input_needs_an_operator() {
    let harness = Harness::new();
    let application = run_once(&harness, FirstStart::Earliest);
    recreate(&harness);
    let more = TopicPartition::new("more", 0);
    harness.log.set_committed("app", &[(more.clone(), 3)]).unwrap();
    let mut thread = harness.try_start(&application, "one").unwrap();
    let cause = until_cause(&mut thread, &harness.clock, "task count/0: stopped");
    for part in [
        "topic more has another id",
        "its committed offset is 3",
        "`trunkline offsets accept app counts/0 --input more`",
    ] {
        assert!(cause.contains(part), "{part:?} is not in: {cause}");
    }
    drop(thread);
    harness.clock.advance(120_000);
    let changelog = TopicPartition::new("app.changelog.counts", 0);
    let found = offsets::positions(&*harness.log, "app", &changelog).unwrap();
    assert!(found.inputs[0].recreated, "{found:?}");
    // Positions move back, because they are those of the former topic.
    offsets::skip_to(&*harness.log, "app", &changelog, Some("more"), 1).unwrap();
    let mut thread = harness.try_start(&application, "one").unwrap();
    settle(&mut thread, &harness.clock);
    assert_eq!(
        harness.read("out", 0),
        ["a=1", "a=2", "a=3", "b=1", "c=1", "c=2", "c=3"]
    );
}

#[test]
fn input_that_is_missing_for_a_moment_delays_its_task_by_a_second() {
    let (harness, faults) = with_faults(Harness::new());
    let at = TopicPartition::new("in", 0);
    harness.append(0, &[("a", "")]);
    faults.make_unreadable(
        &at,
        Arc::new(|at, _| Error::UnknownTopic {
            topic: at.topic.to_string(),
        }),
    );
    let mut thread = harness.start();
    until_cause(&mut thread, &harness.clock, "task count/0: stopped");
    faults.make_readable(&at);
    harness.clock.advance(1_000);
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1"]);
}

#[test]
fn unreadable_changelog_stops_only_its_task() {
    let (harness, faults) = with_faults(Harness::new());
    harness.append(0, &[("a", "")]);
    harness.append(1, &[("b", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    drop(thread);
    harness.clock.advance(120_000);
    for partition in [0, 1] {
        std::fs::remove_dir_all(harness.store(partition)).unwrap();
    }
    let changelog = TopicPartition::new("app.changelog.counts", 0);
    faults.make_unreadable(&changelog, Arc::new(corrupt));
    harness.append(0, &[("a", "")]);
    harness.append(1, &[("b", "")]);
    let mut thread = harness.start();
    let cause = until_cause(&mut thread, &harness.clock, "task count/0: stopped");
    assert!(cause.contains("cannot read app.changelog.counts/0"), "{cause}");
    turns(&mut thread, &harness);
    assert_eq!(harness.read("out", 1), ["b=1", "b=2"], "the other task is restored");
    assert_eq!(harness.read("out", 0), ["a=1"]);
    faults.make_readable(&changelog);
    harness.clock.advance(RETRY);
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2"]);
}

#[test]
fn thread_polls_between_requests_that_fail() {
    let (harness, faults) = with_faults(Harness::new());
    harness.append(0, &[("a", "")]);
    harness.append(1, &[("b", "")]);
    faults.fail_offsets(true);
    let mut thread = harness.start();
    for _ in 0..TURNS {
        harness.clock.advance(100);
        let before = faults.failed_offsets();
        thread.turn().unwrap();
        assert!(
            faults.failed_offsets() <= before + 1,
            "each may take as long as its timeout"
        );
    }
    assert!(faults.failed_offsets() > 4, "both tasks retry");
    faults.fail_offsets(false);
    harness.clock.advance(RETRY);
    settle(&mut thread, &harness.clock);
    assert_eq!(
        (harness.read("out", 0), harness.read("out", 1)),
        (vec!["a=1".to_owned()], vec!["b=1".to_owned()])
    );
}

#[test]
fn unreadable_input_is_not_retried_in_a_loop() {
    let (harness, faults) = with_faults(Harness::new());
    let at = TopicPartition::new("in", 0);
    harness.append(0, &[("a", "")]);
    let reads = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = reads.clone();
    faults.make_unreadable(
        &at,
        Arc::new(move |at, offset| {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            corrupt(at, offset)
        }),
    );
    let mut thread = harness.start();
    until_cause(&mut thread, &harness.clock, "task count/0: stopped");
    for _ in 0..6_000 {
        harness.clock.advance(10);
        thread.turn().unwrap();
    }
    let reads = reads.load(std::sync::atomic::Ordering::SeqCst);
    assert!((3..=10).contains(&reads), "{reads} reads in a minute");
    let changelog = TopicPartition::new("app.changelog.counts", 0);
    assert_eq!(
        harness.log.offset(&changelog, OffsetSpec::LogEnd).unwrap(),
        2,
        "nothing is committed in between"
    );
}

/// A store that a standby began to restore has a checkpoint, or it would be used as if it were empty.
#[test]
fn rows_without_checkpoint_are_quarantined() {
    let harness = Harness::new();
    harness.append(0, &[("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    thread.finish().unwrap();
    let stores = Directory {
        dir: harness.dir.path().to_owned(),
        engine: Config::new("one", "").stores.engine,
        memory_bytes: 1 << 20,
    };
    let store = streams::Stores::open(
        &stores,
        &streams::StoreName {
            application: "app".to_owned(),
            store: "counts".to_owned(),
            partition: 0,
        },
    );
    let mut batch = state_store::Batch::default();
    for key in [&b"format"[..], b"checkpoint", b"marker"] {
        batch.delete(state_store::Space(0), key);
    }
    store.unwrap().commit(batch).unwrap();
    harness.clock.advance(120_000);
    harness.append(0, &[("a", "")]);
    let mut thread = harness.start();
    settle(&mut thread, &harness.clock);
    assert_eq!(harness.quarantined(), 1);
    assert_eq!(harness.read("out", 0), ["a=1", "a=2"]);
}
