//! Position of a PostgreSQL source, as stored in its position record.
//!
//! It identifies the last published record by commit LSN and ordinal, and the end of the last completely published
//! source transaction. It also contains the cluster, timeline, database, slot and snapshot, so that an incompatible
//! source is detected. An LSN alone would be valid in any cluster.

use schemas::version::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The format version that is written, and the only one that is read.
const FORMAT: u32 = 1;

/// Progress of the source epoch's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Snapshot {
    /// A new source epoch was requested. It starts when the source is opened next.
    Wanted,
    /// The snapshot was started and is not finished. After a restart, it starts from the beginning with another id and
    /// source epoch.
    Begun {
        /// The snapshot's id.
        id: String,
    },
    /// Finished; the source streams.
    Done {
        /// The snapshot's id.
        id: String,
    },
}

/// The columns that the snapshot read, by table name.
pub type Tables = Arc<BTreeMap<String, Vec<String>>>;

/// Position from which the source continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Source epoch: increases with each snapshot that starts, and is the first part of a row's version.
    pub source_epoch: u32,
    /// System identifier of the cluster.
    pub system: String,
    /// Timeline of the cluster.
    pub timeline: u32,
    /// Database.
    pub database: String,
    /// Slot.
    pub slot: String,
    /// Commit LSN of the source transaction of the last published record.
    pub lsn: Lsn,
    /// Ordinal of the last published record in its source transaction; `None` if no record of a transaction at `lsn` is
    /// published.
    pub ordinal: Option<u32>,
    /// Everything below this LSN is published: the end of the last complete transaction, or a later keepalive or
    /// heartbeat. The slot is acknowledged only up to this LSN.
    pub complete_lsn: Lsn,
    /// Progress of the snapshot.
    pub snapshot: Snapshot,
    /// Tables and columns that the snapshot read.
    pub tables: Tables,
}

#[derive(Serialize, Deserialize)]
struct Stored<'p> {
    v: u32,
    kind: String,
    inc: u32,
    system: String,
    timeline: u32,
    database: String,
    slot: String,
    lsn: String,
    ord: Option<u32>,
    whole: String,
    snapshot: Snapshot,
    tables: std::borrow::Cow<'p, BTreeMap<String, Vec<String>>>,
}

#[derive(Deserialize)]
struct AnyFormat {
    v: u32,
    kind: String,
}

const KIND: &str = "postgres";

impl Position {
    /// Whether the record with this commit LSN and ordinal is already published.
    pub(super) fn contains(&self, commit_lsn: Lsn, ordinal: u32) -> bool {
        commit_lsn < self.complete_lsn
            || (commit_lsn == self.lsn && self.ordinal.is_some_and(|stored| ordinal <= stored))
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
                self.complete_lsn, self.source_epoch, self.slot
            ),
        }
    }
}

impl crate::source::Position for Position {
    fn to_json(&self) -> String {
        let stored = Stored {
            v: FORMAT,
            kind: String::from(KIND),
            inc: self.source_epoch,
            system: self.system.clone(),
            timeline: self.timeline,
            database: self.database.clone(),
            slot: self.slot.clone(),
            lsn: self.lsn.to_string(),
            ord: self.ordinal,
            whole: self.complete_lsn.to_string(),
            snapshot: self.snapshot.clone(),
            tables: std::borrow::Cow::Borrowed(&*self.tables),
        };
        serde_json::to_string(&stored).expect("strings and numbers always serialize")
    }

    fn complete(&self) -> String {
        match self.snapshot {
            Snapshot::Done { .. } => self.complete_lsn.to_string(),
            Snapshot::Wanted | Snapshot::Begun { .. } => String::new(),
        }
    }

    fn from_json(json: &str) -> Result<Self, String> {
        // The version is checked first, because a newer format may have other members.
        let AnyFormat { v, kind } = serde_json::from_str(json).map_err(|e| e.to_string())?;
        if kind != KIND {
            return Err(format!(
                "the stored position was written by a connector of kind {kind}, but this connector is of kind {KIND}"
            ));
        }
        if v != FORMAT {
            return Err(format!(
                "the stored position has format {v}, but this version of trunkline reads formats up to {FORMAT}; \
                 upgrade trunkline"
            ));
        }
        let stored: Stored<'_> = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let lsn = |text: &str| text.parse::<Lsn>().map_err(|_| format!("{text:?} is not an LSN"));
        Ok(Position {
            source_epoch: stored.inc,
            system: stored.system,
            timeline: stored.timeline,
            database: stored.database,
            slot: stored.slot,
            lsn: lsn(&stored.lsn)?,
            ordinal: stored.ord,
            complete_lsn: lsn(&stored.whole)?,
            snapshot: stored.snapshot,
            tables: Arc::new(stored.tables.into_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Position as _;

    fn position() -> Position {
        Position {
            source_epoch: 2,
            system: String::from("7312345678901234567"),
            timeline: 1,
            database: String::from("shop"),
            slot: String::from("trunkline_shop"),
            lsn: Lsn(0x16b_3748),
            ordinal: Some(4),
            complete_lsn: Lsn(0x16b_3700),
            snapshot: Snapshot::Done { id: String::from("s1") },
            tables: Arc::new(BTreeMap::from([(String::from("orders"), vec![String::from("id")])])),
        }
    }

    #[test]
    fn json_round_trips_and_starts_with_the_version() {
        let json = position().to_json();
        assert_eq!(
            json,
            concat!(
                r#"{"v":1,"kind":"postgres","inc":2,"system":"7312345678901234567","timeline":1,"database":"shop","#,
                r#""slot":"trunkline_shop","lsn":"0/16B3748","ord":4,"whole":"0/16B3700","#,
                r#""snapshot":{"state":"done","id":"s1"},"tables":{"orders":["id"]}}"#
            )
        );
        assert_eq!(Position::from_json(&json), Ok(position()));
        let newer = json.replace("\"v\":1", "\"v\":2");
        assert_eq!(
            Position::from_json(&newer).unwrap_err(),
            "the stored position has format 2, but this version of trunkline reads formats up to 1; upgrade trunkline"
        );
        let other = json.replace("\"kind\":\"postgres\"", "\"kind\":\"http\"");
        assert!(Position::from_json(&other).unwrap_err().contains("kind http"));
        assert!(Position::from_json("[]").is_err());
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
