//! Stands in for the registry's trait until that crate has it.
pub trait Registry: Send + Sync {
    fn register(&self, subject: &str, schema: &str) -> Result<schemas::ids::SchemaId, StubError>;
}
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct StubError;
impl StubError {
    pub fn is_retriable(&self) -> bool {
        true
    }
}
