//! At-least-once processing with a log whose writes fail at random, with random crashes: no record may be lost,
//! although some are repeated.
//!
//! A seed determines the whole run. The expected output is computed only from the input.

use super::ThreadDriver;
use crate::{
    Application, Config, Context, Directory, FirstStart, Output, ProcessingGuarantee, Processor, Result, State,
    SubTopology, TaskInfo,
};
use event_log::embedded::{self, EmbeddedLog};
use event_log::{
    Cleanup, Committed, Event, EventLog, GroupConfig, GroupConsumer, GroupInfo, GroupMetadata, Isolation, Offset,
    OffsetSpec, OutBatch, OutRecord, Produced, Producer, Reader, RecordBatch, SharedEventLog, StartFrom, TopicConfig,
    TopicInfo, TopicPartition, TopicSpec, TransactionalProducer, TransactionalProducerConfig,
};
use service::clock::Manual;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SEEDS: u64 = 60;
const PARTITIONS: i32 = 2;

/// A pseudorandom generator, with the number of writes per thousand that fail.
struct Random {
    state: Mutex<u64>,
    failures_per_1000: AtomicU64,
}

impl Random {
    fn new(seed: u64) -> Arc<Random> {
        let state = Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let failures_per_1000 = AtomicU64::new(0);
        Arc::new(Random {
            state,
            failures_per_1000,
        })
    }

    fn below(&self, limit: u64) -> u64 {
        let mut state = self.state.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state % limit
    }

    /// Performs a write, or fails before or after the write took effect.
    fn maybe<T>(&self, act: impl FnOnce() -> event_log::Result<T>) -> event_log::Result<T> {
        let fails = self.below(1000) < self.failures_per_1000.load(Ordering::Relaxed);
        if fails && self.below(2) == 0 {
            drop(act()?);
        } else if !fails {
            return act();
        }
        Err(event_log::Error::Unavailable {
            attempted: "write".to_owned(),
            reason: "injected failure".to_owned(),
        })
    }
}

/// A log whose writes outside transactions fail at random.
struct Flaky {
    inner: SharedEventLog,
    random: Arc<Random>,
}

impl EventLog for Flaky {
    fn create_topics(&self, topics: &[TopicSpec]) -> event_log::Result<Vec<bool>> {
        self.inner.create_topics(topics)
    }
    fn describe(&self, topic: &str) -> event_log::Result<Option<TopicInfo>> {
        self.inner.describe(topic)
    }
    fn topics(&self) -> event_log::Result<Vec<String>> {
        self.inner.topics()
    }
    fn alter_topic(&self, topic: &str, settings: &[(String, String)]) -> event_log::Result<()> {
        self.inner.alter_topic(topic, settings)
    }
    fn delete_topic(&self, topic: &str) -> event_log::Result<()> {
        self.inner.delete_topic(topic)
    }
    fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> event_log::Result<Offset> {
        self.inner.offset(at, which)
    }
    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> event_log::Result<Committed> {
        self.inner.committed(group, partitions)
    }
    fn set_committed(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> event_log::Result<()> {
        self.inner.set_committed(group, offsets)
    }
    fn groups(&self) -> event_log::Result<Vec<GroupInfo>> {
        self.inner.groups()
    }
    fn group(&self, config: GroupConfig) -> event_log::Result<Box<dyn GroupConsumer>> {
        let inner = self.inner.group(config)?;
        let random = self.random.clone();
        Ok(Box::new(FlakyMember { inner, random }))
    }
    fn reader(&self, isolation: Isolation) -> event_log::Result<Box<dyn Reader>> {
        self.inner.reader(isolation)
    }
    fn transactional_producer(
        &self,
        config: TransactionalProducerConfig,
    ) -> event_log::Result<Box<dyn TransactionalProducer>> {
        self.inner.transactional_producer(config)
    }
    fn append(&self, records: &OutBatch) -> event_log::Result<Vec<Produced>> {
        self.inner.append(records)
    }
    fn producer(&self) -> event_log::Result<Box<dyn Producer>> {
        let inner = self.inner.producer()?;
        let random = self.random.clone();
        Ok(Box::new(FlakyProducer { inner, random }))
    }
    fn describe_self(&self) -> String {
        self.inner.describe_self()
    }
    fn log_epoch(&self) -> event_log::Result<String> {
        self.inner.log_epoch()
    }
}

struct FlakyProducer {
    inner: Box<dyn Producer>,
    random: Arc<Random>,
}

impl Producer for FlakyProducer {
    fn send(&mut self, records: &OutBatch) -> event_log::Result<()> {
        // Only some of the records are written, as if the producer had crashed.
        if self.random.below(1000) < self.random.failures_per_1000.load(Ordering::Relaxed) {
            let mut part = OutBatch::default();
            let most = usize::try_from(self.random.below(8)).unwrap();
            for (record, headers) in records.iter().take(most) {
                part.push(record, headers);
            }
            self.inner.send(&part)?;
            return self.random.maybe(|| Ok(())).and(Err(event_log::Error::Unavailable {
                attempted: "append".to_owned(),
                reason: "injected failure after a partial write".to_owned(),
            }));
        }
        self.inner.send(records)
    }

    fn flush(&mut self) -> event_log::Result<Vec<Produced>> {
        let inner = &mut self.inner;
        self.random.maybe(|| inner.flush())
    }
}

struct FlakyMember {
    inner: Box<dyn GroupConsumer>,
    random: Arc<Random>,
}

impl GroupConsumer for FlakyMember {
    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> event_log::Result<Event> {
        self.inner.poll(batch, max_bytes, timeout)
    }
    fn start(&mut self, at: &TopicPartition, offset: Offset) -> event_log::Result<()> {
        self.inner.start(at, offset)
    }
    fn pause(&mut self, partitions: &[TopicPartition]) -> event_log::Result<()> {
        self.inner.pause(partitions)
    }
    fn resume(&mut self, partitions: &[TopicPartition]) -> event_log::Result<()> {
        self.inner.resume(partitions)
    }
    fn unassigned(&self) -> Vec<Arc<str>> {
        self.inner.unassigned()
    }
    fn group_metadata(&self) -> event_log::Result<GroupMetadata> {
        self.inner.group_metadata()
    }
    fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> event_log::Result<()> {
        let inner = &mut self.inner;
        self.random.maybe(|| inner.commit(offsets))
    }
    fn close(self: Box<Self>) -> event_log::Result<()> {
        self.inner.close()
    }
}

/// Stores a row for each input record, counts the records, and sends their offsets.
struct Keeper(i32);

impl Processor for Keeper {
    fn process(
        &mut self,
        _: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        let out = Arc::from("out");
        for record in range.filter_map(|index| records.get(index)) {
            let number = record.offset().to_string();
            let count = state
                .get(b"count")?
                .map_or(0, |v| std::str::from_utf8(&v).unwrap().parse::<u64>().unwrap());
            state.put(b"count", (count + 1).to_string().into_bytes());
            state.put(number.as_bytes(), vec![1]);
            let out = OutRecord {
                topic: &out,
                partition: Some(self.0),
                timestamp: None,
                key: None,
                value: Some(number.as_bytes()),
            };
            output.send(out, []);
        }
        Ok(())
    }
}

struct Harness {
    log: SharedEventLog,
    random: Arc<Random>,
    clock: Manual,
    dir: tempfile::TempDir,
    written: [Offset; 2],
    engine: state_store::Engine,
}

impl Harness {
    fn new(seed: u64) -> Harness {
        let clock = Manual::at(1_700_000_000_000);
        let hands = clock.clone();
        let mut config = embedded::Config::new(None, Arc::new(move || service::Clock::now_ms(&hands)));
        config.clean_every = None;
        let inner: SharedEventLog = EmbeddedLog::open(config).unwrap();
        let topic = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: PARTITIONS,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        inner.create_topics(&[topic("in"), topic("out")]).unwrap();
        let random = Random::new(seed);
        Harness {
            log: Arc::new(Flaky {
                inner,
                random: random.clone(),
            }),
            random,
            clock,
            dir: tempfile::tempdir().unwrap(),
            written: [0; 2],
            // A crash loses the memory store; stores of the other engine survive it.
            engine: match seed % 4 {
                0 => state_store::Engine::Fjall,
                _ => state_store::Engine::Memory,
            },
        }
    }

    fn start(&self, guarantee: ProcessingGuarantee) -> ThreadDriver {
        let sub = SubTopology {
            name: "keep".to_owned(),
            inputs: vec!["in".to_owned()],
            store: "rows".to_owned(),
            factory: Arc::new(|info: &TaskInfo| Box::new(Keeper(info.id.partition))),
            first_start: FirstStart::Earliest,
        };
        let application = Application {
            name: "app".to_owned(),
            subtopologies: vec![sub],
        };
        let mut config = Config::new("one", self.dir.path());
        config.commit.guarantee = guarantee;
        let stores = Directory {
            dir: self.dir.path().to_owned(),
            engine: self.engine,
            memory_bytes: 1 << 20,
        };
        let clock = Arc::new(self.clock.clone());
        ThreadDriver::new(&application, config, self.log.clone(), clock, Arc::new(stores), 0).unwrap()
    }

    fn write(&mut self) {
        let topic = Arc::from("in");
        let (mut batch, partition) = (OutBatch::default(), self.random.below(2));
        for _ in 0..=self.random.below(6) {
            let record = OutRecord {
                topic: &topic,
                partition: Some(i32::try_from(partition).unwrap()),
                timestamp: None,
                key: None,
                value: None,
            };
            batch.push(record, []);
            self.written[usize::try_from(partition).unwrap()] += 1;
        }
        self.log.append(&batch).unwrap();
    }

    /// Committed records of a partition, as key and value.
    fn read(&self, topic: &str, partition: i32) -> Vec<(String, Option<String>)> {
        let at = TopicPartition::new(topic, partition);
        let end = self.log.offset(&at, OffsetSpec::LastStable).unwrap();
        let mut reader = self.log.reader(Isolation::ReadCommitted).unwrap();
        reader.assign(&[(at.clone(), StartFrom::Earliest)]).unwrap();
        let (mut batch, mut found) = (RecordBatch::default(), Vec::new());
        while reader.position(&at).unwrap() < end {
            reader.poll(&mut batch, 1 << 20, Duration::ZERO).unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            found.extend(
                batch
                    .iter()
                    .map(|r| (r.key().map(text).unwrap_or_default(), r.value().map(text))),
            );
        }
        found
    }

    /// Asserts that every record below the committed offset is in the output and in the changelog.
    fn check(&self, seed: u64, whole: bool) {
        for partition in 0..PARTITIONS {
            let at = TopicPartition::new("in", partition);
            let committed = self.log.committed("app", std::slice::from_ref(&at)).unwrap()[&at].unwrap_or(0);
            let written = self.written[usize::try_from(partition).unwrap()];
            let until = if whole { written } else { committed };
            assert!(
                !whole || committed == written,
                "seed {seed}: committed offset {committed}, but {written} records were written"
            );
            let out: BTreeSet<_> = self.read("out", partition).into_iter().filter_map(|(_, v)| v).collect();
            let rows: BTreeMap<_, _> = self.read("app.changelog.rows", partition).into_iter().collect();
            for number in (0..until).map(|number| number.to_string()) {
                assert!(out.contains(&number), "seed {seed}: {at}@{number} is not in the output");
                let row = rows.keys().any(|key| key.ends_with(&number));
                assert!(row, "seed {seed}: {at}@{number} is not in the state");
            }
            let count = rows.iter().find(|(key, _)| key.ends_with("count"));
            let count = count.and_then(|(_, value)| value.as_ref()?.get(1..)?.parse::<Offset>().ok());
            assert!(
                count.unwrap_or(0) >= until,
                "seed {seed}: counted {count:?} of {until} records"
            );
        }
    }
}

fn run_seed(seed: u64, mut choose: impl FnMut(&Random) -> ProcessingGuarantee) {
    let mut harness = Harness::new(seed);
    for _ in 0..8 {
        let guarantee = choose(&harness.random);
        let mut thread = harness.start(guarantee);
        harness
            .random
            .failures_per_1000
            .store(harness.random.below(120), Ordering::Relaxed);
        for _ in 0..harness.random.below(120) {
            if harness.random.below(4) == 0 {
                harness.write();
            }
            harness.clock.advance(i64::try_from(harness.random.below(60)).unwrap());
            thread
                .turn()
                .unwrap_or_else(|error| panic!("seed {seed}: {}", service::chain(&error)));
        }
        harness.check(seed, false);
        harness.random.failures_per_1000.store(0, Ordering::Relaxed);
        // Most threads crash.
        if harness.random.below(4) == 0 {
            thread.finish().unwrap();
        }
    }
    let mut thread = harness.start(choose(&harness.random));
    for _ in 0..2_000 {
        harness.clock.advance(100);
        if thread.settle(1).unwrap() {
            return harness.check(seed, true);
        }
    }
    panic!("seed {seed}: the thread did not become idle: {:?}", thread.causes());
}

#[test]
fn at_least_once_loses_no_record() {
    (0..SEEDS).for_each(|seed| run_seed(seed, |_| ProcessingGuarantee::AtLeastOnce));
}

#[test]
fn guarantee_can_change_at_any_restart() {
    let either = |random: &Random| match random.below(2) {
        0 => ProcessingGuarantee::ExactlyOnce,
        _ => ProcessingGuarantee::AtLeastOnce,
    };
    (0..SEEDS).for_each(|seed| run_seed(1_000 + seed, either));
}
