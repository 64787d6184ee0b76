//! Where a node runs: its configuration file, `trunkline.toml`. What runs is in the topology.
//!
//! Guarantees: an unknown key is refused with the keys that there are; secrets are `${env:NAME}` or `${file:PATH}` and
//! are never printed. Never: a default that reaches beyond this machine.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use service::{Secret, admin, config::Sources};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Variables that are options of the command line, not keys of the file.
const OPTIONS: [&str; 5] = [
    "TRUNKLINE_LOG",
    "TRUNKLINE_POSTGRES",
    "TRUNKLINE_KAFKA",
    "TRUNKLINE_REGISTRY_URL",
    "TRUNKLINE_HOME",
];

/// The configuration of a node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Where stores are kept. It may be lost: everything in it is restored from the log.
    pub data_dir: PathBuf,
    /// The log.
    pub kafka: Kafka,
    /// The schema registry.
    pub registry: Registry,
    /// The operators' listener.
    #[serde(default)]
    pub admin: admin::Config,
    /// Postgres connectors, by the connector's name.
    #[serde(default)]
    pub connectors: BTreeMap<String, connectors::sources::postgres::Config>,
    /// The backends' listener, for a node with the role `ingest` or an http connector.
    #[serde(default)]
    pub ingest: Option<connectors::ingest::Config>,
    /// The devices' listener, for a node with the role `edge`.
    #[serde(default)]
    pub edge: Option<edge::Config>,
    /// How processors run.
    #[serde(default)]
    pub processors: Processors,
}

/// How to reach Kafka.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// Bootstrap servers: `host:port`, with commas between several.
    pub brokers: String,
    /// librdkafka's own settings, such as `security.protocol` or `sasl.username`.
    #[serde(default)]
    pub settings: BTreeMap<String, Secret>,
    /// Replicas of the topics that Trunkline creates; without it the broker's default.
    #[serde(default)]
    pub replication: Option<i32>,
}

/// How to reach the schema registry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Its URL, with the path of its Confluent API; without it, the registry embedded in the log is used.
    #[serde(default)]
    pub url: Option<String>,
    /// User for HTTP basic authentication.
    #[serde(default)]
    pub user: Option<String>,
    /// Its password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Where a node with the role `registry` serves the embedded registry.
    #[serde(default)]
    pub listen: Option<std::net::SocketAddr>,
}

/// How processors run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Processors {
    /// This process among those of a processor; two live processes may not share it. Default: the node's name.
    pub instance: Option<String>,
    /// Stream threads.
    pub threads: usize,
    /// Engine of the state stores: fjall, sled or memory.
    pub store: Engine,
    /// Caches and write buffers of each task's store, in MiB.
    pub store_memory_mib: u64,
    /// After how many processes lost at once no task starts cold: each process keeps the stores warm of the tasks that
    /// it would get then. At most 3.
    pub standby_replicas: usize,
    /// How the threads of a processor agree on who runs what: classic or consumer.
    pub group_protocol: GroupProtocol,
    /// What a processor's outputs and state are worth after a crash, by its name: exactly_once, which is the default, or
    /// at_least_once. `sync-views` must be exactly once.
    pub guarantees: BTreeMap<String, ProcessingGuarantee>,
}

impl Processors {
    /// What a processor's outputs and state are worth after a crash.
    pub fn guarantee_of(&self, processor: &str) -> streams::ProcessingGuarantee {
        self.guarantees.get(processor).copied().unwrap_or_default().into()
    }
}

/// A guarantee.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ProcessingGuarantee {
    /// By transactions.
    #[default]
    ExactlyOnce,
    /// Without them.
    AtLeastOnce,
}

impl From<ProcessingGuarantee> for streams::ProcessingGuarantee {
    fn from(guarantee: ProcessingGuarantee) -> Self {
        match guarantee {
            ProcessingGuarantee::ExactlyOnce => streams::ProcessingGuarantee::ExactlyOnce,
            ProcessingGuarantee::AtLeastOnce => streams::ProcessingGuarantee::AtLeastOnce,
        }
    }
}

/// A group protocol.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum GroupProtocol {
    /// Every change stops every task for a moment.
    #[default]
    Classic,
    /// KIP-848: only what moves stops.
    Consumer,
}

impl From<GroupProtocol> for event_log::GroupProtocol {
    fn from(protocol: GroupProtocol) -> Self {
        match protocol {
            GroupProtocol::Classic => event_log::GroupProtocol::Classic,
            GroupProtocol::Consumer => event_log::GroupProtocol::Consumer,
        }
    }
}

/// A store engine.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// An LSM tree.
    #[default]
    Fjall,
    /// sled 0.34.
    Sled,
    /// Nothing on disk.
    Memory,
}

impl From<Engine> for state_store::Engine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Fjall => state_store::Engine::Fjall,
            Engine::Sled => state_store::Engine::Sled,
            Engine::Memory => state_store::Engine::Memory,
        }
    }
}

impl Default for Processors {
    fn default() -> Self {
        Processors {
            instance: None,
            threads: 1,
            store: Engine::Fjall,
            store_memory_mib: 32,
            standby_replicas: 0,
            group_protocol: GroupProtocol::Classic,
            guarantees: BTreeMap::new(),
        }
    }
}

/// Reads a node's configuration: the file, over it the environment.
pub fn read(path: &Path) -> Result<NodeConfig> {
    if !path.exists() {
        bail!(
            "there is no configuration {}; write one (docs/reference/configuration.md shows every key), or name it with --config",
            path.display()
        );
    }
    let sources = Sources::environment(&OPTIONS).file(path)?;
    sources
        .read()
        .with_context(|| format!("configuration {}", path.display()))
}
