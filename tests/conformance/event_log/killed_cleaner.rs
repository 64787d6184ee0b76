//! Repeated `kill -9` while a compacted topic is being written and cleaned at the same time.
//!
//! The killed process is a separate process, which cleans without pause. After each kill, the newest record of every
//! key must be the one that the acknowledged transactions wrote, no aborted or deleted record may reappear, and no
//! offset may have been used twice.

use super::harness::{Harness, assigned, committed, config, now};
use super::killed_process;
use event_log::embedded::{self, EmbeddedLog};
use event_log::{
    Cleanup, Isolation, OffsetSpec, OutBatch, OutRecord, RecordBatch, SharedEventLog, StartFrom, TransactionalProducer,
};
use event_log::{TopicConfig, TopicPartition, TopicSpec};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CHILD: &str = "TRUNKLINE_TEST_LOG_CLEANED_CHILD";
const WRITERS: usize = 2;
const RECORDS: i64 = 6;
const KEYS: i64 = 50;

type Newest = BTreeMap<String, i64>;

/// What transaction `n` of a writer writes: keys, and for each key whether it gets the value `n` or a tombstone.
fn records(writer: usize, n: i64) -> impl Iterator<Item = (String, bool)> {
    (0..RECORDS).map(move |j| (format!("{writer}:{}", (n * RECORDS + j * 7) % KEYS), (n + j) % 4 != 0))
}

/// What must remain of a writer's first transactions.
fn newest(writer: usize, last: i64) -> Newest {
    let mut newest = Newest::new();
    for n in 1..=last {
        for (key, lives) in records(writer, n) {
            match lives {
                true => newest.insert(key, n),
                false => newest.remove(&key),
            };
        }
    }
    newest
}

fn open(dir: &Path) -> Arc<EmbeddedLog> {
    let mut config = config(Some(dir.to_owned()));
    // The log is cleaned by explicit calls, in several pieces.
    (config.clean_every, config.cleaner_keys_max) = (None, 30);
    embedded::open(config).expect("open the log")
}

fn output() -> TopicPartition {
    TopicPartition::new("cleaned", 0)
}

fn send(producer: &mut dyn TransactionalProducer, writer: usize, n: i64, value: &str) {
    let (at, mut out) = (output(), OutBatch::default());
    for (key, lives) in records(writer, n) {
        let record = OutRecord {
            topic: &at.topic,
            partition: Some(0),
            timestamp: None,
            key: Some(key.as_bytes()),
            value: lives.then_some(value.as_bytes()),
        };
        out.push(record, []);
    }
    producer.send(&out).unwrap();
}

/// Called after each transaction with the writer, the number, and the offset after it.
type Tell<'t> = &'t (dyn Fn(usize, i64, i64) + Sync);

fn write(log: &SharedEventLog, writer: usize, until: i64, tell: Tell<'_>) {
    let harness = Harness::on(log.clone());
    let input = TopicPartition::new("input", 0);
    let group = format!("group-{writer}");
    let mut consumer = harness.join(&group, &[&input.topic]);
    assigned(&mut *consumer);
    let member = consumer.group_metadata().unwrap();
    let mut producer = harness.transactional_producer(&format!("producer-{writer}"));
    let last = harness.committed_offset(&group, &input).unwrap_or(0);
    // The second writer's records are large, so that a pass has many steps and the store flushes.
    let filler = "x".repeat([10, 60_000][writer]);
    for n in last + 1..=until {
        if n % 3 == 0 {
            producer.begin().unwrap();
            send(&mut *producer, writer, n, "aborted");
            producer.abort().unwrap();
        }
        producer.begin().unwrap();
        send(&mut *producer, writer, n, &format!("{n}:{filler}"));
        let produced = committed(producer.commit(Some((&member, &[(input.clone(), n)]))));
        tell(writer, n, produced[0].next_offset);
    }
}

fn write_all(dir: &Path, until: i64, tell: Tell<'_>) {
    let log = open(dir);
    let shared: SharedEventLog = log.clone();
    let spec = |(name, cleanup)| {
        let mut config = TopicConfig::new(cleanup);
        config.delete_retention_ms = Some(30);
        config.other.insert("min.cleanable.dirty.ratio".into(), "0".into());
        TopicSpec {
            name: String::from(name),
            partitions: 1,
            replication: None,
            config,
        }
    };
    shared
        .create_topics(&[("input", Cleanup::Delete), ("cleaned", Cleanup::Compact)].map(spec))
        .unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let cleaner = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                log.clean(now()).expect("clean");
                std::thread::yield_now();
            }
        });
        let (shared, mut writers) = (&shared, Vec::new());
        for writer in 0..WRITERS {
            writers.push(scope.spawn(move || write(shared, writer, until, tell)));
        }
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::SeqCst);
        assert!(ended.iter().all(Result::is_ok) && cleaner.join().is_ok());
    });
}

/// Returns the newest value of each key by writer, and the number of records.
fn read(log: &SharedEventLog) -> (Vec<Newest>, usize) {
    let (at, harness) = (output(), Harness::on(log.clone()));
    let end = harness.offset(&at, OffsetSpec::LogEnd);
    assert_eq!(
        harness.offset(&at, OffsetSpec::LastStable),
        end,
        "no transaction is left open"
    );
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    let (mut found, mut count, mut last) = (vec![Newest::new(); WRITERS], 0, -1);
    let mut batch = RecordBatch::default();
    while reader.position(&at) < Some(end) {
        reader.poll(&mut batch, 1 << 20, Duration::ZERO).expect("poll");
        for record in batch.iter() {
            assert!(record.offset() > last, "{} after {last}", record.offset());
            (last, count) = (record.offset(), count + 1);
            let key = String::from_utf8_lossy(record.key().expect("a key")).into_owned();
            let writer: usize = key[..1].parse().expect("a writer");
            let value = record.value().map(String::from_utf8_lossy);
            match value.as_deref().map(|text| text.split(':').next().unwrap_or_default()) {
                Some(n) => found[writer].insert(key, n.parse().expect("nothing aborted")),
                None => found[writer].remove(&key),
            };
        }
    }
    (found, count)
}

/// Compares the log in a directory with what was acknowledged. Returns each writer's last number and the number of
/// records.
fn check(dir: &Path, acknowledged: &[(i64, i64); WRITERS]) -> (Vec<i64>, usize) {
    let log = open(dir);
    let shared: SharedEventLog = log.clone();
    let harness = Harness::on(shared.clone());
    let input = TopicPartition::new("input", 0);
    let mut lasts = Vec::new();
    for (writer, (number, next)) in acknowledged.iter().enumerate() {
        let last = harness
            .committed_offset(&format!("group-{writer}"), &input)
            .unwrap_or(0);
        assert!(
            (*number..=number + 1).contains(&last),
            "writer {writer}: {number} was acknowledged, {last} is there"
        );
        assert!(
            harness.offset(&output(), OffsetSpec::LogEnd) >= *next,
            "offsets before {next} were given out"
        );
        lasts.push(last);
    }
    let want: Vec<Newest> = lasts
        .iter()
        .enumerate()
        .map(|(writer, last)| newest(writer, *last))
        .collect();
    let (found, count) = read(&shared);
    assert_eq!(found, want, "as it was left");
    log.clean(now()).expect("clean");
    assert_eq!(read(&shared).0, want, "cleaned once more");
    (lasts, count)
}

/// When run as a test, writes a little and checks it. When run as a child of the test below, writes and cleans until it
/// is killed.
#[test]
fn killed_cleaner_child() {
    match killed_process::directory(CHILD) {
        Some(dir) => write_all(&dir, i64::MAX, &|writer, n, next| {
            killed_process::acknowledge(format_args!("{writer} {n} {next}"));
        }),
        None => {
            let dir = tempfile::tempdir().unwrap();
            let acknowledged = Mutex::new([(0, 0); WRITERS]);
            write_all(dir.path(), 40, &|writer, n, next| {
                acknowledged.lock().unwrap()[writer] = (n, next)
            });
            assert_eq!(check(dir.path(), &acknowledged.into_inner().unwrap()).0, [40, 40]);
        }
    }
}

#[test]
fn kill_9_while_cleaning_keeps_newest_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = [(0, 0); WRITERS];
    let mut kept = 0;
    for round in 0..10 {
        let test = "event_log::killed_cleaner::killed_cleaner_child";
        killed_process::run(CHILD, test, dir.path(), 40 + round * 53 % 211, &mut |words| {
            let numbers: Vec<i64> = words.iter().filter_map(|word| word.parse().ok()).collect();
            let [writer, n, next] = numbers[..] else { return false };
            acknowledged[usize::try_from(writer).expect("a writer")] = (n, next);
            true
        });
        let (lasts, count) = check(dir.path(), &acknowledged);
        for (acknowledged, last) in acknowledged.iter_mut().zip(lasts) {
            acknowledged.0 = last;
        }
        kept = count;
    }
    let written: i64 = acknowledged.iter().map(|(n, _)| n * RECORDS).sum();
    assert!(
        i64::try_from(kept).expect("few") < written / 2,
        "{kept} of {written} records were left: the cleaner was not there"
    );
}
