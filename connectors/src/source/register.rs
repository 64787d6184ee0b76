//! Schema registration from async code. The registry client blocks, so calls run on tokio's blocking threads.

use crate::error::{Error, Result};
use registry::Registry;
use schemas::ids::SchemaId;
use std::sync::Arc;

/// Registers a schema in Avro JSON and returns its id.
pub(crate) async fn register(registry: &Arc<dyn Registry>, subject: String, schema: String) -> Result<SchemaId> {
    let (registry, name) = (Arc::clone(registry), subject.clone());
    let outcome = tokio::task::spawn_blocking(move || registry.register(&name, &schema)).await;
    let failed = |retry, source| Error::Registry {
        subject,
        retry,
        fix: None,
        source,
    };
    match outcome {
        Ok(Ok(id)) => Ok(id),
        Ok(Err(error)) => Err(failed(error.action() == event_log::ErrorAction::Retry, error.into())),
        Err(join_error) => Err(failed(true, join_error.into())),
    }
}
