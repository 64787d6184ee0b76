//! Rows whose key changes while the source omits their large column.

use super::{Change, Harness, NOTE, change, dead, deleted, unchanged};
use schemas::headers;

const ONE: &str = "[\"t\",1]";
const TWO: &str = "[\"t\",2]";
const THREE: &str = "[\"t\",3]";
const OTHER: &str = "another note that is just as long";

/// The two records of a key change; the note is listed as unchanged in the row.
fn moved<'a>(position: u64, from: &'a str, to: &'a str) -> Vec<Change<'a>> {
    let tombstone = Change {
        last: false,
        moved: Some((headers::MOVED_TO, to)),
        ..deleted(position, from)
    };
    let row = Change {
        ordinal: 1,
        key: to,
        moved: Some((headers::MOVED_FROM, from)),
        ..unchanged(position)
    };
    vec![tombstone, row]
}

fn at<'a>(key: &'a str, change: Change<'a>) -> Change<'a> {
    Change { key, ..change }
}

fn redriven(change: Change<'_>) -> Change<'_> {
    Change {
        replayed: Some(headers::REDRIVE),
        ..change
    }
}

impl Harness {
    /// One source transaction; each change has two ordinals, as in the source.
    fn transaction(&mut self, changes: &[Vec<Change<'_>>]) {
        let end = changes.len();
        for (number, change) in changes.iter().enumerate() {
            let first = 2 * u32::try_from(number).unwrap();
            for record in change {
                let record = Change {
                    ordinal: first + record.ordinal,
                    last: record.last && number + 1 == end,
                    ..*record
                };
                let batch = self.batch_of(&record);
                self.driver.feed(&batch).unwrap();
            }
        }
        self.commit();
    }

    /// All rows as `key: note`, whether the view is stale, and the number of dead letters.
    fn seen(&self) -> (Vec<String>, bool, usize) {
        let note = |row: &str| {
            let note = row.trim_start_matches("{\"note\":\"").trim_end_matches("\"}");
            note.to_owned()
        };
        let rows = self.rows.iter().map(|(key, row)| format!("{key}: {}", note(row)));
        (rows.collect(), self.stale, self.dead_letters)
    }
}

fn rows(rows: &[(u32, &str)]) -> Vec<String> {
    rows.iter().map(|(key, note)| format!("{key}: {note}")).collect()
}

#[test]
fn unchanged_column_moves_to_the_new_key() {
    let mut harness = Harness::new();
    harness.feed(&change(1, NOTE));
    harness.transaction(&[moved(2, ONE, TWO)]);
    assert_eq!(harness.seen(), (rows(&[(2, NOTE)]), false, 0));
    harness.feed(&at(TWO, unchanged(3)));
    harness.transaction(&[moved(4, TWO, ONE)]);
    assert_eq!(harness.seen(), (rows(&[(1, NOTE)]), false, 0));
}

#[test]
fn key_changes_in_one_transaction_keep_columns() {
    let mut harness = Harness::new();
    harness.transaction(&[vec![change(1, NOTE)], vec![at(TWO, change(1, OTHER))]]);
    // The rows exchange their keys, one of them moves to a third key, and its previous key is used again.
    harness.transaction(&[
        moved(2, ONE, "[\"t\",0]"),
        moved(2, TWO, ONE),
        moved(2, "[\"t\",0]", TWO),
        moved(2, TWO, THREE),
        vec![at(TWO, change(2, "a new row"))],
    ]);
    let want = rows(&[(1, OTHER), (2, "a new row"), (3, NOTE)]);
    assert_eq!(harness.seen(), (want, false, 0));
    // A row gets a key that was deleted before. Its omitted column comes from its old key.
    harness.transaction(&[vec![deleted(3, THREE)], moved(3, ONE, THREE)]);
    let want = rows(&[(2, "a new row"), (3, OTHER)]);
    assert_eq!(harness.seen(), (want, false, 0));
}

#[test]
fn row_without_known_column_is_a_dead_letter() {
    let mut harness = Harness::new();
    harness.transaction(&[moved(1, ONE, TWO)]);
    assert_eq!(harness.seen(), (vec![], true, 1));
    harness.empty_snapshot(1, 9);
    assert_eq!(harness.seen(), (vec![], false, 1));
}

#[test]
fn replayed_key_change_changes_nothing() {
    let mut harness = Harness::new();
    harness.feed(&change(1, NOTE));
    harness.transaction(&[moved(2, ONE, TWO)]);
    harness.feed(&change(3, OTHER));
    for record in moved(2, ONE, TWO) {
        let replayed = Change {
            replayed: Some(headers::REPLAY),
            ..record
        };
        harness.feed(&replayed);
    }
    assert_eq!(harness.seen(), (rows(&[(1, OTHER), (2, NOTE)]), false, 0));
}

#[test]
fn redriven_key_change_uses_column_of_its_row_only() {
    for reused in [false, true] {
        let mut harness = Harness::new();
        harness.feed(&change(1, NOTE));
        let mut records = moved(2, ONE, TWO);
        let row = records[1];
        records[1].schema = super::UNKNOWN;
        harness.transaction(&[records]);
        assert_eq!(harness.seen(), (vec![], true, 1));
        if reused {
            harness.feed(&change(3, OTHER));
        }
        harness.feed(&redriven(row));
        let want = if reused {
            (rows(&[(1, OTHER)]), true, 2)
        } else {
            (rows(&[(2, NOTE)]), false, 1)
        };
        assert_eq!(harness.seen(), want, "old key used again: {reused}");
        harness.feed(&at(TWO, change(5, "new")));
        assert_eq!((harness.rows["2"].contains("new"), harness.stale), (true, false));
    }
}

#[test]
fn kept_column_is_not_used_by_another_row() {
    let mut harness = Harness::new();
    harness.feed(&change(1, NOTE));
    let mut records = moved(2, ONE, TWO);
    records[1].schema = super::UNKNOWN;
    harness.transaction(&[records]);
    harness.feed(&dead(3, OTHER));
    harness.feed(&unchanged(4));
    assert_eq!(harness.seen(), (vec![], true, 3));
    // The key of an unknown row changes: the values under its old key belong to the previous row with that key.
    harness.transaction(&[moved(5, ONE, THREE)]);
    assert_eq!(harness.seen(), (vec![], true, 4));
}

#[test]
fn key_change_of_stale_row_stays_stale() {
    let mut harness = Harness::new();
    harness.feed(&change(1, NOTE));
    harness.feed(&dead(2, OTHER));
    harness.transaction(&[moved(3, ONE, TWO)]);
    assert_eq!(harness.seen(), (rows(&[(2, NOTE)]), true, 1));
    harness.feed(&at(TWO, unchanged(4)));
    assert!(harness.stale, "its note is from before the dead letter");
    // The dead letter is older than the tombstone of its key, so it is ignored when it is redriven.
    harness.feed(&redriven(change(2, OTHER)));
    assert_eq!(harness.seen(), (rows(&[(2, NOTE)]), true, 1));
    harness.feed(&at(TWO, change(5, OTHER)));
    assert_eq!(harness.seen(), (rows(&[(2, OTHER)]), false, 1));
}

#[test]
fn whole_row_under_a_new_key_lacks_nothing() {
    let mut harness = Harness::new();
    harness.feed(&change(1, NOTE));
    harness.feed(&dead(2, "two"));
    let mut records = moved(3, ONE, TWO);
    records[1].note = Some(Some(OTHER));
    harness.transaction(&[records]);
    assert_eq!(harness.seen(), (rows(&[(2, OTHER)]), false, 1));
}

#[test]
fn rejected_key_change_is_redriven_by_record() {
    let mut harness = Harness::new();
    harness.feed(&change(1, NOTE));
    let records = moved(2, ONE, TWO);
    for record in &records {
        let batch = harness.batch_of(record);
        harness.driver.give_up(&batch).unwrap();
    }
    harness.commit();
    assert_eq!(harness.seen(), (rows(&[(1, NOTE)]), true, 0));
    for record in records {
        harness.feed(&redriven(record));
    }
    assert_eq!(harness.seen(), (rows(&[(2, NOTE)]), false, 0));
}

#[test]
fn key_change_with_invalid_old_key_is_dead_letter() {
    let headers = ["[\"u\",1]", "[\"t\"]", "[\"t\",1", "1"];
    for (number, from) in (1..).zip(headers) {
        let mut harness = Harness::new();
        let mut records = moved(1, ONE, TWO);
        records[1].moved = Some((headers::MOVED_FROM, from));
        harness.transaction(&[records, vec![at(THREE, change(1, NOTE))]]);
        assert_eq!(harness.seen(), (rows(&[(3, NOTE)]), true, 1), "header {number}");
    }
}
