//! Refusals as a device sees them: RFC 9457 problem bodies.
//!
//! Guarantees: a problem says what was wrong and what to do; `type` and `status` are stable, `detail` is for people.
//! Never: a token, a cursor, a bucket's or another principal's name in a problem.

use crate::auth::AuthError;
use axum::http::header::{CACHE_CONTROL, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use views::replica::NotReady;

/// A refusal of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// Stable name, for metrics; the problem's `type` is `/problems/<code>`.
    pub code: &'static str,
    problem: Box<service::Problem>,
    /// Value of `WWW-Authenticate`.
    challenge: Option<String>,
}

impl ApiError {
    /// A refusal with a status, a stable name, a title and a detail.
    pub fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        let problem = service::Problem::new(status, format!("/problems/{code}"), title).detail(detail);
        ApiError {
            code,
            problem: Box::new(problem),
            challenge: None,
        }
    }

    /// The request itself is malformed: 400.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "The request is malformed",
            detail,
        )
    }

    /// The service cannot answer now: 503 with `Retry-After`.
    pub fn unavailable(code: &'static str, detail: impl Into<String>, retry_after_s: u32) -> Self {
        let title = "The service cannot answer at the moment";
        let mut refused = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, title, detail);
        refused.problem.retry_after_s = Some(retry_after_s);
        refused
    }

    /// Why the replica may not be shown: 503.
    pub fn not_ready(why: NotReady) -> Self {
        let (code, detail) = match why {
            NotReady::Incomplete { .. } => (
                "view-incomplete",
                "the views are still being read here; try again, or another edge",
            ),
            NotReady::Unproven { .. } => (
                "view-unproven",
                "this edge cannot prove that its views are current, so it shows none; try again, or another edge",
            ),
            NotReady::NotServed { .. } => (
                "view-elsewhere",
                "this edge does not serve that part of the views; try another edge",
            ),
        };
        ApiError::unavailable(code, detail, 2)
    }

    /// What was wrong, and what to do.
    pub fn detail(&self) -> &str {
        self.problem.detail.as_deref().unwrap_or_default()
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        self.problem.status
    }
}

impl From<AuthError> for ApiError {
    fn from(refusal: AuthError) -> Self {
        let detail = refusal.to_string();
        match refusal {
            AuthError::KeysUnavailable(_) => ApiError::unavailable("keys-unavailable", detail, 2),
            AuthError::Issuer | AuthError::Audience => {
                let title = "The token is not meant for this service";
                ApiError::new(StatusCode::FORBIDDEN, "token-not-accepted", title, detail)
            }
            AuthError::Missing => {
                let refused = ApiError::new(
                    StatusCode::UNAUTHORIZED,
                    "token-missing",
                    "A bearer token is needed",
                    detail,
                );
                // RFC 6750, 3.1: without a token the challenge carries no error code.
                ApiError {
                    challenge: Some("Bearer".into()),
                    ..refused
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
                let refused = ApiError::new(StatusCode::UNAUTHORIZED, code, "The token is not valid", detail);
                ApiError {
                    challenge: Some(challenge),
                    ..refused
                }
            }
        }
    }
}

/// What may stand in `error_description` (RFC 6750, 3): printable ASCII without quote and backslash.
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
    fn a_refused_token_is_challenged_in_legal_characters() {
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
