//! Access to the schemas of records by their registry ids.

use event_log::ErrorAction;
use std::sync::Arc;

/// Fetches a schema's text by its registry id.
pub type FetchSchema = Arc<dyn Fn(u32) -> Result<String, Unavailable> + Send + Sync>;

/// A schema could not be fetched.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// Why.
    pub reason: String,
    /// `Retry` if the registry is unreachable; `DeadLetter` if it does not know the id.
    pub action: ErrorAction,
}

/// The schema id of a framed value.
pub fn schema_id(value: &[u8]) -> Option<u32> {
    match value.first_chunk::<5>() {
        Some([0, a, b, c, d]) => Some(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}
