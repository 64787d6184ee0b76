//! The log on Apache Kafka 4: the production home.
//!
//! Guarantees: what `platform/event-log` promises, through librdkafka's raw calls where its wrapper would cost 100 ms a
//! commit. Settings of operators (TLS, SASL, sizes) are passed through by librdkafka's names.
//! Never: an automatic topic, commit or offset reset; a secret in a message.

mod admin;
mod client;
mod coordinator;
mod coverage;
mod errors;
mod fetcher;
mod group;
pub mod limit;
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
use coordinator::Coordinators;
use group::Shared;
use members::Members;
use producer_client::ProducerClient;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where Kafka is, and how to talk to it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Bootstrap servers: `host:port`, separated by commas.
    pub bootstrap: String,
    /// Name of this client in the brokers' logs and quotas.
    #[serde(default = "default_client_id")]
    pub client_id: String,
    /// Settings by librdkafka's names, such as `security.protocol`, `ssl.ca.location`, `sasl.username`,
    /// `compression.type` or `queued.max.messages.kbytes`. What exactly-once needs is set over them.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// How long a request may take before the log counts as out of reach, in seconds.
    #[serde(
        default = "default_request_timeout",
        rename = "request_timeout_s",
        deserialize_with = "seconds"
    )]
    pub request_timeout: Duration,
}

fn default_client_id() -> String {
    "trunkline".to_owned()
}

fn default_request_timeout() -> Duration {
    Duration::from_secs(20)
}

fn seconds<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Duration, D::Error> {
    u32::deserialize(from).map(|seconds| Duration::from_secs(seconds.into()))
}

impl Config {
    /// A plain connection to these servers.
    pub fn new(bootstrap: impl Into<String>) -> Config {
        Config {
            bootstrap: bootstrap.into(),
            client_id: default_client_id(),
            settings: BTreeMap::new(),
            request_timeout: default_request_timeout(),
        }
    }
}

/// Shows the names of settings and none of their values, which may be secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("bootstrap", &self.bootstrap)
            .field("client_id", &self.client_id)
            .field("settings", &self.settings.keys().collect::<Vec<_>>())
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}

/// The membership under which records were read.
#[derive(Debug)]
pub struct KafkaGroupMetadata {
    pub(crate) metadata: client::consumer::ClientGroupMetadata,
    /// Whether the generation may rise without the member having been told, so that an old one is no fence.
    pub(crate) generation_rises: bool,
}

/// The log on Kafka.
#[derive(Debug)]
pub struct KafkaLog {
    config: Config,
    /// Appends outside transactions, and asks for the administration. Replaced when it has failed for good.
    shared: Mutex<Arc<ProducerClient>>,
    coordinators: Arc<Coordinators>,
    /// The groups' members that live in this process.
    members: Arc<Members>,
}

impl KafkaLog {
    /// Makes a log of these settings. Does not wait for a broker: a log that is out of reach says so when it is used.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] for a setting that librdkafka does not take.
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

    fn shared(&self) -> Result<Arc<ProducerClient>> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.is_fatal() {
            *shared = Arc::new(ProducerClient::new(
                &settings::append(&self.config),
                self.config.request_timeout,
            )?);
        }
        Ok(shared.clone())
    }

    fn with_admin<T>(&self, ask: impl FnOnce(&admin::Admin<'_>) -> Result<T>) -> Result<T> {
        let shared = self.shared()?;
        ask(&admin::Admin::new(shared.handle(), self.config.request_timeout))
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
        let counted = |admin: &admin::Admin<'_>| {
            let topics = config.topics.iter();
            topics
                .map(|topic| Ok((topic.clone(), admin.partitions(topic)?)))
                .collect::<Result<_>>()
        };
        let topics = self.with_admin(counted)?;
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
        self.shared()?.append(records)
    }

    fn producer(&self) -> Result<Box<dyn Producer>> {
        Ok(Box::new(producer::KafkaProducer::open(&self.config)?))
    }

    fn check_reach(&self) -> Result<()> {
        self.shared()?.handle().reach().check("reach a broker")
    }

    fn describe_self(&self) -> String {
        format!("kafka {}", self.config.bootstrap)
    }

    fn log_epoch(&self) -> Result<String> {
        self.with_admin(|admin| admin.log_epoch())
    }
}
