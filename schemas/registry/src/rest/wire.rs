//! Requests and responses of the API: parameters, bodies, errors.

use crate::{Deleted, Deletion, Error, Result, Version};
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemas::ids::SchemaId;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// The content type of all responses, including errors.
pub const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

pub(super) fn response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body.to_string()).into_response()
}

pub(super) fn failure(status: u16, code: u32, message: &str) -> Response {
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
pub(super) async fn blocking(work: impl FnOnce() -> Result<Value> + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(body)) => response(StatusCode::OK, &body),
        Ok(Err(error)) => error_response(&error),
        Err(_) => failure(500, 50001, "Error in the backend data store"),
    }
}

/// The parameters of a query. Each route uses some of them and ignores the others, as Confluent's registry does.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Parameters {
    #[serde(deserialize_with = "flag")]
    pub(super) deleted: bool,
    #[serde(deserialize_with = "flag")]
    pub(super) deleted_only: bool,
    pub(super) subject_prefix: String,
    pub(super) subject: Option<String>,
    #[serde(deserialize_with = "flag")]
    pub(super) latest_only: bool,
    pub(super) offset: usize,
    pub(super) limit: Option<i64>,
    #[serde(deserialize_with = "flag")]
    pub(super) permanent: bool,
    #[serde(deserialize_with = "flag")]
    pub(super) verbose: bool,
    #[serde(deserialize_with = "flag")]
    pub(super) default_to_global: bool,
}

/// As in Confluent's registry, any text but `true` is false. Clients in Python send `True` and `False`.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(text.eq_ignore_ascii_case("true"))
}

impl Parameters {
    pub(super) fn listed(&self) -> Deleted {
        match (self.deleted_only, self.deleted) {
            (true, _) => Deleted::Only,
            (false, true) => Deleted::Include,
            (false, false) => Deleted::Exclude,
        }
    }

    pub(super) fn deletion(&self) -> Deletion {
        if self.permanent {
            Deletion::Permanent
        } else {
            Deletion::Soft
        }
    }

    /// The requested part of a listing. A negative limit is no limit.
    pub(super) fn page<T>(&self, all: Vec<T>) -> Vec<T> {
        let limit = self.limit.and_then(|limit| usize::try_from(limit).ok());
        all.into_iter()
            .skip(self.offset)
            .take(limit.unwrap_or(usize::MAX))
            .collect()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let query = Query::try_from_uri(&parts.uri);
        query
            .map(|Query(parameters)| parameters)
            .map_err(|rejected| failure(400, 400, &rejected.body_text()))
    }
}

/// The body of a request. Its content type is ignored.
pub(super) struct Body(Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let bytes = Bytes::from_request(request, state).await;
        bytes.map(Body).map_err(|rejected| {
            let status = rejected.status().as_u16();
            failure(status, u32::from(status), &rejected.body_text())
        })
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

impl Body {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The schema in the body.
    pub(super) fn schema(&self) -> Result<String> {
        let invalid = |reason: String| Error::InvalidSchema { reason };
        let body: SchemaBody =
            serde_json::from_slice(&self.0).map_err(|e| invalid(format!("the body is not {{\"schema\": …}}: {e}")))?;
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
}

pub(super) fn version_of(text: &str) -> Result<Version> {
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
pub(super) fn id_of(text: &str) -> Result<SchemaId> {
    text.parse()
        .map(SchemaId)
        .map_err(|_| Error::SchemaNotFound { id: None })
}

/// The schema as JSON, not as a string that contains JSON.
pub(super) fn schema_json(schema: &str) -> Value {
    serde_json::from_str(schema).unwrap_or_else(|_| Value::from(schema))
}
