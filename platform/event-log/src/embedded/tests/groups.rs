//! What becomes of a group's offsets when nobody is there, and of a batch whose answer the store loses.
//!
//! Guarantees tested: offsets of an empty group go after their time and not before, whatever was opened again meanwhile;
//! those of a group with a member, or a seat kept for one, stay; what the store wrote counts although it said otherwise.

use super::*;

const DAY: Millis = 24 * 60 * 60 * 1000;

fn committed(hand: &Hand, group: &str, at: &TopicPartition) -> Option<Offset> {
    hand.log.committed(group, std::slice::from_ref(at)).expect("committed")[at]
}

fn clean(hand: &Hand) {
    hand.log.clean(hand.log.broker.now()).expect("clean");
}

#[test]
fn offsets_of_empty_group_expire_after_7_days() {
    let mut hand = Hand::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.append(&at, "a").expect("append");
    let (mut consumer, _) = hand.group_metadata("g");
    consumer.commit(&[(at.clone(), 1)]).expect("commit");
    hand.pass(30 * DAY);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), Some(1), "a member is there");
    consumer.close().expect("close");
    hand.pass(DAY);
    clean(&hand);
    // The log is closed and opened: the time goes on.
    hand.again();
    hand.pass(6 * DAY - 1);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), Some(1), "not yet");
    hand.pass(1);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), None);
    assert!(hand.log.groups().expect("groups").is_empty());
    hand.again();
    assert_eq!(committed(&hand, "g", &at), None, "and they stay away");
}

#[test]
fn member_resets_idle_time() {
    let mut hand = Hand::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("g", &[(at.clone(), 3)]).expect("set");
    hand.pass(6 * DAY);
    clean(&hand);
    let (consumer, _) = hand.group_metadata("g");
    // A crash while it is there: since when it was empty before counts no more.
    hand.again();
    drop(consumer);
    hand.pass(2 * DAY);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), Some(3));
    hand.pass(7 * DAY);
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), None);
}

#[test]
fn setting_offsets_starts_idle_time() {
    let mut hand = Hand::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("tool", &[(at.clone(), 1)]).expect("set");
    hand.pass(6 * DAY);
    hand.log.set_committed("tool", &[(at.clone(), 2)]).expect("set");
    // No pass comes before the end.
    hand.again();
    hand.pass(7 * DAY - 1);
    clean(&hand);
    assert_eq!(committed(&hand, "tool", &at), Some(2));
    hand.pass(1);
    clean(&hand);
    assert_eq!(committed(&hand, "tool", &at), None);
}

#[test]
fn deleted_topic_removes_idle_time() {
    let mut hand = Hand::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("g", &[(at.clone(), 3)]).expect("set");
    clean(&hand);
    hand.log.delete_topic("t").expect("delete");
    assert!(hand.log.groups().expect("groups").is_empty());
    hand.pass(30 * DAY);
    let at = hand.topic(&[("retention.ms", "-1")]);
    let (mut consumer, _) = hand.group_metadata("g");
    consumer.commit(&[(at.clone(), 5)]).expect("commit");
    // A crash while it is there.
    hand.again();
    drop(consumer);
    clean(&hand);
    assert_eq!(
        committed(&hand, "g", &at),
        Some(5),
        "the first group's time is not this one's"
    );
}

#[test]
fn join_during_idle_write_keeps_offsets() {
    for outside in [false, true] {
        let mut hand = Hand::new();
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
        // A crash while it is there, and a long time.
        hand.again();
        drop(member);
        hand.pass(8 * DAY);
        clean(&hand);
        assert!(committed(&hand, "g", &at).is_some(), "from outside: {outside}");
    }
}

#[test]
fn committed_waits_for_expiry() {
    let mut hand = Hand::new();
    hand.log = opened_with(&hand.store, &hand.time, |config| {
        config.request_timeout = Duration::ZERO
    })
    .expect("open");
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("g", &[(at.clone(), 3)]).expect("set");
    hand.pass(7 * DAY);
    let (answered, answers) = channel();
    let (broker, asked) = (hand.log.broker.clone(), at.clone());
    hand.store.once(Moment::BeforeCommit, move || {
        let answer = broker.committed("g", std::slice::from_ref(&asked));
        answered.send(answer).expect("the test listens");
    });
    clean(&hand);
    let answer = answers.recv().expect("an answer");
    assert!(matches!(answer, Err(Error::Unavailable { .. })), "{answer:?}");
    assert_eq!(committed(&hand, "g", &at), None);
}

#[test]
fn failed_expiry_is_retried_by_next_pass() {
    let hand = Hand::new();
    let at = hand.topic(&[("retention.ms", "-1")]);
    hand.log.set_committed("g", &[(at.clone(), 3)]).expect("set");
    hand.pass(7 * DAY);
    hand.store.broken.store(true, Ordering::SeqCst);
    hand.log.clean(hand.log.broker.now()).expect_err("the store fails");
    assert_eq!(committed(&hand, "g", &at), Some(3));
    hand.store.mend();
    clean(&hand);
    assert_eq!(committed(&hand, "g", &at), None);
}

#[test]
fn fenced_send_fails_later_empty_commit() {
    let hand = Hand::new();
    let at = hand.topic(&[]);
    let (mut first, _second) = (hand.transactional_producer(5_000), hand.transactional_producer(5_000));
    first.begin().expect("nobody is asked");
    assert!(matches!(first.send(&batch(&at, "a")), Err(Error::Fenced { .. })));
    let outcome = first.commit(None);
    assert!(matches!(outcome, Outcome::Aborted { fenced: true, .. }), "{outcome:?}");
}

#[test]
fn static_membership_and_new_offsets_defer_expiry() {
    let hand = Hand::new();
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
    hand.pass(6 * DAY);
    clean(&hand);
    hand.log.set_committed("tool", &[(at.clone(), 2)]).expect("set");
    hand.pass(3 * DAY);
    clean(&hand);
    assert_eq!(
        committed(&hand, "static", &at),
        Some(2),
        "its seat is kept for ten days"
    );
    assert_eq!(committed(&hand, "tool", &at), Some(2), "set three days ago");
    hand.pass(DAY);
    clean(&hand);
    hand.pass(7 * DAY);
    clean(&hand);
    assert_eq!(committed(&hand, "static", &at), None);
}

#[test]
fn written_batch_counts_despite_error() {
    let mut hand = Hand::new();
    let at = hand.topic(&[]);
    let (consumer, member) = hand.group_metadata("g");
    let mut session = hand.transactional_producer(5_000);
    session.begin().expect("begin");
    session.send(&batch(&at, "a")).expect("send");
    hand.store.inner.lose_next_result(0);
    let outcome = session.commit(Some((&member, &[(at.clone(), 1)])));
    assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    assert_eq!((hand.range(&at), committed(&hand, "g", &at)), ([0, 2, 2], Some(1)));
    drop((consumer, session));
    hand.again();
    assert_eq!((hand.range(&at), committed(&hand, "g", &at)), ([0, 2, 2], Some(1)));
}

#[test]
fn unknown_outcome_rejects_further_writes() {
    let mut hand = Hand::new();
    let at = hand.topic(&[]);
    hand.store.inner.lose_next_result(1);
    assert!(hand.append(&at, "a").is_err());
    let refused = hand.append(&at, "b").expect_err("nobody knows what is there");
    assert!(refused.to_string().contains("open the log again"), "{refused}");
    hand.again();
    assert_eq!(hand.range(&at), [0, 1, 1], "the first was written");
    hand.append(&at, "c").expect("append");
}
