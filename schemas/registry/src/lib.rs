//! Which schema an id stands for: a client for any registry that speaks Confluent's REST API, and a registry of our own
//! that keeps `_schemas` in the log and serves the same API.
//!
//! Guarantees: whichever runs, the same calls give the same answers and the same error codes; an id stands for one
//! schema for ever, so what was read once is kept. Every call blocks the calling thread.
//! Never: a call from inside an async task (hand it to a thread that may block).

mod cache;
mod error;
mod level;

pub mod embedded;
pub mod remote;
pub mod rest;

pub use cache::Catalog;
pub use error::{Error, Result};
pub use level::Level;

use schemas::ids::SchemaId;
use std::fmt;
use std::sync::Arc;

/// A schema as it is registered under a subject.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Registered {
    /// Subject.
    pub subject: String,
    /// Version in the subject, from 1.
    pub version: u32,
    /// Id, the same in every subject.
    pub id: SchemaId,
    /// The schema's JSON.
    pub schema: String,
}

/// Which version of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The newest.
    Latest,
    /// This one, from 1.
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

/// A schema registry. All calls block; share it behind an `Arc`.
pub trait Registry: Send + Sync {
    /// Registers a schema under a subject, unless it is there, and returns its id.
    ///
    /// # Errors
    /// [`Error::InvalidSchema`], [`Error::Incompatible`] with an earlier version by the subject's [`Level`],
    /// [`Error::Unavailable`].
    fn register(&self, subject: &str, schema: &str) -> Result<SchemaId>;

    /// Finds the version of a subject that is this schema.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::SchemaNotFound`], [`Error::InvalidSchema`], [`Error::Unavailable`].
    fn lookup(&self, subject: &str, schema: &str) -> Result<Registered>;

    /// The JSON of a schema.
    ///
    /// # Errors
    /// [`Error::SchemaNotFound`], [`Error::Unavailable`].
    fn by_id(&self, id: SchemaId) -> Result<Arc<str>>;

    /// Where a schema is registered: subjects and versions.
    ///
    /// # Errors
    /// [`Error::SchemaNotFound`], [`Error::Unavailable`].
    fn uses(&self, id: SchemaId) -> Result<Vec<(String, u32)>>;

    /// All subjects, sorted.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn subjects(&self) -> Result<Vec<String>>;

    /// The versions of a subject, rising.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::Unavailable`].
    fn versions(&self, subject: &str) -> Result<Vec<u32>>;

    /// One version of a subject.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::VersionNotFound`], [`Error::Unavailable`].
    fn version(&self, subject: &str, version: Version) -> Result<Registered>;

    /// The newest version of a subject.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::Unavailable`].
    fn latest(&self, subject: &str) -> Result<Registered> {
        self.version(subject, Version::Latest)
    }

    /// Says why a schema could not follow this version of the subject, by the subject's level; empty when it could.
    ///
    /// # Errors
    /// [`Error::SubjectNotFound`], [`Error::VersionNotFound`], [`Error::InvalidSchema`], [`Error::Unavailable`].
    fn test_compatibility(&self, subject: &str, version: Version, schema: &str) -> Result<Vec<String>>;

    /// A subject's own level, or the registry's; `None` when the subject has none of its own.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn level(&self, subject: Option<&str>) -> Result<Option<Level>>;

    /// Sets a subject's level, or the registry's.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    fn set_level(&self, subject: Option<&str>, level: Level) -> Result<()>;

    /// Names the registry for people: `http://127.0.0.1:8081` or `embedded in …`. Never a password.
    fn describe_self(&self) -> String;
}

/// A shared registry.
pub type SharedRegistry = Arc<dyn Registry>;
