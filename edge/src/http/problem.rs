//! Errors of the devices' API as RFC 9457 problem bodies.
//!
//! `type` and `status` are stable, so clients may branch on them; `detail` is a human-readable cause with its fix. A
//! problem contains no token, no cursor, no bucket name and no name of another principal.

use crate::auth::AuthError;
use axum::http::header::{CACHE_CONTROL, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use views::replica::NotReady;

/// Error response to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// Stable name. It is the label in metrics, and the problem's `type` is `/problems/<code>`.
    pub code: &'static str,
    problem: Box<service::Problem>,
    /// Value of `WWW-Authenticate`.
    challenge: Option<String>,
}

impl ApiError {
    /// Creates an error response.
    pub fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        let problem = service::Problem::new(status, format!("/problems/{code}"), title).detail(detail);
        ApiError {
            code,
            problem: Box::new(problem),
            challenge: None,
        }
    }

    /// 400: the request is malformed.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The request is malformed",
            detail,
        )
    }

    /// 503 with `Retry-After`: the edge cannot answer now.
    pub fn unavailable(code: &'static str, detail: impl Into<String>, retry_after_s: u32) -> Self {
        let title = "The service is temporarily unavailable";
        let mut error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, title, detail);
        error.problem.retry_after_s = Some(retry_after_s);
        error
    }

    /// 503: a partition of the replica cannot be served.
    pub fn not_ready(reason: NotReady) -> Self {
        let (code, detail) = match reason {
            NotReady::Incomplete { .. } => (
                "view-incomplete",
                "this edge is still reading the views; retry, or use another edge",
            ),
            NotReady::Unproven { .. } => (
                "view-unproven",
                "this edge cannot prove that its views are current; retry, or use another edge",
            ),
            NotReady::NotServed { .. } => (
                "view-elsewhere",
                "this edge does not serve a partition of the requested views; use another edge",
            ),
        };
        ApiError::unavailable(code, detail, 2)
    }

    /// Human-readable cause and fix.
    pub fn detail(&self) -> &str {
        self.problem.detail.as_deref().unwrap_or_default()
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        self.problem.status
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        let detail = error.to_string();
        match error {
            AuthError::KeysUnavailable(_) => ApiError::unavailable("keys-unavailable", detail, 2),
            AuthError::Issuer | AuthError::Audience => {
                let title = "The token is not for this service";
                ApiError::new(StatusCode::FORBIDDEN, "token-not-accepted", title, detail)
            }
            AuthError::Missing => {
                let error = ApiError::new(
                    StatusCode::UNAUTHORIZED,
                    "token-missing",
                    "A bearer token is required",
                    detail,
                );
                // RFC 6750, 3.1: the challenge has no error code if the request had no token.
                ApiError {
                    challenge: Some("Bearer".into()),
                    ..error
                }
            }
            invalid => {
                let code = if invalid == AuthError::Expired {
                    "token-expired"
                } else {
                    "token-invalid"
                };
                let challenge = format!(
                    "Bearer error=\"invalid_token\", error_description=\"{}\"",
                    quotable(&detail)
                );
                let error = ApiError::new(StatusCode::UNAUTHORIZED, code, "The token is not valid", detail);
                ApiError {
                    challenge: Some(challenge),
                    ..error
                }
            }
        }
    }
}

/// Replaces the characters that `error_description` must not contain (RFC 6750, 3): everything but printable ASCII, the
/// quote and the backslash.
fn quotable(text: &str) -> String {
    let legal = |c: char| matches!(c, ' '..='~') && c != '"' && c != '\\';
    text.chars().map(|c| if legal(c) { c } else { '\'' }).collect()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.problem.into_response();
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(challenge) = self.challenge.and_then(|c| HeaderValue::try_from(c).ok()) {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge_contains_only_legal_characters() {
        let response = ApiError::from(AuthError::Claim("a\"b\\ü".into())).into_response();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let challenge = response.headers()[WWW_AUTHENTICATE].to_str().unwrap();
        let want = "Bearer error=\"invalid_token\", error_description=\"claim `a'b''` is missing";
        assert!(challenge.starts_with(want), "{challenge}");
        let response = ApiError::from(AuthError::Missing).into_response();
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
        let response = ApiError::from(AuthError::Audience).into_response();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert!(response.headers().get(WWW_AUTHENTICATE).is_none());
        let response = ApiError::from(AuthError::KeysUnavailable("main".into())).into_response();
        assert_eq!(
            (response.status(), &response.headers()["retry-after"]),
            (503.try_into().unwrap(), &"2".parse().unwrap())
        );
    }
}
