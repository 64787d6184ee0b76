//! What every role stands on: the log and the registry, opened as configured.
//!
//! Guarantees: a message that says what could not be reached and what to start. Never: a role.

use crate::args::Target;
use crate::config::{Kafka, Registry as RegistryConfig};
use crate::operate::{Operator, Performer, fetch_from};
use anyhow::{Context, Result, bail};
use log::SharedLog;
use log::embedded::{self, EmbeddedLog};
use log::kafka::{self, KafkaLog};
use process::{SharedClock, clock};
use registry::{Catalog, SharedRegistry, remote};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The log and the registry.
#[derive(Clone)]
pub struct Home {
    /// The log.
    pub log: SharedLog,
    /// The registry.
    pub registry: SharedRegistry,
    /// The time.
    pub clock: SharedClock,
    /// Replicas of the topics that are created.
    pub replication: Option<i32>,
}

impl Home {
    /// What performs operators' requests.
    pub fn operator(&self) -> Operator {
        Operator {
            log: self.log.clone(),
            fetch: fetch_from(self.registry.clone()),
            clock: self.clock.clone(),
        }
    }
}

/// Opens the embedded log of a data directory.
pub fn embedded_log(data: &Path, clock: &SharedClock) -> Result<SharedLog, log::Error> {
    let now = clock.clone();
    EmbeddedLog::open(embedded::Config::new(
        Some(data.join("log")),
        Arc::new(move || now.now_ms()),
    ))
}

/// Connects to Kafka.
pub fn kafka_log(config: &Kafka) -> Result<SharedLog> {
    let mut client = kafka::Config::new(config.brokers.clone());
    for (name, value) in &config.settings {
        client.settings.insert(name.clone(), value.expose().to_owned());
    }
    KafkaLog::connect(client).with_context(|| format!("connect to Kafka at {}", config.brokers))
}

/// Opens the registry: the remote one when a URL is given, else the one embedded in the log.
pub fn registry(config: &RegistryConfig, log: &SharedLog) -> Result<SharedRegistry> {
    let inner: SharedRegistry = match &config.url {
        Some(url) => {
            let mut client = remote::Config::new(url);
            if let (Some(user), Some(password)) = (&config.user, &config.password) {
                client.auth = remote::Auth::Basic {
                    user: user.clone(),
                    password: password.expose().to_owned(),
                };
            }
            Arc::new(remote::Remote::new(client).with_context(|| format!("registry {url}"))?)
        }
        None => Arc::new(registry::embedded::Embedded::open(log.clone()).context("open the embedded registry")?),
    };
    Ok(Arc::new(Catalog::new(inner)))
}

/// What a running `dev` writes into its data directory, for the other commands.
#[derive(Debug, Serialize, Deserialize)]
pub struct Running {
    /// URL of its admin listener.
    pub admin: String,
    /// URL of its devices' listener.
    pub edge: String,
    /// URL of its ingest listener.
    pub ingest: String,
    /// Its process id.
    pub pid: u32,
}

/// The file that [`Running`] stands in.
pub fn running_file(data: &Path) -> PathBuf {
    data.join("dev.json")
}

/// Who performs an operator's request: this process on Kafka or on a log that nobody has open, else the running `dev`.
pub fn performer(target: &Target) -> Result<Performer> {
    let clock = clock::system();
    let registry_config = RegistryConfig {
        url: target.registry.clone(),
        user: None,
        password: None,
        listen: None,
    };
    if let Some(brokers) = &target.kafka {
        let config = Kafka {
            brokers: brokers.clone(),
            settings: Default::default(),
            replication: None,
        };
        let log = kafka_log(&config)?;
        let registry = registry(&registry_config, &log)?;
        return Ok(Performer::Here(
            Home {
                log,
                registry,
                clock,
                replication: None,
            }
            .operator(),
        ));
    }
    if !target.data.join("log").exists() {
        bail!(
            "there is no log in {}; start `trunkline dev` there, name its directory with --data, or a Kafka with --kafka",
            target.data.display()
        );
    }
    match embedded_log(&target.data, &clock) {
        Ok(log) => {
            let registry = registry(&registry_config, &log)?;
            Ok(Performer::Here(
                Home {
                    log,
                    registry,
                    clock,
                    replication: None,
                }
                .operator(),
            ))
        }
        Err(log::Error::Refused { .. }) => {
            let file = running_file(&target.data);
            let text = std::fs::read_to_string(&file).with_context(|| {
                format!(
                    "the log is open in another process, and {} cannot be read",
                    file.display()
                )
            })?;
            let running: Running = serde_json::from_str(&text).with_context(|| format!("{}", file.display()))?;
            Ok(Performer::There(running.admin))
        }
        Err(error) => Err(error).with_context(|| format!("open the log in {}", target.data.display())),
    }
}
