//! Records: the records that are read must be equal to those that were written, in the same order, for all limits.

use super::harness::{Harness, LIMIT, SHORT, batch, now, record, seen, texts, values};
use crate::support;
use event_log::{
    Error, Isolation, Millis, Offset, OffsetSpec, OutBatch, OutRecord, RecordBatch, StartFrom, TimestampPolicy,
    TimestampType, TopicPartition, partitioner,
};
use std::time::{Duration, Instant};

/// A record's offset, timestamp, key and value.
type Read = (Offset, Millis, Option<Vec<u8>>, Option<Vec<u8>>);

/// A record's headers.
type Headers = Vec<(String, Option<Vec<u8>>)>;

/// Null and empty keys and values, duplicate header names, null and binary header values, and timestamps of the producer
/// are preserved.
pub fn records_are_read_as_written(harness: &Harness) {
    let at = harness.partition();
    let binary = [0_u8, 0xff, 0x80, b'\n'];
    let before = now();
    let mut out = OutBatch::default();
    let record = |timestamp, key, value| OutRecord {
        topic: &at.topic,
        partition: Some(0),
        timestamp,
        key,
        value,
    };
    out.push(
        record(Some(before - 5), Some(&binary[..]), Some(&b"row"[..])),
        [
            ("tx", Some(&b"1"[..])),
            ("tx", None),
            ("tx", Some(&binary[..])),
            ("empty", Some(&b""[..])),
        ],
    );
    out.push(
        record(Some(before - 9), Some(b"gone"), None),
        [("table", Some(&b"t"[..]))],
    );
    out.push(record(Some(before), None, Some(b"")), []);
    out.push(record(None, Some(b""), Some(b"now")), []);
    harness.log.append(&out).unwrap();
    let after = now();

    let (read, headers) = four_records(harness, &at);
    let stamped = read[3].1;
    assert!((before..=after).contains(&stamped), "{before} {stamped} {after}");
    let some = |bytes: &[u8]| Some(bytes.to_vec());
    assert_eq!(
        read,
        [
            (0, before - 5, some(&binary), some(b"row")),
            (1, before - 9, some(b"gone"), None),
            (2, before, None, some(b"")),
            (3, stamped, some(b""), some(b"now")),
        ]
    );
    let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), own(value));
    assert_eq!(
        headers,
        [
            vec![
                header("tx", Some(b"1")),
                header("tx", None),
                header("tx", Some(&binary)),
                header("empty", Some(b""))
            ],
            vec![header("table", Some(b"t"))],
            vec![],
            vec![],
        ]
    );
}

/// Reads the four records of a partition, with the headers of each.
fn four_records(harness: &Harness, at: &TopicPartition) -> (Vec<Read>, Vec<Headers>) {
    let mut reader = harness.reader(Isolation::ReadCommitted, at, StartFrom::Earliest);
    let mut batch = RecordBatch::default();
    let (mut read, mut headers) = (Vec::new(), Vec::new());
    support::wait_for("four records", LIMIT, || {
        reader.poll(&mut batch, 1 << 20, SHORT).unwrap();
        for r in batch.iter() {
            assert_eq!((r.partition(), r.timestamp_type()), (at, TimestampType::Create));
            read.push((r.offset(), r.timestamp(), own(r.key()), own(r.value())));
            headers.push(
                r.headers()
                    .iter()
                    .map(|(name, value)| (name.to_owned(), own(value)))
                    .collect(),
            );
        }
        (read.len() >= 4).then_some(())
    });
    (read, headers)
}

fn own(bytes: Option<&[u8]>) -> Option<Vec<u8>> {
    bytes.map(<[u8]>::to_vec)
}

/// With `LogAppendTime` the broker's time replaces the producer's timestamps, and the append returns it.
pub fn log_append_time_replaces_timestamps(harness: &Harness) {
    let topic = harness.topic_with(1, |config| config.timestamps = TimestampPolicy::LogAppendTime);
    let at = TopicPartition::new(topic, 0);
    let mut out = OutBatch::default();
    out.push(
        OutRecord {
            timestamp: Some(1_000),
            ..record(&at, "a")
        },
        [],
    );
    out.push(
        OutRecord {
            timestamp: None,
            ..record(&at, "b")
        },
        [],
    );
    // Kafka's broker runs on this machine, so both clocks agree.
    let before = now();
    let produced = harness.log.append(&out).unwrap();
    let after = now();
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    let (mut batch, mut stamps) = (RecordBatch::default(), Vec::new());
    support::wait_for("two records", LIMIT, || {
        reader.poll(&mut batch, 1 << 20, SHORT).unwrap();
        stamps.extend(batch.iter().map(|r| (r.timestamp(), r.timestamp_type())));
        (stamps.len() >= 2).then_some(())
    });
    for (stamp, kind) in &stamps {
        assert_eq!(*kind, TimestampType::LogAppend);
        assert!((before..=after).contains(stamp), "{before} {stamp} {after}");
    }
    assert_eq!(produced[0].timestamp, stamps[1].0);
}

/// Batches and records of one writer keep their order in each partition.
pub fn partition_keeps_record_order(harness: &Harness) {
    let topic = harness.topic(3);
    let parts: Vec<TopicPartition> = (0..3).map(|p| TopicPartition::new(topic.clone(), p)).collect();
    let mut producer = harness.any_producer();
    let numbers: Vec<String> = (0..900).map(|n| n.to_string()).collect();
    for chunk in numbers.chunks(90) {
        producer.begin().unwrap();
        for half in chunk.chunks(45) {
            let mut out = OutBatch::default();
            for (n, text) in half.iter().enumerate() {
                out.push(record(&parts[n % 3], text), []);
            }
            producer.send(&out).unwrap();
        }
        super::harness::committed(producer.commit(None));
    }
    let mut total = 0;
    for at in &parts {
        let read = harness.committed(at);
        assert!(read.is_sorted_by_key(|(offset, _)| *offset));
        assert!(read.is_sorted_by_key(|(_, text)| text.parse::<u32>().unwrap()));
        total += read.len();
    }
    assert_eq!(total, numbers.len());
}

/// Without a partition, a record is written to the partition to which the Java client would send its key; a record
/// without a key can be written to any partition.
pub fn keys_select_partitions_like_java_client(harness: &Harness) {
    let topic = harness.topic(7);
    let keys: Vec<String> = (0..200).map(|n| format!("[\"user:{n}\"]")).collect();
    let mut out = OutBatch::default();
    let plain = OutRecord {
        topic: &topic,
        partition: None,
        timestamp: None,
        key: None,
        value: None,
    };
    for key in &keys {
        out.push(
            OutRecord {
                key: Some(key.as_bytes()),
                value: Some(key.as_bytes()),
                ..plain
            },
            [],
        );
    }
    out.push(
        OutRecord {
            key: Some(b""),
            value: Some(b""),
            ..plain
        },
        [],
    );
    let keyless = 50;
    for _ in 0..keyless {
        out.push(
            OutRecord {
                value: Some(b"keyless"),
                ..plain
            },
            [],
        );
    }
    harness.log.append(&out).unwrap();
    let mut count = 0;
    for partition in 0..7 {
        let at = TopicPartition::new(topic.clone(), partition);
        let read = harness.all(Isolation::ReadCommitted, &at);
        for text in texts(&read).into_iter().filter(|text| *text != "keyless") {
            assert_eq!(partitioner::partition(text.as_bytes(), 7), partition, "key {text}");
        }
        count += read.len();
    }
    assert_eq!(count, keys.len() + 1 + keyless);
}

/// An append is durable when it returns, and returns each partition's first and next offset.
pub fn append_returns_offsets(harness: &Harness) {
    let topic = harness.topic(2);
    let [a, b] = [0, 1].map(|p| TopicPartition::new(topic.clone(), p));
    harness.append(&b, &["before"]);
    let mut out = OutBatch::default();
    for (at, text) in [(&a, "1"), (&b, "2"), (&b, "3"), (&a, "4"), (&a, "5")] {
        out.push(
            OutRecord {
                timestamp: Some(now()),
                ..record(at, text)
            },
            [],
        );
    }
    let mut produced = harness.log.append(&out).unwrap();
    produced.sort_by_key(|p| p.at.clone());
    let places: Vec<_> = produced
        .iter()
        .map(|p| (p.at.partition, p.first_offset, p.next_offset))
        .collect();
    assert_eq!(places, [(0, 0, 3), (1, 1, 3)]);
    assert_eq!(
        harness.all(Isolation::ReadCommitted, &a),
        seen(&[(0, "1"), (1, "4"), (2, "5")])
    );
    assert_eq!(
        harness.all(Isolation::ReadCommitted, &b),
        seen(&[(0, "before"), (1, "2"), (2, "3")])
    );
    assert!(
        harness.log.append(&OutBatch::default()).unwrap().is_empty(),
        "nothing in, nothing out"
    );
}

/// Batches that are appended together have separate results: the offsets of their records, or their error.
pub fn batches_appended_together_have_their_own_results(harness: &Harness) {
    let topic = harness.topic_with(1, |config| config.max_message_bytes = Some(5_000));
    let at = TopicPartition::new(topic.clone(), 0);
    let large = "x".repeat(6_000);
    let texts: [&[&str]; 5] = [&["1", "2"], &[], &["3"], &[&large], &["4"]];
    let results = harness.log.append_each(&texts.map(|texts| batch(&at, texts)));
    let ranges: Vec<Option<Vec<(i64, i64)>>> = results
        .iter()
        .map(|result| {
            let produced = result.as_ref().ok()?;
            Some(produced.iter().map(|p| (p.first_offset, p.next_offset)).collect())
        })
        .collect();
    let expected = [
        Some(vec![(0, 2)]),
        Some(vec![]),
        Some(vec![(2, 3)]),
        None,
        Some(vec![(3, 4)]),
    ];
    assert_eq!(ranges, expected);
    assert!(
        matches!(results[3], Err(Error::TooLarge { limit: 5_000, .. })),
        "{results:?}"
    );
    assert_eq!(
        harness.all(Isolation::ReadCommitted, &at),
        seen(&[(0, "1"), (1, "2"), (2, "3"), (3, "4")])
    );
}

/// A batch larger than the client's queue waits for space and is written completely.
pub fn batch_larger_than_queue_is_written(harness: &Harness) {
    let at = harness.partition();
    let (count, text) = (600_000, "x".repeat(150));
    let mut out = OutBatch::default();
    for _ in 0..count {
        out.push(record(&at, &text), []);
    }
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&out).unwrap();
    let produced = super::harness::committed(producer.commit(None));
    assert_eq!((produced[0].first_offset, produced[0].next_offset), (0, count));
    harness.wait_no_open_transaction(&at);
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    let (mut batch, mut next) = (RecordBatch::default(), 0);
    support::wait_for("all records", LIMIT, || {
        reader.poll(&mut batch, 4 << 20, SHORT).unwrap();
        for r in batch.iter() {
            assert_eq!(r.offset(), next);
            next += 1;
        }
        (next == count).then_some(())
    });
}

/// A record above its topic's limit is rejected with the topic and both sizes, and its batch is not written.
pub fn record_over_topic_limit_is_rejected(harness: &Harness) {
    let topic = harness.topic_with(1, |config| config.max_message_bytes = Some(5_000));
    let at = TopicPartition::new(topic.clone(), 0);
    harness.append(&at, &[&"x".repeat(4_500)]);
    let rejected = harness.log.append(&batch(&at, &[&"x".repeat(6_000)]));
    let Err(Error::TooLarge {
        topic: named,
        bytes,
        limit,
    }) = rejected
    else {
        panic!("not rejected: {rejected:?}");
    };
    assert_eq!((named.as_str(), limit), (&*topic, 5_000));
    assert!(bytes >= 6_000, "{bytes}");
    assert_eq!(harness.append(&at, &["small"]).first_offset, 1);
}

/// The byte limit of a poll affects only how much the poll returns: at least one record, and each record exactly once.
pub fn small_polls_return_every_record_once(harness: &Harness) {
    let at = harness.partition();
    let texts: Vec<String> = (0..300).map(|n| format!("{n}{}", "x".repeat(n))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    // Control records and aborted records are in between, so that a poll may end at one of them.
    let mut producer = harness.any_producer();
    for (n, chunk) in texts.chunks(20).enumerate() {
        if n % 3 == 0 {
            harness.append(&at, chunk);
            continue;
        }
        harness.transact(&mut *producer, &at, chunk);
        producer.begin().unwrap();
        producer.send(&super::harness::batch(&at, &["never", "ever"])).unwrap();
        producer.abort().unwrap();
    }
    harness.wait_no_open_transaction(&at);
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    let (mut batch, mut read, mut polls) = (RecordBatch::default(), Vec::new(), 0);
    support::wait_for("all records", LIMIT, || {
        let count = reader.poll(&mut batch, 1_000, SHORT).unwrap();
        assert_eq!(count, batch.len());
        polls += u32::from(count > 0);
        read.extend(values(&batch));
        (read.len() >= texts.len()).then_some(())
    });
    assert_eq!(super::harness::texts(&read), texts);
    assert!(
        polls > 10,
        "a limit of 1,000 bytes was stretched to everything: {polls} polls"
    );
}

/// A waiting poll returns when a record is written, long before its timeout.
pub fn append_wakes_blocked_poll(harness: &Harness) {
    let at = harness.partition();
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    let mut batch = RecordBatch::default();
    assert_eq!(reader.poll(&mut batch, 1_000, SHORT).unwrap(), 0);
    assert_eq!(harness.offset(&at, OffsetSpec::LogEnd), 0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let poll = scope.spawn(|| reader.poll(&mut batch, 1_000, LIMIT).unwrap());
        harness.append(&at, &["wake up"]);
        assert_eq!(poll.join().unwrap(), 1);
    });
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "woken only by its time limit"
    );
}

/// Records of a producer without transactions are durable after its flush, in the order of each partition, and the flush
/// returns their offsets. A record that is too large is rejected without affecting earlier ones.
pub fn producer_flush_returns_offsets(harness: &Harness) {
    let topic = harness.topic_with(2, |config| config.max_message_bytes = Some(20_000));
    let [a, b] = [0, 1].map(|p| TopicPartition::new(topic.clone(), p));
    let mut producer = harness.log.producer().unwrap();
    assert_eq!(producer.flush().unwrap(), [], "nothing was sent");
    producer.send(&batch(&a, &["1", "2"])).unwrap();
    producer.send(&batch(&b, &["3"])).unwrap();
    producer.send(&batch(&a, &["4"])).unwrap();
    let produced = producer.flush().unwrap();
    let places = |at: &TopicPartition, first: i64, next: i64| {
        let here = produced.iter().find(|here| here.at == *at).expect("it was written to");
        assert_eq!((here.first_offset, here.next_offset), (first, next), "{at}");
    };
    places(&a, 0, 3);
    places(&b, 0, 1);
    assert_eq!(
        harness.offset(&a, OffsetSpec::LastStable),
        3,
        "there is no transaction to wait for"
    );
    producer.send(&batch(&a, &["5"])).unwrap();
    let error = producer.send(&batch(&a, &["x".repeat(30_000).as_str()]));
    assert!(matches!(error, Err(Error::TooLarge { .. })), "{error:?}");
    let [here] = &producer.flush().unwrap()[..] else {
        panic!("one partition was written to");
    };
    assert_eq!((here.first_offset, here.next_offset), (3, 4));
    assert_eq!(texts(&harness.committed(&a)), ["1", "2", "4", "5"]);
}
