//! Authentication of backends: bearer tokens, client certificates, or both.

use super::endpoints::{DELETIONS, PATH};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use service::access::equal_in_constant_time;
use service::audit::Audit;
use service::listener::Peer;
use service::problem::{TOKEN_INVALID, TOKEN_MISSING};
use service::{Secret, http};
use std::sync::Arc;

/// Credential of a backend that may post.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Name of the backend. It appears in problem bodies and scopes idempotency keys. Entries with the same name share
    /// their idempotency keys, so that a token can be rotated without interruption.
    pub name: String,
    /// Bearer token. At least one of `token` and `certificate` is required. If both are set, a client must present
    /// both.
    #[serde(default)]
    pub token: Option<Secret>,
    /// DNS name or IP address in the certificate of the client (subject alternative name). Requires `tls.client_ca`.
    #[serde(default)]
    pub certificate: Option<String>,
    /// Topics that the backend may post to, named as in the URL; `*` for all.
    pub topics: Vec<String>,
}

/// A credential that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("ingest.credentials: credential `{name}` {problem}")]
pub struct CredentialError {
    /// Name of the credential.
    name: String,
    /// Cause and fix.
    problem: &'static str,
}

impl Credential {
    pub(super) fn check(&self, has_client_ca: bool) -> Result<(), CredentialError> {
        let problem = match (&self.token, &self.certificate) {
            (None, None) => "has neither token nor certificate; set at least one of them",
            (Some(token), _) if token.expose().is_empty() => "has an empty token; set another",
            (_, Some(_)) if !has_client_ca => {
                "has a certificate, but client certificates are not requested; set ingest.tls.client_ca"
            }
            _ => return Ok(()),
        };
        let name = self.name.clone();
        Err(CredentialError { name, problem })
    }

    fn is_of(&self, token: Option<&str>, peer: Option<&Peer>) -> bool {
        let has_token = self
            .token
            .as_ref()
            .is_none_or(|own| token.is_some_and(|token| equal_in_constant_time(token, own.expose())));
        let has_certificate = self
            .certificate
            .as_ref()
            .is_none_or(|name| peer.is_some_and(|peer| peer.is_named(name)));
        has_token && has_certificate
    }
}

/// The authenticated backend.
#[derive(Clone)]
pub(super) struct Backend {
    pub(super) name: Arc<str>,
    pub(super) topics: Vec<String>,
}

pub(super) async fn authenticate(
    State(credentials): State<Arc<[Credential]>>,
    mut request: Request,
    next: Next,
) -> Response {
    let token = http::bearer(request.headers());
    let peer = request.extensions().get::<Peer>();
    let credential = credentials.iter().find(|credential| credential.is_of(token, peer));
    let has_token = token.is_some();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match credential {
        None => reject(has_token),
        Some(credential) => {
            let backend = Backend {
                name: credential.name.as_str().into(),
                topics: credential.topics.clone(),
            };
            request.extensions_mut().insert(backend);
            next.run(request).await
        }
    };
    Audit {
        listener: "ingest",
        credential: credential.map(|credential| credential.name.as_str()),
        method: &method,
        path: &path,
        status: response.status(),
    }
    .record(true, if path.ends_with("/deletions") { DELETIONS } else { PATH });
    response
}

fn reject(has_token: bool) -> Response {
    let (problem, challenge) = if has_token {
        let detail = "the token, or the certificate of the client, is not one of [[ingest.credentials]]";
        (TOKEN_INVALID.detail(detail), "Bearer error=\"invalid_token\"")
    } else {
        let detail = "send `Authorization: Bearer TOKEN` with a token of [[ingest.credentials]]";
        (TOKEN_MISSING.detail(detail), "Bearer")
    };
    let mut response = problem.into_response();
    let challenge = HeaderValue::from_static(challenge);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(token: Option<&str>, certificate: Option<&str>) -> Credential {
        Credential {
            name: "backend".to_owned(),
            token: token.map(Secret::new),
            certificate: certificate.map(str::to_owned),
            topics: vec!["*".to_owned()],
        }
    }

    #[test]
    fn credential_needs_a_token_or_a_verified_certificate() {
        assert!(credential(Some("a token"), None).check(false).is_ok());
        assert!(credential(None, Some("backend.test")).check(true).is_ok());
        assert!(credential(Some("a token"), Some("backend.test")).check(true).is_ok());
        for (token, certificate, has_client_ca, expected) in [
            (None, None, true, "neither token nor certificate"),
            (Some(""), None, false, "empty token"),
            (None, Some("backend.test"), false, "set ingest.tls.client_ca"),
        ] {
            let error = credential(token, certificate)
                .check(has_client_ca)
                .unwrap_err()
                .to_string();
            assert!(error.contains("`backend`") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn token_alone_does_not_replace_a_certificate() {
        assert!(credential(Some("a token"), None).is_of(Some("a token"), None));
        assert!(!credential(Some("a token"), None).is_of(Some("a tokem"), None));
        assert!(!credential(Some("a token"), None).is_of(None, None));
        assert!(!credential(Some("a token"), Some("backend.test")).is_of(Some("a token"), None));
        assert!(!credential(None, Some("backend.test")).is_of(Some("a token"), None));
    }
}
