//! Writes values as the JSON that devices receive, and as parts of record keys (docs/reference/formats.md, "Keys").
//!
//! The output is canonical: equal values have equal text. It is valid JSON for any value. 64-bit integers and decimals are
//! strings, because many JSON parsers read numbers as doubles.

use crate::codec::Datum;
use crate::json;
use crate::key::KeyWriter;
use crate::schema::{Kind, Logical, Schema, SchemaError, Type, TypeId};
use crate::{decimal, portable_json, time};
use std::sync::Arc;

/// Appends a value as JSON. A value that does not match the type is written according to its own type.
pub fn write(schema: &Schema, id: TypeId, value: &Datum<'_>, out: &mut Vec<u8>) {
    let ty = schema.ty(id);
    match (&ty.kind, value) {
        (Kind::Optional { inner, .. }, value) if !value.is_null() => write(schema, *inner, value, out),
        (_, Datum::Null) => out.extend_from_slice(b"null"),
        (_, Datum::Bool(value)) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        (_, Datum::Int(value)) => write_int(ty, *value, out),
        (_, Datum::Long(value)) => write_long(ty, *value, out),
        (_, Datum::Float(value)) => json::write_f32(out, *value),
        (_, Datum::Double(value)) => json::write_f64(out, *value),
        (_, Datum::Str(text)) if ty.is_json() => write_inline(text, out),
        (_, Datum::Str(text)) => json::write_str(out, text),
        (_, Datum::Bytes(bytes)) => write_bytes(ty, bytes, out),
        (Kind::Union(branches), Datum::Union(at, inner)) => match branches.get(*at) {
            Some(branch) => write(schema, *branch, inner, out),
            None => out.extend_from_slice(b"null"),
        },
        (_, Datum::Union(_, inner)) => write(schema, id, inner, out),
        (Kind::Array(items), Datum::Array(values)) => list(values, out, |value, out| write(schema, *items, value, out)),
        (Kind::Map(values), Datum::Map(entries)) => {
            object(entries.iter().map(|(key, value)| (*key, *values, value)), schema, out);
        }
        (Kind::Record(record), Datum::Record(row)) => {
            object(
                record
                    .fields
                    .iter()
                    .zip(row)
                    .map(|(field, value)| (field.column(), field.ty, value)),
                schema,
                out,
            );
        }
        // Never the case for decoded bodies, because nested values always match their type.
        (_, Datum::Array(_) | Datum::Map(_) | Datum::Record(_)) => out.extend_from_slice(b"null"),
    }
}

fn list<T>(values: &[T], out: &mut Vec<u8>, mut each: impl FnMut(&T, &mut Vec<u8>)) {
    out.push(b'[');
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        each(value, out);
    }
    out.push(b']');
}

fn object<'v, 'd: 'v>(
    entries: impl Iterator<Item = (&'v str, TypeId, &'v Datum<'d>)>,
    schema: &Schema,
    out: &mut Vec<u8>,
) {
    out.push(b'{');
    for (at, (name, ty, value)) in entries.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        json::write_str(out, name);
        out.push(b':');
        write(schema, ty, value, out);
    }
    out.push(b'}');
}

fn quoted(out: &mut Vec<u8>, text: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    text(out);
    out.push(b'"');
}

fn write_int(ty: &Type, value: i32, out: &mut Vec<u8>) {
    match (&ty.kind, ty.logical) {
        (Kind::Long, _) => write_long(ty, i64::from(value), out),
        (_, Some(Logical::Date)) => quoted(out, |out| time::write_date(out, value)),
        (_, Some(Logical::TimeMillis)) => quoted(out, |out| time::write_time(out, i64::from(value) * 1000)),
        _ => json::write_i64(out, i64::from(value)),
    }
}

fn write_long(ty: &Type, value: i64, out: &mut Vec<u8>) {
    // Milliseconds outside the range of 64-bit microseconds saturate to infinity instead of wrapping.
    let millis = value.saturating_mul(1000);
    quoted(out, |out| match ty.logical {
        Some(Logical::TimestampMicros) => time::write_timestamp(out, value, true),
        Some(Logical::LocalTimestampMicros) => time::write_timestamp(out, value, false),
        Some(Logical::TimestampMillis) => time::write_timestamp(out, millis, true),
        Some(Logical::LocalTimestampMillis) => time::write_timestamp(out, millis, false),
        Some(Logical::TimeMicros) => time::write_time(out, value),
        _ => json::write_i64(out, value),
    });
}

fn write_bytes(ty: &Type, bytes: &[u8], out: &mut Vec<u8>) {
    match ty.logical {
        Some(Logical::Decimal { scale }) => {
            let from = out.len();
            out.push(b'"');
            if decimal::write(out, bytes, scale).is_some() {
                out.push(b'"');
                return;
            }
            out.truncate(from);
            json::write_base64(out, bytes);
        }
        Some(Logical::Uuid) if bytes.len() == 16 => {
            let id = uuid::Uuid::from_slice(bytes).unwrap_or_default();
            json::write_str(out, id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
        }
        _ => json::write_base64(out, bytes),
    }
}

/// Embeds the JSON of a `json` column. Text that some clients cannot parse is written as a string, because it would make
/// the whole page unreadable for them.
fn write_inline(text: &str, out: &mut Vec<u8>) {
    if portable_json::is_portable(text) {
        out.extend_from_slice(text.as_bytes());
    } else {
        json::write_str(out, text);
    }
}

impl KeyWriter<'_> {
    /// Adds a value in the same form as in a row, except that JSON, arrays, maps and records are added as strings with
    /// their JSON text.
    pub fn datum(mut self, schema: &Schema, id: TypeId, value: &Datum<'_>) -> Self {
        let scalar = !matches!(
            value,
            Datum::Array(_) | Datum::Map(_) | Datum::Record(_) | Datum::Union(..)
        );
        let is_json = schema.ty(schema.required(id)).is_json();
        match value {
            Datum::Str(text) if is_json => json::write_str(self.next_part(), text),
            value if scalar => write(schema, id, value, self.next_part()),
            value => {
                let mut text = Vec::new();
                write(schema, id, value, &mut text);
                json::write_str(self.next_part(), std::str::from_utf8(&text).unwrap_or_default());
            }
        }
        self
    }
}

/// Writes rows of one schema as JSON objects, with precomputed field names.
#[derive(Debug, Clone)]
pub struct ObjectWriter {
    schema: Arc<Schema>,
    columns: Vec<(Box<[u8]>, TypeId)>,
}

impl ObjectWriter {
    /// Compiles a writer for the named fields of the schema's record. Rows must have their values in the same order, as
    /// [`crate::codec::Projection::of_fields`] returns them.
    ///
    /// # Errors
    /// [`SchemaError`] if the schema is not a record or does not have a field.
    pub fn new(schema: Arc<Schema>, names: &[&str]) -> Result<Self, SchemaError> {
        let record = schema.record()?;
        let mut columns = Vec::with_capacity(names.len());
        for name in names {
            let Some(field) = record.position(name).and_then(|at| record.fields.get(at)) else {
                return Err(SchemaError::Invalid(format!(
                    "record {} has no field {name}",
                    record.name.full
                )));
            };
            let mut text = Vec::new();
            text.push(if columns.is_empty() { b'{' } else { b',' });
            json::write_str(&mut text, field.column());
            text.push(b':');
            columns.push((text.into_boxed_slice(), field.ty));
        }
        Ok(ObjectWriter { schema, columns })
    }

    /// Appends a row as a JSON object.
    pub fn write(&self, row: &[Datum<'_>], out: &mut Vec<u8>) {
        if self.columns.is_empty() {
            out.push(b'{');
        }
        for ((name, ty), value) in self.columns.iter().zip(row) {
            out.extend_from_slice(name);
            write(&self.schema, *ty, value, out);
        }
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row_schema() -> Arc<Schema> {
        let columns = [
            ("flag", "bool"),
            ("small", "int4"),
            ("big", "int8"),
            ("price", "numeric"),
            ("ratio", "float8"),
            ("blob", "bytea"),
            ("day", "date"),
            ("at", "timestamptz"),
            ("local", "timestamp"),
            ("id", "uuid"),
            ("doc", "jsonb"),
            ("name", "text"),
        ];
        let columns: Vec<_> = columns
            .iter()
            .map(|(name, ty)| crate::pg_types::Column::new(name, ty, true))
            .collect();
        let table = crate::ids::TableName::new("t").unwrap();
        let source = crate::ids::SourceName::new("s").unwrap();
        Arc::new(Schema::parse(&crate::pg_types::table_schema(&source, &table, &columns).unwrap()).unwrap())
    }

    fn values() -> Vec<Datum<'static>> {
        vec![
            Datum::Bool(true),
            Datum::Int(-7),
            Datum::Long(9_007_199_254_740_993),
            Datum::Str("12.50"),
            Datum::Double(0.1),
            Datum::Bytes(&[0, 255]),
            Datum::Int(19_782),
            Datum::Long(1_732_390_000_123_450),
            Datum::Long(0),
            Datum::Str("00000000-0000-0000-0000-000000000007"),
            Datum::Str("{\"a\": [1, null]}"),
            Datum::Str("é\n"),
        ]
    }

    #[test]
    fn rows_are_written_as_documented() {
        let schema = row_schema();
        let names: Vec<&str> = schema
            .fields()
            .iter()
            .map(|f| &*f.name)
            .filter(|name| *name != "_unchanged")
            .collect();
        let mut out = Vec::new();
        ObjectWriter::new(schema.clone(), &names)
            .unwrap()
            .write(&values(), &mut out);
        let expected = concat!(
            r#"{"flag":true,"small":-7,"big":"9007199254740993","price":"12.50","ratio":0.1,"blob":"AP8=","#,
            r#""day":"2024-02-29","at":"2024-11-23T19:26:40.12345Z","local":"1970-01-01T00:00:00","#,
            r#""id":"00000000-0000-0000-0000-000000000007","doc":{"a": [1, null]},"name":"é\n"}"#
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn keys_contain_json_as_text() {
        let schema = row_schema();
        let key = crate::key::Key::build(|key| {
            schema
                .fields()
                .iter()
                .zip(values())
                .fold(key, |key, (field, value)| key.datum(&schema, field.ty, &value))
        });
        let expected = concat!(
            r#"[true,-7,"9007199254740993","12.50",0.1,"AP8=","2024-02-29","2024-11-23T19:26:40.12345Z","#,
            r#""1970-01-01T00:00:00","00000000-0000-0000-0000-000000000007","{\"a\": [1, null]}","é\n"]"#
        );
        assert_eq!(key.as_str(), expected);
        assert_eq!(crate::key::Key::parse(key.as_bytes()).unwrap(), key);
    }

    #[test]
    fn invalid_json_text_cannot_break_a_row() {
        let mut out = Vec::new();
        write_inline("{\"a\":", &mut out);
        write_inline("1 2", &mut out);
        write_inline("", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), r#""{\"a\":""1 2""""#);
        // PostgreSQL's json accepts these, but not every client does.
        let deep = "[".repeat(101) + &"]".repeat(101);
        for text in [r#"{"a":"\ud800"}"#, r#"{"\udc00":1}"#, "[1e400]", deep.as_str()] {
            let mut out = Vec::new();
            write_inline(text, &mut out);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn nested_values_become_objects_and_arrays() {
        let schema = Schema::parse(
            r#"{"type":"record","name":"R","fields":[
                {"name":"tags","type":{"type":"array","items":"long"}},
                {"name":"map","type":{"type":"map","values":"string"}},
                {"name":"inner","type":{"type":"record","name":"I","fields":[{"name":"d","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}}]}},
                {"name":"pick","type":["string","int","null"]}]}"#,
        )
        .unwrap();
        let value = Datum::Record(vec![
            Datum::Array(vec![Datum::Long(1), Datum::Long(2)]),
            Datum::Map(vec![("a\"", Datum::Str("x"))]),
            Datum::Record(vec![Datum::Bytes(&[0x04, 0xe2])]),
            Datum::Union(1, Box::new(Datum::Int(5))),
        ]);
        let mut out = Vec::new();
        write(&schema, schema.root(), &value, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            r#"{"tags":["1","2"],"map":{"a\"":"x"},"inner":{"d":"12.50"},"pick":5}"#
        );
    }

    proptest! {
        #[test]
        fn what_a_device_gets_can_be_posted_again(
            small: i32, big: i64, ratio in prop::option::of(any::<f64>()), blob: Vec<u8>, day: i32, at: i64, name: String,
        ) {
            let schema = row_schema();
            let row = vec![
                Datum::Null, Datum::Int(small), Datum::Long(big), Datum::Null,
                ratio.map_or(Datum::Null, Datum::Double), Datum::Bytes(&blob), Datum::Int(day), Datum::Long(at),
                Datum::Long(at), Datum::Null, Datum::Str("[1]"), Datum::Str(&name), Datum::Null,
            ];
            let mut body = Vec::new();
            schema.encode(&row, &mut body).unwrap();
            let mut json = Vec::new();
            write(&schema, schema.root(), &Datum::Record(row), &mut json);
            let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let mut again = Vec::new();
            schema.encode_json(&value, &mut again).unwrap();
            if ratio.is_none_or(|r| !r.is_nan() && r != 0.0) {
                prop_assert_eq!(again, body);
            }
        }
    }
}
