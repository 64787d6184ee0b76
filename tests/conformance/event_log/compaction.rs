//! Compaction keeps the newest committed record of each key, and readers see a consistent log in the meantime.
//!
//! The backend determines when it compacts, and Kafka never compacts the active segment. So the cases append filler
//! records while they wait for compaction, and ignore these records when they read.

use super::harness::{Harness, LIMIT, SHORT, assigned, committed, now};
use crate::support;
use event_log::{
    Cleanup, Error, Event, Isolation, Millis, OffsetSpec, OutBatch, OutRecord, Outcome, RecordBatch, RecordRef,
    StartFrom, TopicConfig, TopicPartition, TopicSpec,
};
use std::collections::BTreeMap;
use std::time::Duration;

const FILLER: &str = "~filler";
/// A limit for compaction. Kafka's cleaner processes one partition at a time, and the broker is shared.
const CLEANED: Duration = Duration::from_secs(90);

/// Settings that make Kafka's cleaner run as soon as possible.
fn eager(config: &mut TopicConfig) {
    config.cleanup = Cleanup::Compact;
    let settings = [
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("file.delete.delay.ms", "500"),
    ];
    config.other.extend(settings.map(|(n, v)| (n.to_owned(), v.to_owned())));
}

fn compacted_partition(harness: &Harness) -> TopicPartition {
    TopicPartition::new(harness.topic_with(1, eager), 0)
}

/// Creates records from `key=value`, or `key` for a tombstone, each with its own header.
fn keyed(at: &TopicPartition, records: &[&str]) -> OutBatch {
    let mut batch = OutBatch::default();
    for record in records {
        let (key, value) = record.split_once('=').map_or((*record, None), |(k, v)| (k, Some(v)));
        batch.push(
            OutRecord {
                topic: &at.topic,
                partition: Some(at.partition),
                timestamp: None,
                key: Some(key.as_bytes()),
                value: value.map(str::as_bytes),
            },
            [("case", Some(record.as_bytes()))],
        );
    }
    batch
}

/// A record without its offset: `key=value` or `key`, timestamp, header.
type KeyedRecord = (String, Millis, Vec<u8>);

fn keyed_record(record: RecordRef<'_>) -> Option<(i64, KeyedRecord)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let key = text(record.key().expect("every record has a key"));
    let shown = record
        .value()
        .map_or(key.clone(), |value| format!("{key}={}", text(value)));
    let header = record.header("case").map(<[u8]>::to_vec).unwrap_or_default();
    (key != FILLER).then_some((record.offset(), (shown, record.timestamp(), header)))
}

/// Reads all records up to the current end, without the filler records.
fn all(harness: &Harness, isolation: Isolation, at: &TopicPartition) -> BTreeMap<i64, KeyedRecord> {
    let which = match isolation {
        Isolation::ReadCommitted => OffsetSpec::LastStable,
        Isolation::ReadUncommitted => OffsetSpec::LogEnd,
    };
    let end = harness.offset(at, which);
    let mut reader = harness.reader(isolation, at, StartFrom::Earliest);
    let (mut seen, mut batch, mut last) = (BTreeMap::new(), RecordBatch::default(), -1);
    support::wait_for("the reader to reach the end", LIMIT, || {
        reader.poll(&mut batch, 1 << 20, SHORT).expect("poll");
        for record in batch.iter() {
            assert!(record.offset() > last, "{} after {last}", record.offset());
            last = record.offset();
            seen.extend(keyed_record(record));
        }
        (reader.position(at) >= Some(end)).then_some(())
    });
    seen
}

/// Returns offsets and texts, as `0 key=value`.
fn shown(harness: &Harness, isolation: Isolation, at: &TopicPartition) -> Vec<String> {
    let all = all(harness, isolation, at);
    all.iter()
        .map(|(offset, (text, ..))| format!("{offset} {text}"))
        .collect()
}

fn uncommitted(harness: &Harness, at: &TopicPartition) -> Vec<String> {
    shown(harness, Isolation::ReadUncommitted, at)
}

fn put(harness: &Harness, at: &TopicPartition, records: &[&str]) -> i64 {
    harness.log.append(&keyed(at, records)).expect("append")[0].first_offset
}

/// Waits for compaction: appends filler records until `poll` returns a value.
fn wait_cleaned<T>(harness: &Harness, what: &str, at: &[&TopicPartition], mut poll: impl FnMut() -> Option<T>) -> T {
    support::wait_for(what, CLEANED, || {
        at.iter().for_each(|at| {
            put(harness, at, &[&format!("{FILLER}=")]);
        });
        poll()
    })
}

fn wait_shown(harness: &Harness, at: &TopicPartition, want: &[&str]) {
    let mut last = Vec::new();
    let what = format!("{at} to be cleaned down to {want:?}");
    wait_cleaned(harness, &what, &[at], || {
        last = uncommitted(harness, at);
        (last == want).then_some(())
    });
    assert_eq!(shown(harness, Isolation::ReadCommitted, at), want);
}

/// Superseded records are removed. The newest records keep offset, timestamp and headers. The earliest offset, the log
/// end and lookups by time are not affected.
pub fn compaction_keeps_newest_records_unchanged(harness: &Harness) {
    let at = compacted_partition(harness);
    put(harness, &at, &["a=1", "b=1", "c=1", "b=2"]);
    put(harness, &at, &["a=2", "d=1"]);
    put(harness, &at, &["e=1", "e=2"]);
    let mut before = all(harness, Isolation::ReadCommitted, &at);
    assert_eq!(before.len(), 8);
    wait_shown(harness, &at, &["2 c=1", "3 b=2", "4 a=2", "5 d=1", "7 e=2"]);
    before.retain(|offset, _| [2, 3, 4, 5, 7].contains(offset));
    assert_eq!(all(harness, Isolation::ReadCommitted, &at), before);
    assert_eq!(
        harness.offset(&at, OffsetSpec::Earliest),
        0,
        "the start is not where the first record is"
    );
    assert_eq!(
        harness.offset(&at, OffsetSpec::Timestamp(0)),
        2,
        "the first record that is there"
    );
    let end = harness.offset(&at, OffsetSpec::LogEnd);
    assert_eq!(put(harness, &at, &["f=1"]), end);
}

/// A reader that starts at the beginning after a cleaning gets the newest record of each key in offset order,
/// regardless of the transactions that wrote them.
pub fn reader_gets_newest_of_each_key_in_order(harness: &Harness) {
    let at = compacted_partition(harness);
    let (mut one, mut other) = (harness.any_producer(), harness.any_producer());
    let mut newest = BTreeMap::new();
    for round in 0..4 {
        for (n, producer) in [&mut one, &mut other].into_iter().enumerate() {
            producer.begin().unwrap();
            let texts: Vec<String> = (0..4).map(|k| format!("k{}={round}{n}", (k + n) % 5)).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            producer.send(&keyed(&at, &texts)).unwrap();
            let first = committed(producer.commit(None))[0].first_offset;
            for (offset, text) in (first..).zip(texts) {
                newest.insert(text[..2].to_owned(), format!("{offset} {text}"));
            }
        }
    }
    harness.wait_no_open_transaction(&at);
    let mut want: Vec<&str> = newest.values().map(String::as_str).collect();
    want.sort_by_key(|text| text.split(' ').next().and_then(|offset| offset.parse::<i64>().ok()));
    wait_shown(harness, &at, &want);
}

/// A tombstone removes older records of its key, is kept for `delete.retention.ms` after the first cleaning that
/// visited it, and is then removed.
pub fn tombstone_expires(harness: &Harness) {
    let topic = harness.topic_with(1, |config| {
        eager(config);
        config.delete_retention_ms = Some(1_500);
    });
    let at = TopicPartition::new(topic, 0);
    put(harness, &at, &["a=1", "b=1"]);
    put(harness, &at, &["a"]);
    let mut uncleaned = now();
    wait_cleaned(harness, "the tombstone to go", &[&at], || {
        let before = now();
        let seen = uncommitted(harness, &at);
        match seen.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["0 a=1", "1 b=1", "2 a"] => {
                uncleaned = before;
                None
            }
            ["1 b=1", "2 a"] => None,
            ["1 b=1"] => Some(()),
            _ => panic!("{seen:?}"),
        }
    });
    let stayed = now() - uncleaned;
    assert!(stayed >= 1_500, "it went {stayed} ms after nothing was cleaned yet");
}

/// Nothing at or after the first record of an open transaction is cleaned, and its records supersede nothing.
pub fn open_transaction_blocks_compaction(harness: &Harness) {
    let topic = harness.topic_with(2, eager);
    let [at, free] = [0, 1].map(|p| TopicPartition::new(topic.clone(), p));
    put(harness, &at, &["a=1"]);
    put(harness, &at, &["a=2"]);
    wait_shown(harness, &at, &["1 a=2"]);
    let end = harness.offset(&at, OffsetSpec::LogEnd);
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&keyed(&at, &["a=3"])).unwrap();
    support::wait_for("the open record", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) > end).then_some(())
    });
    put(harness, &at, &["b=1"]);
    put(harness, &at, &["b=2"]);
    for round in 0..2 {
        // Another partition shows that the cleaner has run.
        put(harness, &free, &[&format!("x{round}=1"), &format!("x{round}=2")]);
        let gone = format!("x{round}=1");
        wait_cleaned(harness, "the free partition to be cleaned", &[&at, &free], || {
            let seen = uncommitted(harness, &free);
            (!seen.iter().any(|text| text.contains(&gone))).then_some(())
        });
    }
    let expected = [
        "1 a=2".to_owned(),
        format!("{end} a=3"),
        format!("{} b=1", end + 1),
        format!("{} b=2", end + 2),
    ];
    assert_eq!(uncommitted(harness, &at), expected);
    committed(producer.commit(None));
    harness.wait_no_open_transaction(&at);
    wait_shown(harness, &at, &[&expected[1], &expected[3]]);
}

/// A record of an aborted transaction supersedes nothing, is removed, and is never returned as committed.
pub fn aborted_record_supersedes_nothing(harness: &Harness) {
    let at = compacted_partition(harness);
    put(harness, &at, &["a=1", "b=1"]);
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&keyed(&at, &["a=no", "b"])).unwrap();
    support::wait_for("the records", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) == 4).then_some(())
    });
    producer.abort().unwrap();
    harness.wait_no_open_transaction(&at);
    let want = ["0 a=1", "1 b=1"];
    wait_cleaned(harness, "the aborted records to go", &[&at], || {
        assert_eq!(shown(harness, Isolation::ReadCommitted, &at), want);
        (uncommitted(harness, &at) == want).then_some(())
    });
}

/// Records younger than `min.compaction.lag.ms` are kept and supersede nothing.
pub fn young_records_are_not_compacted(harness: &Harness) {
    let old = compacted_partition(harness);
    let topic = harness.topic_with(1, |config| {
        eager(config);
        config.min_compaction_lag_ms = Some(3_600_000);
    });
    let young = TopicPartition::new(topic, 0);
    for at in [&old, &young] {
        put(harness, at, &["a=1"]);
        put(harness, at, &["a=2"]);
    }
    wait_cleaned(harness, "the other topic to be cleaned", &[&old, &young], || {
        (uncommitted(harness, &old) == ["1 a=2"]).then_some(())
    });
    assert_eq!(uncommitted(harness, &young), ["0 a=1", "1 a=2"]);
}

/// `compact,delete` deletes old records, even the newest of a key, and increases the earliest offset.
pub fn compact_delete_removes_old_records(harness: &Harness) {
    let topic = harness.topic_with(1, |config| {
        eager(config);
        config.cleanup = Cleanup::CompactDelete;
        config.retention_ms = Some(600_000);
        // A dirty ratio of 1 is never exceeded. Otherwise Kafka would merge segments and give old records the time of
        // newer ones.
        config.other.insert("min.cleanable.dirty.ratio".into(), "1".into());
    });
    let at = TopicPartition::new(topic, 0);
    let mut out = OutBatch::default();
    for key in ["a", "b"] {
        let record = OutRecord {
            topic: &at.topic,
            partition: Some(0),
            timestamp: Some(now() - 3_600_000),
            key: Some(key.as_bytes()),
            value: Some(b"1"),
        };
        out.push(record, []);
    }
    harness.log.append(&out).unwrap();
    put(harness, &at, &["a=2"]);
    wait_cleaned(harness, "the start to move", &[&at], || {
        (harness.offset(&at, OffsetSpec::Earliest) == 2).then_some(())
    });
    assert_eq!(uncommitted(harness, &at), ["2 a=2"]);
}

/// A reader in the middle of a partition that is compacted reaches the end, and has received the newest record of each
/// key. A member that starts at a removed offset continues with the next record.
pub fn readers_and_members_pass_compaction_gaps(harness: &Harness) {
    let (at, group) = (compacted_partition(harness), support::unique("group"));
    for round in 0..50 {
        put(
            harness,
            &at,
            &[&format!("a={round}"), &format!("b={round}"), &format!("c{round}=1")],
        );
    }
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    let (mut heard, mut batch, mut last) = (BTreeMap::new(), RecordBatch::default(), -1);
    let mut poll = |until: i64| {
        support::wait_for("the reader to come so far", LIMIT, || {
            reader.poll(&mut batch, 1, SHORT).unwrap();
            for record in batch.iter() {
                assert!(record.offset() > last, "{} after {last}", record.offset());
                last = record.offset();
                if let Some((offset, (text, ..))) = keyed_record(record) {
                    let key = text.split('=').next().unwrap_or_default().to_owned();
                    heard.insert(key, (offset, text));
                }
            }
            (reader.position(&at) >= Some(until)).then_some(())
        });
        heard.clone()
    };
    poll(40);
    let newest: Vec<String> = (0..49)
        .map(|n| format!("{} c{n}=1", 3 * n + 2))
        .chain(["147 a=49".to_owned(), "148 b=49".to_owned(), "149 c49=1".to_owned()])
        .collect();
    wait_shown(harness, &at, &newest.iter().map(String::as_str).collect::<Vec<_>>());
    let heard = poll(harness.offset(&at, OffsetSpec::LastStable));
    let mut heard: Vec<(i64, String)> = heard.into_values().collect();
    heard.sort();
    let heard: Vec<String> = heard.iter().map(|(offset, text)| format!("{offset} {text}")).collect();
    assert_eq!(heard, newest);

    harness.log.set_committed(&group, &[(at.clone(), 60)]).unwrap();
    let mut consumer = harness.join(&group, &[&at.topic]);
    assert_eq!(assigned(&mut *consumer), std::slice::from_ref(&at));
    consumer.start(&at, 60).unwrap();
    let mut batch = RecordBatch::default();
    let first = support::wait_for("the first record behind the gap", LIMIT, || {
        let event = consumer.poll(&mut batch, 1 << 20, SHORT).unwrap();
        (event == Event::Records).then(|| batch.iter().next().expect("a record").offset())
    });
    assert_eq!(first, 62);
    consumer.close().unwrap();
}

/// A compacted topic rejects records without a key, inside and outside transactions.
pub fn record_without_key_is_rejected(harness: &Harness) {
    let at = compacted_partition(harness);
    let rejected = harness.log.append(&super::harness::batch(&at, &["no key"]));
    assert!(matches!(rejected, Err(Error::Rejected { .. })), "{rejected:?}");
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    match producer.send(&super::harness::batch(&at, &["no key"])) {
        Err(Error::Rejected { .. }) => producer.abort().unwrap(),
        Err(other) => panic!("{other:?}"),
        Ok(()) => {
            let outcome = producer.commit(None);
            assert!(matches!(outcome, Outcome::Aborted { fenced: false, .. }), "{outcome:?}");
            producer.init_transactions().unwrap();
        }
    }
    producer.begin().unwrap();
    producer.send(&keyed(&at, &["a=1"])).unwrap();
    committed(producer.commit(None));
    harness.wait_no_open_transaction(&at);
    let seen = shown(harness, Isolation::ReadCommitted, &at);
    assert!(seen.len() == 1 && seen[0].ends_with("a=1"), "{seen:?}");
}

/// A record without a key also causes the records of the same partition in the batch to be rejected, but not those of
/// other partitions.
pub fn record_without_key_affects_its_partition_only(harness: &Harness) {
    let (topic, plain) = (
        harness.topic_with(2, |config| config.cleanup = Cleanup::Compact),
        harness.partition(),
    );
    let [fine, bad] = [0, 1].map(|partition| TopicPartition::new(topic.clone(), partition));
    let mut batch = keyed(&fine, &["a=1"]);
    batch.push(super::harness::record(&bad, "no key"), []);
    batch.push(super::harness::record(&plain, "x"), []);
    let rejected = harness.log.append(&batch);
    assert!(matches!(rejected, Err(Error::Rejected { .. })), "{rejected:?}");
    assert_eq!(
        [&fine, &bad, &plain].map(|at| harness.offset(at, OffsetSpec::LogEnd)),
        [1, 0, 1],
        "the others were written"
    );
    let seen = shown(harness, Isolation::ReadCommitted, &fine);
    assert!(seen.len() == 1 && seen[0].ends_with("a=1"), "{seen:?}");
}

/// `min.compaction.lag.ms` above `max.compaction.lag.ms` is rejected on create and alter.
pub fn min_lag_above_max_lag_is_rejected(harness: &Harness) {
    let mut config = TopicConfig::new(Cleanup::Compact);
    config.min_compaction_lag_ms = Some(5_000);
    config.other.insert("max.compaction.lag.ms".into(), "4999".into());
    let spec = TopicSpec {
        name: support::unique("case"),
        partitions: 1,
        replication: None,
        config,
    };
    let rejected = harness.log.create_topics(&[spec]);
    assert!(matches!(rejected, Err(Error::InvalidTopic { .. })), "{rejected:?}");
    let topic = harness.topic_with(1, |config| config.min_compaction_lag_ms = Some(5_000));
    let change = [("max.compaction.lag.ms".to_owned(), "4999".to_owned())];
    let rejected = harness.log.alter_topic(&topic, &change);
    assert!(matches!(rejected, Err(Error::InvalidTopic { .. })), "{rejected:?}");
}
