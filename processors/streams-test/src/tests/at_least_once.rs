//! Tests at-least-once processing over a log whose writes fail at random, with random crashes. Records may be repeated,
//! but no record may be lost.
//!
//! A seed determines the whole run. The expected output is computed from the input alone.

use crate::log::{self, text};
use crate::simulation::Rng;
use crate::{Environment, Faults, FaultyLog, START, ThreadDriver};
use event_log::{Offset, OutBatch, OutRecord, RecordSlice, SharedEventLog, TopicPartition};
use service::clock::Manual;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use streams::{
    Application, Config, Context, Directory, FirstStart, Output, ProcessingGuarantee, Processor, Result, State,
    SubTopology, TaskInfo,
};

const SEEDS: u64 = 60;
const PARTITIONS: i32 = 2;

/// Stores a row for each input record, counts the records, and sends their offsets.
struct Keeper(i32);

impl Processor for Keeper {
    fn process(&mut self, _: Context, records: RecordSlice<'_>, state: &mut State, output: &mut Output) -> Result<()> {
        let out = Arc::from("out");
        for record in records.iter() {
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
    faults: Faults,
    rng: Rng,
    clock: Manual,
    dir: tempfile::TempDir,
    written: [Offset; 2],
    engine: state_store::Engine,
}

impl Harness {
    fn new(seed: u64) -> Harness {
        let clock = Manual::at(START);
        let inner = log::in_memory(&clock).unwrap();
        let topics = ["in", "out"].map(|name| log::topic(name, PARTITIONS));
        inner.create_topics(&topics).unwrap();
        let mut rng = Rng::of_seed(seed);
        let faults = Faults::new(rng.fork());
        Harness {
            log: Arc::new(FaultyLog::new(inner, faults.clone())),
            faults,
            rng,
            clock,
            dir: tempfile::tempdir().unwrap(),
            written: [0; 2],
            // A crash loses the memory store; the other store survives.
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
        let environment = Environment {
            log: self.log.clone(),
            clock: Arc::new(self.clock.clone()),
            stores: Arc::new(stores),
        };
        ThreadDriver::new(&application, config, environment, 0).unwrap()
    }

    fn write(&mut self) {
        let topic = Arc::from("in");
        let (mut batch, partition) = (OutBatch::default(), self.rng.below(2));
        for _ in 0..=self.rng.below(6) {
            let record = OutRecord {
                topic: &topic,
                partition: Some(i32::try_from(partition).unwrap()),
                timestamp: None,
                key: None,
                value: None,
            };
            batch.push(record, []);
            self.written[partition] += 1;
        }
        self.log.append(&batch).unwrap();
    }

    /// Committed records of a partition, as key and value.
    fn read(&self, topic: &str, partition: i32) -> Vec<(String, Option<String>)> {
        let found = log::committed(&self.log, &TopicPartition::new(topic, partition)).unwrap();
        let shown = found.into_iter().map(|record| {
            let key = record.key.as_deref();
            let value = record.value.as_deref();
            (
                key.map(|key| text(Some(key))).unwrap_or_default(),
                value.map(|value| text(Some(value))),
            )
        });
        shown.collect()
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

fn run_seed(seed: u64, mut choose: impl FnMut(&mut Rng) -> ProcessingGuarantee) {
    let mut harness = Harness::new(seed);
    for _ in 0..8 {
        let guarantee = choose(&mut harness.rng);
        let mut thread = harness.start(guarantee);
        let failures = harness.rng.pick(&[0.0, 0.02, 0.06, 0.12]);
        harness.faults.fail_writes(failures);
        for _ in 0..harness.rng.below(120) {
            if harness.rng.chance(0.25) {
                harness.write();
            }
            harness.clock.advance(i64::try_from(harness.rng.below(60)).unwrap());
            thread
                .turn()
                .unwrap_or_else(|error| panic!("seed {seed}: {}", service::chain(&error)));
        }
        harness.check(seed, false);
        harness.faults.fail_writes(0.0);
        // Most threads crash.
        if harness.rng.chance(0.25) {
            thread.finish().unwrap();
        }
    }
    let guarantee = choose(&mut harness.rng);
    let mut thread = harness.start(guarantee);
    for _ in 0..2_000 {
        harness.clock.advance(100);
        thread.turn().unwrap();
        if thread.is_quiet() {
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
    let both = [ProcessingGuarantee::ExactlyOnce, ProcessingGuarantee::AtLeastOnce];
    (0..SEEDS).for_each(|seed| run_seed(1_000 + seed, |rng| rng.pick(&both)));
}
