//! The backends' listener: `POST /v1/ingest/{topic}`.
//!
//! `event.<name>` takes one event or an array of them; `change.<source>` takes one transaction of an http source.
//! Guarantees: 200 only once the log has it; everything refused says where in the JSON and why, in a problem body.
//! Never: a device's request; devices have a listener of their own.

mod idempotency;

use crate::sources::http::{Answer, Change, Fingerprint, Inlet, NotTaken, Receipt};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
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
use service::trace::{PARENT, Parent};
use service::{Problem, Secret};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Header of an answer that repeats that of an earlier request with the same `Idempotency-Key`.
const REPLAYED: &str = "idempotent-replayed";
/// Seconds after which a backend is asked to try again.
const RETRY_AFTER_S: u32 = 1;

/// The backends' listener: process configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Who may post.
    pub credentials: Vec<Credential>,
    /// Largest body in bytes; larger ones are 413. Default: 1 MiB.
    #[serde(default = "body_bytes_max")]
    pub body_bytes_max: usize,
}

fn body_bytes_max() -> usize {
    1 << 20
}

/// A backend that may post.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Its name, for logs and as the scope of its idempotency keys: entries with the same name share them, so that a
    /// token can be replaced without a gap.
    pub name: String,
    /// Its bearer token.
    pub token: Secret,
    /// Topics that it may post to; `*` is all.
    pub topics: Vec<String>,
}

/// An event topic.
#[derive(Debug, Clone)]
pub struct EventTopic {
    /// `event.<name>`.
    pub topic: Arc<str>,
    /// The schema of its records.
    pub schema: Arc<Schema>,
    /// Its registry id.
    pub id: SchemaId,
    /// Indexes of the key's fields.
    pub key: Vec<usize>,
}

/// What the listener serves.
pub struct Ingest {
    /// The log, for events.
    pub log: SharedEventLog,
    /// Event topics.
    pub events: Vec<EventTopic>,
    /// Sources of posted transactions, by their topic.
    pub sources: BTreeMap<String, Inlet>,
    /// Configuration.
    pub config: Config,
}

impl Ingest {
    /// The routes.
    pub fn router(self) -> Router {
        let limit = self.config.body_bytes_max;
        let shared = Arc::new(self);
        Router::new()
            .route("/v1/ingest/{topic}", post(ingest))
            .layer(DefaultBodyLimit::max(limit))
            .layer(middleware::from_fn_with_state(shared.clone(), authorise))
            .with_state(shared)
    }
}

fn problem(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(status, kind, title).detail(detail)
}

/// Who posts, as the token says.
#[derive(Clone)]
struct Poster(Arc<str>, Vec<String>);

async fn authorise(State(ingest): State<Arc<Ingest>>, mut request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok());
    let token = given.and_then(|v| v.strip_prefix("Bearer "));
    let found = ingest
        .config
        .credentials
        .iter()
        .find(|c| token.is_some_and(|t| same(t, c.token.expose())));
    let Some(credential) = found else {
        let detail = "send `Authorization: Bearer TOKEN` with a token of [[ingest.credentials]]";
        let refused = problem(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "The token is missing or not known",
            detail,
        );
        return ([(header::WWW_AUTHENTICATE, "Bearer")], refused).into_response();
    };
    request
        .extensions_mut()
        .insert(Poster(credential.name.as_str().into(), credential.topics.clone()));
    next.run(request).await
}

/// Compares secrets in a time that does not depend on where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

async fn ingest(
    State(ingest): State<Arc<Ingest>>,
    Extension(Poster(name, topics)): Extension<Poster>,
    Path(topic): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, Problem> {
    if !topics.iter().any(|t| t == "*" || *t == topic) {
        let detail = format!("credential `{name}` may post to {}", topics.join(", "));
        return Err(problem(
            StatusCode::FORBIDDEN,
            "forbidden",
            "This credential may not post to the topic",
            detail,
        ));
    }
    let body = body.map_err(|rejected| match rejected.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!(
                "a body has at most {} bytes; post in several",
                ingest.config.body_bytes_max
            );
            problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "The body is too large",
                detail,
            )
        }
        status => problem(status, "body", "The body cannot be read", rejected.to_string()),
    })?;
    let key = IdempotencyKey::of(&headers)?;
    let value: Value = serde_json::from_slice(&body)
        .map_err(|e| problem(StatusCode::BAD_REQUEST, "json", "The body is not JSON", e.to_string()))?;
    let trace = trace_of(&headers);
    if let Some(event) = ingest.events.iter().find(|e| *e.topic == *topic) {
        return events(&ingest, event.clone(), value, key, trace).await;
    }
    if let Some(inlet) = ingest.sources.get(&topic) {
        let fingerprint = key.map(|key| Fingerprint::new(&name, key.as_str(), &body));
        return transaction(inlet, &value, fingerprint, trace).await;
    }
    let known: Vec<&str> = ingest
        .events
        .iter()
        .map(|e| &*e.topic)
        .chain(ingest.sources.keys().map(String::as_str))
        .collect();
    let detail = format!("{topic} is not ingested here; these are: {}", known.join(", "));
    Err(problem(
        StatusCode::NOT_FOUND,
        "unknown-topic",
        "There is no such topic to post to",
        detail,
    ))
}

/// The post's `traceparent`, if it is valid: its records carry it on.
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
        let encoded = encode(&event, item).map_err(|(path, reason)| {
            let path = if single {
                path
            } else {
                format!("$[{n}]{}", path.trim_start_matches('$'))
            };
            misfit(&path, &reason, &event.topic)
        })?;
        let id = idempotency.as_ref().map(|key| match key.as_str() {
            key if single => key.to_owned(),
            key => format!("{key}/{n}"),
        });
        let header: Option<Header<'_>> = id.as_ref().map(|k| (headers::IDEMPOTENCY_KEY, Some(k.as_bytes())));
        let (key, value) = encoded;
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
            let detail = format!("an event of {bytes} bytes; the log takes {limit}");
            Err(problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "An event is too large",
                detail,
            ))
        }
        Ok(Err(error)) => Err(unavailable(&service::chain(&error))),
        Err(error) => Err(unavailable(&error.to_string())),
    }
}

fn unavailable(why: &str) -> Problem {
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "log-unavailable",
        "The log cannot take it now",
        why,
    )
    .retry_after(RETRY_AFTER_S)
}

fn misfit(path: &str, reason: &str, what: &str) -> Problem {
    let title = "The JSON does not fit the topic's schema";
    problem(
        StatusCode::BAD_REQUEST,
        "schema",
        title,
        format!("{path} of {what}: {reason}"),
    )
    .with("path", path)
}

/// Key and framed value of an event.
fn encode(event: &EventTopic, item: &Value) -> Result<(Vec<u8>, Vec<u8>), (String, String)> {
    let mut value = Vec::new();
    wire::frame(event.id, &mut value);
    event
        .schema
        .encode_json(item, &mut value)
        .map_err(|e| (e.path(), e.reason))?;
    let mut row = Vec::new();
    let body = value.get(wire::FRAME_LENGTH..).unwrap_or_default();
    event
        .schema
        .decode(body, &mut row)
        .map_err(|e| ("$".into(), e.to_string()))?;
    let mut key = Vec::new();
    let mut writer = KeyWriter::new(&mut key);
    for at in &event.key {
        if let (Some(field), Some(datum)) = (event.schema.fields().get(*at), row.get(*at)) {
            if matches!(datum, Datum::Null) {
                return Err((format!("$.{}", field.column()), "a field of the key is null".into()));
            }
            writer = writer.datum(&event.schema, field.ty, datum);
        }
    }
    writer.finish();
    Ok((key, value))
}

async fn transaction(
    inlet: &Inlet,
    value: &Value,
    fingerprint: Option<Fingerprint>,
    trace: Option<String>,
) -> Result<Response, Problem> {
    let tables = inlet.tables();
    if tables.is_empty() {
        return Err(unavailable("the source has not started yet"));
    }
    let list = value.get("changes").and_then(Value::as_array).filter(|l| !l.is_empty());
    let shape = r#"{"changes":[{"table":"orders","op":"put","row":{…}},{"table":"orders","op":"delete","key":{…}}]}"#;
    let list = list.ok_or_else(|| {
        misfit(
            "$.changes",
            &format!("expected a list that is not empty: {shape}"),
            "the transaction",
        )
    })?;
    let mut changes: Vec<Change> = Vec::with_capacity(list.len());
    for (n, item) in list.iter().enumerate() {
        let at = format!("$.changes[{n}]");
        let name = item.get("table").and_then(Value::as_str).unwrap_or_default();
        let table = tables.iter().find(|t| *t.name == *name).ok_or_else(|| {
            let known: Vec<&str> = tables.iter().map(|t| &*t.name).collect();
            misfit(
                &format!("{at}.table"),
                &format!("no table `{name}`; there are {}", known.join(", ")),
                "the transaction",
            )
        })?;
        let (part, change) = match item.get("op").and_then(Value::as_str) {
            Some("put") => ("row", table.put(item.get("row").unwrap_or(&Value::Null))),
            Some("delete") => ("key", table.delete(item.get("key").unwrap_or(&Value::Null))),
            _ => {
                return Err(misfit(
                    &format!("{at}.op"),
                    "expected \"put\" or \"delete\"",
                    "the transaction",
                ));
            }
        };
        changes.push(change.map_err(|(path, reason)| {
            misfit(&format!("{at}.{part}{}", path.trim_start_matches('$')), &reason, name)
        })?);
    }
    let stored = |Receipt { position, changes }| Json(json!({"stored": changes, "position": position}));
    match inlet.post(changes, fingerprint, trace).await {
        Ok(Answer::Stored(receipt)) => Ok(stored(receipt).into_response()),
        Ok(Answer::Replayed(receipt)) => Ok(([(REPLAYED, "true")], stored(receipt)).into_response()),
        Ok(Answer::KeyReused) => Err(idempotency::reused()),
        Err(NotTaken::Busy) => Err(unavailable("too many transactions wait, or the source is not running")),
        Err(NotTaken::Unknown) => Err(unavailable(
            "whether it was stored is not known; post it again with the same Idempotency-Key",
        )),
    }
}
