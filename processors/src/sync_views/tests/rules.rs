//! Changes of the rules: what happens to rows that exist.

use super::*;

const STEP: StepLimits = StepLimits {
    visited: 2,
    found: 1,
    bytes: 1 << 20,
};
const LONG: &str = "a note of more than eighteen bytes";

impl Harness {
    /// Starts with other views, and lets the jobs end.
    pub(super) fn restart(&mut self, relations: Vec<Relation>) {
        self.driver.restart(Box::new(processor(relations, STEP))).unwrap();
        self.settle();
    }

    pub(super) fn settle(&mut self) {
        self.apply_commit();
        for _ in 0..20 {
            let now = self.driver.now + 1;
            self.driver.advance(now).unwrap();
            self.apply_commit();
        }
        self.commit();
    }

    /// The end of a chunk of a snapshot.
    fn chunk(&mut self, from: Option<&str>, to: Option<&str>, position: u64, last: bool) {
        let value = chunk_value(from, to, position, last);
        let batch = self.batch("[\"~chunk\",\"t\"]", Some(tx(1, position)), &[], Some(&value));
        self.driver.feed(&batch).unwrap();
        self.settle();
    }

    /// The rows that are visible, as view and key.
    fn written_views(&self) -> Vec<String> {
        self.keys.iter().map(|(view, key, _)| format!("{view} {key}")).collect()
    }

    /// The keys of the state with this prefix.
    pub(super) fn state_keys(&self, prefix: &str) -> Vec<String> {
        let mut keys = Vec::new();
        let add = &mut |key: &[u8], _: &[u8]| {
            keys.push(String::from_utf8(key.to_vec()).unwrap());
            std::ops::ControlFlow::Continue(())
        };
        self.driver.state().scan(prefix.as_bytes(), add).unwrap();
        keys
    }

    fn rows(&self) -> Vec<(&str, &str)> {
        self.rows
            .iter()
            .map(|(key, row)| (key.as_str(), row.as_str()))
            .collect()
    }

    /// Three rows. The last record of row 2 omits the note.
    fn with_rows() -> Harness {
        let mut harness = Harness::with_step(STEP);
        harness.feed(&change(1, "one"));
        harness.feed(&Change {
            key: "[\"t\",2]",
            ..change(2, LONG)
        });
        harness.feed(&Change {
            key: "[\"t\",3]",
            ..change(3, "three")
        });
        harness.feed(&Change {
            key: "[\"t\",2]",
            ..unchanged(4)
        });
        harness
    }
}

fn renamed() -> ViewRule {
    ViewRule {
        version: 2,
        fields: vec![("text".to_owned(), 1)],
        ..rule()
    }
}

#[test]
fn changed_fields_are_rebuilt_from_state() {
    let mut harness = Harness::with_rows();
    harness.restart(vec![relation("t", &["owner", "note"], vec![renamed()])]);
    let long = format!("{{\"text\":\"{LONG}\"}}");
    let expected = [
        ("1", "{\"text\":\"one\"}"),
        ("2", &*long),
        ("3", "{\"text\":\"three\"}"),
    ];
    assert_eq!(harness.rows(), expected);
    assert!(!harness.stale);
}

#[test]
fn column_that_no_view_used_is_in_the_state() {
    let mut harness = Harness::with_step(STEP);
    let owner_only = ViewRule {
        fields: vec![("owner".to_owned(), 0)],
        ..rule()
    };
    harness.restart(vec![Relation::new(
        "t",
        declared(&["owner", "note"]),
        &[0].into(),
        vec![owner_only],
        1,
    )]);
    harness.feed(&change(1, LONG));
    harness.feed(&unchanged(2));
    harness.restart(vec![relation("t", &["owner", "note"], vec![renamed()])]);
    let long = format!("{{\"text\":\"{LONG}\"}}");
    assert_eq!((harness.rows(), harness.stale), (vec![("1", &*long)], false));
}

#[test]
fn equal_rules_write_nothing() {
    let mut harness = Harness::with_rows();
    let views = || vec![relation("t", &["owner", "note"], vec![rule()])];
    harness.driver.restart(Box::new(processor(views(), STEP))).unwrap();
    assert!(harness.driver.commit().unwrap().is_empty());
}

#[test]
fn rows_of_removed_views_are_removed() {
    let other = ViewRule {
        name: "w".to_owned(),
        ..rule()
    };
    let mut harness = Harness::with_rows();
    harness.restart(vec![relation("t", &["owner", "note"], vec![other])]);
    let keys = harness.written_views();
    assert_eq!(keys, ["w 1", "w 2", "w 3"]);
    harness.restart(Vec::new());
    assert_eq!(harness.written_views(), [""; 0]);
    let rest = harness.state_keys("[\"row\"");
    assert_eq!(rest, [""; 0], "the state of the rows is removed too");
}

#[test]
fn rows_move_to_another_bucket() {
    let mut harness = Harness::with_rows();
    let bucket = vec![Piece::Word("all".to_owned())];
    let moved = ViewRule {
        version: 2,
        scope: bucket.clone(),
        bucket,
        ..rule()
    };
    harness.restart(vec![relation("t", &["owner", "note"], vec![moved])]);
    assert_eq!(harness.rows().len(), 3);
    assert_eq!(harness.written_views(), ["v 1", "v 2", "v 3"]);
    assert!(harness.state_keys("[\"job\"").is_empty());
}

#[test]
fn column_that_was_not_published_makes_the_view_stale_until_a_snapshot() {
    let mut harness = Harness::with_rows();
    let more = ViewRule {
        version: 2,
        fields: vec![("extra".to_owned(), 1)],
        ..rule()
    };
    harness.restart(vec![relation("t", &["owner", "extra"], vec![more])]);
    assert!(harness.stale);
    assert_eq!(harness.rows().len(), 3, "the rows stay as they were");
    harness.chunk(None, None, 10, true);
    assert_eq!((harness.rows(), harness.stale), (vec![], false));
}

#[test]
fn view_of_a_table_that_was_not_read_is_stale_until_a_snapshot_of_the_whole_table() {
    let mut harness = Harness::with_step(STEP);
    harness.restart(vec![relation("other", &["owner", "note"], vec![])]);
    assert!(!harness.stale);
    harness.feed(&change(5, "not read"));
    harness.restart(vec![relation("t", &["owner", "note"], vec![rule()])]);
    assert!(harness.stale);
    harness.chunk(None, Some("[5]"), 10, false);
    assert!(harness.stale, "only a part of the table was read");
    harness.chunk(Some("[6]"), None, 20, true);
    assert!(!harness.stale);
}

#[test]
fn rebuild_continues_after_a_crash_at_each_step() {
    let mut harness = Harness::with_rows();
    let views = || vec![relation("t", &["owner", "note"], vec![renamed()])];
    let restart = |harness: &mut Harness| harness.driver.restart(Box::new(processor(views(), STEP))).unwrap();
    restart(&mut harness);
    harness.apply_commit();
    for _ in 0..10 {
        let now = harness.driver.now + 1;
        harness.driver.advance(now).unwrap();
        restart(&mut harness);
        harness.driver.advance(now).unwrap();
        harness.apply_commit();
    }
    harness.settle();
    assert!(harness.rows().iter().all(|(_, row)| row.starts_with("{\"text\"")));
}
