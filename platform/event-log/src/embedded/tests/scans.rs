//! Scans while the cleaner merges and removes the blocks ahead of them.
//!
//! Two properties are tested separately: storage shows one snapshot to a scan, and if storage does not
//! (`Faulty::scan_live`), a reader skips only records that retention or compaction removed.

use super::merge::line;
use super::model::Random;
use super::*;
use crate::{ErrorScope, Event, GroupConfig, GroupConsumer, GroupProtocol, TimestampPolicy};
use std::ops::ControlFlow;

/// Returns the keys with the beginning of their values.
fn entries(backing: &dyn Backing, visit: &mut dyn FnMut(usize)) -> Vec<(u8, Bytes)> {
    let mut found = Vec::new();
    let mut each = |key: &[u8], value: Bytes| {
        found.push((key[0], value));
        visit(found.len());
        ControlFlow::Continue(())
    };
    backing.scan(Space::Records, &[0], &[u8::MAX], &mut each).expect("scan");
    found
}

fn put_all(backing: &dyn Backing, keys: &[(u8, &'static str)]) {
    let mut writes = Writes::default();
    for (key, value) in keys {
        writes.put(Space::Records, [*key], *value);
    }
    backing.commit(&writes, Persist::Buffer).expect("commit");
}

/// Commits a merge: the new bytes of the first block, the removal of the other merged blocks, and a block appended by
/// another writer.
fn merge_all(backing: &dyn Backing) {
    let mut writes = Writes::default();
    writes.put(Space::Records, [1], "all");
    (2..=8).for_each(|key| writes.remove(Space::Records, [key]));
    writes.put(Space::Records, [9], "new");
    backing.commit(&writes, Persist::Buffer).expect("commit");
}

fn check_scans_one_moment(open: &dyn Fn(usize) -> Box<dyn Backing>) {
    let before: Vec<(u8, &'static str)> = (1..=8).map(|key| (key, "one")).collect();
    for at in 1..=8 {
        let backing = open(at);
        put_all(&*backing, &before);
        let seen = entries(&*backing, &mut |visited| {
            if visited == at {
                merge_all(&*backing);
            }
        });
        let want: Vec<(u8, Bytes)> = before.iter().map(|(key, value)| (*key, Bytes::from(*value))).collect();
        assert_eq!(seen, want, "merged after {at} keys were visited");
        let after = entries(&*backing, &mut |_| {});
        assert_eq!(after, [(1, Bytes::from("all")), (9, Bytes::from("new"))]);
    }
}

#[test]
fn scan_on_disk_shows_one_moment_while_a_batch_is_committed() {
    let dir = tempfile::tempdir().expect("a directory");
    check_scans_one_moment(&|at| {
        let dir = dir.path().join(at.to_string());
        Box::new(DiskBacking::open(&dir, &Config::new(None, Arc::new(|| 0))).expect("open"))
    });
}

#[test]
fn scan_of_the_faulty_backing_shows_one_moment_unless_it_is_live() {
    check_scans_one_moment(&|_| Box::<Faulty>::default());
    let live = Faulty::default();
    live.scan_live();
    put_all(&live, &[(1, "one"), (2, "one"), (3, "one")]);
    let seen = entries(&live, &mut |visited| {
        if visited == 1 {
            merge_all(&live);
        }
    });
    assert_eq!(seen, [(1, Bytes::from("one")), (9, Bytes::from("new"))]);
}

/// A log without cache, whose scans see concurrent batches.
fn live() -> TestLog {
    let mut hand = TestLog::new();
    hand.store.inner.scan_live();
    hand.log = opened_with(&hand.store, &hand.time, |config| config.cache_bytes = 0).expect("open");
    hand
}

/// Cleans during the next scan, after this number of blocks was visited.
fn clean_in_scan(hand: &TestLog, visited: usize, age: Millis) {
    let (broker, now) = (hand.log.broker.clone(), hand.log.broker.now() + age);
    hand.store
        .once(Moment::InScan(visited), move || broker.clean(now).expect("clean"));
}

#[test]
fn reader_skips_nothing_when_its_scan_sees_half_a_merge() {
    for isolation in [Isolation::ReadCommitted, Isolation::ReadUncommitted] {
        let hand = live();
        let at = line(&hand, TimestampPolicy::CreateTime, &[("retention.ms", "-1")]);
        hand.many(&at);
        let (all, blocks) = (hand.all(&at, isolation), hand.sizes(&at).len());
        clean_in_scan(&hand, 1, 0);
        // The message omits the records, which would be megabytes of text.
        assert!(hand.all(&at, isolation) == all, "{isolation:?}: records were skipped");
        assert!(hand.sizes(&at).len() < blocks / 3, "blocks were merged in the meantime");
    }
}

#[test]
fn lookup_by_time_is_exact_when_its_scan_sees_half_a_merge() {
    let hand = live();
    let at = line(&hand, TimestampPolicy::CreateTime, &[("retention.ms", "-1")]);
    hand.many(&at);
    let time = 1_000_000 + 900;
    let want = hand.log.offset(&at, OffsetSpec::Timestamp(time)).expect("time");
    clean_in_scan(&hand, 3, 0);
    assert_eq!(hand.log.offset(&at, OffsetSpec::Timestamp(time)).expect("time"), want);
    assert!(hand.blocks_of(&at)[0].head.merged, "blocks were merged in the meantime");
}

#[test]
fn reader_is_out_of_range_when_retention_cuts_ahead_of_its_scan() {
    let hand = live();
    let at = hand.topic(&[("retention.ms", "100")]);
    for n in 0..10 {
        hand.append(&at, &n.to_string()).expect("append");
        hand.advance(10);
    }
    let mut reader = hand.log.reader(Isolation::ReadCommitted).expect("reader");
    reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
    clean_in_scan(&hand, 2, 50);
    let mut batch = RecordBatch::default();
    reader.poll(&mut batch, 1 << 20, Duration::ZERO).expect("poll");
    assert_eq!(hand.range(&at), [5, 10, 10]);
    let read: Vec<Offset> = batch.iter().map(|record| record.offset()).collect();
    assert_eq!(read, [0, 1], "records before the deletion are returned");
    let error = reader.poll(&mut batch, 1 << 20, Duration::ZERO).expect_err("cut");
    assert!(
        matches!(
            error,
            Error::OutOfRange {
                offset: 2,
                start: 5,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn missing_block_is_an_error_after_the_records_before_it() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[]);
    for value in ["a", "b", "c", "d"] {
        hand.append(&at, value).expect("append");
    }
    let id = hand.log.broker.state().resolve(&at).expect("it exists");
    let mut writes = Writes::default();
    writes.remove(Space::Records, format::block_key(id, 1));
    writes.remove(Space::Records, format::block_key(id, 2));
    hand.store.commit(&writes, Persist::Buffer).expect("remove");
    hand.reopen_log();
    let mut reader = hand.log.reader(Isolation::ReadCommitted).expect("reader");
    reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
    let mut batch = RecordBatch::default();
    assert_eq!(reader.poll(&mut batch, 1 << 20, Duration::ZERO).expect("poll"), 1);
    let error = reader.poll(&mut batch, 1 << 20, Duration::ZERO).expect_err("missing");
    let Error::Unreadable {
        at: named,
        offset,
        cause,
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!((&named, offset), (&at, 1));
    let Error::Corrupt { place, reason } = *cause else {
        panic!("{cause:?}")
    };
    assert!(
        place.contains('t') && reason.starts_with("offsets 1 to 2 are missing"),
        "{place}: {reason}"
    );
    reader
        .assign(&[(at.clone(), StartFrom::Offset(3))])
        .expect("assign after the gap");
    assert_eq!(reader.poll(&mut batch, 1 << 20, Duration::ZERO).expect("poll"), 1);
}

#[test]
fn member_reads_nothing_after_damaged_records() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[]);
    for value in ["a", "b", "c"] {
        hand.append(&at, value).expect("append");
    }
    let id = hand.log.broker.state().resolve(&at).expect("it exists");
    // The blocks are then read from the store and not from the cache.
    hand.reopen_log();
    let mut writes = Writes::default();
    writes.put(Space::Records, format::block_key(id, 1), vec![0xff; 40]);
    hand.store.commit(&writes, Persist::Buffer).expect("damage a block");
    let config = GroupConfig {
        group: "group".to_owned(),
        instance: None,
        topics: vec![at.topic.clone()],
        session_timeout: Duration::from_secs(10),
        protocol: GroupProtocol::Classic,
    };
    let mut member = hand.log.group(config).expect("join");
    let mut batch = RecordBatch::default();
    let mut poll = |member: &mut Box<dyn GroupConsumer>| {
        let event = member.poll(&mut batch, 1 << 20, Duration::ZERO)?;
        let offsets: Vec<Offset> = batch.iter().map(|record| record.offset()).collect();
        Ok::<_, Error>((event, offsets))
    };
    assert!(matches!(poll(&mut member), Ok((Event::Assigned(_), _))));
    member.start(&at, 0).expect("start");
    assert_eq!(poll(&mut member).expect("poll"), (Event::Records, vec![0]));
    let error = poll(&mut member).expect_err("damaged");
    assert_eq!(error.scope(), Some(ErrorScope::Partition(&at)), "{error:?}");
    let Error::Unreadable { offset: 1, cause, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(matches!(**cause, Error::Corrupt { .. }), "{cause:?}");
    for _ in 0..5 {
        assert_eq!(poll(&mut member).expect("poll"), (Event::Idle, vec![]));
    }
    hand.log
        .set_committed("group", &[(at.clone(), 2)])
        .expect("set the offset");
    member.start(&at, 2).expect("start");
    assert_eq!(poll(&mut member).expect("poll"), (Event::Records, vec![2]));
}

#[test]
fn gaps_of_interrupted_compaction_are_recognized() {
    let mut hand = TestLog::new();
    let at = hand.topic_of(Cleanup::Compact, &[("min.cleanable.dirty.ratio", "0")]);
    for n in 0..5 {
        let record = format!("k={n}");
        let batch = super::compaction::keyed(&at, &[record.as_str(), "other=1"]);
        hand.log.append(&batch).expect("append");
    }
    // The step that removes blocks is stored, but the end of the pass is not.
    hand.store.breaks_after.store(1, Ordering::SeqCst);
    hand.log
        .clean(hand.log.broker.now())
        .expect_err("the pass is interrupted");
    hand.store.repair();
    let removed = [("cleanup.policy".to_owned(), "delete".to_owned())];
    hand.log.alter_topic("t", &removed).expect("alter");
    for _ in 0..2 {
        let left = hand.seen(Isolation::ReadCommitted, &at);
        assert_eq!(left.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), [8, 9]);
        hand.reopen_log();
    }
}

/// One run: a reader that lags behind appends and transactions while the log is cleaned during scans.
struct Lag {
    seed: u64,
    random: Random,
    hand: TestLog,
    at: TopicPartition,
    producer: Box<dyn TransactionalProducer>,
    /// Offsets of committed records with their timestamps.
    written: Vec<(Offset, Millis)>,
    next: Offset,
    cuts: usize,
}

impl Lag {
    fn new(seed: u64) -> Lag {
        let mut random = Random(seed | 1);
        let retention = ["-1", "400"][usize::try_from(random.below(2)).expect("small")];
        let hand = live();
        let at = hand.topic(&[("retention.ms", retention)]);
        let producer = hand.transactional_producer(600_000);
        Lag {
            seed,
            random,
            hand,
            at,
            producer,
            written: Vec::new(),
            next: 0,
            cuts: 0,
        }
    }

    /// Writes records large enough for an occasional index entry, because blocks are merged up to the last entry.
    fn write(&mut self) {
        for _ in 0..self.random.below(40) {
            self.hand
                .advance(Millis::try_from(self.random.below(5)).expect("small"));
            let value = "v".repeat(usize::try_from(self.random.below(6_000)).expect("small"));
            let (batch, now) = (batch(&self.at, &value), self.hand.log.broker.now());
            let end = self.hand.range(&self.at)[2];
            match self.random.below(4) {
                0 => {
                    self.producer.begin().expect("begin");
                    self.producer.send(&batch).expect("send");
                    self.producer.abort().expect("abort");
                    continue;
                }
                1 => {
                    self.producer.begin().expect("begin");
                    self.producer.send(&batch).expect("send");
                    assert!(matches!(self.producer.commit(None), Outcome::Committed(_)));
                }
                _ => drop(self.hand.log.append(&batch).expect("append")),
            }
            self.written.push((end, now));
        }
    }

    fn clean_in_a_scan(&mut self) {
        let visited = usize::try_from(1 + self.random.below(12)).expect("small");
        let age = Millis::try_from(self.random.below(300)).expect("small");
        clean_in_scan(&self.hand, visited, age);
    }

    /// Reads. Offsets may be skipped only if retention deleted them; the reader must then get one out-of-range error.
    fn read(&mut self, reader: &mut dyn Reader) {
        let mut batch = RecordBatch::default();
        let bytes = usize::try_from(1 + self.random.below(40_000)).expect("small");
        match reader.poll(&mut batch, bytes, Duration::ZERO) {
            Ok(_) => {
                let next = reader.position(&self.at).expect("it is assigned");
                let read = batch.iter().map(|record| record.offset());
                let due = self.written.iter().map(|(offset, _)| *offset);
                let due = due.filter(|offset| (self.next..next).contains(offset));
                assert!(read.eq(due), "seed {}: {}..{next}", self.seed, self.next);
                self.next = next;
            }
            Err(Error::OutOfRange { offset, start, .. }) => {
                // The reader may have passed aborted records before this error.
                let mut passed = self.written.iter().map(|(written, _)| *written);
                let is_lost = passed.any(|written| (self.next..offset).contains(&written));
                assert!(
                    !is_lost && offset < start,
                    "seed {}: {}..{offset}",
                    self.seed,
                    self.next
                );
                reader
                    .assign(&[(self.at.clone(), StartFrom::Offset(start))])
                    .expect("assign");
                (self.next, self.cuts) = (start, self.cuts + 1);
            }
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    fn look_up(&mut self) {
        let back = Millis::try_from(self.random.below(900)).expect("small");
        let time = self.hand.log.broker.now() - back;
        let [before, ..] = self.hand.range(&self.at);
        let found = self
            .hand
            .log
            .offset(&self.at, OffsetSpec::Timestamp(time))
            .expect("time");
        let [start, _, end] = self.hand.range(&self.at);
        let first = |start: Offset| {
            let mut written = self.written.iter();
            let first = written.find(|(offset, written)| *offset >= start && *written >= time);
            first.map_or(end, |(offset, _)| *offset)
        };
        // Aborted records count too, so an earlier offset is correct; a later one would skip records.
        assert!(
            found >= before && found <= first(start),
            "seed {}: {time} at {found}, not {}",
            self.seed,
            first(start)
        );
    }

    fn run(mut self) -> (usize, usize) {
        let mut reader = self.hand.log.reader(Isolation::ReadCommitted).expect("reader");
        reader
            .assign(&[(self.at.clone(), StartFrom::Earliest)])
            .expect("assign");
        for _ in 0..30 {
            self.write();
            for _ in 0..self.random.below(4) {
                if self.random.below(3) == 0 {
                    self.clean_in_a_scan();
                }
                match self.random.below(4) {
                    0 => self.look_up(),
                    _ => self.read(&mut *reader),
                }
            }
        }
        let merged = self.hand.blocks_of(&self.at).iter().filter(|b| b.head.merged).count();
        (merged, self.cuts)
    }
}

#[test]
fn random_readers_skip_nothing_in_live_scans() {
    let (mut merged, mut cuts) = (0, 0);
    for seed in 1..=150 {
        let (m, c) = Lag::new(seed).run();
        (merged, cuts) = (merged + m, cuts + c);
    }
    assert!(merged > 100 && cuts > 20, "{merged} merged, {cuts} cuts");
}
