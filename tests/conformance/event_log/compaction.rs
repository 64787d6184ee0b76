//! Compaction: of each key the newest committed record stays, and nobody who reads is told anything wrong meanwhile.
//!
//! A home cleans when it wants to; Kafka never cleans a segment that is still written to. So a case goes on appending
//! a filler record while it waits for a state, and looks away from fillers. Never: a judgement about how much is cleaned
//! at once.

use super::harness::{Harness, LIMIT, SHORT, assigned, committed, now};
use crate::support;
use event_log::{
    Cleanup, Error, Event, Isolation, Millis, OffsetSpec, OutBatch, OutRecord, Outcome, RecordBatch, RecordRef,
    StartFrom, TopicConfig, TopicPartition, TopicSpec,
};
use std::collections::BTreeMap;
use std::time::Duration;

const FILLER: &str = "~filler";
/// Kafka's cleaner takes one partition at a time, and the broker is shared.
const CLEANED: Duration = Duration::from_secs(90);

/// Settings with which Kafka's cleaner comes as soon as it can.
fn eager(config: &mut TopicConfig) {
    config.cleanup = Cleanup::Compact;
    let settings = [
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("file.delete.delay.ms", "500"),
    ];
    config.other.extend(settings.map(|(n, v)| (n.to_owned(), v.to_owned())));
}

fn line(harness: &Harness) -> TopicPartition {
    TopicPartition::new(harness.topic_with(1, eager), 0)
}

/// Records as `key=value`, or `key` for a tombstone, each with a header of its own.
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
            [("told", Some(record.as_bytes()))],
        );
    }
    batch
}

/// A record but for its offset: `key=value` or `key`, time, header.
type Told = (String, Millis, Vec<u8>);

fn told(record: RecordRef<'_>) -> Option<(i64, Told)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let key = text(record.key().expect("every record has a key"));
    let shown = record
        .value()
        .map_or(key.clone(), |value| format!("{key}={}", text(value)));
    let header = record.header("told").map(<[u8]>::to_vec).unwrap_or_default();
    (key != FILLER).then_some((record.offset(), (shown, record.timestamp(), header)))
}

/// Everything up to the end as it is now, without fillers.
fn all(harness: &Harness, isolation: Isolation, at: &TopicPartition) -> BTreeMap<i64, Told> {
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
            seen.extend(told(record));
        }
        (reader.position(at) >= Some(end)).then_some(())
    });
    seen
}

/// Offsets and texts, as `0 key=value`.
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

/// Appends fillers until there is an answer.
fn wait_cleaned<T>(harness: &Harness, what: &str, at: &[&TopicPartition], mut ask: impl FnMut() -> Option<T>) -> T {
    support::wait_for(what, CLEANED, || {
        at.iter().for_each(|at| {
            put(harness, at, &[&format!("{FILLER}=")]);
        });
        ask()
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

/// What a newer record of its key supersedes goes; what stays keeps its offset, time and headers. Start, end and time
/// look-ups keep their meaning.
pub fn superseded_records_go_and_the_newest_stay_as_they_were(harness: &Harness) {
    let at = line(harness);
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

/// Who reads from the start after a cleaning, as a replica that begins anew does, gets the newest record of each key,
/// in offset order, whatever transactions wrote them.
pub fn a_reader_from_the_start_gets_the_newest_of_each_key_in_order(harness: &Harness) {
    let at = line(harness);
    let (mut one, mut other) = (harness.any_session(), harness.any_session());
    let mut newest = BTreeMap::new();
    for round in 0..4 {
        for (n, session) in [&mut one, &mut other].into_iter().enumerate() {
            session.begin().unwrap();
            let texts: Vec<String> = (0..4).map(|k| format!("k{}={round}{n}", (k + n) % 5)).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            session.send(&keyed(&at, &texts)).unwrap();
            let first = committed(session.commit(None))[0].first_offset;
            for (offset, text) in (first..).zip(texts) {
                newest.insert(text[..2].to_owned(), format!("{offset} {text}"));
            }
        }
    }
    harness.settle(&at);
    let mut want: Vec<&str> = newest.values().map(String::as_str).collect();
    want.sort_by_key(|text| text.split(' ').next().and_then(|offset| offset.parse::<i64>().ok()));
    wait_shown(harness, &at, &want);
}

/// A tombstone deletes what stands before it, stays for `delete.retention.ms` from the first cleaning that reached it,
/// and goes then.
pub fn a_tombstone_goes_after_its_time(harness: &Harness) {
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

/// Nothing at or behind the first record of an open transaction is cleaned, and its records shadow nothing.
pub fn an_open_transaction_holds_the_cleaner_back(harness: &Harness) {
    let topic = harness.topic_with(2, eager);
    let [at, free] = [0, 1].map(|p| TopicPartition::new(topic.clone(), p));
    put(harness, &at, &["a=1"]);
    put(harness, &at, &["a=2"]);
    wait_shown(harness, &at, &["1 a=2"]);
    let end = harness.offset(&at, OffsetSpec::LogEnd);
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&keyed(&at, &["a=3"])).unwrap();
    support::wait_for("the open record", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) > end).then_some(())
    });
    put(harness, &at, &["b=1"]);
    put(harness, &at, &["b=2"]);
    for round in 0..2 {
        // The partition beside it shows that the cleaner was there.
        put(harness, &free, &[&format!("x{round}=1"), &format!("x{round}=2")]);
        let gone = format!("x{round}=1");
        wait_cleaned(harness, "the free partition to be cleaned", &[&at, &free], || {
            let seen = uncommitted(harness, &free);
            (!seen.iter().any(|text| text.contains(&gone))).then_some(())
        });
    }
    let held = [
        "1 a=2".to_owned(),
        format!("{end} a=3"),
        format!("{} b=1", end + 1),
        format!("{} b=2", end + 2),
    ];
    assert_eq!(uncommitted(harness, &at), held);
    committed(session.commit(None));
    harness.settle(&at);
    wait_shown(harness, &at, &[&held[1], &held[3]]);
}

/// A record of an aborted transaction deletes nothing; it goes itself, and is never shown as committed.
pub fn an_aborted_record_shadows_nothing_and_goes(harness: &Harness) {
    let at = line(harness);
    put(harness, &at, &["a=1", "b=1"]);
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&keyed(&at, &["a=no", "b"])).unwrap();
    support::wait_for("the records", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) == 4).then_some(())
    });
    session.abort().unwrap();
    harness.settle(&at);
    let want = ["0 a=1", "1 b=1"];
    wait_cleaned(harness, "the aborted records to go", &[&at], || {
        assert_eq!(shown(harness, Isolation::ReadCommitted, &at), want);
        (uncommitted(harness, &at) == want).then_some(())
    });
}

/// Records that are younger than `min.compaction.lag.ms` stay, and shadow nothing.
pub fn young_records_are_left_alone(harness: &Harness) {
    let old = line(harness);
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

/// A topic that does both forgets what is older than its retention, newest of its key or not, and its start moves.
pub fn a_topic_that_is_compacted_and_deleted_forgets_what_is_old(harness: &Harness) {
    let topic = harness.topic_with(1, |config| {
        eager(config);
        config.cleanup = Cleanup::CompactDelete;
        config.retention_ms = Some(600_000);
        // No share is more than all of it. Kafka would merge segments, and an old one would have the time of a new one.
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

/// A reader that is in the middle while the partition is cleaned goes on to the end and has the newest of each key; a
/// member that begins at an offset that is gone reads what comes behind it.
pub fn readers_and_members_pass_the_gaps(harness: &Harness) {
    let (at, group) = (line(harness), support::unique("group"));
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
                if let Some((offset, (text, ..))) = told(record) {
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

/// What has no key cannot be compacted: a compacted topic does not take it, alone or in a transaction.
pub fn a_record_without_a_key_is_refused(harness: &Harness) {
    let at = line(harness);
    let refused = harness.log.append(&super::harness::batch(&at, &["no key"]));
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    let mut session = harness.any_session();
    session.begin().unwrap();
    match session.send(&super::harness::batch(&at, &["no key"])) {
        Err(Error::Refused { .. }) => session.abort().unwrap(),
        Err(other) => panic!("{other:?}"),
        Ok(()) => {
            let outcome = session.commit(None);
            assert!(matches!(outcome, Outcome::Aborted { fenced: false, .. }), "{outcome:?}");
            session.init_transactions().unwrap();
        }
    }
    session.begin().unwrap();
    session.send(&keyed(&at, &["a=1"])).unwrap();
    committed(session.commit(None));
    harness.settle(&at);
    let seen = shown(harness, Isolation::ReadCommitted, &at);
    assert!(seen.len() == 1 && seen[0].ends_with("a=1"), "{seen:?}");
}

/// A record without a key costs the records of its own partition that were sent with it, and no other's.
pub fn a_record_without_a_key_costs_no_other_partition_a_record(harness: &Harness) {
    let (topic, plain) = (
        harness.topic_with(2, |config| config.cleanup = Cleanup::Compact),
        harness.line(),
    );
    let [fine, bad] = [0, 1].map(|partition| TopicPartition::new(topic.clone(), partition));
    let mut batch = keyed(&fine, &["a=1"]);
    batch.push(super::harness::record(&bad, "no key"), []);
    batch.push(super::harness::record(&plain, "x"), []);
    let refused = harness.log.append(&batch);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    assert_eq!(
        [&fine, &bad, &plain].map(|at| harness.offset(at, OffsetSpec::LogEnd)),
        [1, 0, 1],
        "the others were written"
    );
    let seen = shown(harness, Isolation::ReadCommitted, &fine);
    assert!(seen.len() == 1 && seen[0].ends_with("a=1"), "{seen:?}");
}

/// A least lag that is longer than the longest one is refused, when a topic is made and when it is altered.
pub fn a_lag_longer_than_the_longest_is_refused(harness: &Harness) {
    let mut config = TopicConfig::new(Cleanup::Compact);
    config.min_compaction_lag_ms = Some(5_000);
    config.other.insert("max.compaction.lag.ms".into(), "4999".into());
    let spec = TopicSpec {
        name: support::unique("case"),
        partitions: 1,
        replication: None,
        config,
    };
    let refused = harness.log.create_topics(&[spec]);
    assert!(matches!(refused, Err(Error::InvalidTopic { .. })), "{refused:?}");
    let topic = harness.topic_with(1, |config| config.min_compaction_lag_ms = Some(5_000));
    let change = [("max.compaction.lag.ms".to_owned(), "4999".to_owned())];
    let refused = harness.log.alter_topic(&topic, &change);
    assert!(matches!(refused, Err(Error::InvalidTopic { .. })), "{refused:?}");
}
