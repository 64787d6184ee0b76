//! Configuration of a process: a TOML file whose keys environment variables override.
//!
//! Reading returns a typed struct or an error that names the key, its location (line of the file, or variable) and the
//! allowed values. Secrets are resolved here into [`Secret`], which prints as `***`. Structs use `deny_unknown_fields`,
//! so that a mistyped key is an error. This is the only module that reads the environment.

mod kubernetes;
mod node;
mod secret;

pub use secret::Secret;

use node::{Node, Origin};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Prefix of all environment variables of Trunkline.
pub const PREFIX: &str = "TRUNKLINE_";

/// The environment variable that lists the failpoints to arm ([`failpoint::arm`]).
pub const FAILPOINTS: &str = "TRUNKLINE_FAILPOINTS";

/// Reads an environment variable; `None` when it is not set or is not UTF-8.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the only place that reads the environment"
)]
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Why a configuration is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading the file failed.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}", describe(file.as_deref(), line.as_ref(), "", message))]
    Syntax {
        /// The file.
        file: Option<PathBuf>,
        /// Number and text of the line with the error.
        line: Option<(usize, String)>,
        /// The parser's message.
        message: String,
    },
    /// A key is unknown or missing, or its value is invalid.
    #[error("{}", describe(file.as_deref(), line.as_ref(), key, message))]
    Key {
        /// The file; `None` when an environment variable set the key.
        file: Option<PathBuf>,
        /// Number and text of the line, when the file set the key.
        line: Option<(usize, String)>,
        /// Path of the key, and the variable that set it, if any.
        key: String,
        /// What is wrong, and what is allowed.
        message: String,
    },
}

fn describe(file: Option<&Path>, line: Option<&(usize, String)>, key: &str, message: &str) -> String {
    let mut text = String::from("configuration");
    if let Some(file) = file {
        text.push_str(&format!(" {}", file.display()));
    }
    if let Some((number, _)) = line {
        text.push_str(&format!(", line {number}"));
    }
    if !key.is_empty() {
        text.push_str(&format!(", {key}"));
    }
    text.push_str(&format!(": {message}"));
    if let Some((number, line)) = line {
        text.push_str(&format!("\n  {number} | {line}"));
    }
    text
}

/// The sources of a configuration. Not `Debug`, since it holds unresolved secrets.
#[derive(Default)]
pub struct Sources {
    file: Option<PathBuf>,
    text: String,
    variables: BTreeMap<String, String>,
}

impl Sources {
    /// Reads the environment: a variable `TRUNKLINE_A__B=value` sets key `b` of table `a`. Items of a list may be
    /// separated by commas. Variables that are not configuration keys are ignored: [`FAILPOINTS`], variables that begin
    /// with `TRUNKLINE_TEST_`, variables in `except`, and variables that Kubernetes sets for a Service whose name
    /// begins with `trunkline`.
    pub fn environment(except: &[&str]) -> Self {
        let all =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::variables(all, except)
    }

    /// As [`Sources::environment`], with the given variables.
    fn variables(all: impl Iterator<Item = (String, String)>, except: &[&str]) -> Self {
        let other = |name: &str| name == FAILPOINTS || name.starts_with("TRUNKLINE_TEST_") || except.contains(&name);
        let is_key = |name: &str, value: &str| {
            name.starts_with(PREFIX) && !other(name) && !kubernetes::is_service_variable(name, value)
        };
        Self {
            variables: all.filter(|(name, value)| is_key(name, value)).collect(),
            ..Self::default()
        }
    }

    /// Adds a TOML file, whose keys the environment overrides.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn file(mut self, path: &Path) -> Result<Self, Error> {
        self.text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        self.file = Some(path.to_owned());
        Ok(self)
    }

    /// Adds TOML text instead of a file.
    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    /// Adds a variable as if it were set in the environment.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Parses the configuration into a struct.
    ///
    /// # Errors
    /// [`Error::Syntax`] and [`Error::Key`].
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let mut root = Node::parse(&self.text).map_err(|error| Error::Syntax {
            file: self.file.clone(),
            line: error.span().map(|span| self.line(span.start)),
            message: error.message().to_owned(),
        })?;
        for (name, value) in &self.variables {
            let path = name.strip_prefix(PREFIX).unwrap_or(name).to_ascii_lowercase();
            root.set(&path.split("__").collect::<Vec<_>>(), name, value)
                .map_err(|error| self.error(error))?;
        }
        T::deserialize(root).map_err(|error| self.error(error))
    }

    /// The line that contains a byte offset: its number, counted from 1, and its text without the value, which may be a
    /// secret.
    fn line(&self, byte: usize) -> (usize, String) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let number = before.matches('\n').count();
        let line = self.text.lines().nth(number).unwrap_or_default();
        let shown = match line.split_once('=') {
            Some((key, _)) => format!("{key}= …"),
            None if line.trim_start().starts_with('[') => line.to_owned(),
            None => "…".to_owned(),
        };
        (number + 1, shown)
    }

    fn error(&self, error: node::NodeError) -> Error {
        let node::NodeError { message, at } = error;
        let (key, origin) = at.unwrap_or((String::new(), Origin::None));
        let file = self.file.clone();
        let (file, line, key) = match origin {
            Origin::File(byte) => (file, Some(self.line(byte)), format!("`{key}`")),
            Origin::Variable(name) => (None, None, format!("`{key}` (from {name})")),
            Origin::None if key.is_empty() => (file, None, key),
            Origin::None => (file, None, format!("`{key}`")),
        };
        Error::Key {
            file,
            line,
            key,
            message,
        }
    }
}

#[cfg(test)]
mod tests;
