//! Transactional producers: fencing, timeouts, and continuing after failures.

use super::harness::{Harness, LIMIT, batch, committed, fenced, texts};
use crate::support;
use event_log::{
    Error, Isolation, OffsetSpec, OutBatch, Outcome, TopicPartition, TransactionalProducer, TransactionalProducerConfig,
};
use std::time::Duration;

/// Sends and commits with a producer that may be fenced. Returns the error of a failed call, or the outcome of the
/// commit.
fn goes_on(producer: &mut dyn TransactionalProducer, at: &TopicPartition) -> Outcome {
    let sent = producer.send(&batch(at, &["late"]));
    if let Err(error) = &sent {
        assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
    }
    producer.commit(None)
}

/// A second producer with the same id aborts the open transaction of the first producer and fences it. A commit of the
/// first producer then fails, and none of its records becomes visible.
pub fn second_producer_fences_first(harness: &Harness) {
    let (at, id) = (harness.partition(), support::unique("producer"));
    let mut first = harness.transactional_producer(&id);
    assert_eq!(first.transactional_id(), id);
    harness.transact(&mut *first, &at, &["first"]);
    first.begin().unwrap();
    first.send(&batch(&at, &["orphan"])).unwrap();
    support::wait_for("the orphan", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) == 3).then_some(())
    });
    let mut second = harness.transactional_producer(&id);
    assert_eq!(
        harness.wait_no_open_transaction(&at),
        4,
        "the orphan's transaction has ended"
    );
    fenced(&goes_on(&mut *first, &at));
    harness.transact(&mut *second, &at, &["second"]);
    assert_eq!(texts(&harness.committed(&at)), ["first", "second"]);
}

/// `begin` is a local operation: a producer that was fenced while it was idle gets the error when it sends records or
/// offsets. A transaction without records and offsets needs neither commit nor abort.
pub fn idle_fenced_producer_fails_on_send_or_commit(harness: &Harness) {
    let (at, id, group) = (
        harness.partition(),
        support::unique("producer"),
        support::unique("group"),
    );
    let mut first = harness.transactional_producer(&id);
    let mut second = harness.transactional_producer(&id);
    first.begin().unwrap();
    committed(first.commit(None));
    first.begin().unwrap();
    first.abort().unwrap();
    first.begin().unwrap();
    fenced(&goes_on(&mut *first, &at));
    harness.transact(&mut *second, &at, &["second"]);
    let mut third = harness.transactional_producer(&id);
    second.begin().unwrap();
    let (_consumer, member) = harness.group_metadata(&group, &at.topic);
    fenced(&second.commit(Some((&member, &[(at.clone(), 1)]))));
    assert_eq!(harness.committed_offset(&group, &at), None);
    harness.transact(&mut *third, &at, &["third"]);
    assert_eq!(texts(&harness.committed(&at)), ["second", "third"]);
}

/// After `init_transactions`, the fenced producer owns the id again, and the other producer is fenced.
pub fn fenced_producer_may_reinitialize(harness: &Harness) {
    let (at, id) = (harness.partition(), support::unique("producer"));
    let mut first = harness.transactional_producer(&id);
    first.begin().unwrap();
    first.send(&batch(&at, &["lost"])).unwrap();
    let mut second = harness.transactional_producer(&id);
    fenced(&goes_on(&mut *first, &at));
    second.begin().unwrap();
    second.send(&batch(&at, &["lost too"])).unwrap();
    first.init_transactions().unwrap();
    harness.transact(&mut *first, &at, &["kept"]);
    fenced(&goes_on(&mut *second, &at));
    assert_eq!(texts(&harness.committed(&at)), ["kept"]);
}

/// The open transaction of a crashed producer blocks readers only until the next producer with its id is opened.
pub fn opening_producer_ends_dead_transaction(harness: &Harness) {
    let (at, id) = (harness.partition(), support::unique("producer"));
    let mut dead = harness.transactional_producer(&id);
    dead.begin().unwrap();
    dead.send(&batch(&at, &["orphan"])).unwrap();
    support::wait_for("the orphan", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) == 1).then_some(())
    });
    drop(dead);
    let mut producer = harness.transactional_producer(&id);
    assert_eq!(harness.wait_no_open_transaction(&at), 2);
    harness.transact(&mut *producer, &at, &["heir"]);
    assert_eq!(texts(&harness.committed(&at)), ["heir"]);
}

/// A transaction that exceeds its timeout is aborted and its producer fenced, as in Kafka. `init_transactions` recovers.
pub fn timed_out_transaction_is_aborted(harness: &Harness) {
    let at = harness.partition();
    let config = TransactionalProducerConfig {
        transactional_id: support::unique("producer"),
        transaction_timeout: Duration::from_millis(1_000),
    };
    let mut slow = harness.log.transactional_producer(config).unwrap();
    slow.begin().unwrap();
    slow.send(&batch(&at, &["too late"])).unwrap();
    support::wait_for("the record", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) >= 1).then_some(())
    });
    harness.append(&at, &["plain"]);
    assert_eq!(harness.offset(&at, OffsetSpec::LastStable), 0);
    assert_eq!(texts(&harness.committed(&at)), ["plain"]);
    let outcome = slow.commit(None);
    assert!(matches!(outcome, Outcome::Aborted { .. }), "{outcome:?}");
    slow.init_transactions().unwrap();
    harness.transact(&mut *slow, &at, &["again"]);
    assert_eq!(texts(&harness.committed(&at)), ["plain", "again"]);
}

/// After an abort the next transaction can begin immediately. `init_transactions` is allowed at any time and aborts an
/// open transaction.
pub fn producer_continues_after_abort(harness: &Harness) {
    let at = harness.partition();
    let mut producer = harness.any_producer();
    producer.abort().unwrap();
    producer.begin().unwrap();
    producer.send(&batch(&at, &["no"])).unwrap();
    producer.abort().unwrap();
    harness.transact(&mut *producer, &at, &["one"]);
    producer.begin().unwrap();
    producer.send(&batch(&at, &["no"])).unwrap();
    producer.init_transactions().unwrap();
    harness.transact(&mut *producer, &at, &["two"]);
    producer.init_transactions().unwrap();
    harness.transact(&mut *producer, &at, &["three"]);
    assert_eq!(texts(&harness.committed(&at)), ["one", "two", "three"]);
}

/// A record that is too large causes the send to fail. The transaction cannot be committed; after an abort, the
/// producer can be used again.
pub fn rejected_record_forces_abort(harness: &Harness) {
    let topic = harness.topic_with(1, |config| config.max_message_bytes = Some(5_000));
    let at = TopicPartition::new(topic, 0);
    let large = "x".repeat(6_000);
    let mut producer = harness.any_producer();
    for commits in [false, true] {
        producer.begin().unwrap();
        producer.send(&batch(&at, &["small"])).unwrap();
        let rejected = producer.send(&batch(&at, &["small too", &large, "behind"]));
        assert!(matches!(rejected, Err(Error::TooLarge { .. })), "{rejected:?}");
        if commits {
            let outcome = producer.commit(None);
            assert!(matches!(outcome, Outcome::Aborted { fenced: false, .. }), "{outcome:?}");
            producer.init_transactions().unwrap();
        } else {
            producer.abort().unwrap();
        }
    }
    harness.transact(&mut *producer, &at, &["fine"]);
    assert_eq!(texts(&harness.committed(&at)), ["fine"]);
}

/// A record for an unknown topic causes its transaction to fail, either when it is sent or when it is committed.
pub fn unknown_topic_fails_transaction(harness: &Harness) {
    let (at, none) = (harness.partition(), TopicPartition::new(support::unique("none"), 0));
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&at, &["never"])).unwrap();
    match producer.send(&batch(&none, &["nowhere"])) {
        Err(Error::UnknownTopic { topic }) => {
            assert!(topic.starts_with(&*none.topic), "{topic}");
            producer.abort().unwrap();
        }
        Err(other) => panic!("{other:?}"),
        Ok(()) => {
            let outcome = producer.commit(None);
            assert!(matches!(outcome, Outcome::Aborted { fenced: false, .. }), "{outcome:?}");
        }
    }
    producer.init_transactions().unwrap();
    harness.transact(&mut *producer, &at, &["fine"]);
    assert_eq!(texts(&harness.committed(&at)), ["fine"]);
    assert_eq!(texts(&harness.all(Isolation::ReadCommitted, &at)), ["fine"]);
}

/// Beginning twice, and sending or committing without a transaction, are rejected without effect.
pub fn producer_has_one_transaction_at_a_time(harness: &Harness) {
    let at = harness.partition();
    let mut producer = harness.any_producer();
    assert!(matches!(
        producer.send(&batch(&at, &["no"])),
        Err(Error::Rejected { .. })
    ));
    let outcome = producer.commit(None);
    assert!(matches!(outcome, Outcome::Aborted { fenced: false, .. }), "{outcome:?}");
    producer.begin().unwrap();
    producer.send(&batch(&at, &["a"])).unwrap();
    assert!(matches!(producer.begin(), Err(Error::Rejected { .. })));
    producer.send(&OutBatch::default()).unwrap();
    producer.send(&batch(&at, &["b"])).unwrap();
    committed(producer.commit(None));
    assert_eq!(texts(&harness.committed(&at)), ["a", "b"]);
}

/// A transaction that was flushed leaves a control record in its partition even if it is aborted.
pub fn aborted_flushed_transaction_leaves_control_record(harness: &Harness) {
    let at = harness.partition();
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&at, &["gone"])).unwrap();
    producer.flush().unwrap();
    producer.abort().unwrap();
    support::wait_for("the mark", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LastStable) == 2).then_some(())
    });
    assert_eq!(texts(&harness.committed(&at)), [""; 0]);
}
