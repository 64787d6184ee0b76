//! The log, the registry and the admin token that a command uses: from options, a configuration file or a profile.
//!
//! Options and configuration must not select two logs, because the credentials of one would then be sent to the other.

use crate::args::Target;
use crate::config::{self, Kafka, Registry};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use service::Secret;
use service::config::{Sources, env};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a command connects to.
pub struct Connection {
    /// Kafka. Without it, the command uses the data directory.
    pub kafka: Option<Kafka>,
    /// The schema registry.
    pub registry: Registry,
    /// Access to admin listeners.
    pub admin: AdminAccess,
}

/// How a command accesses admin listeners; in a profile, section `client`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminAccess {
    /// Token for admin listeners.
    #[serde(rename = "admin_token")]
    pub token: Option<Secret>,
    /// File with the token.
    #[serde(rename = "admin_token_file")]
    pub token_file: Option<PathBuf>,
    /// PEM file with additional certificate authorities to trust.
    #[serde(rename = "admin_ca")]
    pub ca: Option<PathBuf>,
}

/// A profile.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Profile {
    kafka: Option<Kafka>,
    registry: Option<Registry>,
    client: AdminAccess,
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
            (None, Some(name)) => profile(name)?,
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

impl AdminAccess {
    /// The options, else the values of the profile.
    fn with(self, target: &Target) -> Self {
        // A variable that is set but empty means that there is no token.
        let given = target.admin_token.clone();
        let given = given.filter(|token| !token.expose().trim().is_empty());
        let (token, token_file) = match (given, &target.admin_token_file) {
            (Some(token), _) => (Some(token), None),
            (None, Some(file)) => (None, Some(file.clone())),
            (None, None) => (self.token, self.token_file),
        };
        AdminAccess {
            token,
            token_file,
            ca: target.admin_ca.clone().or(self.ca),
        }
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

fn profile(name: &str) -> Result<Profile> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_name) {
        bail!("`{name}` is not the name of a profile; use letters, digits, `-`, `_` and `.`");
    }
    let dir =
        profiles_dir().context("cannot find profiles: neither XDG_CONFIG_HOME nor HOME is set; use --config FILE")?;
    profile_in(&dir, name)
}

fn profile_in(dir: &Path, name: &str) -> Result<Profile> {
    let file = dir.join(format!("{name}.toml"));
    if !file.exists() {
        bail!(
            "there is no profile {name}; create {} (docs/guides/command-line.md), or use --config FILE",
            file.display()
        );
    }
    let cannot = || format!("cannot use the profile {name}");
    // The environment configures a node, and its secrets must not be sent to the Kafka of a profile.
    let sources = Sources::default().file(&file).with_context(cannot)?;
    sources.read().with_context(cannot)
}

/// `trunkline/profiles` in the user's configuration directory.
fn profiles_dir() -> Option<PathBuf> {
    let set = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute());
    let config = config.or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(config.join("trunkline").join("profiles"))
}

#[cfg(test)]
mod tests;
