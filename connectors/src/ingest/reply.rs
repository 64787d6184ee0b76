//! Responses of the listener: problems, and receipts of what was stored.

use super::idempotency;
use crate::sources::http::{JsonMismatch, PostError, PostOutcome, Receipt};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use service::Problem;
use service::problem::Kind;
use std::time::Duration;

/// Response header that marks the repeated response of an earlier request with the same `Idempotency-Key`.
const REPLAYED: &str = "idempotent-replayed";
/// Value of `Retry-After`, in seconds.
const RETRY_AFTER_S: u32 = 1;
/// Maximum number of mismatches in a response.
const MISMATCHES_MAX: usize = 100;

pub(super) const JSON: Kind = Kind::new("json", StatusCode::BAD_REQUEST, "The body is not JSON");
const SCHEMA: Kind = Kind::new(
    "schema",
    StatusCode::BAD_REQUEST,
    "The JSON does not match the schema of the topic",
);
pub(super) const UNKNOWN_TOPIC: Kind = Kind::new("unknown-topic", StatusCode::NOT_FOUND, "Unknown topic");
pub(super) const EVENT_TOO_LARGE: Kind = Kind::new(
    "event-too-large",
    StatusCode::PAYLOAD_TOO_LARGE,
    "An event is too large",
);
const LOG_UNAVAILABLE: Kind = Kind::new(
    "log-unavailable",
    StatusCode::SERVICE_UNAVAILABLE,
    "The log is not available",
);
const RATE_LIMITED: Kind = Kind::new(
    "rate-limited",
    StatusCode::TOO_MANY_REQUESTS,
    "The credential exceeds its rate",
);

pub(super) fn unavailable(why: &str) -> Problem {
    LOG_UNAVAILABLE.detail(why).retry_after(RETRY_AFTER_S)
}

/// The problem for a credential that exceeds its rate.
pub(super) fn rate_limited(credential: &str, wait: Duration) -> Problem {
    let seconds = u32::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX);
    let detail = format!(
        "credential `{credential}` sends more requests than its rate allows; send several events in a request, or raise \
         `rate` in [[ingest.credentials]]"
    );
    RATE_LIMITED.detail(detail).retry_after(seconds.max(1))
}

/// A part of the body that does not match the schema.
pub(super) struct Misfit {
    /// JSON path in the body.
    path: String,
    /// Topic, table or other name of what does not match, and the reason.
    detail: String,
}

impl Misfit {
    pub(super) fn new(path: &str, reason: &str, what: &str) -> Self {
        Self {
            path: path.to_owned(),
            detail: format!("{path} of {what}: {reason}"),
        }
    }

    /// The misfit of a value below a path of the body.
    pub(super) fn below(at: &str, mismatch: &JsonMismatch, what: &str) -> Self {
        let path = format!("{at}{}", mismatch.path.trim_start_matches('$'));
        Self::new(&path, &mismatch.reason, what)
    }

    /// The status of an item, for a batch that is stored partially.
    pub(super) fn status(&self, index: usize) -> Value {
        json!({
            "index": index, "status": SCHEMA.status.as_u16(), "type": format!("/problems/{}", SCHEMA.code),
            "path": self.path, "detail": self.detail,
        })
    }
}

impl From<Misfit> for Problem {
    fn from(misfit: Misfit) -> Self {
        SCHEMA.detail(misfit.detail).with("path", misfit.path)
    }
}

/// The problem for a body with misfits, of which there is at least one.
pub(super) fn rejected(misfits: Vec<Misfit>) -> Problem {
    let more = misfits.len().saturating_sub(1);
    let listed = misfits.iter().take(MISMATCHES_MAX);
    let errors: Vec<Value> = listed
        .map(|misfit| json!({ "path": misfit.path, "detail": misfit.detail }))
        .collect();
    let Some(mut first) = misfits.into_iter().next() else {
        return SCHEMA.detail("the body does not match");
    };
    if more > 0 {
        first.detail = format!("{}; and {more} more, see errors. Nothing was stored", first.detail);
    }
    Problem::from(first).with("errors", errors)
}

/// The response to a request that a source has processed. `items` are the statuses of a batch.
pub(super) fn outcome(
    outcome: Result<PostOutcome, PostError>,
    items: Option<Vec<Value>>,
) -> Result<Response, Box<Problem>> {
    let stored = |Receipt { position, changes }| stored(json!({ "stored": changes, "position": position }), items);
    Err(Box::new(match outcome {
        Ok(PostOutcome::Stored(receipt)) => return Ok(stored(receipt)),
        Ok(PostOutcome::Replayed(receipt)) => {
            return Ok(([(REPLAYED, "true")], stored(receipt)).into_response());
        }
        Ok(PostOutcome::KeyReused) => idempotency::reused(),
        Err(PostError::Busy) => {
            unavailable("the source is starting or paused, or too many requests wait; see `trunkline connect status`")
        }
        Err(PostError::UnknownOutcome) => {
            unavailable("the outcome of the commit is unknown; retry with the same Idempotency-Key")
        }
    }))
}

/// The receipt. Its status is 207 if an item has another status than 200.
pub(super) fn stored(mut receipt: Value, items: Option<Vec<Value>>) -> Response {
    let mut status = StatusCode::OK;
    if let (Some(items), Some(receipt)) = (items, receipt.as_object_mut()) {
        if items.iter().any(|item| item.get("path").is_some()) {
            status = StatusCode::MULTI_STATUS;
        }
        receipt.insert("items".to_owned(), items.into());
    }
    (status, Json(receipt)).into_response()
}
