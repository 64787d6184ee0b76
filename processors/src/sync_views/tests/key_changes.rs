//! Rows whose key changes while the source leaves their large column out.

use super::{Change, NOTE, Stand, change, dead, deleted, unchanged};
use schemas::headers;

const ONE: &str = "[\"t\",1]";
const TWO: &str = "[\"t\",2]";
const THREE: &str = "[\"t\",3]";
const OTHER: &str = "another note that is just as long";

/// The two records of a key change; the row lists its note as unchanged.
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
        again: Some(headers::REDRIVE),
        ..change
    }
}

impl Stand {
    /// Changes of one source transaction, two ordinals each as the source counts them.
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

    /// All rows as `key: note`, whether the view is stale, and how many dead letters there are.
    fn seen(&self) -> (Vec<String>, bool, usize) {
        let note = |row: &str| {
            let note = row.trim_start_matches("{\"note\":\"").trim_end_matches("\"}");
            note.to_owned()
        };
        let rows = self.rows.iter().map(|(key, row)| format!("{key}: {}", note(row)));
        (rows.collect(), self.stale, self.letters)
    }
}

fn rows(rows: &[(u32, &str)]) -> Vec<String> {
    rows.iter().map(|(key, note)| format!("{key}: {note}")).collect()
}

#[test]
fn unchanged_column_moves_to_the_new_key() {
    let mut stand = Stand::new();
    stand.feed(&change(1, NOTE));
    stand.transaction(&[moved(2, ONE, TWO)]);
    assert_eq!(stand.seen(), (rows(&[(2, NOTE)]), false, 0));
    stand.feed(&at(TWO, unchanged(3)));
    stand.transaction(&[moved(4, TWO, ONE)]);
    assert_eq!(stand.seen(), (rows(&[(1, NOTE)]), false, 0));
}

#[test]
fn several_key_changes_in_one_transaction_keep_each_rows_column() {
    let mut stand = Stand::new();
    stand.transaction(&[vec![change(1, NOTE)], vec![at(TWO, change(1, OTHER))]]);
    // The rows exchange their keys, then one of them goes on, and its old key is used again.
    stand.transaction(&[
        moved(2, ONE, "[\"t\",0]"),
        moved(2, TWO, ONE),
        moved(2, "[\"t\",0]", TWO),
        moved(2, TWO, THREE),
        vec![at(TWO, change(2, "a new row"))],
    ]);
    let want = rows(&[(1, OTHER), (2, "a new row"), (3, NOTE)]);
    assert_eq!(stand.seen(), (want, false, 0));
    // A row arrives under a key that was deleted before: its column is that of its own old key.
    stand.transaction(&[vec![deleted(3, THREE)], moved(3, ONE, THREE)]);
    let want = rows(&[(2, "a new row"), (3, OTHER)]);
    assert_eq!(stand.seen(), (want, false, 0));
}

#[test]
fn row_that_was_never_seen_whole_stays_a_dead_letter() {
    let mut stand = Stand::new();
    stand.transaction(&[moved(1, ONE, TWO)]);
    assert_eq!(stand.seen(), (vec![], true, 1));
    stand.empty_snapshot(1, 9);
    assert_eq!(stand.seen(), (vec![], false, 1));
}

#[test]
fn replayed_key_change_changes_nothing() {
    let mut stand = Stand::new();
    stand.feed(&change(1, NOTE));
    stand.transaction(&[moved(2, ONE, TWO)]);
    stand.feed(&change(3, OTHER));
    for record in moved(2, ONE, TWO) {
        let replayed = Change {
            again: Some(headers::REPLAY),
            ..record
        };
        stand.feed(&replayed);
    }
    assert_eq!(stand.seen(), (rows(&[(1, OTHER), (2, NOTE)]), false, 0));
}

#[test]
fn redriven_key_change_finds_the_column_unless_the_old_key_has_another_row() {
    for reused in [false, true] {
        let mut stand = Stand::new();
        stand.feed(&change(1, NOTE));
        let mut records = moved(2, ONE, TWO);
        let row = records[1];
        records[1].schema = super::UNKNOWN;
        stand.transaction(&[records]);
        assert_eq!(stand.seen(), (vec![], true, 1));
        if reused {
            stand.feed(&change(3, OTHER));
        }
        stand.feed(&redriven(row));
        let want = if reused {
            (rows(&[(1, OTHER)]), true, 2)
        } else {
            (rows(&[(2, NOTE)]), false, 1)
        };
        assert_eq!(stand.seen(), want, "old key used again: {reused}");
        stand.feed(&at(TWO, change(5, "new")));
        assert_eq!((stand.rows["2"].contains("new"), stand.stale), (true, false));
    }
}

#[test]
fn what_a_row_left_behind_is_not_for_another_row_under_its_old_key() {
    let mut stand = Stand::new();
    stand.feed(&change(1, NOTE));
    let mut records = moved(2, ONE, TWO);
    records[1].schema = super::UNKNOWN;
    stand.transaction(&[records]);
    stand.feed(&dead(3, OTHER));
    stand.feed(&unchanged(4));
    assert_eq!(stand.seen(), (vec![], true, 3));
    // A row that is not known leaves its key: what is left there is of the row before.
    stand.transaction(&[moved(5, ONE, THREE)]);
    assert_eq!(stand.seen(), (vec![], true, 4));
}

#[test]
fn row_that_builds_on_a_lacking_row_lacks_the_same_change() {
    let mut stand = Stand::new();
    stand.feed(&change(1, NOTE));
    stand.feed(&dead(2, OTHER));
    stand.transaction(&[moved(3, ONE, TWO)]);
    assert_eq!(stand.seen(), (rows(&[(2, NOTE)]), true, 1));
    stand.feed(&at(TWO, unchanged(4)));
    assert!(stand.stale, "it still builds on the note before the dead letter");
    // The dead letter is older than the tombstone of its key, so it comes too late.
    stand.feed(&redriven(change(2, OTHER)));
    assert_eq!(stand.seen(), (rows(&[(2, NOTE)]), true, 1));
    stand.feed(&at(TWO, change(5, OTHER)));
    assert_eq!(stand.seen(), (rows(&[(2, OTHER)]), false, 1));
}

#[test]
fn whole_row_under_a_new_key_lacks_nothing() {
    let mut stand = Stand::new();
    stand.feed(&change(1, NOTE));
    stand.feed(&dead(2, "two"));
    let mut records = moved(3, ONE, TWO);
    records[1].note = Some(Some(OTHER));
    stand.transaction(&[records]);
    assert_eq!(stand.seen(), (rows(&[(2, OTHER)]), false, 1));
}

#[test]
fn given_up_key_change_comes_back_record_by_record() {
    let mut stand = Stand::new();
    stand.feed(&change(1, NOTE));
    let records = moved(2, ONE, TWO);
    for record in &records {
        let batch = stand.batch_of(record);
        stand.driver.give_up(&batch).unwrap();
    }
    stand.commit();
    assert_eq!(stand.seen(), (rows(&[(1, NOTE)]), true, 0));
    for record in records {
        stand.feed(&redriven(record));
    }
    assert_eq!(stand.seen(), (rows(&[(2, NOTE)]), false, 0));
}

#[test]
fn key_change_without_a_sound_old_key_is_a_dead_letter() {
    let headers = ["[\"u\",1]", "[\"t\"]", "[\"t\",1", "1"];
    for (number, from) in (1..).zip(headers) {
        let mut stand = Stand::new();
        let mut records = moved(1, ONE, TWO);
        records[1].moved = Some((headers::MOVED_FROM, from));
        stand.transaction(&[records, vec![at(THREE, change(1, NOTE))]]);
        assert_eq!(stand.seen(), (rows(&[(3, NOTE)]), true, 1), "header {number}");
    }
}
