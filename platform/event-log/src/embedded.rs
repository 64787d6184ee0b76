//! The embedded log: Kafka's semantics inside one process, stored in a directory or in memory.
//!
//! Blocks of records, control records, committed offsets and topics are in a store with atomic batches (`backing`). What
//! readers need for every poll is in memory (`state`). A change is stored first and then published in the state.
//!
//! If the process is killed, no acknowledged write is lost, and open transactions are aborted when the log is opened
//! again. What a crash of the host can lose depends on [`Durability`]. A crash never leaves a gap, and the log gets a
//! new epoch if acknowledged writes may be lost. If the disk is full, writes fail with [`Error::StorageUnavailable`]
//! until there is free space. One process at a time can open a directory. All clients live in this process: a group
//! member is alive until it is closed or dropped, and there are no heartbeats.

mod backing;
mod block;
mod broker;
mod clean;
mod compact;
mod config;
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
mod timeouts;
mod topics;
mod transactional_producer;
mod write;

use crate::{
    Committed, Error, EventLog, GroupConfig, GroupConsumer, GroupInfo, Isolation, Millis, Notice, Offset, OffsetSpec,
    OutBatch, Produced, Producer, Reader, Result, SharedEventLog, TopicInfo, TopicPartition, TopicSpec,
    TransactionalProducer, TransactionalProducerConfig,
};
use backing::{Backing, DiskBacking, MemoryBacking};
use broker::Broker;
pub use config::{Clock, Config, Durability};
use std::sync::Arc;
use std::thread::JoinHandle;

/// An open embedded log.
pub struct EmbeddedLog {
    broker: Arc<Broker>,
    cleaner_thread: Option<JoinHandle<()>>,
}

impl EmbeddedLog {
    /// Opens a log and returns it as a trait object.
    ///
    /// # Errors
    /// As for [`open`].
    pub fn open(config: Config) -> Result<SharedEventLog> {
        Ok(open(config)?)
    }

    /// Removes what retention and compaction do not keep at the time `now`.
    ///
    /// # Errors
    /// [`Error::Storage`] if the store fails, [`Error::Corrupt`] if a block is corrupt. All partitions are cleaned
    /// before the first error is returned.
    pub fn clean(&self, now: Millis) -> Result<()> {
        self.broker.clean(now)
    }
}

/// Opens a log, or creates one in an empty directory. Aborts transactions that were left open.
///
/// # Errors
/// [`Error::Rejected`] if another process has opened the directory or files cannot be written; [`Error::Corrupt`] if
/// the files are corrupt or were written by a newer version; [`Error::StorageUnavailable`] if the disk is full;
/// [`Error::Storage`] if the store fails.
pub fn open(config: Config) -> Result<Arc<EmbeddedLog>> {
    let backing: Box<dyn Backing> = match &config.dir {
        Some(dir) => Box::new(DiskBacking::open(dir, &config)?),
        None => Box::new(MemoryBacking::default()),
    };
    let broker = Arc::new(open::load(&config, backing)?);
    let mut log = EmbeddedLog {
        broker: broker.clone(),
        cleaner_thread: None,
    };
    if let Some(every) = config.clean_every {
        let broker = Arc::downgrade(&broker);
        let thread = std::thread::Builder::new().name("log-clean".to_owned());
        let spawned = thread.spawn(move || clean::run(&broker, every));
        let failed = |source| Error::Storage {
            attempted: "start the cleaner thread",
            source: Box::new(source),
        };
        log.cleaner_thread = Some(spawned.map_err(failed)?);
        broker::lock(&log.broker.cleaner_thread.0).runs = true;
    }
    Ok(Arc::new(log))
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        let (thread, wake) = &self.broker.cleaner_thread;
        broker::lock(thread).stop = true;
        wake.notify_all();
        if let Some(thread) = self.cleaner_thread.take() {
            // The thread has already logged its errors.
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
        encoded.rejected.map_or(Ok(produced), Err)
    }

    fn producer(&self) -> Result<Box<dyn Producer>> {
        Ok(Box::new(producer::EmbeddedProducer::open(self.broker.clone())))
    }

    fn check_reachable(&self) -> Result<()> {
        self.broker.check_storage()
    }

    fn notice(&self) -> Option<Notice> {
        self.broker.notice.clone()
    }

    fn description(&self) -> String {
        self.broker.place.clone()
    }

    fn log_epoch(&self) -> Result<String> {
        Ok(self.broker.writer().head.log_epoch.to_string())
    }
}

#[cfg(test)]
mod tests;
