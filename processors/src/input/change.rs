//! Reading a change record: which row of which table, at which version, and which source transaction it ends.
//!
//! If a field cannot be read, the result is a [`RecordError`] with the stage that failed. The row's value is not
//! decoded here.

use super::keys::row_state_key;
use super::loaded::LoadedMark;
use crate::dead_letter::RecordError;
use event_log::{Millis, Offset, RecordRef};
use schemas::events::Event;
use schemas::headers::{self, Tx};
use schemas::key::{Part, Parts};
use schemas::version::{Lsn, Version};
use serde::{Deserialize, Serialize};
use streams::Stage;

/// Why a record was written again; value of the header `replayed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// An operator copied a range of a topic.
    Replay,
    /// A dead letter was written to its original topic again.
    Redrive,
}

/// What a record changes.
#[derive(Debug)]
pub enum Kind<'a> {
    /// A row is put or deleted.
    Row(Change<'a>),
    /// All rows of the table are deleted.
    Truncate,
    /// A chunk of a snapshot ends.
    ChunkEnd(ChunkEnd),
    /// A task of the processor that writes the topic has read the first snapshots of its inputs.
    Loaded(LoadedMark),
    /// The source could not publish a change.
    Missing {
        /// State key of the row that lacks the change; [`whole_table_key`](super::keys::whole_table_key) if any row may.
        state_key: Vec<u8>,
    },
}

/// A row that is written or deleted.
#[derive(Debug)]
pub struct Change<'a> {
    /// Elements of the JSON array that is the row key, without the table.
    pub row_key: &'a str,
    /// Key of the row in the state.
    pub state_key: Vec<u8>,
    /// Framed Avro; `None` deletes.
    pub value: Option<&'a [u8]>,
    /// The record's role in a change of the row's key.
    pub key_change: KeyChange<'a>,
}

/// The role of a record in a change of a row's key.
///
/// A source writes a tombstone for the old key, directly followed by the row under its new key. PostgreSQL omits
/// unchanged TOAST columns from that row too, so their values come from the state of the old key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange<'a> {
    /// The key does not change.
    None,
    /// The tombstone of the old key. The next record needs the row's kept values.
    Leaves,
    /// The row under its new key.
    Arrives {
        /// Elements of the JSON array that is the old row key, without the table.
        from: &'a str,
        /// Version of the tombstone.
        left: Version,
    },
}

/// The end of a snapshot chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEnd {
    /// Position below which a row is deleted if it is in the chunk's range but not in the chunk.
    pub low: u64,
    /// Whether this is the last chunk of the table's snapshot.
    pub last: bool,
    /// Id of the snapshot.
    pub snapshot: String,
    /// Key of the first row of the range, as a JSON array; `None` for the first row of the table.
    pub(super) from: Option<String>,
    /// Key of the last row of the range, as a JSON array; `None` for the last row of the table.
    pub(super) to: Option<String>,
}

/// A parsed change record.
#[derive(Debug)]
pub struct ChangeRecord<'a> {
    /// Name of the table or event type.
    pub table: &'a str,
    /// Version of the change.
    pub version: Version,
    /// Whether the record ends its source transaction.
    pub last: bool,
    /// Commit time in ms; 0 if unknown.
    pub at_ms: Millis,
    /// Set if the record was written before.
    pub replayed: Option<Replayed>,
    /// The change.
    pub kind: Kind<'a>,
}

impl<'a> ChangeRecord<'a> {
    /// Parses a record of a source stream.
    ///
    /// For an event topic, `event` is the name of the event type, and `topic_epoch` is the epoch of the topic. Changes
    /// of tables have their version in the header `tx`.
    pub fn read(record: &RecordRef<'a>, event: Option<&'a str>, topic_epoch: u32) -> Result<Self, RecordError> {
        let replayed = match record.header(headers::REPLAYED) {
            None => None,
            Some(b"redrive") => Some(Replayed::Redrive),
            Some(_) => Some(Replayed::Replay),
        };
        let key = record
            .key()
            .ok_or_else(|| RecordError::new(Stage::KeyConverter, "the key is null"))?;
        if let Some(event) = event
            && let Some(mark) = LoadedMark::of(record)
        {
            return Ok(ChangeRecord {
                table: event,
                version: event_version(record, replayed, topic_epoch)?,
                last: true,
                at_ms: record.timestamp(),
                replayed,
                kind: Kind::Loaded(mark),
            });
        }
        let mut parts = Parts::new(key).map_err(|e| RecordError::new(Stage::KeyConverter, e))?;
        if let Some(event) = event {
            let version = event_version(record, replayed, topic_epoch)?;
            schemas::key::check(key).map_err(|e| RecordError::new(Stage::KeyConverter, e))?;
            let kind = Kind::Row(row(event, parts.rest(), record.value(), KeyChange::None));
            return Ok(ChangeRecord {
                table: event,
                version,
                last: true,
                at_ms: record.timestamp(),
                replayed,
                kind,
            });
        }
        let tx = record
            .header(headers::TX)
            .ok_or_else(|| RecordError::new(Stage::HeaderConverter, "header tx is missing"))?;
        let tx = Tx::parse(tx).map_err(|e| RecordError::new(Stage::HeaderConverter, e))?;
        let first = table_name(&mut parts)?;
        let (table, kind) = if first == "~chunk" {
            let table = table_name(&mut parts)?;
            (table, Kind::ChunkEnd(chunk_end(record.value())?))
        } else if first == "~missing" {
            schemas::key::check(key).map_err(|e| RecordError::new(Stage::KeyConverter, e))?;
            let table = table_name(&mut parts)?;
            let state_key = row_state_key(table, parts.rest());
            (table, Kind::Missing { state_key })
        } else if parts.rest().is_empty() {
            (first, Kind::Truncate)
        } else {
            schemas::key::check(key).map_err(|e| RecordError::new(Stage::KeyConverter, e))?;
            let key_change = key_change(record, first, tx.version())?;
            (first, Kind::Row(row(first, parts.rest(), record.value(), key_change)))
        };
        let (version, last, at_ms) = (tx.version(), tx.last, tx.at_ms);
        Ok(ChangeRecord {
            table,
            version,
            last,
            at_ms,
            replayed,
            kind,
        })
    }
}

/// An event's version is its offset. A replayed event has the original offset in the header `tx`, and a redriven event in
/// that header or in those of its dead letter, so that it does not overwrite a newer event.
fn event_version(record: &RecordRef<'_>, replayed: Option<Replayed>, topic_epoch: u32) -> Result<Version, RecordError> {
    if let Some(tx) = record.header(headers::TX).filter(|_| replayed.is_some()) {
        let tx = Tx::parse(tx).map_err(|e| RecordError::new(Stage::HeaderConverter, e))?;
        return Ok(tx.version());
    }
    let original = dead_letter_offset(record).filter(|_| replayed == Some(Replayed::Redrive));
    Ok(Version {
        source_epoch: topic_epoch,
        position: u64::try_from(original.unwrap_or(record.offset())).unwrap_or_default(),
        ordinal: 0,
    })
}

/// The offset that a redriven record had when it became a dead letter. If it became a dead letter again after a redrive,
/// it has the headers of both, and the first ones contain its original offset.
pub fn dead_letter_offset(record: &RecordRef<'_>) -> Option<Offset> {
    let headers = record.headers();
    let first = |name: &str| headers.iter().find(|(n, _)| *n == name).and_then(|(_, value)| value);
    // Other pipelines use the same header names for other topics.
    let is_own = first(headers::errors::TOPIC).is_some_and(|topic| topic == record.topic().as_bytes());
    let offset = first(headers::errors::OFFSET).filter(|_| is_own)?;
    std::str::from_utf8(offset).ok()?.parse().ok()
}

/// The next element of a key, as a table name. A table name needs no escapes in JSON.
fn table_name<'a>(parts: &mut Parts<'a>) -> Result<&'a str, RecordError> {
    match parts.next() {
        Some(Ok(Part::Str(std::borrow::Cow::Borrowed(text)))) => Ok(text),
        Some(Err(error)) => Err(RecordError::new(Stage::KeyConverter, error)),
        _ => Err(RecordError::new(
            Stage::KeyConverter,
            "the key does not begin with a table name",
        )),
    }
}

fn row<'a>(table: &str, row_key: &'a str, value: Option<&'a [u8]>, key_change: KeyChange<'a>) -> Change<'a> {
    Change {
        row_key,
        state_key: row_state_key(table, row_key),
        value,
        key_change,
    }
}

fn key_change<'a>(record: &RecordRef<'a>, table: &str, version: Version) -> Result<KeyChange<'a>, RecordError> {
    if record.value().is_none() {
        let leaves = record.header(headers::MOVED_TO).is_some();
        return Ok(if leaves { KeyChange::Leaves } else { KeyChange::None });
    }
    let Some(key) = record.header(headers::MOVED_FROM) else {
        return Ok(KeyChange::None);
    };
    let malformed = |e: schemas::key::KeyError| RecordError::new(Stage::HeaderConverter, e);
    schemas::key::check(key).map_err(malformed)?;
    let mut parts = Parts::new(key).map_err(malformed)?;
    let same_table = matches!(parts.next(), Some(Ok(Part::Str(of))) if of == table);
    // The tombstone has the preceding ordinal, so the row under its new key is never the first change in its
    // transaction.
    let ordinal = version
        .ordinal
        .checked_sub(1)
        .filter(|_| same_table && !parts.rest().is_empty());
    let Some(ordinal) = ordinal else {
        let reason = "header moved-from does not contain the key of the preceding record";
        return Err(RecordError::new(Stage::HeaderConverter, reason));
    };
    Ok(KeyChange::Arrives {
        from: parts.rest(),
        left: Version { ordinal, ..version },
    })
}

fn chunk_end(value: Option<&[u8]>) -> Result<ChunkEnd, RecordError> {
    let value = value.ok_or_else(|| RecordError::new(Stage::ValueConverter, "the chunk end has no value"))?;
    let end = schemas::events::ChunkEnd::read(value).map_err(|e| RecordError::new(Stage::ValueConverter, e))?;
    let low = Lsn::from_text(end.low.as_bytes()).ok_or_else(|| {
        let reason = format!("the chunk's low watermark {:?} is not of the form HEX/HEX", end.low);
        RecordError::new(Stage::ValueConverter, reason)
    })?;
    let (from, to) = (end.from.map(str::to_owned), end.to.map(str::to_owned));
    Ok(ChunkEnd {
        low: low.0,
        last: end.is_final,
        snapshot: end.snapshot.to_owned(),
        from,
        to,
    })
}

/// The table or event type of a record; `None` if its key does not contain a table.
pub fn table_of<'a>(record: &RecordRef<'a>, event: Option<&'a str>) -> Option<&'a str> {
    match event {
        Some(event) => Some(event),
        None => table_name(&mut Parts::new(record.key()?).ok()?).ok(),
    }
}

/// The table of the row that a record changes, and the row's state key; `None` if the record's key does not contain
/// them.
pub fn row_of<'a>(record: &RecordRef<'a>, event: Option<&'a str>) -> Option<(&'a str, Vec<u8>)> {
    let key = record.key()?;
    schemas::key::check(key).ok()?;
    let mut parts = Parts::new(key).ok()?;
    let table = match event {
        Some(event) => event,
        None => table_name(&mut parts).ok().filter(|table| !table.starts_with('~'))?,
    };
    let row_key = parts.rest();
    (!row_key.is_empty()).then(|| (table, row_state_key(table, row_key)))
}

/// The table of a record that can concern any of its rows: a TRUNCATE, the end of a chunk, or a missing record. `None` for
/// a change of a row, and if the record's key does not contain a table.
pub fn swept_table_of<'a>(record: &RecordRef<'a>, event: Option<&str>) -> Option<&'a str> {
    if event.is_some() {
        return None;
    }
    let key = record.key()?;
    schemas::key::check(key).ok()?;
    let mut parts = Parts::new(key).ok()?;
    match table_name(&mut parts).ok()? {
        "~chunk" | "~missing" => table_name(&mut parts).ok(),
        table => parts.rest().is_empty().then_some(table),
    }
}

/// Whether a record was redriven because it was a dead letter of another application, so that it was processed here before.
/// Records that another program redrives do not name an application, and are of all.
pub fn is_redriven_for_another(record: &RecordRef<'_>, application: &str) -> bool {
    let is_redriven = record.header(headers::REPLAYED) == Some(headers::REDRIVE.as_bytes());
    let of = record.header(headers::errors::CONNECTOR_NAME).filter(|_| is_redriven);
    of.is_some_and(|of| of != application.as_bytes())
}

/// The header `tx` of a record that cannot be read otherwise, if it belongs to a source transaction.
pub fn tx_of(record: &RecordRef<'_>, event: Option<&str>) -> Option<Tx> {
    let tx = record.header(headers::TX).filter(|_| event.is_none())?;
    Tx::parse(tx).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_of(headers: &[(&str, &str)]) -> u64 {
        let mut batch = event_log::RecordBatch::default();
        let at = batch.intern(&event_log::TopicPartition::new("shop.event.moved", 0));
        let record = event_log::NewRecord {
            offset: 90,
            timestamp: 1,
            timestamp_type: event_log::TimestampType::Create,
            key: Some(b"[1]"),
            value: None,
        };
        let headers = headers.iter().map(|(name, value)| (*name, Some(value.as_bytes())));
        batch.push(at, record, headers);
        let record = batch.get(0).unwrap();
        ChangeRecord::read(&record, Some("moved"), 1).unwrap().version.position
    }

    #[test]
    fn redriven_event_has_the_version_of_its_first_offset() {
        let topic = (headers::errors::TOPIC, "shop.event.moved");
        let redrive = (headers::REPLAYED, headers::REDRIVE);
        let offset = |offset| (headers::errors::OFFSET, offset);
        assert_eq!(version_of(&[topic, offset("7"), redrive]), 7);
        // It became a dead letter again at offset 50.
        assert_eq!(version_of(&[topic, offset("7"), redrive, topic, offset("50")]), 7);
        let tx = (
            headers::TX,
            r#"{"v":1,"epoch":1,"pos":"0/5","ord":0,"last":true,"at":0}"#,
        );
        assert_eq!(version_of(&[tx, topic, offset("7"), redrive]), 5);
        // The headers are of another pipeline, or the event is new.
        assert_eq!(
            version_of(&[(headers::errors::TOPIC, "other"), offset("7"), redrive]),
            90
        );
        assert_eq!(version_of(&[topic, offset("7")]), 90);
    }
}
