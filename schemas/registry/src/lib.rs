//! Schema registry: a client for registries with Confluent's REST API, and an embedded registry that keeps `_schemas` in
//! the log and serves the same API. Both return the same results and error codes.
//!
//! Every call blocks. Call them from async code only through `spawn_blocking`.

mod cache;
mod error;
mod level;
mod manage;

pub mod embedded;
pub mod remote;
pub mod rest;

pub use cache::Catalog;
pub use error::{Error, Result};
pub use level::Level;
pub use manage::{Deleted, Deletion, Manage, Mode};

use schemas::ids::SchemaId;
use std::fmt;
use std::sync::Arc;

/// A schema that is registered under a subject.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Registered {
    /// Subject.
    pub subject: String,
    /// Version within the subject, from 1.
    pub version: u32,
    /// Id, which is the same in all subjects.
    pub id: SchemaId,
    /// The schema's JSON.
    pub schema: String,
}

/// Selects a version of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The latest version.
    Latest,
    /// The version with this number, from 1.
    Number(u32),
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Latest => f.write_str("latest"),
            Version::Number(number) => write!(f, "{number}"),
        }
    }
}

/// A schema registry. All calls block. Share it in an `Arc`.
pub trait Registry: Manage + Send + Sync {
    /// Registers a schema under a subject if it is not registered there yet, and returns its id.
    ///
    /// # Errors
    /// [`Error::InvalidSchema`], [`Error::Incompatible`] if it is incompatible with an earlier version at the
    /// subject's compatibility [`Level`], [`Error::ReadOnly`], [`Error::SchemaTooLarge`], [`Error::Unavailable`].
    fn register(&self, subject: &str, schema: &str) -> Result<SchemaId>;

    /// Finds the version of a subject with this schema.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::SchemaNotFound`], [`Error::InvalidSchema`], [`Error::Unavailable`].
    fn lookup(&self, subject: &str, schema: &str) -> Result<Registered>;

    /// The JSON of a schema.
    ///
    /// # Errors
    /// [`Error::SchemaNotFound`], [`Error::Unavailable`].
    fn by_id(&self, id: SchemaId) -> Result<Arc<str>>;

    /// The subjects and versions under which a schema is registered.
    ///
    /// # Errors
    /// [`Error::SchemaNotFound`], [`Error::Unavailable`].
    fn uses(&self, id: SchemaId) -> Result<Vec<(String, u32)>>;

    /// All subjects, sorted.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn subjects(&self) -> Result<Vec<String>>;

    /// The versions of a subject, in ascending order.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::Unavailable`].
    fn versions(&self, subject: &str) -> Result<Vec<u32>>;

    /// One version of a subject.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::VersionNotFound`], [`Error::Unavailable`].
    fn version(&self, subject: &str, version: Version) -> Result<Registered>;

    /// The latest version of a subject.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::Unavailable`].
    fn latest(&self, subject: &str) -> Result<Registered> {
        self.version(subject, Version::Latest)
    }

    /// The incompatibilities of a schema with a version of the subject, at the subject's compatibility level; empty if
    /// it is compatible.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::VersionNotFound`], [`Error::InvalidSchema`], [`Error::Unavailable`].
    fn test_compatibility(&self, subject: &str, version: Version, schema: &str) -> Result<Vec<String>>;

    /// The compatibility level of a subject, or the global level for `None`. Returns `None` if no level is set for the
    /// subject.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn level(&self, subject: Option<&str>) -> Result<Option<Level>>;

    /// Sets the compatibility level of a subject, or the global level for `None`.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn set_level(&self, subject: Option<&str>, level: Level) -> Result<()>;

    /// Name of the registry for messages, without credentials: `http://127.0.0.1:8081` or `embedded in …`.
    fn description(&self) -> String;
}

/// A shared registry.
pub type SharedRegistry = Arc<dyn Registry>;
