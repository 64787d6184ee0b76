//! Configuration of a node, `trunkline.toml`: how it connects to its environment. What runs is declared in the
//! topology.
//!
//! Unknown keys are errors. Secrets are written as `${env:NAME}` or `${file:PATH}` and are never printed. By default, a
//! node neither connects to other hosts nor accepts connections from them.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use service::listener::TlsConfig;
use service::{Secret, admin, config::Sources};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Environment variables that set command line options, not keys of the file.
pub(crate) const OPTIONS: [&str; 13] = [
    "TRUNKLINE_ADMIN_CA",
    "TRUNKLINE_ADMIN_TOKEN",
    "TRUNKLINE_ADMIN_TOKEN_FILE",
    "TRUNKLINE_LOG",
    "TRUNKLINE_POSTGRES",
    "TRUNKLINE_KAFKA",
    "TRUNKLINE_KAFKA_SETTINGS",
    "TRUNKLINE_CONFIG",
    "TRUNKLINE_PROFILE",
    "TRUNKLINE_REGISTRY_USER",
    "TRUNKLINE_REGISTRY_PASSWORD",
    "TRUNKLINE_REGISTRY_URL",
    "TRUNKLINE_HOME",
];

/// The configuration of a node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Directory of the state stores. It may be lost: its contents are restored from the log.
    pub data_dir: PathBuf,
    /// The log.
    pub kafka: Kafka,
    /// The schema registry.
    pub registry: Registry,
    /// Admin listener: readiness, metrics, state and operations.
    #[serde(default)]
    pub admin: admin::Config,
    /// PostgreSQL connectors, by connector name.
    #[serde(default)]
    pub connectors: BTreeMap<String, connectors::sources::postgres::Config>,
    /// Ingest listener, for nodes with the role `ingest` or an http connector.
    #[serde(default)]
    pub ingest: Option<connectors::ingest::Config>,
    /// Edge listener, for nodes with the role `edge`.
    #[serde(default)]
    pub edge: Option<edge::Config>,
    /// Settings of processors.
    #[serde(default)]
    pub processors: Processors,
}

/// Connection to Kafka.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// Bootstrap servers, as comma-separated `host:port`.
    pub brokers: String,
    /// librdkafka settings, such as `security.protocol` or `sasl.username`.
    #[serde(default)]
    pub settings: BTreeMap<String, Secret>,
    /// Replication factor of topics that Trunkline creates. Default: that of the brokers.
    #[serde(default)]
    pub replication: Option<i32>,
}

/// Connection to the schema registry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// URL including the path of the Confluent API. Default: the registry embedded in the log.
    #[serde(default)]
    pub url: Option<String>,
    /// User name for HTTP basic authentication.
    #[serde(default)]
    pub user: Option<String>,
    /// Password for HTTP basic authentication.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Bearer token, instead of user and password.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Address on which a node with the role `registry` serves the embedded registry.
    #[serde(default)]
    pub listen: Option<std::net::SocketAddr>,
    /// TLS of the embedded registry's listener.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Allows the embedded registry's listener to use an address other than loopback without TLS.
    #[serde(default)]
    pub insecure: bool,
    /// Users of the embedded registry's listener. Without users, the listener must be on loopback.
    #[serde(default)]
    pub users: Vec<RegistryUser>,
}

/// A user of the embedded registry (HTTP basic authentication).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryUser {
    /// Name. Several entries may have the same name, so that a password can be replaced without interruption.
    pub name: String,
    /// Password.
    pub password: Secret,
}

impl Registry {
    /// The registry at this URL, or the embedded one if there is no URL, without credentials.
    pub fn at(url: Option<String>) -> Self {
        Self {
            url,
            user: None,
            password: None,
            token: None,
            listen: None,
            tls: None,
            insecure: false,
            users: Vec::new(),
        }
    }
}

/// Settings of processors.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Processors {
    /// Instance name of this process, unique among the running processes of a processor. Default: the node name.
    pub instance: Option<String>,
    /// Number of stream threads.
    pub threads: usize,
    /// Storage engine of the state stores: fjall, sled or memory.
    pub store: Engine,
    /// Memory for caches and write buffers of each task store, in MiB.
    pub store_memory_mib: u64,
    /// Number of standby replicas per task store, from 0 to 3. With n standbys, n processes can fail at the same time
    /// without a full restore.
    pub standby_replicas: usize,
    /// Consumer group protocol: classic, or consumer (KIP-848).
    pub group_protocol: GroupProtocol,
    /// Processing guarantee by processor name: exactly_once (default) or at_least_once. `sync-views` requires
    /// exactly_once.
    pub guarantees: BTreeMap<String, ProcessingGuarantee>,
}

impl Processors {
    /// The processing guarantee of a processor.
    pub fn guarantee_of(&self, processor: &str) -> streams::ProcessingGuarantee {
        self.guarantees.get(processor).copied().unwrap_or_default().into()
    }
}

/// A processing guarantee.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ProcessingGuarantee {
    /// State, outputs and offsets are committed in one transaction.
    #[default]
    ExactlyOnce,
    /// Without transactions: records after the last commit are processed again after a crash.
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

/// A consumer group protocol.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum GroupProtocol {
    /// Each rebalance pauses all tasks.
    #[default]
    Classic,
    /// KIP-848: a rebalance pauses only the tasks that move.
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

/// A storage engine.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// fjall, an LSM tree.
    #[default]
    Fjall,
    /// sled 0.34.
    Sled,
    /// In memory only.
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

/// Reads the configuration of a node. Environment variables override the file.
pub fn read(path: &Path) -> Result<NodeConfig> {
    read_as(path)
}

/// Reads the settings of the connectors in the configuration of a node, whose other sections may be missing.
pub fn read_connectors(path: &Path) -> Result<BTreeMap<String, connectors::sources::postgres::Config>> {
    #[derive(Deserialize)]
    struct Connectors {
        #[serde(default)]
        connectors: BTreeMap<String, connectors::sources::postgres::Config>,
    }
    read_as(path).map(|Connectors { connectors }| connectors)
}

fn read_as<C: serde::de::DeserializeOwned>(path: &Path) -> Result<C> {
    if !path.exists() {
        bail!(
            "configuration file {} does not exist; create it (docs/reference/configuration.md lists all keys), or choose another with --config",
            path.display()
        );
    }
    let sources = Sources::environment(&OPTIONS).file(path)?;
    sources
        .read()
        .with_context(|| format!("cannot read the configuration {}", path.display()))
}
