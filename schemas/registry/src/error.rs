//! Registry errors. Codes and messages are those of Confluent's REST API, which existing clients understand.

use schemas::ids::SchemaId;

/// Result of a registry call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call to the registry failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// 40401.
    #[error("Subject '{subject}' not found.")]
    SubjectNotFound {
        /// The subject.
        subject: String,
    },
    /// 40402.
    #[error("Version {version} not found.")]
    VersionNotFound {
        /// The version.
        version: String,
    },
    /// 40403.
    #[error("{}", match .id { Some(id) => format!("Schema {id} not found"), None => "Schema not found".to_owned() })]
    SchemaNotFound {
        /// The requested id; `None` if the schema was requested by its text.
        id: Option<SchemaId>,
    },
    /// 40404: the subject is deleted softly.
    #[error("Subject '{subject}' was soft deleted. Set permanent=true to delete permanently")]
    SubjectDeleted {
        /// The subject.
        subject: String,
    },
    /// 40405: a permanent deletion of a subject that is not deleted softly.
    #[error("Subject '{subject}' was not deleted first before being permanently deleted")]
    SubjectNotDeleted {
        /// The subject.
        subject: String,
    },
    /// 40406: the version is deleted softly.
    #[error("Subject '{subject}' Version {version} was soft deleted. Set permanent=true to delete permanently")]
    VersionDeleted {
        /// The subject.
        subject: String,
        /// The version.
        version: String,
    },
    /// 40407: a permanent deletion of a version that is not deleted softly.
    #[error("Subject '{subject}' Version {version} was not deleted first before being permanently deleted")]
    VersionNotDeleted {
        /// The subject.
        subject: String,
        /// The version.
        version: String,
    },
    /// 40408.
    #[error("Subject '{subject}' does not have subject-level compatibility configured")]
    NoLevel {
        /// The subject.
        subject: String,
    },
    /// 40409.
    #[error("Subject '{subject}' does not have subject-level mode configured")]
    NoMode {
        /// The subject.
        subject: String,
    },
    /// 409.
    #[error("Schema being registered is incompatible with an earlier schema for subject \"{subject}\", details: [{}]", .conflicts.join("; "))]
    Incompatible {
        /// The subject.
        subject: String,
        /// The conflicts, each with its path.
        conflicts: Vec<String>,
    },
    /// 42201.
    #[error("Invalid schema: {reason}")]
    InvalidSchema {
        /// The reason.
        reason: String,
    },
    /// 42202.
    #[error(
        "The specified version '{version}' is not a valid version id. Allowed values are between [1, 2^31-1] and the string \"latest\""
    )]
    InvalidVersion {
        /// The text.
        version: String,
    },
    /// 42203.
    #[error(
        "Invalid compatibility level {level}. Valid values are none, backward, forward, full, backward_transitive, forward_transitive, and full_transitive"
    )]
    InvalidLevel {
        /// The text.
        level: String,
    },
    /// 42204.
    #[error("Invalid mode {mode}. Valid values are READWRITE, READONLY and READONLY_OVERRIDE")]
    InvalidMode {
        /// The text.
        mode: String,
    },
    /// 42205: the mode forbids changes.
    #[error("Subject {subject} is in read-only mode")]
    ReadOnly {
        /// The subject.
        subject: String,
    },
    /// 42209.
    #[error("Schema is too large: its record in _schemas has {bytes} bytes, the limit is {limit}; split the schema")]
    SchemaTooLarge {
        /// Size of the record.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Error codes 50001 and similar: the registry, or the log that contains it, is unreachable or did not respond in
    /// time.
    #[error("cannot {attempted}: schema registry {registry} is unavailable: {reason}")]
    Unavailable {
        /// Its URL or name.
        registry: String,
        /// The attempted operation.
        attempted: String,
        /// The cause.
        reason: String,
    },
    /// 401, 403.
    #[error(
        "cannot {attempted}: schema registry {registry} rejects the credentials; check the configured user and password, or token"
    )]
    Unauthorized {
        /// Its URL or name.
        registry: String,
        /// The attempted operation.
        attempted: String,
    },
    /// Any other error response.
    #[error("cannot {attempted}: schema registry {registry} responds with code {code}: {reason}")]
    Rejected {
        /// Its URL or name.
        registry: String,
        /// The attempted operation.
        attempted: String,
        /// Confluent's error code, or the HTTP status.
        code: u32,
        /// The registry's message.
        reason: String,
    },
}

impl Error {
    /// Confluent's error code; its first three digits are the HTTP status.
    pub fn code(&self) -> u32 {
        match self {
            Error::SubjectNotFound { .. } => 40401,
            Error::VersionNotFound { .. } => 40402,
            Error::SchemaNotFound { .. } => 40403,
            Error::SubjectDeleted { .. } => 40404,
            Error::SubjectNotDeleted { .. } => 40405,
            Error::VersionDeleted { .. } => 40406,
            Error::VersionNotDeleted { .. } => 40407,
            Error::NoLevel { .. } => 40408,
            Error::NoMode { .. } => 40409,
            Error::Incompatible { .. } => 409,
            Error::InvalidSchema { .. } => 42201,
            Error::InvalidVersion { .. } => 42202,
            Error::InvalidLevel { .. } => 42203,
            Error::InvalidMode { .. } => 42204,
            Error::ReadOnly { .. } => 42205,
            Error::SchemaTooLarge { .. } => 42209,
            Error::Unavailable { .. } => 50001,
            Error::Unauthorized { .. } => 40101,
            Error::Rejected { code, .. } => *code,
        }
    }

    /// The reaction to the error.
    pub fn action(&self) -> event_log::ErrorAction {
        match self {
            Error::Unavailable { .. } => event_log::ErrorAction::Retry,
            Error::SchemaNotFound { .. } => event_log::ErrorAction::DeadLetter,
            _ => event_log::ErrorAction::Stop,
        }
    }
}
