//! Loaded marks: when the first snapshots of all inputs have ended, after the rows to which they led.

use super::SHOP;
use super::harness::{Harness, SLOW_SWEEP};
use crate::declarative::reader::id_of;
use crate::repartition;
use schemas::codec::Datum;
use std::sync::Arc;
use topology::samples::STREAMS;
use views::Bucket;
use views::rules::Rules;

const TOTALS: &str = r#"
[[processor]]
name = "totals"
kind = "aggregate"
from = "shop.orders"
group = { customer = "customer" }
fields = { n = "count()" }
"#;
const BOTH: &str = r#"
[[processor]]
name = "both"
kind = "join"
left = "shop.orders"
right = "shop.details"
on = { id = "id" }
fields = { note = "right.note" }
"#;
const MARK: &str = r#"[["~loaded",0,1]]"#;

/// The topology, where the tables are those of a database.
fn database(text: &str) -> String {
    text.replace("\"http\"", "\"postgres\"")
}

fn order(number: i64) -> Vec<Datum<'static>> {
    let (customer, cents) = (Datum::Int(7), Datum::Long(1));
    vec![
        Datum::Long(number),
        customer,
        Datum::Str("paid"),
        cents,
        Datum::Null,
        Datum::Null,
    ]
}

#[test]
fn mark_follows_the_rows_of_the_first_snapshot() {
    let mut harness = Harness::new(&database(SHOP), TOTALS, "totals");
    harness.put("orders", 9, &order(9));
    harness.chunk("orders", &[(1, order(1))], None, Some(1));
    harness.commit();
    assert_eq!(harness.sent(), ["[7] 2"], "only a part of the table was read");
    harness.restart();
    harness.chunk("orders", &[(2, order(2))], Some(2), None);
    harness.commit();
    // The snapshot did not find row 9.
    assert_eq!(harness.sent(), ["[7] 2", "[7] 2", MARK]);
    harness.restart();
    harness.chunk("orders", &[], None, None);
    harness.commit();
    assert_eq!(harness.sent()[3..], ["[7] gone"], "the mark is written once");
}

#[test]
fn last_chunk_of_a_snapshot_whose_first_was_not_read_is_no_snapshot() {
    let mut harness = Harness::new(&database(SHOP), TOTALS, "totals");
    harness.chunk("orders", &[(2, order(2))], Some(2), None);
    harness.commit();
    assert_eq!(harness.sent(), ["[7] 1"]);
}

#[test]
fn mark_waits_for_the_sweep_of_the_last_chunk() {
    let mut harness = Harness::with(&database(SHOP), TOTALS, "totals", SLOW_SWEEP, &[]);
    for number in 1..=20 {
        harness.put("orders", number, &order(number));
    }
    harness.chunk("orders", &[], None, None);
    harness.commit();
    assert!(harness.sweeps() > 0 && !harness.sent().contains(&MARK.to_owned()));
    harness.restart();
    harness.settle();
    let sent = harness.sent();
    assert_eq!(sent[sent.len() - 2..], ["[7] gone", MARK]);
}

#[test]
fn join_waits_for_both_tables() {
    let mut harness = Harness::new(&database(SHOP), BOTH, "both");
    harness.chunk("details", &[], None, None);
    harness.commit();
    assert_eq!(harness.sent(), [""; 0]);
    harness.restart();
    harness.chunk("orders", &[], None, None);
    harness.commit();
    assert_eq!(harness.sent(), [MARK]);
}

#[test]
fn output_without_a_first_snapshot_has_no_mark() {
    // The source is not a database.
    let mut harness = Harness::new(SHOP, TOTALS, "totals");
    harness.chunk("orders", &[], None, None);
    harness.commit();
    assert_eq!(harness.sent(), [""; 0]);
}

#[test]
fn marks_of_all_tasks_pass_through_processors() {
    let name = "customers_by_orders";
    let mut harness = Harness::new(&database(STREAMS.text), "", name);
    assert!(!harness.is_direct());
    let input = "streams.processor.orders_by_customer";
    harness.raw(input, MARK.as_bytes(), b"");
    harness.commit();
    // Two of the three tasks that repartition the input lack.
    assert_eq!(harness.sent(), [""; 0]);
    let value = repartition::mark(id_of(&harness.declaration_of(name)));
    for mark in [r#"[["~loaded",1,3]]"#, r#"[["~loaded",1,3]]"#] {
        harness.raw("streams.customers_by_orders.repartition", mark.as_bytes(), &value);
        harness.commit();
        harness.restart();
        assert_eq!(harness.sent(), [""; 0]);
    }
    harness.raw(
        "streams.customers_by_orders.repartition",
        br#"[["~loaded",2,3]]"#,
        &value,
    );
    harness.commit();
    assert_eq!(harness.sent(), [r#"[["~loaded",0,2]]"#]);
    assert_eq!(harness.dead_letters(), [""; 0]);
}

#[test]
fn views_of_processors_wait_for_as_many_writers_as_partitions() {
    let views = |text: &str| {
        let checked = topology::check("topology.toml", text, &topology::Embedded(&[]));
        let rules = Rules::compile(Arc::new(checked.into_result().map_err(|e| e.render(false)).unwrap()));
        let buckets = [Bucket::new("office", "office", 1)];
        let views = rules.snapshot_views(&buckets);
        let named = views.iter().map(|view| (view.name.to_string(), view.writers));
        named.collect::<Vec<_>>()
    };
    assert_eq!(views(STREAMS.text), [], "the source is not a database");
    // The view of windows is not the state of a table.
    let expected = [("all_totals", 3), ("sizes", 2)].map(|(name, writers)| (name.to_owned(), writers));
    assert_eq!(views(&database(STREAMS.text)), expected);
}
