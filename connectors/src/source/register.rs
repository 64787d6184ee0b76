//! Registers schemas from async source code: the registry's calls block.
//!
//! Guarantees: the runtime's own threads never wait for the registry. Never: a cache; the registry's client has one.

use crate::error::{Error, Result};
use registry::Registry;
use schemas::ids::SchemaId;
use std::sync::Arc;

/// Registers a schema, given as JSON, and gives its id.
pub(crate) async fn register(registry: &Arc<dyn Registry>, subject: String, schema: String) -> Result<SchemaId> {
    let (registry, asked) = (Arc::clone(registry), subject.clone());
    let answered = tokio::task::spawn_blocking(move || registry.register(&asked, &schema)).await;
    let failed = |retry, source| Error::Registry { subject, retry, source };
    match answered {
        Ok(Ok(id)) => Ok(id),
        Ok(Err(error)) => Err(failed(error.action() == event_log::ErrorAction::Retry, error.into())),
        Err(ended) => Err(failed(true, ended.into())),
    }
}
