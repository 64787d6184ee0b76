//! Handlers below `/config`, `/mode` and `/compatibility`.

use super::wire::{Body, Parameters, blocking, version_of};
use crate::{Error, Level, Mode, Result, SharedRegistry, Version};
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

type Shared = State<SharedRegistry>;

#[derive(Deserialize)]
struct LevelBody {
    compatibility: String,
}

fn level_in(body: &Body) -> Result<Level> {
    let body: LevelBody = serde_json::from_slice(body.bytes()).map_err(|_| Error::InvalidLevel {
        level: "(no \"compatibility\")".to_owned(),
    })?;
    body.compatibility.parse()
}

pub(super) async fn global_level(State(registry): Shared) -> Response {
    blocking(move || Ok(json!({"compatibilityLevel": registry.level(None)?.unwrap_or_default().name()}))).await
}

pub(super) async fn level(State(registry): Shared, Path(subject): Path<String>, parameters: Parameters) -> Response {
    blocking(move || {
        let mut level = registry.level(Some(&subject))?;
        if level.is_none() && parameters.default_to_global {
            level = registry.level(None)?;
        }
        let level = level.ok_or(Error::NoLevel { subject })?;
        Ok(json!({"compatibilityLevel": level.name()}))
    })
    .await
}

pub(super) async fn set_global_level(State(registry): Shared, body: Body) -> Response {
    blocking(move || {
        let level = level_in(&body)?;
        registry.set_level(None, level)?;
        Ok(json!({"compatibility": level.name()}))
    })
    .await
}

pub(super) async fn set_level(State(registry): Shared, Path(subject): Path<String>, body: Body) -> Response {
    blocking(move || {
        let level = level_in(&body)?;
        registry.set_level(Some(&subject), level)?;
        Ok(json!({"compatibility": level.name()}))
    })
    .await
}

pub(super) async fn remove_global_level(State(registry): Shared) -> Response {
    blocking(move || Ok(json!({"compatibilityLevel": registry.remove_level(None)?.name()}))).await
}

pub(super) async fn remove_level(State(registry): Shared, Path(subject): Path<String>) -> Response {
    blocking(move || Ok(json!({"compatibilityLevel": registry.remove_level(Some(&subject))?.name()}))).await
}

#[derive(Deserialize)]
struct ModeBody {
    mode: String,
}

fn mode_in(body: &Body) -> Result<Mode> {
    let body: ModeBody = serde_json::from_slice(body.bytes()).map_err(|_| Error::InvalidMode {
        mode: "(no \"mode\")".to_owned(),
    })?;
    body.mode.parse()
}

pub(super) async fn global_mode(State(registry): Shared) -> Response {
    blocking(move || Ok(json!({"mode": registry.mode(None)?.unwrap_or_default().name()}))).await
}

pub(super) async fn mode(State(registry): Shared, Path(subject): Path<String>, parameters: Parameters) -> Response {
    blocking(move || {
        let mut mode = registry.mode(Some(&subject))?;
        if mode.is_none() && parameters.default_to_global {
            mode = registry.mode(None)?;
        }
        let mode = mode.ok_or(Error::NoMode { subject })?;
        Ok(json!({"mode": mode.name()}))
    })
    .await
}

pub(super) async fn set_global_mode(State(registry): Shared, body: Body) -> Response {
    blocking(move || {
        let mode = mode_in(&body)?;
        registry.set_mode(None, mode)?;
        Ok(json!({"mode": mode.name()}))
    })
    .await
}

pub(super) async fn set_mode(State(registry): Shared, Path(subject): Path<String>, body: Body) -> Response {
    blocking(move || {
        let mode = mode_in(&body)?;
        registry.set_mode(Some(&subject), mode)?;
        Ok(json!({"mode": mode.name()}))
    })
    .await
}

pub(super) async fn remove_mode(State(registry): Shared, Path(subject): Path<String>) -> Response {
    blocking(move || Ok(json!({"mode": registry.remove_mode(&subject)?.name()}))).await
}

fn compatible(conflicts: &[String], parameters: &Parameters) -> Value {
    let mut answer = json!({"is_compatible": conflicts.is_empty()});
    if let Some(object) = answer.as_object_mut().filter(|_| parameters.verbose) {
        object.insert("messages".to_owned(), json!(conflicts));
    }
    answer
}

pub(super) async fn compatibility(
    State(registry): Shared,
    Path((subject, version)): Path<(String, String)>,
    parameters: Parameters,
    body: Body,
) -> Response {
    blocking(move || {
        let conflicts = registry.test_compatibility(&subject, version_of(&version)?, &body.schema()?)?;
        Ok(compatible(&conflicts, &parameters))
    })
    .await
}

/// Compares a schema with all versions that the level of the subject includes. Anything is compatible with a new subject.
pub(super) async fn compatibility_with_all(
    State(registry): Shared,
    Path(subject): Path<String>,
    parameters: Parameters,
    body: Body,
) -> Response {
    blocking(move || {
        let schema = body.schema()?;
        let mut versions = match registry.versions(&subject) {
            Err(Error::SubjectNotFound { .. }) => Vec::new(),
            versions => versions?,
        };
        let own = registry.level(Some(&subject))?;
        let level = own.map_or_else(|| registry.level(None), |level| Ok(Some(level)))?;
        if !level.unwrap_or_default().is_transitive() {
            versions = versions.pop().into_iter().collect();
        }
        let mut conflicts = Vec::new();
        for version in versions {
            conflicts.extend(registry.test_compatibility(&subject, Version::Number(version), &schema)?);
        }
        Ok(compatible(&conflicts, &parameters))
    })
    .await
}
