//! Authentication of backends: bearer tokens, client certificates, or both; and the rate of each credential.
//!
//! Tokens in files are read again while the process runs, so that a token is rotated without a restart.

use super::endpoints::{DELETIONS, PATH};
use super::rate_limit::{Rate, RateLimit};
use super::reply::rate_limited;
use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use service::access::{TokenDigest, equal_in_constant_time, reload_tokens};
use service::audit::Audit;
use service::listener::Peer;
use service::problem::{TOKEN_INVALID, TOKEN_MISSING};
use service::{Secret, Tasks, http};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::time::Instant;

/// Credential of a backend that may post.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Name of the backend. It appears in problem bodies and scopes idempotency keys. Entries with the same name share
    /// their idempotency keys and count together for `rate`, so that a token can be rotated without interruption.
    pub name: String,
    /// Bearer token. At least one of `token`, `token_file` and `certificate` is required. A client must present both a
    /// token and a certificate if both are set.
    #[serde(default)]
    pub token: Option<Secret>,
    /// File with one bearer token per line, as text or as `sha256:` and its digest. It is read again when it changes.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// DNS name or IP address in the certificate of the client (subject alternative name). Requires `tls.client_ca`.
    #[serde(default)]
    pub certificate: Option<String>,
    /// Topics that the backend may post to, named as in the URL; `*` for all.
    pub topics: Vec<String>,
    /// Limit of its requests. Default: none.
    #[serde(default)]
    pub rate: Option<Rate>,
}

/// A credential that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("ingest.credentials: credential `{name}` {problem}")]
pub struct CredentialError {
    /// Name of the credential.
    name: String,
    /// Cause and fix.
    problem: String,
    /// The system's error.
    #[source]
    source: Option<std::io::Error>,
}

impl Credential {
    /// A credential with a token and without a rate.
    pub fn with_token(name: &str, token: Secret, topics: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            token: Some(token),
            token_file: None,
            certificate: None,
            topics,
            rate: None,
        }
    }

    fn error(&self, problem: impl Into<String>, source: Option<std::io::Error>) -> CredentialError {
        CredentialError {
            name: self.name.clone(),
            problem: problem.into(),
            source,
        }
    }

    fn check(&self, has_client_ca: bool) -> Result<(), CredentialError> {
        let has_token = self.token.is_some() || self.token_file.is_some();
        let problem = match &self.token {
            _ if !has_token && self.certificate.is_none() => {
                "has neither token nor certificate; set at least one of token, token_file and certificate"
            }
            Some(_) if self.token_file.is_some() => "has both token and token_file; set one of them",
            Some(token) if token.expose().is_empty() => "has an empty token; set another",
            _ if self.certificate.is_some() && !has_client_ca => {
                "has a certificate, but client certificates are not requested; set ingest.tls.client_ca"
            }
            _ => return Ok(()),
        };
        Err(self.error(problem, None))
    }

    fn tokens(&self) -> Result<Option<Vec<TokenDigest>>, CredentialError> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let text = std::fs::read_to_string(file)
            .map_err(|e| self.error(format!("cannot be used: cannot read {}", file.display()), Some(e)))?;
        let digests = TokenDigest::parse_lines(&text);
        let unusable = |problem| self.error(format!("has an unusable token in {}: {problem}", file.display()), None);
        digests.map(Some).map_err(unusable)
    }
}

/// The credentials with the current tokens of their files.
pub struct Credentials {
    configured: Vec<Entry>,
    /// The tokens of each entry with a file, in the same order.
    tokens: ArcSwap<Vec<Option<Vec<TokenDigest>>>>,
}

struct Entry {
    credential: Credential,
    limit: Arc<RateLimit>,
}

impl Credentials {
    /// Checks the credentials and reads their files.
    ///
    /// # Errors
    /// The first credential that cannot be used.
    pub(super) fn load(configured: &[Credential], has_client_ca: bool) -> Result<Self, CredentialError> {
        let mut limits: BTreeMap<&str, Arc<RateLimit>> = BTreeMap::new();
        let mut entries = Vec::with_capacity(configured.len());
        for credential in configured {
            credential.check(has_client_ca)?;
            let limit = limits.entry(&credential.name).or_default();
            entries.push(Entry {
                credential: credential.clone(),
                limit: Arc::clone(limit),
            });
        }
        let credentials = Self {
            configured: entries,
            tokens: ArcSwap::default(),
        };
        credentials.reload()?;
        Ok(credentials)
    }

    /// Reads the files again. Returns whether the tokens changed. A file that cannot be used keeps its previous tokens.
    /// The other files are still read, so that it does not delay the removal of a token in one of them.
    fn reload(&self) -> Result<bool, CredentialError> {
        let before = self.tokens.load_full();
        let (mut tokens, mut failure) = (Vec::with_capacity(self.configured.len()), None);
        for (at, entry) in self.configured.iter().enumerate() {
            tokens.push(entry.credential.tokens().unwrap_or_else(|error| {
                failure.get_or_insert(error);
                before.get(at).cloned().unwrap_or_default()
            }));
        }
        let changed = *before != tokens;
        if changed {
            self.tokens.store(Arc::new(tokens));
        }
        failure.map_or(Ok(changed), Err)
    }

    /// Starts to read the files at an interval, if there are any.
    pub fn follow_files(self: &Arc<Self>, tasks: &Tasks) {
        if self
            .configured
            .iter()
            .any(|entry| entry.credential.token_file.is_some())
        {
            let credentials = Arc::clone(self);
            let reload = reload_tokens("ingest", tasks.drain(), move || credentials.reload());
            tasks.spawn("ingest-tokens", reload);
        }
    }

    fn find(&self, token: Option<&str>, peer: Option<&Peer>) -> Option<&Entry> {
        let digest = token.map(TokenDigest::of);
        let tokens = self.tokens.load();
        let is_found = |(at, entry): &(usize, &Entry)| {
            let Credential {
                token: own,
                token_file,
                certificate,
                ..
            } = &entry.credential;
            let has_token = match (own, token_file) {
                (Some(own), _) => token.is_some_and(|token| equal_in_constant_time(token, own.expose())),
                (None, Some(_)) => {
                    let valid = tokens.get(*at).and_then(Option::as_ref);
                    let digest = digest.as_ref();
                    digest.is_some_and(|digest| valid.is_some_and(|valid| valid.iter().any(|own| own.is_same(digest))))
                }
                (None, None) => true,
            };
            let is_named = |name: &String| peer.is_some_and(|peer| peer.is_named(name));
            has_token && certificate.as_ref().is_none_or(is_named)
        };
        self.configured
            .iter()
            .enumerate()
            .find(is_found)
            .map(|(_, entry)| entry)
    }
}

/// The authenticated backend.
#[derive(Clone)]
pub(super) struct Backend {
    pub(super) name: Arc<str>,
    pub(super) topics: Vec<String>,
}

pub(super) async fn authenticate(
    State(credentials): State<Arc<Credentials>>,
    mut request: Request,
    next: Next,
) -> Response {
    let token = http::bearer(request.headers());
    let peer = request.extensions().get::<Peer>();
    let entry = credentials.find(token, peer);
    let has_token = token.is_some();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match entry {
        None => reject(has_token),
        Some(Entry { credential, limit }) => {
            let rate = credential.rate;
            match rate.map_or(Ok(()), |rate| limit.admit(rate, Instant::now())) {
                Err(wait) => rate_limited(&credential.name, wait).into_response(),
                Ok(()) => {
                    let backend = Backend {
                        name: credential.name.as_str().into(),
                        topics: credential.topics.clone(),
                    };
                    request.extensions_mut().insert(backend);
                    next.run(request).await
                }
            }
        }
    };
    // A client beyond its rate is only counted: the limit protects the log of the process too.
    let is_logged = response.status() != StatusCode::TOO_MANY_REQUESTS;
    Audit {
        listener: "ingest",
        credential: entry.map(|entry| entry.credential.name.as_str()),
        method: &method,
        path: &path,
        status: response.status(),
    }
    .record(is_logged, if path.ends_with("/deletions") { DELETIONS } else { PATH });
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
            token: token.map(Secret::new),
            certificate: certificate.map(str::to_owned),
            ..Credential::with_token("backend", Secret::new(""), vec!["*".to_owned()])
        }
    }

    fn is_found(credential: Credential, token: Option<&str>) -> bool {
        let credentials = Credentials::load(&[credential], true).unwrap();
        credentials.find(token, None).is_some()
    }

    #[test]
    fn credential_needs_a_token_or_a_verified_certificate() {
        assert!(credential(Some("a token"), None).check(false).is_ok());
        assert!(credential(None, Some("backend.test")).check(true).is_ok());
        assert!(credential(Some("a token"), Some("backend.test")).check(true).is_ok());
        let two_tokens = Credential {
            token_file: Some("tokens".into()),
            ..credential(Some("a token"), None)
        };
        for (credential, has_client_ca, expected) in [
            (credential(None, None), true, "neither token nor certificate"),
            (credential(Some(""), None), false, "empty token"),
            (
                credential(None, Some("backend.test")),
                false,
                "set ingest.tls.client_ca",
            ),
            (two_tokens, false, "both token and token_file"),
        ] {
            let error = credential.check(has_client_ca).unwrap_err().to_string();
            assert!(error.contains("`backend`") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn token_alone_does_not_replace_a_certificate() {
        assert!(is_found(credential(Some("a token"), None), Some("a token")));
        assert!(!is_found(credential(Some("a token"), None), Some("a tokem")));
        assert!(!is_found(credential(Some("a token"), None), None));
        assert!(!is_found(
            credential(Some("a token"), Some("backend.test")),
            Some("a token")
        ));
        assert!(!is_found(credential(None, Some("backend.test")), Some("a token")));
    }

    #[test]
    fn changed_file_adds_and_removes_tokens() {
        let [file, other] = ["tokens", "other"]
            .map(|name| std::env::temp_dir().join(format!("trunkline-ingest-{name}-{}", std::process::id())));
        let [first, second] = ["first-token-0123456789", "second-token-0123456789"];
        let write = |file: &PathBuf, text: &str| std::fs::write(file, text).unwrap();
        let configured = [&file, &other].map(|file| Credential {
            token_file: Some(file.clone()),
            ..credential(None, None)
        });
        write(&file, first);
        write(&other, "other-token-0123456789");
        let credentials = Credentials::load(&configured, false).unwrap();
        let valid = || [first, second].map(|token| credentials.find(Some(token), None).is_some());
        assert_eq!(valid(), [true, false]);
        assert!(!credentials.reload().unwrap(), "nothing changed");
        write(&file, &format!("{second}\n# until Monday\n{first}\n"));
        assert!(credentials.reload().unwrap());
        assert_eq!(valid(), [true, true]);
        write(&file, "short");
        let error = credentials.reload().unwrap_err().to_string();
        assert!(
            error.contains("`backend`") && error.contains("shorter than 16"),
            "{error}"
        );
        assert_eq!(valid(), [true, true], "an unusable file changes nothing");
        // The unusable file of another credential does not delay the removal of a token.
        write(&file, second);
        std::fs::remove_file(&other).unwrap();
        assert!(credentials.reload().is_err());
        assert_eq!(valid(), [false, true]);
        std::fs::remove_file(&file).unwrap();
        assert!(Credentials::load(&configured, false).is_err());
    }
}
