//! Merging of small blocks is invisible to readers: offsets, timestamps, keys, values and headers are unchanged, sizes
//! match the storage, readers within a block continue, and no record is lost when storage fails.

use super::*;
use crate::TimestampPolicy;

/// Offset, time, key, value and header of a record.
pub(super) type All = (Offset, Millis, Vec<u8>, Vec<u8>, Vec<u8>);

const TRANSACTIONS: usize = 6_000;

impl TestLog {
    /// Writes many transactions of one record, some of them aborted, and some records outside transactions.
    pub(super) fn many(&self, at: &TopicPartition) {
        let mut producer = self.transactional_producer(600_000);
        for n in 0..TRANSACTIONS {
            let mut out = OutBatch::default();
            let (key, value) = (format!("k{n}"), format!("{n} {}", "v".repeat(n % 150)));
            let record = OutRecord {
                topic: &at.topic,
                partition: Some(0),
                timestamp: None,
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
            };
            out.push(record, [("h", Some(key.as_bytes()))]);
            if n % 11 == 0 {
                self.log.append(&out).expect("append");
                continue;
            }
            producer.begin().expect("begin");
            producer.send(&out).expect("send");
            match n % 401 {
                0 => producer.abort().expect("abort"),
                _ => assert!(matches!(producer.commit(None), Outcome::Committed(_))),
            }
            self.advance(3);
        }
    }

    pub(super) fn all(&self, at: &TopicPartition, isolation: Isolation) -> Vec<All> {
        let mut reader = self.log.reader(isolation).expect("reader");
        reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
        let end = self.range(at)[2];
        let (mut all, mut batch) = (Vec::new(), RecordBatch::default());
        while reader.position(at) < Some(end) {
            reader.poll(&mut batch, 1 << 16, Duration::ZERO).expect("poll");
            all.extend(batch.iter().map(|r| {
                let bytes = |bytes: Option<&[u8]>| bytes.unwrap_or_default().to_vec();
                let header = r.header("h").unwrap_or_default().to_vec();
                (r.offset(), r.timestamp(), bytes(r.key()), bytes(r.value()), header)
            }));
        }
        all
    }

    fn facts(&self, at: &TopicPartition) -> (Vec<All>, Vec<All>, [Offset; 3], Vec<Offset>) {
        let times = (0..20).map(|n| 1_000_000 + n * 901);
        let found = times.map(|time| self.log.offset(at, OffsetSpec::Timestamp(time)).expect("time"));
        (
            self.all(at, Isolation::ReadCommitted),
            self.all(at, Isolation::ReadUncommitted),
            self.range(at),
            found.collect(),
        )
    }

    pub(super) fn blocks_of(&self, at: &TopicPartition) -> Vec<block::Block> {
        let id = self.log.broker.state().resolve(at).expect("it exists");
        let mut blocks = Vec::new();
        let mut visit = |block| {
            blocks.push(block);
            Ok(std::ops::ControlFlow::Continue(()))
        };
        self.log.broker.blocks(id, 0, Offset::MAX, &mut visit).expect("blocks");
        blocks
    }

    fn check_sizes(&self, at: &TopicPartition) {
        let sizes: u64 = self.sizes(at).iter().sum();
        let state = self.log.broker.state();
        let part = state.part(at).expect("it exists");
        assert_eq!(part.bytes - part.gone_bytes(), sizes);
    }
}

pub(super) fn line(hand: &TestLog, timestamps: TimestampPolicy, settings: &[(&str, &str)]) -> TopicPartition {
    let mut config = TopicConfig::new(Cleanup::Delete);
    config.timestamps = timestamps;
    let named = settings
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    config.other.extend(named);
    let spec = TopicSpec {
        name: "t".to_owned(),
        partitions: 1,
        replication: None,
        config,
    };
    hand.log.create_topics(&[spec]).expect("create");
    TopicPartition::new("t", 0)
}

#[test]
fn small_blocks_are_merged_invisibly() {
    for timestamps in [TimestampPolicy::CreateTime, TimestampPolicy::LogAppendTime] {
        let mut hand = TestLog::new();
        let at = line(&hand, timestamps, &[("retention.ms", "-1")]);
        hand.many(&at);
        let (before, blocks) = (hand.facts(&at), hand.sizes(&at).len());
        hand.log.clean(hand.log.broker.now()).expect("clean");
        let merged = hand.sizes(&at).len();
        assert!(merged < blocks / 3, "{merged} blocks of {blocks}");
        assert_eq!(hand.facts(&at), before);
        hand.check_sizes(&at);
        hand.reopen_log();
        assert_eq!(hand.facts(&at), before);
        hand.check_sizes(&at);
        // A merged block is not merged again.
        hand.log.clean(hand.log.broker.now()).expect("clean");
        assert_eq!(hand.sizes(&at).len(), merged);
        hand.append(&at, "next").expect("append");
        assert_eq!(hand.range(&at)[2], before.2[2] + 1);
    }
}

#[test]
fn reader_continues_in_merged_block() {
    let hand = TestLog::new();
    let at = line(&hand, TimestampPolicy::CreateTime, &[("retention.ms", "-1")]);
    hand.many(&at);
    let all = hand.all(&at, Isolation::ReadCommitted);
    let mut reader = hand.log.reader(Isolation::ReadCommitted).expect("reader");
    reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
    let (mut read, mut batch) = (Vec::new(), RecordBatch::default());
    while read.len() < all.len() {
        if read.len() > all.len() / 3 {
            hand.log.clean(hand.log.broker.now()).expect("clean");
        }
        reader.poll(&mut batch, 700, Duration::ZERO).expect("poll");
        read.extend(batch.iter().map(|record| record.offset()));
    }
    assert!(read.iter().eq(all.iter().map(|(offset, ..)| offset)));
}

#[test]
fn interrupted_merge_loses_nothing() {
    let mut hand = TestLog::new();
    let at = line(&hand, TimestampPolicy::CreateTime, &[("retention.ms", "-1")]);
    hand.many(&at);
    let before = hand.facts(&at);
    let mut failed = 0;
    for commits in 0.. {
        hand.store.breaks_after.store(commits, Ordering::SeqCst);
        let whole = hand.log.clean(hand.log.broker.now()).is_ok();
        hand.store.repair();
        assert_eq!(hand.facts(&at), before, "after {commits} commits");
        hand.reopen_log();
        assert_eq!(hand.facts(&at), before, "after {commits} commits, opened again");
        hand.check_sizes(&at);
        failed += usize::from(!whole);
        if whole {
            break;
        }
    }
    assert!(failed > 0);
}

#[test]
fn merged_blocks_span_a_fraction_of_retention() {
    let hand = TestLog::new();
    let at = line(&hand, TimestampPolicy::LogAppendTime, &[("retention.ms", "64000")]);
    hand.many(&at);
    let now = hand.log.broker.now();
    hand.log.clean(now).expect("clean");
    let mut start = 0;
    // A merged block spans up to 1/64 of retention.ms: 1 s, which is 333 transactions at intervals of 3 ms.
    for age in (46_000..64_000).step_by(500) {
        hand.log.clean(now + age).expect("clean");
        let next = hand.range(&at)[0];
        assert!(next - start < 1_200, "{start} to {next} at once");
        start = next;
    }
    assert!(start > 5_000, "{start}");
}

#[test]
fn reader_skips_nothing_during_merge() {
    let mut hand = TestLog::new();
    hand.log = opened_with(&hand.store, &hand.time, |config| config.cache_bytes = 0).expect("open");
    let at = line(&hand, TimestampPolicy::CreateTime, &[("retention.ms", "-1")]);
    hand.many(&at);
    let all = hand.all(&at, Isolation::ReadCommitted);
    let (from, ..) = all[all.len() / 3];
    let mut reader = hand.log.reader(Isolation::ReadCommitted).expect("reader");
    reader.assign(&[(at.clone(), StartFrom::Offset(from))]).expect("assign");
    // Runs between the lookup of the block that contains the position and the scan that starts there.
    let (broker, blocks) = (hand.log.broker.clone(), hand.sizes(&at).len());
    hand.store
        .once(Moment::AfterLast, move || broker.clean(broker.now()).expect("clean"));
    let mut batch = RecordBatch::default();
    reader.poll(&mut batch, 1 << 10, Duration::ZERO).expect("poll");
    assert!(hand.sizes(&at).len() < blocks / 3, "blocks were merged in between");
    let read: Vec<Offset> = batch.iter().map(|record| record.offset()).collect();
    let want = all.iter().map(|(offset, ..)| *offset).skip(all.len() / 3);
    assert!(!read.is_empty() && read.into_iter().eq(want.take(batch.len())));
}

#[test]
fn no_merged_block_spans_an_index_entry() {
    let hand = TestLog::new();
    let at = hand.topic_of(
        Cleanup::Compact,
        &[("min.cleanable.dirty.ratio", "0"), ("delete.retention.ms", "0")],
    );
    let put = |key: &str, bytes: usize| {
        hand.advance(10);
        let value = format!("{key}={}", "v".repeat(bytes));
        let produced = hand
            .log
            .append(&super::compaction::keyed(&at, &[&value]))
            .expect("append");
        (produced[0].first_offset, hand.log.broker.now())
    };
    let mut kept = Vec::new();
    // One of eight records remains, so that blocks at index entries are removed while the entries remain.
    for n in 0..4_000 {
        match n % 8 {
            0 => kept.push(put(&format!("k{n}"), 1_500)),
            _ => drop(put("same", 150)),
        }
    }
    for _ in 0..3 {
        hand.log.clean(hand.log.broker.now()).expect("clean");
        let index: Vec<Offset> = {
            let state = hand.log.broker.state();
            let entries = &state.part(&at).expect("it exists").index;
            entries.iter().map(|entry| entry.offset).collect()
        };
        let blocks = hand.blocks_of(&at);
        let begins = |entry: Offset| blocks.iter().any(|block| block.base == entry);
        let lone = index.iter().any(|entry| *entry < 4_000 && !begins(*entry));
        assert!(lone, "an entry without its block: {index:?}");
        let spans = |block: &block::Block| index.iter().any(|entry| block.base < *entry && *entry < block.next());
        assert!(!blocks.iter().any(spans), "{index:?}");
        for (offset, time) in &kept {
            assert_eq!(
                hand.log.offset(&at, OffsetSpec::Timestamp(*time)).expect("time"),
                *offset
            );
        }
        put("other", 10);
    }
}

#[test]
fn merged_blocks_are_compacted_later() {
    let hand = TestLog::new();
    let at = hand.topic_of(
        Cleanup::Compact,
        &[("min.cleanable.dirty.ratio", "0"), ("min.compaction.lag.ms", "10000")],
    );
    let put = |from: usize, keys: usize| {
        for n in from..from + 1_000 {
            let records = format!("k{}={n}{}", n % keys, "v".repeat(300));
            hand.log
                .append(&super::compaction::keyed(&at, &[&records]))
                .expect("append");
        }
    };
    let clean = |cleanup: &str| {
        let changes = [("cleanup.policy".to_owned(), cleanup.to_owned())];
        hand.log.alter_topic("t", &changes).expect("alter");
        hand.log.clean(hand.log.broker.now()).expect("clean");
    };
    put(0, 1_000);
    hand.advance(20_000);
    put(1_000, 1_000);
    let mut producer = hand.transactional_producer(5_000);
    producer.begin().expect("begin");
    producer
        .send(&super::compaction::keyed(&at, &["never=1"]))
        .expect("send");
    producer.abort().expect("abort");
    // The pass ends between two index entries.
    clean("compact");
    put(2_000, 1);
    clean("delete");
    hand.advance(20_000);
    clean("compact");
    let left = hand.all(&at, Isolation::ReadCommitted);
    assert_eq!(left.len(), 1_000, "one of each key");
    hand.check_sizes(&at);
    let state = hand.log.broker.state();
    let aborted = &state.part(&at).expect("it exists").aborted;
    assert!(aborted.is_empty(), "its abort marker was found: {aborted:?}");
}

#[test]
fn open_transactions_are_not_merged() {
    let hand = TestLog::new();
    let at = line(&hand, TimestampPolicy::CreateTime, &[("retention.ms", "-1")]);
    let config = TransactionalProducerConfig {
        transactional_id: "open".to_owned(),
        transaction_timeout: Duration::from_secs(600),
    };
    let mut open = hand.log.transactional_producer(config).expect("producer");
    hand.append(&at, "first").expect("append");
    open.begin().expect("begin");
    open.send(&batch(&at, "never")).expect("send");
    hand.many(&at);
    hand.log.clean(hand.log.broker.now()).expect("clean");
    open.abort().expect("abort");
    let values = hand.all(&at, Isolation::ReadCommitted);
    assert!(values.len() > TRANSACTIONS / 2 && !values.iter().any(|(_, _, _, value, _)| value == b"never"));
}
