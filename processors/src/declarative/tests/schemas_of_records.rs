//! Records that were not written with the declared schema: compatible ones are resolved, others become dead letters.

use super::harness::{Harness, row_text};
use super::{SHOP, StepLimits, id};
use crate::declarative::delta::{Contribution, Delta};
use crate::declarative::reader::id_of;
use schemas::codec::Datum;

/// A version of `orders` from before `at` was added, with an `int` amount, a not nullable customer and another order.
const OLD_ORDERS: &str = r#"{"type":"record","name":"orders","namespace":"trunkline.shop","fields":[
    {"name":"status","type":"string"},{"name":"id","type":"int"},{"name":"customer","type":"int"},
    {"name":"cents","type":["int","null"]},{"name":"rate","type":["null","float"],"default":null},
    {"name":"dropped","type":"string"},
    {"name":"_unchanged","type":["null",{"type":"array","items":"string"}],"default":null}]}"#;
/// The customer is text.
const FOREIGN_ORDERS: &str = r#"{"type":"record","name":"orders","namespace":"trunkline.shop","fields":[
    {"name":"id","type":"long"},{"name":"customer","type":["null","string"]},{"name":"status","type":"string"},
    {"name":"cents","type":["null","long"]},{"name":"rate","type":["null","double"]}]}"#;
/// The id may be null.
const NULLABLE_VIEWED: &str = r#"{"type":"record","name":"viewed","fields":[
    {"name":"id","type":["null","long"]},{"name":"screen","type":["null","string"]},{"name":"ms","type":"long"}]}"#;

const TOTALS: &str = r#"
[[processor]]
name = "totals"
kind = "aggregate"
from = "shop.orders"
group = { customer = "customer" }
fields = { n = "count()", spent = "sum(cents)", rates = "sum(rate)", newest = "latest(status)" }
"#;

fn order(number: i64, cents: i64) -> Vec<Datum<'static>> {
    vec![
        Datum::Long(number),
        Datum::Int(7),
        Datum::Str("new"),
        Datum::Long(cents),
        Datum::Double(0.5),
        Datum::Null,
    ]
}

fn old_order(number: i32, cents: i32) -> Vec<Datum<'static>> {
    vec![
        Datum::Str("old"),
        Datum::Int(number),
        Datum::Int(7),
        Datum::Int(cents),
        Datum::Float(0.25),
        Datum::Str("dropped"),
        Datum::Null,
    ]
}

fn harness(declaration: &str, name: &str) -> Harness {
    let foreign = [OLD_ORDERS, FOREIGN_ORDERS, NULLABLE_VIEWED];
    Harness::with(SHOP, declaration, name, StepLimits::default(), &foreign)
}

#[test]
fn record_of_an_older_schema_counts_as_declared() {
    let mut harness = harness(TOTALS, "totals");
    harness.put("orders", 1, &order(1, 10));
    harness.put_foreign("orders", 2, OLD_ORDERS, &old_order(2, 5));
    harness.commit();
    assert_eq!(harness.shown(), [("[7]".to_owned(), "7 2 15 0.75 old".to_owned())]);
    // Each version replaces the other.
    harness.put("orders", 2, &order(2, 6));
    harness.put_foreign("orders", 1, OLD_ORDERS, &old_order(1, 1));
    harness.commit();
    assert_eq!(harness.shown(), [("[7]".to_owned(), "7 2 7 0.75 old".to_owned())]);
    assert_eq!(harness.dead_letters(), Vec::<String>::new());
}

#[test]
fn record_of_another_type_is_a_dead_letter_in_every_processor() {
    let join = |left: &str, right: &str, orders: &str| {
        format!(
            "[[processor]]\nname = \"totals\"\nkind = \"join\"\nleft = \"{left}\"\nright = \"{right}\"\n\
             on = {{ id = \"id\" }}\nfields = {{ customer = \"{orders}.customer\" }}\n"
        )
    };
    let by_status = TOTALS.replace(
        "group = { customer = \"customer\" }",
        "group = { status = \"status\", c = \"customer\" }",
    );
    for declaration in [
        TOTALS.to_owned(),
        by_status,
        join("shop.orders", "shop.details", "left"),
        join("shop.details", "shop.orders", "right"),
    ] {
        let mut harness = harness(&declaration, "totals");
        harness.put("orders", 1, &order(1, 10));
        harness.put("details", 1, &[Datum::Long(1), Datum::Null]);
        harness.commit();
        let before = harness.shown();
        assert_eq!(before.len(), 1, "{declaration}");
        let foreign = [
            Datum::Long(1),
            Datum::Str("seven"),
            Datum::Str("new"),
            Datum::Long(3),
            Datum::Null,
        ];
        harness.put_foreign("orders", 1, FOREIGN_ORDERS, &foreign);
        harness.commit();
        // The row keeps its contribution.
        assert_eq!(harness.shown(), before, "{declaration}");
        let dead_letters = harness.dead_letters();
        assert!(
            dead_letters[0].contains("field customer is null or string, but the reader wants null or int"),
            "{dead_letters:?}"
        );
        harness.put("orders", 2, &order(2, 5));
        harness.commit();
        assert_eq!(harness.dead_letters().len(), dead_letters.len(), "{declaration}");
    }
}

#[test]
fn null_in_a_column_that_is_not_nullable_is_a_dead_letter() {
    let mut harness = harness(
        "[[processor]]\nname = \"views\"\nkind = \"aggregate\"\nfrom = \"event:viewed\"\ngroup = { id = \"id\" }\n\
         fields = { ms = \"sum(ms)\" }\n",
        "views",
    );
    let key = "[\"1\"]";
    harness.event_foreign(
        "viewed",
        key,
        NULLABLE_VIEWED,
        &[Datum::Null, Datum::Null, Datum::Long(5)],
    );
    harness.event_foreign(
        "viewed",
        key,
        NULLABLE_VIEWED,
        &[Datum::Long(1), Datum::Null, Datum::Long(7)],
    );
    harness.commit();
    assert_eq!(harness.shown(), [(id(1), row_text(&[1.into(), 7.into()]))]);
    let dead_letters = harness.dead_letters();
    assert_eq!(dead_letters.len(), 1);
    assert!(
        dead_letters[0].contains("id: null, which the reader's type does not accept"),
        "{dead_letters:?}"
    );
}

/// Records of a repartition topic that another program wrote, or an earlier release from values of other types.
#[test]
fn foreign_record_on_a_repartition_topic_is_a_dead_letter() {
    let declaration = r#"
        [[processor]]
        name = "totals"
        kind = "aggregate"
        from = "event:viewed"
        group = { ms = "ms" }
        fields = { n = "count()", ids = "sum(id)" }
        "#;
    let mut harness = harness(declaration, "totals");
    let topic = "shop.totals.repartition";
    let processor = harness.declaration_of("totals");
    let values = |group: &Datum<'_>, id: &Datum<'_>| {
        let mut values = Vec::new();
        crate::declarative::values::write(&mut values, group);
        crate::declarative::values::write(&mut values, id);
        values
    };
    let (good, bad) = (
        values(&Datum::Long(5), &Datum::Long(1)),
        values(&Datum::Str("5"), &Datum::Long(1)),
    );
    let record = |old: Option<&[u8]>, new: Option<&[u8]>| {
        let contribution = |values| Contribution {
            key: b"[\"5\"]",
            order: 1,
            time: 0,
            values,
        };
        let delta = Delta {
            row: b"1",
            old: old.map(contribution),
            new: new.map(contribution),
        };
        let mut out = Vec::new();
        delta.write(id_of(&processor), &mut out);
        out
    };
    let key = b"[\"5\"]";
    harness.raw(topic, key, &record(None, Some(&good)));
    harness.raw(topic, key, &record(None, Some(&bad)));
    harness.raw(topic, key, b"{}");
    harness.raw(topic, b"5", &record(None, Some(&good)));
    harness.commit();
    assert_eq!(harness.dead_letters().len(), 3, "{:?}", harness.dead_letters());
    assert_eq!(harness.shown(), [(id(5), row_text(&[5.into(), 1.into(), 1.into()]))]);
    // The contribution that was rejected is not removed either.
    harness.raw(topic, key, &record(Some(&bad), Some(&good)));
    harness.commit();
    assert_eq!(harness.shown(), [(id(5), row_text(&[5.into(), 2.into(), 2.into()]))]);
    harness.raw(topic, key, &record(Some(&good), Some(&bad)));
    harness.commit();
    assert_eq!(harness.shown(), [(id(5), row_text(&[5.into(), 1.into(), 1.into()]))]);
    assert_eq!(harness.dead_letters().len(), 4, "{:?}", harness.dead_letters());
}
