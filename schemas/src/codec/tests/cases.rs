//! Codec cases: limits, defaults, error messages with paths, old writers and new readers.

use super::super::{encode, *};
use crate::schema::{Kind, Schema};
use serde_json::{Value, json};
use std::sync::Arc;

#[test]
fn short_body_cannot_demand_much_memory() {
    let nulls =
        Schema::parse(r#"{"type":"record","name":"R","fields":[{"name":"n","type":{"type":"array","items":"null"}}]}"#)
            .unwrap();
    let mut body = Vec::new();
    encode::write_long(&mut body, i64::MAX);
    let error = nulls.decode(&body, &mut Row::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot decode the Avro body: n: more items than the body can contain at byte 10"
    );
    let strings = Schema::parse(r#"{"type":"record","name":"R","fields":[{"name":"s","type":"string"}]}"#).unwrap();
    let error = strings.decode(&body, &mut Row::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot decode the Avro body: s: unexpected end of the body at byte 10"
    );
    // The absolute value of i64::MIN exceeds i64.
    let mut body = Vec::new();
    encode::write_long(&mut body, i64::MIN);
    body.push(0);
    assert_eq!(
        nulls.decode(&body, &mut Row::new()).unwrap_err().reason,
        "invalid item count"
    );
}

#[test]
fn a_record_within_itself_is_bounded() {
    let list =
        Schema::parse(r#"{"type":"record","name":"Node","fields":[{"name":"next","type":["null","Node"]}]}"#).unwrap();
    let mut row = Row::new();
    let mut body = vec![2; 50];
    body.push(0);
    list.decode(&body, &mut row).unwrap();
    let mut body = vec![2; 100_000];
    body.push(0);
    let error = list.decode(&body, &mut row).unwrap_err();
    assert_eq!(error.reason, "nested too deeply");
    assert!(error.path().starts_with("next.next.next"));
    let mut json = json!(null);
    for _ in 0..100 {
        json = json!({"next": json});
    }
    let error = list.encode_json(&json, &mut Vec::new()).unwrap_err();
    assert!(error.reason.contains("nested more than 64 levels deep"), "{error}");
}

#[test]
fn integers_decode_up_to_their_limits() {
    let schema = Schema::parse(r#"{"type":"record","name":"R","fields":[{"name":"i","type":"int"}]}"#).unwrap();
    let mut row = Row::new();
    for value in [i32::MIN, -1, 0, 1, i32::MAX] {
        let mut body = Vec::new();
        schema.encode(&[Datum::Int(value)], &mut body).unwrap();
        let mut row = Row::new();
        schema.decode(&body, &mut row).unwrap();
        assert_eq!(row, [Datum::Int(value)]);
    }
    let mut body = Vec::new();
    encode::write_long(&mut body, i64::from(i32::MAX) + 1);
    assert_eq!(
        schema.decode(&body, &mut row).unwrap_err().reason,
        "an int exceeds 32 bits"
    );
    assert_eq!(
        schema.decode(&[0xff; 10], &mut row).unwrap_err().reason,
        "an integer exceeds 64 bits"
    );
    assert_eq!(
        schema.decode(&[0xff; 11], &mut row).unwrap_err().reason,
        "an integer exceeds 64 bits"
    );
    assert_eq!(
        schema.decode(&[0xff; 3], &mut row).unwrap_err().reason,
        "unexpected end of the body"
    );
}

fn order() -> Schema {
    Schema::parse(
        r#"{"type":"record","name":"shop.Order","fields":[
            {"name":"id","type":{"type":"string","logicalType":"uuid"}},
            {"name":"total","type":"long"},
            {"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},
            {"name":"status","type":{"type":"enum","name":"Status","symbols":["OPEN","PAID"]},"default":"OPEN"},
            {"name":"items","type":{"type":"array","items":{"type":"record","name":"Item","fields":[
                {"name":"price","type":"long"},{"name":"blob","type":["null","bytes"]}]}},"default":[]},
            {"name":"extra","type":{"type":"map","values":"double"},"default":{}},
            {"name":"note","type":["null","string"],"default":null}]}"#,
    )
    .unwrap()
}

fn minimal() -> Value {
    json!({"id": "00000000-0000-0000-0000-000000000001", "total": 7, "at": "2024-11-23T19:26:40Z"})
}

#[test]
fn json_that_fits_is_encoded_with_defaults() {
    let schema = order();
    let mut body = Vec::new();
    schema.encode_json(&minimal(), &mut body).unwrap();
    let mut row = Row::new();
    schema.decode(&body, &mut row).unwrap();
    let id = "00000000-0000-0000-0000-000000000001";
    let at = 1_732_390_000_000_000;
    let expected = [
        Datum::Str(id),
        Datum::Long(7),
        Datum::Long(at),
        Datum::Str("OPEN"),
        Datum::Array(vec![]),
        Datum::Map(vec![]),
        Datum::Null,
    ];
    assert_eq!(row, expected);
    let mut same = minimal();
    same["total"] = json!("7");
    same["at"] = json!(at);
    let mut again = Vec::new();
    schema.encode_json(&same, &mut again).unwrap();
    assert_eq!(again, body);
}

#[test]
fn json_that_does_not_fit_is_named_by_its_path() {
    let schema = order();
    let with = |field: &str, value: Value| {
        let mut order = minimal();
        order[field] = value;
        order
    };
    let item = |value: Value| json!([{"price": 1}, {"price": 2}, value]);
    let cases = [
        (json!(5), "$: expected record shop.Order, got number 5"),
        (json!({}), "$.id: is missing and has no default"),
        (with("id", json!("x")), "$.id: expected uuid, got string \"x\""),
        (with("total", json!(1.5)), "$.total: expected long, got number 1.5"),
        (
            with("total", json!(9_223_372_036_854_775_808_u64)),
            "$.total: expected long, got number 9223372036854775808",
        ),
        (with("total", json!("+7")), "$.total: expected long, got string \"+7\""),
        (with("total", json!(null)), "$.total: expected long, got null"),
        (
            with("at", json!("noon")),
            "$.at: expected timestamp-micros (RFC 3339), got string \"noon\"",
        ),
        (
            with("status", json!("LOST")),
            "$.status: expected enum shop.Status (OPEN, PAID), got string \"LOST\"",
        ),
        (
            with("items", item(json!({"price": "x"}))),
            "$.items[2].price: expected long, got string \"x\"",
        ),
        (
            with("items", item(json!({"price": 1, "blob": "?"}))),
            "$.items[2].blob: expected bytes (base64), got string \"?\"",
        ),
        (
            with("items", item(json!({"price": 1, "x": 1}))),
            "$.items[2].x: is not a field of shop.Item; its fields are price, blob",
        ),
        (
            with("extra", json!({"a": 1, "b": "y"})),
            "$.extra[\"b\"]: expected double, got string \"y\"",
        ),
        (
            with("note", json!([1])),
            "$.note: expected string, got an array of 1 items",
        ),
    ];
    for (value, message) in cases {
        let mut out = vec![1, 2, 3];
        let error = schema.encode_json(&value, &mut out).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(out, [1, 2, 3], "nothing is left of what did not fit");
    }
}

#[test]
fn rows_that_do_not_fit_are_named_by_their_path() {
    let schema = order();
    let mut row = vec![
        Datum::Str("00000000-0000-0000-0000-000000000001"),
        Datum::Int(1),
        Datum::Long(2),
        Datum::Str("PAID"),
        Datum::Array(vec![Datum::Record(vec![Datum::Long(1), Datum::Bytes(b"x")])]),
        Datum::Map(vec![("a", Datum::Float(0.5))]),
        Datum::Null,
    ];
    schema.encode(&row, &mut Vec::new()).unwrap();
    row[4] = Datum::Array(vec![Datum::Record(vec![Datum::Str("1"), Datum::Null])]);
    let error = schema.encode(&row, &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(
        error,
        "row does not match its Avro schema: items[0].price: expected long, got string"
    );
    row.pop();
    let error = schema.encode(&row, &mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "row does not match its Avro schema: got 6 values for 7 fields");
}

#[test]
fn a_new_reader_takes_what_an_old_writer_wrote() {
    let parse = |fields: &str| {
        Arc::new(Schema::parse(&format!(r#"{{"type":"record","name":"O","fields":[{fields}]}}"#)).unwrap())
    };
    let old = parse(
        r#"{"name":"gone","type":"string"},{"name":"id","type":"int"},{"name":"name","type":"string"},{"name":"ratio","type":"float"}"#,
    );
    let new = parse(
        r#"{"name":"title","aliases":["name"],"type":["null","string"]},{"name":"id","type":"long"},{"name":"ratio","type":"double"},
           {"name":"tags","type":{"type":"array","items":"string"},"default":["a","b"]},
           {"name":"raw","type":"bytes","default":"\u00ff"}"#,
    );
    let mut body = Vec::new();
    old.encode(
        &[Datum::Str("x"), Datum::Int(5), Datum::Str("n"), Datum::Float(0.5)],
        &mut body,
    )
    .unwrap();
    let projection = Projection::between(old.clone(), new.clone()).unwrap();
    let mut row = Row::new();
    projection.decode(&body, &mut row).unwrap();
    let tags = Datum::Array(vec![Datum::Str("a"), Datum::Str("b")]);
    assert_eq!(
        row,
        [
            Datum::Str("n"),
            Datum::Long(5),
            Datum::Double(0.5),
            tags,
            Datum::Bytes(&[255])
        ]
    );
    let error = Projection::between(new, old).unwrap_err().to_string();
    assert_eq!(
        error,
        "records of O do not resolve to the reader schema: field gone is missing and has no default"
    );
    let narrow = parse(r#"{"name":"id","type":"string"}"#);
    let wide = parse(r#"{"name":"id","type":"long"}"#);
    let error = Projection::between(wide, narrow).unwrap_err().to_string();
    assert_eq!(
        error,
        "records of O do not resolve to the reader schema: field id is long, but the reader wants string"
    );
}

#[test]
fn a_row_keeps_its_memory() {
    let mut row: Row<'_> = Vec::with_capacity(64);
    row.push(Datum::Null);
    let at = row.as_ptr().addr();
    let row: Row<'static> = recycle(row);
    assert_eq!((row.as_ptr().addr(), row.len()), (at, 0));
    assert!(row.capacity() >= 64);
    assert!(size_of::<Datum<'_>>() <= 32, "{}", size_of::<Datum<'_>>());
}

#[test]
fn schemas_that_are_none_are_refused() {
    for (text, part) in [
        ("{", "invalid schema: EOF"),
        ("\"nothing\"", "invalid schema"),
        (
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int","default":"x"}]}"#,
            "default",
        ),
        (r#"{"type":"record","name":"R"}"#, "invalid schema"),
    ] {
        let error = Schema::parse(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn names_are_resolved_as_avro_does() {
    let schema = Schema::parse(
        r#"{"type":"record","name":"Outer","namespace":"a.b","fields":[
            {"name":"x","type":{"type":"fixed","name":"Id","size":2}},
            {"name":"y","type":"Id"},
            {"name":"z","type":["null","a.b.Id"]},
            {"name":"w","type":{"type":"enum","name":"c.E","symbols":["A"],"aliases":["Old"]}}]}"#,
    )
    .unwrap();
    assert_eq!(schema.name(), "a.b.Outer");
    assert_eq!(schema.fields()[0].ty, schema.fields()[1].ty);
    assert_eq!(schema.required(schema.fields()[2].ty), schema.fields()[0].ty);
    let Kind::Enum(e) = &schema.ty(schema.fields()[3].ty).kind else {
        panic!("an enum")
    };
    assert_eq!(
        (&*e.name.full, e.name.short(), &*e.name.aliases[0]),
        ("c.E", "E", "c.Old")
    );
}
