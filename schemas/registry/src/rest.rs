//! Confluent's REST API for a registry: the same paths, bodies and error codes.
//!
//! Blocking registry calls run on tokio's blocking threads. There is no authorization: access must be restricted at the
//! listener. Deletes, modes, contexts, references and normalization are not supported.

use crate::{Error, Level, Registered, Result, SharedRegistry, Version};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use schemas::ids::SchemaId;
use serde::Deserialize;
use serde_json::{Value, json};

/// The content type of all responses, including errors.
pub const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// The routes of the API.
pub fn router(registry: SharedRegistry) -> Router {
    Router::new()
        .route("/", get(|| async { response(StatusCode::OK, &json!({})) }))
        .route("/subjects", get(subjects))
        .route("/subjects/{subject}", post(lookup))
        .route("/subjects/{subject}/versions", get(versions).post(register))
        .route("/subjects/{subject}/versions/{version}", get(version))
        .route("/subjects/{subject}/versions/{version}/schema", get(version_schema))
        .route("/schemas/ids/{id}", get(by_id))
        .route("/schemas/ids/{id}/schema", get(by_id_schema))
        .route("/schemas/ids/{id}/subjects", get(id_subjects))
        .route("/schemas/ids/{id}/versions", get(id_versions))
        .route(
            "/schemas/types",
            get(|| async { response(StatusCode::OK, &json!(["AVRO"])) }),
        )
        .route("/config", get(global_level).put(set_global_level))
        .route("/config/{subject}", get(subject_level).put(set_subject_level))
        .route(
            "/compatibility/subjects/{subject}/versions/{version}",
            post(compatibility),
        )
        .fallback(|| async { failure(404, 404, "HTTP 404 Not Found") })
        .method_not_allowed_fallback(|| async { failure(405, 405, "HTTP 405 Method Not Allowed") })
        .with_state(registry)
}

type Shared = State<SharedRegistry>;

fn response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body.to_string()).into_response()
}

fn failure(status: u16, code: u32, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response(status, &json!({"error_code": code, "message": message}))
}

/// The response for an error. Confluent's codes are the HTTP status, in some cases followed by two digits.
fn error_response(error: &Error) -> Response {
    let code = error.code();
    let status = if code >= 10_000 { code / 100 } else { code };
    let status = u16::try_from(status).unwrap_or(500);
    failure(status, code, &error.to_string())
}

/// Runs a blocking call and returns its result as a response.
async fn blocking(work: impl FnOnce() -> Result<Value> + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(body)) => response(StatusCode::OK, &body),
        Ok(Err(error)) => error_response(&error),
        Err(_) => failure(500, 50001, "Error in the backend data store"),
    }
}

#[derive(Deserialize)]
struct SchemaBody {
    schema: String,
    #[serde(default, rename = "schemaType")]
    schema_type: Option<String>,
    #[serde(default)]
    references: Option<Vec<Value>>,
}

/// The schema in a request body. The content type of the request is ignored.
fn schema_of(body: &Bytes) -> Result<String> {
    let invalid = |reason: String| Error::InvalidSchema { reason };
    let body: SchemaBody =
        serde_json::from_slice(body).map_err(|e| invalid(format!("the body is not {{\"schema\": …}}: {e}")))?;
    if let Some(other) = body.schema_type.filter(|kind| kind != "AVRO") {
        return Err(invalid(format!("schemaType {other} is not supported; use AVRO")));
    }
    if body.references.is_some_and(|list| !list.is_empty()) {
        return Err(invalid(
            "references are not supported; include the named types in the schema".to_owned(),
        ));
    }
    Ok(body.schema)
}

fn version_of(text: &str) -> Result<Version> {
    let invalid = || Error::InvalidVersion {
        version: text.chars().take(64).collect(),
    };
    match text {
        "latest" | "-1" => Ok(Version::Latest),
        number => match number.parse::<u32>() {
            Ok(number) if (1..=i32::MAX.unsigned_abs()).contains(&number) => Ok(Version::Number(number)),
            _ => Err(invalid()),
        },
    }
}

/// Parses an id. Anything but a number is treated as an unknown id.
fn id_of(text: &str) -> Result<SchemaId> {
    text.parse()
        .map(SchemaId)
        .map_err(|_| Error::SchemaNotFound { id: None })
}

async fn subjects(State(registry): Shared) -> Response {
    blocking(move || Ok(json!(registry.subjects()?))).await
}

async fn versions(State(registry): Shared, Path(subject): Path<String>) -> Response {
    blocking(move || Ok(json!(registry.versions(&subject)?))).await
}

async fn register(State(registry): Shared, Path(subject): Path<String>, body: Bytes) -> Response {
    blocking(move || Ok(json!({"id": registry.register(&subject, &schema_of(&body)?)?}))).await
}

async fn lookup(State(registry): Shared, Path(subject): Path<String>, body: Bytes) -> Response {
    blocking(move || Ok(json!(registry.lookup(&subject, &schema_of(&body)?)?))).await
}

fn find(registry: &SharedRegistry, subject: &str, version: &str) -> Result<Registered> {
    registry.version(subject, version_of(version)?)
}

async fn version(State(registry): Shared, Path((subject, version)): Path<(String, String)>) -> Response {
    blocking(move || Ok(json!(find(&registry, &subject, &version)?))).await
}

/// The schema as JSON, not as a string that contains JSON.
fn schema_json(schema: &str) -> Value {
    serde_json::from_str(schema).unwrap_or_else(|_| Value::from(schema))
}

async fn version_schema(State(registry): Shared, Path((subject, version)): Path<(String, String)>) -> Response {
    blocking(move || Ok(schema_json(&find(&registry, &subject, &version)?.schema))).await
}

async fn by_id(State(registry): Shared, Path(id): Path<String>) -> Response {
    blocking(move || Ok(json!({"schema": &*registry.by_id(id_of(&id)?)?}))).await
}

async fn by_id_schema(State(registry): Shared, Path(id): Path<String>) -> Response {
    blocking(move || Ok(schema_json(&registry.by_id(id_of(&id)?)?))).await
}

async fn id_subjects(State(registry): Shared, Path(id): Path<String>) -> Response {
    blocking(move || {
        let mut subjects: Vec<String> = registry
            .uses(id_of(&id)?)?
            .into_iter()
            .map(|(subject, _)| subject)
            .collect();
        subjects.dedup();
        Ok(json!(subjects))
    })
    .await
}

async fn id_versions(State(registry): Shared, Path(id): Path<String>) -> Response {
    blocking(move || {
        let uses = registry.uses(id_of(&id)?)?;
        Ok(uses
            .into_iter()
            .map(|(subject, version)| json!({"subject": subject, "version": version}))
            .collect())
    })
    .await
}

/// Whether the query contains `name=true`.
fn has_flag(query: &RawQuery, name: &str) -> bool {
    let pairs = query.0.as_deref().unwrap_or_default().split('&');
    pairs
        .filter_map(|pair| pair.split_once('='))
        .any(|(key, value)| key == name && value == "true")
}

#[derive(Deserialize)]
struct LevelBody {
    compatibility: String,
}

fn level_body(body: &Bytes) -> Result<Level> {
    let body: LevelBody = serde_json::from_slice(body).map_err(|_| Error::InvalidLevel {
        level: "(no \"compatibility\")".to_owned(),
    })?;
    body.compatibility.parse()
}

async fn global_level(State(registry): Shared) -> Response {
    blocking(move || Ok(json!({"compatibilityLevel": registry.level(None)?.unwrap_or_default().name()}))).await
}

async fn subject_level(State(registry): Shared, Path(subject): Path<String>, query: RawQuery) -> Response {
    blocking(move || {
        let mut level = registry.level(Some(&subject))?;
        if level.is_none() && has_flag(&query, "defaultToGlobal") {
            level = registry.level(None)?;
        }
        let level = level.ok_or(Error::NoLevel { subject })?;
        Ok(json!({"compatibilityLevel": level.name()}))
    })
    .await
}

async fn set_global_level(State(registry): Shared, body: Bytes) -> Response {
    blocking(move || {
        let level = level_body(&body)?;
        registry.set_level(None, level)?;
        Ok(json!({"compatibility": level.name()}))
    })
    .await
}

async fn set_subject_level(State(registry): Shared, Path(subject): Path<String>, body: Bytes) -> Response {
    blocking(move || {
        let level = level_body(&body)?;
        registry.set_level(Some(&subject), level)?;
        Ok(json!({"compatibility": level.name()}))
    })
    .await
}

async fn compatibility(
    State(registry): Shared,
    Path((subject, version)): Path<(String, String)>,
    query: RawQuery,
    body: Bytes,
) -> Response {
    blocking(move || {
        let conflicts = registry.test_compatibility(&subject, version_of(&version)?, &schema_of(&body)?)?;
        let mut answer = json!({"is_compatible": conflicts.is_empty()});
        if let Some(object) = answer.as_object_mut().filter(|_| has_flag(&query, "verbose")) {
            object.insert("messages".to_owned(), json!(conflicts));
        }
        Ok(answer)
    })
    .await
}

#[cfg(test)]
pub(crate) mod tests;
