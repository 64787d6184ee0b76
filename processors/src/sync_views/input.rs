//! Reading a change: which row of which table, at which version, and what it begins or ends.
//!
//! Guarantees: everything that a record can say wrongly is an error with the stage at which it was found.
//! Never: decoding the row itself.

use event_log::{Millis, RecordRef};
use schemas::events::Event;
use schemas::headers::{self, Tx};
use schemas::key::{Part, Parts};
use schemas::version::{Lsn, Version};
use std::error::Error as StdError;
use streams::Stage;

/// Prefix of the keys that list deleted rows by age.
pub const GONE: &[u8] = b"[\"gone\",";

/// Prefix of the keys of rows.
const ROW: &[u8] = b"[\"row\",";

/// Prefix of the keys that list what rows lack.
const MISSING: &[u8] = b"[\"missing\",";

/// Digits of a time in such a key: enough until the year 5138.
const GONE_DIGITS: usize = 14;

/// A record that was written before and comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Copied by an operator.
    Replay,
    /// A dead letter that was mended.
    Redrive,
}

/// What a record is.
#[derive(Debug)]
pub enum Kind<'a> {
    /// A row, put or deleted.
    Row(Change<'a>),
    /// All rows of the table are gone.
    Truncate,
    /// A snapshot chunk ends.
    ChunkEnd(ChunkEnd),
}

/// A row, put or deleted.
#[derive(Debug)]
pub struct Change<'a> {
    /// Inside of the row key's JSON array, without the table.
    pub row_key: &'a str,
    /// Key of the row in the state.
    pub state_key: Vec<u8>,
    /// Framed Avro; `None` deletes.
    pub value: Option<&'a [u8]>,
    /// Its part in a change of the row's key.
    pub key_change: KeyChange<'a>,
}

/// Part of a record in a change of a row's key: a tombstone of the old key, and behind it the row under the new key. The
/// source does not send a large unchanged column with the new key either, so the row takes it from the old key's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange<'a> {
    /// The key does not change.
    None,
    /// The tombstone: what was kept of the row is needed for the next record.
    Leaves,
    /// The row under its new key.
    Arrives {
        /// Inside of its old row key's JSON array, without the table.
        from: &'a str,
        /// Version of the tombstone.
        left: Version,
    },
}

/// The end of a snapshot chunk.
#[derive(Debug)]
pub struct ChunkEnd {
    /// Position below which a row that was not in the chunk is gone.
    pub low: u64,
    /// The table's snapshot ends with it.
    pub last: bool,
    from: Option<String>,
    to: Option<String>,
}

/// A record, read.
#[derive(Debug)]
pub struct Input<'a> {
    /// Table or event.
    pub table: &'a str,
    /// Version of what it says.
    pub version: Version,
    /// Whether it ends its source transaction.
    pub last: bool,
    /// Commit time in ms; 0 when unknown.
    pub at_ms: Millis,
    /// Whether it was written before.
    pub again: Option<Again>,
    /// What it is.
    pub kind: Kind<'a>,
}

type Refused = (Stage, Box<dyn StdError>);

impl<'a> Input<'a> {
    /// Reads a record of a line; `event` names the event whose topic it is, and `incarnation` is that topic's.
    pub fn read(record: &RecordRef<'a>, event: Option<&'a str>, incarnation: u32) -> Result<Self, Refused> {
        let again = match record.header(headers::REPLAYED) {
            None => None,
            Some(b"redrive") => Some(Again::Redrive),
            Some(_) => Some(Again::Replay),
        };
        let key = record
            .key()
            .ok_or_else(|| refuse(Stage::KeyConverter, "the key is null"))?;
        let mut parts = Parts::new(key).map_err(|e| (Stage::KeyConverter, e.into()))?;
        if let Some(event) = event {
            let position = u64::try_from(record.offset()).unwrap_or_default();
            let version = match record.header(headers::TX).filter(|_| again.is_some()) {
                Some(tx) => Tx::parse(tx).map_err(|e| (Stage::HeaderConverter, e.into()))?.version(),
                None => Version {
                    incarnation,
                    position,
                    ordinal: 0,
                },
            };
            schemas::key::check(key).map_err(|e| (Stage::KeyConverter, e.into()))?;
            let kind = Kind::Row(row(event, parts.rest(), record.value(), KeyChange::None));
            return Ok(Input {
                table: event,
                version,
                last: true,
                at_ms: record.timestamp(),
                again,
                kind,
            });
        }
        let tx = record
            .header(headers::TX)
            .ok_or_else(|| refuse(Stage::HeaderConverter, "header tx is missing"))?;
        let tx = Tx::parse(tx).map_err(|e| (Stage::HeaderConverter, e.into()))?;
        let first = text(&mut parts)?;
        let (table, kind) = if first == "~chunk" {
            let table = text(&mut parts)?;
            (table, Kind::ChunkEnd(chunk_end(record.value())?))
        } else if parts.rest().is_empty() {
            (first, Kind::Truncate)
        } else {
            schemas::key::check(key).map_err(|e| (Stage::KeyConverter, e.into()))?;
            let key_change = key_change(record, first, tx.version())?;
            (first, Kind::Row(row(first, parts.rest(), record.value(), key_change)))
        };
        let (version, last, at_ms) = (tx.version(), tx.last, tx.at_ms);
        Ok(Input {
            table,
            version,
            last,
            at_ms,
            again,
            kind,
        })
    }
}

fn refuse(stage: Stage, why: &str) -> Refused {
    (stage, why.into())
}

/// A part of the key that names a table; a table's name needs no escape in JSON.
fn text<'a>(parts: &mut Parts<'a>) -> Result<&'a str, Refused> {
    match parts.next() {
        Some(Ok(Part::Str(std::borrow::Cow::Borrowed(text)))) => Ok(text),
        Some(Err(error)) => Err((Stage::KeyConverter, error.into())),
        _ => Err(refuse(
            Stage::KeyConverter,
            "the key does not begin with a table's name",
        )),
    }
}

fn row<'a>(table: &str, row_key: &'a str, value: Option<&'a [u8]>, key_change: KeyChange<'a>) -> Change<'a> {
    Change {
        row_key,
        state_key: state_key(table, row_key),
        value,
        key_change,
    }
}

/// State key of a row.
pub fn state_key(table: &str, row_key: &str) -> Vec<u8> {
    let mut key = table_prefix(table);
    key.extend_from_slice(row_key.as_bytes());
    key.push(b']');
    key
}

fn key_change<'a>(record: &RecordRef<'a>, table: &str, version: Version) -> Result<KeyChange<'a>, Refused> {
    if record.value().is_none() {
        let leaves = record.header(headers::MOVED_TO).is_some();
        return Ok(if leaves { KeyChange::Leaves } else { KeyChange::None });
    }
    let Some(key) = record.header(headers::MOVED_FROM) else {
        return Ok(KeyChange::None);
    };
    let malformed = |e: schemas::key::KeyError| (Stage::HeaderConverter, e.into());
    schemas::key::check(key).map_err(malformed)?;
    let mut parts = Parts::new(key).map_err(malformed)?;
    let same_table = matches!(parts.next(), Some(Ok(Part::Str(of))) if of == table);
    // The tombstone has the ordinal just before, so a row that arrives is never the first of its transaction.
    let ordinal = version
        .ordinal
        .checked_sub(1)
        .filter(|_| same_table && !parts.rest().is_empty());
    let Some(ordinal) = ordinal else {
        let why = "header moved-from does not have the key of the record before it";
        return Err(refuse(Stage::HeaderConverter, why));
    };
    Ok(KeyChange::Arrives {
        from: parts.rest(),
        left: Version { ordinal, ..version },
    })
}

fn chunk_end(value: Option<&[u8]>) -> Result<ChunkEnd, Refused> {
    let value = value.ok_or_else(|| refuse(Stage::ValueConverter, "the end of a chunk has no value"))?;
    let end = schemas::events::ChunkEnd::read(value).map_err(|e| (Stage::ValueConverter, e.into()))?;
    let low = Lsn::from_text(end.low.as_bytes());
    let low = low.ok_or_else(|| refuse(Stage::ValueConverter, "the chunk's low position is not `hex/hex`"))?;
    let (from, to) = (end.from.map(str::to_owned), end.to.map(str::to_owned));
    Ok(ChunkEnd {
        low: low.0,
        last: end.is_final,
        from,
        to,
    })
}

impl ChunkEnd {
    /// Whether a row's key lies in the chunk's range: from (included) to (included).
    pub fn holds(&self, row_key: &str) -> bool {
        let key = format!("[{row_key}]");
        let after = self.from.as_deref().is_none_or(|from| order(from, &key).is_le());
        after && self.to.as_deref().is_none_or(|to| order(&key, to).is_le())
    }
}

/// Orders two keys as their source does: integers, also those written as strings, by value, texts by their bytes.
fn order(a: &str, b: &str) -> std::cmp::Ordering {
    let parts = |key: &str| schemas::key::parts(key.as_bytes()).map(own).unwrap_or_default();
    parts(a).cmp(&parts(b))
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Own {
    Integer(i64),
    Text(String),
}

fn own(parts: Vec<Part<'_>>) -> Vec<Own> {
    let own = |part: &Part<'_>| {
        let mut text = Vec::new();
        schemas::key::KeyWriter::new(&mut text).part(part).finish();
        let text = String::from_utf8_lossy(&text).into_owned();
        let bare = text.trim_matches(|c| matches!(c, '[' | ']' | '"'));
        bare.parse().map_or_else(|_| Own::Text(text.clone()), Own::Integer)
    };
    parts.iter().map(own).collect()
}

/// The table (or event) of a record, as far as its key says.
pub fn table_of<'a>(record: &RecordRef<'a>, event: Option<&'a str>) -> Option<&'a str> {
    match event {
        Some(event) => Some(event),
        None => text(&mut Parts::new(record.key()?).ok()?).ok(),
    }
}

/// Prefix of the state keys of a table's rows.
pub fn table_prefix(table: &str) -> Vec<u8> {
    let mut prefix = ROW.to_vec();
    schemas::json::write_str(&mut prefix, table);
    prefix.push(b',');
    prefix
}

/// The row key in a state key, behind its table's prefix.
pub fn row_key_of(state_key: &[u8], prefix: usize) -> &str {
    let inside = state_key
        .get(prefix..state_key.len().saturating_sub(1))
        .unwrap_or_default();
    std::str::from_utf8(inside).unwrap_or_default()
}

/// The table and the state key of a row, as far as a record's key says.
pub fn row_of<'a>(record: &RecordRef<'a>, event: Option<&'a str>) -> Option<(&'a str, Vec<u8>)> {
    let key = record.key()?;
    schemas::key::check(key).ok()?;
    let mut parts = Parts::new(key).ok()?;
    let table = match event {
        Some(event) => event,
        None => text(&mut parts).ok().filter(|table| !table.starts_with('~'))?,
    };
    let row_key = parts.rest();
    (!row_key.is_empty()).then(|| (table, state_key(table, row_key)))
}

/// Key of what a row lacks.
pub fn missing_key(state_key: &[u8]) -> Vec<u8> {
    [MISSING, state_key.strip_prefix(ROW).unwrap_or_default()].concat()
}

/// The state key of the row that such a key is of.
pub fn missing_row(key: &[u8]) -> Vec<u8> {
    [ROW, key.strip_prefix(MISSING).unwrap_or_default()].concat()
}

/// Prefix of such keys of a table.
pub fn missing_prefix(table: &str) -> Vec<u8> {
    missing_key(&table_prefix(table))
}

/// Key that lists a deleted row by the time of its deletion.
pub fn gone_key(at: Millis, state_key: &[u8]) -> Vec<u8> {
    let mut key = GONE.to_vec();
    key.extend_from_slice(format!("\"{:0GONE_DIGITS$}\",", at.max(0)).as_bytes());
    key.extend_from_slice(state_key.strip_prefix(ROW).unwrap_or_default());
    key
}

/// Time and state key of such a key.
pub fn gone_of(key: &[u8]) -> Option<(Millis, Vec<u8>)> {
    let rest = key.strip_prefix(GONE)?.strip_prefix(b"\"")?;
    let (digits, rest) = rest.split_at_checked(GONE_DIGITS)?;
    let at = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((at, [ROW, rest.strip_prefix(b"\",")?].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_rows_are_listed_by_age() {
        let state_key = b"[\"row\",\"orders\",17]";
        let key = gone_key(1_732_390_000_123, state_key);
        assert_eq!(gone_of(&key), Some((1_732_390_000_123, state_key.to_vec())));
        assert!(gone_key(9, state_key) < gone_key(10, state_key));
    }

    #[test]
    fn keys_of_a_chunk_are_ordered_as_numbers_also_when_they_are_strings() {
        let end = ChunkEnd {
            low: 1,
            last: false,
            from: Some("[\"9\"]".into()),
            to: Some("[\"100\"]".into()),
        };
        let held: Vec<bool> = ["\"8\"", "\"9\"", "\"100\"", "\"101\""]
            .iter()
            .map(|k| end.holds(k))
            .collect();
        assert_eq!(held, [false, true, true, false]);
    }
}
