//! Records of source transactions: keys, headers, and values that the server did not send.

mod chunks;

use super::super::pgoutput::decode;
use super::super::position::{ChunkProgress, Snapshot};
use super::super::static_record::{ColumnRecord, Content as StaticContent, PartitionRecord, StaticRecord};
use super::*;
use event_log::OutRecord;
use schemas::events::{ChunkEnd, Event as _};
use schemas::ids::{SchemaId, SourceName};
use schemas::pg_types::{self, Column};
use schemas::schema::Schema;

const RELATION: u32 = 7;
const BEGIN: Lsn = Lsn(0x100);
const RECORD_BYTES_MAX: usize = 4_000;

/// A value of a tuple: text, or `None` for an unchanged TOAST value.
type Sent<'a> = Option<&'a str>;

fn tuple(out: &mut Vec<u8>, marker: u8, values: &[Sent<'_>]) {
    out.push(marker);
    out.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        match value {
            None => out.push(b'u'),
            Some(text) => {
                out.push(b't');
                out.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                out.extend(text.as_bytes());
            }
        }
    }
}

fn message(kind: u8, tuples: &[(u8, &[Sent<'_>])]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(RELATION.to_be_bytes());
    for (marker, values) in tuples {
        tuple(&mut out, *marker, values);
    }
    out
}

fn relation() -> Vec<u8> {
    relation_of(RELATION, "orders", [(1, "id", 20), (0, "note", 25)])
}

/// A relation message: OID and name of the table; flags, name and type of each column.
fn relation_of(id: u32, table: &str, columns: [(u8, &str, u32); 2]) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(id.to_be_bytes());
    out.extend(format!("public\0{table}\0d").as_bytes());
    out.extend(2u16.to_be_bytes());
    for (flags, name, oid) in columns {
        out.push(flags);
        out.extend(name.as_bytes());
        out.push(0);
        out.extend(oid.to_be_bytes());
        out.extend(u32::MAX.to_be_bytes());
    }
    out
}

fn inserted(id: &str, note: &str) -> Vec<u8> {
    message(b'I', &[(b'N', &[Some(id), Some(note)])])
}

/// An update that changes the key, with replica identity DEFAULT. The unchanged note is not sent.
fn moved(from: &str, to: &str) -> Vec<u8> {
    message(b'U', &[(b'K', &[Some(from), None]), (b'N', &[Some(to), None])])
}

/// The table that [`relation`] describes.
fn static_content() -> StaticContent {
    let column = |name: &str, type_oid, type_name: &str| ColumnRecord {
        name: name.to_owned(),
        number: 1,
        type_oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        ..ColumnRecord::default()
    };
    let record = TableRecord {
        oid: RELATION,
        key: vec![String::from("id")],
        columns: vec![column("id", 20, "int8"), column("note", 25, "text")],
        ..TableRecord::default()
    };
    StaticContent {
        tables: BTreeMap::from([(String::from("orders"), record)]),
        ..StaticContent::default()
    }
}

struct Fixture {
    changes: Changes,
    schema: Arc<Schema>,
}

/// Formats a record as `ordinal key value headers`, followed by `.` if it is the last of its transaction.
type Lines = Vec<String>;

impl Fixture {
    /// Converts the stream of a connector whose stored position is this ordinal of the transaction at [`BEGIN`].
    fn new(stored: Option<u32>) -> Self {
        let (source, name) = (SourceName::new("shop").unwrap(), TableName::new("orders").unwrap());
        let columns = [Column::new("id", "int8", false), Column::new("note", "text", false)];
        let text = pg_types::table_schema(&source, &name, &columns).unwrap();
        let schema = Arc::new(Schema::parse(&text).unwrap());
        let table = Table::new(name, schema.clone(), SchemaId(1), vec![0]).unwrap();
        let position = Position {
            source_epoch: 1,
            lsn: stored.map_or(Lsn(1), |_| BEGIN),
            ordinal: stored,
            complete_lsn: Lsn(1),
            snapshot: Snapshot::Done { id: String::from("s") },
            chunks: None,
            source: StaticRecord::new(static_content()),
        };
        let setup = Setup {
            connector: "shop".into(),
            declared: [table.name.clone()].into(),
            tables: [Arc::new(table)].into(),
            emitter: Emitter::new("shop".into(), "change.shop".into(), RECORD_BYTES_MAX),
            chunk_end: SchemaId(2),
        };
        Fixture {
            changes: Changes::new(setup, position),
            schema,
        }
    }

    /// Converts one transaction.
    fn transaction(&mut self, messages: &[Vec<u8>]) -> Lines {
        self.transaction_of(&relation(), messages)
    }

    /// Converts one transaction with another definition of the table.
    fn transaction_of(&mut self, relation: &[u8], messages: &[Vec<u8>]) -> Lines {
        let mut out = OutBatch::default();
        self.changes.begin(BEGIN, 0, 700);
        for bytes in std::iter::once(relation).chain(messages.iter().map(Vec::as_slice)) {
            self.changes.change(&decode(bytes).unwrap(), &mut out).unwrap();
        }
        self.changes.commit(Lsn(BEGIN.0 + 8), &mut out);
        self.lines(&out)
    }

    fn cause(&self) -> Option<String> {
        let record = self.changes.position().source.table("orders")?;
        record.needs_snapshot.as_ref().map(|state| state.cause.clone())
    }

    fn lines(&self, out: &OutBatch) -> Lines {
        let mut lines = Lines::new();
        for (record, headers) in out.iter() {
            let headers: Vec<_> = headers.collect();
            lines.push(self.line(&record, &headers));
        }
        lines
    }

    fn line(&self, record: &OutRecord<'_>, all: &[event_log::Header<'_>]) -> String {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let tx = all.iter().find(|(name, _)| *name == headers::TX).unwrap().1.unwrap();
        let tx = Tx::parse(tx).unwrap();
        let topic = if record.topic.ends_with(".dlq") { "dlq " } else { "" };
        let mut line = format!("{topic}{} {}", tx.ordinal, text(record.key.unwrap()));
        if let Some(value) = record.value {
            let mut row = Vec::new();
            self.schema
                .decode(&value[schemas::wire::FRAME_LENGTH..], &mut row)
                .unwrap();
            line += if row[2].as_array().is_some() {
                " unchanged"
            } else {
                " whole"
            };
        }
        for (name, value) in all.iter().filter(|(name, _)| {
            ![headers::TX, headers::TABLE, headers::MISSING].contains(name) && !name.starts_with("__")
        }) {
            line += &format!(" {name} {}", text(value.unwrap()));
        }
        line + if tx.last { " ." } else { "" }
    }
}

#[test]
fn key_change_names_the_other_key_on_both_records() {
    let lines = Fixture::new(None).transaction(&[moved("1", "2")]);
    let want = [
        r#"0 ["orders","1"] moved-to ["orders","2"]"#,
        r#"1 ["orders","2"] unchanged moved-from ["orders","1"] ."#,
    ];
    assert_eq!(lines, want);
}

#[test]
fn rows_swap_keys_through_a_third_key() {
    let mut fixture = Fixture::new(None);
    let lines = fixture.transaction(&[moved("1", "0"), moved("2", "1"), moved("0", "2"), inserted("3", "x")]);
    let want = [
        r#"0 ["orders","1"] moved-to ["orders","0"]"#,
        r#"1 ["orders","0"] unchanged moved-from ["orders","1"]"#,
        r#"2 ["orders","2"] moved-to ["orders","1"]"#,
        r#"3 ["orders","1"] unchanged moved-from ["orders","2"]"#,
        r#"4 ["orders","0"] moved-to ["orders","2"]"#,
        r#"5 ["orders","2"] unchanged moved-from ["orders","0"]"#,
        r#"6 ["orders","3"] whole ."#,
    ];
    assert_eq!(lines, want);
}

#[test]
fn restart_between_tombstone_and_row_still_names_the_old_key() {
    let lines = Fixture::new(Some(0)).transaction(&[moved("1", "2")]);
    assert_eq!(lines, [r#"1 ["orders","2"] unchanged moved-from ["orders","1"] ."#]);
}

#[test]
fn full_replica_identity_fills_in_the_unchanged_column() {
    let full = |from, to| {
        message(
            b'U',
            &[(b'O', &[Some(from), Some("a note")]), (b'N', &[Some(to), None])],
        )
    };
    let lines = Fixture::new(None).transaction(&[full("1", "2"), full("2", "2")]);
    let want = [
        r#"0 ["orders","1"] moved-to ["orders","2"]"#,
        r#"1 ["orders","2"] whole moved-from ["orders","1"]"#,
        r#"2 ["orders","2"] whole ."#,
    ];
    assert_eq!(lines, want);
}

#[test]
fn delete_and_insert_is_not_a_key_change() {
    let deleted = message(b'D', &[(b'K', &[Some("1"), None])]);
    let lines = Fixture::new(None).transaction(&[deleted, inserted("2", "x")]);
    assert_eq!(lines, [r#"0 ["orders","1"]"#, r#"2 ["orders","2"] whole ."#]);
}

#[test]
fn unreadable_and_oversized_rows_become_dead_letters() {
    let mut fixture = Fixture::new(None);
    let long = "x".repeat(RECORD_BYTES_MAX);
    let without_note = message(b'I', &[(b'N', &[Some("2"), Some("y")])]);
    let mut null_note = message(b'I', &[]);
    null_note.extend(b"N\0\x02t\0\0\0\x013n");
    let bad_key = inserted("not a number", "x");
    let lines = fixture.transaction(&[inserted("1", &long), without_note, null_note, bad_key]);
    let want = [
        r#"0 ["~missing","orders","1"]"#,
        r#"dlq 0 ["~missing","orders","1"]"#,
        r#"2 ["orders","2"] whole"#,
        r#"4 ["~missing","orders","3"]"#,
        r#"dlq 4 ["~missing","orders","3"]"#,
        r#"6 ["~missing","orders"] ."#,
        r#"dlq 6 ["~missing","orders"] ."#,
    ];
    assert_eq!(lines, want);
    assert_eq!(fixture.changes.take_dead_letters(), 3);
    assert_eq!(fixture.cause(), None, "a dead letter does not stop the table");
}

#[test]
fn null_key_is_never_published_as_a_key() {
    let mut deleted = message(b'D', &[]);
    deleted.extend(b"K\0\x02nn");
    let lines = Fixture::new(None).transaction(&[deleted]);
    assert_eq!(
        lines,
        [r#"0 ["~missing","orders"] ."#, r#"dlq 0 ["~missing","orders"] ."#]
    );
}

#[test]
fn row_that_cannot_be_encoded_under_its_new_key_leaves_the_old_one() {
    let long = "x".repeat(RECORD_BYTES_MAX);
    let moved = message(b'U', &[(b'K', &[Some("1"), None]), (b'N', &[Some("2"), Some(&long)])]);
    let lines = Fixture::new(None).transaction(&[moved]);
    let want = [
        r#"0 ["orders","1"] moved-to ["orders","2"]"#,
        r#"1 ["~missing","orders","2"] ."#,
        r#"dlq 1 ["~missing","orders","2"] ."#,
    ];
    assert_eq!(lines, want);
}

#[test]
fn table_that_does_not_fit_is_stopped_and_published_once() {
    let columns = [(1, "id", 20), (0, "note", 25)];
    for (relation, want) in [
        (relation_of(RELATION, "orders_old", columns), "renamed"),
        (
            relation_of(RELATION, "orders", [(0, "id", 20), (0, "note", 25)]),
            "replica identity",
        ),
        (
            relation_of(RELATION, "orders", [(1, "id", 20), (0, "text", 25)]),
            "column note",
        ),
        (
            relation_of(RELATION, "orders", [(1, "id", 20), (0, "note", 3802)]),
            "type of column note",
        ),
    ] {
        let mut fixture = Fixture::new(None);
        let lines = fixture.transaction_of(&relation, &[inserted("1", "x"), inserted("2", "y")]);
        assert_eq!(lines, [r#"0 ["~missing","orders"] ."#], "{want}");
        let cause = fixture.cause().unwrap();
        assert!(cause.contains(want), "{cause}");
        assert!(
            fixture
                .changes
                .position()
                .source
                .stopped()
                .all(|(_, state)| state.published)
        );
    }
    let mut fixture = Fixture::new(None);
    fixture.transaction_of(&relation_of(8, "orders", columns), &[]);
    assert!(fixture.cause().unwrap().contains("was replaced"));
}

#[test]
fn stop_without_further_changes_is_published_between_transactions() {
    let mut fixture = Fixture::new(None);
    fixture.transaction(&[inserted("1", "x")]);
    fixture
        .changes
        .stop("orders", Cause::other("a partition was detached"), None);
    let mut out = OutBatch::default();
    // The LSN is below the end of the transaction, because a record of the transaction itself could have that version.
    fixture.changes.advance(Lsn(BEGIN.0), &mut out);
    assert!(out.is_empty());
    fixture.changes.advance(Lsn(BEGIN.0 + 80), &mut out);
    fixture.changes.advance(Lsn(BEGIN.0 + 90), &mut out);
    assert_eq!(fixture.lines(&out), [r#"0 ["~missing","orders"] ."#]);
    assert_eq!(fixture.changes.position().lsn, Lsn(BEGIN.0 + 79));
    assert!(fixture.transaction(&[inserted("2", "x")]).is_empty());
}

fn partition(file_node: u32) -> PartitionRecord {
    PartitionRecord {
        file_node,
        attached_by: 0,
        settled_below: 0,
    }
}

#[test]
fn truncation_makes_the_file_nodes_of_partitions_unknown() {
    let mut fixture = Fixture::new(None);
    let record = TableRecord {
        partitions: BTreeMap::from([(70, partition(170))]),
        ..static_content().tables["orders"].clone()
    };
    fixture.changes.set_record("orders", record);
    let mut truncated = vec![b'T'];
    truncated.extend(1u32.to_be_bytes());
    truncated.push(0);
    truncated.extend(RELATION.to_be_bytes());
    assert_eq!(fixture.transaction(&[truncated]), [r#"0 ["orders"] ."#]);
    let record = fixture.changes.position().source.table("orders").unwrap().clone();
    assert_eq!(record.partitions, BTreeMap::from([(70, partition(0))]));
    assert_eq!(fixture.changes.truncated_at("orders"), Some(BEGIN));
}
