//! Masks of columns: what is published instead of a value.
//!
//! Values are replaced while a row is encoded, which is the only way into a record. The key of a row is never masked.

use super::check::Declared;
use crate::error::{Error, Result};
use hmac::{Hmac, KeyInit as _, Mac as _};
use service::Secret;
use sha2::Sha256;
use std::fmt::{self, Write as _};
use topology::Mask;

/// Minimum length of a key, in bytes. A shorter one could be found by trying.
const KEY_BYTES_MIN: usize = 16;
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
    fn new(key: &Secret) -> std::result::Result<Self, String> {
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

/// Adds the key to the tables with hashes.
///
/// # Errors
/// [`Error::Rejected`] if a key is required and there is none, or it is too short.
pub(super) fn with_key(connector: &str, tables: Vec<Declared>, key: Option<&Secret>) -> Result<Vec<Declared>> {
    let rejected = |reason: String| Error::Rejected {
        reason: format!("connector {connector}: {reason}"),
        fix: format!(
            "set mask_key in [connectors.{connector}] to \"${{file:PATH}}\" of a file with at least {KEY_BYTES_MIN} random \
             bytes as text, for example from `openssl rand -hex 32`"
        ),
    };
    let key = key.map(HashKey::new).transpose().map_err(rejected)?;
    let with_key = |table: Declared| {
        let hashed = table.masks.iter().find(|(_, mask)| **mask == Mask::Hash);
        match (hashed, &key) {
            (Some((column, _)), None) => Err(rejected(format!(
                "column {column} of table {} is masked with a hash, and mask_key is not set",
                table.name
            ))),
            _ => Ok(Declared {
                hash_key: key.clone(),
                ..table
            }),
        }
    };
    tables.into_iter().map(with_key).collect()
}

impl Declared {
    /// The mask of a column.
    pub(super) fn masking(&self, column: &str) -> Option<Masking> {
        match self.masks.get(column)? {
            Mask::Null => Some(Masking::Null),
            Mask::Partial => Some(Masking::Partial),
            // Without its key the value is hidden completely. A source is not created without the key.
            Mask::Hash => Some(self.hash_key.clone().map_or(Masking::Null, Masking::Hash)),
        }
    }

    /// Whether the values of a column become texts, so that its type in the database does not matter.
    pub(super) fn hides_type(&self, column: &str) -> bool {
        self.masks.contains_key(column)
    }
}

#[cfg(test)]
mod tests {
    use super::super::pgoutput::Value;
    use super::super::rows::{Buffers, Table};
    use super::*;
    use schemas::ids::{SchemaId, SourceName, TableName};
    use schemas::pg_types::{self, Column};
    use schemas::schema::Schema;
    use std::collections::BTreeMap;
    use std::sync::Arc;

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

    #[test]
    fn masked_values_are_in_no_record() {
        let (source, name) = (SourceName::new("shop").unwrap(), TableName::new("users").unwrap());
        let columns = [("id", "int8"), ("email", "text"), ("phone", "text?"), ("name", "text?")];
        let columns: Vec<Column> = columns.iter().map(|(name, ty)| Column::declared(name, ty)).collect();
        let text = pg_types::table_schema(&source, &name, &columns).unwrap();
        let mut declared = Declared::new(name.clone(), columns, None);
        declared.masks = BTreeMap::from([
            (String::from("email"), Mask::Hash),
            (String::from("phone"), Mask::Null),
            (String::from("name"), Mask::Partial),
        ]);
        let missing = with_key("shop", vec![declared.clone()], None).unwrap_err().to_string();
        assert!(
            missing.contains("column email of table users is masked with a hash"),
            "{missing}"
        );
        let declared = with_key("shop", vec![declared], Some(&Secret::new("0123456789abcdef"))).unwrap();
        let table = Table::new(name, Arc::new(Schema::parse(&text).unwrap()), SchemaId(1), vec![0]).unwrap();
        let table = table.masked(|column| declared[0].masking(column));
        let row = |values: &[Value<'_>]| {
            let mut out = Vec::new();
            table.write_value(values, &mut Buffers::default(), &mut out).unwrap();
            String::from_utf8_lossy(&out).into_owned()
        };
        let id = Value::Text(b"7");
        let text = row(&[
            id,
            Value::Text(b"ann@example.org"),
            Value::Text(b"555-1234"),
            Value::Text(b"Zacharias"),
        ]);
        assert!(text.contains(HASH) && text.contains("Z***"), "{text}");
        for secret in ["ann@", "555", "acharias"] {
            assert!(!text.contains(secret), "{text}");
        }
        // Null stays null, and a value that was not sent is named. That of a hidden column is known to be null.
        let text = row(&[id, Value::Unchanged, Value::Unchanged, Value::Null]);
        assert!(
            text.contains("email") && !text.contains("phone") && !text.contains("***"),
            "{text}"
        );
    }
}
