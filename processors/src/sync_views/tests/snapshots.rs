//! First snapshots, and records that concern a whole table and become dead letters.

use super::*;
use crate::sync_views::state::{STREAM, StreamState};

impl Harness {
    fn loaded(&self) -> Vec<&str> {
        self.loaded.iter().map(String::as_str).collect()
    }

    /// The end of a chunk whose value cannot be read.
    fn dead_chunk_end(&mut self, position: u64) {
        self.record("[\"~chunk\",\"t\"]", Some(tx(1, position)), None, Some(b"?"));
    }

    fn stream(&self) -> StreamState {
        let bytes = self.driver.state().get(STREAM).unwrap().unwrap();
        StreamState::decode(&bytes).unwrap()
    }
}

fn view(name: &str) -> Vec<Relation> {
    let rule = ViewRule {
        name: name.to_owned(),
        ..rule()
    };
    vec![relation("t", &["owner", "note"], vec![rule])]
}

#[test]
fn view_is_loaded_when_its_first_snapshot_has_ended() {
    let mut harness = Harness::new();
    harness.feed(&change(1, "one"));
    assert_eq!(harness.loaded(), [""; 0]);
    let first = chunk_value(None, Some("[5]"), 2, false);
    harness.record("[\"~chunk\",\"t\"]", Some(tx(1, 2)), None, Some(&first));
    assert_eq!(harness.loaded(), [""; 0], "only a part of the table was read");
    let last = chunk_value(Some("[6]"), None, 3, true);
    harness.record("[\"~chunk\",\"t\"]", Some(tx(1, 3)), None, Some(&last));
    assert_eq!(harness.loaded(), ["v"]);
    // A later snapshot, also of another source epoch, changes nothing: the view was complete once.
    harness.feed(&Change {
        source_epoch: 2,
        ..change(1, "again")
    });
    harness.restart(view("v"));
    assert_eq!(harness.loaded(), ["v"]);
    assert!(harness.stream().is_loaded("t"), "a restart keeps it");
}

#[test]
fn last_chunk_of_a_snapshot_whose_first_was_not_read_loads_nothing() {
    let mut harness = Harness::new();
    let last = chunk_value(Some("[6]"), None, 3, true);
    harness.record("[\"~chunk\",\"t\"]", Some(tx(1, 3)), None, Some(&last));
    assert_eq!(harness.loaded(), [""; 0]);
    harness.empty_snapshot(1, 9);
    assert_eq!(harness.loaded(), ["v"]);
}

#[test]
fn view_that_is_added_is_loaded_if_its_table_is() {
    let mut harness = Harness::new();
    harness.empty_snapshot(1, 1);
    harness.feed(&change(2, "two"));
    harness.restart(view("w"));
    assert_eq!(harness.loaded(), ["w"], "the removed view is not loaded any more");
    harness.restart(Vec::new());
    assert_eq!(harness.loaded(), [""; 0]);
    // Rows that were written meanwhile are not in the state.
    harness.restart(view("v"));
    assert_eq!((harness.loaded(), harness.stale), (vec![], true));
    harness.empty_snapshot(1, 9);
    assert_eq!((harness.loaded(), harness.stale), (vec!["v"], false));
}

#[test]
fn view_that_moves_to_another_table_keeps_its_marks() {
    let other = |views| relation("a", &["owner", "note"], views);
    let mut harness = Harness::new();
    harness.restart(vec![
        relation("t", &["owner", "note"], vec![rule()]),
        other(vec![ViewRule {
            name: "w".to_owned(),
            ..rule()
        }]),
    ]);
    harness.empty_snapshot(1, 1);
    let of_a = chunk_value(None, None, 2, true);
    harness.record("[\"~chunk\",\"a\"]", Some(tx(1, 2)), None, Some(&of_a));
    assert_eq!(harness.loaded(), ["v", "w"]);
    harness.restart(vec![other(vec![rule()])]);
    assert_eq!(harness.loaded(), ["v"]);
}

#[test]
fn state_of_an_earlier_release_counts_as_loaded() {
    let mut harness = Harness::new();
    harness.feed(&change(1, "one"));
    let earlier = StreamState {
        loaded: None,
        ..harness.stream()
    };
    harness.driver.state_mut().put(STREAM, earlier.encode());
    harness.driver.commit().unwrap();
    harness.restart(view("v"));
    assert_eq!(harness.loaded(), ["v"]);
}

#[test]
fn dead_chunk_end_leaves_its_table_stale_until_it_is_redriven() {
    let mut harness = Harness::new();
    harness.feed(&change(1, "one"));
    harness.dead_chunk_end(5);
    assert_eq!(
        (harness.stale, harness.dead_letters, harness.loaded()),
        (true, 1, vec![])
    );
    harness.feed(&Change {
        key: "[\"t\",2]",
        ..change(6, "two")
    });
    assert!(harness.stale);
    let value = chunk_value(None, None, 4, true);
    harness.record(
        "[\"~chunk\",\"t\"]",
        Some(tx(1, 5)),
        Some(headers::REDRIVE),
        Some(&value),
    );
    assert_eq!((harness.stale, harness.loaded()), (false, vec!["v"]));
    assert_eq!(
        harness.rows.keys().collect::<Vec<_>>(),
        ["2"],
        "the redriven end removes only rows that were not in the chunk"
    );
}

#[test]
fn dead_truncate_or_chunk_end_is_resolved_by_a_snapshot() {
    for is_truncate in [true, false] {
        let mut harness = Harness::new();
        harness.feed(&change(1, "one"));
        if is_truncate {
            harness.record("[\"t\"]", None, None, None);
        } else {
            harness.dead_chunk_end(5);
        }
        assert_eq!((harness.stale, harness.dead_letters), (true, 1));
        harness.empty_snapshot(1, 9);
        assert_eq!((harness.note(), harness.stale), (None, false));
    }
}

#[test]
fn unreadable_record_ends_its_source_transaction() {
    let mut harness = Harness::new();
    let open = Change {
        last: false,
        ..change(5, "five")
    };
    let batch = harness.batch_of(&open);
    harness.driver.feed(&batch).unwrap();
    assert!(!harness.apply_commit(), "the source transaction is open");
    // Its last record: `record` requires that nothing is pending.
    let ordinal = Tx { ordinal: 1, ..tx(1, 5) };
    harness.record("[\"~chunk\",\"t\"]", Some(ordinal), None, Some(b"?"));
}

#[test]
fn view_of_a_processor_is_loaded_when_all_its_tasks_are() {
    let rules = SourceRules::new("shop.change.t", Some("t".to_owned()), view("v"));
    let mut harness = Harness::of(processor_of(rules, StepLimits::default(), |_| None));
    for mark in ["[[\"~loaded\",0,2]]", "[[\"~loaded\",0,2]]"] {
        harness.record(mark, None, None, Some(b"\0\0\0\0\x09\x01"));
        assert_eq!(harness.loaded(), [""; 0], "the other task has not read its inputs");
    }
    harness.record("[[\"~loaded\",1,2]]", None, None, Some(b"\0\0\0\0\x09\x01"));
    assert_eq!((harness.loaded(), harness.dead_letters), (vec!["v"], 0));
}
