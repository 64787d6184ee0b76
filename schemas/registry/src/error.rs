//! What can go wrong with a registry, by Confluent's error codes.
//!
//! Guarantees: a variant has one code, and the code and message are those that Confluent's clients know. Never: a
//! password in a message.

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
        /// The id asked for; none when it was asked for by its text.
        id: Option<SchemaId>,
    },
    /// 40408.
    #[error("Subject '{subject}' does not have subject-level compatibility configured")]
    NoLevel {
        /// The subject.
        subject: String,
    },
    /// 409.
    #[error("Schema being registered is incompatible with an earlier schema for subject \"{subject}\", details: [{}]", .conflicts.join("; "))]
    Incompatible {
        /// The subject.
        subject: String,
        /// Each conflict, with its place.
        conflicts: Vec<String>,
    },
    /// 42201.
    #[error("Invalid schema: {reason}")]
    InvalidSchema {
        /// Why.
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
    /// 50001 and others: the registry, or the log that it is kept in, could not be reached or did not answer in time.
    #[error("schema registry {registry} is out of reach while trying to {attempted}: {reason}")]
    Unavailable {
        /// Its URL or name.
        registry: String,
        /// What was attempted.
        attempted: String,
        /// What happened.
        reason: String,
    },
    /// 401, 403.
    #[error(
        "schema registry {registry} refuses the credentials while trying to {attempted}; check its user and password, or token"
    )]
    Unauthorized {
        /// Its URL or name.
        registry: String,
        /// What was attempted.
        attempted: String,
    },
    /// Any other answer.
    #[error("schema registry {registry} refused to {attempted}: {reason} (code {code})")]
    Refused {
        /// Its URL or name.
        registry: String,
        /// What was attempted.
        attempted: String,
        /// Confluent's error code, or the HTTP status.
        code: u32,
        /// The registry's own words.
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
            Error::NoLevel { .. } => 40408,
            Error::Incompatible { .. } => 409,
            Error::InvalidSchema { .. } => 42201,
            Error::InvalidVersion { .. } => 42202,
            Error::InvalidLevel { .. } => 42203,
            Error::Unavailable { .. } => 50001,
            Error::Unauthorized { .. } => 40101,
            Error::Refused { code, .. } => *code,
        }
    }

    /// Says the one way to go on: again later, give the record up, or stop with the message.
    pub fn action(&self) -> event_log::ErrorAction {
        match self {
            Error::Unavailable { .. } => event_log::ErrorAction::Retry,
            Error::SchemaNotFound { .. } => event_log::ErrorAction::DeadLetter,
            _ => event_log::ErrorAction::Stop,
        }
    }
}
