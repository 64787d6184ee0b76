//! Schema resolution: random schemas and later versions of them, with apache-avro's resolution as the oracle. apache-avro
//! knows no aliases of fields, so the oracle reads with a schema that has the fields' old names.

use super::*;
use crate::evolution::compatible;

/// A later version of a schema, and the same version without renamed fields.
struct Evolved {
    schema: Value,
    unrenamed: Value,
}

impl Evolved {
    fn same(ty: &Value) -> Self {
        Evolved {
            schema: ty.clone(),
            unrenamed: ty.clone(),
        }
    }

    /// Applies a change to both versions.
    fn map(self, change: impl Fn(Value) -> Value) -> Self {
        Evolved {
            schema: change(self.schema),
            unrenamed: change(self.unrenamed),
        }
    }
}

/// A type that can read most values of a type.
fn evolve(ty: &Value, random: &mut Picker) -> Evolved {
    let evolved = match ty {
        Value::String(word) => {
            let wider: &[&str] = match word.as_str() {
                "int" => &["int", "long", "float", "double"],
                "long" => &["long", "float", "double"],
                "float" => &["float", "double"],
                "string" | "bytes" => &["string", "bytes"],
                other => return nullable(Evolved::same(&json!(other)), random),
            };
            Evolved::same(&json!(wider[random.below(wider.len())]))
        }
        Value::Array(branches) if branches.len() == 2 && branches.contains(&json!("null")) => {
            let inner = branches.iter().find(|branch| **branch != json!("null")).unwrap();
            let inner = evolve_value(inner, random);
            return match random.below(5) {
                // Null is an error for this reader.
                0 => inner,
                1 | 2 => inner.map(|ty| json!([ty, "null"])),
                _ => inner.map(|ty| json!(["null", ty])),
            };
        }
        Value::Array(_) => return Evolved::same(ty),
        Value::Object(_) => evolve_value(ty, random),
        other => panic!("{other} is not a type"),
    };
    nullable(evolved, random)
}

fn nullable(evolved: Evolved, random: &mut Picker) -> Evolved {
    match random.below(6) {
        _ if evolved.schema.is_array() => evolved,
        0 => evolved.map(|ty| json!(["null", ty])),
        1 => evolved.map(|ty| json!([ty, "null"])),
        _ => evolved,
    }
}

/// Like [`evolve`], but the type does not become a union.
fn evolve_value(ty: &Value, random: &mut Picker) -> Evolved {
    let Value::Object(object) = ty else {
        return loop {
            let evolved = evolve(ty, random);
            if !evolved.schema.is_array() {
                break evolved;
            }
        };
    };
    match object["type"].as_str().unwrap() {
        "array" => evolve(&object["items"], random).map(|items| json!({"type": "array", "items": items})),
        "map" => evolve(&object["values"], random).map(|values| json!({"type": "map", "values": values})),
        "record" => evolve_record(ty, random),
        "enum" => {
            let symbols = object["symbols"].as_array().unwrap();
            let mut kept: Vec<Value> = symbols.iter().filter(|_| random.below(3) > 0).cloned().collect();
            kept.insert(0, json!("OTHER"));
            let mut changed = json!({"type": "enum", "name": object["name"], "symbols": kept});
            if random.below(3) > 0 {
                changed["default"] = json!("OTHER");
            }
            Evolved::same(&changed)
        }
        _ => Evolved::same(ty),
    }
}

fn evolve_record(ty: &Value, random: &mut Picker) -> Evolved {
    let (mut fields, mut unrenamed) = (Vec::new(), Vec::new());
    for field in ty["fields"].as_array().unwrap() {
        if random.below(6) == 0 {
            continue;
        }
        let evolved = evolve(&field["type"], random);
        unrenamed.push(json!({"name": field["name"], "type": evolved.unrenamed}));
        fields.push(if random.below(4) == 0 {
            json!({"name": fresh("renamed"), "aliases": [field["name"]], "type": evolved.schema})
        } else {
            json!({"name": field["name"], "type": evolved.schema})
        });
    }
    let added = [
        json!({"name": fresh("added"), "type": ["null", "string"], "default": null}),
        json!({"name": fresh("added"), "type": "long", "default": -7}),
        json!({"name": fresh("added"), "type": ["string", "null"], "default": "x"}),
        json!({"name": fresh("added"), "type": {"type": "array", "items": "int"}, "default": [1, 2]}),
    ];
    for field in added {
        if random.below(3) == 0 {
            let at = random.below(fields.len() + 1);
            fields.insert(at, field.clone());
            unrenamed.insert(at, field);
        }
    }
    for at in (1..fields.len()).rev() {
        let other = random.below(at + 1);
        fields.swap(at, other);
        unrenamed.swap(at, other);
    }
    let record = |fields: Vec<Value>| json!({"type": "record", "name": ty["name"], "fields": fields});
    Evolved {
        schema: record(fields),
        unrenamed: record(unrenamed),
    }
}

fn resolve_by_library(writer: &Schema, reader: &Schema, mut body: &[u8]) -> Option<Avro> {
    let [writer, reader] = [writer, reader].map(|schema| apache_avro::Schema::parse_str(schema.text()).unwrap());
    apache_avro::reader::datum::GenericDatumReader::builder(&writer)
        .reader_schema(&reader)
        .build()
        .unwrap()
        .read_value(&mut body)
        .ok()
}

/// Whether apache-avro resolves a value that the specification does not: it converts by value, for example a long that
/// fits into an int.
fn is_lenient(reader: &Schema, writer: &Schema, body: &[u8]) -> bool {
    let text = format!("{}{}", writer.text(), reader.text());
    compatible(reader, writer).is_err() || text.contains("uuid") || body.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn later_schema_reads_what_the_library_reads(writer in any_schema(), seed in 1u64..) {
        let random = &mut Picker { seed };
        let text: Value = serde_json::from_str(writer.text()).unwrap();
        let evolved = evolve_record(&text, random);
        let reader = Arc::new(Schema::parse(&evolved.schema.to_string()).unwrap());
        let unrenamed = Schema::parse(&evolved.unrenamed.to_string()).unwrap();
        let body = by_library(&writer, &random.value(&writer, writer.root()));

        let projection = Projection::between(writer.clone(), reader.clone());
        if compatible(&reader, &writer).is_ok() {
            prop_assert!(projection.is_ok(), "{projection:?}");
        }
        let expected = resolve_by_library(&writer, &unrenamed, &body);
        let Ok(projection) = projection else { return Ok(()) };
        let mut row = Row::new();
        match (projection.decode(&body, &mut row), &expected) {
            (Ok(()), Some(expected)) => {
                let expected = datum(&unrenamed, unrenamed.root(), expected);
                prop_assert_eq!(sorted(Datum::Record(row)), sorted(expected));
            }
            (Err(_), None) => {}
            (Ok(()), None) => prop_assert!(false, "the library rejects {row:?}"),
            (Err(error), Some(value)) => {
                prop_assert!(is_lenient(&reader, &writer, &body), "{error}, but the library reads {value:?}");
            }
        }
    }

    #[test]
    fn damaged_body_is_an_error_or_another_value(
        writer in any_schema(), seed in 1u64.., at: prop::sample::Index, byte: u8,
    ) {
        let random = &mut Picker { seed };
        let text: Value = serde_json::from_str(writer.text()).unwrap();
        let reader = Arc::new(Schema::parse(&evolve_record(&text, random).schema.to_string()).unwrap());
        let mut body = by_library(&writer, &random.value(&writer, writer.root()));
        if let Ok(projection) = Projection::between(writer.clone(), reader.clone())
            && !body.is_empty()
        {
            let at = at.index(body.len());
            body[at] = byte;
            let mut row = Row::new();
            if projection.decode(&body, &mut row).is_ok() {
                // What was decoded is a row of the reader's schema.
                reader.encode(&row, &mut Vec::new()).unwrap();
            }
        }
    }
}

fn record(fields: &str) -> Arc<Schema> {
    Arc::new(Schema::parse(&format!(r#"{{"type":"record","name":"O","fields":[{fields}]}}"#)).unwrap())
}

#[test]
fn types_that_never_match_are_named_with_their_path() {
    let nested = |price: &str| {
        record(&format!(
            r#"{{"name":"items","type":{{"type":"array","items":{{"type":"record","name":"I","fields":[
                {{"name":"price","type":{price}}}]}}}}}}"#
        ))
    };
    let typed = |ty: &str| record(&format!(r#"{{"name":"a","type":{ty}}}"#));
    let micros = r#"{"type":"long","logicalType":"timestamp-micros"}"#;
    let millis = r#"{"type":"long","logicalType":"timestamp-millis"}"#;
    let date = r#"{"type":"int","logicalType":"date"}"#;
    let decimal = r#"{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}"#;
    let list = r#"{"type":"array","items":"long"}"#;
    for (writer, reader, expected) in [
        (
            typed("\"boolean\""),
            typed("\"long\""),
            "a is boolean, but the reader wants long",
        ),
        (
            typed("\"double\""),
            typed("\"long\""),
            "a is double, but the reader wants long",
        ),
        (
            typed("\"null\""),
            typed("\"long\""),
            "a is null, but the reader wants long",
        ),
        (
            typed(list),
            typed("\"long\""),
            "a is array of long, but the reader wants long",
        ),
        (
            typed(r#"["null","string"]"#),
            typed(r#"["null","long"]"#),
            "a is null or string, but the reader wants null or long",
        ),
        (
            typed(millis),
            typed(micros),
            "a is timestamp-millis, but the reader wants timestamp-micros",
        ),
        (
            typed(date),
            typed(micros),
            "a is date, but the reader wants timestamp-micros",
        ),
        (
            typed(decimal),
            typed("\"string\""),
            "a is decimal, but the reader wants string",
        ),
        (
            nested("\"string\""),
            nested("\"long\""),
            "items[].price is string, but the reader wants long",
        ),
        (record(""), typed("\"long\""), "a is missing and has no default"),
    ] {
        let error = Projection::between(writer, reader).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("records of O do not resolve to the reader schema: field {expected}")
        );
    }
}

#[test]
fn single_values_that_do_not_match_are_errors() {
    let old = record(
        r#"{"name":"a","type":["null","int"]},{"name":"e","type":{"type":"enum","name":"E","symbols":["X","Y"]}}"#,
    );
    let new = record(r#"{"name":"a","type":"long"},{"name":"e","type":{"type":"enum","name":"E","symbols":["Y"]}}"#);
    let projection = Projection::between(old.clone(), new).unwrap();
    let read = |row: &[Datum<'_>]| {
        let mut body = Vec::new();
        old.encode(row, &mut body).unwrap();
        let mut read = Row::new();
        let result = projection.decode(&body, &mut read).map_err(|error| error.to_string());
        result.map(|()| format!("{read:?}"))
    };
    assert_eq!(
        read(&[Datum::Int(1), Datum::Str("Y")]),
        Ok(String::from("[Long(1), Str(\"Y\")]"))
    );
    assert_eq!(
        read(&[Datum::Null, Datum::Str("Y")]).unwrap_err(),
        "cannot decode the Avro body: a: null, which the reader's type does not accept at byte 1"
    );
    assert_eq!(
        read(&[Datum::Int(1), Datum::Str("X")]).unwrap_err(),
        "cannot decode the Avro body: e: the reader's enum has neither the symbol nor a default at byte 3"
    );
}

#[test]
fn recursive_types_resolve() {
    let tree = |value: &str, extra: &str| {
        record(&format!(
            r#"{{"name":"root","type":{{"type":"record","name":"Node","fields":[
                {{"name":"value","type":"{value}"}}{extra},
                {{"name":"next","type":["null","Node"]}}]}}}}"#
        ))
    };
    let (old, new) = (
        tree("int", ""),
        tree("long", r#",{"name":"more","type":"int","default":7}"#),
    );
    let mut body = Vec::new();
    let leaf = Datum::Record(vec![Datum::Int(2), Datum::Null]);
    old.encode(&[Datum::Record(vec![Datum::Int(1), leaf])], &mut body)
        .unwrap();
    let projection = Projection::between(old, new).unwrap();
    let mut row = Row::new();
    projection.decode(&body, &mut row).unwrap();
    let leaf = Datum::Record(vec![Datum::Long(2), Datum::Int(7), Datum::Null]);
    assert_eq!(row, [Datum::Record(vec![Datum::Long(1), Datum::Int(7), leaf])]);
}

#[test]
fn wanted_fields_can_have_gaps() {
    let old = record(r#"{"name":"b","type":"int"},{"name":"a","type":"string"}"#);
    let new = record(r#"{"name":"a","type":"string"},{"name":"unused","type":"string"},{"name":"b","type":"long"}"#);
    // The field that is missing in the old schema is not wanted.
    let projection = Projection::resolve(old.clone(), new.clone(), &[Some(0), None, Some(2)]).unwrap();
    let mut body = Vec::new();
    old.encode(&[Datum::Int(1), Datum::Str("x")], &mut body).unwrap();
    let mut row = Row::new();
    projection.decode(&body, &mut row).unwrap();
    assert_eq!(row, [Datum::Str("x"), Datum::Null, Datum::Long(1)]);
    assert!(Projection::between(old, new).is_err());
}
