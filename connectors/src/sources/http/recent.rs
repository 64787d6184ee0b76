//! The most recent idempotency keys of an HTTP source, in the form in which they are stored with its position.
//!
//! Only hashes are stored. Entries therefore have a fixed size, and neither keys nor bodies reach the positions topic. The
//! newest keys are in the moving record, which is written with each commit, and the older ones in the static record, which is
//! written once per [`NEWEST_MAX`] requests.

use crate::source::StaticPart;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;
use std::sync::Arc;

/// Number of idempotency keys that are always kept. The static record then has about 340 KB.
pub const RECENT_MAX: usize = 4_096;
/// Number of idempotency keys in the moving record.
const NEWEST_MAX: usize = 256;

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
#[serde(from = "Vec<Entry>", into = "Vec<Entry>")]
pub(super) struct Recent {
    newest: Vec<Entry>,
    older: Arc<Older>,
}

/// The keys of the static record.
#[derive(Debug, Default, PartialEq, Eq)]
struct Older {
    keys: Vec<Entry>,
    /// The static record, and the hash of its keys.
    json: String,
    revision: String,
}

/// The static record.
#[derive(Serialize, Deserialize)]
struct StaticRecord<'k> {
    v: u32,
    rev: Cow<'k, str>,
    keys: Cow<'k, [Entry]>,
}

/// Format of the static record.
const FORMAT: u32 = 1;

impl Older {
    fn new(keys: Vec<Entry>) -> Self {
        let revision: String = Hash::of(&[&serde_json::to_vec(&keys).unwrap_or_default()]).into();
        let record = StaticRecord {
            v: FORMAT,
            rev: Cow::Borrowed(&revision),
            keys: Cow::Borrowed(&keys),
        };
        let json = serde_json::to_string(&record).expect("numbers and strings always serialize");
        Self { keys, json, revision }
    }
}

impl From<Vec<Entry>> for Recent {
    fn from(newest: Vec<Entry>) -> Self {
        let older = Arc::default();
        Self { newest, older }
    }
}

impl From<Recent> for Vec<Entry> {
    fn from(recent: Recent) -> Self {
        recent.newest
    }
}

impl Recent {
    pub(super) fn find(&self, request: &Fingerprint) -> Option<Remembered> {
        let mut all = self.newest.iter().rev().chain(&self.older.keys);
        let Entry(_, body, position, changes) = *all.find(|entry| entry.0 == request.key)?;
        Some(if body == request.body {
            Remembered::SameBody(Receipt { position, changes })
        } else {
            Remembered::OtherBody
        })
    }

    pub(super) fn push(&mut self, request: Fingerprint, receipt: Receipt) {
        if self.newest.len() >= NEWEST_MAX {
            let excess = (self.older.keys.len() + self.newest.len()).saturating_sub(RECENT_MAX);
            let kept = self.older.keys.iter().skip(excess).copied();
            self.older = Arc::new(Older::new(kept.chain(self.newest.drain(..)).collect()));
        }
        let entry = Entry(request.key, request.body, receipt.position, receipt.changes);
        self.newest.push(entry);
    }

    /// Revision and JSON of the static record; `None` if there are no older keys.
    pub(super) fn static_part(&self) -> Option<StaticPart<'_>> {
        let Older { keys, json, revision } = &*self.older;
        (!keys.is_empty()).then_some(StaticPart { revision, json })
    }

    /// Adds the keys of the stored static record, which must have the revision that the moving record names.
    pub(super) fn with_static(mut self, json: Option<&str>, revision: Option<&str>) -> Result<Self, String> {
        let Some(revision) = revision else { return Ok(self) };
        let json = json.ok_or_else(|| format!("its static record with revision {revision} is missing"))?;
        let record: StaticRecord<'_> = serde_json::from_str(json).map_err(|e| e.to_string())?;
        if record.v != FORMAT || record.rev != revision {
            return Err(format!(
                "its static record has format {} and revision {}, but the position names format {FORMAT} and revision {revision}",
                record.v, record.rev
            ));
        }
        self.older = Arc::new(Older::new(record.keys.into_owned()));
        Ok(self)
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
    fn the_oldest_keys_are_forgotten() {
        let mut recent = Recent::default();
        let request = |n: usize| Fingerprint::new("shop", &n.to_string(), b"");
        let count = RECENT_MAX + 3 * NEWEST_MAX;
        for n in 0..count {
            recent.push(request(n), RECEIPT);
            if n % 1_000 == 0 {
                assert!(recent.find(&request(0)).is_some());
            }
        }
        assert_eq!(recent.find(&request(0)), None);
        for n in count - RECENT_MAX..count {
            assert!(recent.find(&request(n)).is_some(), "{n}");
        }
        assert!(recent.newest.len() <= NEWEST_MAX && recent.older.keys.len() <= RECENT_MAX);
    }

    #[test]
    fn older_keys_are_in_the_static_record() {
        let mut recent = Recent::default();
        let request = |n: usize| Fingerprint::new("shop", &n.to_string(), b"");
        for n in 0..NEWEST_MAX {
            recent.push(request(n), RECEIPT);
        }
        assert_eq!(recent.static_part(), None);
        recent.push(request(NEWEST_MAX), RECEIPT);
        let StaticPart { revision, json } = recent.static_part().unwrap();
        let moving: Recent = serde_json::from_str(&serde_json::to_string(&recent).unwrap()).unwrap();
        assert_eq!(moving.find(&request(0)), None);
        let restored = moving.clone().with_static(Some(json), Some(revision)).unwrap();
        assert_eq!(restored, recent);
        assert!(restored.find(&request(0)).is_some());
        assert!(moving.clone().with_static(Some(json), Some("another")).is_err());
        assert!(moving.clone().with_static(None, Some(revision)).is_err());
        assert_eq!(moving.clone().with_static(Some(json), None), Ok(moving));
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
