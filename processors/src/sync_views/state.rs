//! The state of sync-views: for each row, its version and the outputs that were last written, and the progress of the
//! source stream.
//!
//! Each value begins with a format byte. A newer format is an error, because a task that ignored it would lose data.

use crate::dead_letter::stop;
use schemas::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use streams::Error;

/// Format of the values here, except [`StreamState`].
pub(super) const FORMAT: u8 = 1;

/// Format of [`StreamState`]. Format 1 has no `waiting_end`. A release that does not know jobs must not continue them, so it
/// must reject the state.
const STREAM_FORMAT: u8 = 2;

/// Key of [`StreamState`].
pub const STREAM: &[u8] = b"[\"source\"]";

/// A value in the state that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A newer release wrote the value.
    #[error(
        "the state of sync-views has format {found}, but this release reads up to format {FORMAT}; update Trunkline"
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
pub(super) fn damaged(error: &StateError) -> Error {
    stop("sync-views", error)
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
    /// Values of columns that the source may omit when they do not change, by name. A deleted row has them only until
    /// the same row is written under another key.
    pub kept: Vec<(String, Vec<u8>)>,
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
        let mut rest = open(bytes)?;
        let (version, deleted_ms) = take_header(&mut rest)?;
        Ok(RowHeader {
            version,
            is_deleted: deleted_ms.is_some(),
        })
    }

    /// Encodes the row, including the format byte.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.written.len() * 48);
        out.push(FORMAT);
        out.extend_from_slice(&self.version.to_bytes());
        out.extend_from_slice(&self.deleted_ms.unwrap_or(i64::MIN).to_be_bytes());
        push_len(&mut out, self.written.len());
        for row in &self.written {
            push(&mut out, row.view.as_bytes());
            push(&mut out, row.bucket.as_bytes());
            out.extend_from_slice(&row.partition.to_be_bytes());
            out.extend_from_slice(&row.hash.to_be_bytes());
        }
        push_len(&mut out, self.kept.len());
        for (name, value) in &self.kept {
            push(&mut out, name.as_bytes());
            push(&mut out, value);
        }
        out
    }

    /// Decodes the output of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Row, StateError> {
        let mut rest = open(bytes)?;
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
        let damaged = StateError::Damaged("a kept value");
        let mut kept = Vec::new();
        for _ in 0..take_len(&mut rest).ok_or(damaged.clone())? {
            let name = take_text(&mut rest).ok_or(damaged.clone())?;
            let value = take_bytes(&mut rest).ok_or(damaged.clone())?;
            kept.push((name, value.to_vec()));
        }
        Ok(Row {
            version,
            deleted_ms,
            written,
            kept,
        })
    }
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

/// A transaction end marker that is written when the jobs have ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingEnd {
    /// Version of the last record, in hexadecimal.
    pub last: String,
    /// Commit time of the source transaction in ms.
    pub at_ms: i64,
}

impl WaitingEnd {
    /// Version of the last record.
    pub(super) fn version(&self) -> Result<Version, Error> {
        self.last
            .parse()
            .map_err(|_| damaged(&StateError::Damaged("the version of a waiting end")))
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
    /// The end of the last source transaction, if it is not visible yet because a job has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_end: Option<WaitingEnd>,
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
            waiting_end: None,
        }
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
            let kept = vec![("note".to_owned(), b"x".to_vec())];
            let row = Row {
                version,
                deleted_ms,
                written: vec![written.clone()],
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
        assert_eq!(Row::decode(&[2]), Err(StateError::Newer { found: 2 }));
    }
}
