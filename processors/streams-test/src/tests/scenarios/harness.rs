//! The harness of the scenarios: a log in memory, stores on disk, a manual clock, and a counting processor.

use crate::log::{self, text};
use crate::{Environment, START, ThreadDriver};
use event_log::{
    ErrorAction, Offset, OutBatch, OutRecord, RecordRef, RecordSlice, SharedEventLog, TopicConfig, TopicPartition,
};
use service::clock::Manual;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use streams::{
    Application, Clock, Config, Context, Directory, Error, Factory, FirstStart, Output, Processor, Result, Stage,
    State, SubTopology, TaskInfo,
};
use tempfile::TempDir;

/// Number of iterations after which a thread that is still busy fails the test.
pub(super) const TURNS: usize = 500;

/// Counts records by key. `process` lists the values with a special effect.
pub(super) struct Counter {
    pub partition: i32,
    pub ready: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the value is bad")]
struct InvalidValue;

impl Processor for Counter {
    fn prepare(&mut self, records: RecordSlice<'_>) -> Result<()> {
        let waits = records.iter().any(|record| record.value() == Some(b"wait"));
        if waits && !self.ready.load(Ordering::SeqCst) {
            let (name, reason) = ("count".to_owned(), "schema 7 is not known yet".to_owned());
            return Err(Error::Processor {
                name,
                reason,
                action: ErrorAction::Retry,
            });
        }
        Ok(())
    }

    fn process(&mut self, _: Context, records: RecordSlice<'_>, state: &mut State, output: &mut Output) -> Result<()> {
        for record in records.iter() {
            let size = match record.value() {
                Some(b"bad") => {
                    output.dead_letter(record, Stage::ValueConverter, &InvalidValue);
                    continue;
                }
                Some(b"stop") => {
                    let (name, reason) = ("count".to_owned(), "cannot continue".to_owned());
                    return Err(Error::Processor {
                        name,
                        reason,
                        action: ErrorAction::Stop,
                    });
                }
                Some(b"big") => 4000,
                _ => 0,
            };
            let key = record.key().unwrap();
            let count = state
                .get(key)?
                .map_or(0, |v| std::str::from_utf8(&v).unwrap().parse().unwrap())
                + 1_u64;
            state.put(key, count.to_string().into_bytes());
            let value = format!("{count}{}", " ".repeat(size));
            let (topic, partition) = (Arc::from("out"), Some(self.partition));
            let out = OutRecord {
                topic: &topic,
                partition,
                timestamp: None,
                key: Some(key),
                value: Some(value.as_bytes()),
            };
            output.send(out, []);
        }
        Ok(())
    }

    fn on_dead_letter(&mut self, _: Context, record: RecordRef<'_>, _: &mut State, output: &mut Output) -> Result<()> {
        // Keys that the log itself rejects are skipped.
        if let Some(key) = record.key().filter(|key| (1..1000).contains(&key.len())) {
            let out = OutRecord {
                topic: &Arc::from("out"),
                partition: Some(self.partition),
                timestamp: None,
                key: Some(key),
                value: Some(b"dead letter"),
            };
            output.send(out, []);
        }
        Ok(())
    }
}

pub(super) struct Harness {
    pub log: SharedEventLog,
    pub clock: Manual,
    pub dir: TempDir,
    pub ready: Arc<AtomicBool>,
}

impl Harness {
    /// Creates a log with the topics `in` (2 partitions) and `out`.
    pub fn new() -> Harness {
        let clock = Manual::at(START);
        let harness = Harness {
            log: log::in_memory(&clock).unwrap(),
            clock,
            dir: tempfile::tempdir().unwrap(),
            ready: Arc::default(),
        };
        harness.topic("in", 2, |_| {});
        harness.topic("out", 2, |config| config.max_message_bytes = Some(2000));
        harness
    }

    pub fn topic(&self, name: &str, partitions: i32, change: impl FnOnce(&mut TopicConfig)) {
        let mut spec = log::topic(name, partitions);
        change(&mut spec.config);
        assert_eq!(self.log.create_topics(&[spec]).unwrap(), [true]);
    }

    pub fn application(&self, inputs: &[&str], first_start: FirstStart) -> Application {
        let ready = self.ready.clone();
        let factory: Factory = Arc::new(move |info: &TaskInfo| {
            Box::new(Counter {
                partition: info.id.partition,
                ready: ready.clone(),
            })
        });
        let sub = SubTopology {
            name: "count".to_owned(),
            inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
            store: "counts".to_owned(),
            factory,
            first_start,
        };
        Application {
            name: "app".to_owned(),
            subtopologies: vec![sub],
        }
    }

    pub fn try_start(&self, application: &Application, instance: &str) -> Result<ThreadDriver> {
        self.start_by(Arc::new(self.clock.clone()), application, instance)
    }

    /// Like `start_with`, with another clock.
    pub fn start_by(&self, clock: Arc<dyn Clock>, application: &Application, instance: &str) -> Result<ThreadDriver> {
        self.start_as(clock, application, Config::new(instance, self.dir.path()))
    }

    /// Starts instance `one` with another configuration.
    pub fn start_with(&self, application: &Application, change: impl FnOnce(&mut Config)) -> ThreadDriver {
        let mut config = Config::new("one", self.dir.path());
        change(&mut config);
        let clock = Arc::new(self.clock.clone());
        self.start_as(clock, application, config).unwrap()
    }

    fn start_as(&self, clock: Arc<dyn Clock>, application: &Application, config: Config) -> Result<ThreadDriver> {
        let stores = Directory {
            dir: self.dir.path().to_owned(),
            engine: config.stores.engine,
            memory_bytes: 1 << 20,
        };
        let environment = Environment {
            log: self.log.clone(),
            clock,
            stores: Arc::new(stores),
        };
        ThreadDriver::new(application, config, environment, 0)
    }

    pub fn start(&self) -> ThreadDriver {
        self.try_start(&self.application(&["in"], FirstStart::Earliest), "one")
            .unwrap()
    }

    pub fn append(&self, partition: i32, records: &[(&str, &str)]) {
        self.append_to("in", partition, records);
    }

    pub fn append_to(&self, topic: &str, partition: i32, records: &[(&str, &str)]) {
        let (topic, mut batch) = (Arc::from(topic), OutBatch::default());
        for (key, value) in records {
            let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
            let record = OutRecord {
                topic: &topic,
                partition: Some(partition),
                timestamp: None,
                key,
                value,
            };
            batch.push(record, [("origin", Some(&b"test"[..]))]);
        }
        self.log.append(&batch).unwrap();
    }

    /// Committed records of a partition, as `key=value`, with trimmed values.
    pub fn read(&self, topic: &str, partition: i32) -> Vec<String> {
        self.records(topic, partition)
            .iter()
            .map(|(key, value, _)| format!("{key}={}", value.trim()))
            .collect()
    }

    pub fn records(&self, topic: &str, partition: i32) -> Vec<(String, String, BTreeMap<String, String>)> {
        let found = log::committed(&self.log, &TopicPartition::new(topic, partition)).unwrap();
        let shown = found.into_iter().map(|record| {
            let headers = record.headers.iter();
            let headers = headers.map(|(name, value)| (name.clone(), text(value.as_deref())));
            (
                text(record.key.as_deref()),
                text(record.value.as_deref()),
                headers.collect(),
            )
        });
        shown.collect()
    }

    pub fn committed(&self, partition: i32) -> Option<Offset> {
        let at = TopicPartition::new("in", partition);
        self.log.committed("app", std::slice::from_ref(&at)).unwrap()[&at]
    }

    pub fn store(&self, partition: i32) -> PathBuf {
        self.dir.path().join("app/counts").join(partition.to_string())
    }

    pub fn quarantined(&self) -> usize {
        let entries = std::fs::read_dir(self.dir.path().join("app/counts")).unwrap();
        entries
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .contains(".aside-")
            })
            .count()
    }
}

/// Performs iterations and advances the clock until the thread is idle.
pub(super) fn settle(thread: &mut ThreadDriver, clock: &Manual) {
    for _ in 0..TURNS {
        clock.advance(10);
        thread.turn().unwrap();
        if thread.is_quiet() {
            return;
        }
    }
    panic!("the thread did not become idle: {:?}", thread.causes());
}

/// Performs iterations until a readiness cause contains this text.
pub(super) fn until_cause(thread: &mut ThreadDriver, clock: &Manual, text: &str) -> String {
    for _ in 0..TURNS {
        clock.advance(10);
        thread.turn().unwrap();
        if let Some(cause) = thread.causes().into_iter().find(|cause| cause.contains(text)) {
            return cause;
        }
    }
    panic!("no cause contains {text:?}: {:?}", thread.causes());
}
