//! The embedded registry: stores schemas in the topic `_schemas`, in the format of Confluent's registry.
//!
//! Ids are unique although several processes may write: only the owner of the topic's transactional producer writes,
//! and after it has fenced the previous owner, it reads the topic to the end before it assigns an id. Results are
//! returned after the commit. The state exists in memory only and is rebuilt from the topic at startup.

mod manage;
mod record;
mod state;

use crate::{Deleted, Error, Level, Registered, Registry, Result, Version};
use event_log::{
    Cleanup, Isolation, OffsetSpec, OutBatch, OutRecord, Outcome, Reader, RecordBatch, SharedEventLog,
    TransactionalProducer, TransactionalProducerConfig,
};
use event_log::{StartFrom, TopicConfig, TopicInfo, TopicPartition, TopicSpec};
use record::Record;
use schemas::ids::SchemaId;
use schemas::schema::Schema;
use service::backoff::Backoff;
use state::{Decision, State};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The topic: one partition, compacted.
pub const TOPIC: &str = "_schemas";

const TRANSACTIONAL_ID: &str = "trunkline-schema-registry";
const BATCH_BYTES: usize = 1 << 20;
/// Maximum size of a record. The default of the brokers is 1 MiB, and they count more than key and value.
const RECORD_BYTES_MAX: usize = 1_000_000;
const ATTEMPTS: u32 = 8;
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const READ_LIMIT: Duration = Duration::from_secs(30);

/// A registry whose schemas are stored in the log.
pub struct Embedded {
    log: SharedEventLog,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    reader: Box<dyn Reader>,
    batch: RecordBatch,
    /// Opened by the first write, so that a process that only reads never fences a process that writes. While it is
    /// present, `state` contains everything that was written.
    producer: Option<Box<dyn TransactionalProducer>>,
}

impl Embedded {
    /// Opens the registry: creates the topic if needed, and reads it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the log is unreachable; [`Error::Rejected`] if the topic has more than one partition.
    pub fn open(log: SharedEventLog) -> Result<Self> {
        let config = TopicConfig::new(Cleanup::Compact);
        let spec = TopicSpec {
            name: TOPIC.to_owned(),
            partitions: 1,
            replication: None,
            config,
        };
        log.create_topics(&[spec])
            .map_err(|e| log_error(&describe(&log), "create the topic _schemas", &e))?;
        let found = topic_of(&log)?;
        Self::read(log, found.as_ref())
    }

    /// Opens the registry if its topic exists. Creates nothing, so it needs no permission to write.
    ///
    /// # Errors
    /// As for [`Embedded::open`].
    pub fn open_existing(log: SharedEventLog) -> Result<Option<Self>> {
        match topic_of(&log)? {
            Some(topic) => Self::read(log, Some(&topic)).map(Some),
            None => Ok(None),
        }
    }

    fn read(log: SharedEventLog, topic: Option<&TopicInfo>) -> Result<Self> {
        let name = describe(&log);
        let failed = |attempted: &str, error: &event_log::Error| log_error(&name, attempted, error);
        if let Some(topic) = topic.filter(|topic| topic.partitions != 1) {
            return Err(Error::Rejected {
                registry: name,
                attempted: "open the topic _schemas".to_owned(),
                code: 50001,
                reason: format!(
                    "the topic has {} partitions but must have exactly one, because ids depend on its order",
                    topic.partitions
                ),
            });
        }
        let mut reader = log
            .reader(Isolation::ReadCommitted)
            .map_err(|e| failed("read the topic _schemas", &e))?;
        let at = partition();
        reader
            .assign(&[(at, StartFrom::Earliest)])
            .map_err(|e| failed("read the topic _schemas", &e))?;
        let inner = Inner {
            state: State::default(),
            reader,
            batch: RecordBatch::default(),
            producer: None,
        };
        let registry = Embedded {
            log,
            inner: Mutex::new(inner),
        };
        registry.catch_up(&mut registry.locked())?;
        Ok(registry)
    }

    fn locked(&self) -> MutexGuard<'_, Inner> {
        // The state is built record by record, so after a panic it may be incomplete but not wrong.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, attempted: &str, error: &event_log::Error) -> Error {
        log_error(&describe(&self.log), attempted, error)
    }

    fn unavailable(&self, attempted: &str, reason: impl Into<String>) -> Error {
        Error::Unavailable {
            registry: describe(&self.log),
            attempted: attempted.to_owned(),
            reason: reason.into(),
        }
    }

    /// Reads the topic up to its current last stable offset.
    fn catch_up(&self, inner: &mut Inner) -> Result<()> {
        self.catch_up_to(inner, OffsetSpec::LastStable)
    }

    /// Reads the topic up to its log end or last stable offset. A writer must use the log end: the broker acknowledges
    /// a commit before it writes the control records, so immediately after a commit, the last stable offset may still
    /// be before the committed record.
    fn catch_up_to(&self, inner: &mut Inner, which: OffsetSpec) -> Result<()> {
        const ATTEMPTED: &str = "read the topic _schemas";
        let at = partition();
        let end = self.log.offset(&at, which).map_err(|e| self.failed(ATTEMPTED, &e))?;
        let limit = Instant::now() + READ_LIMIT;
        let Inner {
            state, reader, batch, ..
        } = inner;
        while reader.position(&at).unwrap_or_default() < end {
            if Instant::now() > limit {
                return Err(self.unavailable(
                    ATTEMPTED,
                    format!("its end at offset {end} was not reached within 30 s"),
                ));
            }
            reader
                .poll(batch, BATCH_BYTES, Duration::from_millis(100))
                .map_err(|e| self.failed(ATTEMPTED, &e))?;
            for record in batch.iter() {
                match Record::read(record.key(), record.value()) {
                    Ok(Some(record)) => state.apply(record),
                    Ok(None) => {}
                    Err(reason) => {
                        tracing::warn!(offset = record.offset(), reason, "invalid record in _schemas skipped");
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the records that `decide` returns in one transaction. Calls `decide` again whenever another process may have
    /// written in the meantime.
    fn write<T>(&self, attempted: &str, decide: impl Fn(&State) -> Result<Decision<T>>) -> Result<T> {
        let mut inner = self.locked();
        let mut last = self.unavailable(attempted, "no attempt was made");
        // Random delays, so that two writers do not keep fencing each other in lockstep.
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                // Pauses grow, so that two writers do not fence each other again and again at the same time.
                std::thread::sleep(backoff.next_delay());
            }
            match self.try_write(&mut inner, attempted, &decide) {
                Err(AttemptError::Retry(error)) => last = error,
                Err(AttemptError::Final(error)) => return Err(error),
                Ok(result) => return Ok(result),
            }
        }
        Err(last)
    }

    fn try_write<T>(
        &self,
        inner: &mut Inner,
        attempted: &str,
        decide: &impl Fn(&State) -> Result<Decision<T>>,
    ) -> Result<T, AttemptError> {
        // The producer is put back only after everything that it wrote has been read: its presence means that `state`
        // is complete and may be used for decisions.
        let mut producer = match inner.producer.take() {
            Some(producer) => producer,
            None => self.open_producer(inner)?,
        };
        let decided = decide(&inner.state).and_then(|decision| Ok((encoded(&decision.records)?, decision.result)));
        let (batch, result) = match decided {
            Ok((batch, result)) if !batch.is_empty() => (batch, result),
            unchanged_or_rejected => {
                inner.producer = Some(producer);
                return unchanged_or_rejected
                    .map(|(_, result)| result)
                    .map_err(AttemptError::Final);
            }
        };
        // The producer was fenced, or the outcome is unknown. The next attempt opens a new producer, which ends this
        // transaction, and reads what was written (C5).
        commit(&mut *producer, &batch).map_err(|reason| AttemptError::Retry(self.unavailable(attempted, reason)))?;
        self.catch_up_to(inner, OffsetSpec::LogEnd)
            .map_err(AttemptError::Final)?;
        inner.producer = Some(producer);
        Ok(result)
    }

    /// Opens the producer, which fences other writers, and then reads everything that they wrote. They can no longer
    /// commit.
    fn open_producer(&self, inner: &mut Inner) -> Result<Box<dyn TransactionalProducer>, AttemptError> {
        const ATTEMPTED: &str = "write to the topic _schemas";
        let config = TransactionalProducerConfig {
            transactional_id: TRANSACTIONAL_ID.to_owned(),
            transaction_timeout: Duration::from_secs(10),
        };
        let producer = self.log.transactional_producer(config).map_err(|e| match e {
            event_log::Error::Fenced { .. } => AttemptError::Retry(self.unavailable(ATTEMPTED, e.to_string())),
            e => AttemptError::Final(self.failed(ATTEMPTED, &e)),
        })?;
        self.catch_up_to(inner, OffsetSpec::LogEnd)
            .map_err(AttemptError::Final)?;
        Ok(producer)
    }
}

/// Why an attempt to write failed.
enum AttemptError {
    /// The producer was fenced by another writer, or the outcome is unknown.
    Retry(Error),
    /// Another attempt would fail, too.
    Final(Error),
}

/// Encodes records.
fn encoded(records: &[Record]) -> Result<OutBatch> {
    let topic: Arc<str> = TOPIC.into();
    let mut batch = OutBatch::default();
    for record in records {
        let (key, value) = record.write();
        let bytes = key.len() + value.as_ref().map_or(0, Vec::len);
        if bytes > RECORD_BYTES_MAX {
            let limit = RECORD_BYTES_MAX;
            return Err(Error::SchemaTooLarge { bytes, limit });
        }
        let out = OutRecord {
            topic: &topic,
            partition: Some(0),
            timestamp: None,
            key: Some(&key),
            value: value.as_deref(),
        };
        batch.push(out, []);
    }
    Ok(batch)
}

fn commit(producer: &mut dyn TransactionalProducer, batch: &OutBatch) -> Result<(), String> {
    producer.begin().map_err(|e| e.to_string())?;
    producer.send(batch).map_err(|e| e.to_string())?;
    match producer.commit(None) {
        Outcome::Committed(_) => Ok(()),
        Outcome::Aborted { reason, .. } | Outcome::Unknown { reason } => Err(reason),
    }
}

fn partition() -> TopicPartition {
    TopicPartition::new(TOPIC, 0)
}

fn topic_of(log: &SharedEventLog) -> Result<Option<TopicInfo>> {
    let found = log.describe(TOPIC);
    found.map_err(|e| log_error(&describe(log), "describe the topic _schemas", &e))
}

fn describe(log: &SharedEventLog) -> String {
    format!("embedded in {}", log.description())
}

fn log_error(registry: &str, attempted: &str, error: &event_log::Error) -> Error {
    let (registry, attempted) = (registry.to_owned(), attempted.to_owned());
    match error.action() {
        event_log::ErrorAction::Retry => Error::Unavailable {
            registry,
            attempted,
            reason: error.to_string(),
        },
        _ => Error::Rejected {
            registry,
            attempted,
            code: 50001,
            reason: error.to_string(),
        },
    }
}

fn parsed(schema: &str) -> Result<Schema> {
    Schema::parse(schema).map_err(|e| Error::InvalidSchema { reason: e.to_string() })
}

impl Registry for Embedded {
    fn register(&self, subject: &str, schema: &str) -> Result<SchemaId> {
        let new = parsed(schema)?;
        // If the schema is already registered, no producer is needed, and thus no other writer is fenced.
        if let Some(found) = self.locked().state.find(subject, schema) {
            return Ok(found.id);
        }
        self.write("register a schema", |state| state.register(subject, &new))
    }

    fn lookup(&self, subject: &str, schema: &str) -> Result<Registered> {
        parsed(schema)?;
        let mut inner = self.locked();
        if let Some(found) = inner.state.find(subject, schema) {
            return Ok(found);
        }
        self.catch_up(&mut inner)?;
        inner.state.versions(subject, Deleted::Exclude)?;
        inner
            .state
            .find(subject, schema)
            .ok_or(Error::SchemaNotFound { id: None })
    }

    fn by_id(&self, id: SchemaId) -> Result<Arc<str>> {
        let mut inner = self.locked();
        if let Some(text) = inner.state.text(id) {
            return Ok(text);
        }
        self.catch_up(&mut inner)?;
        inner.state.text(id).ok_or(Error::SchemaNotFound { id: Some(id) })
    }

    fn uses(&self, id: SchemaId) -> Result<Vec<(String, u32)>> {
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        if inner.state.text(id).is_none() {
            return Err(Error::SchemaNotFound { id: Some(id) });
        }
        Ok(inner.state.uses(id))
    }

    fn subjects(&self) -> Result<Vec<String>> {
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        Ok(inner.state.subjects(Deleted::Exclude))
    }

    fn versions(&self, subject: &str) -> Result<Vec<u32>> {
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        inner.state.versions(subject, Deleted::Exclude)
    }

    fn version(&self, subject: &str, version: Version) -> Result<Registered> {
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        inner.state.version(subject, version, Deleted::Exclude)
    }

    fn test_compatibility(&self, subject: &str, version: Version, schema: &str) -> Result<Vec<String>> {
        let new = parsed(schema)?;
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        let old = inner.state.version(subject, version, Deleted::Exclude)?;
        let level = inner.state.level_of(subject);
        Ok(level.conflicts(&new, &parsed(&old.schema)?, old.version))
    }

    fn level(&self, subject: Option<&str>) -> Result<Option<Level>> {
        let mut inner = self.locked();
        self.catch_up(&mut inner)?;
        Ok(inner.state.own_level(subject))
    }

    fn set_level(&self, subject: Option<&str>, level: Level) -> Result<()> {
        let record = Record::Config {
            subject: subject.map(str::to_owned),
            level: Some(level),
        };
        self.write("set a compatibility level", |_| {
            let (records, result) = (vec![record.clone()], ());
            Ok(Decision { records, result })
        })
    }

    fn description(&self) -> String {
        describe(&self.log)
    }
}

#[cfg(test)]
pub(crate) mod tests;
