//! Encodes the text of a JSON value to Avro bytes, so that `json` columns keep their text.
//!
//! A parsed value has lost the order of its properties and the digits of its numbers. Only the containers are parsed here;
//! all other values are passed to [`Writer::value`].

use super::encode::{write_bytes, write_length};
use super::from_json::{Failure, Writer, failure, is_absent_allowed, unknown_field, within};
use super::{DEPTH_MAX, Step};
use crate::schema::{Kind, Record, TypeId};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// What to do with fields that are not in the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownFields {
    /// Reject the value.
    #[default]
    Reject,
    /// Ignore the fields.
    Ignore,
}

/// Encodes JSON texts by one schema.
pub(super) struct TextWriter<'s> {
    pub(super) values: Writer<'s>,
    pub(super) unknown: UnknownFields,
}

impl TextWriter<'_> {
    pub(super) fn value(&self, id: TypeId, text: &RawValue, out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        let ty = self.values.schema.ty(id);
        match &ty.kind {
            Kind::Optional { null_first, inner, .. } if text.get() != "null" => {
                out.push(if *null_first { 2 } else { 0 });
                self.value(*inner, text, out, depth)
            }
            Kind::String if ty.is_json() => {
                write_bytes(out, text.get().as_bytes());
                Ok(())
            }
            Kind::Array(_) | Kind::Record(_) if depth >= DEPTH_MAX => {
                Err(failure(format!("nested more than {DEPTH_MAX} levels deep")))
            }
            Kind::Array(items) if text.get().starts_with('[') => self.array(*items, text, out, depth + 1),
            Kind::Record(record) if text.get().starts_with('{') => self.record(record, text, out, depth + 1),
            _ => {
                let value: Value = parse(text)?;
                self.values.value(id, &value, out, depth)
            }
        }
    }

    fn array(&self, items: TypeId, text: &RawValue, out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        let texts: Vec<&RawValue> = parse(text)?;
        if !texts.is_empty() {
            write_length(out, texts.len());
        }
        for (at, text) in texts.into_iter().enumerate() {
            self.value(items, text, out, depth)
                .map_err(|e| within(e, Step::Item(at)))?;
        }
        out.push(0);
        Ok(())
    }

    fn record(&self, record: &Record, text: &RawValue, out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        let mut given: BTreeMap<String, &RawValue> = parse(text)?;
        for field in &record.fields {
            let step = || Step::Field(field.column().to_owned());
            match (given.remove(field.column()), &field.default) {
                (Some(text), _) => self.value(field.ty, text, out, depth).map_err(|e| within(e, step()))?,
                (None, Some(bytes)) => out.extend_from_slice(bytes),
                (None, None) if is_absent_allowed(self.values.schema, field) => {
                    self.values.value(field.ty, &Value::Null, out, depth)?;
                }
                (None, None) => return Err(within(failure("is missing and has no default"), step())),
            }
        }
        match given.into_keys().next() {
            Some(unknown) if self.unknown == UnknownFields::Reject => Err(unknown_field(record, unknown)),
            _ => Ok(()),
        }
    }
}

fn parse<'t, T: serde::Deserialize<'t>>(text: &'t RawValue) -> Result<T, Failure> {
    serde_json::from_str(text.get()).map_err(|e| failure(format!("is not valid JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::UnknownFields::{Ignore, Reject};
    use super::*;
    use crate::codec::Row;
    use crate::device_json;
    use crate::schema::Schema;

    fn schema() -> Schema {
        let json = r#"{"type":"string","pgType":"jsonb"}"#.replace("pgType", crate::schema::PG_TYPE);
        let nested = r#"{"type":"record","name":"N","fields":[{"name":"doc","type":JSON}]}"#;
        let fields = r#"{"name":"id","type":"int"},{"name":"doc","type":["null",JSON],"default":null},
            {"name":"docs","type":{"type":"array","items":["null",JSON]},"default":[]},
            {"name":"inner","type":["null",NESTED],"default":null}"#;
        let text = format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
        Schema::parse(&text.replace("NESTED", nested).replace("JSON", &json)).unwrap()
    }

    fn device(text: &str, unknown: UnknownFields) -> Result<String, String> {
        let schema = schema();
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        let mut body = Vec::new();
        schema
            .encode_json_text(&raw, unknown, &mut body)
            .map_err(|e| e.to_string())?;
        let mut row = Row::new();
        schema.decode(&body, &mut row).unwrap();
        let mut json = Vec::new();
        let value = crate::codec::Datum::Record(row);
        device_json::write(&schema, schema.root(), &value, &mut json);
        Ok(String::from_utf8(json).unwrap())
    }

    #[test]
    fn json_columns_keep_their_text() {
        let doc = r#"{"z":1.10,"a":12345678901234567890123,"n":1e2,"s":"\u00e9"}"#;
        let text = format!(r#"{{"id":1,"doc":{doc},"docs":[null,{doc},[1.0]],"inner":{{"doc":{doc}}}}}"#);
        assert_eq!(device(&text, Reject), Ok(text.clone()));
        // Without the field, and with null.
        let expected = r#"{"id":2,"doc":null,"docs":[],"inner":null}"#;
        assert_eq!(device(r#"{"id":2}"#, Reject), Ok(expected.to_owned()));
        assert_eq!(device(r#"{"id":2,"doc":null}"#, Reject), Ok(expected.to_owned()));
    }

    #[test]
    fn unknown_fields_are_rejected_or_ignored() {
        let text = r#"{"id":1,"later":{"x":[1]},"inner":{"doc":2,"new":3}}"#;
        assert!(
            device(text, Reject)
                .unwrap_err()
                .starts_with("$.inner.new: is not a field of N")
        );
        let expected = r#"{"id":1,"doc":null,"docs":[],"inner":{"doc":2}}"#;
        assert_eq!(device(text, Ignore), Ok(expected.to_owned()));
        assert!(
            device(r#"{"idd":1}"#, Ignore)
                .unwrap_err()
                .starts_with("$.id: is missing")
        );
        assert!(device("[1]", Ignore).unwrap_err().contains("an array of 1 items"));
    }
}
