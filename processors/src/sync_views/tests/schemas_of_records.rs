//! Rows that were not written with the declared schema: devices receive values of the declared types, or the row is a
//! dead letter and its views are stale.

use super::{Harness, tx};
use schemas::codec::Datum;
use schemas::ids::SchemaId;
use schemas::schema::Schema;

const DECLARED: &str = r#"{"type":"record","name":"t","fields":[
    {"name":"owner","type":"string"},
    {"name":"amount","type":["null",{"type":"long","trunkline.type":"int8"}],"default":null},
    {"name":"unused","type":"string"},
    {"name":"_unchanged","type":["null",{"type":"array","items":"string"}],"default":null}]}"#;

/// Schemas of records by their id.
const SCHEMAS: [&str; 9] = [
    DECLARED,
    // Earlier versions: another order, int, not nullable, without the column.
    r#"{"type":"record","name":"t","fields":[{"name":"amount","type":"int"},{"name":"owner","type":"string"}]}"#,
    r#"{"type":"record","name":"t","fields":[{"name":"more","type":"bytes"},{"name":"owner","type":["null","string"]}]}"#,
    // Types that an int8 column of another program had.
    r#"{"type":"record","name":"t","fields":[{"name":"owner","type":"string"},{"name":"amount","type":"boolean"}]}"#,
    r#"{"type":"record","name":"t","fields":[{"name":"owner","type":"string"},{"name":"amount","type":"double"}]}"#,
    r#"{"type":"record","name":"t","fields":[{"name":"owner","type":"string"},{"name":"amount","type":"null"}]}"#,
    r#"{"type":"record","name":"t","fields":[{"name":"owner","type":"string"},{"name":"amount","type":{"type":"array","items":"long"}}]}"#,
    r#"{"type":"record","name":"t","fields":[{"name":"owner","type":"string"},{"name":"amount","type":"string"}]}"#,
    r#"{"type":"record","name":"t","fields":[{"name":"amount","type":"long"}]}"#,
];

fn schema(id: u32) -> Option<&'static str> {
    SCHEMAS.get(usize::try_from(id).unwrap()).copied()
}

fn feed(harness: &mut Harness, position: u64, id: u32, row: &[Datum<'_>]) {
    let mut value = Vec::new();
    schemas::wire::frame(SchemaId(id), &mut value);
    let schema = Schema::parse(schema(id).unwrap()).unwrap();
    schema.encode(row, &mut value).unwrap();
    harness.record("[\"t\",1]", Some(tx(1, position)), None, Some(&value));
}

fn row(harness: &Harness) -> Option<&str> {
    harness.rows.values().next().map(String::as_str)
}

#[test]
fn row_of_an_older_schema_has_the_declared_types() {
    let mut harness = Harness::with(DECLARED, schema);
    let owner = Datum::Str("me");
    for (position, id, written, expected) in [
        (
            1,
            0,
            vec![owner.clone(), Datum::Long(7), Datum::Str(""), Datum::Null],
            "{\"amount\":\"7\"}",
        ),
        (2, 1, vec![Datum::Int(-5), owner.clone()], "{\"amount\":\"-5\"}"),
        (3, 2, vec![Datum::Bytes(b"x"), owner.clone()], "{\"amount\":null}"),
        (
            4,
            0,
            vec![owner.clone(), Datum::Null, Datum::Str(""), Datum::Null],
            "{\"amount\":null}",
        ),
    ] {
        feed(&mut harness, position, id, &written);
        assert_eq!(row(&harness), Some(expected), "{id}");
    }
    assert_eq!(harness.reasons, Vec::<String>::new());
}

#[test]
fn row_of_another_type_is_a_dead_letter_and_reaches_no_device() {
    let owner = Datum::Str("me");
    let array = Datum::Array(vec![Datum::Long(1)]);
    for (id, written, reason) in [
        (
            3,
            vec![owner.clone(), Datum::Bool(true)],
            "amount is boolean, but the reader wants null or long",
        ),
        (4, vec![owner.clone(), Datum::Double(1.5)], "amount is double, but"),
        (4, vec![owner.clone(), Datum::Double(f64::NAN)], "amount is double, but"),
        (6, vec![owner.clone(), array], "amount is array of long, but"),
        (7, vec![owner.clone(), Datum::Str("7")], "amount is string, but"),
        (8, vec![Datum::Long(7)], "owner is missing and has no default"),
        // Only this value of the column cannot be read.
        (
            2,
            vec![Datum::Bytes(b""), Datum::Null],
            "owner: null, which the reader's type does not accept",
        ),
    ] {
        let mut harness = Harness::with(DECLARED, schema);
        feed(&mut harness, 1, id, &written);
        assert_eq!(row(&harness), None, "{id}");
        assert!(harness.stale, "{id}");
        assert!(harness.reasons[0].contains(reason), "{:?}", harness.reasons);
        // A later record of the declared schema is processed.
        let declared = [owner.clone(), Datum::Long(7), Datum::Str(""), Datum::Null];
        feed(&mut harness, 2, 0, &declared);
        assert_eq!(row(&harness), Some("{\"amount\":\"7\"}"));
        assert!(!harness.stale, "{id}");
    }
}

/// A column that is always null has all values of a nullable column.
#[test]
fn column_of_type_null_is_null() {
    let mut harness = Harness::with(DECLARED, schema);
    feed(&mut harness, 1, 5, &[Datum::Str("me"), Datum::Null]);
    assert_eq!(row(&harness), Some("{\"amount\":null}"));
}

const WITH_ARRAY: &str = r#"{"type":"record","name":"t","fields":[
    {"name":"owner","type":"string"},
    {"name":"tags","type":["null",{"type":"array","items":["null","string"]}],"default":null},
    {"name":"_unchanged","type":["null",{"type":"array","items":"string"}],"default":null}]}"#;

#[test]
fn unchanged_array_has_its_earlier_value() {
    let mut harness = Harness::with(WITH_ARRAY, |id| (id == 0).then_some(WITH_ARRAY));
    let mut feed = |position: u64, tags: Datum<'_>, unchanged: Datum<'_>| {
        let mut value = Vec::new();
        schemas::wire::frame(SchemaId(0), &mut value);
        let schema = Schema::parse(WITH_ARRAY).unwrap();
        schema.encode(&[Datum::Str("me"), tags, unchanged], &mut value).unwrap();
        harness.record("[\"t\",1]", Some(tx(1, position)), None, Some(&value));
        (row(&harness).map(str::to_owned), harness.stale)
    };
    let is_omitted = || Datum::Array(vec![Datum::Str("tags")]);
    let shown = |text: &str| (Some(text.to_owned()), false);
    let tags = Datum::Array(vec![Datum::Str("a"), Datum::Null, Datum::Str("b")]);
    assert_eq!(feed(1, tags, Datum::Null), shown(r#"{"tags":["a",null,"b"]}"#));
    for position in 2..4 {
        let omitted = feed(position, Datum::Array(vec![]), is_omitted());
        assert_eq!(omitted, shown(r#"{"tags":["a",null,"b"]}"#));
    }
    assert_eq!(feed(4, Datum::Array(vec![]), Datum::Null), shown(r#"{"tags":[]}"#));
    assert!(feed(5, Datum::Null, is_omitted()).1, "no value is known");
}
