//! Partitions that a member of a group cannot read: damaged batches, and topics to which access is denied.

use super::{LIMIT, SHORT, connect, line, one};
use crate::support::{self, Broker, Listener};
use event_log::{
    Error, Event, GroupConfig, GroupConsumer, GroupProtocol, Offset, RecordBatch, SharedEventLog, TopicPartition,
};
use std::fs;
use std::time::Duration;

/// A member to which these partitions are assigned.
fn join(log: &SharedEventLog, partitions: &[&TopicPartition]) -> Box<dyn GroupConsumer> {
    let config = GroupConfig {
        group: support::unique("group"),
        instance: None,
        topics: partitions.iter().map(|at| at.topic.clone()).collect(),
        session_timeout: Duration::from_secs(10),
        protocol: GroupProtocol::Classic,
    };
    let mut consumer = support::wait_for("the member", LIMIT, || log.group(config.clone()).ok());
    let mut batch = RecordBatch::default();
    support::wait_for("the assignment", LIMIT, || {
        let event = consumer.poll(&mut batch, 1 << 20, SHORT).ok()?;
        matches!(event, Event::Assigned(assigned) if assigned.len() == partitions.len()).then_some(())
    });
    consumer
}

/// Polls until an error arrives. Returns it, and the partitions and offsets of the records before it.
fn read_to_error(consumer: &mut dyn GroupConsumer) -> (Error, Vec<(TopicPartition, Offset)>) {
    let (mut batch, mut seen) = (RecordBatch::default(), Vec::new());
    let error = support::wait_for("an error", LIMIT, || match consumer.poll(&mut batch, 1 << 20, SHORT) {
        Ok(_) => {
            seen.extend(batch.iter().map(|record| (record.partition().clone(), record.offset())));
            None
        }
        Err(error) => Some(error),
    });
    (error, seen)
}

/// Polls for a while and returns the partitions and offsets of the records.
fn read(consumer: &mut dyn GroupConsumer, polls: u32) -> Vec<(TopicPartition, Offset)> {
    let (mut batch, mut seen) = (RecordBatch::default(), Vec::new());
    for _ in 0..polls {
        consumer.poll(&mut batch, 1 << 20, SHORT).expect("poll");
        seen.extend(batch.iter().map(|record| (record.partition().clone(), record.offset())));
    }
    seen
}

/// librdkafka reports a damaged batch and continues after it. A member must not: its group would commit an offset beyond
/// records that were never processed.
#[test]
fn damaged_batch_is_not_skipped() {
    let mut broker = Broker::start();
    let log = connect(&broker);
    let at = line(&log);
    for value in ["first", "damaged", "third"] {
        log.append(&one(&at, value)).expect("append");
    }
    broker.stop();
    let segment = broker
        .data()
        .join(format!("{}-0", at.topic))
        .join("00000000000000000000.log");
    let mut bytes = fs::read(&segment).expect("read the segment");
    let value = bytes
        .windows(7)
        .position(|part| part == b"damaged")
        .expect("the value is in the segment");
    *bytes.get_mut(value).expect("a byte") ^= 1;
    fs::write(&segment, bytes).expect("write the segment");
    broker.restart();

    let log = connect(&broker);
    let mut consumer = join(&log, &[&at]);
    consumer.start(&at, 0).expect("start");
    let (error, seen) = read_to_error(&mut *consumer);
    assert_eq!(seen, [(at.clone(), 0)]);
    let Error::Unreadable {
        at: named,
        offset: 1,
        cause,
    } = &error
    else {
        panic!("{error:?}")
    };
    assert!(*named == at && matches!(**cause, Error::Corrupt { .. }), "{error:?}");
    assert_eq!(read(&mut *consumer, 25), [], "nothing is read until the next start");
    consumer.start(&at, 2).expect("start");
    support::wait_for("the record after the damage", LIMIT, || {
        (read(&mut *consumer, 1) == [(at.clone(), 2)]).then_some(())
    });
    consumer.close().expect("close");
}

/// Access that is denied affects one topic, and is restored when it is granted again.
#[test]
fn denied_topic_leaves_others_alone() {
    let authorizer = [
        (
            "authorizer.class.name",
            "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        ),
        ("allow.everyone.if.no.acl.found", "true"),
    ];
    let broker = Broker::start_with(&Listener::Plain, &authorizer);
    let log = connect(&broker);
    let (denied, allowed) = (line(&log), line(&log));
    let mut consumer = join(&log, &[&denied, &allowed]);
    for at in [&denied, &allowed] {
        consumer.start(at, 0).expect("start");
    }
    support::deny_reads(&broker.bootstrap(), &denied.topic, true);
    let (error, _) = read_to_error(&mut *consumer);
    let scope = error.scope().expect("the error is that of a topic or partition");
    assert!(scope.contains(&denied) && !scope.contains(&allowed), "{error:?}");
    let text = service::chain(&error);
    assert!(
        text.contains("was denied") && text.contains("grant the required ACL"),
        "{text}"
    );
    log.append(&one(&allowed, "0")).expect("append");
    assert_eq!(read(&mut *consumer, 50), [(allowed.clone(), 0)]);
    support::deny_reads(&broker.bootstrap(), &denied.topic, false);
    // A topic with any ACL is closed to all other operations.
    support::wait_for("the topic to be writable", LIMIT, || {
        log.append(&one(&denied, "0")).ok()
    });
    consumer.start(&denied, 0).expect("start");
    support::wait_for("the record of the other topic", LIMIT, || {
        (read(&mut *consumer, 1) == [(denied.clone(), 0)]).then_some(())
    });
    consumer.close().expect("close");
}
