//! An embedded log in a directory: it is unchanged when it is reopened, and after `kill -9` at any time, it contains
//! everything that was acknowledged and no partial transaction. The killed writer is a separate process.

use super::harness::{Harness, LIMIT, assigned, batch, committed, config, now, record, seen, texts};
use super::killed_process;
use crate::support;
use event_log::embedded::EmbeddedLog;
use event_log::{
    Cleanup, Error, GroupConfig, Isolation, Millis, OffsetSpec, OutBatch, OutRecord, SharedEventLog, TopicConfig,
    TopicPartition, TopicSpec, TransactionalProducerConfig,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

const CHILD: &str = "TRUNKLINE_TEST_LOG_CHILD";
const WRITERS: usize = 2;

fn open(dir: &Path) -> SharedEventLog {
    EmbeddedLog::open(config(Some(dir.to_owned()))).expect("open the log")
}

#[test]
fn reopened_log_is_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let harness = Harness::on(open(dir.path()));
    let (at, group) = (harness.partition(), support::unique("group"));
    let kept = harness.topic_with(2, |config| config.retention_ms = Some(9_000_000));
    harness
        .log
        .alter_topic(&kept, &[("segment.ms".into(), "777".into())])
        .unwrap();
    let deleted = harness.partition();
    harness.append(&deleted, &["x"]);
    harness.log.delete_topic(&deleted.topic).unwrap();
    let mut producer = harness.transactional_producer("one");
    harness.transact(&mut *producer, &at, &["a", "b"]);
    producer.begin().unwrap();
    producer.send(&batch(&at, &["aborted"])).unwrap();
    producer.abort().unwrap();
    let (consumer, member) = harness.group_metadata(&group, &at.topic);
    producer.begin().unwrap();
    producer.send(&batch(&at, &["c"])).unwrap();
    committed(producer.commit(Some((&member, &[(at.clone(), 2)]))));
    producer.begin().unwrap();
    producer.send(&batch(&at, &["open"])).unwrap();
    harness.append(&at, &["plain"]);
    let facts = |harness: &Harness| {
        let describe = |name: &str| {
            harness
                .log
                .describe(name)
                .unwrap()
                .map(|info| (info.id, info.partitions, info.settings))
        };
        (
            harness.log.log_epoch().unwrap(),
            harness.log.topics().unwrap(),
            [describe(&at.topic), describe(&kept), describe(&deleted.topic)],
            harness.committed_offset(&group, &at),
        )
    };
    let before = facts(&harness);
    assert_eq!(harness.offset(&at, OffsetSpec::LogEnd), 9);
    assert_eq!(harness.offset(&at, OffsetSpec::LastStable), 7);
    drop((producer, consumer, member, harness));

    let harness = Harness::on(open(dir.path()));
    assert_eq!(facts(&harness), before);
    assert_eq!(
        [OffsetSpec::Earliest, OffsetSpec::LastStable, OffsetSpec::LogEnd].map(|which| harness.offset(&at, which)),
        [0, 10, 10]
    );
    let want = seen(&[(0, "a"), (1, "b"), (5, "c"), (8, "plain")]);
    assert_eq!(harness.committed(&at), want);
    assert_eq!(harness.all(Isolation::ReadUncommitted, &at).len(), 6);
    let mut producer = harness.transactional_producer("one");
    assert_eq!(harness.transact(&mut *producer, &at, &["d"]).first_offset, 10);
    drop((producer, harness));
    let harness = Harness::on(open(dir.path()));
    assert_eq!(texts(&harness.committed(&at)), ["a", "b", "c", "plain", "d"]);
    assert_ne!(harness.partition().topic, deleted.topic);
}

#[test]
fn reopening_restores_times_and_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let (base, text) = (now() - 1_000_000, "x".repeat(1_000));
    let harness = Harness::on(open(dir.path()));
    let at = harness.partition();
    let append = |harness: &Harness, from: Millis| {
        let mut out = OutBatch::default();
        for n in from..from + 100 {
            out.push(
                OutRecord {
                    timestamp: Some(base + n),
                    ..record(&at, &text)
                },
                [],
            );
        }
        harness.log.append(&out).unwrap();
    };
    (0..30).for_each(|n| append(&harness, 100 * n));
    drop(harness);
    let harness = Harness::on(open(dir.path()));
    (30..40).for_each(|n| append(&harness, 100 * n));
    for time in [0, 1, 99, 100, 1_234, 2_999, 3_000, 3_999] {
        assert_eq!(harness.offset(&at, OffsetSpec::Timestamp(base + time)), time);
    }
    assert_eq!(harness.offset(&at, OffsetSpec::Timestamp(base + 4_000)), 4_000);
    harness
        .log
        .alter_topic(&at.topic, &[("retention.bytes".into(), "1000000".into())])
        .unwrap();
    let start = support::wait_for("the start to move", LIMIT, || {
        Some(harness.offset(&at, OffsetSpec::Earliest)).filter(|start| *start > 0)
    });
    assert!((2_800..=3_000).contains(&start), "a million bytes are kept: {start}");
    drop(harness);
    let harness = Harness::on(open(dir.path()));
    assert_eq!(harness.offset(&at, OffsetSpec::Earliest), start);
    let read = harness.committed(&at);
    assert!(read.iter().map(|(offset, _)| *offset).eq(start..4_000));
    assert_eq!(harness.offset(&at, OffsetSpec::Timestamp(0)), start);
    assert_eq!(harness.offset(&at, OffsetSpec::Timestamp(base + 3_500)), 3_500);
}

#[test]
fn directory_is_opened_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let rejected = EmbeddedLog::open(config(Some(dir.path().to_owned()))).map(|_| "opened twice");
    assert!(matches!(rejected, Err(Error::Rejected { .. })), "{rejected:?}");
    drop(log);
    open(dir.path());
}

/// Reports each acknowledged operation: `tx` or `plain`, the writer, and the number.
type Tell<'t> = &'t (dyn Fn(&str, usize, i64) + Sync);

/// Writes numbered transactions and appends. Continues after the last committed number.
fn write(log: &SharedEventLog, writer: usize, until: i64, tell: Tell<'_>) {
    let harness = Harness::on(log.clone());
    let [group, id] = ["group", "producer"].map(|kind| format!("{kind}-{writer}"));
    let input = TopicPartition::new("input", 0);
    let parts = [0, 1, 2].map(|p| TopicPartition::new("out", p));
    let mut consumer = harness.join(&group, &[&input.topic]);
    assigned(&mut *consumer);
    let member = consumer.group_metadata().unwrap();
    let mut producer = harness.transactional_producer(&id);
    let last = harness.committed_offset(&group, &input).unwrap_or(0);
    // The second writer's transactions are large, so that the store flushes before the process is killed.
    let (count, filler) = if writer == 0 { (3, "") } else { (180, &*"x".repeat(900)) };
    for n in last + 1..=until {
        let send = |producer: &mut dyn event_log::TransactionalProducer, text: &str| {
            for _ in 0..3 {
                let mut out = OutBatch::default();
                for at in &parts {
                    (0..count / 3).for_each(|_| out.push(record(at, text), []));
                }
                producer.send(&out).unwrap();
            }
        };
        if n % 3 == 0 {
            producer.begin().unwrap();
            send(&mut *producer, "aborted");
            producer.abort().unwrap();
        }
        producer.begin().unwrap();
        send(&mut *producer, &format!("{writer}:{n}:{filler}"));
        committed(producer.commit(Some((&member, &[(input.clone(), n)]))));
        tell("tx", writer, n);
        let plain = TopicPartition::new("plain", 0);
        harness.append(&plain, &[&format!("{writer}:{n}:")]);
        tell("plain", writer, n);
    }
}

fn write_all(dir: &Path, until: i64, tell: Tell<'_>) {
    let log = open(dir);
    let spec = |(name, partitions): (&str, i32)| {
        let config = TopicConfig::new(Cleanup::Delete);
        TopicSpec {
            name: name.to_owned(),
            partitions,
            replication: None,
            config,
        }
    };
    log.create_topics(&[("input", 1), ("out", 3), ("plain", 1)].map(spec))
        .unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let log = &log;
            scope.spawn(move || write(log, writer, until, tell));
        }
    });
}

/// Compares the log in a directory with what was acknowledged. Returns the last number of each writer.
fn check(dir: &Path, acknowledged: &BTreeMap<(String, usize), i64>) -> Vec<i64> {
    let harness = Harness::on(open(dir));
    let input = TopicPartition::new("input", 0);
    let number = |writer: usize, kind: &str| acknowledged.get(&(kind.to_owned(), writer)).copied().unwrap_or(0);
    let mut lasts = Vec::new();
    for writer in 0..WRITERS {
        let last = harness
            .committed_offset(&format!("group-{writer}"), &input)
            .unwrap_or(0);
        let done = number(writer, "tx");
        assert!(
            (done..=done + 1).contains(&last),
            "writer {writer}: {done} was acknowledged, {last} is there"
        );
        lasts.push(last);
    }
    for p in 0..3 {
        let at = TopicPartition::new("out", p);
        assert_eq!(
            harness.offset(&at, OffsetSpec::LastStable),
            harness.offset(&at, OffsetSpec::LogEnd),
            "no transaction is left open"
        );
        let read = harness.all(Isolation::ReadCommitted, &at);
        for (writer, last) in lasts.iter().enumerate() {
            let count = if writer == 0 { 3 } else { 180 };
            let mine: Vec<(i64, i64)> = read
                .iter()
                .filter_map(|(offset, text)| Some((*offset, numbered(text, writer)?)))
                .collect();
            let want: Vec<i64> = (1..=*last).flat_map(|n| std::iter::repeat_n(n, count)).collect();
            let odd = mine.iter().zip(&want).find(|((_, n), want)| n != *want);
            assert!(
                odd.is_none() && mine.len() == want.len(),
                "writer {writer} in partition {p}: not exactly the transactions up to {last}: {} of {} records, the \
                 first odd one {odd:?}, the last {:?}",
                mine.len(),
                want.len(),
                mine.last()
            );
        }
        assert!(!texts(&read).contains(&"aborted"));
    }
    let read = harness.all(Isolation::ReadCommitted, &TopicPartition::new("plain", 0));
    for writer in 0..WRITERS {
        let mut numbers: Vec<i64> = read.iter().filter_map(|(_, text)| numbered(text, writer)).collect();
        numbers.dedup();
        let done = number(writer, "plain");
        // If the process was killed between a transaction and its append, that number has no append.
        let missing: Vec<i64> = (1..=done).filter(|n| !numbers.contains(n)).collect();
        let excused = acknowledged
            .iter()
            .filter(|((kind, w), _)| kind.starts_with("cut") && *w == writer);
        let excused: Vec<i64> = excused.map(|(_, n)| *n).collect();
        assert!(
            missing.iter().all(|n| excused.contains(n)),
            "acknowledged appends are lost: {missing:?}"
        );
    }
    lasts
}

fn numbered(text: &str, writer: usize) -> Option<i64> {
    let mut fields = text.split(':');
    (fields.next()? == writer.to_string()).then(|| fields.next()?.parse().ok())?
}

/// When run as a test, writes a little and checks it. When run as a child of the test below, writes until it is killed.
#[test]
fn killed_writer_child() {
    match killed_process::directory(CHILD) {
        Some(dir) => write_all(&dir, i64::MAX, &|kind, writer, n| {
            killed_process::acknowledge(format_args!("{kind} {writer} {n}"));
        }),
        None => {
            let dir = tempfile::tempdir().unwrap();
            let acknowledged = Mutex::new(BTreeMap::new());
            write_all(dir.path(), 7, &|kind, writer, n| {
                acknowledged.lock().unwrap().insert((kind.to_owned(), writer), n);
            });
            assert_eq!(check(dir.path(), &acknowledged.into_inner().unwrap()), [7, 7]);
        }
    }
}

#[test]
fn kill_9_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<(String, usize), i64> = BTreeMap::new();
    for round in 0..12 {
        let test = "event_log::durable::killed_writer_child";
        killed_process::run(CHILD, test, dir.path(), 20 + round * 53 % 211, &mut |words| {
            let [kind, writer, n, ..] = words else { return false };
            acknowledged.insert(((*kind).to_owned(), writer.parse().unwrap()), n.parse().unwrap());
            true
        });
        for (writer, last) in check(dir.path(), &acknowledged).into_iter().enumerate() {
            // The next process continues after this transaction. The append of this transaction may be missing.
            acknowledged.insert((format!("cut {round}"), writer), last);
            acknowledged.insert(("tx".to_owned(), writer), last);
        }
    }
}

#[test]
fn memory_log_ends_with_last_handle() {
    let open = || EmbeddedLog::open(config(None)).unwrap();
    let (one, other) = (open(), open());
    assert_ne!(one.log_epoch().unwrap(), other.log_epoch().unwrap());
    let at = Harness::on(one.clone()).partition();
    assert!(matches!(
        other.offset(&at, OffsetSpec::LogEnd),
        Err(Error::UnknownTopic { .. })
    ));
    // Producers and members keep their log open.
    let producer = one.transactional_producer(TransactionalProducerConfig {
        transactional_id: "kept".into(),
        transaction_timeout: Duration::from_secs(5),
    });
    let consumer = one.group(GroupConfig {
        group: "kept".into(),
        instance: None,
        topics: vec![at.topic.clone()],
        session_timeout: Duration::from_secs(5),
        protocol: event_log::GroupProtocol::Classic,
    });
    drop(one);
    let (mut producer, mut consumer) = (producer.unwrap(), consumer.unwrap());
    assert_eq!(assigned(&mut *consumer), std::slice::from_ref(&at));
    consumer.start(&at, 0).unwrap();
    producer.begin().unwrap();
    producer.send(&batch(&at, &["still here"])).unwrap();
    committed(producer.commit(None));
    assert_eq!(texts(&super::harness::records(&mut *consumer, 1)), ["still here"]);
}
