//! Tests the embedded log on a full or read-only disk, which is mounted for the test.

use super::harness::{Harness, LIMIT, batch, committed, config};
use crate::support::{Disk, wait_for};
use event_log::embedded::{self, EmbeddedLog};
use event_log::{Error, ErrorAction, Isolation, OffsetSpec, SharedEventLog, TopicPartition};
use std::time::{Duration, Instant};

/// Size of a record. The record begins with a number, which is its offset in the test.
const RECORD_BYTES: usize = 500_000;
const FAST: Duration = Duration::from_secs(10);

fn open(config: &embedded::Config) -> SharedEventLog {
    EmbeddedLog::open(config.clone()).expect("open the log")
}

fn value(number: i64) -> String {
    format!("{number:08}{}", "x".repeat(RECORD_BYTES))
}

/// Appends records with ascending numbers until one fails, and returns the next number and the error.
fn fill(harness: &Harness, at: &TopicPartition, mut number: i64) -> (i64, Error) {
    loop {
        assert!(number < 2_000, "the disk is not full");
        match harness.log.append(&batch(at, &[&value(number)])) {
            Ok(produced) => assert_eq!(produced[0].first_offset, number),
            Err(error) => return (number, error),
        }
        number += 1;
    }
}

/// Asserts that the partition contains exactly the records below a number.
fn check_contents(harness: &Harness, at: &TopicPartition, end: i64) {
    assert_eq!(harness.offset(at, OffsetSpec::LogEnd), end);
    let found = harness.all(Isolation::ReadCommitted, at);
    let numbers = found
        .iter()
        .map(|(offset, value)| (*offset, value[..8].parse().unwrap()));
    assert!(
        numbers.eq((0..end).map(|number| (number, number))),
        "{} of {end} records",
        found.len()
    );
}

#[test]
fn log_on_a_full_disk_continues_when_there_is_space() {
    let disk = Disk::mount(96);
    let mut config = config(Some(disk.path().join("log")));
    config.reserve_bytes = Some(0);
    let harness = Harness::on(open(&config));
    let at = harness.partition();
    let epoch = harness.log.log_epoch().unwrap();
    let mut producer = harness.transactional_producer("one");

    let began = Instant::now();
    let (end, error) = fill(&harness, &at, 0);
    assert_eq!(error.action(), ErrorAction::Retry, "{error}");
    let dir = disk.path().join("log").display().to_string();
    for text in [
        error.to_string(),
        harness.log.check_reachable().unwrap_err().to_string(),
    ] {
        assert!(text.contains(&dir) && text.contains("disk space"), "{text}");
    }
    let failed = Instant::now();
    harness.log.append(&batch(&at, &["x"])).unwrap_err();
    producer.begin().unwrap();
    producer.send(&batch(&at, &["never"])).unwrap_err();
    assert!(
        failed.elapsed() < FAST,
        "calls fail at once: {:?} after {:?}",
        failed.elapsed(),
        began.elapsed()
    );
    check_contents(&harness, &at, end);

    disk.grow(1_024);
    wait_for("the log to accept writes", LIMIT, || harness.log.check_reachable().ok());
    producer.abort().unwrap();
    for number in end..end + 5 {
        assert_eq!(harness.append(&at, &[&value(number)]).first_offset, number);
    }
    check_contents(&harness, &at, end + 5);
    producer.begin().unwrap();
    producer.send(&batch(&at, &[&value(end + 5)])).unwrap();
    committed(producer.commit(None));
    drop((producer, harness));
    let harness = Harness::on(open(&config));
    assert_eq!(harness.log.log_epoch().unwrap(), epoch, "nothing was lost");
    assert_eq!(harness.log.notice(), None);
    assert_eq!(harness.offset(&at, OffsetSpec::LogEnd), end + 7);
    assert_eq!(harness.committed(&at).len(), usize::try_from(end).unwrap() + 6);
}

#[test]
fn log_keeps_reserved_space_free() {
    let disk = Disk::mount(256);
    let config = config(Some(disk.path().join("log")));
    let harness = Harness::on(open(&config));
    let at = harness.partition();
    let (end, error) = fill(&harness, &at, 0);
    assert_eq!(error.action(), ErrorAction::Retry, "{error}");
    assert!(error.to_string().contains("disk space"), "{error}");
    // The reserve is an eighth of the disk, also while what was written before is flushed.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let space = rustix::fs::statvfs(disk.path()).unwrap();
        let reserve = space.f_blocks / 8;
        let mib = |blocks: u64| (blocks * space.f_frsize) >> 20;
        let (free, reserve) = (mib(space.f_bavail), mib(reserve));
        assert!(free >= reserve, "{free} of {reserve} MiB are free");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The reserve is not larger than necessary either.
    assert!(end > 200, "{end} records of 0.5 MB fit on a disk of 256 MiB");
    check_contents(&harness, &at, end);
    disk.grow(1_024);
    wait_for("the log to accept writes", LIMIT, || harness.log.check_reachable().ok());
    assert_eq!(harness.append(&at, &[&value(end)]).first_offset, end);
    check_contents(&harness, &at, end + 1);
}

#[test]
fn read_only_disk_is_an_error_at_open() {
    let disk = Disk::mount(256);
    let config = config(Some(disk.path().join("log")));
    drop(open(&config));
    disk.read_only(true);
    let error = EmbeddedLog::open(config.clone()).map(drop).expect_err("read-only");
    let text = error.to_string();
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    let dir = disk.path().join("log").display().to_string();
    assert!(
        text.contains(&dir) && text.contains("make the directory writable"),
        "{text}"
    );
    disk.read_only(false);
    drop(open(&config));
}
