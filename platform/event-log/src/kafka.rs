//! The event log on Apache Kafka 4, through librdkafka.
//!
//! It calls librdkafka directly where the safe wrapper of `rdkafka` would add up to 100 ms to a commit. Operators' settings
//! (TLS, SASL, sizes) are passed through by their librdkafka names and never appear in messages. Topics are not created
//! automatically, and offsets are neither committed nor reset automatically.

mod admin;
pub mod baseline;
mod client;
mod config;
mod coordinator;
mod coverage;
mod errors;
mod fetcher;
mod group;
pub(crate) mod group_metadata;
mod members;
mod producer;
mod producer_client;
mod protocol;
mod reader;
mod settings;
mod transactional_producer;

use crate::{
    Committed, EventLog, GroupConfig, GroupConsumer, GroupInfo, Isolation, Offset, OffsetSpec, OutBatch, Produced,
    Producer, Reader, Result, SharedEventLog, TopicInfo, TopicPartition, TopicSpec, TransactionalProducer,
    TransactionalProducerConfig,
};
pub use config::Config;
use coordinator::Coordinators;
use group::Shared;
use members::Members;
use producer_client::ProducerClient;
use std::sync::{Arc, Mutex, PoisonError};

/// The event log on Kafka.
#[derive(Debug)]
pub struct KafkaLog {
    config: Config,
    /// Client for appends and admin requests. Replaced after a fatal error.
    shared: Mutex<Arc<ProducerClient>>,
    coordinators: Arc<Coordinators>,
    /// The group members in this process.
    members: Arc<Members>,
}

impl KafkaLog {
    /// Creates an event log with these settings. Does not connect: an unreachable Kafka is reported by the first call.
    ///
    /// # Errors
    /// [`crate::Error::Rejected`] if librdkafka rejects a setting.
    pub fn connect(config: Config) -> Result<SharedEventLog> {
        let producer = ProducerClient::new(&settings::append(&config), config.request_timeout)?;
        let shared = Mutex::new(Arc::new(producer));
        Ok(Arc::new(KafkaLog {
            coordinators: Arc::new(Coordinators::new(&config)),
            config,
            shared,
            members: Arc::default(),
        }))
    }

    fn producer_client(&self) -> Result<Arc<ProducerClient>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.is_fatal() {
            *shared = Arc::new(ProducerClient::new(
                &settings::append(&self.config),
                self.config.request_timeout,
            )?);
        }
        Ok(shared.clone())
    }

    fn with_admin<T>(&self, request: impl FnOnce(&admin::Admin<'_>) -> Result<T>) -> Result<T> {
        let shared = self.producer_client()?;
        request(&admin::Admin::new(shared.handle(), self.config.request_timeout))
    }
}

impl EventLog for KafkaLog {
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<bool>> {
        self.with_admin(|admin| admin.create_topics(topics))
    }

    fn describe(&self, topic: &str) -> Result<Option<TopicInfo>> {
        self.with_admin(|admin| admin.describe(topic))
    }

    fn topics(&self) -> Result<Vec<String>> {
        self.with_admin(|admin| admin.topics())
    }

    fn alter_topic(&self, topic: &str, settings: &[(String, String)]) -> Result<()> {
        self.with_admin(|admin| admin.alter_topic(topic, settings))
    }

    fn delete_topic(&self, topic: &str) -> Result<()> {
        self.with_admin(|admin| admin.delete_topic(topic))
    }

    fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> Result<Offset> {
        self.with_admin(|admin| admin.offset(at, which))
    }

    fn offsets(&self, partitions: &[TopicPartition], which: OffsetSpec) -> Result<Vec<Offset>> {
        self.with_admin(|admin| admin.offsets(partitions, which))
    }

    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Committed> {
        self.coordinators.committed(group, partitions)
    }

    fn set_committed(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        if let Some(result) = self.members.commit(group, offsets) {
            return result;
        }
        self.coordinators.set_committed(group, offsets)
    }

    fn groups(&self) -> Result<Vec<GroupInfo>> {
        self.coordinators.groups()
    }

    fn group_info(&self, group: &str) -> Result<Option<GroupInfo>> {
        self.coordinators.group_info(group)
    }

    fn group(&self, config: GroupConfig) -> Result<Box<dyn GroupConsumer>> {
        let partition_counts = |admin: &admin::Admin<'_>| {
            let topics = config.topics.iter();
            topics
                .map(|topic| Ok((topic.clone(), admin.partitions(topic)?)))
                .collect::<Result<_>>()
        };
        let topics = self.with_admin(partition_counts)?;
        let shared = Shared {
            kafka: self.config.clone(),
            members: self.members.clone(),
            coordinators: self.coordinators.clone(),
        };
        Ok(Box::new(group::KafkaGroup::join(shared, config, topics)?))
    }

    fn reader(&self, isolation: Isolation) -> Result<Box<dyn Reader>> {
        Ok(Box::new(reader::KafkaReader::open(&self.config, isolation)?))
    }

    fn transactional_producer(&self, config: TransactionalProducerConfig) -> Result<Box<dyn TransactionalProducer>> {
        Ok(Box::new(transactional_producer::KafkaTransactionalProducer::open(
            &self.config,
            config,
        )?))
    }

    fn append(&self, records: &OutBatch) -> Result<Vec<Produced>> {
        self.producer_client()?.append(records)
    }

    fn append_each(&self, batches: &[OutBatch]) -> Vec<Result<Vec<Produced>>> {
        match self.producer_client() {
            Ok(producer) => producer.append_each(batches),
            // Each batch needs a separate error, and opening the client again fails in the same way.
            Err(_) => batches.iter().map(|records| self.append(records)).collect(),
        }
    }

    fn producer(&self) -> Result<Box<dyn Producer>> {
        Ok(Box::new(producer::KafkaProducer::open(&self.config)?))
    }

    fn check_reachable(&self) -> Result<()> {
        self.producer_client()?.handle().connectivity().check("reach a broker")
    }

    fn description(&self) -> String {
        format!("kafka {}", self.config.bootstrap)
    }

    fn log_epoch(&self) -> Result<String> {
        self.with_admin(|admin| admin.log_epoch())
    }
}
