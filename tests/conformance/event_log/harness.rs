//! Harness of the conformance suite: backends, unique names, and common steps. Helpers wait with a limit and report what
//! they were waiting for.

use crate::support;
use event_log::embedded::{self, EmbeddedLog};
use event_log::{
    Cleanup, Event, GroupConfig, GroupConsumer, GroupMetadata, GroupProtocol, Isolation, Millis, Offset, OffsetSpec,
    OutBatch, OutRecord, Outcome, Produced, Reader, RecordBatch, SharedEventLog, StartFrom, TopicConfig,
    TopicPartition, TopicSpec, TransactionalProducer, TransactionalProducerConfig,
};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Time limit for everything that should happen.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Timeout of a poll that is not expected to return anything.
pub const SHORT: Duration = Duration::from_millis(20);

/// A backend of the event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Memory,
    Disk,
    Kafka,
}

/// Runs a case on a backend with a group protocol.
pub fn run(backend: Backend, protocol: GroupProtocol, case: fn(&Harness)) {
    match backend {
        Backend::Memory => case(&Harness {
            log: EmbeddedLog::open(config(None)).expect("open in memory"),
            protocol,
        }),
        Backend::Disk => {
            let dir = tempfile::tempdir().expect("make a directory");
            let dir = Some(dir.path().join("log"));
            case(&Harness {
                log: EmbeddedLog::open(config(dir)).expect("open on disk"),
                protocol,
            });
        }
        Backend::Kafka => {
            static KAFKA: OnceLock<SharedEventLog> = OnceLock::new();
            let open = || {
                event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(support::kafka())).expect("connect")
            };
            case(&Harness {
                log: KAFKA.get_or_init(open).clone(),
                protocol,
            });
        }
    }
}

/// Options of an embedded log that cleans as often as the broker in the tests does.
pub fn config(dir: Option<std::path::PathBuf>) -> embedded::Config {
    let mut config = embedded::Config::new(dir, Arc::new(now));
    config.clean_every = Some(Duration::from_millis(200));
    config
}

/// Returns the current time of this machine.
#[expect(clippy::disallowed_methods, reason = "the suite runs on the machine's clock")]
pub fn now() -> Millis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    Millis::try_from(since.as_millis()).expect("before the end of time")
}

/// An event log, and unique names for it.
pub struct Harness {
    pub log: SharedEventLog,
    pub protocol: GroupProtocol,
}

/// Offset and value of a record.
pub type Seen = (Offset, String);

impl Harness {
    /// Creates a harness for a log whose groups use the classic protocol.
    pub fn on(log: SharedEventLog) -> Harness {
        let protocol = GroupProtocol::Classic;
        Harness { log, protocol }
    }

    /// Creates a topic.
    pub fn topic(&self, partitions: i32) -> Arc<str> {
        self.topic_with(partitions, |_| {})
    }

    /// Creates a topic with settings.
    pub fn topic_with(&self, partitions: i32, change: impl FnOnce(&mut TopicConfig)) -> Arc<str> {
        let name = support::unique("case");
        let mut config = TopicConfig::new(Cleanup::Delete);
        change(&mut config);
        let spec = TopicSpec {
            name: name.clone(),
            partitions,
            replication: None,
            config,
        };
        assert_eq!(self.log.create_topics(&[spec]).expect("create a topic"), [true]);
        name.into()
    }

    /// Creates a topic with one partition and returns the partition.
    pub fn partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic(1), 0)
    }

    /// Appends outside a transaction.
    pub fn append(&self, at: &TopicPartition, values: &[&str]) -> Produced {
        let mut produced = self.log.append(&batch(at, values)).expect("append");
        assert_eq!(produced.len(), 1, "one partition was written to");
        produced.remove(0)
    }

    /// Opens a transactional producer with this id.
    pub fn transactional_producer(&self, id: &str) -> Box<dyn TransactionalProducer> {
        let transaction_timeout = Duration::from_secs(20);
        self.log
            .transactional_producer(TransactionalProducerConfig {
                transactional_id: id.to_owned(),
                transaction_timeout,
            })
            .expect("open a producer")
    }

    /// Opens a transactional producer with a unique id.
    pub fn any_producer(&self) -> Box<dyn TransactionalProducer> {
        self.transactional_producer(&support::unique("producer"))
    }

    /// Commits values in one transaction.
    pub fn transact(&self, producer: &mut dyn TransactionalProducer, at: &TopicPartition, values: &[&str]) -> Produced {
        producer.begin().expect("begin");
        producer.send(&batch(at, values)).expect("send");
        let mut produced = committed(producer.commit(None));
        assert_eq!(produced.len(), 1);
        produced.remove(0)
    }

    /// Looks up an offset with both methods, which must agree.
    pub fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> Offset {
        let alone = self.log.offset(at, which).expect("look an offset up");
        let company = self.log.offsets(std::slice::from_ref(at), which);
        let company = company.expect("look offsets up");
        assert_eq!(company.len(), 1);
        assert!(company[0] >= alone, "{at}, {which:?}: {alone} alone, then {company:?}");
        alone
    }

    /// Waits until no transaction is open in a partition and returns its end.
    pub fn wait_no_open_transaction(&self, at: &TopicPartition) -> Offset {
        support::wait_for("the partition to have no open transaction", LIMIT, || {
            let end = self.offset(at, OffsetSpec::LogEnd);
            (self.offset(at, OffsetSpec::LastStable) == end).then_some(end)
        })
    }

    /// Creates a reader of one partition.
    pub fn reader(&self, isolation: Isolation, at: &TopicPartition, from: StartFrom) -> Box<dyn Reader> {
        let mut reader = self.log.reader(isolation).expect("open a reader");
        reader.assign(&[(at.clone(), from)]).expect("assign");
        reader
    }

    /// Reads all records up to the current end.
    pub fn all(&self, isolation: Isolation, at: &TopicPartition) -> Vec<Seen> {
        let which = match isolation {
            Isolation::ReadCommitted => OffsetSpec::LastStable,
            Isolation::ReadUncommitted => OffsetSpec::LogEnd,
        };
        let end = self.offset(at, which);
        let mut reader = self.reader(isolation, at, StartFrom::Earliest);
        let (mut seen, mut batch) = (Vec::new(), RecordBatch::default());
        support::wait_for("the reader to reach the end", LIMIT, || {
            reader.poll(&mut batch, 1 << 20, SHORT).expect("poll");
            seen.extend(values(&batch));
            (reader.position(at) >= Some(end)).then_some(())
        });
        seen
    }

    /// Reads all committed records after the last transaction has ended.
    pub fn committed(&self, at: &TopicPartition) -> Vec<Seen> {
        self.wait_no_open_transaction(at);
        self.all(Isolation::ReadCommitted, at)
    }

    /// Reads the next `count` records.
    pub fn take(&self, reader: &mut dyn Reader, count: usize) -> Vec<Seen> {
        let (mut seen, mut batch) = (Vec::new(), RecordBatch::default());
        support::wait_for("records", LIMIT, || {
            reader.poll(&mut batch, 1 << 20, SHORT).expect("poll");
            seen.extend(values(&batch));
            (seen.len() >= count).then_some(())
        });
        seen
    }

    /// Joins a group as a dynamic member.
    pub fn join(&self, group: &str, topics: &[&Arc<str>]) -> Box<dyn GroupConsumer> {
        self.join_as(group, None, topics)
    }

    /// Joins a group.
    pub fn join_as(&self, group: &str, instance: Option<&str>, topics: &[&Arc<str>]) -> Box<dyn GroupConsumer> {
        let config = GroupConfig {
            group: group.to_owned(),
            instance: instance.map(str::to_owned),
            topics: topics.iter().map(|topic| (*topic).clone()).collect(),
            session_timeout: Duration::from_secs(10),
            protocol: self.protocol,
        };
        self.log.group(config).expect("join the group")
    }

    /// Returns the committed offset of one partition.
    pub fn committed_offset(&self, group: &str, at: &TopicPartition) -> Option<Offset> {
        let committed = self
            .log
            .committed(group, std::slice::from_ref(at))
            .expect("read committed offsets");
        assert_eq!(committed.len(), 1, "one answer for each partition");
        committed[at]
    }

    /// Joins a group, waits for the assignment of the topic, and returns metadata for commits.
    pub fn group_metadata(&self, group: &str, topic: &Arc<str>) -> (Box<dyn GroupConsumer>, GroupMetadata) {
        let mut consumer = self.join(group, &[topic]);
        assigned(&mut *consumer);
        let member = consumer.group_metadata().expect("a membership");
        (consumer, member)
    }
}

/// Creates records of one partition without keys.
pub fn batch(at: &TopicPartition, values: &[&str]) -> OutBatch {
    let mut batch = OutBatch::default();
    for value in values {
        batch.push(record(at, value), []);
    }
    batch
}

/// Creates a record without a key or timestamp.
pub fn record<'a>(at: &'a TopicPartition, value: &'a str) -> OutRecord<'a> {
    OutRecord {
        topic: &at.topic,
        partition: Some(at.partition),
        timestamp: None,
        key: None,
        value: Some(value.as_bytes()),
    }
}

/// Returns offsets and values of a batch.
pub fn values(batch: &RecordBatch) -> Vec<Seen> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    batch
        .iter()
        .map(|r| (r.offset(), r.value().map(text).unwrap_or_default()))
        .collect()
}

/// Creates expected offsets and values.
pub fn seen(pairs: &[(Offset, &str)]) -> Vec<Seen> {
    pairs
        .iter()
        .map(|(offset, value)| (*offset, (*value).to_owned()))
        .collect()
}

/// Returns the values.
pub fn texts(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|(_, value)| value.as_str()).collect()
}

/// Returns what a commit wrote. Panics if the commit did not succeed.
#[track_caller]
pub fn committed(outcome: Outcome) -> Vec<Produced> {
    match outcome {
        Outcome::Committed(produced) => produced,
        other => panic!("not committed: {other:?}"),
    }
}

/// Panics unless the commit was aborted because the producer was fenced.
#[track_caller]
pub fn fenced(outcome: &Outcome) {
    assert!(
        matches!(outcome, Outcome::Aborted { fenced: true, .. }),
        "not fenced: {outcome:?}"
    );
}

/// Panics unless the commit was aborted because its generation is outdated. Only in the classic protocol this counts as
/// fencing.
#[track_caller]
pub fn outdated(harness: &Harness, outcome: &Outcome) {
    match harness.protocol {
        GroupProtocol::Classic => fenced(outcome),
        GroupProtocol::Consumer => assert!(
            matches!(outcome, Outcome::Aborted { fenced: false, .. }),
            "not aborted, or taken for a fence: {outcome:?}"
        ),
    }
}

/// Polls until an event arrives.
pub fn event(consumer: &mut dyn GroupConsumer, batch: &mut RecordBatch) -> Event {
    support::wait_for("an event of the group", LIMIT, || {
        let event = consumer.poll(batch, 1 << 20, SHORT).expect("poll");
        (event != Event::Idle).then_some(event)
    })
}

/// Polls until partitions are assigned. Panics if another event comes first.
pub fn assigned(consumer: &mut dyn GroupConsumer) -> Vec<TopicPartition> {
    match event(consumer, &mut RecordBatch::default()) {
        Event::Assigned(mut partitions) => {
            partitions.sort();
            partitions
        }
        other => panic!("expected Assigned, got {other:?}"),
    }
}

/// Polls until `count` records have arrived.
pub fn records(consumer: &mut dyn GroupConsumer, count: usize) -> Vec<Seen> {
    let (mut seen, mut batch) = (Vec::new(), RecordBatch::default());
    while seen.len() < count {
        match event(consumer, &mut batch) {
            Event::Records => seen.extend(values(&batch)),
            other => panic!("expected records, got {other:?}"),
        }
    }
    seen
}
