//! Compatibility cases, compared with the result of the apache-avro crate.

use super::*;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};

/// Compares with the expected incompatibilities, and with whether the apache-avro crate finds any.
fn check(reader: &str, writer: &str, expected: &str) {
    check_alone(reader, writer, expected);
    // apache-avro stops at the first incompatibility, but must find one if this crate does. It returns "partial" if
    // only some data of the writer can be read, which counts as incompatible here.
    let avro = |text: &str| apache_avro::Schema::parse_str(text).unwrap();
    let by_library = SchemaCompatibility::can_read(&avro(writer), &avro(reader));
    assert_eq!(
        matches!(by_library, Ok(Compatibility::Full)),
        expected.is_empty(),
        "{by_library:?}"
    );
}

fn check_alone(reader: &str, writer: &str, expected: &str) {
    let (reader, writer) = (Schema::parse(reader).unwrap(), Schema::parse(writer).unwrap());
    let found = match compatible(&reader, &writer) {
        Ok(()) => String::new(),
        Err(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    };
    assert_eq!(found, expected);
}

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"shop.Order","fields":[{fields}]}}"#)
}

#[test]
fn plain_types_widen_and_never_narrow() {
    for (writer, readers) in [
        ("int", "int long float double"),
        ("long", "long float double"),
        ("float", "float double"),
        ("double", "double"),
        ("bytes", "bytes string"),
        ("string", "string bytes"),
        ("boolean", "boolean"),
        ("null", "null"),
    ] {
        for reader in ["int", "long", "float", "double", "bytes", "string", "boolean", "null"] {
            let fits = readers.split(' ').any(|r| r == reader);
            let expected = if fits {
                String::new()
            } else {
                format!("writer's {writer} cannot be read as {reader}")
            };
            check(&format!("\"{reader}\""), &format!("\"{writer}\""), &expected);
        }
    }
}

#[test]
fn a_new_field_needs_a_default_and_an_old_one_may_go() {
    let old = record(r#"{"name":"id","type":"long"},{"name":"note","type":"string"}"#);
    let with_default = record(r#"{"name":"id","type":"long"},{"name":"at","type":["null","long"],"default":null}"#);
    let without = record(r#"{"name":"id","type":"long"},{"name":"at","type":"long"}"#);
    check(&with_default, &old, "");
    check(
        &without,
        &old,
        "at: the writer lacks this field and the reader has no default for it",
    );
}

#[test]
fn every_conflict_is_named_with_its_path() {
    let line = |price: &str| {
        format!(
            r#"{{"name":"lines","type":{{"type":"array","items":{{"type":"record","name":"Line","fields":[{{"name":"price","type":{price}}}]}}}}}}"#
        )
    };
    let old = record(&format!(r#"{{"name":"id","type":"string"}},{}"#, line("\"long\"")));
    let new = record(&format!(r#"{{"name":"id","type":"long"}},{}"#, line("\"int\"")));
    check(
        &new,
        &old,
        "id: writer's string cannot be read as long\nlines[].price: writer's long cannot be read as int",
    );
}

#[test]
fn aliases_find_renamed_fields_and_records() {
    let old = record(r#"{"name":"total","type":"long"}"#);
    let new = r#"{"type":"record","name":"shop.Purchase","aliases":["Order"],
        "fields":[{"name":"total_cents","aliases":["total"],"type":"long"}]}"#;
    // apache-avro does not support aliases of records.
    check_alone(new, &old, "");
    let renamed = r#"{"type":"record","name":"shop.Purchase","fields":[{"name":"total","type":"long"}]}"#;
    check(renamed, &old, "writer's name is shop.Order, reader's shop.Purchase");
}

#[test]
fn an_enum_may_lose_symbols_only_with_a_default() {
    let status = |rest: &str| {
        record(&format!(
            r#"{{"name":"status","type":{{"type":"enum","name":"Status",{rest}}}}}"#
        ))
    };
    let old = status(r#""symbols":["OPEN","PAID","LOST"]"#);
    check(&status(r#""symbols":["OPEN","PAID"],"default":"OPEN""#), &old, "");
    check(
        &status(r#""symbols":["OPEN"]"#),
        &old,
        "status: reader's enum lacks symbol PAID, LOST and has no default",
    );
}

#[test]
fn unions_are_read_branch_by_branch() {
    check(r#"["null","string"]"#, r#""string""#, "");
    check(r#"["null","long"]"#, r#"["null","int"]"#, "");
    check(
        r#""string""#,
        r#"["null","string"]"#,
        "writer's null cannot be read as string",
    );
    check(
        r#"["null","int"]"#,
        r#""string""#,
        "writer's string is not a branch of reader's null or int",
    );
}

#[test]
fn a_type_that_holds_itself_is_compared_once() {
    let tree = |ty: &str| {
        format!(
            r#"{{"type":"record","name":"Node","fields":[{{"name":"value","type":"{ty}"}},{{"name":"next","type":["null","Node"]}}]}}"#
        )
    };
    check(&tree("long"), &tree("int"), "");
    check(
        &tree("int"),
        &tree("long"),
        "value: writer's long cannot be read as int",
    );
}

#[test]
fn the_same_bytes_with_another_unit_are_another_shape() {
    let parse = |text: &str| Schema::parse(text).unwrap();
    let (millis, micros) = (
        parse(r#"{"type":"long","logicalType":"timestamp-millis"}"#),
        parse(r#"{"type":"long","logicalType":"timestamp-micros"}"#),
    );
    assert!(!same_shape(&millis, millis.root(), &micros, micros.root()));
    assert!(same_shape(&millis, millis.root(), &parse("\"long\""), TypeId(0)));
}
