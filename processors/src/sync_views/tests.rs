//! Staleness of views, record by record: when a view is marked stale, and what clears the mark.
//!
//! Each test contains the whole history of a row. The simulation tests faults and interleaving.

mod jobs;
mod key_changes;
mod rules;
mod schemas_of_records;
mod snapshots;

use super::{Config, StepLimits, SyncViews, Unavailable};
use event_log::{ErrorAction, NewRecord, RecordBatch, TimestampType, TopicPartition};
use schemas::events::{ChunkEnd, Event};
use schemas::headers::{self, Tx};
use schemas::ids::SchemaId;
use schemas::schema::Schema;
use schemas::version::Lsn;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use streams_test::StepDriver;
use views::record::{self, SchemaIds, ViewRecord};
use views::rules::{Piece, Relation, SourceRules, ViewRule};

const SCHEMA: &str = r#"{"type":"record","name":"t","fields":[{"name":"owner","type":"string"},{"name":"note","type":"string"},
    {"name":"_unchanged","type":["null",{"type":"array","items":"string"}],"default":null}]}"#;
const KNOWN: u32 = 7;
const UNKNOWN: u32 = 99;
const HORIZON: i64 = 10_000;
/// Long enough that the source omits the note if it does not change.
const NOTE: &str = "a note of more than eighteen bytes";

/// A change of a row.
#[derive(Clone, Copy)]
struct Change<'a> {
    source_epoch: u32,
    position: u64,
    ordinal: u32,
    last: bool,
    /// Header of a key change.
    moved: Option<(&'static str, &'a str)>,
    replayed: Option<&'a str>,
    schema: u32,
    key: &'a str,
    /// The note of the row: `None` deletes the row, `Some(None)` omits the note as unchanged.
    note: Option<Option<&'a str>>,
}

fn change(position: u64, note: &str) -> Change<'_> {
    Change {
        source_epoch: 1,
        position,
        ordinal: 0,
        last: true,
        moved: None,
        replayed: None,
        schema: KNOWN,
        key: "[\"t\",1]",
        note: Some(Some(note)),
    }
}

fn dead(position: u64, note: &str) -> Change<'_> {
    Change {
        schema: UNKNOWN,
        ..change(position, note)
    }
}

fn redriven(position: u64, note: &str) -> Change<'_> {
    Change {
        replayed: Some(headers::REDRIVE),
        ..change(position, note)
    }
}

fn unchanged(position: u64) -> Change<'static> {
    Change {
        note: Some(None),
        ..change(position, "")
    }
}

fn deleted(position: u64, key: &str) -> Change<'_> {
    Change {
        note: None,
        key,
        ..change(position, "")
    }
}

fn rule() -> ViewRule {
    ViewRule {
        name: "v".to_owned(),
        version: 1,
        bucket: vec![Piece::Column(0)],
        scope: vec![Piece::Column(0)],
        filter: None,
        fields: vec![("note".to_owned(), 1)],
    }
}

/// The views of a table with these columns.
fn relation(table: &str, columns: &[&str], views: Vec<ViewRule>) -> Relation {
    let used = (0..columns.len()).collect();
    Relation::new(table, declared(columns), &used, views, 1)
}

/// The schema of a table with these columns.
fn declared(columns: &[&str]) -> Arc<Schema> {
    let column = |name: &&str| format!(r#"{{"name":"{name}","type":"string"}},"#);
    let columns: String = columns.iter().map(column).collect();
    let unchanged = r#"{"name":"_unchanged","type":["null",{"type":"array","items":"string"}],"default":null}"#;
    let schema = format!(r#"{{"type":"record","name":"t","fields":[{columns}{unchanged}]}}"#);
    Arc::new(Schema::parse(&schema).unwrap())
}

fn processor(relations: Vec<Relation>, job_step: StepLimits) -> SyncViews {
    processor_with(relations, job_step, |id| (id == KNOWN).then_some(SCHEMA))
}

/// Like [`processor`]; `schema` returns the schema of an id.
fn processor_with(
    relations: Vec<Relation>,
    job_step: StepLimits,
    schema: fn(u32) -> Option<&'static str>,
) -> SyncViews {
    processor_of(SourceRules::new("shop.change.t", None, relations), job_step, schema)
}

fn processor_of(rules: SourceRules, job_step: StepLimits, schema: fn(u32) -> Option<&'static str>) -> SyncViews {
    SyncViews::new(Config {
        rules: Arc::new(rules),
        writer: "p/shop.change.t/id/0".to_owned(),
        topic_id: "id".to_owned(),
        view_log: "shop.view.log".into(),
        partitions: 1,
        schemas: SchemaIds {
            row: 1,
            transaction_end: 2,
            transaction_begin: 3,
            stale: 4,
            loaded: 5,
        },
        horizon_ms: HORIZON,
        job_step,
        fetch: Arc::new(move |id| {
            schema(id).map(str::to_owned).ok_or(Unavailable {
                reason: format!("schema {id} is not known"),
                action: ErrorAction::DeadLetter,
            })
        }),
    })
}

struct Harness {
    driver: StepDriver,
    offset: i64,
    rows: BTreeMap<String, String>,
    /// The rows as view, key and bucket.
    keys: BTreeSet<(String, String, String)>,
    stale: bool,
    /// Loaded views.
    loaded: BTreeSet<String>,
    dead_letters: usize,
    /// Messages of the dead letters.
    reasons: Vec<String>,
}

impl Harness {
    fn new() -> Harness {
        Harness::with_step(StepLimits::default())
    }

    fn with_step(job_step: StepLimits) -> Harness {
        let relation = relation("t", &["owner", "note"], vec![rule()]);
        Harness::of(processor(vec![relation], job_step))
    }

    /// The view has the first two columns of the declared schema; `schema` returns the schema of an id.
    fn with(declared: &str, schema: fn(u32) -> Option<&'static str>) -> Harness {
        let declared = Arc::new(Schema::parse(declared).unwrap());
        let rule = ViewRule {
            fields: vec![(declared.fields()[1].name.to_string(), 1)],
            ..rule()
        };
        let relation = Relation::new("t", declared, &[0, 1].into(), vec![rule], 1);
        Harness::of(processor_with(vec![relation], StepLimits::default(), schema))
    }

    fn of(processor: SyncViews) -> Harness {
        Harness {
            driver: StepDriver::new("sync-views", Box::new(processor)).unwrap(),
            offset: 0,
            rows: BTreeMap::new(),
            keys: BTreeSet::new(),
            stale: false,
            loaded: BTreeSet::new(),
            dead_letters: 0,
            reasons: Vec::new(),
        }
    }

    /// Processes a record that is the only one in its source transaction and its Kafka transaction.
    fn record(&mut self, key: &str, tx: Option<Tx>, replayed: Option<&str>, value: Option<&[u8]>) {
        let replayed = replayed.map(|how| (headers::REPLAYED, how));
        let batch = self.batch(key, tx, replayed.as_slice(), value);
        self.driver.feed(&batch).unwrap();
        self.commit();
    }

    fn batch(&mut self, key: &str, tx: Option<Tx>, extra: &[(&str, &str)], value: Option<&[u8]>) -> RecordBatch {
        let tx = tx.map(|tx| {
            let mut text = Vec::new();
            tx.write(&mut text);
            text
        });
        let tx = tx.as_deref().map(|tx| (headers::TX, Some(tx)));
        let extra = extra.iter().map(|(name, value)| (*name, Some(value.as_bytes())));
        let all = tx.into_iter().chain(extra);
        let record = NewRecord {
            offset: self.offset,
            timestamp: 0,
            timestamp_type: TimestampType::Create,
            key: Some(key.as_bytes()),
            value,
        };
        self.offset += 1;
        streams_test::record(&TopicPartition::new("shop.change.t", 0), record, all)
    }

    fn commit(&mut self) {
        assert!(
            self.apply_commit(),
            "I3: rows of an ended source transaction are still pending"
        );
    }

    /// Commits, and returns whether nothing is pending.
    fn apply_commit(&mut self) -> bool {
        let mut out = RecordBatch::default();
        let view_log = out.intern(&TopicPartition::new("shop.view.log", 0));
        for written in self.driver.commit().unwrap() {
            if written.topic != "shop.view.log" {
                self.dead_letters += 1;
                let mut headers = written.headers.into_iter();
                let reason = headers.find(|(name, _)| name == headers::errors::EXCEPTION_MESSAGE);
                self.reasons
                    .push(String::from_utf8(reason.unwrap().1.unwrap()).unwrap());
                continue;
            }
            let headers = written
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_deref()));
            let (key, value) = (written.key.as_deref(), written.value.as_deref());
            out.push(
                view_log,
                NewRecord {
                    offset: 0,
                    timestamp: 0,
                    timestamp_type: TimestampType::LogAppend,
                    key,
                    value,
                },
                headers,
            );
        }
        let mut closed = true;
        for record in out.iter() {
            closed = false;
            match record::parse(&record).unwrap() {
                ViewRecord::Row(row) => {
                    let key = row.key.to_owned();
                    let full = (row.view.to_string(), key.clone(), row.bucket.to_string());
                    match row.json {
                        Some(_) => drop(self.keys.insert(full)),
                        None => drop(self.keys.remove(&full)),
                    }
                    match row.json {
                        Some(json) => drop(self.rows.insert(key, String::from_utf8(json.to_vec()).unwrap())),
                        None => drop(self.rows.remove(&key)),
                    }
                }
                ViewRecord::Stale { stale, .. } => self.stale = stale,
                ViewRecord::Loaded { view, loaded: true, .. } => drop(self.loaded.insert(view.into_owned())),
                ViewRecord::Loaded { view, .. } => drop(self.loaded.remove(&*view)),
                ViewRecord::TransactionEnd { .. } => closed = true,
                ViewRecord::TransactionBegin { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        closed
    }

    fn feed(&mut self, change: &Change<'_>) {
        let batch = self.batch_of(change);
        self.driver.feed(&batch).unwrap();
        self.commit();
    }

    fn batch_of(&mut self, change: &Change<'_>) -> RecordBatch {
        let value = value_of(change);
        let tx = Tx {
            ordinal: change.ordinal,
            last: change.last,
            ..tx(change.source_epoch, change.position)
        };
        let replayed = change.replayed.map(|how| (headers::REPLAYED, how));
        let extra: Vec<_> = replayed.into_iter().chain(change.moved).collect();
        self.batch(change.key, Some(tx), &extra, value.as_deref())
    }

    /// A snapshot of the empty table.
    fn empty_snapshot(&mut self, source_epoch: u32, position: u64) {
        self.chunk_end(source_epoch, position, position);
    }

    /// The end of a chunk of the whole table whose rows have this position.
    fn chunk_end(&mut self, source_epoch: u32, position: u64, low_position: u64) {
        self.chunk_end_from(None, tx(source_epoch, position), low_position);
    }

    /// The end of a chunk that begins with this key.
    fn chunk_end_from(&mut self, from: Option<&str>, tx: Tx, low_position: u64) {
        let value = chunk_value(from, None, low_position, true);
        self.record("[\"~chunk\",\"t\"]", Some(tx), None, Some(&value));
    }

    /// Makes sync-views remove deleted rows from its state, so that the floor rises.
    fn forget(&mut self) {
        self.driver.now += 2 * HORIZON;
        self.record("[\"other\",1]", Some(tx(1, 0)), Some(headers::REPLAY), None);
    }

    fn note(&self) -> Option<&str> {
        self.rows
            .get("1")
            .map(|row| row.trim_start_matches("{\"note\":\"").trim_end_matches("\"}"))
    }
}

/// The framed row of a change.
fn value_of(change: &Change<'_>) -> Option<Vec<u8>> {
    change.note.map(|note| {
        let mut value = vec![0];
        value.extend_from_slice(&change.schema.to_be_bytes());
        for text in ["ann", note.unwrap_or_default()] {
            value.push(u8::try_from(2 * text.len()).unwrap());
            value.extend_from_slice(text.as_bytes());
        }
        match note {
            Some(_) => value.push(0),
            None => value.extend_from_slice(b"\x02\x02\x08note\x00"),
        }
        value
    })
}

/// The value of the end of a chunk.
fn chunk_value(from: Option<&str>, to: Option<&str>, low_position: u64, is_final: bool) -> Vec<u8> {
    let mut low = Vec::new();
    Lsn(low_position).write(&mut low);
    let end = ChunkEnd {
        table: "t",
        from,
        to,
        snapshot: "s",
        low: std::str::from_utf8(&low).unwrap(),
        is_final,
    };
    let mut value = Vec::new();
    end.write(SchemaId(8), &mut value);
    value
}

fn tx(source_epoch: u32, position: u64) -> Tx {
    Tx {
        source_epoch,
        position: Lsn(position),
        ordinal: 0,
        last: true,
        at_ms: 1,
    }
}

#[test]
fn dead_letter_makes_view_stale_until_redriven() {
    let mut harness = Harness::new();
    harness.feed(&change(1, "one"));
    harness.feed(&dead(2, "two"));
    assert_eq!(
        (harness.note(), harness.stale, harness.dead_letters),
        (Some("one"), true, 1)
    );
    harness.feed(&dead(3, "three"));
    harness.feed(&redriven(3, "three"));
    assert_eq!(
        (harness.note(), harness.stale),
        (Some("three"), false),
        "a whole row needs no older change"
    );
    harness.feed(&redriven(2, "two"));
    assert_eq!((harness.note(), harness.stale), (Some("three"), false));
}

#[test]
fn whole_newer_change_clears_stale_partial_does_not() {
    let mut harness = Harness::new();
    harness.feed(&change(1, NOTE));
    harness.feed(&dead(2, "another note that is just as long"));
    harness.feed(&unchanged(3));
    assert_eq!(
        (harness.note(), harness.stale),
        (Some(NOTE), true),
        "its note is that of the missing change"
    );
    harness.feed(&redriven(2, "another note that is just as long"));
    assert!(harness.stale, "the row was written without it");
    harness.feed(&change(4, "four"));
    assert_eq!((harness.note(), harness.stale), (Some("four"), false));
    harness.feed(&dead(5, "five"));
    harness.feed(&deleted(6, "[\"t\",1]"));
    assert_eq!((harness.note(), harness.stale), (None, false));
}

#[test]
fn redrive_below_the_floor_leaves_view_stale() {
    for known in [true, false] {
        let mut harness = Harness::new();
        if known {
            harness.feed(&dead(1, "one"));
        }
        harness.feed(&deleted(2, "[\"t\",2]"));
        harness.forget();
        // It is not known whether row 1 was deleted too.
        harness.feed(&redriven(1, "one"));
        assert_eq!(
            (harness.note(), harness.stale),
            (None, true),
            "known as a dead letter: {known}"
        );
        harness.empty_snapshot(1, 9);
        assert_eq!(
            (harness.note(), harness.stale),
            (None, false),
            "known as a dead letter: {known}"
        );
    }
}

#[test]
fn redrive_does_not_resurrect_row_missing_in_snapshot() {
    for source_epoch in [1, 2] {
        let mut harness = Harness::new();
        harness.feed(&dead(1, "one"));
        harness.empty_snapshot(source_epoch, 9);
        assert!(!harness.stale);
        harness.feed(&redriven(1, "one"));
        assert_eq!(
            (harness.note(), harness.stale),
            (None, false),
            "source epoch {source_epoch}"
        );
    }
}

#[test]
fn older_source_epoch_does_not_resurrect_rows() {
    let mut harness = Harness::new();
    harness.empty_snapshot(2, 9);
    // A dead letter that has no missing entry.
    harness.feed(&redriven(1, "one"));
    assert_eq!((harness.note(), harness.stale), (None, true));
}

#[test]
fn truncation_clears_earlier_missing_entries() {
    let mut harness = Harness::new();
    harness.feed(&dead(1, "one"));
    harness.record("[\"t\"]", Some(tx(1, 2)), None, None);
    assert!(!harness.stale);
    harness.feed(&redriven(1, "one"));
    assert_eq!((harness.note(), harness.stale), (None, false));
}

#[test]
fn change_without_version_makes_view_stale() {
    let mut harness = Harness::new();
    harness.feed(&change(1, "one"));
    harness.record("[\"t\",1]", None, None, Some(b"?"));
    assert_eq!(
        (harness.note(), harness.stale, harness.dead_letters),
        (Some("one"), true, 1)
    );
    harness.feed(&change(2, "two"));
    assert_eq!((harness.note(), harness.stale), (Some("two"), false));
    // The key does not identify a row, so there is no missing entry.
    harness.record("[\"t\"", None, None, None);
    harness.record("[\"nothing\",1]", None, None, Some(b"?"));
    assert_eq!((harness.stale, harness.dead_letters), (false, 3));
}

#[test]
fn rejected_record_ends_transaction_and_row_lacks_it() {
    let mut harness = Harness::new();
    harness.feed(&change(1, "one"));
    let batch = harness.batch_of(&change(2, "two"));
    harness.driver.give_up(&batch).unwrap();
    harness.commit();
    assert_eq!((harness.note(), harness.stale), (Some("one"), true));
    harness.feed(&redriven(2, "two"));
    assert_eq!((harness.note(), harness.stale), (Some("two"), false));
    // If the last record of a source transaction is rejected, it still ends the transaction. Otherwise its other rows
    // would stay pending.
    let mut first = Harness::new();
    let open = Tx {
        last: false,
        ..tx(1, 1)
    };
    let value = value_of(&change(1, "one"));
    let batch = first.batch("[\"t\",1]", Some(open), &[], value.as_deref());
    first.driver.feed(&batch).unwrap();
    let batch = first.batch_of(&change(1, "two"));
    first.driver.give_up(&batch).unwrap();
    first.commit();
    assert_eq!((first.note(), first.stale), (Some("one"), true));
}

#[test]
fn change_that_the_source_lacks_makes_view_stale_until_a_newer_one() {
    let mut harness = Harness::new();
    harness.feed(&change(1, "one"));
    harness.record("[\"~missing\",\"t\",1]", Some(tx(1, 2)), None, None);
    assert_eq!(
        (harness.note(), harness.stale, harness.dead_letters),
        (Some("one"), true, 0)
    );
    harness.feed(&change(3, "three"));
    assert_eq!((harness.note(), harness.stale), (Some("three"), false));
    harness.record("[\"~missing\",\"t\",1]", Some(tx(1, 2)), Some(headers::REPLAY), None);
    assert!(!harness.stale, "a replayed older record changes nothing");
}

#[test]
fn table_that_lacks_changes_is_stale_until_a_snapshot_or_truncation() {
    for ends_with_snapshot in [true, false] {
        let mut harness = Harness::new();
        harness.feed(&change(1, "one"));
        harness.record("[\"~missing\",\"t\"]", Some(tx(1, 2)), None, None);
        harness.feed(&change(3, "three"));
        harness.feed(&deleted(4, "[\"t\",1]"));
        assert!(harness.stale, "any other row may lack a change");
        if ends_with_snapshot {
            harness.empty_snapshot(1, 9);
        } else {
            harness.record("[\"t\"]", Some(tx(1, 9)), None, None);
        }
        assert!(!harness.stale);
        harness.record("[\"~missing\",\"t\"]", Some(tx(1, 2)), Some(headers::REPLAY), None);
        assert!(!harness.stale, "a replayed record is no new gap");
        // The state contains no deleted row for the entry of the table.
        harness.forget();
        harness.feed(&change(12, "twelve"));
        assert_eq!((harness.note(), harness.stale), (Some("twelve"), false));
    }
}

#[test]
fn end_of_a_chunk_does_not_cover_what_the_chunk_itself_lacks() {
    for key in ["[\"~missing\",\"t\",1]", "[\"~missing\",\"t\"]"] {
        let mut harness = Harness::new();
        harness.record(key, Some(tx(1, 8)), None, None);
        harness.chunk_end(1, 8, 9);
        assert!(harness.stale, "{key}");
        harness.chunk_end(1, 18, 19);
        assert!(!harness.stale, "{key}");
    }
}

#[test]
fn chunk_of_a_range_does_not_cover_the_table() {
    let mut harness = Harness::new();
    harness.record("[\"~missing\",\"t\"]", Some(tx(1, 2)), None, None);
    harness.chunk_end_from(Some("[5]"), tx(1, 8), 9);
    assert!(harness.stale, "rows before the range may lack changes");
}
