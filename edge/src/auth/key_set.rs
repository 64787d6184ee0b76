//! Keys of an issuer, from a JWKS document, a PEM text or a shared secret.
//!
//! A key verifies only the algorithm that its type and its `alg` allow. Keys of other types in a document are skipped.
//! Shared secrets in a fetched document are skipped too, because a public document cannot contain a secret. A private key
//! in PEM is rejected.

use crate::config::Algorithm;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};

/// Maximum keys of one document.
const KEYS_MAX: usize = 64;
/// Minimum bytes of an RSA modulus: 2048 bits.
const RSA_BYTES_MIN: usize = 256;
/// Minimum bytes of a shared secret: the size of the hash (RFC 7518, 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// Bytes of an uncompressed point on P-256.
const P256_POINT: usize = 65;

/// A key and the algorithm that it may verify.
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

/// Where a JWKS document was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwksOrigin {
    /// The document was fetched from the issuer's URL. Symmetric keys in it are ignored.
    Fetched,
    /// The document is part of the configuration.
    Configured,
}

/// Why keys cannot be used. The text contains no key material. It is a predicate whose subject is the name of the
/// configuration field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not a JWKS document.
    #[error("is not a JWKS document ({{\"keys\":[…]}}): {0}")]
    Document(String),
    /// The document has no key that can verify a token.
    #[error("has no usable signing key (RSA of 2048 bits or more, P-256, Ed25519); skipped: {skipped}")]
    NoKey {
        /// Why the first few keys were skipped.
        skipped: String,
    },
    /// The text is not a public key in PEM.
    #[error("is not a public key in PEM (RSA of 2048 bits or more, P-256 or Ed25519)")]
    Pem,
    /// The PEM text is a private key.
    #[error("is a private key; set the public key (`openssl pkey -pubout`)")]
    Private,
    /// The shared secret is too short.
    #[error("has {0} bytes but HS256 requires {SECRET_BYTES_MIN}; generate one with `openssl rand -base64 32`")]
    Short(usize),
}

impl KeySet {
    /// Parses a JWKS document.
    ///
    /// # Errors
    /// The text is not a JWKS document, or has no usable key.
    pub fn from_jwks(text: &[u8], origin: JwksOrigin) -> Result<Self, KeyError> {
        #[derive(serde::Deserialize)]
        struct Document {
            keys: Vec<serde_json::Value>,
        }
        let document: Document = serde_json::from_slice(text).map_err(|e| KeyError::Document(e.to_string()))?;
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for value in document.keys.into_iter().take(KEYS_MAX) {
            match serde_json::from_value::<Jwk>(value)
                .map_err(|_| "not a key")
                .and_then(|jwk| from_jwk(&jwk, origin))
            {
                Ok(key) => keys.push(key),
                Err(reason) => skipped.push(reason),
            }
        }
        if keys.is_empty() {
            skipped.truncate(4);
            let skipped = if skipped.is_empty() {
                "none".into()
            } else {
                skipped.join(", ")
            };
            return Err(KeyError::NoKey { skipped });
        }
        Ok(KeySet { keys })
    }

    /// Parses a public key in PEM.
    ///
    /// # Errors
    /// The text is not a public key in PEM.
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

    /// Creates a set with one shared secret.
    ///
    /// # Errors
    /// The secret is too short.
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

    /// The keys that may have signed a token with this header: those with its key id; if there is none, those without a
    /// key id.
    pub fn candidates(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<&DecodingKey> {
        let matches = |key: &&Key| kid.is_none() || key.kid.as_deref() == kid;
        let mut found: Vec<&Key> = self.keys.iter().filter(matches).collect();
        if found.is_empty() {
            found = self.keys.iter().filter(|key| key.kid.is_none()).collect();
        }
        found
            .into_iter()
            .filter(|key| key.algorithm == algorithm)
            .map(|key| &key.key)
            .collect()
    }

    /// Algorithms of the keys.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> + '_ {
        self.keys.iter().map(|key| key.algorithm)
    }
}

fn from_jwk(jwk: &Jwk, origin: JwksOrigin) -> Result<Key, &'static str> {
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
        return Err("a key that is not for verification");
    }
    let (algorithm, key_algorithm) = match &jwk.algorithm {
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
        AlgorithmParameters::OctetKey(_) if origin == JwksOrigin::Fetched => {
            return Err("a shared secret in a public document");
        }
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
    if common.key_algorithm.is_some_and(|alg| alg != key_algorithm) {
        return Err("a key for another algorithm");
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|_| "a malformed key")?;
    Ok(Key {
        kid: common.key_id.clone(),
        algorithm,
        key,
    })
}
