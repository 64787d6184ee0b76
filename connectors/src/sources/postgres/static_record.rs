//! The static record of a position, which describes the source from which the published rows were read.
//!
//! It contains the cluster, database, slot and publication, and for each table the properties that must not change
//! during streaming: OID, key, columns, partitions. An open source and its monitor compare it with the catalog and with
//! the stream. It also lists the tables that need a snapshot. It is written only when it changes.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

/// The format version that is written, and the only one that is read.
pub(super) const FORMAT: u32 = 3;
/// Kind of connector, stored in both records.
pub(super) const KIND: &str = "postgres";

/// The content of a static record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Content {
    /// System identifier of the cluster.
    pub system: String,
    /// Timeline of the cluster.
    pub timeline: u32,
    /// Database.
    pub database: String,
    /// Slot.
    pub slot: String,
    /// Publication.
    pub publication: PublicationRecord,
    /// Declared tables by name.
    pub tables: BTreeMap<String, TableRecord>,
}

/// The publication at the start of the source epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PublicationRecord {
    /// Its name.
    pub name: String,
    /// OID. It changes if the publication is dropped and created again.
    pub oid: u32,
    /// The published operations.
    pub operations: Vec<String>,
    /// `publish_via_partition_root`.
    pub via_root: bool,
}

/// A table of the source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableRecord {
    /// OID. It changes if the table is dropped and created again, or replaced by renaming.
    pub oid: u32,
    /// Columns of the record key, in order.
    pub key: Vec<String>,
    /// `d` default, `n` nothing, `f` full, `i` index.
    pub replica_identity: String,
    /// File node; 0 if the table is partitioned. It changes if the table is rewritten or truncated.
    pub file_node: u32,
    /// Declared columns.
    pub columns: Vec<ColumnRecord>,
    /// Row filter of the publication.
    pub row_filter: Option<String>,
    /// Column list of the publication; `None` for all columns.
    pub column_list: Option<Vec<String>>,
    /// Transaction id of the last change of the publication's options.
    pub publication_changed_by: u32,
    /// Identities of the publication's entries that contain the table. Another identity means that the table may have
    /// been unpublished in between.
    pub memberships: BTreeSet<String>,
    /// Partitions at all levels by OID.
    pub partitions: BTreeMap<u32, PartitionRecord>,
    /// Set if the table's changes are skipped until the table is read again.
    pub needs_snapshot: Option<NeedsSnapshot>,
    /// Set while a snapshot of the table is requested or running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<TableSnapshot>,
}

/// The snapshot of a single table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TableSnapshot {
    /// Requested. It begins when no other table's snapshot is running.
    Wanted,
    /// Running. The moving record contains its progress.
    Running {
        /// The snapshot's id.
        id: String,
        /// Position from which the table's changes are published. When the snapshot ends, a row with an older version
        /// no longer exists.
        low: String,
    },
}

/// A partition of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Its file node, which TRUNCATE changes; 0 if it is unknown or the partition is partitioned itself.
    pub file_node: u32,
    /// Transaction id that attached it.
    pub attached_by: u32,
    /// All transactions with a smaller id had ended when the file node was read; 0 if that is unknown.
    #[serde(default)]
    pub settled_below: u64,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ColumnRecord {
    /// Its name.
    pub name: String,
    /// Number (`attnum`). It changes if the column is dropped and added again. 0 if the column was dropped, and null is
    /// published instead.
    pub number: i16,
    /// OID of its type.
    pub type_oid: u32,
    /// Type modifier, -1 for none.
    pub type_modifier: i32,
    /// Name of its type; of a domain, its base type.
    pub type_name: String,
    /// Transaction id of the last change of its definition. If the file node has changed too, `ALTER COLUMN … TYPE …
    /// USING` may have changed the values.
    pub changed_by: u32,
    /// Labels of an enum by OID.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<u32, String>,
    /// Identifies the mask with which its values are published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
}

impl ColumnRecord {
    /// Whether the column was dropped, so that null is published.
    pub(super) fn is_dropped(&self) -> bool {
        self.number == 0
    }
}

/// The state of a table that needs a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeedsSnapshot {
    /// The cause: what changed.
    pub cause: String,
    /// The fix.
    pub fix: String,
    /// Whether the record that informs readers has been published.
    pub published: bool,
    /// Whether the registry rejected the table's schema. In this case a snapshot alone does not help.
    pub schema_rejected: bool,
    /// Whether a snapshot of the table is taken without a request: the table or a column was declared later, or the table
    /// was changed by a usual migration.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
}

/// A content with its encoded JSON. Cheap to clone and to compare.
#[derive(Debug, Clone)]
pub struct StaticRecord {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    content: Content,
    revision: String,
    json: String,
}

impl PartialEq for StaticRecord {
    fn eq(&self, other: &Self) -> bool {
        self.inner.revision == other.inner.revision
    }
}

impl Eq for StaticRecord {}

impl Default for StaticRecord {
    fn default() -> Self {
        StaticRecord::new(Content::default())
    }
}

#[derive(Serialize, Deserialize)]
struct Stored<C> {
    v: u32,
    kind: String,
    rev: String,
    source: C,
}

impl StaticRecord {
    /// Encodes a content. The revision is a hash of the content, so equal contents have equal revisions.
    pub fn new(content: Content) -> Self {
        let body = serde_json::to_vec(&content).expect("strings and numbers always serialize");
        let mut revision = String::new();
        for byte in Sha256::digest(&body).iter().take(8) {
            let _ = write!(revision, "{byte:02x}");
        }
        let stored = Stored {
            v: FORMAT,
            kind: String::from(KIND),
            rev: revision.clone(),
            source: &content,
        };
        let json = serde_json::to_string(&stored).expect("strings and numbers always serialize");
        StaticRecord {
            inner: Arc::new(Inner {
                content,
                revision,
                json,
            }),
        }
    }

    /// Parses a stored static record and checks that it has the revision that the moving record names.
    pub(super) fn parse(json: Option<&str>, revision: &str) -> Result<Self, String> {
        let json = json.ok_or("its static record is missing")?;
        let stored: Stored<Content> = serde_json::from_str(json).map_err(|e| format!("its static record: {e}"))?;
        if stored.v != FORMAT {
            return Err(format!("its static record has format {}", stored.v));
        }
        let record = StaticRecord::new(stored.source);
        if record.revision() != revision {
            return Err(format!(
                "its static record has revision {}, but the position names {revision}",
                record.revision()
            ));
        }
        Ok(record)
    }

    /// Returns a record with a changed content.
    pub(super) fn with(&self, change: impl FnOnce(&mut Content)) -> Self {
        let mut content = self.inner.content.clone();
        change(&mut content);
        StaticRecord::new(content)
    }

    /// The content.
    pub fn content(&self) -> &Content {
        &self.inner.content
    }

    /// The revision, which identifies the content.
    pub fn revision(&self) -> &str {
        &self.inner.revision
    }

    /// The encoded JSON.
    pub fn json(&self) -> &str {
        &self.inner.json
    }

    /// The table of this name.
    pub fn table(&self, name: &str) -> Option<&TableRecord> {
        self.inner.content.tables.get(name)
    }

    /// The table whose snapshot is running, with the snapshot's id and low position.
    pub(super) fn running_snapshot(&self) -> Option<(&str, &str, &str)> {
        self.inner
            .content
            .tables
            .iter()
            .find_map(|(name, table)| match &table.snapshot {
                Some(TableSnapshot::Running { id, low }) => Some((name.as_str(), id.as_str(), low.as_str())),
                _ => None,
            })
    }

    /// The tables that need a snapshot.
    pub fn stopped(&self) -> impl Iterator<Item = (&str, &NeedsSnapshot)> {
        let tables = self.inner.content.tables.iter();
        tables.filter_map(|(name, table)| Some((name.as_str(), table.needs_snapshot.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Content {
        let table = TableRecord {
            oid: 16_400,
            key: vec![String::from("id")],
            replica_identity: String::from("d"),
            partitions: BTreeMap::from([(
                16_401,
                PartitionRecord {
                    file_node: 16_401,
                    attached_by: 740,
                    settled_below: 750,
                },
            )]),
            ..TableRecord::default()
        };
        Content {
            system: String::from("7312345678901234567"),
            timeline: 1,
            tables: BTreeMap::from([(String::from("orders"), table)]),
            ..Content::default()
        }
    }

    #[test]
    fn two_thousand_tables_fit_into_the_positions_topic() {
        let column = |number: i16| ColumnRecord {
            name: format!("a_name_of_common_length_{number}"),
            number,
            type_oid: 1184,
            type_modifier: -1,
            type_name: String::from("timestamptz"),
            changed_by: u32::MAX,
            labels: BTreeMap::new(),
            mask: None,
        };
        let table = TableRecord {
            oid: 1_000_000,
            columns: (1..=30).map(column).collect(),
            memberships: BTreeSet::from([String::from("table 1000000")]),
            ..content().tables["orders"].clone()
        };
        let tables = (0..2_000).map(|at| (format!("a_schema.a_table_of_common_length_{at}"), table.clone()));
        let record = StaticRecord::new(Content {
            tables: tables.collect(),
            ..content()
        });
        let stored = schemas::events::ConnectorPosition {
            position: record.json(),
            complete: "0/16B3748",
            updated_at: 0,
        };
        let mut value = Vec::new();
        schemas::events::Event::write(&stored, schemas::ids::SchemaId(1), &mut value);
        let clock = service::clock::system();
        let config = event_log::embedded::Config::new(None, Arc::new(move || clock.now_ms()));
        let log: event_log::SharedEventLog = event_log::embedded::EmbeddedLog::open(config).unwrap();
        log.create_topics(&[crate::source::positions_spec("positions")])
            .unwrap();
        let mut batch = event_log::OutBatch::default();
        let out = event_log::OutRecord {
            topic: &"positions".into(),
            partition: Some(0),
            timestamp: None,
            key: Some(b"k"),
            value: Some(&value),
        };
        batch.push(out, std::iter::empty());
        log.append(&batch).unwrap();
        assert!(value.len() > 2 << 20, "{} bytes", value.len());
    }

    #[test]
    fn stored_form_round_trips_and_the_revision_must_match() {
        let record = StaticRecord::new(content());
        assert_eq!(
            StaticRecord::parse(Some(record.json()), record.revision()),
            Ok(record.clone())
        );
        let other = record.with(|content| content.timeline = 2);
        assert_ne!(other, record);
        let error = StaticRecord::parse(Some(other.json()), record.revision()).unwrap_err();
        assert!(error.contains("but the position names"), "{error}");
        assert!(StaticRecord::parse(None, record.revision()).is_err());
        let older = record.json().replace("\"v\":3", "\"v\":2");
        assert!(StaticRecord::parse(Some(&older), record.revision()).is_err());
    }
}
