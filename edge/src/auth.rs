//! Who asks: a bearer token becomes a principal, or a refusal that says why.
//!
//! The library checks signatures; which key may verify which algorithm, and every claim, is decided here against the
//! injected clock.
//! Guarantees: an identity is only made of a token whose signature, issuer, audience and times all hold; the
//! algorithm is one that the configuration names for that issuer and that the key's own type allows.
//! Never: `none`; a key taken from the token itself (`jwk`, `jku`, `x5u`); a claim used before the signature held,
//! except `iss`, which only chooses whose keys to try.

mod claims;
mod jwks;
mod keys;

pub use keys::{KeyError, KeySet, Source};

use crate::config::{Algorithm, ConfigError, IssuerConfig};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jwks::{Policy, Remote};
use schemas::ids::Principal;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Bytes of the longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Issuer alias and subject.
    pub principal: Principal,
    /// Its claims, under the names that memberships use.
    pub claims: Map<String, Value>,
    /// When the token ends, leeway included, in ms.
    pub expires_ms: i64,
}

/// Why a token is refused. Its text is for the device's developer: it never holds a key, a claim's value or the list
/// of what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// There is no bearer token.
    #[error("no bearer token; send the header `Authorization: Bearer TOKEN`")]
    Missing,
    /// It is not a signed JWT.
    #[error("not a signed JWT: {0}")]
    Malformed(&'static str),
    /// The algorithm is not accepted for this issuer.
    #[error("signature algorithm is not accepted for this issuer; sign with one that the edge's configuration names")]
    Algorithm,
    /// No configured issuer has this `iss`.
    #[error("issuer (`iss`) is not accepted here; get the token from an issuer that the edge's configuration names")]
    Issuer,
    /// No key of the issuer has this id.
    #[error("no key of the issuer has the token's key id (`kid`); get a new token")]
    UnknownKey,
    /// The signature is wrong.
    #[error("signature is not valid; get a new token")]
    Signature,
    /// It has expired.
    #[error("token has expired; get a new one")]
    Expired,
    /// It is not valid yet.
    #[error("token is not valid yet (`{0}` lies in the future); check the issuer's and the device's clock")]
    Early(&'static str),
    /// It was issued too long ago.
    #[error("token was issued too long ago for this edge; get a new one")]
    Old,
    /// A claim is missing or of the wrong type.
    #[error("claim `{0}` is missing or malformed; have the issuer put it into the token")]
    Claim(String),
    /// It is meant for another audience.
    #[error("token is for another audience (`aud`); ask the issuer for one for this service")]
    Audience,
    /// The issuer's keys could not be fetched yet, or for too long.
    #[error("keys of issuer {0} cannot be fetched at the moment; try again shortly")]
    KeysUnavailable(String),
}

enum Keys {
    Fixed(Arc<KeySet>),
    Remote(Arc<Remote>),
}

struct Issuer {
    config: IssuerConfig,
    keys: Keys,
}

/// Checks tokens against the configured issuers.
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
    /// Reads the issuers' configured keys; fetched ones are fetched by [`Authenticator::run`] or when first needed.
    ///
    /// # Errors
    /// The field that is wrong.
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

    /// Checks a token at a time (ms since the epoch). Waits only when the issuer's keys must be fetched first.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn verify(&self, token: &str, now_ms: i64) -> Result<Identity, AuthError> {
        let parts = Parts::split(token)?;
        let iss = parts.claims.get("iss").and_then(Value::as_str);
        let issuer = self
            .issuers
            .iter()
            .find(|i| Some(i.config.issuer.as_str()) == iss)
            .ok_or(AuthError::Issuer)?;
        if !issuer.config.algorithms.contains(&parts.algorithm) {
            return Err(AuthError::Algorithm);
        }
        issuer.verify_signature(&parts, now_ms).await?;
        claims::check(&issuer.config, &parts.claims, now_ms)
    }

    /// Keeps fetched keys fresh until `stop`; returns then.
    pub async fn run(&self, now_ms: impl Fn() -> i64, stop: CancellationToken) {
        let remotes = self.remotes();
        if remotes.is_empty() {
            return stop.cancelled().await;
        }
        loop {
            let mut due = Duration::MAX;
            for remote in &remotes {
                due = due.min(remote.keep_fresh(now_ms()).await);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(due) => {}
            }
        }
    }

    /// What is wrong with fetched keys, a line an issuer; empty when every issuer's tokens can be checked.
    pub fn problems(&self, now_ms: i64) -> Vec<String> {
        self.remotes().iter().filter_map(|r| r.problem(now_ms)).collect()
    }

    fn remotes(&self) -> Vec<&Arc<Remote>> {
        self.issuers.iter().filter_map(Issuer::remote).collect()
    }
}

fn keys_of(config: &IssuerConfig) -> Result<Keys, (&'static str, String)> {
    let fixed = |field, set: Result<KeySet, KeyError>| match set {
        Ok(set) if set.algorithms().any(|a| config.algorithms.contains(&a)) => Ok(Keys::Fixed(Arc::new(set))),
        Ok(_) => Err((
            field,
            "holds no key for the algorithms that `algorithms` names".to_owned(),
        )),
        Err(e) => Err((field, e.to_string())),
    };
    if let Some(text) = &config.jwks {
        return fixed("jwks", KeySet::from_jwks(text.expose().as_bytes(), Source::Inline));
    }
    if let Some(text) = &config.pem {
        return fixed("pem", KeySet::from_pem(text.expose().as_bytes()));
    }
    if let Some(text) = &config.secret {
        return fixed("secret", KeySet::from_secret(text.expose().as_bytes()));
    }
    let url = config.jwks_url.as_deref().unwrap_or_default();
    let policy = Policy {
        refresh: Duration::from_secs(config.jwks_refresh_s.max(1)),
        interval: Duration::from_secs(config.jwks_interval_s),
        stale: Duration::from_secs(config.jwks_stale_s),
    };
    match Remote::new(&config.alias, url, config.jwks_insecure_http, policy) {
        Ok(remote) => Ok(Keys::Remote(Arc::new(remote))),
        Err(problem) => Err(("jwks_url", problem)),
    }
}

impl Issuer {
    fn remote(&self) -> Option<&Arc<Remote>> {
        match &self.keys {
            Keys::Remote(remote) => Some(remote),
            Keys::Fixed(_) => None,
        }
    }

    async fn verify_signature(&self, parts: &Parts<'_>, now_ms: i64) -> Result<(), AuthError> {
        let remote = match &self.keys {
            Keys::Fixed(keys) => return parts.verify(keys),
            Keys::Remote(remote) => remote,
        };
        let unavailable = || AuthError::KeysUnavailable(self.config.alias.clone());
        let keys = remote.keys(now_ms).await.ok_or_else(unavailable)?;
        match parts.verify(&keys) {
            // The issuer may have begun to sign with a new key since its keys were fetched.
            Err(AuthError::UnknownKey) => match remote.newer_than(&keys, now_ms).await {
                Some(newer) => parts.verify(&newer),
                None => Err(AuthError::UnknownKey),
            },
            done => done,
        }
    }
}

/// A token taken apart; nothing of it is trusted yet.
struct Parts<'t> {
    message: &'t [u8],
    signature: &'t str,
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
}

impl<'t> Parts<'t> {
    fn split(token: &'t str) -> Result<Self, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Malformed("it is longer than 8 KiB"));
        }
        let three = AuthError::Malformed("it has not three parts divided by dots");
        let (message, signature) = token.rsplit_once('.').ok_or(three.clone())?;
        let (header, payload) = message.split_once('.').ok_or(three.clone())?;
        if payload.contains('.') {
            return Err(three);
        }
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let header: Option<Header> = decode(header).and_then(|h| serde_json::from_slice(&h).ok());
        let header = header.ok_or(AuthError::Malformed(
            "its header is not base64url of a JSON object with `alg`",
        ))?;
        if header.crit.is_some() {
            return Err(AuthError::Malformed(
                "its header has `crit`, and no extension is understood",
            ));
        }
        let claims = decode(payload).and_then(|p| serde_json::from_slice(&p).ok());
        let claims = claims.ok_or(AuthError::Malformed("its payload is not base64url of a JSON object"))?;
        let algorithm = Algorithm::from_name(&header.alg).ok_or(AuthError::Algorithm)?;
        Ok(Parts {
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
        let holds = |key: &jsonwebtoken::DecodingKey| {
            jsonwebtoken::crypto::verify(self.signature, self.message, key, algorithm).unwrap_or(false)
        };
        if candidates.into_iter().any(holds) {
            Ok(())
        } else {
            Err(AuthError::Signature)
        }
    }
}

#[cfg(test)]
mod tests;
