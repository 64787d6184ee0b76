//! The most recent idempotency keys of an HTTP source, in the form in which they are stored with its position.
//!
//! Only hashes are stored. Entries therefore have a fixed size, and neither keys nor bodies reach the positions topic.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;

/// Number of idempotency keys that are kept. All kept keys are written with each position.
pub const RECENT_MAX: usize = 256;

/// The first 128 bits of a SHA-256 digest. The hash must be collision resistant, because backends choose its input: one
/// backend must not be able to construct a key that collides with another backend's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Hash(u128);

impl Hash {
    fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part);
        }
        let digest: [u8; 32] = hasher.finalize().into();
        Hash(u128::from_be_bytes(
            *digest.first_chunk().expect("32 bytes begin with 16"),
        ))
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        format!("{:032x}", hash.0)
    }
}

impl TryFrom<String> for Hash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hash = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        hash.map(Hash)
            .ok_or_else(|| format!("{text:?} is not a hash of 32 hexadecimal digits"))
    }
}

/// What was stored for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its position.
    pub position: u64,
    /// Its number of changes.
    pub changes: u32,
}

/// Identifies a request with an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Hash of credential name and key.
    key: Hash,
    /// Hash of the body.
    body: Hash,
}

impl Fingerprint {
    /// The fingerprint of a request. The same key with another credential is another key.
    pub fn new(credential: &str, key: &str, body: &[u8]) -> Self {
        let length = u64::try_from(credential.len()).unwrap_or(u64::MAX).to_be_bytes();
        Fingerprint {
            key: Hash::of(&[&length, credential.as_bytes(), key.as_bytes()]),
            body: Hash::of(&[body]),
        }
    }
}

/// A stored request: hashes of key and body, its position and its number of changes. A JSON array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(Hash, Hash, u64, u32);

/// A remembered key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remembered {
    /// The key was used with the same body, which is stored.
    SameBody(Receipt),
    /// The key was used with another body.
    OtherBody,
}

/// The most recent keys, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Recent(VecDeque<Entry>);

impl Recent {
    pub(super) fn find(&self, request: &Fingerprint) -> Option<Remembered> {
        let Entry(_, body, position, changes) = *self.0.iter().find(|entry| entry.0 == request.key)?;
        Some(if body == request.body {
            Remembered::SameBody(Receipt { position, changes })
        } else {
            Remembered::OtherBody
        })
    }

    pub(super) fn push(&mut self, request: Fingerprint, receipt: Receipt) {
        if self.0.len() >= RECENT_MAX {
            self.0.pop_front();
        }
        let entry = Entry(request.key, request.body, receipt.position, receipt.changes);
        self.0.push_back(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIPT: Receipt = Receipt {
        position: 7,
        changes: 2,
    };

    #[test]
    fn a_key_is_scoped_by_credential_and_bound_to_its_body() {
        let mut recent = Recent::default();
        recent.push(Fingerprint::new("shop", "k1", b"body"), RECEIPT);
        let find = |credential, key, body: &[u8]| recent.find(&Fingerprint::new(credential, key, body));
        assert_eq!(find("shop", "k1", b"body"), Some(Remembered::SameBody(RECEIPT)));
        assert_eq!(find("shop", "k1", b"body "), Some(Remembered::OtherBody));
        assert_eq!(find("shop", "k2", b"body"), None);
        assert_eq!(find("till", "k1", b"body"), None);
        // The length prefix separates the name and the key.
        assert_eq!(find("sho", "pk1", b"body"), None);
    }

    #[test]
    fn the_oldest_key_is_forgotten() {
        let mut recent = Recent::default();
        let request = |n: usize| Fingerprint::new("shop", &n.to_string(), b"");
        for n in 0..=RECENT_MAX {
            recent.push(request(n), RECEIPT);
        }
        assert_eq!(recent.0.len(), RECENT_MAX);
        assert_eq!(recent.find(&request(0)), None);
        assert!(recent.find(&request(1)).is_some() && recent.find(&request(RECENT_MAX)).is_some());
    }

    #[test]
    fn json_round_trips_and_contains_no_key() {
        let mut recent = Recent::default();
        recent.push(Fingerprint::new("shop", "k1", b"body"), RECEIPT);
        let json = serde_json::to_string(&recent).unwrap();
        // `printf '\0\0\0\0\0\0\0\4shopk1' | sha256sum`, and `printf body | sha256sum`
        let expected = r#"[["7ca360cc85b08580bf847795ca68b5b9","230d8358dc8e8890b4c58deeb62912ee",7,2]]"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Recent>(&json).unwrap(), recent);
        for broken in [r#"[["7","7",7,2]]"#, r#"[["k1"]]"#, r#"["k1"]"#] {
            assert!(serde_json::from_str::<Recent>(broken).is_err(), "{broken}");
        }
    }
}
