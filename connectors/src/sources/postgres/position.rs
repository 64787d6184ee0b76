//! The position of a PostgreSQL source, which is stored as two records.
//!
//! The moving record identifies the last published record by commit LSN and ordinal, and the end of the last completely
//! published source transaction. The [static record](super::static_record) contains cluster, database, slot and tables,
//! so that a wrong source is detected. An LSN alone would be valid on any cluster.

use super::static_record::{FORMAT, KIND, StaticRecord};
use crate::source::{StaticPart, Unreadable};
use schemas::version::Lsn;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How far the start of a source epoch is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Snapshot {
    /// A new source epoch was requested. It starts when the source is opened next.
    Wanted,
    /// The slot is being created. After a restart, it is created again under another id and source epoch.
    Begun {
        /// The snapshot's id.
        id: String,
    },
    /// The slot exists; the source streams. The snapshots of the tables have their own states.
    Done {
        /// The snapshot's id.
        id: String,
    },
}

/// The position at which the source continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Source epoch: increases with each snapshot that starts, and is the first part of a row's version.
    pub source_epoch: u32,
    /// Commit LSN of the source transaction of the last published record.
    pub lsn: Lsn,
    /// Ordinal of the last published record in its source transaction; `None` if no record of a transaction at `lsn` is
    /// published.
    pub ordinal: Option<u32>,
    /// Everything below this LSN is published: the end of the last complete transaction, or a later keepalive or
    /// heartbeat. The slot is acknowledged only up to this LSN.
    pub complete_lsn: Lsn,
    /// How far the start of the source epoch is.
    pub snapshot: Snapshot,
    /// Progress of the snapshot of a single table, if one is running.
    pub chunks: Option<ChunkProgress>,
    /// The static record of the source from which the rows are read.
    pub source: StaticRecord,
}

/// Progress of the snapshot of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ChunkProgress {
    /// The table.
    pub table: String,
    /// Number of chunks that are published.
    pub chunk: u64,
    /// Number of rows that were read.
    pub rows: u64,
    /// Key of the last row of the last chunk, as text; `None` before the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    /// Whether rows wait to be read by key. The list of these rows is not stored, so after a restart all rows are read
    /// again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    v: u32,
    kind: String,
    epoch: u32,
    rev: String,
    lsn: String,
    ord: Option<u32>,
    complete: String,
    snapshot: Snapshot,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chunks: Option<ChunkProgress>,
}

#[derive(Deserialize)]
struct AnyFormat {
    v: u32,
    kind: String,
}

impl Position {
    /// Whether the record with this commit LSN and ordinal is already published.
    pub(super) fn contains(&self, commit_lsn: Lsn, ordinal: u32) -> bool {
        commit_lsn < self.complete_lsn
            || (commit_lsn == self.lsn && self.ordinal.is_some_and(|stored| ordinal <= stored))
    }

    /// Whether the source is streaming.
    pub(super) fn is_streaming(&self) -> bool {
        matches!(self.snapshot, Snapshot::Done { .. })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            Snapshot::Wanted => write!(f, "new snapshot requested"),
            Snapshot::Begun { id } => write!(f, "snapshot {id}, source epoch {}", self.source_epoch),
            Snapshot::Done { .. } => write!(
                f,
                "{}, source epoch {}, slot {}",
                self.complete_lsn,
                self.source_epoch,
                self.source.content().slot
            ),
        }
    }
}

impl crate::source::Position for Position {
    fn to_json(&self) -> String {
        let stored = Stored {
            v: FORMAT,
            kind: String::from(KIND),
            epoch: self.source_epoch,
            rev: self.source.revision().to_owned(),
            lsn: self.lsn.to_string(),
            ord: self.ordinal,
            complete: self.complete_lsn.to_string(),
            snapshot: self.snapshot.clone(),
            chunks: self.chunks.clone(),
        };
        serde_json::to_string(&stored).expect("strings and numbers always serialize")
    }

    fn static_part(&self) -> Option<StaticPart<'_>> {
        Some(StaticPart {
            revision: self.source.revision(),
            json: self.source.json(),
        })
    }

    fn complete(&self) -> String {
        match self.snapshot {
            Snapshot::Done { .. } => self.complete_lsn.to_string(),
            Snapshot::Wanted | Snapshot::Begun { .. } => String::new(),
        }
    }

    fn from_json(json: &str, static_json: Option<&str>) -> Result<Self, Unreadable> {
        let damaged = |reason: String| Unreadable::StartOver(reason);
        // Check the version before the rest: another format may have other members.
        let AnyFormat { v, kind } = serde_json::from_str(json).map_err(|e| damaged(e.to_string()))?;
        if kind != KIND {
            return Err(damaged(format!(
                "it was written by a connector of kind {kind}, but this connector is of kind {KIND}"
            )));
        }
        if v > FORMAT {
            return Err(Unreadable::Newer(format!(
                "it has format {v}, this version reads format {FORMAT}; upgrade trunkline"
            )));
        }
        if v < FORMAT {
            return Err(damaged(format!(
                "it has format {v} of an older release, this version reads format {FORMAT}"
            )));
        }
        let stored: Stored = serde_json::from_str(json).map_err(|e| damaged(e.to_string()))?;
        let lsn = |text: &str| {
            text.parse::<Lsn>()
                .map_err(|_| damaged(format!("{text:?} is not an LSN")))
        };
        Ok(Position {
            source_epoch: stored.epoch,
            lsn: lsn(&stored.lsn)?,
            ordinal: stored.ord,
            complete_lsn: lsn(&stored.complete)?,
            snapshot: stored.snapshot,
            chunks: stored.chunks,
            source: StaticRecord::parse(static_json, &stored.rev).map_err(damaged)?,
        })
    }

    /// Only a source that streams makes progress.
    fn is_beyond(&self, other: &Self) -> bool {
        let place = |p: &Self| (p.complete_lsn, p.lsn, p.ordinal);
        self.is_streaming() && (!other.is_streaming() || place(self) > place(other))
    }
}

#[cfg(test)]
mod tests {
    use super::super::static_record::Content;
    use super::*;
    use crate::source::Position as _;

    fn position() -> Position {
        Position {
            source_epoch: 2,
            lsn: Lsn(0x16b_3748),
            ordinal: Some(4),
            complete_lsn: Lsn(0x16b_3700),
            snapshot: Snapshot::Done { id: String::from("s1") },
            chunks: None,
            source: StaticRecord::new(Content {
                slot: String::from("trunkline_shop"),
                ..Content::default()
            }),
        }
    }

    #[test]
    fn moving_record_is_small_and_round_trips_with_its_static_record() {
        let (json, source) = (position().to_json(), position().source);
        assert_eq!(
            json,
            format!(
                concat!(
                    r#"{{"v":3,"kind":"postgres","epoch":2,"rev":"{}","lsn":"0/16B3748","ord":4,"complete":"0/16B3700","#,
                    r#""snapshot":{{"state":"done","id":"s1"}}}}"#
                ),
                source.revision()
            )
        );
        assert_eq!(Position::from_json(&json, Some(source.json())), Ok(position()));
        assert!(matches!(
            Position::from_json(&json, None),
            Err(Unreadable::StartOver(_))
        ));
    }

    #[test]
    fn other_formats_are_refused_without_parsing_them() {
        let refused = |json: &str| Position::from_json(json, None).unwrap_err();
        let newer = refused(r#"{"v":4,"kind":"postgres"}"#);
        assert_eq!(
            newer,
            Unreadable::Newer("it has format 4, this version reads format 3; upgrade trunkline".into())
        );
        for foreign in [
            r#"{"v":2,"kind":"postgres","epoch":2}"#,
            r#"{"v":3,"kind":"http","epoch":2}"#,
            "[]",
        ] {
            assert!(matches!(refused(foreign), Unreadable::StartOver(_)), "{foreign}");
        }
    }

    #[test]
    fn only_a_later_streamed_position_is_beyond() {
        let at = |complete: u64| Position {
            complete_lsn: Lsn(complete),
            ..position()
        };
        let snapshot = Position {
            snapshot: Snapshot::Begun { id: String::new() },
            source_epoch: 9,
            ..position()
        };
        assert!(at(0x16b_3701).is_beyond(&position()) && !position().is_beyond(&position()));
        assert!(position().is_beyond(&snapshot) && !snapshot.is_beyond(&position()) && !snapshot.is_beyond(&snapshot));
    }

    #[test]
    fn published_records_are_recognized() {
        let stored = position();
        assert!(stored.contains(Lsn(0x16b_36ff), 9));
        assert!(stored.contains(Lsn(0x16b_3748), 4));
        assert!(!stored.contains(Lsn(0x16b_3748), 5));
        assert!(!stored.contains(Lsn(0x16b_3749), 0));
        // The end LSN of a transaction can be equal to the commit LSN of the next transaction.
        assert!(!stored.contains(Lsn(0x16b_3700), 0));
    }
}
