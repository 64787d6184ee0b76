//! The verified identity of a request.

use schemas::ids::Principal;
use serde_json::{Map, Value};

/// Principal and claims of a token that has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Issuer alias and subject.
    pub principal: Principal,
    /// Claims under the names that memberships use.
    pub claims: Map<String, Value>,
    /// When the token expires, including the leeway, in ms since the epoch.
    pub expires_ms: i64,
}
