//! Middleware of every request: request id, tracing span, timeout and metrics.
//!
//! The response's `X-Request-Id` is the caller's if it is short and has safe characters, else a new one. A valid W3C
//! `traceparent` becomes the parent of the span, and `traceresponse` returns the span's id. The span contains the route
//! but not the query string, which may hold a cursor.

use super::problem::ApiError;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use service::trace::{self, Parent};
use std::time::{Duration, Instant};
use tracing::Instrument;

const REQUEST_ID: &str = "x-request-id";
/// Response header with the span of this edge (W3C Trace Context Level 2, 4).
const TRACE_RESPONSE: &str = "traceresponse";

/// Serves a request inside its span, with a timeout.
pub async fn trace_request(request: Request, next: Next, timeout: Duration) -> Response {
    let id = request_id(request.headers());
    let parent = parent_of(request.headers());
    let (trace_id, parent_id) = parent.map(|p| (p.trace, p.span)).unwrap_or_default();
    let own = parent.map(|_| span_id()).unwrap_or_default();
    let trace_response = parent.and_then(|parent| trace_response_of(&parent, &own));
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other", MatchedPath::as_str)
        .to_owned();
    let method = request.method().clone();
    let id_text = id.to_str().unwrap_or_default();
    let span = tracing::info_span!("request", %method, route, id = id_text, trace_id, parent_id, span_id = own);
    let began = Instant::now();
    let served = tokio::time::timeout(timeout, next.run(request))
        .instrument(span.clone())
        .await;
    let mut response = served
        .unwrap_or_else(|_| ApiError::unavailable("timeout", "the request took too long; retry", 1).into_response());
    let (status, seconds) = (response.status().as_u16(), began.elapsed().as_secs_f64());
    span.in_scope(|| tracing::debug!(status, seconds, "request served"));
    metrics::counter!("trunkline_edge_requests_total", "route" => route, "status" => status.to_string()).increment(1);
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(value) = trace_response {
        response.headers_mut().insert(TRACE_RESPONSE, value);
    }
    response
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    // The id ends up in log lines, so it must not carry anything that a log viewer would interpret.
    let safe = |v: &&HeaderValue| {
        let legal = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
        (1..=64).contains(&v.len()) && v.as_bytes().iter().all(legal)
    };
    let generated = || HeaderValue::try_from(uuid::Uuid::new_v4().simple().to_string());
    headers
        .get(REQUEST_ID)
        .filter(safe)
        .cloned()
        .unwrap_or_else(|| generated().expect("a UUID is a valid header value"))
}

/// Parses the `traceparent` of the request.
fn parent_of(headers: &HeaderMap) -> Option<Parent<'_>> {
    Parent::parse(headers.get(trace::PARENT)?.as_bytes())
}

/// Value of `traceresponse`: the trace id, the id of this edge's span, and the caller's flags.
fn trace_response_of(parent: &Parent<'_>, span: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("00-{}-{span}-{}", parent.trace, parent.flags)).ok()
}

/// A new span id: 16 hexadecimal digits. Never all zero, which W3C forbids, because they include the UUID's version.
fn span_id() -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    id.chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        [(
            axum::http::HeaderName::from_static(name),
            HeaderValue::try_from(value).unwrap(),
        )]
        .into_iter()
        .collect()
    }

    #[test]
    fn unsafe_request_id_is_replaced() {
        assert_eq!(request_id(&headers(REQUEST_ID, "abc-1.2:3")), "abc-1.2:3");
        for bad in ["", "a b", "<x>", &"x".repeat(65)] {
            assert_eq!(request_id(&headers(REQUEST_ID, bad)).len(), 32, "{bad}");
        }
    }

    #[test]
    fn traceresponse_continues_a_valid_traceparent() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let given = headers(trace::PARENT, &format!("00-{trace}-00f067aa0ba902b7-01"));
        let parent = parent_of(&given).unwrap();
        let span = span_id();
        assert_eq!(
            trace_response_of(&parent, &span).unwrap(),
            format!("00-{trace}-{span}-01")
        );
        assert!(Parent::parse(format!("00-{trace}-{span}-01").as_bytes()).is_some());
        assert_eq!(parent_of(&headers(trace::PARENT, "nonsense")), None);
    }
}
