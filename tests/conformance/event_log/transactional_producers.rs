//! Sessions: fencing, time limits, and going on after what went wrong.

use super::harness::{Harness, LIMIT, batch, committed, fenced, texts};
use crate::support;
use event_log::{
    Error, Isolation, OffsetSpec, OutBatch, Outcome, TopicPartition, TransactionalProducer, TransactionalProducerConfig,
};
use std::time::Duration;

/// What a session that is expected to be fenced says when it goes on: the call that fails, or the commit.
fn goes_on(session: &mut dyn TransactionalProducer, at: &TopicPartition) -> Outcome {
    let sent = session.send(&batch(at, &["late"]));
    if let Err(error) = &sent {
        assert!(matches!(error, Error::Fenced { .. }), "{error:?}");
    }
    session.commit(None)
}

/// A new session of an id ends the open transaction of the one before and fences it: its next commit is aborted, and
/// nothing of it is ever seen.
pub fn a_second_session_of_an_id_fences_the_first(harness: &Harness) {
    let (at, id) = (harness.line(), support::unique("session"));
    let mut first = harness.transactional_producer(&id);
    assert_eq!(first.transactional_id(), id);
    harness.transact(&mut *first, &at, &["first"]);
    first.begin().unwrap();
    first.send(&batch(&at, &["orphan"])).unwrap();
    support::wait_for("the orphan", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) == 3).then_some(())
    });
    let mut second = harness.transactional_producer(&id);
    assert_eq!(harness.settle(&at), 4, "the orphan's transaction has ended");
    fenced(&goes_on(&mut *first, &at));
    harness.transact(&mut *second, &at, &["second"]);
    assert_eq!(texts(&harness.committed(&at)), ["first", "second"]);
}

/// A session asks nobody when it begins: one that was fenced while it was idle learns it with what it sends, be it records
/// or offsets. What was begun and never sent has nothing to end.
pub fn a_session_that_is_fenced_while_idle_learns_it_when_it_sends_or_commits(harness: &Harness) {
    let (at, id, group) = (harness.line(), support::unique("session"), support::unique("group"));
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

/// Renewing is opening again: the fenced one takes the id back, and the other is fenced.
pub fn a_fenced_session_may_take_over_again(harness: &Harness) {
    let (at, id) = (harness.line(), support::unique("session"));
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

/// A session that died in a transaction holds readers back only until the next session of its id is opened.
pub fn opening_a_session_ends_the_transaction_of_a_dead_one(harness: &Harness) {
    let (at, id) = (harness.line(), support::unique("session"));
    let mut dead = harness.transactional_producer(&id);
    dead.begin().unwrap();
    dead.send(&batch(&at, &["orphan"])).unwrap();
    support::wait_for("the orphan", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LogEnd) == 1).then_some(())
    });
    drop(dead);
    let mut session = harness.transactional_producer(&id);
    assert_eq!(harness.settle(&at), 2);
    harness.transact(&mut *session, &at, &["heir"]);
    assert_eq!(texts(&harness.committed(&at)), ["heir"]);
}

/// A transaction that outlives its time limit is aborted for all; the session learns it as a fencing, as from Kafka,
/// and may be renewed.
pub fn a_transaction_that_is_open_too_long_is_aborted(harness: &Harness) {
    let at = harness.line();
    let config = TransactionalProducerConfig {
        transactional_id: support::unique("session"),
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

/// After an abort of one's own the next transaction may begin at once; renewing is allowed too, in a transaction as
/// well, and aborts it.
pub fn after_an_abort_the_session_goes_on(harness: &Harness) {
    let at = harness.line();
    let mut session = harness.any_session();
    session.abort().unwrap();
    session.begin().unwrap();
    session.send(&batch(&at, &["no"])).unwrap();
    session.abort().unwrap();
    harness.transact(&mut *session, &at, &["one"]);
    session.begin().unwrap();
    session.send(&batch(&at, &["no"])).unwrap();
    session.init_transactions().unwrap();
    harness.transact(&mut *session, &at, &["two"]);
    session.init_transactions().unwrap();
    harness.transact(&mut *session, &at, &["three"]);
    assert_eq!(texts(&harness.committed(&at)), ["one", "two", "three"]);
}

/// A record that is too large fails the send; the transaction cannot be committed any more, and after the abort all is
/// well again.
pub fn a_refused_record_lets_the_transaction_only_abort(harness: &Harness) {
    let topic = harness.topic_with(1, |config| config.max_message_bytes = Some(5_000));
    let at = TopicPartition::new(topic, 0);
    let large = "x".repeat(6_000);
    let mut session = harness.any_session();
    for commits in [false, true] {
        session.begin().unwrap();
        session.send(&batch(&at, &["small"])).unwrap();
        let refused = session.send(&batch(&at, &["small too", &large, "behind"]));
        assert!(matches!(refused, Err(Error::TooLarge { .. })), "{refused:?}");
        if commits {
            let outcome = session.commit(None);
            assert!(matches!(outcome, Outcome::Aborted { fenced: false, .. }), "{outcome:?}");
            session.init_transactions().unwrap();
        } else {
            session.abort().unwrap();
        }
    }
    harness.transact(&mut *session, &at, &["fine"]);
    assert_eq!(texts(&harness.committed(&at)), ["fine"]);
}

/// A record for a topic that does not exist fails its transaction, at the send or at the commit.
pub fn an_unknown_topic_fails_the_transaction(harness: &Harness) {
    let (at, none) = (harness.line(), TopicPartition::new(support::unique("none"), 0));
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&batch(&at, &["never"])).unwrap();
    match session.send(&batch(&none, &["nowhere"])) {
        Err(Error::UnknownTopic { topic }) => {
            assert!(topic.starts_with(&*none.topic), "{topic}");
            session.abort().unwrap();
        }
        Err(other) => panic!("{other:?}"),
        Ok(()) => {
            let outcome = session.commit(None);
            assert!(matches!(outcome, Outcome::Aborted { fenced: false, .. }), "{outcome:?}");
        }
    }
    session.init_transactions().unwrap();
    harness.transact(&mut *session, &at, &["fine"]);
    assert_eq!(texts(&harness.committed(&at)), ["fine"]);
    assert_eq!(texts(&harness.all(Isolation::ReadCommitted, &at)), ["fine"]);
}

/// Beginning twice, and sending or committing without a transaction, are refused and change nothing.
pub fn a_session_has_one_transaction_at_a_time(harness: &Harness) {
    let at = harness.line();
    let mut session = harness.any_session();
    assert!(matches!(session.send(&batch(&at, &["no"])), Err(Error::Refused { .. })));
    let outcome = session.commit(None);
    assert!(matches!(outcome, Outcome::Aborted { fenced: false, .. }), "{outcome:?}");
    session.begin().unwrap();
    session.send(&batch(&at, &["a"])).unwrap();
    assert!(matches!(session.begin(), Err(Error::Refused { .. })));
    session.send(&OutBatch::default()).unwrap();
    session.send(&batch(&at, &["b"])).unwrap();
    committed(session.commit(None));
    assert_eq!(texts(&harness.committed(&at)), ["a", "b"]);
}

/// What was flushed leaves the mark of its end in its partition, also when it is aborted.
pub fn a_flushed_transaction_leaves_a_mark_when_it_is_aborted(harness: &Harness) {
    let at = harness.line();
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&batch(&at, &["gone"])).unwrap();
    session.flush().unwrap();
    session.abort().unwrap();
    support::wait_for("the mark", LIMIT, || {
        (harness.offset(&at, OffsetSpec::LastStable) == 2).then_some(())
    });
    assert_eq!(texts(&harness.committed(&at)), [""; 0]);
}
