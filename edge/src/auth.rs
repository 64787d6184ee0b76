//! Verifies bearer tokens (JWT) and derives the identity of a request.
//!
//! `jsonwebtoken` verifies signatures; this module selects the key and checks the algorithm, and the times in the
//! claims against an injected clock. The algorithm must be configured for the issuer and match the type of the key, so
//! `none` and the use of a public key as an HMAC secret are impossible. Keys come from the configuration only, never
//! from the token (`jwk`, `jku`,
//! `x5u`). Before the signature is verified, `iss` selects the issuer's keys and no other claim is used.

mod claims;
pub mod cursor_keys;
pub mod dev_token;
mod error;
mod identity;
mod jwks;
mod key_set;

pub use error::AuthError;
pub use identity::Identity;
pub use key_set::{JwksOrigin, KeyError, KeySet};

use crate::config::{Algorithm, ConfigError, IssuerConfig};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jwks::{RefreshPolicy, RemoteKeys};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Maximum bytes of a token. Bounds the work for a request that is not authenticated yet.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

enum Keys {
    Fixed(Arc<KeySet>),
    Remote(Arc<RemoteKeys>),
}

struct Issuer {
    config: IssuerConfig,
    keys: Keys,
}

/// Verifies tokens against the configured issuers.
pub struct Authenticator {
    issuers: Vec<Issuer>,
}

#[derive(serde::Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    crit: Option<Value>,
}

impl Authenticator {
    /// Loads the configured keys of the issuers. Keys behind a URL are fetched by [`Authenticator::run`], or by the first
    /// token that needs them.
    ///
    /// # Errors
    /// The configuration field that is invalid.
    pub fn new(configs: &[IssuerConfig]) -> Result<Self, ConfigError> {
        let issuers = configs.iter().enumerate().map(|(index, config)| {
            let keys = keys_of(config)
                .map_err(|(field, problem)| ConfigError::new(format!("issuers[{index}].{field}"), problem))?;
            Ok(Issuer {
                config: config.clone(),
                keys,
            })
        });
        Ok(Authenticator {
            issuers: issuers.collect::<Result<_, ConfigError>>()?,
        })
    }

    /// Verifies a token at `now_ms` (ms since the epoch). Waits only if the issuer's keys must be fetched.
    ///
    /// # Errors
    /// Why the token is rejected.
    pub async fn verify(&self, token: &str, now_ms: i64) -> Result<Identity, AuthError> {
        let token = ParsedToken::parse(token)?;
        let iss = token.claims.get("iss").and_then(Value::as_str);
        let issuer = self
            .issuers
            .iter()
            .find(|i| Some(i.config.issuer.as_str()) == iss)
            .ok_or(AuthError::Issuer)?;
        if !issuer.config.algorithms.contains(&token.algorithm) {
            return Err(AuthError::Algorithm);
        }
        issuer.verify_signature(&token, now_ms).await?;
        claims::check(&issuer.config, &token.claims, now_ms)
    }

    /// Refreshes fetched keys until `stop` is cancelled.
    pub async fn run(&self, now_ms: impl Fn() -> i64, stop: CancellationToken) {
        let remotes = self.remotes();
        if remotes.is_empty() {
            return stop.cancelled().await;
        }
        loop {
            let mut due = Duration::MAX;
            for remote in &remotes {
                due = due.min(remote.refresh_if_due(now_ms()).await);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(due) => {}
            }
        }
    }

    /// One message for each issuer whose keys are not available. Empty if tokens of all issuers can be verified.
    pub fn problems(&self, now_ms: i64) -> Vec<String> {
        self.remotes().iter().filter_map(|r| r.problem(now_ms)).collect()
    }

    fn remotes(&self) -> Vec<&Arc<RemoteKeys>> {
        self.issuers.iter().filter_map(Issuer::remote).collect()
    }
}

fn keys_of(config: &IssuerConfig) -> Result<Keys, (&'static str, String)> {
    let fixed = |field, set: Result<KeySet, KeyError>| match set {
        Ok(set) if set.algorithms().any(|a| config.algorithms.contains(&a)) => Ok(Keys::Fixed(Arc::new(set))),
        Ok(_) => Err((field, "has no key for the algorithms in `algorithms`".to_owned())),
        Err(e) => Err((field, e.to_string())),
    };
    if let Some(text) = &config.jwks {
        return fixed(
            "jwks",
            KeySet::from_jwks(text.expose().as_bytes(), JwksOrigin::Configured),
        );
    }
    if let Some(text) = &config.pem {
        return fixed("pem", KeySet::from_pem(text.expose().as_bytes()));
    }
    if let Some(text) = &config.secret {
        return fixed("secret", KeySet::from_secret(text.expose().as_bytes()));
    }
    let url = config.jwks_url.as_deref().unwrap_or_default();
    let policy = RefreshPolicy {
        refresh: Duration::from_secs(config.jwks_refresh_s.max(1)),
        interval: Duration::from_secs(config.jwks_interval_s),
        stale: Duration::from_secs(config.jwks_stale_s),
    };
    match RemoteKeys::new(&config.alias, url, config.jwks_insecure_http, policy) {
        Ok(remote) => Ok(Keys::Remote(Arc::new(remote))),
        Err(problem) => Err(("jwks_url", problem)),
    }
}

impl Issuer {
    fn remote(&self) -> Option<&Arc<RemoteKeys>> {
        match &self.keys {
            Keys::Remote(remote) => Some(remote),
            Keys::Fixed(_) => None,
        }
    }

    async fn verify_signature(&self, token: &ParsedToken<'_>, now_ms: i64) -> Result<(), AuthError> {
        let remote = match &self.keys {
            Keys::Fixed(keys) => return token.verify(keys),
            Keys::Remote(remote) => remote,
        };
        let unavailable = || AuthError::KeysUnavailable(self.config.alias.clone());
        let keys = remote.keys(now_ms).await.ok_or_else(unavailable)?;
        match token.verify(&keys) {
            // The issuer may have rotated its key since the last fetch.
            Err(AuthError::UnknownKey) => match remote.newer_than(&keys, now_ms).await {
                Some(newer) => token.verify(&newer),
                None => Err(AuthError::UnknownKey),
            },
            result => result,
        }
    }
}

/// A decoded token whose signature has not been verified.
struct ParsedToken<'t> {
    message: &'t [u8],
    signature: &'t str,
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
}

impl<'t> ParsedToken<'t> {
    fn parse(token: &'t str) -> Result<Self, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Malformed("longer than 8 KiB"));
        }
        let not_three = AuthError::Malformed("not three parts separated by dots");
        let (message, signature) = token.rsplit_once('.').ok_or(not_three.clone())?;
        let (header, payload) = message.split_once('.').ok_or(not_three.clone())?;
        if payload.contains('.') {
            return Err(not_three);
        }
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let header: Option<Header> = decode(header).and_then(|h| serde_json::from_slice(&h).ok());
        let header = header.ok_or(AuthError::Malformed(
            "the header is not a base64url-encoded JSON object with `alg`",
        ))?;
        if header.crit.is_some() {
            return Err(AuthError::Malformed(
                "the header has `crit`, but no extension is supported",
            ));
        }
        let claims = decode(payload).and_then(|p| serde_json::from_slice(&p).ok());
        let claims = claims.ok_or(AuthError::Malformed(
            "the payload is not a base64url-encoded JSON object",
        ))?;
        let algorithm = Algorithm::from_name(&header.alg).ok_or(AuthError::Algorithm)?;
        Ok(ParsedToken {
            message: message.as_bytes(),
            signature,
            algorithm,
            kid: header.kid,
            claims,
        })
    }

    fn verify(&self, keys: &KeySet) -> Result<(), AuthError> {
        let candidates = keys.candidates(self.kid.as_deref(), self.algorithm);
        if candidates.is_empty() {
            return Err(AuthError::UnknownKey);
        }
        let algorithm = match self.algorithm {
            Algorithm::HS256 => jsonwebtoken::Algorithm::HS256,
            Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::EdDSA => jsonwebtoken::Algorithm::EdDSA,
        };
        let matches = |key: &jsonwebtoken::DecodingKey| {
            jsonwebtoken::crypto::verify(self.signature, self.message, key, algorithm).unwrap_or(false)
        };
        if candidates.into_iter().any(matches) {
            Ok(())
        } else {
            Err(AuthError::Signature)
        }
    }
}

#[cfg(test)]
mod tests;
