//! Harness that runs a production stream thread step by step with either backend, with stores on disk and unique topic
//! names, for tests of restarts after topics, state or declarations have changed.

use crate::support::{self, wait_for};
use event_log::embedded::{self, EmbeddedLog};
use event_log::kafka::{self, KafkaLog};
use event_log::{
    Cleanup, ErrorAction, Isolation, Offset, OffsetSpec, OutBatch, OutRecord, RecordBatch, RecordSlice, SharedEventLog,
    StartFrom, TopicConfig, TopicPartition, TopicSpec,
};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use streams::{
    Application, Config, Context, Directory, FirstStart, Output, ProcessClock, Processor, State, SubTopology, TaskInfo,
};
use streams_test::{Environment, ThreadDriver};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

/// Counts records by key into `output`; the value `out N` or `state N` pads the output record or the state to N bytes.
struct Counter {
    output: Arc<str>,
    partition: i32,
}

impl Processor for Counter {
    fn process(
        &mut self,
        _: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> streams::Result<()> {
        for record in records.iter() {
            let key = record.key().expect("every record has a key");
            let value = String::from_utf8_lossy(record.value().unwrap_or_default()).into_owned();
            let long = |what: &str| {
                value
                    .strip_prefix(what)
                    .map_or(0, |bytes| bytes.parse().expect("a size"))
            };
            let before = state.get(key)?.map_or(0, |value| number(&value));
            let count = (before + 1).to_string();
            state.put(key, format!("{count} {}", noise(long("state "))).into_bytes());
            let value = format!("{count}{}", " ".repeat(long("out ")));
            let out = OutRecord {
                topic: &self.output,
                partition: Some(self.partition),
                timestamp: None,
                key: Some(key),
                value: Some(value.as_bytes()),
            };
            output.send(out, []);
        }
        Ok(())
    }
}

/// The count at the start of a state.
fn number(text: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(text);
    text.split(' ').next().unwrap_or_default().parse().expect("a number")
}

/// Text that hardly compresses.
fn noise(bytes: usize) -> String {
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        char::from(b'0' + u8::try_from(seed >> 58).expect("six bits"))
    };
    (0..bytes).map(|_| next()).collect()
}

/// A log, and the names and stores of an application.
pub struct Harness {
    pub log: SharedEventLog,
    /// Bootstrap servers if the log is Kafka.
    pub kafka: Option<String>,
    pub application: String,
    pub input: String,
    pub output: String,
    pub dir: TempDir,
    /// Topics with input.
    written: RefCell<BTreeSet<String>>,
}

/// Runs a test on the embedded log and on Kafka.
pub fn on_both(test: impl Fn(&Harness)) {
    test(&Harness::embedded());
    #[cfg(feature = "external")]
    test(&Harness::kafka());
}

impl Harness {
    fn embedded() -> Harness {
        let clock = service::clock::system();
        let config = embedded::Config::new(None, Arc::new(move || clock.now_ms()));
        Harness::over(EmbeddedLog::open(config).expect("open a log in memory"), None)
    }

    #[cfg(feature = "external")]
    pub fn kafka() -> Harness {
        let servers = support::kafka();
        let log = KafkaLog::connect(kafka::Config::new(servers.clone())).expect("connect");
        Harness::over(log, Some(servers))
    }

    fn over(log: SharedEventLog, kafka: Option<String>) -> Harness {
        let harness = Harness {
            log,
            kafka,
            application: support::unique("harness"),
            input: support::unique("in"),
            output: support::unique("out"),
            dir: tempfile::tempdir().expect("make a directory"),
            written: RefCell::default(),
        };
        harness.topic(&harness.input, 2, &[]);
        harness.topic(&harness.output, 2, &[]);
        harness
    }

    /// Creates a topic with further settings.
    pub fn topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut config = TopicConfig::new(Cleanup::Delete);
        let more = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        config.other.extend(more);
        let spec = TopicSpec {
            name: name.to_owned(),
            partitions,
            replication: None,
            config,
        };
        assert_eq!(
            self.log.create_topics(&[spec]).expect("create a topic"),
            [true],
            "{name}"
        );
    }

    /// The changelog of a store.
    pub fn changelog(&self, store: &str, partition: i32) -> TopicPartition {
        TopicPartition::new(streams::changelog_topic(&self.application, store), partition)
    }

    /// A counting sub-topology.
    pub fn sub(&self, name: &str, inputs: &[&str], store: &str) -> SubTopology {
        let output: Arc<str> = self.output.as_str().into();
        SubTopology {
            name: name.to_owned(),
            inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
            store: store.to_owned(),
            factory: Arc::new(move |info: &TaskInfo| {
                Box::new(Counter {
                    output: output.clone(),
                    partition: info.id.partition,
                })
            }),
            first_start: FirstStart::Earliest,
        }
    }

    /// Starts a stream thread.
    pub fn try_start(&self, subtopologies: Vec<SubTopology>) -> streams::Result<ThreadDriver> {
        self.try_start_in(self.dir.path(), subtopologies)
    }

    /// Like [`Harness::try_start`], with the stores in another directory.
    pub fn try_start_in(&self, dir: &Path, subtopologies: Vec<SubTopology>) -> streams::Result<ThreadDriver> {
        let mut config = Config::new("one", dir);
        config.group.session_timeout = Duration::from_secs(2);
        config.stores.memory_bytes = 8 << 20;
        let stores = Directory {
            dir: config.stores.dir.clone(),
            engine: config.stores.engine,
            memory_bytes: config.stores.memory_bytes,
        };
        let application = Application {
            name: self.application.clone(),
            subtopologies,
        };
        let environment = Environment {
            log: self.log.clone(),
            clock: Arc::new(ProcessClock::new(service::clock::system())),
            stores: Arc::new(stores),
        };
        ThreadDriver::new(&application, config, environment, 0)
    }

    /// Starts the sub-topology `count` over the input, with the given store.
    pub fn start(&self, store: &str) -> ThreadDriver {
        self.try_start(vec![self.sub("count", &[&self.input], store)])
            .expect("start the thread")
    }

    /// Like [`Harness::start`] with the store `counts` in another directory.
    pub fn start_in(&self, dir: &Path) -> ThreadDriver {
        self.try_start_in(dir, vec![self.sub("count", &[&self.input], "counts")])
            .expect("start the thread")
    }

    /// The error of a start.
    pub fn start_error(&self, subtopologies: Vec<SubTopology>) -> String {
        let error = self.try_start(subtopologies).err().expect("the start fails");
        service::chain(&error)
    }

    /// Writes records to a topic's partition.
    pub fn write(&self, topic: &str, partition: i32, records: &[(&str, &str)]) {
        self.written.borrow_mut().insert(topic.to_owned());
        let (topic, mut batch) = (Arc::from(topic), OutBatch::default());
        for (key, value) in records {
            let record = OutRecord {
                topic: &topic,
                partition: Some(partition),
                timestamp: None,
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
            };
            batch.push(record, []);
        }
        self.log.append(&batch).expect("write");
    }

    /// Committed records of a partition as `key=value`, with trimmed values.
    pub fn read(&self, topic: &str, partition: i32) -> Vec<String> {
        let found = committed(&self.log, &TopicPartition::new(topic, partition));
        let shown = found.iter().map(|(_, key, value)| format!("{key}={}", value.trim()));
        shown.collect()
    }

    /// Waits until the group is empty. A static member remains until its session times out, and the offsets of a group
    /// with members cannot be altered.
    pub fn wait_group_empty(&self) {
        wait_for("the group to be empty", LIMIT, || {
            let groups = self.log.groups().expect("list the groups");
            let own = groups.into_iter().find(|group| group.group == self.application);
            own.is_none_or(|group| group.members.is_empty()).then_some(())
        });
    }

    /// Runs the thread until all input is processed and committed.
    pub fn settle(&self, thread: &mut ThreadDriver) {
        let mut causes = Vec::new();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the thread to be idle", LIMIT, || {
                thread.turn().expect("process");
                causes = thread.causes();
                (thread.is_quiet() && self.all_committed()).then_some(())
            });
        }));
        assert!(done.is_ok(), "the thread is not idle: {causes:?}");
    }

    fn all_committed(&self) -> bool {
        let topics = self.written.borrow();
        let partitions = topics
            .iter()
            .flat_map(|topic| (0..2).map(|p| TopicPartition::new(topic.as_str(), p)));
        let partitions: Vec<_> = partitions.collect();
        let ends = self
            .log
            .offsets(&partitions, OffsetSpec::LogEnd)
            .expect("look the ends up");
        let Ok(committed) = self.log.committed(&self.application, &partitions) else {
            return false;
        };
        let next = |at| committed.get(at).copied().flatten().unwrap_or(0);
        partitions.iter().zip(ends).all(|(at, end)| next(at) >= end)
    }

    /// Committed output of a partition.
    pub fn out(&self, partition: i32) -> Vec<String> {
        self.read(&self.output, partition)
    }
}

/// Committed records of a partition, as offset, key and value; null is `null`.
pub fn committed(log: &SharedEventLog, at: &TopicPartition) -> Vec<(Offset, String, String)> {
    // The broker may have just restarted.
    let end = wait_for("the end of the partition", LIMIT, || {
        match log.offset(at, OffsetSpec::LastStable) {
            Err(error) if error.action() == ErrorAction::Retry => None,
            end => Some(end.expect("look the end up")),
        }
    });
    let mut reader = log.reader(Isolation::ReadCommitted).expect("open a reader");
    reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
    let (mut batch, mut found) = (RecordBatch::default(), Vec::new());
    wait_for("the reader to reach the end", LIMIT, || {
        reader
            .poll(&mut batch, 1 << 20, Duration::from_millis(5))
            .expect("poll");
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or(b"null")).into_owned();
        found.extend(batch.iter().map(|r| (r.offset(), text(r.key()), text(r.value()))));
        (reader.position(at) >= Some(end)).then_some(())
    });
    found
}

/// Drives the thread until a readiness cause contains `words`.
pub fn until_cause(thread: &mut ThreadDriver, words: &str) -> String {
    let mut causes = Vec::new();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for(words, LIMIT, || {
            thread.turn().expect("process");
            causes = thread.causes();
            causes.iter().find(|cause| cause.contains(words)).cloned()
        })
    }));
    found.unwrap_or_else(|_| panic!("no cause contains {words:?}: {causes:?}"))
}

/// Runs the thread until its error or a readiness cause contains `words`.
pub fn until_failure(thread: &mut ThreadDriver, words: &str) -> String {
    let mut seen = Vec::new();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for(words, LIMIT, || {
            let ended = thread.turn().err().map(|error| service::chain(&error));
            seen = thread.causes().into_iter().chain(ended).collect();
            seen.iter().find(|text| text.contains(words)).cloned()
        })
    }));
    found.unwrap_or_else(|_| panic!("no error or cause contains {words:?}: {seen:?}"))
}
