//! Expiry of the offsets of groups without members, and batches whose result is lost.
//!
//! Offsets of an empty group expire after the retention time, across restarts; those of a group with a member or a static
//! membership do not. A batch that was written counts even if the commit returned an error.

use super::*;

const DAY: Millis = 24 * 60 * 60 * 1000;

fn committed(hand: &TestLog, group: &str, at: &TopicPartition) -> Option<Offset> {
    hand.log.committed(group, std::slice::from_ref(at)).expect("committed")[at]
}

fn clean(hand: &TestLog) {
    hand.log.clean(hand.log.broker.now()).expect("clean");
}

#[test]
fn offsets_of_empty_group_expire_after_7_days() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.append(&at, "a").expect("append");
    let (mut consumer, _) = hand.group_metadata("g");
    consumer.commit(&[(at.clone(), 1)]).expect("commit");
    hand.advance(30 * DAY);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), Some(1), "the group has a member");
    consumer.close().expect("close");
    hand.advance(DAY);
    clean(&hand);
    // The test clock keeps its time when the log is reopened.
    hand.reopen_log();
    hand.advance(6 * DAY - 1);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), Some(1), "not yet");
    hand.advance(1);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), None);
    assert!(hand.log.groups().expect("groups").is_empty());
    hand.reopen_log();
    assert_eq!(committed(&hand, "g", &at), None, "they do not come back");
}

#[test]
fn member_resets_idle_time() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("g", &[(at.clone(), 3)]).expect("set");
    hand.advance(6 * DAY);
    clean(&hand);
    let (consumer, _) = hand.group_metadata("g");
    // A crash while the member is active. The idle time that was stored before it joined no longer counts.
    hand.reopen_log();
    drop(consumer);
    hand.advance(2 * DAY);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), Some(3));
    hand.advance(7 * DAY);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), None);
}

#[test]
fn setting_offsets_starts_idle_time() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("tool", &[(at.clone(), 1)]).expect("set");
    hand.advance(6 * DAY);
    hand.log.set_committed("tool", &[(at.clone(), 2)]).expect("set");
    // The log is closed before a cleaning pass.
    hand.reopen_log();
    hand.advance(7 * DAY - 1);
    clean(&hand);
    assert_eq!(committed(&hand, "tool", &at), Some(2));
    hand.advance(1);
    clean(&hand);
    assert_eq!(committed(&hand, "tool", &at), None);
}

#[test]
fn deleted_topic_removes_idle_time() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("g", &[(at.clone(), 3)]).expect("set");
    clean(&hand);
    hand.log.delete_topic("t").expect("delete");
    assert!(hand.log.groups().expect("groups").is_empty());
    hand.advance(30 * DAY);
    let at = hand.topic(&[("retention.ms", "-1")]);
    let (mut consumer, _) = hand.group_metadata("g");
    consumer.commit(&[(at.clone(), 5)]).expect("commit");
    // A crash while the member is active.
    hand.reopen_log();
    drop(consumer);
    clean(&hand);
    assert_eq!(
        committed(&hand, "g", &at),
        Some(5),
        "the new group has its own idle time"
    );
}

#[test]
fn join_during_idle_write_keeps_offsets() {
    for outside in [false, true] {
        let mut hand = TestLog::new();
        let at = hand.topic(&[("retention.ms", "-1")]);
        let (mut consumer, _) = hand.group_metadata("g");
        consumer.commit(&[(at.clone(), 5)]).expect("commit");
        consumer.close().expect("close");
        let (came, comes) = channel();
        let broker = hand.log.broker.clone();
        let config = GroupConfig {
            group: "g".to_owned(),
            instance: None,
            topics: vec!["t".into()],
            session_timeout: Duration::from_secs(1),
            protocol: crate::GroupProtocol::Classic,
        };
        hand.store.once(Moment::BeforeCommit, move || {
            came.send(consumer::EmbeddedConsumer::join(broker, config).expect("join"))
                .expect("the test listens");
        });
        match outside {
            true => hand.log.set_committed("g", &[(at.clone(), 6)]).expect("set"),
            false => clean(&hand),
        }
        let member = comes.recv().expect("it has come");
        // A crash while the member is active, and a long time.
        hand.reopen_log();
        drop(member);
        hand.advance(8 * DAY);
        clean(&hand);
        assert!(committed(&hand, "g", &at).is_some(), "from outside: {outside}");
    }
}

#[test]
fn committed_waits_for_expiry() {
    let mut hand = TestLog::new();
    hand.log = opened_with(&hand.store, &hand.time, |config| {
        config.request_timeout = Duration::ZERO
    })
    .expect("open");
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("g", &[(at.clone(), 3)]).expect("set");
    hand.advance(7 * DAY);
    let (answered, answers) = channel();
    let (broker, requested) = (hand.log.broker.clone(), at.clone());
    hand.store.once(Moment::BeforeCommit, move || {
        let answer = broker.committed("g", std::slice::from_ref(&requested));
        answered.send(answer).expect("the test listens");
    });
    clean(&hand);
    let answer = answers.recv().expect("an answer");
    assert!(matches!(answer, Err(Error::Unavailable { .. })), "{answer:?}");
    assert_eq!(committed(&hand, "g", &at), None);
}

#[test]
fn failed_expiry_is_retried_by_next_pass() {
    let hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("g", &[(at.clone(), 3)]).expect("set");
    hand.advance(7 * DAY);
    hand.store.broken.store(true, Ordering::SeqCst);
    hand.log.clean(hand.log.broker.now()).expect_err("the store fails");
    assert_eq!(committed(&hand, "g", &at), Some(3));
    hand.store.repair();
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), None);
}

#[test]
fn fenced_send_fails_later_empty_commit() {
    let hand = TestLog::new();
    let at = hand.topic(&[]);
    let (mut first, _second) = (hand.transactional_producer(5_000), hand.transactional_producer(5_000));
    first.begin().expect("begin is a local operation");
    assert!(matches!(first.send(&batch(&at, "a")), Err(Error::Fenced { .. })));
    let outcome = first.commit(None);
    assert!(matches!(outcome, Outcome::Aborted { fenced: true, .. }), "{outcome:?}");
}

#[test]
fn static_membership_and_new_offsets_defer_expiry() {
    let hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    let config = GroupConfig {
        group: "static".to_owned(),
        instance: Some("a".to_owned()),
        topics: vec!["t".into()],
        session_timeout: Duration::from_secs(10 * 24 * 3_600),
        protocol: crate::GroupProtocol::Classic,
    };
    let mut consumer = hand.log.group(config).expect("join");
    consumer
        .poll(&mut RecordBatch::default(), 1, Duration::ZERO)
        .expect("poll");
    consumer.commit(&[(at.clone(), 2)]).expect("commit");
    consumer.close().expect("close");
    hand.log.set_committed("tool", &[(at.clone(), 1)]).expect("set");
    hand.advance(6 * DAY);
    clean(&hand);
    hand.log.set_committed("tool", &[(at.clone(), 2)]).expect("set");
    hand.advance(3 * DAY);
    clean(&hand);
    assert_eq!(
        committed(&hand, "static", &at),
        Some(2),
        "the static membership lasts ten days"
    );
    assert_eq!(committed(&hand, "tool", &at), Some(2), "set three days ago");
    hand.advance(DAY);
    clean(&hand);
    hand.advance(7 * DAY);
    clean(&hand);
    assert_eq!(committed(&hand, "static", &at), None);
}

#[test]
fn written_batch_counts_despite_error() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[]);
    let (consumer, member) = hand.group_metadata("g");
    let mut producer = hand.transactional_producer(5_000);
    producer.begin().expect("begin");
    producer.send(&batch(&at, "a")).expect("send");
    hand.store.inner.lose_next_result(0);
    let outcome = producer.commit(Some((&member, &[(at.clone(), 1)])));
    assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    assert_eq!((hand.range(&at), committed(&hand, "g", &at)), ([0, 2, 2], Some(1)));
    drop((consumer, producer));
    hand.reopen_log();
    assert_eq!((hand.range(&at), committed(&hand, "g", &at)), ([0, 2, 2], Some(1)));
}

#[test]
fn unknown_outcome_rejects_further_writes() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[]);
    hand.store.inner.lose_next_result(1);
    assert!(hand.append(&at, "a").is_err());
    let rejected = hand.append(&at, "b").expect_err("the outcome is unknown");
    assert!(rejected.to_string().contains("open the log again"), "{rejected}");
    hand.reopen_log();
    assert_eq!(hand.range(&at), [0, 1, 1], "the first was written");
    hand.append(&at, "c").expect("append");
}
