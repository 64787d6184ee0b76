//! Tests what a crash of the host loses, and that long work of the cleaner does not block writers.

use super::*;
use std::collections::BTreeMap;

fn epoch(hand: &TestLog) -> String {
    hand.log.log_epoch().expect("epoch")
}

#[test]
fn crash_that_loses_batches_changes_epoch() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[]);
    hand.append(&at, "a").expect("append");
    hand.reopen_log();
    let before = epoch(&hand);
    hand.append(&at, "b").expect("append");
    hand.store.inner.crash(hand.store.inner.written());
    hand.reopen_log();
    assert_eq!(epoch(&hand), before, "nothing was lost");
    assert_eq!(hand.log.notice(), None);
    hand.append(&at, "c").expect("append");
    hand.store.inner.crash(hand.store.inner.written() - 1);
    hand.reopen_log();
    assert_eq!(hand.range(&at), [0, 2, 2]);
    let after = epoch(&hand);
    assert_ne!(after, before, "offset 2 is assigned again");
    assert!(hand.log.notice().is_some_and(|notice| notice.is_loss));
    hand.reopen_log();
    assert_eq!(epoch(&hand), after);
}

/// Appends and commits transactions while some writes and syncs fail; then crashes the host.
fn crash_with_synced_commits(seed: u64) {
    let (store, time) = (Breakable::new(), Arc::new(AtomicI64::new(1_000_000)));
    let open = || opened_with(&store, &time, |config| config.durability = Durability::Commit).expect("open");
    let mut hand = TestLog {
        log: open(),
        time: time.clone(),
        store: store.clone(),
    };
    let at = hand.topic(&[]);
    let mut acknowledged = Vec::new();
    store.inner.spoil(seed, 200);
    for n in 0..40 {
        let value = format!("v{n}");
        if let Ok(produced) = hand.append(&at, &value) {
            acknowledged.push((produced[0].first_offset, value));
        }
    }
    store.repair();
    // If a sync failed, the log rejects writes until it is opened again.
    hand.log = open();
    let mut producer = hand.transactional_producer(60_000);
    producer.begin().expect("begin");
    producer.send(&batch(&at, "last")).expect("send");
    assert!(matches!(producer.commit(None), Outcome::Committed(_)));
    acknowledged.push((hand.range(&at)[2] - 2, "last".to_owned()));
    drop(producer);
    store.inner.crash(store.inner.synced());
    hand.log = open();
    let found = hand.seen(Isolation::ReadCommitted, &at);
    let found: BTreeMap<Offset, &str> = found
        .iter()
        .map(|(offset, _, value)| (*offset, value.as_str()))
        .collect();
    for (offset, value) in &acknowledged {
        assert_eq!(
            found.get(offset),
            Some(&value.as_str()),
            "seed {seed}: offset {offset} was acknowledged"
        );
    }
}

#[test]
fn commit_durability_acknowledges_only_synced_writes() {
    (1..=50).for_each(crash_with_synced_commits);
}

/// Asserts that another thread can write at this moment.
fn writer_is_free(broker: &Arc<Broker>) {
    let (broker, (free, is_free)) = (broker.clone(), channel());
    let thread = std::thread::Builder::new().name("writer-probe".to_owned());
    let probe = move || {
        drop(broker.writer());
        free.send(()).ok();
    };
    // The thread is not joined: if the writer is locked, it ends after this assertion has failed.
    drop(thread.spawn(probe).expect("spawn a thread"));
    is_free
        .recv_timeout(Duration::from_secs(20))
        .expect("the writer is locked");
}

#[test]
fn retention_and_topic_deletion_read_without_the_writer_lock() {
    let hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "100")]);
    (0..3).for_each(|n| drop(hand.append(&at, &format!("v{n}")).expect("append")));
    let broker = hand.log.broker.clone();
    let checked = Arc::new(AtomicI64::new(0));
    let check = || {
        let (broker, checked) = (broker.clone(), checked.clone());
        move || {
            writer_is_free(&broker);
            checked.fetch_add(1, Ordering::SeqCst);
        }
    };
    hand.store.once(Moment::InScan(2), check());
    hand.log.clean(2_000_000).expect("clean");
    assert_eq!(hand.range(&at), [3, 3, 3]);
    (0..3).for_each(|n| drop(hand.append(&at, &format!("v{n}")).expect("append")));
    hand.store.once(Moment::InScan(2), check());
    hand.log.delete_topic("t").expect("delete");
    assert_eq!(checked.load(Ordering::SeqCst), 2);
    assert!(broker::lock(&broker.leftovers).is_empty());
}

#[test]
fn deletion_that_storage_interrupts_is_completed_later() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[]);
    hand.append(&at, "a").expect("append");
    hand.store.breaks_after.store(1, Ordering::SeqCst);
    hand.log
        .delete_topic("t")
        .expect_err("the store fails after the topic is gone");
    assert!(matches!(hand.append(&at, "b"), Err(Error::UnknownTopic { .. })));
    hand.store.repair();
    hand.log.clean(1_000_000).expect("clean");
    assert!(broker::lock(&hand.log.broker.leftovers).is_empty());
    hand.reopen_log();
    assert!(hand.log.topics().expect("topics").is_empty());
}

#[test]
fn producers_that_are_gone_are_forgotten() {
    let hand = TestLog::new();
    let at = hand.topic(&[]);
    let known = || hand.log.broker.state().producers.len();
    drop(hand.transactional_producer(1_000));
    assert_eq!(known(), 0);
    let mut producer = hand.transactional_producer(1_000);
    producer.begin().expect("begin");
    producer.send(&batch(&at, "a")).expect("send");
    drop(producer);
    assert_eq!((known(), hand.range(&at)), (1, [0, 0, 1]), "its transaction is open");
    hand.advance(1_000);
    assert_eq!((hand.range(&at), known()), ([0, 2, 2], 0));
    let (one, other) = (hand.transactional_producer(1_000), hand.transactional_producer(1_000));
    drop(one);
    assert_eq!(known(), 1, "the newer producer has the entry");
    drop(other);
}

#[test]
fn overdue_transaction_does_not_stop_readers_of_a_full_disk() {
    let hand = TestLog::new();
    let at = hand.topic(&[]);
    hand.append(&at, "a").expect("append");
    let mut producer = hand.transactional_producer(1_000);
    producer.begin().expect("begin");
    producer.send(&batch(&at, "b")).expect("send");
    hand.store.full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        hand.advance(1_000);
        assert_eq!(hand.range(&at), [0, 1, 2], "the abort cannot be stored");
        assert_eq!(hand.seen(Isolation::ReadCommitted, &at).len(), 1);
    }
    assert!(matches!(producer.commit(None), Outcome::Aborted { .. }), "it is fenced");
    hand.store.full.store(false, Ordering::SeqCst);
    hand.advance(1_000);
    assert_eq!(hand.range(&at), [0, 3, 3]);
}
