//! The log, the registry and the admin token that a command uses: from options, a configuration file or a profile.
//!
//! Options and configuration must not select two logs, because the credentials of one would then be sent to the other.

use crate::args::{DEFAULT_DATA, Target};
use crate::config::{self, Kafka, Registry};
use crate::profiles::{self, AdminAccess, Profile};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use service::config::Sources;
use std::collections::BTreeMap;
use std::path::Path;

/// What a command connects to.
pub struct Connection {
    /// Kafka. Without it, the command uses the data directory.
    pub kafka: Option<Kafka>,
    /// The schema registry.
    pub registry: Registry,
    /// Access to admin listeners.
    pub admin: AdminAccess,
}

/// The sections of a node's configuration that a command uses.
#[derive(Deserialize)]
struct NodeSections {
    kafka: Kafka,
    #[serde(default)]
    registry: Option<Registry>,
}

impl Connection {
    /// Reads the configuration file or the profile of the options, and adds the options.
    ///
    /// # Errors
    /// The file or the profile cannot be read, or options and file contradict each other.
    pub fn of(target: &Target) -> Result<Self> {
        let profile = match (&target.config, &target.profile) {
            (Some(file), _) => node_sections(file)?,
            (None, Some(name)) => profiles::read(&profiles::dir()?, name)?,
            (None, None) if target.kafka.is_none() && target.data == Path::new(DEFAULT_DATA) => profiles::in_use()?,
            (None, None) => Profile::default(),
        };
        let kafka = match (profile.kafka, &target.kafka) {
            (Some(_), Some(brokers)) => bail!(
                "both --kafka {brokers} (or TRUNKLINE_KAFKA) and a configuration file or profile select a Kafka; use one of \
                 them"
            ),
            (Some(kafka), None) => Some(kafka),
            (None, Some(brokers)) => Some(Kafka {
                brokers: brokers.clone(),
                settings: BTreeMap::new(),
                replication: None,
            }),
            (None, None) => None,
        };
        let kafka = with_settings(kafka, target)?;
        let registry = with_registry(profile.registry, target)?;
        Ok(Connection {
            kafka,
            registry,
            admin: profile.client.with(target),
        })
    }
}

fn with_settings(kafka: Option<Kafka>, target: &Target) -> Result<Option<Kafka>> {
    let Some(mut kafka) = kafka else {
        if let Some(setting) = target.kafka_setting.first() {
            bail!(
                "-X {} is a setting of Kafka, but no Kafka is selected; name it with --kafka, --config or --profile",
                setting.name
            );
        }
        return Ok(None);
    };
    for setting in &target.kafka_setting {
        kafka.settings.insert(setting.name.clone(), setting.value.clone());
    }
    Ok(Some(kafka))
}

/// The registry of the options, else that of the configuration. Credentials belong to the URL of the same place.
fn with_registry(configured: Option<Registry>, target: &Target) -> Result<Registry> {
    let mut registry = match &target.registry {
        Some(url) => Registry::at(Some(url.clone())),
        None => configured.unwrap_or_else(|| Registry::at(None)),
    };
    if target.registry_user.is_some() || target.registry_password.is_some() {
        if registry.url.is_none() {
            bail!(
                "a user or password of a registry is set, but no registry; name it with --registry or in a configuration"
            );
        }
        registry.user = target.registry_user.clone().or(registry.user);
        registry.password = target.registry_password.clone().or(registry.password);
    }
    Ok(registry)
}

fn node_sections(file: &Path) -> Result<Profile> {
    let cannot = || format!("cannot use the configuration {} (--config)", file.display());
    let sources = Sources::environment(&config::OPTIONS).file(file).with_context(cannot)?;
    let NodeSections { kafka, registry } = sources.read().with_context(cannot)?;
    Ok(Profile {
        kafka: Some(kafka),
        registry,
        client: AdminAccess::default(),
    })
}

#[cfg(test)]
mod tests;
