//! Masks of columns: what is published instead of a value.
//!
//! Values are replaced while a row is encoded, which is the only way into a record. The key of a row is never masked.

use hmac::{Hmac, KeyInit as _, Mac as _};
use service::Secret;
use sha2::Sha256;
use std::fmt::{self, Write as _};

/// Minimum length of a key, in bytes. A shorter one could be found by trying.
pub(super) const KEY_BYTES_MIN: usize = 16;
/// What replaces the hidden part of a value.
const HIDDEN: &str = "***";
/// Number of bytes of a key's fingerprint.
const FINGERPRINT_BYTES: usize = 8;

/// The key of hashes.
#[derive(Clone)]
pub(super) struct HashKey {
    hmac: Hmac<Sha256>,
    /// Identifies the key, and does not reveal it.
    fingerprint: String,
}

impl HashKey {
    /// Checks the length of a key.
    pub(super) fn new(key: &Secret) -> Result<Self, String> {
        let bytes = key.expose().as_bytes();
        if bytes.len() < KEY_BYTES_MIN {
            return Err(format!("mask_key has fewer than {KEY_BYTES_MIN} bytes"));
        }
        let hmac = Hmac::<Sha256>::new_from_slice(bytes).map_err(|error| format!("mask_key: {error}"))?;
        let mut fingerprint = hex(&hmac, b"trunkline mask_key fingerprint");
        fingerprint.truncate(2 * FINGERPRINT_BYTES);
        Ok(HashKey { hmac, fingerprint })
    }
}

fn hex(hmac: &Hmac<Sha256>, text: &[u8]) -> String {
    let mut hmac = hmac.clone();
    hmac.update(text);
    let mut out = String::with_capacity(64);
    for byte in hmac.finalize().into_bytes() {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.fingerprint)
    }
}

impl PartialEq for HashKey {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for HashKey {}

/// A mask with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Masking {
    Null,
    Hash(HashKey),
    Partial,
}

impl Masking {
    /// Identifies the mask: equal values are replaced by equal values if it is equal.
    pub(super) fn fingerprint(&self) -> String {
        match self {
            Masking::Null => String::from("null"),
            Masking::Hash(key) => format!("hash {}", key.fingerprint),
            Masking::Partial => String::from("partial"),
        }
    }

    /// Appends the replacement of a value, given as text. Not for [`Masking::Null`].
    pub(super) fn write(&self, text: &[u8], out: &mut Vec<u8>) {
        match self {
            Masking::Null => {}
            Masking::Hash(key) => out.extend_from_slice(hex(&key.hmac, text).as_bytes()),
            Masking::Partial => out.extend_from_slice(partial(text).as_bytes()),
        }
    }
}

fn partial(text: &[u8]) -> String {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let (name, rest) = match text.rfind('@') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let mut characters = name.chars();
    match (characters.next(), characters.next()) {
        (Some(first), Some(_)) => format!("{first}{HIDDEN}{rest}"),
        _ => format!("{HIDDEN}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "b2eadfbaaca8f7b30b76563378bedc2fe183e5b392a7710ab8166987238c66ef";

    fn masked(masking: &Masking, text: &str) -> String {
        let mut out = Vec::new();
        masking.write(text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn hash_is_the_hmac_of_the_text() {
        let key = HashKey::new(&Secret::new("0123456789abcdef")).unwrap();
        let other = HashKey::new(&Secret::new("0123456789abcdeg")).unwrap();
        assert_ne!(key, other);
        let (masking, other) = (Masking::Hash(key), Masking::Hash(other));
        // printf %s ann@example.org | openssl dgst -sha256 -hmac 0123456789abcdef
        assert_eq!(masked(&masking, "ann@example.org"), HASH);
        assert_ne!(masked(&other, "ann@example.org"), HASH);
        assert_ne!(masking.fingerprint(), other.fingerprint());
        assert!(!format!("{masking:?}").contains("0123456789abcdef"));
        assert!(
            HashKey::new(&Secret::new("short"))
                .unwrap_err()
                .contains("fewer than 16")
        );
    }

    #[test]
    fn partial_mask_shows_one_character() {
        let cases = [
            ("Ann", "A***"),
            ("ann@example.org", "a***@example.org"),
            ("a@example.org", "***@example.org"),
            ("Ä", "***"),
            ("Äb", "Ä***"),
            ("", "***"),
        ];
        for (text, want) in cases {
            assert_eq!(masked(&Masking::Partial, text), want);
        }
    }
}
