//! Tokens for development and tests: signed with a key that is stored on this machine, or with the shared secret of a
//! configured issuer.
//!
//! A token of a [`DevKey`] is accepted only by an edge that is configured with [`DevKey::issuer`] of the same key. Its
//! issuer is [`DEV_ISSUER`], which `trunkline run` rejects ([`reject_development_issuer`]), so such a key cannot be used in
//! production by accident.

use super::cursor_keys::{KeysError, random, read_or_create};
use crate::config::{Algorithm, Config, ConfigError, IssuerConfig};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value};
use service::Secret;
use std::path::{Path, PathBuf};

/// `iss` of development tokens.
pub const DEV_ISSUER: &str = "https://dev.trunkline.invalid/";
/// Default audience of development tokens.
pub const DEV_AUDIENCE: &str = "trunkline-dev";
/// Alias of the development issuer in principals.
pub const DEV_ALIAS: &str = "dev";
/// File of the development key, in the data directory of `trunkline dev`.
pub const DEV_KEY_FILE: &str = "dev-token.key";

/// A key that signs development tokens.
pub struct DevKey {
    algorithm: Algorithm,
    kid: String,
    secret: Vec<u8>,
    path: PathBuf,
}

/// Contents of a token to sign.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenRequest {
    /// Subject (`sub`).
    pub subject: String,
    /// Audience (`aud`).
    pub audience: String,
    /// Other claims.
    pub claims: Map<String, Value>,
    /// Time until the token expires, in seconds; at least 1.
    pub expires_in_s: i64,
}

/// Why a token cannot be signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The key cannot be loaded.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The claim is one that has its own option.
    #[error("claim {0:?} cannot be set with --claim; use --sub, --audience or --expires-in")]
    Reserved(String),
    /// The claim is not `NAME=VALUE`.
    #[error("claim {0:?} is not NAME=VALUE; for example, use --claim store=7 or --claim 'stores=[\"7\",\"8\"]'")]
    Claim(String),
    /// The request or the issuer is invalid.
    #[error("{0}")]
    Request(&'static str),
    /// Signing failed.
    #[error("cannot sign the token with {signer}")]
    Sign {
        /// File of the key, or issuer of the shared secret.
        signer: String,
        /// Error of the JWT library.
        #[source]
        source: jsonwebtoken::errors::Error,
    },
}

/// Parses a claim `NAME=VALUE`. The value is parsed as JSON if it is valid JSON, else it is a string.
///
/// # Errors
/// [`TokenError::Claim`] if the name or `=` is missing.
pub fn parse_claim(text: &str) -> Result<(String, Value), TokenError> {
    let (name, value) = text.split_once('=').ok_or_else(|| TokenError::Claim(text.into()))?;
    if name.is_empty() {
        return Err(TokenError::Claim(text.into()));
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}

/// Rejects a configuration that is only safe in development: development tokens, or a generated cursor key. For
/// `trunkline run`.
///
/// # Errors
/// The field to change.
pub fn reject_development_issuer(config: &Config) -> Result<(), ConfigError> {
    for (index, issuer) in config.issuers.iter().enumerate() {
        if issuer.issuer == DEV_ISSUER {
            let problem = "is the issuer of development tokens, which everyone with access to the data directory of \
                           `trunkline dev` can sign; set the issuer of your identity provider";
            return Err(ConfigError::new(format!("issuers[{index}].issuer"), problem));
        }
    }
    if config.cursor_keys.is_empty() {
        let problem = "is empty, but all edges need the same key; add [[edge.cursor_keys]] with id = 1 and secret = \
                       \"${env:…}\" (32 bytes, `openssl rand -base64 32`)";
        return Err(ConfigError::new("cursor_keys", problem));
    }
    Ok(())
}

impl DevKey {
    /// Loads the key in `dir`, or generates one if there is none. An existing key keeps its algorithm.
    ///
    /// # Errors
    /// The file that cannot be used; [`TokenError::Request`] if the algorithm is neither `HS256` nor `EdDSA`.
    pub fn open(dir: &Path, algorithm: Algorithm) -> Result<Self, TokenError> {
        let path = dir.join(DEV_KEY_FILE);
        let generate = || match algorithm {
            Algorithm::HS256 => random::<32>().to_vec(),
            _ => ed25519(),
        };
        if !matches!(algorithm, Algorithm::HS256 | Algorithm::EdDSA) {
            return Err(TokenError::Request("a development key must be HS256 or EdDSA"));
        }
        let text = read_or_create(&path, || {
            format!("{}:{}", algorithm.name(), STANDARD.encode(generate()))
        })?;
        let damaged = || KeysError::Damaged { path: path.clone() };
        let (name, secret) = text.trim().split_once(':').ok_or_else(damaged)?;
        let algorithm = Algorithm::from_name(name).ok_or_else(damaged)?;
        let secret = STANDARD.decode(secret).map_err(|_| damaged())?;
        let usable = match algorithm {
            Algorithm::HS256 => secret.len() >= 32,
            Algorithm::EdDSA => Ed25519KeyPair::from_pkcs8(&secret).is_ok(),
            Algorithm::RS256 | Algorithm::ES256 => false,
        };
        if !usable {
            return Err(damaged().into());
        }
        Ok(DevKey {
            algorithm,
            kid: "dev".into(),
            secret,
            path,
        })
    }

    /// Configuration of the issuer that accepts tokens of this key for `audience`.
    pub fn issuer(&self, audience: &str) -> IssuerConfig {
        let mut issuer = IssuerConfig::new(DEV_ALIAS, DEV_ISSUER, audience, &[self.algorithm]);
        let jwk = match self.ed25519_point() {
            Some(point) => serde_json::json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": point}),
            None => serde_json::json!({"kty": "oct", "kid": self.kid, "k": URL_SAFE_NO_PAD.encode(&self.secret)}),
        };
        issuer.jwks = Some(Secret::new(serde_json::json!({ "keys": [jwk] }).to_string()));
        issuer
    }

    /// The public key, base64url-encoded; `None` for a shared secret.
    fn ed25519_point(&self) -> Option<String> {
        let pair = Ed25519KeyPair::from_pkcs8(&self.secret).ok()?;
        let der: PublicKeyX509Der<'_> = pair.public_key().as_der().ok()?;
        // The DER encoding ends with the 32 bytes of the key (RFC 8410, 4).
        der.as_ref()
            .last_chunk::<32>()
            .map(|point| URL_SAFE_NO_PAD.encode(point))
    }

    /// Signs a token that is issued at `now_s` (seconds since the epoch).
    ///
    /// # Errors
    /// What is invalid in the request.
    pub fn sign(&self, request: &TokenRequest, now_s: i64) -> Result<String, TokenError> {
        let (algorithm, key) = match self.algorithm {
            Algorithm::HS256 => (jsonwebtoken::Algorithm::HS256, EncodingKey::from_secret(&self.secret)),
            _ => (jsonwebtoken::Algorithm::EdDSA, EncodingKey::from_ed_der(&self.secret)),
        };
        let mut header = Header::new(algorithm);
        header.kid = Some(self.kid.clone());
        let claims = request.claims(DEV_ISSUER, now_s)?;
        jsonwebtoken::encode(&header, &claims, &key).map_err(|source| TokenError::Sign {
            signer: self.path.display().to_string(),
            source,
        })
    }
}

/// The first issuer whose tokens the edge itself could sign: one with a shared secret and HS256.
///
/// # Errors
/// There is no such issuer.
pub fn signing_issuer(issuers: &[IssuerConfig]) -> Result<&IssuerConfig, TokenError> {
    let can_sign = |issuer: &&IssuerConfig| issuer.secret.is_some() && issuer.algorithms.contains(&Algorithm::HS256);
    issuers.iter().find(can_sign).ok_or(TokenError::Request(
        "no issuer of the edge has a shared `secret` and the algorithm HS256; get a token from one of the configured \
         issuers, because only they have the private keys",
    ))
}

/// Signs a token that is issued at `now_s` (seconds since the epoch) with the shared secret of an issuer.
///
/// # Errors
/// What is invalid in the request, or that the issuer has no shared secret.
pub fn sign_with_secret(issuer: &IssuerConfig, request: &TokenRequest, now_s: i64) -> Result<String, TokenError> {
    let secret = issuer.secret.as_ref().ok_or(TokenError::Request(
        "the issuer has no shared `secret`; choose one with HS256",
    ))?;
    let claims = request.claims(&issuer.issuer, now_s)?;
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    jsonwebtoken::encode(&Header::new(jsonwebtoken::Algorithm::HS256), &claims, &key).map_err(|source| {
        TokenError::Sign {
            signer: format!("the secret of {}", issuer.issuer),
            source,
        }
    })
}

impl TokenRequest {
    /// All claims of the token.
    fn claims(&self, issuer: &str, now_s: i64) -> Result<Map<String, Value>, TokenError> {
        if self.subject.is_empty() {
            return Err(TokenError::Request("the subject is empty; set --sub"));
        }
        if self.expires_in_s < 1 {
            return Err(TokenError::Request(
                "the lifetime is not positive; set --expires-in, for example 1h",
            ));
        }
        let reserved = ["iss", "aud", "sub", "exp", "iat", "nbf"];
        if let Some(name) = self.claims.keys().find(|name| reserved.contains(&name.as_str())) {
            return Err(TokenError::Reserved(name.clone()));
        }
        let mut claims = self.claims.clone();
        claims.insert("iss".into(), issuer.into());
        claims.insert("aud".into(), self.audience.as_str().into());
        claims.insert("sub".into(), self.subject.as_str().into());
        claims.insert("iat".into(), now_s.into());
        claims.insert("exp".into(), now_s.saturating_add(self.expires_in_s).into());
        Ok(claims)
    }
}

fn ed25519() -> Vec<u8> {
    let pair = Ed25519KeyPair::generate().expect("the operating system has a random source");
    pair.to_pkcs8v1()
        .expect("a generated key has a PKCS#8 form")
        .as_ref()
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{AuthError, Authenticator};

    const NOW_S: i64 = 1_732_390_000;

    fn request() -> TokenRequest {
        let claims = [
            parse_claim("store=7").unwrap(),
            parse_claim("teams=[\"a\",\"b\"]").unwrap(),
        ];
        let (subject, audience) = ("42".into(), DEV_AUDIENCE.into());
        TokenRequest {
            subject,
            audience,
            claims: claims.into_iter().collect(),
            expires_in_s: 60,
        }
    }

    #[tokio::test]
    async fn dev_token_is_accepted_by_its_key_only() {
        for algorithm in [Algorithm::HS256, Algorithm::EdDSA] {
            let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let token = DevKey::open(here.path(), algorithm)
                .unwrap()
                .sign(&request(), NOW_S)
                .unwrap();
            let again = DevKey::open(here.path(), algorithm).unwrap();
            let mut issuer = again.issuer(DEV_AUDIENCE);
            issuer.claims = [("team".into(), "teams".into())].into();
            let auth = Authenticator::new(&[issuer]).unwrap();
            let identity = auth.verify(&token, NOW_S * 1_000).await.unwrap();
            assert_eq!(identity.principal.to_string(), "dev:42");
            assert_eq!(identity.claims.get("store"), Some(&Value::from(7)));
            assert_eq!(identity.claims.get("team"), Some(&serde_json::json!(["a", "b"])));
            let other = DevKey::open(there.path(), algorithm).unwrap().issuer(DEV_AUDIENCE);
            let rejected = Authenticator::new(&[other])
                .unwrap()
                .verify(&token, NOW_S * 1_000)
                .await;
            assert_eq!(rejected, Err(AuthError::Signature));
        }
    }

    #[tokio::test]
    async fn shared_secret_issuer_accepts_signed_token() {
        let mut issuer = IssuerConfig::new("demo", "https://demo.invalid/", DEV_AUDIENCE, &[Algorithm::HS256]);
        assert!(
            sign_with_secret(&issuer, &request(), NOW_S)
                .unwrap_err()
                .to_string()
                .contains("`secret`")
        );
        issuer.secret = Some(Secret::new("a secret of more than 32 bytes, as it must be"));
        let other = IssuerConfig::new("other", "https://other.invalid/", DEV_AUDIENCE, &[Algorithm::RS256]);
        let all = [other, issuer.clone()];
        let token = sign_with_secret(signing_issuer(&all).unwrap(), &request(), NOW_S).unwrap();
        let auth = Authenticator::new(&[issuer]).unwrap();
        let identity = auth.verify(&token, NOW_S * 1_000).await.unwrap();
        assert_eq!(identity.principal.to_string(), "demo:42");
    }

    #[test]
    fn invalid_request_names_the_option() {
        let dir = tempfile::tempdir().unwrap();
        let key = DevKey::open(dir.path(), Algorithm::EdDSA).unwrap();
        let mint = |change: fn(&mut TokenRequest)| {
            let mut request = request();
            change(&mut request);
            key.sign(&request, NOW_S).unwrap_err().to_string()
        };
        assert!(mint(|r| r.subject.clear()).contains("--sub"));
        assert!(mint(|r| r.expires_in_s = 0).contains("--expires-in"));
        assert!(mint(|r| drop(r.claims.insert("exp".into(), 1.into()))).contains("\"exp\""));
        for text in ["store", "=7"] {
            assert!(parse_claim(text).unwrap_err().to_string().contains("NAME=VALUE"));
        }
        assert_eq!(parse_claim("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert_eq!(parse_claim("n=7").unwrap().1, Value::from(7));
        std::fs::write(dir.path().join(DEV_KEY_FILE), "EdDSA:AAAA").unwrap();
        assert!(
            DevKey::open(dir.path(), Algorithm::EdDSA)
                .err()
                .unwrap()
                .to_string()
                .contains("move it away")
        );
    }

    #[test]
    fn development_issuer_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let key = DevKey::open(dir.path(), Algorithm::EdDSA).unwrap();
        let config = Config {
            issuers: vec![key.issuer(DEV_AUDIENCE)],
            ..Config::default()
        };
        assert!(
            reject_development_issuer(&config)
                .unwrap_err()
                .to_string()
                .starts_with("edge.issuers[0].issuer")
        );
        let own = IssuerConfig {
            issuer: "https://id.example.com/".into(),
            ..key.issuer(DEV_AUDIENCE)
        };
        let config = Config {
            issuers: vec![own],
            ..Config::default()
        };
        assert!(
            reject_development_issuer(&config)
                .unwrap_err()
                .to_string()
                .starts_with("edge.cursor_keys")
        );
    }
}
