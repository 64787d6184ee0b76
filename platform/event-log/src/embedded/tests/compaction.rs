//! Compaction with a manual clock and with storage that fails during a pass. Readers whose position is within a
//! rewritten block continue. Random runs are in `model`.

use super::*;
use crate::RecordRef;

/// Offset, key and value of a record; a tombstone's value is `-`.
pub(super) type Seen = (Offset, String, String);

pub(super) fn seen(record: &RecordRef<'_>) -> Seen {
    let text = |bytes: Option<&[u8]>| bytes.map_or("-".to_owned(), |b| String::from_utf8_lossy(b).into_owned());
    (record.offset(), text(record.key()), text(record.value()))
}

/// Records as `key=value` or `key` for a tombstone.
pub(super) fn keyed(at: &TopicPartition, records: &[&str]) -> OutBatch {
    let mut batch = OutBatch::default();
    for record in records {
        let (key, value) = record
            .split_once('=')
            .map_or((*record, None), |(key, value)| (key, Some(value)));
        batch.push(
            OutRecord {
                topic: &at.topic,
                partition: Some(at.partition),
                timestamp: None,
                key: Some(key.as_bytes()),
                value: value.map(str::as_bytes),
            },
            [("h", Some(key.as_bytes()))],
        );
    }
    batch
}

impl TestLog {
    fn compacted(&self, settings: &[(&str, &str)]) -> TopicPartition {
        let eager = [("min.cleanable.dirty.ratio", "0"), ("delete.retention.ms", "100")];
        self.topic_of(Cleanup::Compact, &[&eager, settings].concat())
    }

    fn put(&self, at: &TopicPartition, records: &[&str]) -> Offset {
        self.log.append(&keyed(at, records)).expect("append")[0].first_offset
    }

    fn transact(&self, producer: &mut dyn TransactionalProducer, at: &TopicPartition, records: &[&str], commits: bool) {
        producer.begin().expect("begin");
        producer.send(&keyed(at, records)).expect("send");
        match commits {
            true => assert!(matches!(producer.commit(None), Outcome::Committed(_))),
            false => producer.abort().expect("abort"),
        }
    }

    fn clean(&self) {
        self.log.clean(self.log.broker.now()).expect("clean");
    }

    pub(super) fn seen(&self, isolation: Isolation, at: &TopicPartition) -> Vec<Seen> {
        let mut reader = self.log.reader(isolation).expect("reader");
        reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
        let which = match isolation {
            Isolation::ReadCommitted => OffsetSpec::LastStable,
            Isolation::ReadUncommitted => OffsetSpec::LogEnd,
        };
        let end = self.log.offset(at, which).expect("end");
        let (mut all, mut batch) = (Vec::new(), RecordBatch::default());
        while reader.position(at) < Some(end) {
            reader.poll(&mut batch, 1 << 20, Duration::ZERO).expect("poll");
            all.extend(batch.iter().map(|record| seen(&record)));
        }
        all
    }

    /// Returns offsets and values of committed records, as `0 key=value`.
    fn shown(&self, at: &TopicPartition) -> Vec<String> {
        let all = self.seen(Isolation::ReadCommitted, at);
        all.iter().map(|(o, key, value)| format!("{o} {key}={value}")).collect()
    }

    /// Returns the sizes of the stored blocks.
    pub(super) fn sizes(&self, at: &TopicPartition) -> Vec<u64> {
        self.sizes_of(&self.log.broker.state(), at)
    }

    fn sizes_of(&self, state: &state::State, at: &TopicPartition) -> Vec<u64> {
        let id = state.resolve(at).expect("it exists");
        let (from, to) = (format::block_key(id, 0), format::block_key(id, Offset::MAX));
        let mut sizes = Vec::new();
        let mut visit = |_: &[u8], value: Bytes| {
            sizes.push(block::Block::parse(0, value).expect("a block").size());
            std::ops::ControlFlow::Continue(())
        };
        self.store.scan(Space::Records, &from, &to, &mut visit).expect("scan");
        sizes
    }

    fn blocks(&self, at: &TopicPartition) -> usize {
        self.sizes(at).len()
    }
}

#[test]
fn newest_of_each_key_is_kept_unchanged() {
    let mut hand = TestLog::new();
    let at = hand.compacted(&[]);
    hand.put(&at, &["a=1", "b=1", "c=1", "b=2"]);
    hand.advance(10);
    hand.put(&at, &["a=2", "d=1"]);
    hand.put(&at, &["e=1", "e=2"]);
    let plain = |hand: &TestLog| {
        let mut reader = hand.log.reader(Isolation::ReadCommitted).expect("reader");
        reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
        let mut batch = RecordBatch::default();
        reader.poll(&mut batch, 1 << 20, Duration::ZERO).expect("poll");
        let header = |r: &RecordRef<'_>| r.header("h").expect("its header").to_vec();
        let all = batch.iter().map(|r| (seen(&r), r.timestamp(), header(&r)));
        all.collect::<Vec<_>>()
    };
    let before = plain(&hand);
    hand.clean();
    for _ in 0..2 {
        let kept: Vec<_> = before
            .iter()
            .filter(|((offset, ..), ..)| [2, 3, 4, 5, 7].contains(offset))
            .cloned()
            .collect();
        assert_eq!(plain(&hand), kept);
        assert_eq!(hand.range(&at), [0, 8, 8], "start and end are unchanged");
        let time = |time| hand.log.offset(&at, OffsetSpec::Timestamp(time)).expect("time");
        assert_eq!([0, 1_000_000, 1_000_001, 1_000_011].map(time), [2, 2, 4, 8]);
        hand.reopen_log();
    }
    assert_eq!(hand.put(&at, &["f=1"]), 8);
}

#[test]
fn young_records_supersede_nothing() {
    let hand = TestLog::new();
    let at = hand.compacted(&[("min.compaction.lag.ms", "50")]);
    hand.put(&at, &["a=1"]);
    hand.put(&at, &["a=2"]);
    hand.advance(20);
    hand.put(&at, &["a=3"]);
    hand.advance(29);
    hand.clean();
    assert_eq!(
        hand.shown(&at),
        ["0 a=1", "1 a=2", "2 a=3"],
        "all are 49 ms old or younger"
    );
    hand.advance(1);
    hand.clean();
    assert_eq!(hand.shown(&at), ["1 a=2", "2 a=3"]);
    hand.advance(19);
    hand.clean();
    assert_eq!(hand.shown(&at), ["1 a=2", "2 a=3"], "the third is 49 ms old");
    hand.advance(1);
    hand.clean();
    assert_eq!(hand.shown(&at), ["2 a=3"]);
}

#[test]
fn tombstone_expires_after_first_cleaning() {
    let mut hand = TestLog::new();
    let at = hand.compacted(&[]);
    hand.put(&at, &["a=1", "b=1"]);
    hand.put(&at, &["a", "c=1"]);
    hand.advance(5_000);
    hand.clean();
    assert_eq!(
        hand.shown(&at),
        ["1 b=1", "2 a=-", "3 c=1"],
        "its timestamp is irrelevant"
    );
    hand.advance(60);
    hand.put(&at, &["b=2"]);
    hand.clean();
    assert_eq!(hand.shown(&at), ["2 a=-", "3 c=1", "4 b=2"]);
    let longer = [("delete.retention.ms".to_owned(), "9000".to_owned())];
    hand.log.alter_topic("t", &longer).expect("alter");
    hand.reopen_log();
    hand.advance(39);
    hand.clean();
    assert_eq!(hand.shown(&at).len(), 3, "a later cleaning does not extend the time");
    hand.advance(1);
    hand.clean();
    assert_eq!(hand.shown(&at), ["3 c=1", "4 b=2"], "it expires without a new record");
    hand.reopen_log();
    assert_eq!(hand.shown(&at), ["3 c=1", "4 b=2"]);
    assert_eq!(hand.range(&at), [0, 5, 5]);
}

#[test]
fn open_transaction_blocks_compaction() {
    let hand = TestLog::new();
    let at = hand.compacted(&[]);
    hand.put(&at, &["a=1"]);
    hand.put(&at, &["a=2"]);
    let mut producer = hand.transactional_producer(60_000);
    producer.begin().expect("begin");
    producer.send(&keyed(&at, &["a=3"])).expect("send");
    hand.put(&at, &["b=1"]);
    hand.put(&at, &["b=2"]);
    hand.clean();
    let all = hand.seen(Isolation::ReadUncommitted, &at);
    let offsets: Vec<Offset> = all.iter().map(|(offset, ..)| *offset).collect();
    assert_eq!(offsets, [1, 2, 3, 4], "nothing at or after its first record is cleaned");
    assert!(matches!(producer.commit(None), Outcome::Committed(_)));
    hand.clean();
    assert_eq!(hand.shown(&at), ["2 a=3", "4 b=2"]);
}

#[test]
fn aborted_records_and_markers_are_removed() {
    let mut hand = TestLog::new();
    let at = hand.compacted(&[]);
    hand.put(&at, &["a=1"]);
    let mut producer = hand.transactional_producer(60_000);
    hand.transact(&mut *producer, &at, &["a=no", "b=no"], false);
    hand.transact(&mut *producer, &at, &["c=1"], true);
    hand.transact(&mut *producer, &at, &["c=2", "d"], true);
    hand.clean();
    assert_eq!(hand.shown(&at), ["0 a=1", "6 c=2", "7 d=-"]);
    assert_eq!(hand.seen(Isolation::ReadUncommitted, &at).len(), 3);
    assert!(hand.log.broker.state().part(&at).expect("it exists").aborted.is_empty());
    assert_eq!(hand.blocks(&at), 5, "all three control records remain");
    hand.advance(99);
    hand.clean();
    assert_eq!(hand.blocks(&at), 5);
    hand.advance(1);
    hand.clean();
    assert_eq!(hand.blocks(&at), 1, "the rest was merged");
    assert_eq!(hand.shown(&at), ["0 a=1", "6 c=2"]);
    drop(producer);
    hand.reopen_log();
    assert_eq!(hand.shown(&at), ["0 a=1", "6 c=2"]);
    assert_eq!(hand.range(&at), [0, 9, 9]);
}

#[test]
fn log_end_survives_removal_of_all_records() {
    let mut hand = TestLog::new();
    let at = hand.compacted(&[]);
    hand.put(&at, &["a=1"]);
    hand.put(&at, &["a"]);
    let mut producer = hand.transactional_producer(60_000);
    hand.transact(&mut *producer, &at, &["b=no"], false);
    drop(producer);
    hand.clean();
    hand.advance(100);
    hand.clean();
    assert_eq!(hand.blocks(&at), 0);
    for _ in 0..2 {
        assert_eq!((hand.shown(&at), hand.range(&at)), (vec![], [0, 4, 4]));
        assert_eq!(hand.log.offset(&at, OffsetSpec::Timestamp(0)).expect("time"), 4);
        hand.reopen_log();
    }
    let mut reader = hand.log.reader(Isolation::ReadCommitted).expect("reader");
    reader.assign(&[(at.clone(), StartFrom::Offset(1))]).expect("assign");
    let mut batch = RecordBatch::default();
    assert_eq!(reader.poll(&mut batch, 1, Duration::ZERO).expect("poll"), 0);
    assert_eq!((reader.position(&at), reader.at_end(&at).is_some()), (Some(4), true));
    assert_eq!(hand.put(&at, &["c=1"]), 4);
    hand.reopen_log();
    assert_eq!(
        (hand.shown(&at), hand.range(&at)),
        (vec!["4 c=1".to_owned()], [0, 5, 5])
    );
}

#[test]
fn readers_continue_in_rewritten_block() {
    for cache_bytes in [0, 1 << 20] {
        let mut hand = TestLog::new();
        hand.log = opened_with(&hand.store, &hand.time, |config| config.cache_bytes = cache_bytes).expect("open");
        let at = hand.compacted(&[]);
        hand.put(&at, &["a=1", "b=1", "c=1", "d=1", "e"]);
        hand.put(&at, &["f=1"]);
        let mut reader = hand.log.reader(Isolation::ReadCommitted).expect("reader");
        reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
        let (mut member, _) = hand.group_metadata("g");
        member.start(&at, 0).expect("start");
        let (mut read, mut polled, mut batch) = (Vec::new(), Vec::new(), RecordBatch::default());
        let mut both = |count: usize| {
            for _ in 0..count {
                reader.poll(&mut batch, 1, Duration::ZERO).expect("poll");
                read.extend(batch.iter().map(|r| r.offset()));
                assert_eq!(batch.partitions().is_empty(), batch.is_empty());
                member.poll(&mut batch, 1, Duration::ZERO).expect("poll");
                polled.extend(batch.iter().map(|r| r.offset()));
            }
            (read.clone(), polled.clone())
        };
        both(2);
        hand.clean();
        both(1);
        hand.put(&at, &["c=2", "d=2"]);
        hand.clean();
        hand.put(&at, &["f=2"]);
        hand.advance(100);
        hand.clean();
        let want = vec![0, 1, 2, 6, 7, 8];
        assert_eq!(both(9), (want.clone(), want), "{cache_bytes} bytes of cache");
    }
}

#[test]
fn pass_waits_for_dirty_ratio_or_max_lag() {
    let mut hand = TestLog::new();
    let half = [("min.cleanable.dirty.ratio", "0.5"), ("max.compaction.lag.ms", "1000")];
    let at = hand.compacted(&half);
    // Large compared with the head of a block, so that the result is the same whether or not blocks were merged.
    let large = "x".repeat(1_000);
    for n in 0..10 {
        hand.put(&at, &[&format!("k{n}=1{large}")]);
    }
    hand.clean();
    hand.put(&at, &[&format!("k0=2{large}")]);
    hand.clean();
    assert_eq!(hand.shown(&at).len(), 11, "a tenth is dirty");
    hand.advance(1_000);
    hand.clean();
    assert_eq!(hand.shown(&at).len(), 11, "exactly max.compaction.lag.ms old");
    hand.reopen_log();
    hand.advance(1);
    hand.clean();
    assert_eq!(hand.shown(&at).len(), 10);
    for n in 0..9 {
        hand.put(&at, &[&format!("k{n}=3{large}")]);
    }
    hand.clean();
    assert_eq!(hand.shown(&at).len(), 19, "less than half is dirty");
    hand.put(&at, &[&format!("k9=3{large}")]);
    hand.put(&at, &[&format!("k0=4{large}")]);
    hand.clean();
    assert_eq!(hand.shown(&at).len(), 10);
}

#[test]
fn excess_keys_are_cleaned_in_pieces() {
    let mut hand = TestLog::new();
    hand.log = opened_with(&hand.store, &hand.time, |config| config.cleaner_keys_max = 2).expect("open");
    let at = hand.compacted(&[]);
    for round in 0..3 {
        for n in 0..7 {
            hand.put(&at, &[&format!("k{n}={round}"), &format!("x{round}{n}")]);
        }
    }
    hand.clean();
    let values: Vec<String> = hand.shown(&at).iter().filter(|t| t.contains('k')).cloned().collect();
    let want: Vec<String> = (0..7).map(|n| format!("{} k{n}=2", 28 + 2 * n)).collect();
    assert_eq!(values, want);
    let state = hand.log.broker.state();
    assert_eq!(state.part(&at).expect("it exists").cleaned.next, 42);
}

/// Regardless of where in a pass storage fails, committed records remain and the next pass completes the work.
#[test]
fn interrupted_pass_loses_nothing() {
    let large = "x".repeat(120_000);
    for commits in 0.. {
        let mut hand = TestLog::new();
        let at = hand.compacted(&[("delete.retention.ms", "0")]);
        for round in 0..3 {
            for n in 0..12 {
                hand.put(
                    &at,
                    &[&format!("k{n}={round}{large}"), &format!("gone{n}={round}{large}")],
                );
            }
        }
        let gone: Vec<String> = (0..12).map(|n| format!("gone{n}")).collect();
        hand.put(&at, &gone.iter().map(String::as_str).collect::<Vec<_>>());
        let end = hand.range(&at);
        hand.store.breaks_after.store(commits, Ordering::SeqCst);
        // With delete.retention.ms=0 the second pass removes tombstones, even if the first was interrupted.
        let cut = [(); 3].map(|()| hand.log.clean(hand.log.broker.now()).is_err());
        hand.store.repair();
        hand.reopen_log();
        let newest = |hand: &TestLog| {
            let mut map = std::collections::BTreeMap::new();
            for (offset, key, value) in hand.seen(Isolation::ReadCommitted, &at) {
                map.insert(key, (offset, value[..1].to_owned()));
            }
            map.retain(|_, (_, value)| value != "-");
            map
        };
        let want = (0..12)
            .map(|n| (format!("k{n}"), (48 + 2 * n, "2".to_owned())))
            .collect();
        assert_eq!((newest(&hand), hand.range(&at)), (want, end), "after {commits} commits");
        (0..3).for_each(|_| hand.clean());
        let left = hand.seen(Isolation::ReadCommitted, &at);
        assert_eq!((left.len(), newest(&hand).len()), (12, 12), "after {commits} commits");
        if cut == [false; 3] {
            assert!(commits > 7, "it took {commits} commits");
            break;
        }
    }
}

#[test]
fn sizes_and_index_match_stored_blocks() {
    let mut hand = TestLog::new();
    let at = hand.topic_of(
        Cleanup::CompactDelete,
        &[
            ("retention.bytes", "900000"),
            ("min.cleanable.dirty.ratio", "0"),
            ("retention.ms", "-1"),
        ],
    );
    let large = "x".repeat(100_000);
    for round in 0..12 {
        for n in 0..8 {
            hand.put(&at, &[&format!("k{n}={large}")]);
            // Compaction leaves 800,000 bytes, which retention keeps.
            if n % 4 == 3 && round > 0 {
                hand.clean();
            }
        }
        if round == 0 {
            hand.clean();
        }
        hand.put(&at, &["small=1"]);
        hand.put(&at, &["small=2"]);
        hand.clean();
        // No record is superseded, so the pass changes only blocks far below the last index entry.
        hand.put(&at, &[&format!("once{round}=1")]);
        hand.clean();
        hand.reopen_log();
        let state = hand.log.broker.state();
        let part = state.part(&at).expect("it exists");
        let sizes: u64 = hand.sizes_of(&state, &at).iter().sum();
        assert_eq!(part.bytes - part.gone_bytes(), sizes, "round {round}");
    }
    hand.clean();
    let state = hand.log.broker.state();
    let part = state.part(&at).expect("it exists");
    let kept = part.bytes - part.gone_bytes();
    assert!((800_000..803_000).contains(&kept), "{kept} bytes");
    assert!(part.index.len() <= 8, "{} entries for 800 kB", part.index.len());
    drop(state);
    let is_large = |seen: &&Seen| seen.2.len() > 1;
    let all = hand.seen(Isolation::ReadCommitted, &at);
    assert_eq!(all.iter().filter(is_large).count(), 8);
    let smaller = [("retention.bytes".to_owned(), "350000".to_owned())];
    hand.log.alter_topic("t", &smaller).expect("alter");
    hand.clean();
    let left = hand.seen(Isolation::ReadCommitted, &at);
    let start = left[0].0;
    assert_eq!(left.iter().filter(is_large).count(), 4);
    hand.reopen_log();
    let [kept, ..] = hand.range(&at);
    assert!(kept <= start && hand.seen(Isolation::ReadCommitted, &at) == left);
}

#[test]
fn record_without_key_is_rejected_or_removed() {
    let hand = TestLog::new();
    let at = hand.topic_of(Cleanup::Delete, &[("min.cleanable.dirty.ratio", "0")]);
    hand.append(&at, "no key").expect("append");
    hand.put(&at, &["a=1"]);
    let compact = [("cleanup.policy".to_owned(), "compact".to_owned())];
    hand.log.alter_topic("t", &compact).expect("alter");
    let rejected = hand.append(&at, "no key");
    assert!(matches!(rejected, Err(Error::Rejected { .. })), "{rejected:?}");
    let mut producer = hand.transactional_producer(9_000);
    producer.begin().expect("begin");
    assert!(producer.send(&batch(&at, "no key")).is_err());
    assert!(matches!(producer.commit(None), Outcome::Aborted { fenced: false, .. }));
    hand.clean();
    assert_eq!(hand.shown(&at), ["1 a=1"]);
}
