//! The embedded log: Kafka's semantics inside one process, durable in a directory or in memory.
//!
//! Blocks of records, markers, committed offsets and topics stand in one store with atomic batches (`backing`); what
//! readers need at every poll stands in memory (`state`). A change goes to the store first and is shown then.
//!
//! Guarantees: the cases of `tests/conformance/event_log.rs`. kill -9 at any moment loses nothing that was acknowledged; transactions
//! that were open are aborted when the log is opened again. One process at a time has a directory. As everybody who
//! reads or writes lives in this process, a group member is alive until it is closed or dropped, and the members of a
//! group are assigned anew when one comes or goes. Never: an fsync on the path of a write (a crash of the machine may
//! cost the newest records, never leave a hole).

mod backing;
mod block;
mod broker;
mod clean;
mod compact;
mod consumer;
mod encode;
mod fetch;
mod format;
mod group;
mod idle;
mod merge;
mod open;
mod producer;
mod reader;
mod scan;
mod settings;
mod signal;
mod state;
mod topics;
mod transactional_producer;
mod write;

use crate::{
    Committed, Error, EventLog, GroupConfig, GroupConsumer, GroupInfo, Isolation, Millis, Offset, OffsetSpec, OutBatch,
    Produced, Producer, Reader, Result, SharedEventLog, TopicInfo, TopicPartition, TopicSpec, TransactionalProducer,
    TransactionalProducerConfig,
};
use backing::{Backing, DiskBacking, MemoryBacking};
use broker::Broker;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Tells the time in ms since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;

/// How to open an embedded log.
#[derive(Clone)]
pub struct Config {
    /// The directory; `None` keeps everything in memory and loses it with the value.
    pub dir: Option<PathBuf>,
    /// The log's time: of appends, transaction timeouts, sessions and retention.
    pub clock: Clock,
    /// Bytes of the newest records that are kept in memory for readers. 32 MiB by default.
    pub cache_bytes: usize,
    /// Bytes of the store's own cache, for readers further back. 16 MiB by default.
    pub store_cache_bytes: u64,
    /// Keys that compaction holds in memory at once, 24 bytes each: a partition with more dirty ones is cleaned in
    /// pieces. 400,000 by default, 13 MB.
    pub cleaner_keys_max: usize,
    /// How often old records are removed in the background; `None` only when [`EmbeddedLog::clean`] is called, and
    /// then timed-out transactions are aborted only when somebody looks. 5 minutes by default, as in Kafka.
    pub clean_every: Option<Duration>,
    /// How long the offsets of a group without members are kept. 7 days by default, as Kafka's `offsets.retention.minutes`.
    pub offsets_retention: Duration,
    /// How long `committed` waits for a pending transaction. 30 s by default.
    pub request_timeout: Duration,
}

impl Config {
    /// A log in this directory, or in memory, with the defaults.
    pub fn new(dir: Option<PathBuf>, clock: Clock) -> Self {
        Config {
            dir,
            clock,
            cache_bytes: 32 * 1024 * 1024,
            store_cache_bytes: 16 * 1024 * 1024,
            cleaner_keys_max: 400_000,
            clean_every: Some(Duration::from_secs(300)),
            offsets_retention: Duration::from_secs(7 * 24 * 3_600),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// An open embedded log.
pub struct EmbeddedLog {
    broker: Arc<Broker>,
    janitor: Option<JoinHandle<()>>,
}

impl EmbeddedLog {
    /// Opens a log for everybody who needs only the trait.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(config: Config) -> Result<SharedEventLog> {
        Ok(open(config)?)
    }

    /// Removes what retention and compaction no longer keep at this time.
    ///
    /// # Errors
    /// [`Error::Storage`] when the store fails, [`Error::Corrupt`] when a block is damaged: the first of them, after
    /// the other partitions were cleaned.
    pub fn clean(&self, now: Millis) -> Result<()> {
        self.broker.clean(now)
    }
}

/// Opens a log, or makes a new one where the directory is empty; aborts the transactions that were left open.
///
/// # Errors
/// [`Error::Refused`] when another process has the directory open; [`Error::Corrupt`] when it was written by a newer
/// program or is damaged; [`Error::Storage`] when the store fails.
pub fn open(config: Config) -> Result<Arc<EmbeddedLog>> {
    let backing: Box<dyn Backing> = match &config.dir {
        Some(dir) => Box::new(DiskBacking::open(dir, config.store_cache_bytes)?),
        None => Box::new(MemoryBacking::default()),
    };
    let broker = Arc::new(open::load(&config, backing)?);
    let mut log = EmbeddedLog {
        broker: broker.clone(),
        janitor: None,
    };
    if let Some(every) = config.clean_every {
        let broker = Arc::downgrade(&broker);
        let thread = std::thread::Builder::new().name("log-clean".to_owned());
        let spawned = thread.spawn(move || clean::run(&broker, every));
        let failed = |source| Error::Storage {
            attempted: "start its background thread",
            source: Box::new(source),
        };
        log.janitor = Some(spawned.map_err(failed)?);
    }
    Ok(Arc::new(log))
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        let (janitor, bell) = &self.broker.janitor;
        broker::lock(janitor).stop = true;
        bell.notify_all();
        if let Some(thread) = self.janitor.take() {
            // It has nothing to say: what went wrong in it was logged there.
            drop(thread.join());
        }
    }
}

impl EventLog for EmbeddedLog {
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<bool>> {
        self.broker.create_topics(topics)
    }

    fn describe(&self, topic: &str) -> Result<Option<TopicInfo>> {
        Ok(self.broker.describe(topic))
    }

    fn topics(&self) -> Result<Vec<String>> {
        let state = self.broker.state();
        Ok(state
            .topics
            .keys()
            .filter(|name| !name.starts_with("__"))
            .map(|name| name.to_string())
            .collect())
    }

    fn alter_topic(&self, topic: &str, settings: &[(String, String)]) -> Result<()> {
        self.broker.alter_topic(topic, settings)
    }

    fn delete_topic(&self, topic: &str) -> Result<()> {
        self.broker.delete_topic(topic)
    }

    fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> Result<Offset> {
        self.broker.offset(at, which)
    }

    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Committed> {
        self.broker.committed(group, partitions)
    }

    fn set_committed(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        self.broker.set_committed(group, offsets)
    }

    fn groups(&self) -> Result<Vec<GroupInfo>> {
        Ok(self.broker.groups())
    }

    fn group(&self, config: GroupConfig) -> Result<Box<dyn GroupConsumer>> {
        Ok(Box::new(consumer::EmbeddedConsumer::join(self.broker.clone(), config)?))
    }

    fn reader(&self, isolation: Isolation) -> Result<Box<dyn Reader>> {
        Ok(Box::new(reader::EmbeddedReader::open(self.broker.clone(), isolation)))
    }

    fn transactional_producer(&self, config: TransactionalProducerConfig) -> Result<Box<dyn TransactionalProducer>> {
        Ok(Box::new(transactional_producer::EmbeddedTransactionalProducer::open(
            self.broker.clone(),
            config,
        )?))
    }

    fn append(&self, records: &OutBatch) -> Result<Vec<Produced>> {
        let encoded = encode::encode(&self.broker, records)?;
        let produced = self.broker.append(encoded.drafts, None)?;
        encoded.refused.map_or(Ok(produced), Err)
    }

    fn producer(&self) -> Result<Box<dyn Producer>> {
        Ok(Box::new(producer::EmbeddedProducer::open(self.broker.clone())))
    }

    fn describe_self(&self) -> String {
        self.broker.place.clone()
    }

    fn log_epoch(&self) -> Result<String> {
        Ok(self.broker.writer().head.log_epoch.to_string())
    }
}

/// Refuses names that no group can have.
fn check_group(name: &str) -> Result<()> {
    if (1..=32_767).contains(&name.len()) {
        return Ok(());
    }
    Err(Error::Refused {
        attempted: format!("use the group `{name}`"),
        reason: "a group's name has from 1 to 32,767 bytes".to_owned(),
    })
}

#[cfg(test)]
mod tests;
