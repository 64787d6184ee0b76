//! An issuer's keys: from a JWKS document, a PEM text or a shared secret.
//!
//! Guarantees: a key verifies only the algorithm that its type and its own `alg` allow; a document that holds keys of
//! other kinds beside usable ones is read for the usable ones.
//! Never: a shared secret from a fetched document; a private key where a public one belongs.

use crate::config::Algorithm;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};

/// Keys read from one document, at most.
const KEYS_MAX: usize = 64;
/// Bytes of the smallest RSA modulus that is accepted: 2048 bits.
const RSA_BYTES_MIN: usize = 256;
/// Bytes of the shortest shared secret: the hash's size (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// Bytes of an uncompressed point on P-256.
const P256_POINT: usize = 65;

/// A key with what it may verify.
#[derive(Debug)]
pub struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// The keys of an issuer.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// Whether a document came over the network or from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Fetched: shared secrets in it are passed over.
    Fetched,
    /// Configured.
    Inline,
}

/// Why keys cannot be used. The text never holds key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not a JWKS document.
    #[error("is not a JWKS document ({{\"keys\":[…]}}): {0}")]
    Document(String),
    /// The document holds no key that could verify a token.
    #[error("holds no usable signing key (RSA of 2048 bits or more, P-256, Ed25519); passed over: {passed_over}")]
    NoKey {
        /// Why each of the first few was passed over.
        passed_over: String,
    },
    /// The text is not a public key in PEM.
    #[error("is not a public key in PEM (RSA of 2048 bits or more, P-256 or Ed25519)")]
    Pem,
    /// A private key was given.
    #[error("holds a private key; an edge needs the public one only (`openssl pkey -pubout`)")]
    Private,
    /// The shared secret is too short to be one.
    #[error("has {0} bytes; HS256 needs at least {SECRET_BYTES_MIN}: make one with `openssl rand -base64 32`")]
    Short(usize),
}

impl KeySet {
    /// Reads a JWKS document.
    ///
    /// # Errors
    /// When it is none, or holds no usable key.
    pub fn from_jwks(text: &[u8], source: Source) -> Result<Self, KeyError> {
        #[derive(serde::Deserialize)]
        struct Document {
            keys: Vec<serde_json::Value>,
        }
        let document: Document = serde_json::from_slice(text).map_err(|e| KeyError::Document(e.to_string()))?;
        let (mut keys, mut passed_over) = (Vec::new(), Vec::new());
        for value in document.keys.into_iter().take(KEYS_MAX) {
            match serde_json::from_value::<Jwk>(value)
                .map_err(|_| "not a key")
                .and_then(|jwk| from_jwk(&jwk, source))
            {
                Ok(key) => keys.push(key),
                Err(why) => passed_over.push(why),
            }
        }
        if keys.is_empty() {
            passed_over.truncate(4);
            let passed_over = if passed_over.is_empty() {
                "none".into()
            } else {
                passed_over.join(", ")
            };
            return Err(KeyError::NoKey { passed_over });
        }
        Ok(KeySet { keys })
    }

    /// Reads a public key in PEM.
    ///
    /// # Errors
    /// When it is none, or a private one.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        if text.windows(12).any(|w| w == b" PRIVATE KEY".as_slice()) {
            return Err(KeyError::Private);
        }
        let size = |key: &DecodingKey| key.try_get_as_bytes().map_or(0, <[u8]>::len);
        let rsa = DecodingKey::from_rsa_pem(text)
            .ok()
            .filter(|k| size(k) >= RSA_BYTES_MIN);
        let ec = || DecodingKey::from_ec_pem(text).ok().filter(|k| size(k) == P256_POINT);
        let ed = || DecodingKey::from_ed_pem(text).ok();
        let found = rsa.map(|k| (Algorithm::RS256, k));
        let found = found.or_else(|| ec().map(|k| (Algorithm::ES256, k)));
        let found = found.or_else(|| ed().map(|k| (Algorithm::EdDSA, k)));
        let (algorithm, key) = found.ok_or(KeyError::Pem)?;
        Ok(KeySet {
            keys: vec![Key {
                kid: None,
                algorithm,
                key,
            }],
        })
    }

    /// Takes a shared secret's bytes.
    ///
    /// # Errors
    /// When it is too short.
    pub fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(KeyError::Short(secret.len()));
        }
        let key = DecodingKey::from_secret(secret);
        Ok(KeySet {
            keys: vec![Key {
                kid: None,
                algorithm: Algorithm::HS256,
                key,
            }],
        })
    }

    /// The keys that a token with this header may have been signed by: those of its key id; without one of that id,
    /// those that have none.
    pub fn candidates(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<&DecodingKey> {
        let named = |key: &&Key| kid.is_none() || key.kid.as_deref() == kid;
        let mut found: Vec<&Key> = self.keys.iter().filter(named).collect();
        if found.is_empty() {
            found = self.keys.iter().filter(|key| key.kid.is_none()).collect();
        }
        found
            .into_iter()
            .filter(|key| key.algorithm == algorithm)
            .map(|key| &key.key)
            .collect()
    }

    /// The algorithms that these keys verify.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> + '_ {
        self.keys.iter().map(|key| key.algorithm)
    }
}

fn from_jwk(jwk: &Jwk, source: Source) -> Result<Key, &'static str> {
    let common = &jwk.common;
    if common
        .public_key_use
        .as_ref()
        .is_some_and(|u| *u != PublicKeyUse::Signature)
    {
        return Err("a key that is not for signatures");
    }
    if common
        .key_operations
        .as_ref()
        .is_some_and(|ops| !ops.contains(&KeyOperations::Verify))
    {
        return Err("a key that is not for verifying");
    }
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => {
            let bytes = URL_SAFE_NO_PAD
                .decode(&rsa.n)
                .map_err(|_| "an RSA key whose modulus is not base64url")?;
            if bytes.iter().skip_while(|b| **b == 0).count() < RSA_BYTES_MIN {
                return Err("an RSA key below 2048 bits");
            }
            (Algorithm::RS256, KeyAlgorithm::RS256)
        }
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            let coordinate = |text: &str| URL_SAFE_NO_PAD.decode(text).is_ok_and(|b| b.len() == 32);
            if !coordinate(&ec.x) || !coordinate(&ec.y) {
                return Err("a P-256 key whose coordinates are not 32 bytes of base64url");
            }
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::OctetKey(_) if source == Source::Fetched => return Err("a shared secret in public"),
        AlgorithmParameters::OctetKey(key) => {
            let bytes = URL_SAFE_NO_PAD
                .decode(&key.value)
                .map_err(|_| "an oct key that is not base64url")?;
            if bytes.len() < SECRET_BYTES_MIN {
                return Err("an oct key below 32 bytes");
            }
            (Algorithm::HS256, KeyAlgorithm::HS256)
        }
        _ => return Err("a key of another type or curve"),
    };
    if common.key_algorithm.is_some_and(|alg| alg != named) {
        return Err("a key for another algorithm");
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|_| "a malformed key")?;
    Ok(Key {
        kid: common.key_id.clone(),
        algorithm,
        key,
    })
}
