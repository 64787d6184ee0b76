//! Handlers below `/config`, `/mode` and `/compatibility`.

use super::wire::{Body, Parameters, blocking, version_of};
use crate::{Error, Level, Mode, Result, SharedRegistry, Version};
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Value, json};
use std::str::FromStr;

type Shared = State<SharedRegistry>;

/// A setting of the registry that a subject can override.
pub(super) trait Setting: FromStr<Err = Error> + Default + Copy + Send + 'static {
    /// Its name in a request, and in the response to a change.
    const REQUEST: &'static str;
    /// Its name in other responses.
    const RESPONSE: &'static str;

    fn name(self) -> &'static str;
    fn read(registry: &SharedRegistry, subject: Option<&str>) -> Result<Option<Self>>;
    fn write(self, registry: &SharedRegistry, subject: Option<&str>) -> Result<()>;
    fn remove(registry: &SharedRegistry, subject: &str) -> Result<Self>;
    /// The error of a subject without this setting.
    fn not_set(subject: String) -> Error;
    /// The error of a request without this setting.
    fn invalid(found: String) -> Error;
}

impl Setting for Level {
    const REQUEST: &'static str = "compatibility";
    const RESPONSE: &'static str = "compatibilityLevel";

    fn name(self) -> &'static str {
        Level::name(self)
    }

    fn read(registry: &SharedRegistry, subject: Option<&str>) -> Result<Option<Self>> {
        registry.level(subject)
    }

    fn write(self, registry: &SharedRegistry, subject: Option<&str>) -> Result<()> {
        registry.set_level(subject, self)
    }

    fn remove(registry: &SharedRegistry, subject: &str) -> Result<Self> {
        registry.remove_level(Some(subject))
    }

    fn not_set(subject: String) -> Error {
        Error::NoLevel { subject }
    }

    fn invalid(level: String) -> Error {
        Error::InvalidLevel { level }
    }
}

impl Setting for Mode {
    const REQUEST: &'static str = "mode";
    const RESPONSE: &'static str = "mode";

    fn name(self) -> &'static str {
        Mode::name(self)
    }

    fn read(registry: &SharedRegistry, subject: Option<&str>) -> Result<Option<Self>> {
        registry.mode(subject)
    }

    fn write(self, registry: &SharedRegistry, subject: Option<&str>) -> Result<()> {
        registry.set_mode(subject, self)
    }

    fn remove(registry: &SharedRegistry, subject: &str) -> Result<Self> {
        registry.remove_mode(subject)
    }

    fn not_set(subject: String) -> Error {
        Error::NoMode { subject }
    }

    fn invalid(mode: String) -> Error {
        Error::InvalidMode { mode }
    }
}

/// The setting in the body of a request.
fn setting_in<S: Setting>(body: &Body) -> Result<S> {
    let parsed: Option<Value> = serde_json::from_slice(body.bytes()).ok();
    let text = parsed.as_ref().and_then(|body| body.get(S::REQUEST)?.as_str());
    let text = text.ok_or_else(|| S::invalid(format!("(no {:?})", S::REQUEST)))?;
    text.parse()
}

pub(super) async fn global<S: Setting>(State(registry): Shared) -> Response {
    blocking(move || Ok(json!({(S::RESPONSE): S::read(&registry, None)?.unwrap_or_default().name()}))).await
}

pub(super) async fn of_subject<S: Setting>(
    State(registry): Shared,
    Path(subject): Path<String>,
    parameters: Parameters,
) -> Response {
    blocking(move || {
        let mut setting = S::read(&registry, Some(&subject))?;
        if setting.is_none() && parameters.default_to_global {
            setting = S::read(&registry, None)?;
        }
        let setting = setting.ok_or_else(|| S::not_set(subject))?;
        Ok(json!({(S::RESPONSE): setting.name()}))
    })
    .await
}

pub(super) async fn set_global<S: Setting>(State(registry): Shared, body: Body) -> Response {
    blocking(move || set_in::<S>(&registry, None, &body)).await
}

pub(super) async fn set<S: Setting>(State(registry): Shared, Path(subject): Path<String>, body: Body) -> Response {
    blocking(move || set_in::<S>(&registry, Some(&subject), &body)).await
}

fn set_in<S: Setting>(registry: &SharedRegistry, subject: Option<&str>, body: &Body) -> Result<Value> {
    let setting: S = setting_in(body)?;
    setting.write(registry, subject)?;
    Ok(json!({(S::REQUEST): setting.name()}))
}

pub(super) async fn remove<S: Setting>(State(registry): Shared, Path(subject): Path<String>) -> Response {
    blocking(move || Ok(json!({(S::RESPONSE): S::remove(&registry, &subject)?.name()}))).await
}

/// Only the level has a global value that can be removed.
pub(super) async fn remove_global_level(State(registry): Shared) -> Response {
    blocking(move || Ok(json!({(Level::RESPONSE): registry.remove_level(None)?.name()}))).await
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
