//! HTTP listener for backends: `POST /v1/ingest/{topic}`.
//!
//! The URL contains a topic name without the prefix of the topology, so that backends post to the same URL in every
//! environment. A request to `event.<name>` contains one event or an array of events; one to `change.<source>` contains
//! one transaction of an HTTP source. Status 200 means that the log has committed it. Errors are problem bodies (RFC
//! 9457) that name the JSON path and the reason. Devices use a separate listener.

mod access;
mod idempotency;

pub use access::{Credential, CredentialError};

use access::Backend;

use crate::sources::http::{Change, Fingerprint, HttpSourceHandle, JsonMismatch, PostError, PostOutcome, Receipt};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use event_log::{Header, OutBatch, OutRecord, SharedEventLog};
use idempotency::IdempotencyKey;
use schemas::codec::Datum;
use schemas::headers;
use schemas::ids::SchemaId;
use schemas::key::KeyWriter;
use schemas::schema::Schema;
use schemas::wire;
use serde::Deserialize;
use serde_json::{Value, json};
use service::Problem;
use service::listener::{Error as ListenerError, Exposure, Listener, TlsConfig, is_body_timeout};
use service::problem::{BAD_REQUEST, BODY_TIMEOUT, BODY_TOO_LARGE, FORBIDDEN, Kind};
use service::trace::{PARENT, Parent};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Response header that marks the repeated response of an earlier request with the same `Idempotency-Key`.
const REPLAYED: &str = "idempotent-replayed";
/// Value of `Retry-After`, in seconds.
const RETRY_AFTER_S: u32 = 1;

const JSON: Kind = Kind::new("json", StatusCode::BAD_REQUEST, "The body is not JSON");
const SCHEMA: Kind = Kind::new(
    "schema",
    StatusCode::BAD_REQUEST,
    "The JSON does not match the schema of the topic",
);
const UNKNOWN_TOPIC: Kind = Kind::new("unknown-topic", StatusCode::NOT_FOUND, "Unknown topic");
const EVENT_TOO_LARGE: Kind = Kind::new(
    "event-too-large",
    StatusCode::PAYLOAD_TOO_LARGE,
    "An event is too large",
);
const LOG_UNAVAILABLE: Kind = Kind::new(
    "log-unavailable",
    StatusCode::SERVICE_UNAVAILABLE,
    "The log is not available",
);

/// The listener for backends (process configuration).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port; port 0 selects a free port.
    pub listen: SocketAddr,
    /// TLS. With `client_ca`, only clients with a certificate can connect.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Allows an address beyond loopback without TLS.
    #[serde(default)]
    pub insecure: bool,
    /// Backends that may post.
    pub credentials: Vec<Credential>,
    /// Maximum size of a body in bytes; a larger body is answered with 413. Default: 1 MiB.
    #[serde(default = "body_bytes_max")]
    pub body_bytes_max: usize,
    /// Maximum number of open connections. Further connections wait to be accepted. Default: 1,024.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
}

/// Error that prevents the listener from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The listener cannot be bound, or is not protected.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// A credential cannot be used.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// No connection would be accepted.
    #[error("ingest.connections_max is 0; it must be at least 1")]
    NoConnections,
}

impl Config {
    /// Checks the credentials and binds the listener.
    ///
    /// # Errors
    /// Names the credential or the address that cannot be used.
    pub fn bind(&self) -> Result<Listener, ConfigError> {
        let exposure = Exposure {
            key: "ingest",
            address: self.listen,
            authenticated: !self.credentials.is_empty(),
            fix: "add [[ingest.credentials]]",
            tls: self.tls.is_some(),
            insecure: self.insecure,
        };
        exposure.check()?;
        if self.connections_max == 0 {
            return Err(ConfigError::NoConnections);
        }
        let has_client_ca = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        for credential in &self.credentials {
            credential.check(has_client_ca)?;
        }
        let limits = service::listener::Limits {
            connections: self.connections_max,
            ..Default::default()
        };
        Ok(Listener::bind("ingest", self.listen)?
            .tls(self.tls.as_ref())?
            .limits(limits))
    }
}

fn connections_max() -> usize {
    1_024
}

fn body_bytes_max() -> usize {
    1 << 20
}

/// An event topic.
#[derive(Debug, Clone)]
pub struct EventTopic {
    /// The topic as named in the URL: `event.<name>`.
    pub name: String,
    /// The topic.
    pub topic: Arc<str>,
    /// The schema of its records.
    pub schema: Arc<Schema>,
    /// The schema's registry id.
    pub id: SchemaId,
    /// Indices of the key fields.
    pub key: Vec<usize>,
}

/// The state of the listener.
pub struct Ingest {
    /// The log, for events.
    pub log: SharedEventLog,
    /// Event topics.
    pub events: Vec<EventTopic>,
    /// HTTP sources by their topics as named in the URL: `change.<source>`.
    pub sources: BTreeMap<String, HttpSourceHandle>,
    /// Configuration.
    pub config: Config,
}

impl Ingest {
    /// The routes.
    pub fn router(self) -> Router {
        let limit = self.config.body_bytes_max;
        let credentials: Arc<[Credential]> = self.config.credentials.clone().into();
        let shared = Arc::new(self);
        Router::new()
            .route("/v1/ingest/{topic}", post(ingest))
            .route_layer(DefaultBodyLimit::max(limit))
            .route_layer(middleware::from_fn_with_state(credentials, access::authenticate))
            .fallback(service::http::not_found)
            .method_not_allowed_fallback(service::http::method_not_allowed)
            .with_state(shared)
    }
}

async fn ingest(
    State(ingest): State<Arc<Ingest>>,
    Extension(Backend { name, topics }): Extension<Backend>,
    Path(topic): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, Problem> {
    if !topics.iter().any(|t| t == "*" || *t == topic) {
        return Err(FORBIDDEN.detail(format!(
            "credential `{name}` may not post to {topic}; it may post to {}",
            topics.join(", ")
        )));
    }
    let body = body.map_err(|rejected| match rejected.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let limit = ingest.config.body_bytes_max;
            BODY_TOO_LARGE.detail(format!(
                "bodies are limited to {limit} bytes; split it into several requests"
            ))
        }
        _ if is_body_timeout(&rejected) => {
            BODY_TIMEOUT.detail("the body did not arrive in time; send the request again")
        }
        _ => BAD_REQUEST.detail("the connection ended before the body was complete; send the request again"),
    })?;
    let key = IdempotencyKey::of(&headers)?;
    let value: Value = serde_json::from_slice(&body).map_err(|e| JSON.detail(e.to_string()))?;
    let trace = trace_of(&headers);
    if let Some(event) = ingest.events.iter().find(|e| e.name == topic) {
        return events(&ingest, event.clone(), value, key, trace).await;
    }
    if let Some(handle) = ingest.sources.get(&topic) {
        let fingerprint = key.map(|key| Fingerprint::new(&name, key.as_str(), &body));
        return transaction(handle, &value, fingerprint, trace).await;
    }
    let known: Vec<&str> = ingest
        .events
        .iter()
        .map(|e| e.name.as_str())
        .chain(ingest.sources.keys().map(String::as_str))
        .collect();
    let detail = format!(
        "topic {topic} does not accept records over HTTP; topics that do: {}",
        known.join(", ")
    );
    Err(UNKNOWN_TOPIC.detail(detail))
}

/// The request's `traceparent` if it is valid; it becomes a header of the records.
fn trace_of(headers: &HeaderMap) -> Option<String> {
    let parent = Parent::parse(headers.get(PARENT)?.as_bytes())?;
    Some(parent.text.to_owned())
}

async fn events(
    ingest: &Arc<Ingest>,
    event: EventTopic,
    value: Value,
    idempotency: Option<IdempotencyKey>,
    trace: Option<String>,
) -> Result<Response, Problem> {
    let (many, single) = match value {
        Value::Array(many) => (many, false),
        one => (vec![one], true),
    };
    let mut out = OutBatch::default();
    for (n, item) in many.iter().enumerate() {
        let (key, value) = encode(&event, item).map_err(|JsonMismatch { path, reason }| {
            let path = if single {
                path
            } else {
                format!("$[{n}]{}", path.trim_start_matches('$'))
            };
            mismatch(&path, &reason, &event.name)
        })?;
        let id = idempotency.as_ref().map(|key| match key.as_str() {
            key if single => key.to_owned(),
            key => format!("{key}/{n}"),
        });
        let header: Option<Header<'_>> = id.as_ref().map(|k| (headers::IDEMPOTENCY_KEY, Some(k.as_bytes())));
        let record = OutRecord {
            topic: &event.topic,
            partition: None,
            timestamp: None,
            key: Some(&key),
            value: Some(&value),
        };
        let trace = trace.as_ref().map(|trace| (PARENT, Some(trace.as_bytes())));
        out.push(record, header.into_iter().chain(trace));
    }
    let count = many.len();
    let log = ingest.log.clone();
    let stored = tokio::task::spawn_blocking(move || log.append(&out)).await;
    match stored {
        Ok(Ok(produced)) => {
            let at: Vec<Value> = produced
                .iter()
                .map(|p| json!({"partition": p.at.partition, "first_offset": p.first_offset, "next_offset": p.next_offset}))
                .collect();
            Ok(Json(json!({"stored": count, "at": at})).into_response())
        }
        Ok(Err(event_log::Error::TooLarge { bytes, limit, .. })) => {
            let detail = format!(
                "an event has {bytes} bytes, but the log accepts at most {limit}; send a smaller event, or raise \
                 max.message.bytes of the topic"
            );
            Err(EVENT_TOO_LARGE.detail(detail))
        }
        Ok(Err(error)) => Err(unavailable(&service::chain(&error))),
        Err(error) => Err(unavailable(&error.to_string())),
    }
}

fn unavailable(why: &str) -> Problem {
    LOG_UNAVAILABLE.detail(why).retry_after(RETRY_AFTER_S)
}

fn mismatch(path: &str, reason: &str, what: &str) -> Problem {
    SCHEMA.detail(format!("{path} of {what}: {reason}")).with("path", path)
}

/// Encodes an event. Returns its key, and its value with the schema id.
fn encode(event: &EventTopic, item: &Value) -> Result<(Vec<u8>, Vec<u8>), JsonMismatch> {
    let mut value = Vec::new();
    wire::frame(event.id, &mut value);
    event
        .schema
        .encode_json(item, &mut value)
        .map_err(|e| JsonMismatch::new(e.path(), e.reason))?;
    let mut row = Vec::new();
    let body = value.get(wire::FRAME_LENGTH..).unwrap_or_default();
    event
        .schema
        .decode(body, &mut row)
        .map_err(|e| JsonMismatch::new("$", e.to_string()))?;
    let mut key = Vec::new();
    let mut writer = KeyWriter::new(&mut key);
    for at in &event.key {
        if let (Some(field), Some(datum)) = (event.schema.fields().get(*at), row.get(*at)) {
            if matches!(datum, Datum::Null) {
                return Err(JsonMismatch::new(
                    format!("$.{}", field.column()),
                    "a key field is null",
                ));
            }
            writer = writer.datum(&event.schema, field.ty, datum);
        }
    }
    writer.finish();
    Ok((key, value))
}

async fn transaction(
    handle: &HttpSourceHandle,
    value: &Value,
    fingerprint: Option<Fingerprint>,
    trace: Option<String>,
) -> Result<Response, Problem> {
    let tables = handle.tables();
    if tables.is_empty() {
        return Err(unavailable("the source is not running yet"));
    }
    let list = value.get("changes").and_then(Value::as_array).filter(|l| !l.is_empty());
    let shape = r#"{"changes":[{"table":"orders","op":"put","row":{…}},{"table":"orders","op":"delete","key":{…}}]}"#;
    let list = list.ok_or_else(|| {
        mismatch(
            "$.changes",
            &format!("expected a non-empty array, such as {shape}"),
            "the transaction",
        )
    })?;
    let mut changes: Vec<Change> = Vec::with_capacity(list.len());
    for (n, item) in list.iter().enumerate() {
        let at = format!("$.changes[{n}]");
        let name = item.get("table").and_then(Value::as_str).unwrap_or_default();
        let table = tables.iter().find(|t| *t.name == *name).ok_or_else(|| {
            let known: Vec<&str> = tables.iter().map(|t| &*t.name).collect();
            mismatch(
                &format!("{at}.table"),
                &format!("unknown table `{name}`; the tables are {}", known.join(", ")),
                "the transaction",
            )
        })?;
        let (part, change) = match item.get("op").and_then(Value::as_str) {
            Some("put") => ("row", table.put(item.get("row").unwrap_or(&Value::Null))),
            Some("delete") => ("key", table.delete(item.get("key").unwrap_or(&Value::Null))),
            _ => {
                return Err(mismatch(
                    &format!("{at}.op"),
                    "expected \"put\" or \"delete\"",
                    "the transaction",
                ));
            }
        };
        changes.push(change.map_err(|JsonMismatch { path, reason }| {
            mismatch(&format!("{at}.{part}{}", path.trim_start_matches('$')), &reason, name)
        })?);
    }
    let stored = |Receipt { position, changes }| Json(json!({"stored": changes, "position": position}));
    match handle.post(changes, fingerprint, trace).await {
        Ok(PostOutcome::Stored(receipt)) => Ok(stored(receipt).into_response()),
        Ok(PostOutcome::Replayed(receipt)) => Ok(([(REPLAYED, "true")], stored(receipt)).into_response()),
        Ok(PostOutcome::KeyReused) => Err(idempotency::reused()),
        Err(PostError::Busy) => Err(unavailable(
            "the source is not running, or too many transactions are waiting",
        )),
        Err(PostError::UnknownOutcome) => Err(unavailable(
            "the outcome of the commit is unknown; retry with the same Idempotency-Key",
        )),
    }
}
