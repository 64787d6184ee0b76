//! The devices' listener: which path does what, and what every request goes through.
//!
//! Guarantees: every answer carries a request id; every refusal is a problem body; a body larger than the limit is
//! refused before it is read whole.
//! Never: metrics, console or admin routes (they are on another listener).

use crate::auth::{AuthError, Authenticator};
use crate::error::ApiError;
use crate::replica::{ReplicaHandle, Trouble};
use crate::sync::{Polls, SyncRequest, SyncResponse};
use crate::trace;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use schemas::ids::DeviceId;
use service::SharedClock;
use service::readiness::{Report, State as ComponentState};
use std::sync::Arc;
use std::time::Duration;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

/// Header with the device's id.
pub const DEVICE_HEADER: &str = "trunkline-device";
/// Balances bytes on the mobile network against the edge's CPU.
const COMPRESSION: CompressionLevel = CompressionLevel::Precise(4);

const OPENAPI: &str = include_str!("openapi.json");

/// What requests are served from.
pub struct Service {
    /// Checks tokens.
    pub auth: Authenticator,
    /// Answers polls.
    pub polls: Arc<Polls>,
    /// The replica, for readiness.
    pub shelf: Arc<ReplicaHandle>,
    /// The time.
    pub clock: SharedClock,
}

impl Service {
    /// Whether devices are answered, and what keeps them from it.
    pub fn report(&self) -> Report {
        let now = self.clock.now_ms();
        let keys = self.auth.problems(now).into_iter();
        let keys =
            keys.map(|cause| Trouble::new(cause, "check edge.issuers in the configuration, and the issuer itself"));
        let state = |name: &str, trouble: Option<Trouble>| {
            let (cause, next_command) = trouble.map(|t| (t.cause, t.next)).unzip();
            ComponentState {
                name: name.to_owned(),
                ready: cause.is_none(),
                cause,
                next_command,
            }
        };
        let mut components = vec![state("edge-replica", self.shelf.trouble(now))];
        components.extend(keys.map(|trouble| state("edge-keys", Some(trouble))));
        Report {
            ready: components.iter().all(|c| c.ready),
            components,
        }
    }
}

/// The devices' routes.
pub fn router(service: Arc<Service>) -> Router {
    let limits = service.polls.limits();
    let all = Duration::from_secs(limits.read_timeout_s + limits.wait_s_max + 30);
    Router::new()
        .route("/v1/sync", get(sync).post(sync))
        .route("/openapi.json", get(openapi))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(service)
        .layer(CompressionLayer::new().quality(COMPRESSION))
        .layer(axum::middleware::from_fn(move |request, next| {
            trace::each(request, next, all)
        }))
}

async fn sync(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let now = service.clock.now_ms();
    let who = service.auth.verify(bearer(&parts.headers)?, now).await?;
    let ask = SyncRequest::from_query(parts.uri.query().unwrap_or_default())?;
    let device = device(&parts.headers, &ask)?;
    let limits = service.polls.limits();
    let body = read(body, limits.body_bytes_max, Duration::from_secs(limits.read_timeout_s)).await?;
    let validator = parts.headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let ask = ask.with_body(&body)?.with_validator(validator);
    let reply = service.polls.poll(&who, &device, &ask).await?;
    Ok(match reply {
        SyncResponse::Page { json, cursor } => {
            let mut response = (StatusCode::OK, Body::from(json)).into_response();
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            tag(headers, &cursor);
            response
        }
        SyncResponse::NotModified => {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            let held = ask.cursor.as_deref().or(ask.only_if_changed.as_deref());
            tag(response.headers_mut(), held.unwrap_or_default());
            response
        }
    })
}

/// A page is one device's own: no cache between may keep it.
fn tag(headers: &mut HeaderMap, cursor: &str) {
    if let Ok(tag) = HeaderValue::try_from(format!("W/\"{cursor}\"")) {
        headers.insert(ETAG, tag);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.append(VARY, HeaderValue::from_static("authorization, trunkline-device"));
}

fn bearer(headers: &HeaderMap) -> Result<&str, AuthError> {
    let value = headers.get(AUTHORIZATION).ok_or(AuthError::Missing)?;
    let value = value
        .to_str()
        .map_err(|_| AuthError::Malformed("the Authorization header is not ASCII"))?;
    let (scheme, token) = value.split_once(' ').ok_or(AuthError::Missing)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(token.trim())
    } else {
        Err(AuthError::Missing)
    }
}

fn device(headers: &HeaderMap, ask: &SyncRequest) -> Result<DeviceId, ApiError> {
    let header = headers.get(DEVICE_HEADER).map(|v| v.to_str().unwrap_or_default());
    let text = header.or(ask.device.as_deref()).ok_or_else(|| {
        ApiError::bad_request("no device id; send the header `Trunkline-Device: ID`, or `?device=ID`")
    })?;
    DeviceId::new(text).map_err(|e| ApiError::bad_request(e.to_string()))
}

async fn read(body: Body, bytes_max: usize, limit: Duration) -> Result<axum::body::Bytes, ApiError> {
    match tokio::time::timeout(limit, axum::body::to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => {
            let detail = format!("the body is larger than {bytes_max} bytes; a poll needs far less");
            Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "The body is too large",
                detail,
            ))
        }
        Ok(Err(_)) => Err(ApiError::bad_request("the body ended before it was complete")),
        Err(_) => {
            let detail = "the body did not arrive in time; send it again";
            Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body-timeout",
                "The request took too long",
                detail,
            ))
        }
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], OPENAPI).into_response()
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(service): State<Arc<Service>>) -> Response {
    let report = service.report();
    let status = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, axum::Json(report)).into_response()
}

async fn not_found() -> ApiError {
    let detail = "no such path; GET /openapi.json lists those that exist";
    ApiError::new(StatusCode::NOT_FOUND, "not-found", "There is nothing here", detail)
}

async fn method_not_allowed() -> ApiError {
    let detail = "this path does not take that method; GET /openapi.json lists what it takes";
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "The method is not allowed",
        detail,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// The names that a schema of the document lists as properties.
    fn properties<'a>(document: &'a Value, schema: &str) -> Vec<&'a str> {
        let properties = &document["components"]["schemas"][schema]["properties"];
        properties.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn the_published_document_is_sound() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
        assert_eq!(paths, ["/healthz", "/openapi.json", "/readyz", "/v1/sync"]);
        let page = properties(&document, "Page");
        for field in [
            "cursor",
            "complete",
            "reset_all",
            "drops",
            "resets",
            "changes",
            "stale",
            "acked_through",
        ] {
            assert!(page.contains(&field), "{field}");
        }
        // Every reference leads somewhere.
        let mut rest = OPENAPI;
        while let Some((_, after)) = rest.split_once("\"$ref\": \"#") {
            let (pointer, after) = after.split_once('"').unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            rest = after;
        }
    }

    #[test]
    fn a_bearer_token_is_found_and_nothing_else_taken_for_one() {
        let of = |value: &'static str| {
            let headers = [(AUTHORIZATION, HeaderValue::from_static(value))].into_iter().collect();
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer abc"), Ok("abc".into()));
        assert_eq!(of("bearer  abc "), Ok("abc".into()));
        assert_eq!(of("Basic abc"), Err(AuthError::Missing));
        assert_eq!(of("Bearer"), Err(AuthError::Missing));
        assert_eq!(bearer(&HeaderMap::new()), Err(AuthError::Missing));
    }
}
