//! Handlers below `/subjects`.

use super::wire::{Body, Parameters, blocking, schema_json, version_of};
use crate::{Registered, Result, SharedRegistry};
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::json;

type Shared = State<SharedRegistry>;
type SubjectVersion = Path<(String, String)>;

pub(super) async fn list(State(registry): Shared, parameters: Parameters) -> Response {
    blocking(move || {
        let mut subjects = registry.list_subjects(parameters.listed())?;
        subjects.retain(|subject| subject.starts_with(&parameters.subject_prefix));
        Ok(json!(parameters.page(subjects)))
    })
    .await
}

pub(super) async fn lookup(State(registry): Shared, Path(subject): Path<String>, body: Body) -> Response {
    blocking(move || Ok(json!(registry.lookup(&subject, &body.schema()?)?))).await
}

pub(super) async fn delete(State(registry): Shared, Path(subject): Path<String>, parameters: Parameters) -> Response {
    blocking(move || {
        let versions = registry.delete_subject(&subject, parameters.deletion())?;
        tracing::info!(subject, permanent = parameters.permanent, ?versions, "subject deleted");
        Ok(json!(versions))
    })
    .await
}

pub(super) async fn versions(State(registry): Shared, Path(subject): Path<String>, parameters: Parameters) -> Response {
    blocking(move || {
        let versions = registry.list_versions(&subject, parameters.listed())?;
        Ok(json!(parameters.page(versions)))
    })
    .await
}

pub(super) async fn register(State(registry): Shared, Path(subject): Path<String>, body: Body) -> Response {
    blocking(move || Ok(json!({"id": registry.register(&subject, &body.schema()?)?}))).await
}

fn find(registry: &SharedRegistry, subject: &str, version: &str, is_any: bool) -> Result<Registered> {
    let version = version_of(version)?;
    if is_any {
        registry.any_version(subject, version)
    } else {
        registry.version(subject, version)
    }
}

pub(super) async fn version(
    State(registry): Shared,
    Path((subject, version)): SubjectVersion,
    parameters: Parameters,
) -> Response {
    blocking(move || Ok(json!(find(&registry, &subject, &version, parameters.deleted)?))).await
}

pub(super) async fn version_schema(
    State(registry): Shared,
    Path((subject, version)): SubjectVersion,
    parameters: Parameters,
) -> Response {
    blocking(move || {
        let found = find(&registry, &subject, &version, parameters.deleted)?;
        Ok(schema_json(&found.schema))
    })
    .await
}

/// Schemas that refer to the version. There are none, because references are not supported.
pub(super) async fn referenced_by(State(registry): Shared, Path((subject, version)): SubjectVersion) -> Response {
    blocking(move || find(&registry, &subject, &version, true).map(|_| json!([]))).await
}

pub(super) async fn delete_version(
    State(registry): Shared,
    Path((subject, version)): SubjectVersion,
    parameters: Parameters,
) -> Response {
    blocking(move || {
        let version = registry.delete_version(&subject, version_of(&version)?, parameters.deletion())?;
        tracing::info!(subject, version, permanent = parameters.permanent, "version deleted");
        Ok(json!(version))
    })
    .await
}
