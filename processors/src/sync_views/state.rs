//! What sync-views keeps: per row its version and last outputs, and where the line stands.
//!
//! Guarantees: reading gives back what was written; a newer format is refused with both numbers.
//! Never: a value without a version byte before it.

use schemas::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Format of the values here.
pub(super) const FORMAT: u8 = 1;

/// Key of [`Line`].
pub const LINE: &[u8] = b"[\"line\"]";

/// State that this release cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A newer release wrote it.
    #[error("state of sync-views has format {found}, this release reads up to {FORMAT}; update it")]
    Newer {
        /// The format found.
        found: u8,
    },
    /// The bytes are damaged.
    #[error("state of sync-views is damaged at {0}")]
    Damaged(&'static str),
}

/// What a row was last put as in one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// View.
    pub view: String,
    /// Bucket.
    pub bucket: String,
    /// Partition of `view.log`.
    pub partition: i32,
    /// 128-bit hash of its JSON.
    pub hash: u128,
}

/// A row as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// Version.
    pub version: Version,
    /// When it was deleted, by the processor's clock in ms; `None` while it lives.
    pub gone_ms: Option<i64>,
    /// Where it stands.
    pub shown: Vec<Shown>,
    /// Values of columns that the source may leave out when they do not change, by name; of a deleted row only until the
    /// same row arrives under another key.
    pub kept: Vec<(String, Vec<u8>)>,
}

impl Row {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.shown.len() * 48);
        out.push(FORMAT);
        out.extend_from_slice(&self.version.to_bytes());
        out.extend_from_slice(&self.gone_ms.unwrap_or(i64::MIN).to_be_bytes());
        push_len(&mut out, self.shown.len());
        for shown in &self.shown {
            push(&mut out, shown.view.as_bytes());
            push(&mut out, shown.bucket.as_bytes());
            out.extend_from_slice(&shown.partition.to_be_bytes());
            out.extend_from_slice(&shown.hash.to_be_bytes());
        }
        push_len(&mut out, self.kept.len());
        for (name, value) in &self.kept {
            push(&mut out, name.as_bytes());
            push(&mut out, value);
        }
        out
    }

    /// Reads its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Row, StateError> {
        let mut rest = open(bytes)?;
        let version = take::<17>(&mut rest).and_then(|v| Version::from_bytes(&v).ok());
        let version = version.ok_or(StateError::Damaged("a version"))?;
        let gone = take::<8>(&mut rest)
            .map(i64::from_be_bytes)
            .ok_or(StateError::Damaged("a time"))?;
        let damaged = StateError::Damaged("an output");
        let mut shown = Vec::new();
        for _ in 0..take_len(&mut rest).ok_or(damaged.clone())? {
            let one = || {
                let view = take_text(&mut rest)?;
                let bucket = take_text(&mut rest)?;
                let partition = i32::from_be_bytes(take::<4>(&mut rest)?);
                Some(Shown {
                    view,
                    bucket,
                    partition,
                    hash: u128::from_be_bytes(take::<16>(&mut rest)?),
                })
            };
            shown.push({ one }().ok_or(damaged.clone())?);
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
            gone_ms: (gone != i64::MIN).then_some(gone),
            shown,
            kept,
        })
    }
}

/// Where a line stands: one input partition, one writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Incarnation of the source, or of the topic for events.
    pub incarnation: u32,
    /// Id of the input topic that events' incarnation counts.
    pub topic_id: String,
    /// A source transaction is open.
    pub open: bool,
    /// Partitions of `view.log` that were written since the last closing there.
    pub touched: BTreeSet<i32>,
    /// A row that is not known is newer than this, or is ignored: the greatest version forgotten, as hexadecimal.
    pub floor: String,
    /// Tables whose views were last said to be stale.
    pub stale: BTreeSet<String>,
    /// Tables with rows that lack changes, and how many.
    #[serde(default)]
    pub missing: BTreeMap<String, u64>,
}

impl Line {
    /// A line that has seen nothing.
    pub fn new(topic_id: &str) -> Self {
        Line {
            incarnation: 1,
            topic_id: topic_id.to_owned(),
            open: false,
            touched: BTreeSet::new(),
            floor: Version::default().to_string(),
            stale: BTreeSet::new(),
            missing: BTreeMap::new(),
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        serde_json::to_writer(&mut out, self).expect("numbers and texts always have a JSON form");
        out
    }

    /// Reads its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Line, StateError> {
        serde_json::from_slice(open(bytes)?).map_err(|_| StateError::Damaged("the line"))
    }
}

pub(super) fn open(bytes: &[u8]) -> Result<&[u8], StateError> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => Ok(rest),
        Some((&found, _)) => Err(StateError::Newer { found }),
        None => Err(StateError::Damaged("its first byte")),
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
    fn rows_and_lines_read_back_and_a_cut_is_no_panic() {
        let shown = Shown {
            view: "orders".into(),
            bucket: "user:4".into(),
            partition: 3,
            hash: 9,
        };
        let version = Version {
            incarnation: 1,
            position: 7,
            ordinal: 2,
        };
        for gone_ms in [None, Some(5)] {
            let kept = vec![("note".to_owned(), b"x".to_vec())];
            let row = Row {
                version,
                gone_ms,
                shown: vec![shown.clone()],
                kept,
            };
            let bytes = row.encode();
            assert_eq!(Row::decode(&bytes), Ok(row));
            for cut in 0..bytes.len() {
                assert!(Row::decode(&bytes[..cut]).is_err(), "{cut} bytes");
            }
        }
        let line = Line {
            open: true,
            touched: [3, 4].into(),
            ..Line::new("id")
        };
        assert_eq!(Line::decode(&line.encode()), Ok(line));
        assert_eq!(Row::decode(&[2]), Err(StateError::Newer { found: 2 }));
    }
}
