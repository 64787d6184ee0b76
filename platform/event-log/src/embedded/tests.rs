//! Tests that need internals: a manual clock, failing storage, corrupt storage and storage of a newer version. All
//! other tests are in the conformance suite, `tests/conformance/event_log.rs`.

use super::backing::{Faulty, Persist, Recovered, Space, Visit, Writes};
use super::*;
use crate::{Cleanup, Event, GroupMetadata, OutRecord, Outcome, RecordBatch, StartFrom, TopicConfig};
use bytes::Bytes;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

mod compaction;
mod durability;
mod groups;
mod merge;
mod model;
mod scans;

/// An in-memory log with a manual clock and storage that can be made to fail.
struct TestLog {
    log: EmbeddedLog,
    time: Arc<AtomicI64>,
    store: Arc<Breakable>,
}

/// Storage that fails on demand.
#[derive(Default)]
struct Breakable {
    inner: Faulty,
    broken: AtomicBool,
    /// Whether commits fail because the disk is full.
    full: AtomicBool,
    /// Number of commits after which commits fail; negative means never.
    breaks_after: AtomicI64,
    /// Runs once, at the moment that it contains.
    between: Mutex<Option<Between>>,
}

type Between = (Moment, Box<dyn FnOnce() + Send>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    AfterLast,
    BeforeCommit,
    /// In a scan, after this number of blocks was visited.
    InScan(usize),
}

impl Breakable {
    fn new() -> Arc<Breakable> {
        let breakable = Breakable::default();
        breakable.breaks_after.store(-1, Ordering::SeqCst);
        Arc::new(breakable)
    }

    fn once(&self, moment: Moment, then: impl FnOnce() + Send + 'static) {
        *self.between.lock().expect("set") = Some((moment, Box::new(then)));
    }

    fn passes(&self, here: Moment) {
        let mut between = self.between.lock().expect("between");
        if let Some((_, then)) = between.take_if(|(moment, _)| *moment == here) {
            drop(between);
            then();
        }
    }

    fn repair(&self) {
        self.inner.spoil(1, 0);
        self.broken.store(false, Ordering::SeqCst);
        self.breaks_after.store(-1, Ordering::SeqCst);
    }
}

impl Backing for Arc<Breakable> {
    fn commit(&self, writes: &Writes, persist: Persist) -> Result<()> {
        self.passes(Moment::BeforeCommit);
        if self.full.load(Ordering::SeqCst) {
            return Err(Error::StorageUnavailable {
                attempted: "write a batch",
                dir: "log".into(),
                cause: "the disk is full".to_owned(),
                fix: "free space",
            });
        }
        let left = self.breaks_after.load(Ordering::SeqCst);
        if left >= 0 {
            self.breaks_after.store(left - 1, Ordering::SeqCst);
            self.broken.fetch_or(left == 0, Ordering::SeqCst);
        }
        if self.broken.load(Ordering::SeqCst) {
            let source = Box::new(std::io::Error::other("no space left"));
            return Err(Error::Storage {
                attempted: "write a batch",
                source,
            });
        }
        self.inner.commit(writes, persist)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn recovered(&self) -> Recovered {
        self.inner.recovered()
    }

    fn begin_session(&self) -> Result<()> {
        self.inner.begin_session()
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(space, key)
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        let mut visited = 0;
        self.inner.scan(space, from, to, &mut |key, value| {
            let flow = visit(key, value);
            visited += usize::from(space == Space::Records);
            self.passes(Moment::InScan(visited));
            flow
        })
    }

    fn last(&self, space: Space, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>> {
        let found = self.inner.last(space, from, to);
        self.passes(Moment::AfterLast);
        found
    }
}

fn opened(store: &Arc<Breakable>, time: &Arc<AtomicI64>) -> Result<EmbeddedLog> {
    opened_with(store, time, |_| {})
}

fn opened_with(store: &Arc<Breakable>, time: &Arc<AtomicI64>, change: impl FnOnce(&mut Config)) -> Result<EmbeddedLog> {
    let read = time.clone();
    let mut config = Config::new(None, Arc::new(move || read.load(Ordering::SeqCst)));
    config.clean_every = None;
    change(&mut config);
    let broker = Arc::new(open::load(&config, Box::new(store.clone()))?);
    Ok(EmbeddedLog {
        broker,
        cleaner_thread: None,
    })
}

impl TestLog {
    fn new() -> TestLog {
        let (store, time) = (Breakable::new(), Arc::new(AtomicI64::new(1_000_000)));
        TestLog {
            log: opened(&store, &time).expect("open"),
            time,
            store,
        }
    }

    fn reopen_log(&mut self) {
        self.log = opened(&self.store, &self.time).expect("open again");
    }

    fn advance(&self, ms: Millis) {
        self.time.fetch_add(ms, Ordering::SeqCst);
    }

    fn topic(&self, settings: &[(&str, &str)]) -> TopicPartition {
        self.topic_of(Cleanup::Delete, settings)
    }

    fn topic_of(&self, cleanup: Cleanup, settings: &[(&str, &str)]) -> TopicPartition {
        let mut config = TopicConfig::new(cleanup);
        config.other.extend(
            settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let spec = TopicSpec {
            name: "t".to_owned(),
            partitions: 1,
            replication: None,
            config,
        };
        assert_eq!(self.log.create_topics(&[spec]).expect("create"), [true]);
        TopicPartition::new("t", 0)
    }

    fn append(&self, at: &TopicPartition, value: &str) -> Result<Vec<Produced>> {
        self.log.append(&batch(at, value))
    }

    fn transactional_producer(&self, timeout_ms: u64) -> Box<dyn TransactionalProducer> {
        let transaction_timeout = Duration::from_millis(timeout_ms);
        self.log
            .transactional_producer(TransactionalProducerConfig {
                transactional_id: "s".to_owned(),
                transaction_timeout,
            })
            .expect("producer")
    }

    fn range(&self, at: &TopicPartition) -> [Offset; 3] {
        [OffsetSpec::Earliest, OffsetSpec::LastStable, OffsetSpec::LogEnd]
            .map(|which| self.log.offset(at, which).expect("offset"))
    }

    fn group_metadata(&self, group: &str) -> (Box<dyn GroupConsumer>, GroupMetadata) {
        let config = GroupConfig {
            group: group.to_owned(),
            instance: None,
            topics: vec!["t".into()],
            session_timeout: Duration::from_secs(1),
            protocol: crate::GroupProtocol::Classic,
        };
        let mut consumer = self.log.group(config).expect("join");
        let event = consumer
            .poll(&mut RecordBatch::default(), 1, Duration::ZERO)
            .expect("poll");
        assert!(matches!(event, Event::Assigned(_)));
        let member = consumer.group_metadata().expect("member");
        (consumer, member)
    }
}

fn batch(at: &TopicPartition, value: &str) -> OutBatch {
    let mut batch = OutBatch::default();
    let (topic, partition) = (&at.topic, Some(at.partition));
    batch.push(
        OutRecord {
            topic,
            partition,
            timestamp: None,
            key: None,
            value: Some(value.as_bytes()),
        },
        [],
    );
    batch
}

#[test]
fn retention_stops_at_open_transaction() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "100")]);
    hand.append(&at, "a").expect("append");
    hand.advance(60);
    let mut producer = hand.transactional_producer(1_000);
    producer.begin().expect("begin");
    producer.send(&batch(&at, "b")).expect("send");
    hand.append(&at, "c").expect("append");
    hand.advance(40);
    hand.log.clean(1_000_100).expect("clean");
    assert_eq!(hand.range(&at), [0, 1, 3], "a is exactly retention.ms old");
    hand.log.clean(1_000_101).expect("clean");
    assert_eq!(hand.range(&at), [1, 1, 3]);
    hand.log.clean(9_000_000).expect("clean");
    assert_eq!(hand.range(&at), [1, 1, 3], "the open transaction blocks retention");
    producer.abort().expect("abort");
    hand.log.clean(9_000_000).expect("clean");
    assert_eq!(hand.range(&at), [4, 4, 4]);
    drop(producer);
    hand.reopen_log();
    assert_eq!(hand.range(&at), [4, 4, 4]);
    assert_eq!(hand.append(&at, "d").expect("append")[0].first_offset, 4);
    hand.reopen_log();
    assert_eq!(hand.range(&at), [4, 5, 5]);
}

#[test]
fn failed_deletion_is_retried_by_next_pass() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "100")]);
    let mut producer = hand.transactional_producer(1_000);
    producer.begin().expect("begin");
    producer.send(&batch(&at, "never")).expect("send");
    producer.abort().expect("abort");
    hand.append(&at, "a").expect("append");
    hand.store.broken.store(true, Ordering::SeqCst);
    hand.log.clean(2_000_000).expect_err("the store fails");
    let left = || hand.seen(Isolation::ReadCommitted, &at).len();
    assert_eq!((hand.range(&at), left()), ([0, 3, 3], 1));
    hand.store.repair();
    hand.log.clean(2_000_000).expect("clean");
    assert_eq!((hand.range(&at), hand.sizes(&at).len()), ([3, 3, 3], 0));
    drop(producer);
    hand.reopen_log();
    assert_eq!(hand.range(&at), [3, 3, 3]);
}

#[test]
fn overtaken_reader_is_out_of_range() {
    let hand = TestLog::new();
    let at = hand.topic(&[("retention.ms", "100")]);
    for value in ["a", "b", "c"] {
        hand.append(&at, value).expect("append");
    }
    let mut reader = hand.log.reader(Isolation::ReadCommitted).expect("reader");
    reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
    let mut batch = RecordBatch::default();
    assert_eq!(reader.poll(&mut batch, 1, Duration::ZERO).expect("poll"), 1);
    hand.log.clean(2_000_000).expect("clean");
    let error = reader.poll(&mut batch, 1, Duration::ZERO).expect_err("overtaken");
    assert!(
        matches!(
            error,
            Error::OutOfRange {
                offset: 1,
                start: 3,
                end: 3,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn transaction_times_out_by_the_clock() {
    let hand = TestLog::new();
    let at = hand.topic(&[]);
    let mut producer = hand.transactional_producer(500);
    producer.begin().expect("begin");
    hand.advance(10_000);
    producer
        .send(&batch(&at, "a"))
        .expect("the timeout starts with the first record");
    hand.advance(499);
    assert_eq!(hand.range(&at), [0, 0, 1]);
    hand.advance(1);
    assert_eq!(hand.range(&at), [0, 2, 2]);
    let late = producer.send(&batch(&at, "b"));
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
    assert!(matches!(producer.commit(None), Outcome::Aborted { fenced: true, .. }));
    let mut producer = hand.transactional_producer(500);
    producer.begin().expect("begin");
    producer.send(&batch(&at, "c")).expect("send");
    assert!(matches!(producer.commit(None), Outcome::Committed(_)));
}

#[test]
fn failed_write_is_not_visible() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[]);
    hand.append(&at, "a").expect("append");
    let (consumer, member) = hand.group_metadata("g");
    let mut producer = hand.transactional_producer(5_000);
    producer.begin().expect("begin");
    producer.send(&batch(&at, "b")).expect("send");
    hand.store.broken.store(true, Ordering::SeqCst);
    assert!(matches!(hand.append(&at, "c"), Err(Error::Storage { .. })));
    let outcome = producer.commit(Some((&member, &[(at.clone(), 1)])));
    let Outcome::Unknown { reason } = outcome else {
        panic!("{outcome:?}")
    };
    assert!(reason.contains("no space left"), "{reason}");
    assert_eq!(hand.range(&at), [0, 1, 2]);
    assert!(producer.init_transactions().is_err(), "aborting fails too");
    hand.store.broken.store(false, Ordering::SeqCst);
    producer.init_transactions().expect("init_transactions");
    let committed = hand.log.committed("g", std::slice::from_ref(&at)).expect("committed");
    assert_eq!((hand.range(&at), committed[&at]), ([0, 3, 3], None));
    drop((consumer, producer));
    hand.reopen_log();
    assert_eq!(hand.range(&at), [0, 3, 3]);
}

#[test]
fn interrupted_topic_deletion_is_completed() {
    let mut hand = TestLog::new();
    let at = hand.topic(&[]);
    hand.append(&at, "a").expect("append");
    let number = hand.log.broker.state().topics["t"].number;
    let mut writes = Writes::default();
    writes.remove(Space::Meta, format::topic_key(format::TOPICS, number));
    writes.put(
        Space::Meta,
        format::topic_key(format::DELETED, number),
        vec![format::VERSION],
    );
    hand.store.commit(&writes, Persist::Buffer).expect("commit");
    hand.reopen_log();
    assert!(hand.log.describe("t").expect("describe").is_none());
    let mut left = Vec::new();
    for space in [Space::Records, Space::Meta] {
        hand.store
            .scan(space, &[], &[0xff], &mut |key, _| {
                left.push(key.to_vec());
                std::ops::ControlFlow::Continue(())
            })
            .expect("scan");
    }
    assert_eq!(left, [format::HEAD.to_vec()], "nothing is left");
}

#[test]
fn newer_formats_are_rejected() {
    let hand = TestLog::new();
    let at = hand.topic(&[]);
    hand.append(&at, "a").expect("append");
    let part = hand.log.broker.state().resolve(&at).expect("partition");
    let put = |space, key: Vec<u8>, newest: u8| {
        let value = hand.store.get(space, &key).expect("get").expect("it is there");
        let mut newer = value.to_vec();
        newer[0] = newest + 1;
        let mut writes = Writes::default();
        writes.put(space, key.clone(), newer);
        hand.store.commit(&writes, Persist::Buffer).expect("commit");
        let rejected = opened(&hand.store, &hand.time).map(|_| "opened");
        let text = rejected.expect_err("it is rejected").to_string();
        let both = [format!("version {}", newest + 1), format!("than {newest}")];
        assert!(both.iter().all(|words| text.contains(words)), "{text}");
        let mut writes = Writes::default();
        writes.put(space, key, value);
        hand.store.commit(&writes, Persist::Buffer).expect("commit");
    };
    put(Space::Meta, format::HEAD.to_vec(), format::VERSION);
    let topic = format::topic_key(format::TOPICS, part.topic);
    put(Space::Meta, topic, format::VERSION);
    put(Space::Records, format::block_key(part, 0), block::MERGED);
    opened(&hand.store, &hand.time).expect("the old one opens");
}

#[test]
fn records_are_read_from_store_and_cache() {
    let mut config = Config::new(None, Arc::new(|| 5));
    config.cache_bytes = 60_000;
    let log = open(config).expect("open");
    let spec = |name: &str| TopicSpec {
        name: name.to_owned(),
        partitions: 1,
        replication: None,
        config: TopicConfig::new(Cleanup::Delete),
    };
    log.create_topics(&[spec("a"), spec("b")]).expect("create");
    let [a, b] = ["a", "b"].map(|name| TopicPartition::new(name, 0));
    let mut producer = log
        .transactional_producer(TransactionalProducerConfig {
            transactional_id: "s".to_owned(),
            transaction_timeout: Duration::from_secs(9),
        })
        .expect("producer");
    let mut want = Vec::new();
    for n in 0..600_i64 {
        producer.begin().expect("begin");
        let mut many = OutBatch::default();
        for _ in 0..20 {
            let record = OutRecord {
                topic: &a.topic,
                partition: Some(0),
                timestamp: None,
                key: None,
                value: Some(&[b'x'; 10]),
            };
            many.push(record, []);
        }
        producer.send(&many).expect("send");
        producer.send(&batch(&b, "beside")).expect("send");
        if n % 5 == 0 {
            producer.abort().expect("abort");
        } else {
            assert!(matches!(producer.commit(None), Outcome::Committed(_)));
            want.extend(21 * n..21 * n + 20);
        }
    }
    for from in [0, 2, 6_000, 11_555, 12_599, 12_600] {
        // Values close to the size of a block, so that a poll ends just before the block's end, and much smaller and
        // larger values.
        for max_bytes in (1..400).step_by(7).chain([10_000, 1_000_000]) {
            let mut reader = log.reader(Isolation::ReadCommitted).expect("reader");
            reader
                .assign(&[(a.clone(), StartFrom::Offset(from)), (b.clone(), StartFrom::LogEnd)])
                .expect("assign");
            let (mut read, mut batch) = (Vec::new(), RecordBatch::default());
            while reader.position(&a) < Some(12_600) {
                let before = reader.position(&a);
                reader.poll(&mut batch, max_bytes, Duration::ZERO).expect("poll");
                assert!(reader.position(&a) > before, "stuck at {before:?}");
                read.extend(batch.iter().map(|r| r.offset()));
            }
            let want: Vec<i64> = want.iter().copied().filter(|offset| *offset >= from).collect();
            let odd = read.iter().zip(&want).find(|(read, want)| read != want);
            assert!(
                read == want,
                "from {from}, {max_bytes} bytes at a time, first odd one: {odd:?}"
            );
        }
    }
}

#[test]
fn committed_waits_for_pending_commit() {
    let hand = TestLog::new();
    let at = hand.topic(&[]);
    let (_consumer, member) = hand.group_metadata("g");
    let mut producer = hand.transactional_producer(60_000);
    producer.begin().expect("begin");
    let (arrived, arrives) = channel();
    let (let_go, go) = channel();
    let hold = move |name: &'static str| {
        if name == "log.commit.before" {
            arrived.send(()).expect("the test listens");
            go.recv().expect("the test lets go");
        }
    };
    let log = &hand.log;
    std::thread::scope(|scope| {
        let offsets = [(at.clone(), 7)];
        let commit = std::thread::Builder::new()
            .name("held".to_owned())
            .spawn_scoped(scope, move || {
                failpoint::watch(hold);
                producer.commit(Some((&member, &offsets)))
            })
            .expect("spawn");
        arrives.recv().expect("the commit is under way");
        let requested = [at.clone()];
        let elsewhere = TopicPartition::new("t", 1);
        assert_eq!(
            log.committed("g", std::slice::from_ref(&elsewhere))
                .expect("others do not wait")[&elsewhere],
            None
        );
        let waits = scope.spawn(move || log.committed("g", &requested).expect("committed")[&requested[0]]);
        assert!(!waits.is_finished());
        let_go.send(()).expect("let go");
        assert!(matches!(commit.join().expect("commit"), Outcome::Committed(_)));
        assert_eq!(waits.join().expect("answer"), Some(7));
    });
}

#[test]
fn member_that_does_not_poll_gets_lost_event() {
    let hand = TestLog::new();
    let at = hand.topic(&[]);
    let (mut silent, stale) = hand.group_metadata("g");
    silent.start(&at, 0).expect("start");
    let config = GroupConfig {
        group: "g".to_owned(),
        instance: None,
        topics: vec!["t".into()],
        session_timeout: Duration::from_secs(1),
        protocol: crate::GroupProtocol::Classic,
    };
    let mut heir = hand.log.group(config).expect("join");
    let mut batch_read = RecordBatch::default();
    assert_eq!(
        heir.poll(&mut batch_read, 1, Duration::ZERO).expect("poll"),
        Event::Idle
    );
    hand.advance(300_000);
    let mine = vec![at.clone()];
    assert_eq!(
        heir.poll(&mut batch_read, 1, Duration::ZERO).expect("poll"),
        Event::Assigned(mine.clone())
    );
    let mut producer = hand.transactional_producer(5_000);
    producer.begin().expect("begin");
    let outcome = producer.commit(Some((&stale, &[(at.clone(), 1)])));
    assert!(matches!(outcome, Outcome::Aborted { fenced: true, .. }), "{outcome:?}");
    hand.append(&at, "a").expect("append");
    assert_eq!(
        silent.poll(&mut batch_read, 1, Duration::ZERO).expect("poll"),
        Event::Lost(mine)
    );
    assert!(batch_read.is_empty());
    assert!(silent.start(&at, 0).is_err());
}
