//! Error of schema compilation.

/// Why a schema could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Not JSON, or not Avro.
    #[error("invalid schema: {0}")]
    Invalid(String),
    /// A default does not match the type of its field.
    #[error("default of field {field} does not match its type: {reason}")]
    Default {
        /// The record and field.
        field: String,
        /// The mismatch.
        reason: String,
    },
    /// A record is required, but the schema has another type.
    #[error("expected a record schema, got {0}")]
    NotARecord(String),
}
