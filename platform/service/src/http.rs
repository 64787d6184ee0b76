//! Common code of the routes of all listeners: bearer tokens, and problem bodies for unknown paths and methods.

use crate::{Problem, problem};
use axum::http::{HeaderMap, Method, Uri, header};
use std::net::IpAddr;

/// The bearer token of a request. The scheme may be written in any case (RFC 9110, section 11.1).
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether the host of a request is an IP address or `localhost`. Protects against DNS rebinding: a web page of another
/// site could reach a listener on loopback through a domain name that resolves to 127.0.0.1, and would then have the
/// same origin.
pub fn is_local(headers: &HeaderMap, uri: &Uri) -> bool {
    let header = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = uri.authority().map(|authority| authority.as_str()).or(header);
    // Browsers always send the header `Host`.
    let Some(text) = authority else { return true };
    let Ok(host) = text.parse::<axum::http::uri::Authority>() else {
        return false;
    };
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
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

    #[test]
    fn only_addresses_and_localhost_are_local() {
        let check = |host: &str| {
            let headers = [(header::HOST, HeaderValue::try_from(host).unwrap())]
                .into_iter()
                .collect();
            is_local(&headers, &Uri::from_static("/metrics"))
        };
        for local in [
            "127.0.0.1:8082",
            "localhost:8082",
            "LOCALHOST",
            "[::1]:8082",
            "10.0.0.5",
        ] {
            assert!(check(local), "{local}");
        }
        for other in ["rebind.example:8082", "127.0.0.1.example", "", "localhost.example"] {
            assert!(!check(other), "{other}");
        }
        assert!(is_local(&HeaderMap::new(), &Uri::from_static("/metrics")));
        assert!(!is_local(
            &HeaderMap::new(),
            &Uri::from_static("http://rebind.example/metrics")
        ));
    }
}
