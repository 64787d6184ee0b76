//! Where a PostgreSQL source stands, as it is stored with its records.
//!
//! Guarantees: enough is stored to tell another cluster, timeline, database or slot, and an interrupted snapshot; both
//! the exact place and the end of the last source transaction that is stored whole.
//! Never: a bare LSN; a newer format read as if it were this one.

use schemas::version::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The format that this program writes and the newest that it reads.
const FORMAT: u32 = 1;

/// How far the snapshot of this incarnation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Snapshot {
    /// A new incarnation was asked for: the next open begins it.
    Wanted,
    /// Begun under this id, and not ended: it starts over under another id and incarnation.
    Begun {
        /// The snapshot's id.
        id: String,
    },
    /// Ended: the source streams.
    Done {
        /// The snapshot's id.
        id: String,
    },
}

/// Declared columns of each table that the snapshot read, by the table's name.
pub type Tables = Arc<BTreeMap<String, Vec<String>>>;

/// Where the source stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Rises with every snapshot that begins; first in a row's version.
    pub incarnation: u32,
    /// System identifier of the cluster.
    pub system: String,
    /// Timeline of the cluster.
    pub timeline: u32,
    /// Database.
    pub database: String,
    /// Slot.
    pub slot: String,
    /// Commit LSN of the last published record.
    pub lsn: Lsn,
    /// Ordinal of the last published record in its transaction; `None` when nothing of a transaction at `lsn` is
    /// published.
    pub ordinal: Option<u32>,
    /// Everything below is published: the end of the last whole transaction, or a later mark.
    pub whole: Lsn,
    /// How far the snapshot is.
    pub snapshot: Snapshot,
    /// What the snapshot read.
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
    /// Whether a record at this place is stored already.
    pub(super) fn has(&self, commit_lsn: Lsn, ordinal: u32) -> bool {
        commit_lsn < self.whole || (commit_lsn == self.lsn && self.ordinal.is_some_and(|stored| ordinal <= stored))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            Snapshot::Wanted => write!(f, "new snapshot wanted"),
            Snapshot::Begun { id } => write!(f, "snapshot {id}, incarnation {}", self.incarnation),
            Snapshot::Done { .. } => write!(
                f,
                "{}, incarnation {}, slot {}",
                self.whole, self.incarnation, self.slot
            ),
        }
    }
}

impl crate::source::Position for Position {
    fn to_json(&self) -> String {
        let stored = Stored {
            v: FORMAT,
            kind: String::from(KIND),
            inc: self.incarnation,
            system: self.system.clone(),
            timeline: self.timeline,
            database: self.database.clone(),
            slot: self.slot.clone(),
            lsn: self.lsn.to_string(),
            ord: self.ordinal,
            whole: self.whole.to_string(),
            snapshot: self.snapshot.clone(),
            tables: std::borrow::Cow::Borrowed(&*self.tables),
        };
        serde_json::to_string(&stored).expect("texts and numbers always serialise")
    }

    fn complete(&self) -> String {
        match self.snapshot {
            Snapshot::Done { .. } => self.whole.to_string(),
            Snapshot::Wanted | Snapshot::Begun { .. } => String::new(),
        }
    }

    fn from_json(json: &str) -> Result<Self, String> {
        // The format comes first: a newer one may have other members.
        let AnyFormat { v, kind } = serde_json::from_str(json).map_err(|e| e.to_string())?;
        if kind != KIND {
            return Err(format!(
                "it is the position of a connector of kind {kind}, this one is of kind {KIND}"
            ));
        }
        if v != FORMAT {
            return Err(format!(
                "it has format {v}, this program reads up to {FORMAT}; upgrade it"
            ));
        }
        let stored: Stored<'_> = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let lsn = |text: &str| text.parse::<Lsn>().map_err(|_| format!("{text:?} is not an LSN"));
        Ok(Position {
            incarnation: stored.inc,
            system: stored.system,
            timeline: stored.timeline,
            database: stored.database,
            slot: stored.slot,
            lsn: lsn(&stored.lsn)?,
            ordinal: stored.ord,
            whole: lsn(&stored.whole)?,
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
            incarnation: 2,
            system: String::from("7312345678901234567"),
            timeline: 1,
            database: String::from("shop"),
            slot: String::from("trunkline_shop"),
            lsn: Lsn(0x16b_3748),
            ordinal: Some(4),
            whole: Lsn(0x16b_3700),
            snapshot: Snapshot::Done { id: String::from("s1") },
            tables: Arc::new(BTreeMap::from([(String::from("orders"), vec![String::from("id")])])),
        }
    }

    #[test]
    fn it_reads_back_and_has_a_version_first() {
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
            "it has format 2, this program reads up to 1; upgrade it"
        );
        let other = json.replace("\"kind\":\"postgres\"", "\"kind\":\"http\"");
        assert!(Position::from_json(&other).unwrap_err().contains("kind http"));
        assert!(Position::from_json("[]").is_err());
    }

    #[test]
    fn what_is_stored_is_known_to_the_record() {
        let stored = position();
        assert!(stored.has(Lsn(0x16b_36ff), 9));
        assert!(stored.has(Lsn(0x16b_3748), 4));
        assert!(!stored.has(Lsn(0x16b_3748), 5));
        assert!(!stored.has(Lsn(0x16b_3749), 0));
        // The end of one transaction may be the beginning of the next one's commit record.
        assert!(!stored.has(Lsn(0x16b_3700), 0));
    }
}
