//! Sessions: fencing, time limits, and going on after what went wrong.

use super::bench::{Bench, LIMIT, batch, committed, fenced, texts};
use crate::world;
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
pub fn a_second_session_of_an_id_fences_the_first(bench: &Bench) {
    let (at, id) = (bench.line(), world::unique("session"));
    let mut first = bench.transactional_producer(&id);
    assert_eq!(first.transactional_id(), id);
    bench.transact(&mut *first, &at, &["first"]);
    first.begin().unwrap();
    first.send(&batch(&at, &["orphan"])).unwrap();
    world::wait_for("the orphan", LIMIT, || {
        (bench.offset(&at, OffsetSpec::LogEnd) == 3).then_some(())
    });
    let mut second = bench.transactional_producer(&id);
    assert_eq!(bench.settle(&at), 4, "the orphan's transaction has ended");
    fenced(&goes_on(&mut *first, &at));
    bench.transact(&mut *second, &at, &["second"]);
    assert_eq!(texts(&bench.committed(&at)), ["first", "second"]);
}

/// A session asks nobody when it begins: one that was fenced while it was idle learns it with what it sends, be it records
/// or offsets. What was begun and never sent has nothing to end.
pub fn a_session_that_is_fenced_while_idle_learns_it_when_it_sends_or_commits(bench: &Bench) {
    let (at, id, group) = (bench.line(), world::unique("session"), world::unique("group"));
    let mut first = bench.transactional_producer(&id);
    let mut second = bench.transactional_producer(&id);
    first.begin().unwrap();
    committed(first.commit(None));
    first.begin().unwrap();
    first.abort().unwrap();
    first.begin().unwrap();
    fenced(&goes_on(&mut *first, &at));
    bench.transact(&mut *second, &at, &["second"]);
    let mut third = bench.transactional_producer(&id);
    second.begin().unwrap();
    let (_consumer, member) = bench.group_metadata(&group, &at.topic);
    fenced(&second.commit(Some((&member, &[(at.clone(), 1)]))));
    assert_eq!(bench.committed_offset(&group, &at), None);
    bench.transact(&mut *third, &at, &["third"]);
    assert_eq!(texts(&bench.committed(&at)), ["second", "third"]);
}

/// Renewing is opening again: the fenced one takes the id back, and the other is fenced.
pub fn a_fenced_session_may_take_over_again(bench: &Bench) {
    let (at, id) = (bench.line(), world::unique("session"));
    let mut first = bench.transactional_producer(&id);
    first.begin().unwrap();
    first.send(&batch(&at, &["lost"])).unwrap();
    let mut second = bench.transactional_producer(&id);
    fenced(&goes_on(&mut *first, &at));
    second.begin().unwrap();
    second.send(&batch(&at, &["lost too"])).unwrap();
    first.init_transactions().unwrap();
    bench.transact(&mut *first, &at, &["kept"]);
    fenced(&goes_on(&mut *second, &at));
    assert_eq!(texts(&bench.committed(&at)), ["kept"]);
}

/// A session that died in a transaction holds readers back only until the next session of its id is opened.
pub fn opening_a_session_ends_the_transaction_of_a_dead_one(bench: &Bench) {
    let (at, id) = (bench.line(), world::unique("session"));
    let mut dead = bench.transactional_producer(&id);
    dead.begin().unwrap();
    dead.send(&batch(&at, &["orphan"])).unwrap();
    world::wait_for("the orphan", LIMIT, || {
        (bench.offset(&at, OffsetSpec::LogEnd) == 1).then_some(())
    });
    drop(dead);
    let mut session = bench.transactional_producer(&id);
    assert_eq!(bench.settle(&at), 2);
    bench.transact(&mut *session, &at, &["heir"]);
    assert_eq!(texts(&bench.committed(&at)), ["heir"]);
}

/// A transaction that outlives its time limit is aborted for all; the session learns it as a fencing, as from Kafka,
/// and may be renewed.
pub fn a_transaction_that_is_open_too_long_is_aborted(bench: &Bench) {
    let at = bench.line();
    let config = TransactionalProducerConfig {
        transactional_id: world::unique("session"),
        transaction_timeout: Duration::from_millis(1_000),
    };
    let mut slow = bench.log.transactional_producer(config).unwrap();
    slow.begin().unwrap();
    slow.send(&batch(&at, &["too late"])).unwrap();
    world::wait_for("the record", LIMIT, || {
        (bench.offset(&at, OffsetSpec::LogEnd) >= 1).then_some(())
    });
    bench.append(&at, &["plain"]);
    assert_eq!(bench.offset(&at, OffsetSpec::LastStable), 0);
    assert_eq!(texts(&bench.committed(&at)), ["plain"]);
    let outcome = slow.commit(None);
    assert!(matches!(outcome, Outcome::Aborted { .. }), "{outcome:?}");
    slow.init_transactions().unwrap();
    bench.transact(&mut *slow, &at, &["again"]);
    assert_eq!(texts(&bench.committed(&at)), ["plain", "again"]);
}

/// After an abort of one's own the next transaction may begin at once; renewing is allowed too, in a transaction as
/// well, and aborts it.
pub fn after_an_abort_the_session_goes_on(bench: &Bench) {
    let at = bench.line();
    let mut session = bench.any_session();
    session.abort().unwrap();
    session.begin().unwrap();
    session.send(&batch(&at, &["no"])).unwrap();
    session.abort().unwrap();
    bench.transact(&mut *session, &at, &["one"]);
    session.begin().unwrap();
    session.send(&batch(&at, &["no"])).unwrap();
    session.init_transactions().unwrap();
    bench.transact(&mut *session, &at, &["two"]);
    session.init_transactions().unwrap();
    bench.transact(&mut *session, &at, &["three"]);
    assert_eq!(texts(&bench.committed(&at)), ["one", "two", "three"]);
}

/// A record that is too large fails the send; the transaction cannot be committed any more, and after the abort all is
/// well again.
pub fn a_refused_record_lets_the_transaction_only_abort(bench: &Bench) {
    let topic = bench.topic_with(1, |config| config.max_message_bytes = Some(5_000));
    let at = TopicPartition::new(topic, 0);
    let large = "x".repeat(6_000);
    let mut session = bench.any_session();
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
    bench.transact(&mut *session, &at, &["fine"]);
    assert_eq!(texts(&bench.committed(&at)), ["fine"]);
}

/// A record for a topic that does not exist fails its transaction, at the send or at the commit.
pub fn an_unknown_topic_fails_the_transaction(bench: &Bench) {
    let (at, none) = (bench.line(), TopicPartition::new(world::unique("none"), 0));
    let mut session = bench.any_session();
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
    bench.transact(&mut *session, &at, &["fine"]);
    assert_eq!(texts(&bench.committed(&at)), ["fine"]);
    assert_eq!(texts(&bench.all(Isolation::ReadCommitted, &at)), ["fine"]);
}

/// Beginning twice, and sending or committing without a transaction, are refused and change nothing.
pub fn a_session_has_one_transaction_at_a_time(bench: &Bench) {
    let at = bench.line();
    let mut session = bench.any_session();
    assert!(matches!(session.send(&batch(&at, &["no"])), Err(Error::Refused { .. })));
    let outcome = session.commit(None);
    assert!(matches!(outcome, Outcome::Aborted { fenced: false, .. }), "{outcome:?}");
    session.begin().unwrap();
    session.send(&batch(&at, &["a"])).unwrap();
    assert!(matches!(session.begin(), Err(Error::Refused { .. })));
    session.send(&OutBatch::default()).unwrap();
    session.send(&batch(&at, &["b"])).unwrap();
    committed(session.commit(None));
    assert_eq!(texts(&bench.committed(&at)), ["a", "b"]);
}

/// What was flushed leaves the mark of its end in its partition, also when it is aborted.
pub fn a_flushed_transaction_leaves_a_mark_when_it_is_aborted(bench: &Bench) {
    let at = bench.line();
    let mut session = bench.any_session();
    session.begin().unwrap();
    session.send(&batch(&at, &["gone"])).unwrap();
    session.flush().unwrap();
    session.abort().unwrap();
    world::wait_for("the mark", LIMIT, || {
        (bench.offset(&at, OffsetSpec::LastStable) == 2).then_some(())
    });
    assert_eq!(texts(&bench.committed(&at)), [""; 0]);
}
