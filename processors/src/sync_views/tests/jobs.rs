//! TRUNCATE and chunk ends of more rows than a step removes.

use super::*;
use crate::sync_views::state::Row;
use streams::RejectedTimer;
use streams_test::Written;

const STEP: StepLimits = StepLimits {
    visited: 1_000,
    found: 100,
    bytes: 1 << 20,
};

/// Records of `view.log` by kind, in one Kafka transaction.
#[derive(Debug, Default, PartialEq, Eq)]
struct Commit {
    rows: Vec<String>,
    removals: usize,
    begin_markers: usize,
    end_markers: usize,
}

impl Commit {
    fn of(written: &[Written]) -> Commit {
        let mut commit = Commit::default();
        for record in written {
            let key = String::from_utf8(record.key.clone().unwrap()).unwrap();
            match &record.value {
                _ if key.starts_with("[\"~end") => commit.end_markers += 1,
                _ if key.starts_with("[\"~begin") => commit.begin_markers += 1,
                Some(_) => commit.rows.push(key),
                None => commit.removals += 1,
            }
        }
        commit
    }
}

impl Harness {
    /// Feeds changes without a commit.
    fn process(&mut self, changes: &[Change<'_>]) {
        for change in changes {
            let batch = self.batch_of(change);
            self.driver.feed(&batch).unwrap();
        }
    }

    /// Fills the table with rows 1 to `count`.
    fn fill(&mut self, count: u64) {
        for first in (0..count).step_by(500) {
            for id in first..count.min(first + 500) {
                let key = format!("[\"t\",{}]", id + 1);
                self.process(&[Change {
                    key: &key,
                    ..change(id + 1, "x")
                }]);
            }
            self.driver.commit().unwrap();
        }
    }

    /// The next Kafka transaction, in which the timer of a job may fire.
    fn step(&mut self) -> Commit {
        let now = self.driver.now + 1;
        self.driver.advance(now).unwrap();
        Commit::of(&self.driver.commit().unwrap())
    }

    fn truncate(&mut self, position: u64, last: bool) -> Commit {
        self.process(&[Change {
            last,
            ..deleted(position, "[\"t\"]")
        }]);
        Commit::of(&self.driver.commit().unwrap())
    }
}

#[test]
fn truncate_of_50000_rows_is_done_in_small_transactions() {
    let mut harness = Harness::with_step(STEP);
    harness.fill(50_000);
    let mut commit = harness.truncate(60_000, true);
    let (mut removals, mut commits) = (0, 0);
    while commit.end_markers == 0 {
        assert_eq!(
            (commit.removals, commit.begin_markers),
            (100, 1),
            "after {commits} commits"
        );
        removals += commit.removals;
        commits += 1;
        commit = harness.step();
    }
    assert_eq!((removals + commit.removals, commits), (50_000, 499));
    assert_eq!(harness.step(), Commit::default(), "the job has ended");
}

#[test]
fn rows_written_after_a_truncate_stay() {
    let mut harness = Harness::with_step(STEP);
    harness.fill(500);
    let inserted = Change {
        key: "[\"t\",400]",
        ..change(601, "new")
    };
    let replayed = Change {
        replayed: Some(headers::REPLAY),
        key: "[\"t\",300]",
        ..change(300, "x")
    };
    harness.process(&[deleted(600, "[\"t\"]"), inserted, replayed]);
    let mut commit = Commit::of(&harness.driver.commit().unwrap());
    // The first step, and the rows that were read: the row is removed before it is written.
    assert_eq!(commit.rows, ["[\"ann\",\"v\",400]"]);
    let mut removals = commit.removals;
    while commit.end_markers == 0 {
        commit = harness.step();
        assert!(commit.rows.is_empty());
        removals += commit.removals;
    }
    assert_eq!(removals, 500);
}

#[test]
fn changes_after_a_truncate_become_visible_with_it_at_the_end_of_their_transaction() {
    let mut harness = Harness::with_step(STEP);
    harness.fill(250);
    assert_eq!(harness.truncate(300, true).end_markers, 0);
    harness.process(&[Change {
        key: "[\"t\",900]",
        last: false,
        ..change(301, "a")
    }]);
    let mut removals = 0;
    for _ in 0..5 {
        let commit = harness.step();
        assert_eq!(commit.end_markers, 0, "a source transaction is open");
        removals += commit.removals;
    }
    assert_eq!(removals, 150, "the job has ended");
    harness.process(&[Change {
        key: "[\"t\",901]",
        ordinal: 1,
        ..change(301, "b")
    }]);
    assert_eq!(harness.step().end_markers, 1);
}

#[test]
fn job_resumes_after_a_crash_at_each_step() {
    let mut harness = Harness::with_step(STEP);
    harness.fill(450);
    let mut commit = harness.truncate(500, true);
    let mut removals = commit.removals;
    while commit.end_markers == 0 {
        let now = harness.driver.now + 1;
        harness.driver.advance(now).unwrap();
        harness.driver.abort().unwrap();
        commit = harness.step();
        removals += commit.removals;
    }
    assert_eq!(removals, 450);
}

#[test]
fn chunk_end_removes_rows_of_its_range_in_steps() {
    let mut harness = Harness::with_step(STEP);
    harness.fill(1_000);
    let value = chunk_value(Some("[100]"), Some("[399]"), 2_000, true);
    let batch = harness.batch("[\"~chunk\",\"t\"]", Some(tx(1, 2_000)), &[], Some(&value));
    harness.driver.feed(&batch).unwrap();
    let mut commit = Commit::of(&harness.driver.commit().unwrap());
    let mut removals = commit.removals;
    while commit.end_markers == 0 {
        assert_eq!(commit.removals, 100);
        commit = harness.step();
        removals += commit.removals;
    }
    assert_eq!(removals, 300);
}

#[test]
fn redrive_after_a_truncate_does_not_resurrect_a_deleted_row() {
    let mut harness = Harness::new();
    harness.feed(&change(1, "one"));
    harness.feed(&deleted(2, "[\"t\",1]"));
    harness.feed(&dead(3, "three"));
    harness.feed(&deleted(4, "[\"t\"]"));
    assert!(!harness.stale);
    harness.feed(&redriven(3, "three"));
    assert_eq!((harness.note(), harness.stale), (None, false));
}

#[test]
fn dead_letter_after_a_truncate_lacks_only_itself() {
    let mut harness = Harness::with_step(STEP);
    harness.fill(450);
    harness.feed(&Change {
        key: "[\"t\",444]",
        ..dead(460, "a")
    });
    harness.process(&[
        deleted(500, "[\"t\"]"),
        Change {
            key: "[\"t\",444]",
            ..dead(501, "b")
        },
    ]);
    while harness.step().end_markers == 0 {}
    harness.feed(&Change {
        key: "[\"t\",444]",
        ..redriven(501, "b")
    });
    assert!(!harness.stale);
}

#[test]
fn rejected_truncate_continues_as_a_job() {
    let mut harness = Harness::with_step(STEP);
    harness.fill(250);
    let batch = harness.batch_of(&deleted(300, "[\"t\"]"));
    harness.driver.give_up(&batch).unwrap();
    let mut commit = Commit::of(&harness.driver.commit().unwrap());
    assert_eq!(
        (commit.removals, commit.end_markers),
        (0, 0),
        "the first step is not repeated"
    );
    let mut removals = 0;
    while commit.end_markers == 0 {
        commit = harness.step();
        removals += commit.removals;
    }
    assert_eq!((removals, harness.stale), (250, false));
}

/// The log rejects the removal of one row.
#[test]
fn row_whose_removal_is_rejected_is_skipped_with_one_dead_letter() {
    let mut harness = Harness::with_step(STEP);
    harness.fill(1_000);
    let removed = |harness: &Harness| {
        let value = harness.driver.state().get(b"[\"row\",\"t\",777]").unwrap().unwrap();
        Row::header(&value).unwrap().is_deleted
    };
    harness.truncate(2_000, true);
    let (mut dead_letters, mut steps) = (0, 0);
    while !harness.state_keys("[\"job\"").is_empty() {
        let now = harness.driver.now + 1;
        harness.driver.advance(now).unwrap();
        if removed(&harness) {
            harness.driver.abort().unwrap();
            let reactions = harness.driver.reject_timers(now).unwrap();
            let letters = reactions.iter().filter(|of| **of == RejectedTimer::DeadLetter);
            dead_letters += letters.count();
        }
        harness.apply_commit();
        steps += 1;
        assert!(steps < 60, "the job does not end");
    }
    assert_eq!((dead_letters, removed(&harness)), (1, false));
    assert!(harness.stale, "the row exists, although its table was truncated");
    let live = harness.state_keys("[\"row\"").len() - harness.state_keys("[\"gone\"").len();
    assert_eq!(live, 1, "all other rows are removed");
    harness.feed(&Change {
        key: "[\"t\",777]",
        ..change(2_001, "new")
    });
    assert!(!harness.stale, "a newer record of the row resolves it");
}

/// The log rejects the loaded marks at the end of the job.
#[test]
fn job_ends_without_marks_that_are_rejected() {
    let mut harness = Harness::with_step(STEP);
    let value = chunk_value(None, None, 5, true);
    let batch = harness.batch("[\"~chunk\",\"t\"]", Some(tx(1, 5)), &[], Some(&value));
    harness.driver.give_up(&batch).unwrap();
    harness.driver.commit().unwrap();
    let (mut dead_letters, mut steps) = (0, 0);
    while !harness.state_keys("[\"job\"").is_empty() {
        let now = harness.driver.now + 1;
        harness.driver.advance(now).unwrap();
        if harness.state_keys("[\"job\"").is_empty() {
            harness.driver.abort().unwrap();
            let reactions = harness.driver.reject_timers(now).unwrap();
            let letters = reactions.iter().filter(|of| **of == RejectedTimer::DeadLetter);
            dead_letters += letters.count();
        }
        harness.apply_commit();
        steps += 1;
        assert!(steps < 60, "the job does not end");
    }
    assert_eq!((dead_letters, harness.loaded.len()), (1, 0));
    // The next snapshot writes them.
    harness.empty_snapshot(1, 9);
    assert_eq!(harness.loaded.len(), 1);
}
