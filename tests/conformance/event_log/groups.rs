//! A group member: order of events, and the positions at which it starts to read.

use super::harness::{Harness, LIMIT, SHORT, assigned, batch, committed, event, records, seen, texts, values};
use crate::support;
use event_log::{Error, Event, GroupConsumer, Offset, OffsetSpec, RecordBatch, TopicPartition};
use std::time::{Duration, Instant};

/// The first event is the assignment of all partitions of all topics. A partition returns nothing before it is started.
pub fn assignment_precedes_records(harness: &Harness) {
    let (one, two, group) = (harness.topic(2), harness.topic(1), support::unique("group"));
    let mut all = vec![
        TopicPartition::new(one.clone(), 0),
        TopicPartition::new(one.clone(), 1),
        TopicPartition::new(two.clone(), 0),
    ];
    all.sort();
    for at in &all {
        harness.append(at, &["x"]);
    }
    let mut consumer = harness.join(&group, &[&one, &two]);
    assert_eq!(assigned(&mut *consumer), all);
    let mut batch = RecordBatch::default();
    for _ in 0..5 {
        assert_eq!(consumer.poll(&mut batch, 1_000, SHORT).unwrap(), Event::Idle);
        assert!(batch.is_empty());
    }
    consumer.start(&all[1], 0).unwrap();
    assert_eq!(event(&mut *consumer, &mut batch), Event::Records);
    assert_eq!(batch.partitions(), &all[1..2]);
    assert_eq!(consumer.poll(&mut batch, 1_000, SHORT).unwrap(), Event::Idle);
    let member = consumer.group_metadata().unwrap();
    assert_eq!(member.group, group);
    let stranger = TopicPartition::new(harness.topic(1), 0);
    assert!(
        consumer.start(&stranger, 0).is_err(),
        "a partition that is not assigned cannot be started"
    );
    consumer.close().unwrap();
}

/// `start` sets the position; it can be called again later.
pub fn member_reads_from_start_offset(harness: &Harness) {
    let at = harness.partition();
    harness.append(&at, &["a", "b", "c", "d"]);
    let mut consumer = harness.join(&support::unique("group"), &[&at.topic]);
    assigned(&mut *consumer);
    consumer.start(&at, 2).unwrap();
    assert_eq!(records(&mut *consumer, 2), seen(&[(2, "c"), (3, "d")]));
    consumer.start(&at, 1).unwrap();
    assert_eq!(records(&mut *consumer, 3), seen(&[(1, "b"), (2, "c"), (3, "d")]));
    harness.append(&at, &["e"]);
    assert_eq!(records(&mut *consumer, 1), seen(&[(4, "e")]));
    consumer.close().unwrap();
}

/// A paused partition returns nothing, even if records were fetched before. After the resume it continues after the
/// last record returned. Reading of other partitions is not affected.
pub fn resumed_partition_continues_after_last_record(harness: &Harness) {
    let topic = harness.topic(2);
    let [a, b] = [0, 1].map(|p| TopicPartition::new(topic.clone(), p));
    let texts_of_a: Vec<String> = (0..50).map(|n| format!("{n} {}", "x".repeat(100))).collect();
    harness.append(&a, &texts_of_a.iter().map(String::as_str).collect::<Vec<_>>());
    let mut consumer = harness.join(&support::unique("group"), &[&topic]);
    assigned(&mut *consumer);
    consumer.start(&a, 0).unwrap();
    consumer.start(&b, 0).unwrap();
    let mut read = Vec::new();
    let mut batch_read = RecordBatch::default();
    while read.is_empty() {
        if consumer.poll(&mut batch_read, 500, SHORT).unwrap() == Event::Records {
            read.extend(values(&batch_read));
        }
    }
    consumer.pause(std::slice::from_ref(&a)).unwrap();
    harness.append(&a, &["last"]);
    harness.append(&b, &["beside"]);
    assert_eq!(records(&mut *consumer, 1), seen(&[(0, "beside")]));
    for _ in 0..5 {
        assert_eq!(consumer.poll(&mut batch_read, 1_000, SHORT).unwrap(), Event::Idle);
    }
    consumer.resume(std::slice::from_ref(&a)).unwrap();
    while read.len() < 51 {
        read.extend(records(&mut *consumer, 1));
    }
    assert!(read.iter().map(|(offset, _)| *offset).eq(0..51));
    assert_eq!(read[50].1, "last");
    consumer.close().unwrap();
}

/// Members read committed records only.
pub fn group_reads_committed_records_only(harness: &Harness) {
    let at = harness.partition();
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&at, &["no"])).unwrap();
    support::wait_for("the record", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) == 1).then_some(())
    });
    producer.abort().unwrap();
    harness.wait_no_open_transaction(&at);
    producer.begin().unwrap();
    producer.send(&batch(&at, &["yes"])).unwrap();
    let mut consumer = harness.join(&support::unique("group"), &[&at.topic]);
    assigned(&mut *consumer);
    consumer.start(&at, 0).unwrap();
    for _ in 0..5 {
        assert_eq!(
            consumer.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap(),
            Event::Idle
        );
    }
    committed(producer.commit(None));
    assert_eq!(texts(&records(&mut *consumer, 1)), ["yes"]);
    consumer.close().unwrap();
}

/// There is no automatic reset: if the start offset is not in the log, `poll` returns an error.
pub fn start_outside_partition_is_out_of_range(harness: &Harness) {
    let at = harness.partition();
    harness.append(&at, &["a"]);
    let mut consumer = harness.join(&support::unique("group"), &[&at.topic]);
    assigned(&mut *consumer);
    consumer.start(&at, 9).unwrap();
    let mut batch = RecordBatch::default();
    let error = support::wait_for("an error", LIMIT, || consumer.poll(&mut batch, 1_000, SHORT).err());
    let Error::OutOfRange { offset: 9, .. } = error else {
        panic!("{error:?}");
    };
    consumer.start(&at, 0).unwrap();
    assert_eq!(records(&mut *consumer, 1), seen(&[(0, "a")]));
    consumer.close().unwrap();
}

/// If one partition is out of range and then gets another position, no records of other partitions are lost or
/// repeated. Paused and unstarted partitions remain in that state.
pub fn out_of_range_partition_leaves_others_alone(harness: &Harness) {
    let topic = harness.topic(4);
    let [lost, read, paused, still] = [0, 1, 2, 3].map(|p| TopicPartition::new(topic.clone(), p));
    for at in [&lost, &read, &paused, &still] {
        harness.append(at, &["a", "b"]);
    }
    let mut consumer = harness.join(&support::unique("group"), &[&topic]);
    assigned(&mut *consumer);
    consumer.start(&read, 0).unwrap();
    assert_eq!(records(&mut *consumer, 2), seen(&[(0, "a"), (1, "b")]));
    consumer.pause(std::slice::from_ref(&paused)).unwrap();
    consumer.start(&paused, 1).unwrap();
    consumer.start(&lost, 9).unwrap();
    let mut batch = RecordBatch::default();
    let error = support::wait_for("an error", LIMIT, || consumer.poll(&mut batch, 1_000, SHORT).err());
    assert!(matches!(error, Error::OutOfRange { .. }), "{error:?}");

    harness.append(&read, &["c"]);
    consumer.start(&lost, 1).unwrap();
    let mut found = Vec::new();
    support::wait_for("records of both partitions", LIMIT, || {
        if consumer.poll(&mut batch, 1_000, SHORT).unwrap() == Event::Records {
            found.extend(batch.iter().map(|r| (r.partition().partition, r.offset())));
        }
        (found.len() >= 2).then_some(())
    });
    found.sort_unstable();
    assert_eq!(found, [(0, 1), (1, 2)]);
    consumer.resume(std::slice::from_ref(&paused)).unwrap();
    assert_eq!(records(&mut *consumer, 1), seen(&[(1, "b")]));
    assert_eq!(
        consumer.poll(&mut batch, 1_000, SHORT).unwrap(),
        Event::Idle,
        "one was never started"
    );
    consumer.close().unwrap();
}

/// Polls until an error of a partition or topic arrives, which must affect this partition. Returns it with the records that
/// arrived before it.
fn unreadable(consumer: &mut dyn GroupConsumer, at: &TopicPartition, limit: Duration) -> (Error, Vec<Offset>) {
    let (mut batch, mut before) = (RecordBatch::default(), Vec::new());
    let error = support::wait_for("an error", limit, || match consumer.poll(&mut batch, 1_000, SHORT) {
        Ok(_) => {
            before.extend(batch.iter().map(|record| record.offset()));
            None
        }
        Err(error) => Some(error),
    });
    let scope = error.scope().expect("the error is that of a partition or topic");
    assert!(scope.contains(at), "{error:?}");
    (error, before)
}

/// The error of a partition is returned once, although other partitions have records. Then the partition is not read, and
/// its offset may be set from outside, until it is started again.
pub fn unreadable_partition_is_reported_once(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let [lost, read] = [0, 1].map(|p| TopicPartition::new(topic.clone(), p));
    harness.append(&lost, &["a", "b"]);
    let mut consumer = harness.join(&group, &[&topic]);
    assigned(&mut *consumer);
    consumer.start(&read, 0).unwrap();
    for round in 0..2 {
        harness.append(&read, &["x", "y", "z"]);
        consumer.start(&lost, 9).unwrap();
        let (error, before) = unreadable(&mut *consumer, &lost, LIMIT);
        assert!(
            matches!(error, Error::OutOfRange { offset: 9, .. }),
            "round {round}: {error:?}"
        );
        let missing = 3 - before.len();
        if missing > 0 {
            assert_eq!(records(&mut *consumer, missing).len(), missing);
        }
        let (began, mut polls) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_millis(500) {
            let event = consumer.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap();
            assert_eq!(event, Event::Idle);
            polls += 1;
        }
        assert!(polls <= 40, "{polls} polls in half a second: poll does not wait");
        harness.append(&lost, &["c"]);
        assert_eq!(
            consumer.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap(),
            Event::Idle
        );
        harness.log.set_committed(&group, &[(lost.clone(), 1)]).unwrap();
    }
    consumer.start(&lost, 3).unwrap();
    assert_eq!(records(&mut *consumer, 1), seen(&[(3, "c")]));
    consumer.close().unwrap();
}

/// A paused partition returns no error. After the resume it does.
pub fn paused_partition_reports_no_error(harness: &Harness) {
    let at = harness.partition();
    harness.append(&at, &["a"]);
    let mut consumer = harness.join(&support::unique("group"), &[&at.topic]);
    assigned(&mut *consumer);
    consumer.pause(std::slice::from_ref(&at)).unwrap();
    consumer.start(&at, 9).unwrap();
    for _ in 0..10 {
        let event = consumer.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap();
        assert_eq!(event, Event::Idle);
    }
    consumer.resume(std::slice::from_ref(&at)).unwrap();
    let (error, _) = unreadable(&mut *consumer, &at, LIMIT);
    assert!(matches!(error, Error::OutOfRange { offset: 9, .. }), "{error:?}");
    consumer.start(&at, 0).unwrap();
    assert_eq!(records(&mut *consumer, 1), seen(&[(0, "a")]));
    consumer.close().unwrap();
}

/// A deleted topic is an error of that topic, returned once or for each of its partitions, or its partitions leave the
/// assignment: with KIP-848, the broker computes it. The member continues to read other topics.
pub fn deleted_topic_leaves_others_alone(harness: &Harness) {
    let (gone, kept) = (harness.partition(), harness.partition());
    let mut consumer = harness.join(&support::unique("group"), &[&gone.topic, &kept.topic]);
    assigned(&mut *consumer);
    for at in [&gone, &kept] {
        consumer.start(at, 0).unwrap();
        harness.append(at, &["a"]);
    }
    let (mut read, mut batch) = (Vec::new(), RecordBatch::default());
    support::wait_for("the first records", LIMIT, || {
        if consumer.poll(&mut batch, 1_000, SHORT).unwrap() == Event::Records {
            read.extend(batch.iter().map(|record| record.partition().clone()));
        }
        (read.len() == 2).then_some(())
    });
    harness.log.delete_topic(&gone.topic).unwrap();
    let (mut errors, mut found, mut appended, mut left) = (Vec::new(), 0, 0, false);
    // Kafka's client notices a deleted topic when it refreshes its metadata.
    support::wait_for("an error of the deleted topic", 4 * LIMIT, || {
        harness.append(&kept, &["b"]);
        appended += 1;
        match consumer.poll(&mut batch, 1_000, SHORT) {
            Ok(Event::Records) => found += batch.len(),
            Ok(Event::Assigned(partitions)) => {
                for at in partitions.iter().filter(|at| **at == kept) {
                    consumer.start(at, 1 + Offset::try_from(found).unwrap()).unwrap();
                }
            }
            Ok(Event::Revoked(partitions) | Event::Lost(partitions)) => left |= partitions.contains(&gone),
            Ok(Event::Idle) => {}
            Err(error) => errors.push(error),
        }
        (left || !errors.is_empty()).then_some(())
    });
    support::wait_for("the records of the other topic", LIMIT, || {
        match consumer.poll(&mut batch, 1_000, SHORT) {
            Ok(Event::Records) => found += batch.len(),
            Ok(Event::Assigned(partitions)) => {
                for at in partitions.iter().filter(|at| **at == kept) {
                    consumer.start(at, 1 + Offset::try_from(found).unwrap()).unwrap();
                }
            }
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
        (found == appended).then_some(())
    });
    assert!(errors.len() <= 3, "{errors:?}");
    for error in &errors {
        let scope = error.scope().expect("an error of the topic");
        assert!(scope.contains(&gone) && !scope.contains(&kept), "{error:?}");
    }
    consumer.close().unwrap();
}

/// A member that waits in a poll gets a record as soon as it is committed.
pub fn commit_wakes_blocked_member(harness: &Harness) {
    let at = harness.partition();
    let mut consumer = harness.join(&support::unique("group"), &[&at.topic]);
    assigned(&mut *consumer);
    consumer.start(&at, 0).unwrap();
    let mut batch_read = RecordBatch::default();
    assert_eq!(consumer.poll(&mut batch_read, 1_000, SHORT).unwrap(), Event::Idle);
    let mut producer = harness.any_producer();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let poll = scope.spawn(|| consumer.poll(&mut batch_read, 1_000, LIMIT).unwrap());
        harness.transact(&mut *producer, &at, &["a"]);
        assert_eq!(poll.join().unwrap(), Event::Records);
    });
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "woken only by its time limit"
    );
    assert_eq!(values(&batch_read), seen(&[(0, "a")]));
    consumer.close().unwrap();
}
