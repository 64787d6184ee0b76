//! Problem details for HTTP errors (RFC 9457).
//!
//! The content type is `application/problem+json`, and `status` equals the status of the response. Extension members
//! never replace the standard ones. `detail` is written for the caller and never contains the text of an inner error.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// A problem type: the members that all its occurrences share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Permanent name. The problem's `type` is `/problems/<code>`.
    pub code: &'static str,
    /// Status code of the response.
    pub status: StatusCode,
    /// Summary.
    pub title: &'static str,
}

impl Kind {
    /// Creates a problem type. `docs/reference/problems.md` lists all of them.
    pub const fn new(code: &'static str, status: StatusCode, title: &'static str) -> Self {
        Self { code, status, title }
    }

    /// Creates an occurrence, with cause and fix.
    pub fn detail(&self, detail: impl Into<String>) -> Problem {
        Problem::new(self.status, format!("/problems/{}", self.code), self.title).detail(detail)
    }
}

/// The request is malformed.
pub const BAD_REQUEST: Kind = Kind::new("bad-request", StatusCode::BAD_REQUEST, "The request is malformed");
/// The request has no token.
pub const TOKEN_MISSING: Kind = Kind::new("token-missing", StatusCode::UNAUTHORIZED, "A bearer token is required");
/// The token is not valid.
pub const TOKEN_INVALID: Kind = Kind::new("token-invalid", StatusCode::UNAUTHORIZED, "The token is not valid");
/// The credential does not allow the request.
pub const FORBIDDEN: Kind = Kind::new(
    "forbidden",
    StatusCode::FORBIDDEN,
    "The credential does not allow this request",
);
/// The path does not exist.
pub const NOT_FOUND: Kind = Kind::new("not-found", StatusCode::NOT_FOUND, "The path does not exist");
/// The path does not support the method.
pub const METHOD_NOT_ALLOWED: Kind = Kind::new(
    "method-not-allowed",
    StatusCode::METHOD_NOT_ALLOWED,
    "The method is not supported",
);
/// The body did not arrive in time.
pub const BODY_TIMEOUT: Kind = Kind::new("body-timeout", StatusCode::REQUEST_TIMEOUT, "The request took too long");
/// The body is too large.
pub const BODY_TOO_LARGE: Kind = Kind::new("body-too-large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large");
/// The response took too long.
pub const TIMEOUT: Kind = Kind::new(
    "timeout",
    StatusCode::SERVICE_UNAVAILABLE,
    "The service is temporarily unavailable",
);
/// The process is starting, or a dependency is not available.
pub const UNAVAILABLE: Kind = Kind::new(
    "unavailable",
    StatusCode::SERVICE_UNAVAILABLE,
    "The service is temporarily unavailable",
);
/// The process failed.
pub const INTERNAL: Kind = Kind::new("internal", StatusCode::INTERNAL_SERVER_ERROR, "The request failed");

/// An HTTP error with its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Status code of the response.
    pub status: StatusCode,
    /// Problem type: an absolute or relative URI. `about:blank`: the status code describes the problem.
    pub kind: Cow<'static, str>,
    /// Summary of the problem type.
    pub title: Cow<'static, str>,
    /// What went wrong in this occurrence, and the fix.
    pub detail: Option<String>,
    /// URI of this occurrence, such as the path of the request.
    pub instance: Option<String>,
    /// Seconds after which a retry may succeed; also sent as `Retry-After`.
    pub retry_after_s: Option<u32>,
    /// Extension members.
    pub members: Map<String, Value>,
}

impl From<Box<Problem>> for Problem {
    /// Functions return a box, because the error would be much larger than the result.
    fn from(boxed: Box<Problem>) -> Self {
        *boxed
    }
}

impl Problem {
    /// A problem of type `about:blank`, with the reason phrase of the status as title.
    pub fn status(status: StatusCode) -> Self {
        Self::new(status, "about:blank", status.canonical_reason().unwrap_or("Error"))
    }

    /// A problem of a given type.
    pub fn new(status: StatusCode, kind: impl Into<Cow<'static, str>>, title: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            kind: kind.into(),
            title: title.into(),
            detail: None,
            instance: None,
            retry_after_s: None,
            members: Map::new(),
        }
    }

    /// Sets `detail`.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Sets `instance`.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = Some(instance.into());
        self
    }

    /// Sets `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Adds an extension member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// The JSON body.
    pub fn body(&self) -> Value {
        let mut body = self.members.clone();
        let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
        set("type", self.kind.as_ref().into());
        set("title", self.title.as_ref().into());
        set("status", self.status.as_u16().into());
        if let Some(detail) = &self.detail {
            set("detail", detail.as_str().into());
        }
        if let Some(instance) = &self.instance {
            set("instance", instance.as_str().into());
        }
        Value::Object(body)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let content_type = (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        let mut response = (self.status, [content_type], self.body().to_string()).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn body_has_standard_and_extension_members() {
        let problem = Problem::new(StatusCode::BAD_REQUEST, "/problems/field", "A field does not fit")
            .detail("`total` is not a number")
            .instance("/v1/ingest/shop")
            .with("path", "rows[0].total")
            .with("status", "never replaced");
        let expected = json!({
            "type": "/problems/field", "title": "A field does not fit", "status": 400,
            "detail": "`total` is not a number", "instance": "/v1/ingest/shop", "path": "rows[0].total",
        });
        assert_eq!(problem.body(), expected);
    }

    #[test]
    fn response_has_content_type_and_retry_after() {
        let response = Problem::status(StatusCode::SERVICE_UNAVAILABLE)
            .retry_after(3)
            .into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["retry-after"], "3");
        let body = Problem::status(StatusCode::NOT_FOUND).body();
        assert_eq!(
            body,
            json!({"type": "about:blank", "title": "Not Found", "status": 404})
        );
    }
}
