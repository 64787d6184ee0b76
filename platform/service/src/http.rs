//! Common code of the routes of all listeners: bearer tokens, and problem bodies for unknown paths and methods.

use crate::{Problem, problem};
use axum::http::{HeaderMap, Method, Uri, header};

/// The bearer token of a request. The scheme may be written in any case (RFC 9110, section 11.1).
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The response to an unknown path.
pub async fn not_found(uri: Uri) -> Problem {
    problem::NOT_FOUND.detail(format!(
        "there is no path {}; docs/reference lists the paths",
        uri.path()
    ))
}

/// The response to a method that the path does not support.
pub async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let path = uri.path();
    problem::METHOD_NOT_ALLOWED.detail(format!(
        "{path} does not support {method}; the header Allow lists its methods"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn scheme_of_a_token_is_case_insensitive() {
        let of = |value: &'static str| {
            let headers = [(header::AUTHORIZATION, HeaderValue::from_static(value))]
                .into_iter()
                .collect();
            bearer(&headers).map(str::to_owned)
        };
        for value in ["Bearer abc", "bearer abc", "BEARER  abc "] {
            assert_eq!(of(value).as_deref(), Some("abc"), "{value}");
        }
        for value in ["Basic abc", "Bearer", "abc"] {
            assert_eq!(of(value), None, "{value}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
