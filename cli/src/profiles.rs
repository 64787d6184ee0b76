//! Profiles: files with a Kafka, a registry and access to admin listeners, in the user's configuration directory.
//!
//! `NAME.toml` in the directory `profiles` is a profile. The file `profile` beside the directory contains the name of the
//! profile in use, which commands use if no option or variable chooses a log.

use crate::args::Target;
use crate::config::{Kafka, Registry};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use service::Secret;
use service::config::{Sources, env};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Once;

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
pub struct Profile {
    /// Kafka.
    pub kafka: Option<Kafka>,
    /// The schema registry.
    pub registry: Option<Registry>,
    /// Access to admin listeners.
    pub client: AdminAccess,
}

impl AdminAccess {
    /// The options, else the values of the profile.
    pub fn with(self, target: &Target) -> Self {
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

/// `trunkline` in the user's configuration directory.
///
/// # Errors
/// Neither `XDG_CONFIG_HOME` nor `HOME` is set.
pub fn dir() -> Result<PathBuf> {
    let dir = config_dir();
    dir.context("cannot find profiles: neither XDG_CONFIG_HOME nor HOME is set; use --config FILE")
}

fn config_dir() -> Option<PathBuf> {
    let set = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute());
    let config = config.or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(config.join("trunkline"))
}

fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join("profiles").join(format!("{name}.toml"))
}

fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(is_allowed)
}

/// Reads a profile.
///
/// # Errors
/// There is no such profile, or it cannot be read.
pub fn read(dir: &Path, name: &str) -> Result<Profile> {
    if !is_name(name) {
        bail!("`{name}` is not the name of a profile; use letters, digits, `-`, `_` and `.`");
    }
    let file = file(dir, name);
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

/// Names of the profiles, sorted.
///
/// # Errors
/// The directory cannot be read.
pub fn names(dir: &Path) -> Result<Vec<String>> {
    let profiles = dir.join("profiles");
    let cannot = || format!("cannot list {}", profiles.display());
    let entries = match std::fs::read_dir(&profiles) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(cannot)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.with_context(cannot)?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".toml"));
        names.extend(name.filter(|name| is_name(name)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Name of the profile in use.
///
/// # Errors
/// The file with the name cannot be read.
pub fn chosen(dir: &Path) -> Result<Option<String>> {
    let file = dir.join("profile");
    match std::fs::read_to_string(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        text => {
            let text = text.with_context(|| format!("cannot read {}", file.display()))?;
            Ok(Some(text.trim().to_owned()).filter(|name| !name.is_empty()))
        }
    }
}

/// Sets the profile in use; `None` for no profile.
///
/// # Errors
/// There is no such profile, or the file with the name cannot be written.
pub fn choose(dir: &Path, name: Option<&str>) -> Result<()> {
    let file = dir.join("profile");
    let cannot = || format!("cannot write {}", file.display());
    match name {
        Some(name) => {
            read(dir, name)?;
            std::fs::write(&file, format!("{name}\n")).with_context(cannot)
        }
        None => match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(cannot),
            _ => Ok(()),
        },
    }
}

/// Reads the profile in use; an empty profile if none is.
pub fn in_use() -> Result<Profile> {
    let Some(dir) = config_dir() else {
        return Ok(Profile::default());
    };
    match chosen(&dir)? {
        Some(name) => {
            // Shown once per command, so that nobody changes a cluster by accident.
            static NOTICE: Once = Once::new();
            NOTICE.call_once(|| tracing::warn!(profile = name, "using the profile of `trunkline profile use`"));
            read(&dir, &name)
        }
        None => Ok(Profile::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_is_chosen_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(names(dir.path()).unwrap().is_empty());
        assert_eq!(chosen(dir.path()).unwrap(), None);
        choose(dir.path(), None).unwrap();
        std::fs::create_dir(dir.path().join("profiles")).unwrap();
        for name in ["prod", "stage", ".hidden"] {
            std::fs::write(file(dir.path(), name), "[kafka]\nbrokers = \"k:1\"\n").unwrap();
        }
        std::fs::write(dir.path().join("profiles/notes.txt"), "").unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["prod", "stage"]);
        choose(dir.path(), Some("prod")).unwrap();
        assert_eq!(chosen(dir.path()).unwrap().as_deref(), Some("prod"));
        let error = choose(dir.path(), Some("prd")).unwrap_err().to_string();
        assert!(error.contains("there is no profile prd"), "{error}");
        assert_eq!(chosen(dir.path()).unwrap().as_deref(), Some("prod"));
        choose(dir.path(), None).unwrap();
        assert_eq!(chosen(dir.path()).unwrap(), None);
    }
}
