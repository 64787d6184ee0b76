//! Records of source transactions: keys, headers, and values that the server did not send.

use super::super::pgoutput::decode;
use super::super::position::Snapshot;
use super::*;
use schemas::ids::{SchemaId, SourceName, TableName};
use schemas::pg_types::{self, Column};
use schemas::schema::Schema;
use std::collections::BTreeMap;

const RELATION: u32 = 7;
const BEGIN: Lsn = Lsn(0x100);

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
    let mut out = vec![b'R'];
    out.extend(RELATION.to_be_bytes());
    out.extend(b"public\0orders\0d");
    out.extend(2u16.to_be_bytes());
    for (flags, name, oid) in [(1u8, "id", 20u32), (0, "note", 25)] {
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
            system: String::new(),
            timeline: 1,
            database: String::new(),
            slot: String::new(),
            lsn: stored.map_or(Lsn(1), |_| BEGIN),
            ordinal: stored,
            complete_lsn: Lsn(1),
            snapshot: Snapshot::Done { id: String::from("s") },
            tables: Arc::new(BTreeMap::new()),
        };
        Fixture {
            changes: Changes::new("change.shop".into(), [table].into(), position),
            schema,
        }
    }

    /// Converts one transaction.
    fn transaction(&mut self, messages: &[Vec<u8>]) -> Lines {
        let mut out = OutBatch::default();
        self.changes.begin(BEGIN, 0);
        for bytes in std::iter::once(&relation()).chain(messages) {
            self.changes.change(&decode(bytes).unwrap(), &mut out).unwrap();
        }
        self.changes.commit(Lsn(BEGIN.0 + 8), &mut out);
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
        let mut line = format!("{} {}", tx.ordinal, text(record.key.unwrap()));
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
        for (name, value) in all
            .iter()
            .filter(|(name, _)| ![headers::TX, headers::TABLE].contains(name))
        {
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
