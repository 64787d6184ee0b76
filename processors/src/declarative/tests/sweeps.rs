//! TRUNCATE and the ends of snapshot chunks of tables that are larger than a step, with changes, restarts and other
//! records while their rows are removed.

use super::harness::{Harness, SLOW_SWEEP};
use super::{SHOP, StepLimits};
use crate::declarative::stored_row::Row;
use schemas::codec::Datum;

const TOTALS: &str = r#"
[[processor]]
name = "totals"
kind = "aggregate"
from = "shop.orders"
group = { customer = "customer" }
fields = { n = "count()", spent = "sum(cents)", low = "min(status)" }
"#;

/// Long enough that the source omits the value when it does not change.
const STATUS: &str = "paid, with a card that was lost";

fn row(number: i64, cents: i64) -> Vec<Datum<'static>> {
    vec![
        Datum::Long(number),
        Datum::Int(7),
        Datum::Str(STATUS),
        Datum::Long(cents),
        Datum::Null,
        Datum::Null,
    ]
}

fn filled(step: StepLimits, rows: i64) -> Harness {
    let mut harness = Harness::with(SHOP, TOTALS, "totals", step, &[]);
    (0..rows).for_each(|number| harness.put("orders", number, &row(number, 1)));
    harness.commit();
    harness
}

fn shown(harness: &Harness) -> Option<String> {
    harness.shown().pop().map(|(_, row)| row)
}

#[test]
fn truncate_removes_a_bounded_number_of_rows_per_step() {
    let step = StepLimits {
        visited: 100,
        found: 30,
        bytes: 1 << 20,
    };
    let mut harness = filled(step, 200);
    harness.truncate("orders");
    harness.commit();
    assert_eq!(shown(&harness), Some(format!("7 170 170 {STATUS}")));
    assert_eq!(harness.sweeps(), 1);
    // Time that does not pass fires no timer, so that one transaction has one step.
    harness.commit();
    assert_eq!(shown(&harness), Some(format!("7 170 170 {STATUS}")));
    let commits = harness.settle();
    assert!((6..=9).contains(&commits), "{commits}");
    assert_eq!(harness.shown(), []);
    let mut deleted = 0;
    harness.state(|_, key, _| deleted += usize::from(key.starts_with(b"[\"gone\"")));
    assert_eq!(deleted, 200);
}

#[test]
fn rows_that_arrive_during_a_sweep_survive() {
    let mut harness = filled(SLOW_SWEEP, 20);
    harness.truncate("orders");
    // Rows before and behind the sweep, a new row, and a row that is deleted again.
    for number in [0, 1, 12, 15, 99] {
        harness.put("orders", number, &row(number, 100));
    }
    harness.delete("orders", 15);
    harness.commit();
    harness.restart();
    harness.settle();
    assert_eq!(shown(&harness), Some(format!("7 4 400 {STATUS}")));
    assert_eq!(harness.dead_letters(), Vec::<String>::new());
}

/// A row that a sweep has not reached yet is gone for a record that reads it.
#[test]
fn row_behind_a_sweep_has_no_kept_values() {
    let mut harness = filled(SLOW_SWEEP, 20);
    harness.truncate("orders");
    harness.put_unchanged("orders", 15, &row(15, 100), &["status"]);
    harness.commit();
    let dead_letters = harness.dead_letters();
    assert!(dead_letters[0].contains("omitted column `status`"), "{dead_letters:?}");
    harness.settle();
    assert_eq!(harness.shown(), []);
}

#[test]
fn old_record_does_not_bring_back_a_row_behind_a_sweep() {
    let mut harness = filled(SLOW_SWEEP, 20);
    harness.truncate("orders");
    for number in 0..harness.fed("shop.change.shop") - 1 {
        harness.redeliver("shop.change.shop", number);
    }
    harness.settle();
    assert_eq!(harness.shown(), []);
}

#[test]
fn sweeps_are_applied_in_their_order_and_survive_a_restart() {
    let mut harness = filled(SLOW_SWEEP, 20);
    harness.chunk("orders", &[(3, row(3, 10))], Some(0), Some(9));
    harness.commit();
    harness.chunk("orders", &[(12, row(12, 1_000))], Some(10), Some(15));
    assert!(harness.sweeps() > 0);
    harness.commit();
    harness.restart();
    harness.tick();
    // Aborted steps are repeated.
    harness.restart();
    harness.settle();
    assert_eq!(shown(&harness), Some(format!("7 6 1014 {STATUS}")));
    harness.truncate("orders");
    harness.put("orders", 5, &row(5, 2));
    harness.chunk("orders", &[(5, row(5, 2)), (6, row(6, 3))], None, None);
    harness.settle();
    assert_eq!(shown(&harness), Some(format!("7 2 5 {STATUS}")));
}

/// The rows of both sides of a join are removed, and the pairs of the rows that remain are not.
#[test]
fn sweep_of_one_side_of_a_join_leaves_the_other() {
    let declaration = "[[processor]]\nname = \"both\"\nkind = \"join\"\nleft = \"shop.orders\"\nright = \"shop.details\"\n\
         on = { id = \"id\" }\ntype = \"left\"\nfields = { cents = \"left.cents\", note = \"right.note\" }\n";
    let mut harness = Harness::with(SHOP, declaration, "both", SLOW_SWEEP, &[]);
    for number in 0..9 {
        harness.put("orders", number, &row(number, 1));
        harness.put("details", number, &[Datum::Long(number), Datum::Str("gift")]);
    }
    harness.commit();
    harness.truncate("details");
    harness.put("details", 4, &[Datum::Long(4), Datum::Str("new")]);
    harness.settle();
    let notes: Vec<String> = harness.shown().into_iter().map(|(_, row)| row).collect();
    assert_eq!(
        notes.iter().filter(|row| row.ends_with(" 1 null")).count(),
        8,
        "{notes:?}"
    );
    assert!(notes.contains(&String::from("4 1 new")), "{notes:?}");
}

/// The result of the row's pair cannot be computed, with or without the other side.
#[test]
fn row_whose_removal_has_no_result_is_one_dead_letter() {
    let declaration = "[[processor]]\nname = \"both\"\nkind = \"join\"\nleft = \"shop.orders\"\nright = \"shop.details\"\n\
         on = { id = \"id\" }\ntype = \"left\"\nfields = { share = \"100 / (left.id % 4)\", note = \"right.note\" }\n";
    let mut harness = Harness::with(SHOP, declaration, "both", SLOW_SWEEP, &[]);
    for number in 0..9 {
        harness.put("orders", number, &row(number, 5));
        harness.put("details", number, &[Datum::Long(number), Datum::Str("gift")]);
    }
    harness.commit();
    let before = harness.dead_letters().len();
    harness.truncate("details");
    harness.settle();
    let after = harness.dead_letters().split_off(before);
    assert_eq!(after.len(), 3, "{after:?}");
    for (text, number) in after.iter().zip([0, 4, 8]) {
        let expected =
            format!("row [\"{number}\"] of `details` is removed, but the result without it cannot be written");
        assert!(text.starts_with(&expected), "{text}");
    }
}

/// The log rejects what the removal of one row writes.
#[test]
fn row_whose_removal_is_rejected_is_skipped() {
    let mut harness = filled(SLOW_SWEEP, 20);
    harness.truncate("orders");
    harness.commit();
    let is_removed = |state: &streams::State| {
        let value = state.get(b"[\"row\",\"left\",\"15\"]").unwrap().unwrap();
        Row::header(&value).unwrap().is_deleted
    };
    let (mut dead_letters, mut ticks) = (0, 0);
    while harness.sweeps() > 0 {
        dead_letters += harness.tick_rejecting(is_removed);
        harness.commit();
        ticks += 1;
        assert!(ticks < 100, "the sweep does not end");
    }
    assert_eq!(dead_letters, 1);
    assert_eq!(
        shown(&harness),
        Some(format!("7 1 1 {STATUS}")),
        "only this row is left"
    );
}

#[test]
fn rejected_truncate_continues_as_a_sweep() {
    let mut harness = filled(SLOW_SWEEP, 20);
    harness.reject_truncate("orders");
    harness.settle();
    assert_eq!(harness.shown(), []);
}
