//! The state of sync-views: for each row, its version and the outputs that were last written, and the progress of the
//! source stream.
//!
//! Each value begins with a format byte. A newer format is an error, because a task that ignored it would lose data.

use crate::dead_letter::stop;
use crate::input::{LoadedWriters, schema_id};
use schemas::version::Version;
use schemas::wire::FRAME_LENGTH;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use streams::Error;
use views::rules::{Kept, Relation, SourceRules};

/// Format of the values here, except [`Row`] and [`StreamState`].
pub(super) const FORMAT: u8 = 1;

/// Format of [`Row`]. Format 1 has no image.
const ROW_FORMAT: u8 = 2;

/// Maximum length of the body of an image, so that the row fits a record of the changelog.
const IMAGE_BYTES_MAX: usize = 256 * 1024;

/// Format of [`StreamState`]. Format 1 has no `end`, `rules` and `snapshots`. A release that does not know jobs must not continue them, so it
/// must reject the state.
const STREAM_FORMAT: u8 = 2;

/// Key of [`StreamState`].
pub const STREAM: &[u8] = b"[\"source\"]";

/// A value in the state that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A newer release wrote the value.
    #[error(
        "the state of sync-views has format {found}, but this release reads up to format {ROW_FORMAT}; update Trunkline"
    )]
    Newer {
        /// The format found.
        found: u8,
    },
    /// The bytes are corrupt.
    #[error("the state of sync-views is corrupt: {0} cannot be decoded")]
    Damaged(&'static str),
}

/// An error that stops the task because its state cannot be read.
pub(super) fn damaged(error: &impl ToString) -> Error {
    stop("sync-views", error.to_string())
}

/// The output that was last written for a row in one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenRow {
    /// View.
    pub view: String,
    /// Bucket.
    pub bucket: String,
    /// Partition of `view.log`.
    pub partition: i32,
    /// 128-bit hash of the row's JSON.
    pub hash: u128,
}

/// A row after its last change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// Version.
    pub version: Version,
    /// When it was deleted, by the processor's clock in ms; `None` if it is live.
    pub deleted_ms: Option<i64>,
    /// The outputs that were last written for the row.
    pub written: Vec<WrittenRow>,
    /// The row as it was last read, from which a changed view is rebuilt. `None` if the row is deleted, or was last
    /// written by a release that did not keep it.
    pub image: Option<Image>,
    /// Values of columns that the source may omit when they do not change. A deleted row has them only until the same
    /// row is written under another key.
    pub kept: Vec<Kept>,
}

/// A row as a record contains it. Columns that the record omits are in [`Row::kept`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Id of the schema.
    pub schema: u32,
    /// Avro body.
    pub body: Vec<u8>,
}

impl Image {
    /// The image of a framed value; `None` if it is too large to keep.
    pub(super) fn of(value: &[u8]) -> Option<Image> {
        let schema = schema_id(value)?;
        let body = value.get(FRAME_LENGTH..)?;
        (body.len() <= IMAGE_BYTES_MAX).then(|| Image {
            schema,
            body: body.to_vec(),
        })
    }
}

/// The first part of an encoded [`Row`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowHeader {
    /// Version.
    pub version: Version,
    /// Whether the row is deleted.
    pub is_deleted: bool,
}

impl Row {
    /// Decodes only the first part of an encoded row.
    pub fn header(bytes: &[u8]) -> Result<RowHeader, StateError> {
        let (_, mut rest) = open_row(bytes)?;
        let (version, deleted_ms) = take_header(&mut rest)?;
        Ok(RowHeader {
            version,
            is_deleted: deleted_ms.is_some(),
        })
    }

    /// Encodes the row, including the format byte.
    pub fn encode(&self) -> Vec<u8> {
        let body = self.image.as_ref().map_or(&[][..], |image| image.body.as_slice());
        let mut out = Vec::with_capacity(64 + self.written.len() * 48 + body.len());
        out.push(ROW_FORMAT);
        out.extend_from_slice(&self.version.to_bytes());
        out.extend_from_slice(&self.deleted_ms.unwrap_or(i64::MIN).to_be_bytes());
        push_len(&mut out, self.written.len());
        for row in &self.written {
            push(&mut out, row.view.as_bytes());
            push(&mut out, row.bucket.as_bytes());
            out.extend_from_slice(&row.partition.to_be_bytes());
            out.extend_from_slice(&row.hash.to_be_bytes());
        }
        out.push(u8::from(self.image.is_some()));
        if let Some(image) = &self.image {
            out.extend_from_slice(&image.schema.to_be_bytes());
            push(&mut out, &image.body);
        }
        push_len(&mut out, self.kept.len());
        for kept in &self.kept {
            push(&mut out, kept.name.as_bytes());
            let is_in_body = |at: &usize| body.get(*at..).is_some_and(|rest| rest.starts_with(&kept.value));
            match kept.at.filter(is_in_body) {
                Some(at) => {
                    out.push(1);
                    push_len(&mut out, at);
                    push_len(&mut out, kept.value.len());
                }
                None => {
                    out.push(0);
                    push(&mut out, &kept.value);
                }
            }
        }
        out
    }

    /// Decodes the output of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Row, StateError> {
        let (format, mut rest) = open_row(bytes)?;
        let (version, deleted_ms) = take_header(&mut rest)?;
        let damaged = StateError::Damaged("an output");
        let mut written = Vec::new();
        for _ in 0..take_len(&mut rest).ok_or(damaged.clone())? {
            let one = || {
                let view = take_text(&mut rest)?;
                let bucket = take_text(&mut rest)?;
                let partition = i32::from_be_bytes(take::<4>(&mut rest)?);
                Some(WrittenRow {
                    view,
                    bucket,
                    partition,
                    hash: u128::from_be_bytes(take::<16>(&mut rest)?),
                })
            };
            written.push({ one }().ok_or(damaged.clone())?);
        }
        let image = match format {
            FORMAT => None::<Image>,
            _ => take_image(&mut rest).ok_or(StateError::Damaged("a row image"))?,
        };
        let damaged = StateError::Damaged("a kept value");
        let body = image.as_ref().map_or(&[][..], |image| image.body.as_slice());
        let mut kept = Vec::new();
        for _ in 0..take_len(&mut rest).ok_or(damaged.clone())? {
            kept.push(take_kept(format, body, &mut rest).ok_or(damaged.clone())?);
        }
        Ok(Row {
            version,
            deleted_ms,
            written,
            kept,
            image,
        })
    }
}

/// Format of an encoded row, and the rest.
fn open_row(bytes: &[u8]) -> Result<(u8, &[u8]), StateError> {
    match bytes.split_first() {
        Some((&format @ (FORMAT | ROW_FORMAT), rest)) => Ok((format, rest)),
        Some((&found, _)) => Err(StateError::Newer { found }),
        None => Err(StateError::Damaged("the format byte")),
    }
}

fn take_image(rest: &mut &[u8]) -> Option<Option<Image>> {
    if take::<1>(rest)? == [0] {
        return Some(None);
    }
    let schema = u32::from_be_bytes(take::<4>(rest)?);
    let body = take_bytes(rest)?.to_vec();
    Some(Some(Image { schema, body }))
}

fn take_kept(format: u8, body: &[u8], rest: &mut &[u8]) -> Option<Kept> {
    let name = take_text(rest)?;
    let (value, at) = if format == FORMAT || take::<1>(rest)? == [0] {
        (take_bytes(rest)?, None)
    } else {
        let (at, len) = (take_len(rest)?, take_len(rest)?);
        (body.get(at..at.checked_add(len)?)?, Some(at))
    };
    let value = value.to_vec();
    Some(Kept { name, value, at })
}

/// Version of a row, and when it was deleted.
fn take_header(rest: &mut &[u8]) -> Result<(Version, Option<i64>), StateError> {
    let version = take::<17>(rest).and_then(|v| Version::from_bytes(&v).ok());
    let version = version.ok_or(StateError::Damaged("a version"))?;
    let deleted = take::<8>(rest).map(i64::from_be_bytes);
    let deleted = deleted.ok_or(StateError::Damaged("a time"))?;
    Ok((version, (deleted != i64::MIN).then_some(deleted)))
}

/// The missing entry of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    /// Version of the newest missing change.
    pub(super) newest: Version,
    /// Whether it is the only missing change.
    pub(super) only: bool,
}

impl Missing {
    pub(super) fn encode(self) -> Vec<u8> {
        [&[FORMAT], self.newest.to_bytes().as_slice(), &[u8::from(self.only)]].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Missing, StateError> {
        let read = |rest: &[u8]| {
            let (version, rest) = rest.split_first_chunk::<17>()?;
            let newest = Version::from_bytes(version).ok()?;
            Some(Missing {
                newest,
                only: rest == [1],
            })
        };
        read(open(bytes)?).ok_or(StateError::Damaged("a missing entry"))
    }
}

/// Versions of rules by table and view, in hexadecimal.
pub type RuleVersions = BTreeMap<String, BTreeMap<String, String>>;

/// The versions of the rules of all views of a source stream.
pub(super) fn rule_versions(rules: &SourceRules) -> RuleVersions {
    let of_table = |relation: &Arc<Relation>| {
        let versions = relation.versions();
        let versions = versions.map(|(view, version)| (view.to_owned(), format!("{version:016x}")));
        (relation.name().to_owned(), versions.collect())
    };
    rules.relations().map(of_table).collect()
}

/// A snapshot of a table in ranges. When its last range ends, it has shown every row of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Id of the snapshot.
    pub id: String,
    /// Version before which the state of the first range is known, in hexadecimal. Later ranges have greater ones.
    pub low: String,
}

/// The end of a source transaction, as its transaction end markers state it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionEnd {
    /// Version of the last record, in hexadecimal.
    pub last: String,
    /// Commit time of the source transaction in ms.
    pub at_ms: i64,
}

impl TransactionEnd {
    /// Version of the last record.
    pub(super) fn version(&self) -> Result<Version, Error> {
        self.last
            .parse()
            .map_err(|_| damaged(&StateError::Damaged("the end of a source transaction")))
    }
}

/// The progress of a source stream: one input partition, one writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// Epoch of the source, or of the topic for events.
    pub source_epoch: u32,
    /// Id of the input topic. A changed id begins a new topic epoch.
    pub topic_id: String,
    /// Whether a source transaction is open.
    pub open: bool,
    /// Partitions of `view.log` that were written to since their last transaction end marker.
    pub touched: BTreeSet<i32>,
    /// The greatest version of a row that was removed from the state, in hexadecimal. Changes of unknown rows up to it
    /// are ignored.
    pub floor: String,
    /// Tables whose views are marked stale.
    pub stale: BTreeSet<String>,
    /// Tables that have rows with missing entries, and the number of such rows.
    #[serde(default)]
    pub missing: BTreeMap<String, u64>,
    /// The end of the last source transaction. While a job exists, its markers are not written yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<TransactionEnd>,
    /// Versions of the rules with which the rows were written, by table and view. `None` in format 1.
    #[serde(default)]
    pub rules: Option<RuleVersions>,
    /// Snapshots of tables in ranges that have begun and not ended.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub snapshots: BTreeMap<String, Snapshot>,
    /// Tables whose first snapshot has ended, so that their views are marked loaded. `None` if an earlier release, which
    /// did not write these marks, wrote the state.
    #[serde(default)]
    pub loaded: Option<BTreeSet<String>>,
    /// If a declarative processor writes the topic: its tasks that have read the first snapshots of their inputs.
    #[serde(default, skip_serializing_if = "LoadedWriters::is_empty")]
    pub loaded_by: LoadedWriters,
}

impl StreamState {
    /// A source stream without records.
    pub fn new(topic_id: &str) -> Self {
        StreamState {
            source_epoch: 1,
            topic_id: topic_id.to_owned(),
            open: false,
            touched: BTreeSet::new(),
            floor: Version::default().to_string(),
            stale: BTreeSet::new(),
            missing: BTreeMap::new(),
            end: None,
            rules: None,
            snapshots: BTreeMap::new(),
            loaded: Some(BTreeSet::new()),
            loaded_by: LoadedWriters::default(),
        }
    }

    /// Whether the first snapshot of a table has ended.
    pub(super) fn is_loaded(&self, table: &str) -> bool {
        self.loaded.as_ref().is_some_and(|loaded| loaded.contains(table))
    }

    /// Encodes the state, including the format byte.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![STREAM_FORMAT];
        serde_json::to_writer(&mut out, self).expect("numbers and strings always have a JSON form");
        out
    }

    /// Decodes the output of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Result<StreamState, StateError> {
        let rest = match bytes.split_first() {
            Some((&STREAM_FORMAT, rest)) => rest,
            _ => open(bytes)?,
        };
        serde_json::from_slice(rest).map_err(|_| StateError::Damaged("the source stream"))
    }
}

/// Checks and removes the format byte.
pub(super) fn open(bytes: &[u8]) -> Result<&[u8], StateError> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => Ok(rest),
        Some((&found, _)) => Err(StateError::Newer { found }),
        None => Err(StateError::Damaged("the format byte")),
    }
}

fn push_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
}

fn push(out: &mut Vec<u8>, bytes: &[u8]) {
    push_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*first)
}

fn take_len(rest: &mut &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(take::<4>(rest)?)).ok()
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take_len(rest)?;
    let (first, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(first)
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    String::from_utf8(take_bytes(rest)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_round_trips_and_truncation_is_an_error() {
        let written = WrittenRow {
            view: "orders".into(),
            bucket: "user:4".into(),
            partition: 3,
            hash: 9,
        };
        let version = Version {
            source_epoch: 1,
            position: 7,
            ordinal: 2,
        };
        for deleted_ms in [None, Some(5)] {
            let image = deleted_ms.is_none().then(|| Image {
                schema: 7,
                body: b"body x".to_vec(),
            });
            let kept = |name: &str, value: &[u8], at| Kept {
                name: name.to_owned(),
                value: value.to_vec(),
                at,
            };
            let at = image.as_ref().map(|_| 5);
            let kept = vec![kept("note", b"x", at), kept("omitted", b"y", None)];
            let row = Row {
                version,
                deleted_ms,
                written: vec![written.clone()],
                image,
                kept,
            };
            let bytes = row.encode();
            let is_deleted = deleted_ms.is_some();
            assert_eq!(Row::header(&bytes), Ok(RowHeader { version, is_deleted }));
            assert_eq!(Row::decode(&bytes), Ok(row));
            for cut in 0..bytes.len() {
                assert!(Row::decode(&bytes[..cut]).is_err(), "{cut} bytes");
            }
        }
        let stream = StreamState {
            open: true,
            touched: [3, 4].into(),
            ..StreamState::new("id")
        };
        assert_eq!(StreamState::decode(&stream.encode()), Ok(stream));
        assert_eq!(Row::decode(&[3]), Err(StateError::Newer { found: 3 }));
    }
}
