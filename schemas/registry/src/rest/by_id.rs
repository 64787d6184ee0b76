//! Handlers below `/schemas`.

use super::wire::{Parameters, blocking, id_of, schema_json};
use crate::{Result, SharedRegistry, Version};
use axum::extract::{Path, State};
use axum::response::Response;
use schemas::ids::SchemaId;
use serde_json::{Value, json};

type Shared = State<SharedRegistry>;

/// All versions of all subjects.
pub(super) async fn list(State(registry): Shared, parameters: Parameters) -> Response {
    blocking(move || {
        let mut found = Vec::new();
        for subject in registry.list_subjects(parameters.listed())? {
            if !subject.starts_with(&parameters.subject_prefix) {
                continue;
            }
            let mut versions = registry.list_versions(&subject, parameters.listed())?;
            if parameters.latest_only {
                versions = versions.pop().into_iter().collect();
            }
            for version in versions {
                found.push(registry.any_version(&subject, Version::Number(version))?);
            }
        }
        Ok(json!(parameters.page(found)))
    })
    .await
}

/// The parameter `subject` only selects a context. Deserializers derive it from the topic, whatever subject has the schema.
pub(super) async fn schema(State(registry): Shared, Path(id): Path<String>) -> Response {
    blocking(move || Ok(json!({"schema": &*registry.by_id(id_of(&id)?)?}))).await
}

pub(super) async fn schema_text(State(registry): Shared, Path(id): Path<String>) -> Response {
    blocking(move || Ok(schema_json(&registry.by_id(id_of(&id)?)?))).await
}

/// Subjects and versions that use a schema; only those of one subject if the query names it.
fn uses(registry: &SharedRegistry, id: SchemaId, parameters: &Parameters) -> Result<Vec<(String, u32)>> {
    let mut uses = registry.uses(id)?;
    if let Some(subject) = &parameters.subject {
        uses.retain(|(user, _)| user == subject);
    }
    Ok(uses)
}

pub(super) async fn subjects(State(registry): Shared, Path(id): Path<String>, parameters: Parameters) -> Response {
    blocking(move || {
        let uses = uses(&registry, id_of(&id)?, &parameters)?;
        let mut subjects: Vec<String> = uses.into_iter().map(|(subject, _)| subject).collect();
        subjects.dedup();
        Ok(json!(subjects))
    })
    .await
}

pub(super) async fn versions(State(registry): Shared, Path(id): Path<String>, parameters: Parameters) -> Response {
    blocking(move || {
        let uses = uses(&registry, id_of(&id)?, &parameters)?;
        let versions: Vec<Value> = uses
            .into_iter()
            .map(|(subject, version)| json!({"subject": subject, "version": version}))
            .collect();
        Ok(versions.into())
    })
    .await
}
