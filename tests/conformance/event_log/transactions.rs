//! Transactions: records and consumed offsets are visible together or not at all.

use super::harness::{Harness, LIMIT, SHORT, batch, committed, record, seen, texts};
use crate::support;
use event_log::{Isolation, OffsetSpec, OutBatch, RecordBatch, StartFrom, TopicPartition};
use std::sync::atomic::{AtomicI64, Ordering};

fn wait_end(harness: &Harness, at: &TopicPartition, end: i64) {
    support::wait_for("the records to be appended", LIMIT, || {
        (harness.offset(at, OffsetSpec::LogEnd) == end).then_some(())
    });
}

/// What an open transaction has written is there for uncommitted readers and hidden from committed ones.
pub fn nothing_of_an_open_transaction_is_seen_by_committed_readers(harness: &Harness) {
    let at = harness.line();
    harness.append(&at, &["before"]);
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&batch(&at, &["a"])).unwrap();
    session.send(&batch(&at, &["b"])).unwrap();
    wait_end(harness, &at, 3);
    assert_eq!(
        harness.all(Isolation::ReadUncommitted, &at),
        seen(&[(0, "before"), (1, "a"), (2, "b")])
    );
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    assert_eq!(harness.take(&mut *reader, 1), seen(&[(0, "before")]));
    assert_eq!(reader.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap(), 0);
    committed(session.commit(None));
    assert_eq!(harness.take(&mut *reader, 2), seen(&[(1, "a"), (2, "b")]));
}

/// The stable offset is the first offset of the oldest open transaction: what stands behind it waits, committed or
/// written outside transactions.
pub fn an_open_transaction_holds_the_stable_offset_back(harness: &Harness) {
    let at = harness.line();
    harness.append(&at, &["before"]);
    let mut slow = harness.any_session();
    slow.begin().unwrap();
    slow.send(&batch(&at, &["slow"])).unwrap();
    wait_end(harness, &at, 2);
    let mut quick = harness.any_session();
    harness.transact(&mut *quick, &at, &["quick"]);
    // A commit has returned when it is decided; its markers may follow.
    wait_end(harness, &at, 4);
    harness.append(&at, &["plain"]);
    wait_end(harness, &at, 5);
    assert_eq!(harness.offset(&at, OffsetSpec::LastStable), 1);
    assert_eq!(harness.all(Isolation::ReadCommitted, &at), seen(&[(0, "before")]));
    committed(slow.commit(None));
    assert_eq!(
        harness.committed(&at),
        seen(&[(0, "before"), (1, "slow"), (2, "quick"), (4, "plain")])
    );
}

/// Aborted records keep their offsets, are never returned to committed readers, and hold nobody back.
pub fn an_aborted_transaction_leaves_offsets_and_no_records(harness: &Harness) {
    let at = harness.line();
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&batch(&at, &["no", "never"])).unwrap();
    wait_end(harness, &at, 2);
    session.abort().unwrap();
    harness.settle(&at);
    harness.append(&at, &["plain"]);
    harness.transact(&mut *session, &at, &["yes"]);
    assert_eq!(harness.committed(&at), seen(&[(3, "plain"), (4, "yes")]));
    let all = harness.all(Isolation::ReadUncommitted, &at);
    assert_eq!(texts(&all), ["no", "never", "plain", "yes"]);
}

/// A commit takes one offset in each partition that the transaction wrote to, and in no other. What was written is
/// told without it.
pub fn a_marker_takes_one_offset_in_each_touched_partition(harness: &Harness) {
    let topic = harness.topic(3);
    let [a, b, c] = [0, 1, 2].map(|p| TopicPartition::new(topic.clone(), p));
    let mut session = harness.any_session();
    for round in 0..2 {
        session.begin().unwrap();
        session.send(&batch(&a, &["1", "2"])).unwrap();
        session.send(&batch(&b, &["3"])).unwrap();
        session.send(&batch(&a, &["4"])).unwrap();
        let mut produced = committed(session.commit(None));
        produced.sort_by_key(|p| p.at.clone());
        let places: Vec<_> = produced
            .iter()
            .map(|p| (p.at.clone(), p.first_offset, p.next_offset))
            .collect();
        let (first_a, first_b) = (4 * round, 2 * round);
        assert_eq!(
            places,
            [(a.clone(), first_a, first_a + 3), (b.clone(), first_b, first_b + 1)]
        );
    }
    assert_eq!([&a, &b, &c].map(|at| harness.settle(at)), [8, 4, 0]);
    let offsets: Vec<i64> = harness.committed(&a).iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [0, 1, 2, 4, 5, 6]);
}

/// A transaction may write to many partitions of many topics; none of it is seen before the commit, all of it after.
pub fn a_transaction_over_topics_is_visible_together(harness: &Harness) {
    let topics = [harness.topic(2), harness.topic(3)];
    let parts = |n: i32, topic: &std::sync::Arc<str>| (0..n).map(|p| TopicPartition::new(topic.clone(), p)).collect();
    let all: Vec<TopicPartition> = [parts(2, &topics[0]), parts(3, &topics[1])]
        .iter()
        .flat_map(Vec::clone)
        .collect();
    let mut out = OutBatch::default();
    for at in &all {
        out.push(record(at, "together"), []);
    }
    let mut session = harness.any_session();
    session.begin().unwrap();
    session.send(&out).unwrap();
    for at in &all {
        wait_end(harness, at, 1);
        assert_eq!(harness.all(Isolation::ReadCommitted, at), []);
    }
    assert_eq!(committed(session.commit(None)).len(), all.len());
    for at in &all {
        assert_eq!(harness.committed(at), seen(&[(0, "together")]));
    }
}

/// Sessions do not wait for each other: their records interleave in the order of their sends, and each is visible by
/// its own commit.
pub fn two_sessions_interleave_in_one_partition(harness: &Harness) {
    let at = harness.line();
    let (mut a, mut b) = (harness.any_session(), harness.any_session());
    a.begin().unwrap();
    b.begin().unwrap();
    for (end, text) in [(1, "a1"), (2, "b1"), (3, "a2"), (4, "b2")] {
        let session = if text.starts_with('a') { &mut a } else { &mut b };
        session.send(&batch(&at, &[text])).unwrap();
        wait_end(harness, &at, end);
    }
    committed(b.commit(None));
    wait_end(harness, &at, 5);
    assert_eq!(harness.offset(&at, OffsetSpec::LastStable), 0);
    a.abort().unwrap();
    assert_eq!(harness.committed(&at), seen(&[(1, "b1"), (3, "b2")]));
    committed({
        a.begin().unwrap();
        a.send(&batch(&at, &["a3"])).unwrap();
        a.commit(None)
    });
    assert_eq!(texts(&harness.committed(&at)), ["b1", "b2", "a3"]);
}

/// A transaction in which nothing happened commits and leaves nothing.
pub fn an_empty_transaction_commits(harness: &Harness) {
    let at = harness.line();
    let mut session = harness.any_session();
    for _ in 0..2 {
        session.begin().unwrap();
        assert_eq!(committed(session.commit(None)), []);
    }
    session.begin().unwrap();
    session.send(&OutBatch::default()).unwrap();
    assert_eq!(committed(session.commit(None)), []);
    assert_eq!(harness.offset(&at, OffsetSpec::LogEnd), 0);
    assert_eq!(harness.transact(&mut *session, &at, &["a"]).first_offset, 0);
}

/// The offsets given to a commit are the group's from the moment the commit has returned, not before.
pub fn consumed_offsets_become_visible_with_the_commit(harness: &Harness) {
    let (input, output, group) = (harness.line(), harness.line(), support::unique("group"));
    harness.append(&input, &["a", "b"]);
    let (consumer, member) = harness.group_metadata(&group, &input.topic);
    let mut session = harness.any_session();
    for next in [1, 2] {
        session.begin().unwrap();
        session.send(&batch(&output, &["out"])).unwrap();
        assert_eq!(harness.committed_offset(&group, &input), (next > 1).then_some(next - 1));
        committed(session.commit(Some((&member, &[(input.clone(), next)]))));
        assert_eq!(harness.committed_offset(&group, &input), Some(next));
    }
    assert_eq!(texts(&harness.committed(&output)), ["out", "out"]);
    consumer.close().unwrap();
    assert_eq!(harness.committed_offset(&group, &input), Some(2));
}

/// A transaction that ends without commit leaves the group's offsets as they were.
pub fn offsets_of_an_aborted_transaction_are_never_seen(harness: &Harness) {
    let (input, output, group) = (harness.line(), harness.line(), support::unique("group"));
    let (_consumer, member) = harness.group_metadata(&group, &input.topic);
    let mut session = harness.any_session();
    session.begin().unwrap();
    committed(session.commit(Some((&member, &[(input.clone(), 3)]))));
    session.begin().unwrap();
    session.send(&batch(&output, &["never"])).unwrap();
    session.abort().unwrap();
    assert_eq!(harness.committed_offset(&group, &input), Some(3));
    assert_eq!(harness.committed(&output), []);
}

/// Offsets may be committed without a record.
pub fn a_transaction_may_hold_offsets_alone(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let parts = [0, 1].map(|p| TopicPartition::new(topic.clone(), p));
    let (_consumer, member) = harness.group_metadata(&group, &topic);
    let mut session = harness.any_session();
    session.begin().unwrap();
    let offsets = [(parts[0].clone(), 7), (parts[1].clone(), 9)];
    assert_eq!(committed(session.commit(Some((&member, &offsets)))), []);
    assert_eq!(
        parts.clone().map(|at| harness.committed_offset(&group, &at)),
        [Some(7), Some(9)]
    );
    session.begin().unwrap();
    committed(session.commit(Some((&member, &offsets[..1]))));
    assert_eq!(
        harness.committed_offset(&group, &parts[1]),
        Some(9),
        "what is not named keeps its offset"
    );
}

/// Whoever asks for committed offsets gets at least what was acknowledged before the question: offsets that are being
/// committed are waited for.
pub fn committed_offsets_are_never_behind_an_acknowledged_commit(harness: &Harness) {
    let (input, output, group) = (harness.line(), harness.line(), support::unique("group"));
    let (_consumer, member) = harness.group_metadata(&group, &input.topic);
    let mut session = harness.any_session();
    let (acknowledged, last) = (AtomicI64::new(0), 60);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for next in 1..=last {
                session.begin().unwrap();
                session.send(&batch(&output, &["x"])).unwrap();
                committed(session.commit(Some((&member, &[(input.clone(), next)]))));
                acknowledged.store(next, Ordering::SeqCst);
            }
        });
        loop {
            let before = acknowledged.load(Ordering::SeqCst);
            let found = harness.committed_offset(&group, &input).unwrap_or(0);
            assert!(
                found >= before,
                "{found} was answered after {before} had been acknowledged"
            );
            if found == last {
                break;
            }
        }
    });
}

/// Many transactions of one record each are the same to every reader from whatever place, while they are new and when the
/// log has tidied them up.
pub fn many_small_transactions_stay_as_they_were(harness: &Harness) {
    const COUNT: i64 = 1_400;
    let (at, mut session) = (harness.line(), harness.any_session());
    let mut want = Vec::new();
    for n in 0..COUNT {
        let value = format!("{n} {}", "v".repeat(300));
        session.begin().unwrap();
        session.send(&batch(&at, &[&value])).unwrap();
        if n % 13 == 5 {
            // A transaction that leaves nothing behind leaves no marker: the record must be there first.
            wait_end(harness, &at, 2 * n + 1);
            session.abort().unwrap();
        } else {
            committed(session.commit(None));
            want.push((2 * n, value));
        }
    }
    // The log in the process tidies up five times a second.
    let started = std::time::Instant::now();
    while started.elapsed() < 4 * SHORT.max(std::time::Duration::from_millis(100)) {
        for from in [0, 1, 777, COUNT, 2 * COUNT - 2] {
            let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Offset(from));
            let left: Vec<_> = want.iter().filter(|(offset, _)| *offset >= from).cloned().collect();
            assert_eq!(harness.take(&mut *reader, left.len()), left, "from {from}");
        }
    }
    assert_eq!(harness.committed(&at), want);
    assert_eq!(harness.offset(&at, OffsetSpec::LogEnd), 2 * COUNT);
}
