//! Views that lack changes: when they say so, and what mends them, record by record.
//!
//! Guarantees: each case is a row's whole history in one place; the simulation has the faults and the interleaving.
//! Never: a look into the state.

mod key_changes;

use super::{Config, SyncViews, Unavailable};
use event_log::{ErrorAction, RecordBatch, TimestampType, TopicPartition};
use schemas::events::{ChunkEnd, Event};
use schemas::headers::{self, Tx};
use schemas::ids::SchemaId;
use schemas::version::Lsn;
use std::collections::BTreeMap;
use std::sync::Arc;
use streams::driver::StepDriver;
use views::record::{self, SchemaIds, ViewRecord};
use views::rules::{Piece, Relation, SourceRules, ViewRule};

const SCHEMA: &str = r#"{"type":"record","name":"t","fields":[{"name":"owner","type":"string"},{"name":"note","type":"string"},
    {"name":"_unchanged","type":["null",{"type":"array","items":"string"}],"default":null}]}"#;
const KNOWN: u32 = 7;
const UNKNOWN: u32 = 99;
const HORIZON: i64 = 10_000;
/// Long enough to be left out by a source when it does not change.
const NOTE: &str = "a note of more than eighteen bytes";

/// A change of row 1: its place, its header `replayed`, and what it says.
#[derive(Clone, Copy)]
struct Change<'a> {
    incarnation: u32,
    position: u64,
    ordinal: u32,
    last: bool,
    /// Header of a change of the row's key.
    moved: Option<(&'static str, &'a str)>,
    again: Option<&'a str>,
    schema: u32,
    key: &'a str,
    /// `None` deletes; a note of `None` was left out as unchanged.
    note: Option<Option<&'a str>>,
}

fn change(position: u64, note: &str) -> Change<'_> {
    Change {
        incarnation: 1,
        position,
        ordinal: 0,
        last: true,
        moved: None,
        again: None,
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
        again: Some(headers::REDRIVE),
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

struct Stand {
    driver: StepDriver,
    offset: i64,
    rows: BTreeMap<String, String>,
    stale: bool,
    letters: usize,
}

impl Stand {
    fn new() -> Stand {
        let rule = ViewRule {
            name: "v".to_owned(),
            bucket: vec![Piece::Column(0)],
            scope: vec![Piece::Column(0)],
            filter: None,
            fields: vec![("note".to_owned(), 1)],
        };
        let columns = ["owner", "note"].map(|name| Some(name.to_owned())).to_vec();
        let rules = SourceRules::new("change.t", None, vec![Relation::new("t", columns, vec![rule], 1)]);
        let processor = SyncViews::new(Config {
            rules: Arc::new(rules),
            writer: "p/change.t/id/0".to_owned(),
            topic_id: "id".to_owned(),
            view_log: "view.log".into(),
            partitions: 1,
            schemas: SchemaIds {
                row: 1,
                closing: 2,
                open: 3,
                stale: 4,
            },
            horizon_ms: HORIZON,
            fetch: Arc::new(|id| {
                (id == KNOWN).then(|| SCHEMA.to_owned()).ok_or(Unavailable {
                    reason: format!("schema {id} is not known"),
                    fate: ErrorAction::DeadLetter,
                })
            }),
        });
        Stand {
            driver: StepDriver::new("sync-views", Box::new(processor)).unwrap(),
            offset: 0,
            rows: BTreeMap::new(),
            stale: false,
            letters: 0,
        }
    }

    /// A record, alone in its transaction of the source and of the log.
    fn record(&mut self, key: &str, tx: Option<Tx>, again: Option<&str>, value: Option<&[u8]>) {
        let again = again.map(|how| (headers::REPLAYED, how));
        let batch = self.batch(key, tx, again.as_slice(), value);
        self.driver.feed(&batch).unwrap();
        self.commit();
    }

    fn batch(&mut self, key: &str, tx: Option<Tx>, extra: &[(&str, &str)], value: Option<&[u8]>) -> RecordBatch {
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new("change.t", 0));
        let tx = tx.map(|tx| {
            let mut text = Vec::new();
            tx.write(&mut text);
            text
        });
        let tx = tx.as_deref().map(|tx| (headers::TX, Some(tx)));
        let extra = extra.iter().map(|(name, value)| (*name, Some(value.as_bytes())));
        let all = tx.into_iter().chain(extra);
        batch.push(
            at,
            self.offset,
            0,
            TimestampType::Create,
            Some(key.as_bytes()),
            value,
            all,
        );
        self.offset += 1;
        batch
    }

    fn commit(&mut self) {
        let mut out = RecordBatch::default();
        let view_log = out.intern(&TopicPartition::new("view.log", 0));
        for written in self.driver.commit().unwrap() {
            if written.topic != "view.log" {
                self.letters += 1;
                continue;
            }
            let headers = written
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_deref()));
            let (key, value) = (written.key.as_deref(), written.value.as_deref());
            out.push(view_log, 0, 0, TimestampType::LogAppend, key, value, headers);
        }
        let mut closed = true;
        for record in out.iter() {
            closed = false;
            match record::parse(&record).unwrap() {
                ViewRecord::Row(row) => {
                    let key = row.key.to_owned();
                    match row.json {
                        Some(json) => drop(self.rows.insert(key, String::from_utf8(json.to_vec()).unwrap())),
                        None => drop(self.rows.remove(&key)),
                    }
                }
                ViewRecord::Stale { stale, .. } => self.stale = stale,
                ViewRecord::TransactionEnd { .. } => closed = true,
                other => panic!("{other:?}"),
            }
        }
        assert!(closed, "nothing is left held back");
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
            ..tx(change.incarnation, change.position)
        };
        let again = change.again.map(|how| (headers::REPLAYED, how));
        let extra: Vec<_> = again.into_iter().chain(change.moved).collect();
        self.batch(change.key, Some(tx), &extra, value.as_deref())
    }

    /// A snapshot of the whole table that finds nothing in it.
    fn empty_snapshot(&mut self, incarnation: u32, position: u64) {
        let mut low = Vec::new();
        Lsn(position).write(&mut low);
        let end = ChunkEnd {
            table: "t",
            from: None,
            to: None,
            snapshot: "s",
            low: std::str::from_utf8(&low).unwrap(),
            is_final: true,
        };
        let mut value = Vec::new();
        end.write(SchemaId(8), &mut value);
        self.record(
            "[\"~chunk\",\"t\"]",
            Some(tx(incarnation, position)),
            None,
            Some(&value),
        );
    }

    /// Rows that were deleted are forgotten: the floor stands for them.
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

fn tx(incarnation: u32, position: u64) -> Tx {
    Tx {
        incarnation,
        position: Lsn(position),
        ordinal: 0,
        last: true,
        at_ms: 1,
    }
}

#[test]
fn a_dead_letter_makes_its_view_stale_until_it_comes_back() {
    let mut stand = Stand::new();
    stand.feed(&change(1, "one"));
    stand.feed(&dead(2, "two"));
    assert_eq!((stand.note(), stand.stale, stand.letters), (Some("one"), true, 1));
    stand.feed(&dead(3, "three"));
    stand.feed(&redriven(3, "three"));
    assert_eq!(
        (stand.note(), stand.stale),
        (Some("three"), false),
        "a whole row needs nothing that is older"
    );
    stand.feed(&redriven(2, "two"));
    assert_eq!((stand.note(), stand.stale), (Some("three"), false));
}

#[test]
fn a_newer_change_of_the_row_mends_it_but_only_if_it_stands_alone() {
    let mut stand = Stand::new();
    stand.feed(&change(1, NOTE));
    stand.feed(&dead(2, "another note that is just as long"));
    stand.feed(&unchanged(3));
    assert_eq!(
        (stand.note(), stand.stale),
        (Some(NOTE), true),
        "it builds on what is not there"
    );
    stand.feed(&redriven(2, "another note that is just as long"));
    assert!(stand.stale, "it comes too late to be built on");
    stand.feed(&change(4, "four"));
    assert_eq!((stand.note(), stand.stale), (Some("four"), false));
    stand.feed(&dead(5, "five"));
    stand.feed(&deleted(6, "[\"t\",1]"));
    assert_eq!((stand.note(), stand.stale), (None, false));
}

#[test]
fn a_dead_letter_that_the_floor_hides_leaves_its_view_stale() {
    for known in [true, false] {
        let mut stand = Stand::new();
        if known {
            stand.feed(&dead(1, "one"));
        }
        stand.feed(&deleted(2, "[\"t\",2]"));
        stand.forget();
        // Whether row 1 was deleted as well nobody knows any more.
        stand.feed(&redriven(1, "one"));
        assert_eq!(
            (stand.note(), stand.stale),
            (None, true),
            "known as a dead letter: {known}"
        );
        stand.empty_snapshot(1, 9);
        assert_eq!(
            (stand.note(), stand.stale),
            (None, false),
            "known as a dead letter: {known}"
        );
    }
}

#[test]
fn what_a_snapshot_shows_to_be_gone_is_not_brought_back_by_its_dead_letter() {
    for incarnation in [1, 2] {
        let mut stand = Stand::new();
        stand.feed(&dead(1, "one"));
        stand.empty_snapshot(incarnation, 9);
        assert!(!stand.stale);
        stand.feed(&redriven(1, "one"));
        assert_eq!((stand.note(), stand.stale), (None, false), "incarnation {incarnation}");
    }
}

#[test]
fn what_comes_again_from_an_older_incarnation_brings_back_nothing_that_is_unknown() {
    let mut stand = Stand::new();
    stand.empty_snapshot(2, 9);
    // A letter of which sync-views never knew: the runtime gave the record up.
    stand.feed(&redriven(1, "one"));
    assert_eq!((stand.note(), stand.stale), (None, true));
}

#[test]
fn a_truncation_mends_what_was_missed_before_it() {
    let mut stand = Stand::new();
    stand.feed(&dead(1, "one"));
    stand.record("[\"t\"]", Some(tx(1, 2)), None, None);
    assert!(!stand.stale);
    stand.feed(&redriven(1, "one"));
    assert_eq!((stand.note(), stand.stale), (None, false));
}

#[test]
fn a_change_that_does_not_say_its_version_makes_the_view_of_its_row_stale() {
    let mut stand = Stand::new();
    stand.feed(&change(1, "one"));
    stand.record("[\"t\",1]", None, None, Some(b"?"));
    assert_eq!((stand.note(), stand.stale, stand.letters), (Some("one"), true, 1));
    stand.feed(&change(2, "two"));
    assert_eq!((stand.note(), stand.stale), (Some("two"), false));
    // No row can be named: it is a dead letter and no more.
    stand.record("[\"t\"", None, None, None);
    stand.record("[\"nothing\",1]", None, None, Some(b"?"));
    assert_eq!((stand.stale, stand.letters), (false, 3));
}

#[test]
fn what_the_log_refuses_counts_for_its_transaction_and_its_row_lacks_it() {
    let mut stand = Stand::new();
    stand.feed(&change(1, "one"));
    let batch = stand.batch_of(&change(2, "two"));
    stand.driver.give_up(&batch).unwrap();
    stand.commit();
    assert_eq!((stand.note(), stand.stale), (Some("one"), true));
    stand.feed(&redriven(2, "two"));
    assert_eq!((stand.note(), stand.stale), (Some("two"), false));
    // The last record of a transaction closes it also when it is given up: nothing of it waits for the next one.
    let mut first = Stand::new();
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
