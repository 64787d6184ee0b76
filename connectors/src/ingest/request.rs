//! Reads a request: permission, headers, body, and the values in the body.

use super::access::Backend;
use super::idempotency::IdempotencyKey;
use super::reply::JSON;
use crate::sources::http::Fingerprint;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::value::RawValue;
use service::Problem;
use service::listener::is_body_timeout;
use service::problem::{BAD_REQUEST, BODY_TIMEOUT, BODY_TOO_LARGE, FORBIDDEN};
use service::trace::{PARENT, Parent};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// A request after the checks that do not depend on the topic.
pub(super) struct Post {
    /// Name of the credential.
    pub(super) credential: String,
    pub(super) topic: String,
    pub(super) body: Bytes,
    /// Whether each line of the body is a value.
    is_lines: bool,
    pub(super) key: Option<IdempotencyKey>,
    /// The request's `traceparent` if it is valid; it becomes a header of the records.
    pub(super) trace: Option<String>,
    /// Admission of the request. It is kept while the content of the request is in memory.
    pub(super) permit: Arc<OwnedSemaphorePermit>,
}

/// The values of a body.
pub(super) struct Items<'b> {
    pub(super) texts: Vec<&'b RawValue>,
    /// Whether the body is a value that is not an array.
    is_single: bool,
}

impl Items<'_> {
    /// The JSON path of an item.
    pub(super) fn path(&self, index: usize) -> String {
        if self.is_single {
            "$".to_owned()
        } else {
            format!("$[{index}]")
        }
    }

    /// The idempotency key of an item.
    pub(super) fn key(&self, key: &IdempotencyKey, index: usize) -> String {
        if self.is_single {
            key.as_str().to_owned()
        } else {
            format!("{}/{index}", key.as_str())
        }
    }
}

impl Post {
    /// Identifies the request among those of a scope if it has an idempotency key. The scope contains no space.
    pub(super) fn fingerprint(&self, scope: &str) -> Option<Fingerprint> {
        let key = self.key.as_ref()?.as_str();
        // A key contains no space either, so the text is unambiguous.
        let scoped = if scope.is_empty() {
            key.to_owned()
        } else {
            format!("{scope} {key}")
        };
        Some(Fingerprint::new(&self.credential, &scoped, &self.body))
    }

    /// The item or items of the body.
    pub(super) fn items(&self) -> Result<Items<'_>, Box<Problem>> {
        let not_json = |e: serde_json::Error| Box::new(JSON.detail(e.to_string()));
        if self.is_lines {
            let lines = serde_json::Deserializer::from_slice(&self.body).into_iter::<&RawValue>();
            let texts = lines.collect::<Result<Vec<_>, _>>().map_err(not_json)?;
            let is_single = false;
            return Ok(Items { texts, is_single });
        }
        let is_single = self.body.trim_ascii_start().first() != Some(&b'[');
        let texts = if is_single {
            vec![serde_json::from_slice(&self.body).map_err(not_json)?]
        } else {
            serde_json::from_slice(&self.body).map_err(not_json)?
        };
        Ok(Items { texts, is_single })
    }
}

/// Checks the permission and reads the body.
pub(super) async fn read(
    body_bytes_max: usize,
    backend: Backend,
    topic: String,
    request: Request,
    permit: OwnedSemaphorePermit,
) -> Result<Post, Problem> {
    let Backend { name, topics } = backend;
    if !topics.iter().any(|t| t == "*" || *t == topic) {
        return Err(FORBIDDEN.detail(format!(
            "credential `{name}` may not post to {topic}; it may post to {}",
            topics.join(", ")
        )));
    }
    let headers = request.headers().clone();
    let body = Bytes::from_request(request, &()).await;
    let body = body.map_err(|rejected| unread(&rejected, body_bytes_max))?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type
        .and_then(|value| value.split(';').next())
        .unwrap_or_default();
    let media_type = media_type.trim();
    let is_lines = ["application/x-ndjson", "application/jsonl"];
    Ok(Post {
        credential: name.to_string(),
        topic,
        body,
        is_lines: is_lines.iter().any(|lines| media_type.eq_ignore_ascii_case(lines)),
        key: IdempotencyKey::of(&headers)?,
        trace: trace_of(&headers),
        permit: Arc::new(permit),
    })
}

fn unread(rejected: &BytesRejection, limit: usize) -> Problem {
    match rejected.status() {
        StatusCode::PAYLOAD_TOO_LARGE => BODY_TOO_LARGE.detail(format!(
            "bodies are limited to {limit} bytes; split it into several requests"
        )),
        _ if is_body_timeout(rejected) => {
            BODY_TIMEOUT.detail("the body did not arrive in time; send the request again")
        }
        _ => BAD_REQUEST.detail("the connection ended before the body was complete; send the request again"),
    }
}

fn trace_of(headers: &HeaderMap) -> Option<String> {
    let parent = Parent::parse(headers.get(PARENT)?.as_bytes())?;
    Some(parent.text.to_owned())
}
