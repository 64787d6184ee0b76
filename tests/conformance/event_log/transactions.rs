//! Transactions: records and consumed offsets become visible together or not at all.

use super::harness::{Harness, LIMIT, SHORT, batch, committed, record, seen, texts};
use crate::support;
use event_log::{Isolation, OffsetSpec, OutBatch, RecordBatch, StartFrom, TopicPartition};
use std::sync::atomic::{AtomicI64, Ordering};

fn wait_end(harness: &Harness, at: &TopicPartition, end: i64) {
    support::wait_for("the records to be appended", LIMIT, || {
        (harness.offset(at, OffsetSpec::LogEnd) == end).then_some(())
    });
}

/// Records of an open transaction are visible to `read_uncommitted` readers only.
pub fn open_transaction_is_hidden_from_read_committed(harness: &Harness) {
    let at = harness.partition();
    harness.append(&at, &["before"]);
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&at, &["a"])).unwrap();
    producer.send(&batch(&at, &["b"])).unwrap();
    wait_end(harness, &at, 3);
    assert_eq!(
        harness.all(Isolation::ReadUncommitted, &at),
        seen(&[(0, "before"), (1, "a"), (2, "b")])
    );
    let mut reader = harness.reader(Isolation::ReadCommitted, &at, StartFrom::Earliest);
    assert_eq!(harness.take(&mut *reader, 1), seen(&[(0, "before")]));
    assert_eq!(reader.poll(&mut RecordBatch::default(), 1_000, SHORT).unwrap(), 0);
    committed(producer.commit(None));
    assert_eq!(harness.take(&mut *reader, 2), seen(&[(1, "a"), (2, "b")]));
}

/// The last stable offset is the first offset of the oldest open transaction. Records after it are not returned until
/// then, even if they are committed or were written outside transactions.
pub fn open_transaction_holds_last_stable_offset(harness: &Harness) {
    let at = harness.partition();
    harness.append(&at, &["before"]);
    let mut slow = harness.any_producer();
    slow.begin().unwrap();
    slow.send(&batch(&at, &["slow"])).unwrap();
    wait_end(harness, &at, 2);
    let mut quick = harness.any_producer();
    harness.transact(&mut *quick, &at, &["quick"]);
    // A commit returns when the outcome is decided. Its control records may be written later.
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

/// Aborted records keep their offsets, are not returned to `read_committed` readers, and do not block them.
pub fn aborted_transaction_leaves_no_records(harness: &Harness) {
    let at = harness.partition();
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&batch(&at, &["no", "never"])).unwrap();
    wait_end(harness, &at, 2);
    producer.abort().unwrap();
    harness.wait_no_open_transaction(&at);
    harness.append(&at, &["plain"]);
    harness.transact(&mut *producer, &at, &["yes"]);
    assert_eq!(harness.committed(&at), seen(&[(3, "plain"), (4, "yes")]));
    let all = harness.all(Isolation::ReadUncommitted, &at);
    assert_eq!(texts(&all), ["no", "never", "plain", "yes"]);
}

/// A commit takes one offset in each partition to which the transaction wrote, and in no other partition. `Produced`
/// does not include this offset.
pub fn control_record_takes_one_offset_per_partition(harness: &Harness) {
    let topic = harness.topic(3);
    let [a, b, c] = [0, 1, 2].map(|p| TopicPartition::new(topic.clone(), p));
    let mut producer = harness.any_producer();
    for round in 0..2 {
        producer.begin().unwrap();
        producer.send(&batch(&a, &["1", "2"])).unwrap();
        producer.send(&batch(&b, &["3"])).unwrap();
        producer.send(&batch(&a, &["4"])).unwrap();
        let mut produced = committed(producer.commit(None));
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
    assert_eq!([&a, &b, &c].map(|at| harness.wait_no_open_transaction(at)), [8, 4, 0]);
    let offsets: Vec<i64> = harness.committed(&a).iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [0, 1, 2, 4, 5, 6]);
}

/// A transaction with several partitions and topics becomes visible as a whole.
pub fn transaction_over_topics_is_atomic(harness: &Harness) {
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
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    producer.send(&out).unwrap();
    for at in &all {
        wait_end(harness, at, 1);
        assert_eq!(harness.all(Isolation::ReadCommitted, at), []);
    }
    assert_eq!(committed(producer.commit(None)).len(), all.len());
    for at in &all {
        assert_eq!(harness.committed(at), seen(&[(0, "together")]));
    }
}

/// Producers do not wait for each other: their records interleave, and each transaction becomes visible when it is
/// committed.
pub fn two_producers_interleave_in_a_partition(harness: &Harness) {
    let at = harness.partition();
    let (mut a, mut b) = (harness.any_producer(), harness.any_producer());
    a.begin().unwrap();
    b.begin().unwrap();
    for (end, text) in [(1, "a1"), (2, "b1"), (3, "a2"), (4, "b2")] {
        let producer = if text.starts_with('a') { &mut a } else { &mut b };
        producer.send(&batch(&at, &[text])).unwrap();
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

/// An empty transaction can be committed and writes nothing.
pub fn empty_transaction_commits(harness: &Harness) {
    let at = harness.partition();
    let mut producer = harness.any_producer();
    for _ in 0..2 {
        producer.begin().unwrap();
        assert_eq!(committed(producer.commit(None)), []);
    }
    producer.begin().unwrap();
    producer.send(&OutBatch::default()).unwrap();
    assert_eq!(committed(producer.commit(None)), []);
    assert_eq!(harness.offset(&at, OffsetSpec::LogEnd), 0);
    assert_eq!(harness.transact(&mut *producer, &at, &["a"]).first_offset, 0);
}

/// Consumed offsets are the group's committed offsets when the commit has returned, and not before.
pub fn consumed_offsets_become_visible_with_the_commit(harness: &Harness) {
    let (input, output, group) = (harness.partition(), harness.partition(), support::unique("group"));
    harness.append(&input, &["a", "b"]);
    let (consumer, member) = harness.group_metadata(&group, &input.topic);
    let mut producer = harness.any_producer();
    for next in [1, 2] {
        producer.begin().unwrap();
        producer.send(&batch(&output, &["out"])).unwrap();
        assert_eq!(harness.committed_offset(&group, &input), (next > 1).then_some(next - 1));
        committed(producer.commit(Some((&member, &[(input.clone(), next)]))));
        assert_eq!(harness.committed_offset(&group, &input), Some(next));
    }
    assert_eq!(texts(&harness.committed(&output)), ["out", "out"]);
    consumer.close().unwrap();
    assert_eq!(harness.committed_offset(&group, &input), Some(2));
}

/// A transaction that is not committed does not change the group's offsets.
pub fn aborted_offsets_are_never_visible(harness: &Harness) {
    let (input, output, group) = (harness.partition(), harness.partition(), support::unique("group"));
    let (_consumer, member) = harness.group_metadata(&group, &input.topic);
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    committed(producer.commit(Some((&member, &[(input.clone(), 3)]))));
    producer.begin().unwrap();
    producer.send(&batch(&output, &["never"])).unwrap();
    producer.abort().unwrap();
    assert_eq!(harness.committed_offset(&group, &input), Some(3));
    assert_eq!(harness.committed(&output), []);
}

/// A transaction can consist of offsets only.
pub fn transaction_may_contain_offsets_only(harness: &Harness) {
    let (topic, group) = (harness.topic(2), support::unique("group"));
    let parts = [0, 1].map(|p| TopicPartition::new(topic.clone(), p));
    let (_consumer, member) = harness.group_metadata(&group, &topic);
    let mut producer = harness.any_producer();
    producer.begin().unwrap();
    let offsets = [(parts[0].clone(), 7), (parts[1].clone(), 9)];
    assert_eq!(committed(producer.commit(Some((&member, &offsets)))), []);
    assert_eq!(
        parts.clone().map(|at| harness.committed_offset(&group, &at)),
        [Some(7), Some(9)]
    );
    producer.begin().unwrap();
    committed(producer.commit(Some((&member, &offsets[..1]))));
    assert_eq!(
        harness.committed_offset(&group, &parts[1]),
        Some(9),
        "what is not named keeps its offset"
    );
}

/// `committed` returns at least what was acknowledged before the call: it waits for offsets whose commit is in
/// progress.
pub fn committed_offsets_include_acknowledged_commits(harness: &Harness) {
    let (input, output, group) = (harness.partition(), harness.partition(), support::unique("group"));
    let (_consumer, member) = harness.group_metadata(&group, &input.topic);
    let mut producer = harness.any_producer();
    let (acknowledged, last) = (AtomicI64::new(0), 60);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for next in 1..=last {
                producer.begin().unwrap();
                producer.send(&batch(&output, &["x"])).unwrap();
                committed(producer.commit(Some((&member, &[(input.clone(), next)]))));
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

/// Many transactions of one record are read in the same way from every start position, before and after the embedded
/// log merges their blocks.
pub fn many_small_transactions_remain_unchanged(harness: &Harness) {
    const COUNT: i64 = 1_400;
    let (at, mut producer) = (harness.partition(), harness.any_producer());
    let mut want = Vec::new();
    for n in 0..COUNT {
        let value = format!("{n} {}", "v".repeat(300));
        producer.begin().unwrap();
        producer.send(&batch(&at, &[&value])).unwrap();
        if n % 13 == 5 {
            // A transaction without records leaves no control record, so the test waits for the record first.
            wait_end(harness, &at, 2 * n + 1);
            producer.abort().unwrap();
        } else {
            committed(producer.commit(None));
            want.push((2 * n, value));
        }
    }
    // The embedded log cleans five times a second.
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
