//! Offsets: lookups, positions, ranges, retention, and committed offsets.

use super::harness::{Harness, LIMIT, SHORT, assigned, batch, committed, now, record, seen, texts, values};
use crate::support;
use event_log::{Error, Isolation, Millis, OffsetSpec, OutBatch, OutRecord, RecordBatch, StartFrom, TopicPartition};
use std::collections::BTreeMap;

/// Earliest, log end and the first record at a timestamp are found, even if timestamps do not increase. A timestamp
/// after all records returns the log end.
pub fn offset_lookups_find_start_end_and_times(harness: &Harness) {
    let at = harness.partition();
    assert_eq!(
        [
            OffsetSpec::Earliest,
            OffsetSpec::LogEnd,
            OffsetSpec::LastStable,
            OffsetSpec::Timestamp(0)
        ]
        .map(|which| harness.offset(&at, which)),
        [0, 0, 0, 0]
    );
    let base = now() - 100_000;
    let append = |times: &[Millis]| {
        let mut out = OutBatch::default();
        for time in times {
            out.push(
                OutRecord {
                    timestamp: Some(base + time),
                    ..record(&at, "x")
                },
                [],
            );
        }
        harness.log.append(&out).unwrap();
    };
    append(&[10, 30, 20]);
    append(&[5]);
    append(&[40, 40]);
    let cases = [
        (-50_000, 0),
        (10, 0),
        (11, 1),
        (30, 1),
        (31, 4),
        (40, 4),
        (41, 6),
        (90_000, 6),
    ];
    for (time, offset) in cases {
        assert_eq!(
            harness.offset(&at, OffsetSpec::Timestamp(base + time)),
            offset,
            "time {time}"
        );
    }
    assert_eq!(
        [OffsetSpec::Earliest, OffsetSpec::LogEnd, OffsetSpec::LastStable].map(|which| harness.offset(&at, which)),
        [0, 6, 6]
    );
}

/// A position advances over control records and aborted records to the end, and `at_end` then returns a time.
pub fn position_passes_control_and_aborted_records(harness: &Harness) {
    let at = harness.partition();
    let mut producer = harness.any_producer();
    harness.transact(&mut *producer, &at, &["a", "b"]);
    producer.begin().unwrap();
    producer.send(&batch(&at, &["never"])).unwrap();
    // Records that are still queued when a transaction is aborted are never written.
    support::wait_for("the record", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) == 4).then_some(())
    });
    producer.abort().unwrap();
    let end = harness.wait_no_open_transaction(&at);
    assert_eq!(end, 5, "two records, a marker, an aborted record, its marker");

    let before = now();
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    let (mut batch, mut read) = (RecordBatch::default(), Vec::new());
    assert_eq!(reader.at_end(&at), None);
    support::wait_for("the end", LIMIT, || {
        reader.poll(&mut batch, 1 << 20, SHORT).unwrap();
        read.extend(values(&batch));
        (reader.position(&at) == Some(end) && reader.at_end(&at).is_some()).then_some(())
    });
    assert_eq!(read, seen(&[(0, "a"), (1, "b")]));
    let first = reader.at_end(&at).expect("at the end");
    assert!((before..=now()).contains(&first), "{before} {first}");
    support::wait_for("a later proof of standing at the end", LIMIT, || {
        reader.poll(&mut batch, 1 << 20, SHORT).unwrap();
        (reader.at_end(&at) > Some(first)).then_some(())
    });
    assert_eq!(reader.position(&TopicPartition::new("elsewhere", 0)), None);
}

/// A reader starts at an offset, at the earliest record, or at the end of its isolation level. A new assignment replaces
/// the previous one.
pub fn reader_starts_at_requested_offset(harness: &Harness) {
    let at = harness.partition();
    harness.append(&at, &["a", "b", "c"]);
    let from = |from| harness.reader(Isolation::ReadCommitted, &at, from);
    assert_eq!(
        harness.take(&mut *from(StartFrom::Offset(1)), 2),
        seen(&[(1, "b"), (2, "c")])
    );
    assert_eq!(
        texts(&harness.take(&mut *from(StartFrom::Earliest), 3)),
        ["a", "b", "c"]
    );

    let mut reader = from(StartFrom::LogEnd);
    let mut batch_read = RecordBatch::default();
    support::wait_for("the end to be known", LIMIT, || {
        assert_eq!(reader.poll(&mut batch_read, 1_000, SHORT).unwrap(), 0);
        (reader.position(&at) == Some(3)).then_some(())
    });
    harness.append(&at, &["d"]);
    assert_eq!(harness.take(&mut *reader, 1), seen(&[(3, "d")]));

    reader.assign(&[(at.clone(), StartFrom::Offset(2))]).unwrap();
    assert_eq!(harness.take(&mut *reader, 2), seen(&[(2, "c"), (3, "d")]));

    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&at, &["open"])).unwrap();
    support::wait_for("the open record", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) == 5).then_some(())
    });
    for (isolation, end) in [(Isolation::ReadCommitted, 4), (Isolation::ReadUncommitted, 5)] {
        let mut reader = harness.reader(isolation, &at, StartFrom::LogEnd);
        support::wait_for("the reader's own end", LIMIT, || {
            reader.poll(&mut batch_read, 1_000, SHORT).unwrap();
            (reader.position(&at) == Some(end)).then_some(())
        });
    }
    reader.assign(&[]).unwrap();
    assert_eq!(reader.poll(&mut batch_read, 1_000, SHORT).unwrap(), 0);
    producer.abort().unwrap();
}

/// An offset above the end is an error that contains the range of valid offsets. There is no automatic reset. The end
/// itself is valid.
pub fn offset_above_end_is_out_of_range(harness: &Harness) {
    let at = harness.partition();
    harness.append(&at, &["a", "b"]);
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Offset(7));
    let mut batch = RecordBatch::default();
    let error = support::wait_for("an error", LIMIT, || reader.poll(&mut batch, 1_000, SHORT).err());
    let Error::OutOfRange {
        at: named,
        offset: 7,
        start: 0,
        end: 2,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(named, at);
    reader.assign(&[(at.clone(), StartFrom::Offset(2))]).unwrap();
    harness.append(&at, &["c"]);
    assert_eq!(harness.take(&mut *reader, 1), seen(&[(2, "c")]));
}

fn out_of_range(harness: &Harness, at: &TopicPartition, offset: i64) {
    let mut reader = harness.reader(Isolation::ReadCommitted, at, StartFrom::Offset(offset));
    let mut batch = RecordBatch::default();
    let error = support::wait_for("an error", LIMIT, || reader.poll(&mut batch, 1_000, SHORT).err());
    assert!(matches!(error, Error::OutOfRange { .. }), "{error:?}");
}

/// Records older than `retention.ms` are deleted: the earliest offset increases, and offsets below it are out of range.
pub fn retention_by_time_moves_the_start(harness: &Harness) {
    let topic = harness.topic_with(1, |config| config.retention_ms = Some(3_600_000));
    let at = TopicPartition::new(topic, 0);
    let mut out = OutBatch::default();
    for text in ["old", "older"] {
        out.push(
            OutRecord {
                timestamp: Some(now() - 86_400_000),
                ..record(&at, text)
            },
            [],
        );
    }
    harness.log.append(&out).unwrap();
    support::wait_for("the start to move", LIMIT, || {
        (harness.offset(&at, OffsetSpec::Earliest) == 2).then_some(())
    });
    out_of_range(harness, &at, 0);
    assert_eq!(harness.append(&at, &["new"]).first_offset, 2);
    assert_eq!(harness.all(Isolation::ReadCommitted, &at), seen(&[(2, "new")]));
}

/// Records beyond `retention.bytes` are deleted from the start, without gaps.
pub fn retention_by_size_moves_the_start(harness: &Harness) {
    let topic = harness.topic_with(1, |config| {
        config.retention_bytes = Some(1_500_000);
        config.other.insert("segment.bytes".into(), "1048576".into());
    });
    let at = TopicPartition::new(topic, 0);
    let text = "x".repeat(10_000);
    for _ in 0..50 {
        harness.append(&at, &[text.as_str(); 10]);
    }
    let start = support::wait_for("the start to move", LIMIT, || {
        let start = harness.offset(&at, OffsetSpec::Earliest);
        (start >= 200).then_some(start)
    });
    assert!(start <= 350, "1.5 MB are kept, not only {} records", 500 - start);
    out_of_range(harness, &at, 0);
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    let read = harness.take(&mut *reader, usize::try_from(500 - start).unwrap());
    assert!(read.iter().map(|(offset, _)| *offset).eq(start..500));
}

/// Offsets that are set from outside a group without members are kept, and a member finds them.
pub fn offsets_set_from_outside_are_kept(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let [a, b] = [0, 1].map(|p| TopicPartition::new(topic.clone(), p));
    harness.append(&a, &["a", "b", "c"]);
    let both = [a.clone(), b.clone()];
    let none: BTreeMap<_, _> = both.iter().map(|at| (at.clone(), None)).collect();
    assert_eq!(harness.log.committed(&group, &both).unwrap(), none);
    harness.log.set_committed(&group, &[(a.clone(), 1)]).unwrap();
    harness.log.set_committed(&group, &[(a.clone(), 2)]).unwrap();
    let committed = harness.log.committed(&group, &both).unwrap();
    assert_eq!(committed, BTreeMap::from([(a.clone(), Some(2)), (b.clone(), None)]));

    let mut consumer = harness.join(&group, &[&topic]);
    assert_eq!(assigned(&mut *consumer), both);
    assert_eq!(harness.committed_offset(&group, &a), Some(2));
    consumer.start(&a, 2).unwrap();
    assert_eq!(super::harness::records(&mut *consumer, 1), seen(&[(2, "c")]));
    // The offset of a partition that the member has not started can still be set.
    harness.log.set_committed(&group, &[(b.clone(), 0)]).unwrap();
    assert_eq!(harness.committed_offset(&group, &b), Some(0));
    consumer.close().unwrap();
}

/// Groups are listed with state, members' partitions and committed offsets, which remain after the members have left.
pub fn groups_are_listed_with_state_and_offsets(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let at = TopicPartition::new(topic.clone(), 1);
    let find = || {
        harness
            .log
            .groups()
            .unwrap()
            .into_iter()
            .find(|info| info.group == group)
    };
    assert!(find().is_none());
    let (mut consumer, member) = harness.group_metadata(&group, &topic);
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    committed(producer.commit(Some((&member, &[(at.clone(), 5)]))));
    consumer.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap();
    let info = support::wait_for("the stable group with its offset", LIMIT, || {
        find().filter(|info| info.state == "Stable" && info.committed.contains_key(&at))
    });
    assert_eq!(info.committed, BTreeMap::from([(at.clone(), 5)]));
    assert_eq!(info.members.len(), 1);
    let mut partitions = info.members[0].partitions.clone();
    partitions.sort();
    assert_eq!(partitions, [TopicPartition::new(topic.clone(), 0), at.clone()]);
    assert!(!info.members[0].name.is_empty());

    consumer.close().unwrap();
    let info = support::wait_for("the group without members", LIMIT, || {
        find().filter(|info| info.members.is_empty())
    });
    assert_eq!(
        (info.state.as_str(), info.committed),
        ("Empty", BTreeMap::from([(at, 5)]))
    );
}
