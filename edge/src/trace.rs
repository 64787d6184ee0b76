//! What every request gets: an id, a span that continues the caller's trace, a time limit, numbers.
//!
//! Guarantees: the answer's `X-Request-Id` is the caller's if that is harmless text, else a new one; a valid W3C
//! `traceparent` stands in the span. Never: a token, a cursor or a query string in a log line.

use crate::error::Refused;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::time::{Duration, Instant};
use tracing::Instrument;

const REQUEST_ID: &str = "x-request-id";
const TRACE_PARENT: &str = "traceparent";

/// Serves one request inside its span and within its time.
pub async fn each(request: Request, next: Next, limit: Duration) -> Response {
    let id = request_id(request.headers());
    let (trace, parent) = trace_of(request.headers()).unwrap_or_default();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other", MatchedPath::as_str)
        .to_owned();
    let method = request.method().clone();
    let id_text = id.to_str().unwrap_or_default();
    let span = tracing::info_span!("request", %method, route, id = id_text, trace_id = trace, parent_id = parent);
    let began = Instant::now();
    let served = tokio::time::timeout(limit, next.run(request))
        .instrument(span.clone())
        .await;
    let mut response = served.unwrap_or_else(|_| {
        Refused::unavailable("timeout", "the request took too long here; try again", 1).into_response()
    });
    let (status, seconds) = (response.status().as_u16(), began.elapsed().as_secs_f64());
    span.in_scope(|| tracing::debug!(status, seconds, "answered"));
    metrics::counter!("trunkline_edge_requests_total", "route" => route, "status" => status.to_string()).increment(1);
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    let harmless = |v: &&HeaderValue| {
        let legal = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
        (1..=64).contains(&v.len()) && v.as_bytes().iter().all(legal)
    };
    let made = || HeaderValue::try_from(uuid::Uuid::new_v4().simple().to_string());
    headers
        .get(REQUEST_ID)
        .filter(harmless)
        .cloned()
        .unwrap_or_else(|| made().expect("a uuid is a header value"))
}

/// Trace id and parent id of a valid `traceparent` (W3C Trace Context, 3.2).
fn trace_of(headers: &HeaderMap) -> Option<(String, String)> {
    let mut parts = headers.get(TRACE_PARENT)?.to_str().ok()?.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let valid = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let zero = |text: &str| text.bytes().all(|b| b == b'0');
    // Later versions may add fields; version 00 has exactly four.
    let extra = version == "00" && parts.next().is_some();
    (valid && !zero(trace) && !zero(parent) && !extra).then(|| (trace.to_owned(), parent.to_owned()))
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
    fn a_harmless_request_id_is_kept_and_any_other_replaced() {
        assert_eq!(request_id(&headers(REQUEST_ID, "abc-1.2:3")), "abc-1.2:3");
        for bad in ["", "a b", "<x>", &"x".repeat(65)] {
            assert_eq!(request_id(&headers(REQUEST_ID, bad)).len(), 32, "{bad}");
        }
    }

    #[test]
    fn a_valid_traceparent_is_continued() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let of = |text: &str| trace_of(&headers(TRACE_PARENT, text)).map(|(t, p)| format!("{t}/{p}"));
        let good = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(of(&good), Some(format!("{trace}/00f067aa0ba902b7")));
        assert!(of(&format!("01-{trace}-00f067aa0ba902b7-01-more")).is_some());
        for bad in [
            format!("{good}-more"),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            "nonsense".into(),
        ] {
            assert_eq!(of(&bad), None, "{bad}");
        }
    }
}
