//! Routes of the devices' listener: `/v1/sync`, `/openapi.json`, `/healthz` and `/readyz`.
//!
//! Each response carries a request id, and each error is a problem body. A body above the limit is rejected before it
//! has been read completely. Metrics, console and admin routes are on another listener, so that devices cannot reach them.

use super::problem::ApiError;
use super::trace;
use crate::auth::{AuthError, Authenticator};
use crate::replica::{ReadinessIssue, ReplicaHandle};
use crate::sync::{Polls, SyncRequest, SyncResponse};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
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

/// Request header with the device id.
pub const DEVICE_HEADER: &str = "trunkline-device";
/// Compromise between bytes on the mobile network and CPU of the edge.
const COMPRESSION: CompressionLevel = CompressionLevel::Precise(4);

/// Fix for keys that cannot be fetched.
pub(crate) const KEYS_FIX: &str = "check edge.issuers in the configuration, and that the issuer is reachable from here";

const OPENAPI: &str = include_str!("openapi.json");

/// Shared state of the request handlers.
pub struct Service {
    /// Verifies bearer tokens.
    pub auth: Authenticator,
    /// Answers polls.
    pub polls: Arc<Polls>,
    /// The replica, for readiness.
    pub replica: Arc<ReplicaHandle>,
    /// Clock for token times and proofs.
    pub clock: SharedClock,
}

impl Service {
    /// Readiness of the edge: whether polls can be answered, and the causes if not.
    pub fn report(&self) -> Report {
        let now = self.clock.now_ms();
        let keys = self.auth.problems(now).into_iter();
        let keys = keys.map(|cause| ReadinessIssue::new(cause, KEYS_FIX));
        let state = |name: &str, issue: Option<ReadinessIssue>| {
            let (cause, fix) = issue.map(|issue| (issue.cause, issue.fix)).unzip();
            ComponentState {
                name: name.to_owned(),
                ready: cause.is_none(),
                cause,
                fix,
                detail: None,
            }
        };
        let mut components = vec![state("edge-replica", self.replica.issue(now))];
        components.extend(keys.map(|issue| state("edge-keys", Some(issue))));
        Report {
            ready: components.iter().all(|c| c.ready),
            components,
        }
    }
}

/// Router of the devices' listener.
pub fn router(service: Arc<Service>) -> Router {
    let limits = service.polls.limits();
    // Time to read the body, plus the wait of the poll, plus time for the response itself.
    let timeout = Duration::from_secs(limits.read_timeout_s + limits.wait_s_max + 30);
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
            trace::trace_request(request, next, timeout)
        }))
}

async fn sync(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let now = service.clock.now_ms();
    let identity = service.auth.verify(bearer(&parts.headers)?, now).await?;
    let sync_request = SyncRequest::from_query(parts.uri.query().unwrap_or_default())?;
    let device = device(&parts.headers, &sync_request)?;
    let limits = service.polls.limits();
    let body = read_body(body, limits.body_bytes_max, Duration::from_secs(limits.read_timeout_s)).await?;
    let validator = parts.headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let sync_request = sync_request.with_body(&body)?.with_validator(validator);
    let response = service.polls.poll(&identity, &device, &sync_request).await?;
    Ok(match response {
        SyncResponse::Page { json, cursor } => {
            let mut response = (StatusCode::OK, Body::from(json)).into_response();
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            set_cache_headers(headers, &cursor);
            response
        }
        SyncResponse::NotModified => {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            let cursor = sync_request.cursor.as_deref();
            let cursor = cursor.or(sync_request.only_if_changed.as_deref());
            set_cache_headers(response.headers_mut(), cursor.unwrap_or_default());
            response
        }
    })
}

/// Sets the ETag and forbids shared caches to store the response, because a page belongs to one device.
fn set_cache_headers(headers: &mut HeaderMap, cursor: &str) {
    if let Ok(tag) = HeaderValue::try_from(format!("W/\"{cursor}\"")) {
        headers.insert(ETAG, tag);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.append(VARY, HeaderValue::from_static("authorization, trunkline-device"));
}

fn bearer(headers: &HeaderMap) -> Result<&str, AuthError> {
    service::http::bearer(headers).ok_or(AuthError::Missing)
}

fn device(headers: &HeaderMap, request: &SyncRequest) -> Result<DeviceId, ApiError> {
    let header = headers.get(DEVICE_HEADER).map(|v| v.to_str().unwrap_or_default());
    let text = header.or(request.device.as_deref()).ok_or_else(|| {
        ApiError::bad_request("no device id; send the header `Trunkline-Device: ID` or the parameter `?device=ID`")
    })?;
    DeviceId::new(text).map_err(|e| ApiError::bad_request(e.to_string()))
}

async fn read_body(body: Body, bytes_max: usize, limit: Duration) -> Result<axum::body::Bytes, ApiError> {
    match tokio::time::timeout(limit, axum::body::to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => {
            let detail = format!("the body is larger than {bytes_max} bytes; send only `cursor`, `wait` and `limit`");
            Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "The body is too large",
                detail,
            ))
        }
        Ok(Err(_)) => Err(ApiError::bad_request(
            "the connection ended before the body was complete; send the request again",
        )),
        Err(_) => {
            let detail = "the body did not arrive in time; send the request again";
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
    // Causes contain names of topics and hosts. The admin listener shows them, to clients with a role.
    (status, axum::Json(serde_json::json!({ "ready": report.ready }))).into_response()
}

async fn not_found() -> ApiError {
    let detail = "no such path; GET /openapi.json lists the paths";
    ApiError::new(StatusCode::NOT_FOUND, "not-found", "The path does not exist", detail)
}

async fn method_not_allowed() -> ApiError {
    let detail = "the path does not support this method; GET /openapi.json lists the supported ones";
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "The method is not supported",
        detail,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Property names of a schema of the document.
    fn properties<'a>(document: &'a Value, schema: &str) -> Vec<&'a str> {
        let properties = &document["components"]["schemas"][schema]["properties"];
        properties.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn openapi_document_is_consistent() {
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
        // Each reference resolves.
        let mut rest = OPENAPI;
        while let Some((_, after)) = rest.split_once("\"$ref\": \"#") {
            let (pointer, after) = after.split_once('"').unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            rest = after;
        }
    }
}
