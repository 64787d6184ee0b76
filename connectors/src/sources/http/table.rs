//! The tables of an HTTP source, and the encoding of posted rows and keys.

use schemas::codec::{Datum, UnknownFields};
use schemas::ids::SchemaId;
use schemas::key::KeyWriter;
use schemas::schema::Schema;
use schemas::wire;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A table, as declared in the topology.
#[derive(Debug, Clone)]
pub struct DeclaredTable {
    /// Name, as in record keys.
    pub name: Arc<str>,
    /// The schema of its records.
    pub schema: Arc<Schema>,
    /// Indices of the key columns.
    pub key: Vec<usize>,
}

/// A table of the source, with its registered schema.
#[derive(Debug, Clone)]
pub struct Table {
    /// Name, as in record keys.
    pub name: Arc<str>,
    /// The schema of its records.
    pub schema: Arc<Schema>,
    /// Indices of the key columns.
    pub key: Vec<usize>,
    pub(super) id: SchemaId,
}

/// An encoded change of a request.
#[derive(Debug)]
pub struct Change {
    pub(super) table: Arc<str>,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// A JSON value that does not match the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonMismatch {
    /// JSON path of the value.
    pub path: String,
    /// Why the value does not match the schema.
    pub reason: String,
}

impl JsonMismatch {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        JsonMismatch {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

impl Table {
    /// Encodes an inserted or updated row.
    ///
    /// # Errors
    /// The JSON path of the value that does not match the schema, and the reason.
    pub fn put(&self, row: &RawValue, unknown: UnknownFields) -> Result<Change, JsonMismatch> {
        let mut body = Vec::new();
        self.schema
            .encode_json_text(row, unknown, &mut body)
            .map_err(|e| JsonMismatch::new(e.path(), e.reason))?;
        let mut datums = Vec::new();
        self.schema
            .decode(&body, &mut datums)
            .map_err(|e| JsonMismatch::new("$", e.to_string()))?;
        let key = self.key_of(|at| datums.get(at).cloned());
        let mut value = Vec::with_capacity(body.len() + wire::FRAME_LENGTH);
        wire::frame(self.id, &mut value);
        value.extend_from_slice(&body);
        Ok(Change {
            table: self.name.clone(),
            key,
            value: Some(value),
        })
    }

    /// Encodes the deletion of the row with these key columns.
    ///
    /// # Errors
    /// As [`Table::put`].
    pub fn delete(&self, key: &RawValue) -> Result<Change, JsonMismatch> {
        let parts = KeyParts::parse(&self.schema, &self.key, key)?;
        Ok(Change {
            table: self.name.clone(),
            key: self.key_of(|at| parts.get(&self.schema, at)),
            value: None,
        })
    }

    /// The removal of all rows of the table, in the form of a TRUNCATE of a database.
    pub fn truncate(&self) -> Change {
        let mut key = Vec::new();
        KeyWriter::new(&mut key).str(&self.name).finish();
        Change {
            table: self.name.clone(),
            key,
            value: None,
        }
    }

    fn key_of<'a>(&self, value: impl Fn(usize) -> Option<Datum<'a>>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut key = KeyWriter::new(&mut out).str(&self.name);
        for at in &self.key {
            if let Some(field) = self.schema.fields().get(*at) {
                key = key.datum(&self.schema, field.ty, &value(*at).unwrap_or(Datum::Null));
            }
        }
        key.finish();
        out
    }
}

/// The values of key columns that identify a row to delete, encoded by their types.
pub(crate) struct KeyParts(Vec<(usize, Vec<u8>)>);

impl KeyParts {
    /// Reads the key columns from a JSON object.
    pub(crate) fn parse(schema: &Schema, key: &[usize], json: &RawValue) -> Result<Self, JsonMismatch> {
        let object: BTreeMap<String, serde_json::Value> = serde_json::from_str(json.get())
            .map_err(|_| JsonMismatch::new("$", "expected an object of key columns"))?;
        let mut parts = Vec::with_capacity(key.len());
        for at in key {
            let Some(field) = schema.fields().get(*at) else {
                continue;
            };
            let path = || format!("$.{}", field.column());
            let given = object.get(field.column());
            let given = given.ok_or_else(|| JsonMismatch::new(path(), "missing key column"))?;
            let mut body = Vec::new();
            schema
                .encode_json_value(field.ty, given, &mut body)
                .map_err(|e| JsonMismatch::new(path(), e.reason))?;
            parts.push((*at, body));
        }
        Ok(Self(parts))
    }

    /// The value of the column at this index.
    pub(crate) fn get<'a>(&'a self, schema: &'a Schema, at: usize) -> Option<Datum<'a>> {
        let (_, body) = self.0.iter().find(|(of, _)| *of == at)?;
        schema.decode_value(schema.fields().get(at)?.ty, body).ok()
    }
}
