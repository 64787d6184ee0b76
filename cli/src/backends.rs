//! What every role stands on: the log and the registry, opened as configured.
//!
//! Guarantees: a message that says what could not be reached and what to start. Never: a role.

use crate::admin_api::{Operator, Performer, fetch_from};
use crate::args::Target;
use crate::config::{Kafka, Registry as RegistryConfig};
use crate::data_dir::{self, DataDir, DataDirError};
use crate::state::Running;
use anyhow::{Context, Result, bail};
use event_log::SharedEventLog;
use event_log::embedded::{self, EmbeddedLog};
use event_log::kafka::{self, KafkaLog};
use registry::{Catalog, SharedRegistry, remote};
use serde::{Deserialize, Serialize};
use service::{SharedClock, clock};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The log and the registry.
#[derive(Clone)]
pub struct Backends {
    /// The log.
    pub log: SharedEventLog,
    /// The registry.
    pub registry: SharedRegistry,
    /// The time.
    pub clock: SharedClock,
    /// Replicas of the topics that are created.
    pub replication: Option<i32>,
    /// The processors that run in this process.
    pub running: Running,
    /// URL of this process's operators' listener, as other processes reach it.
    pub advertised: Option<String>,
}

impl Backends {
    /// A log and a registry in which no processor runs yet.
    pub fn new(log: SharedEventLog, registry: SharedRegistry, clock: SharedClock, replication: Option<i32>) -> Self {
        Backends {
            log,
            registry,
            clock,
            replication,
            running: Running::default(),
            advertised: None,
        }
    }

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
pub fn embedded_log(data: &Path, clock: &SharedClock) -> Result<SharedEventLog, event_log::Error> {
    let now = clock.clone();
    EmbeddedLog::open(embedded::Config::new(
        Some(data.join("log")),
        Arc::new(move || now.now_ms()),
    ))
}

/// Connects to Kafka.
pub fn kafka_log(config: &Kafka) -> Result<SharedEventLog> {
    let mut client = kafka::Config::new(config.brokers.clone());
    for (name, value) in &config.settings {
        client.settings.insert(name.clone(), value.expose().to_owned());
    }
    KafkaLog::connect(client).with_context(|| format!("connect to Kafka at {}", config.brokers))
}

/// Opens the registry: the remote one when a URL is given, else the one embedded in the log.
pub fn registry(config: &RegistryConfig, log: &SharedEventLog) -> Result<SharedRegistry> {
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
pub struct Dev {
    /// URL of its admin listener.
    pub admin: String,
    /// URL of its devices' listener.
    pub edge: String,
    /// URL of its ingest listener.
    pub ingest: String,
    /// Its process id.
    pub pid: u32,
}

/// The file that [`Dev`] stands in.
pub fn running_file(data: &Path) -> PathBuf {
    data.join("dev.json")
}

/// What the `dev` that runs in a data directory has written down.
pub fn running_dev(data: &Path) -> Result<Dev> {
    let file = running_file(data);
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "no `trunkline dev` has written {}; start one there, or name a Kafka with --kafka",
            file.display()
        )
    })?;
    serde_json::from_str(&text).with_context(|| format!("{}", file.display()))
}

/// Connects to the Kafka that an operator's command names.
pub fn target_log(brokers: &str) -> Result<SharedEventLog> {
    kafka_log(&Kafka {
        brokers: brokers.to_owned(),
        settings: Default::default(),
        replication: None,
    })
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
        let log = target_log(brokers)?;
        let registry = registry(&registry_config, &log)?;
        return Ok(Performer::Here(Backends::new(log, registry, clock, None).operator()));
    }
    if !target.data.join("log").exists() {
        bail!(
            "there is no log in {}; start `trunkline dev` there, name its directory with --data, or a Kafka with --kafka",
            target.data.display()
        );
    }
    match DataDir::claim(&target.data, data_dir::OPTION) {
        // Held until the command ends, so that `dev --fresh` does not move the directory meanwhile.
        Ok(data) => drop(data.keep()),
        Err(DataDirError::InUse { .. }) => return Ok(Performer::There(running_dev(&target.data)?.admin)),
        Err(error) => return Err(error.into()),
    }
    match embedded_log(&target.data, &clock) {
        Ok(log) => {
            let registry = registry(&registry_config, &log)?;
            Ok(Performer::Here(Backends::new(log, registry, clock, None).operator()))
        }
        Err(event_log::Error::Refused { .. }) => Ok(Performer::There(running_dev(&target.data)?.admin)),
        Err(error) => Err(error).with_context(|| format!("open the log in {}", target.data.display())),
    }
}
