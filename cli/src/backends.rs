//! The log and the registry that all roles of a process share, and functions that open them.

use crate::config::{Kafka, Registry as RegistryConfig};
use crate::operations_api::{Operations, fetch_from};
use crate::state_api::RunningProcessors;
use anyhow::{Context, Result};
use event_log::SharedEventLog;
use event_log::embedded::{self, Durability, EmbeddedLog};
use event_log::kafka::{self, KafkaLog};
use registry::{Catalog, SharedRegistry, remote};
use service::SharedClock;
use std::path::Path;
use std::sync::Arc;

/// The log and the registry.
#[derive(Clone)]
pub struct Backends {
    /// The log.
    pub log: SharedEventLog,
    /// The registry.
    pub registry: SharedRegistry,
    /// The clock.
    pub clock: SharedClock,
    /// Replication factor of topics that are created. Default: the brokers' default.
    pub replication: Option<i32>,
    /// The processors that run in this process.
    pub running: RunningProcessors,
    /// URL under which other processes reach this process's admin listener.
    pub advertised: Option<String>,
}

impl Backends {
    /// Creates the backends of a process in which no processor runs yet.
    pub fn new(log: SharedEventLog, registry: SharedRegistry, clock: SharedClock, replication: Option<i32>) -> Self {
        Backends {
            log,
            registry,
            clock,
            replication,
            running: RunningProcessors::default(),
            advertised: None,
        }
    }

    /// Executor of operators' requests.
    pub fn operations(&self) -> Operations {
        Operations {
            log: self.log.clone(),
            fetch: fetch_from(self.registry.clone()),
            clock: self.clock.clone(),
        }
    }
}

/// Opens the embedded log of a data directory.
pub fn embedded_log(
    data: &Path,
    clock: &SharedClock,
    durability: Durability,
) -> Result<SharedEventLog, event_log::Error> {
    let now = clock.clone();
    let mut config = embedded::Config::new(Some(data.join("log")), Arc::new(move || now.now_ms()));
    config.durability = durability;
    EmbeddedLog::open(config)
}

/// Connects to Kafka.
pub fn kafka_log(config: &Kafka) -> Result<SharedEventLog> {
    let mut client = kafka::Config::new(config.brokers.clone());
    for (name, value) in &config.settings {
        client.settings.insert(name.clone(), value.expose().to_owned());
    }
    KafkaLog::connect(client).with_context(|| format!("cannot connect to Kafka at {}", config.brokers))
}

/// Opens the remote registry if a URL is configured, else the registry embedded in the log.
pub fn registry(config: &RegistryConfig, log: &SharedEventLog) -> Result<SharedRegistry> {
    let inner: SharedRegistry = match &config.url {
        Some(url) => remote_registry(config, url)?,
        None => {
            let embedded = registry::embedded::Embedded::open(log.clone());
            Arc::new(embedded.context("cannot open the embedded schema registry")?)
        }
    };
    Ok(Arc::new(Catalog::new(inner)))
}

/// Opens a registry for reading, and creates nothing: `None` if no URL is configured and the log contains no registry.
pub fn existing_registry(config: &RegistryConfig, log: &SharedEventLog) -> Result<Option<SharedRegistry>> {
    let inner: SharedRegistry = match &config.url {
        Some(url) => remote_registry(config, url)?,
        None => {
            let embedded = registry::embedded::Embedded::open_existing(log.clone());
            match embedded.context("cannot read the embedded schema registry")? {
                Some(embedded) => Arc::new(embedded),
                None => return Ok(None),
            }
        }
    };
    Ok(Some(Arc::new(Catalog::new(inner))))
}

fn remote_registry(config: &RegistryConfig, url: &str) -> Result<SharedRegistry> {
    let mut client = remote::Config::new(url);
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        client.auth = remote::Auth::Basic {
            user: user.clone(),
            password: password.expose().to_owned(),
        };
    } else if let Some(token) = &config.token {
        client.auth = remote::Auth::Bearer(token.expose().to_owned());
    }
    let remote = remote::Remote::new(client).with_context(|| format!("cannot use the registry {url}"))?;
    Ok(Arc::new(remote))
}
