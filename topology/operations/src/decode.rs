//! Readable form of records: keys as JSON, values decoded by their schema, headers as text.
//!
//! Decoding never fails: a value that cannot be decoded is returned as text or base64, together with the reason.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use event_log::{Millis, Offset, RecordRef};
use schemas::codec::{Datum, Row};
use schemas::device_json;
use schemas::schema::Schema;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::Arc;

/// Fetches the text of a schema by its registry id; the error is a message for operators.
pub type FetchSchema = Arc<dyn Fn(u32) -> std::result::Result<String, String> + Send + Sync>;

/// A record, decoded.
#[derive(Debug, Serialize)]
pub struct Decoded {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: Offset,
    /// Timestamp in ms.
    pub timestamp_ms: Millis,
    /// Key as JSON if it is valid JSON, else as text or base64.
    pub key: Value,
    /// Value: the decoded record, text or base64; null for a tombstone.
    pub value: Box<RawValue>,
    /// Headers in order; values as JSON, text or base64.
    pub headers: Vec<(String, Value)>,
    /// Registry id of the value's schema.
    pub schema_id: Option<u32>,
    /// Why the value could not be decoded.
    pub error: Option<String>,
}

/// Decodes records and caches their schemas.
pub struct Decoder {
    fetch: FetchSchema,
    known: HashMap<u32, std::result::Result<Arc<Schema>, String>>,
}

impl Decoder {
    /// Creates a decoder that fetches schemas with this function.
    pub fn new(fetch: FetchSchema) -> Self {
        Decoder {
            fetch,
            known: HashMap::new(),
        }
    }

    /// Decodes a record.
    pub fn decode(&mut self, record: &RecordRef<'_>) -> Decoded {
        let (schema_id, value) = match record.value() {
            None => (None, Ok(b"null".to_vec())),
            Some([0, a, b, c, d, body @ ..]) => {
                let id = u32::from_be_bytes([*a, *b, *c, *d]);
                (Some(id), self.body(id, body))
            }
            Some(other) => (None, Ok(bytes_json(other))),
        };
        let (value, error) = match value {
            Ok(value) => (value, None),
            Err(error) => (bytes_json(record.value().unwrap_or_default()), Some(error)),
        };
        let raw = String::from_utf8(value)
            .ok()
            .and_then(|v| RawValue::from_string(v).ok());
        Decoded {
            topic: record.topic().to_string(),
            partition: record.partition().partition,
            offset: record.offset(),
            timestamp_ms: record.timestamp(),
            key: record.key().map_or(Value::Null, readable),
            value: raw.unwrap_or_else(|| RawValue::NULL.to_owned()),
            headers: record
                .headers()
                .iter()
                .map(|(n, v)| (n.to_owned(), v.map_or(Value::Null, readable)))
                .collect(),
            schema_id,
            error,
        }
    }

    fn body(&mut self, id: u32, body: &[u8]) -> std::result::Result<Vec<u8>, String> {
        let fetch = self.fetch.clone();
        let known = self.known.entry(id).or_insert_with(|| {
            let text = fetch(id)?;
            Schema::parse(&text).map(Arc::new).map_err(|e| e.to_string())
        });
        let schema = known.clone()?;
        let mut row = Row::new();
        schema.decode(body, &mut row).map_err(|e| e.to_string())?;
        let mut out = vec![b'{'];
        for (n, (field, datum)) in schema.fields().iter().zip(&row).enumerate() {
            if n > 0 {
                out.push(b',');
            }
            schemas::json::write_str(&mut out, field.column());
            out.push(b':');
            match datum {
                // `ViewRow` contains the row as JSON in a bytes field, which is returned as JSON instead of base64.
                Datum::Bytes(bytes) if serde_json::from_slice::<&RawValue>(bytes).is_ok() => {
                    out.extend_from_slice(bytes)
                }
                datum => device_json::write(&schema, field.ty, datum, &mut out),
            }
        }
        out.push(b'}');
        Ok(out)
    }
}

/// Converts bytes to JSON if they are valid JSON, else to text, else to base64.
fn readable(bytes: &[u8]) -> Value {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Value::String(STANDARD.encode(bytes));
    };
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Value::String(STANDARD.encode(bytes));
    }
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn bytes_json(bytes: &[u8]) -> Vec<u8> {
    serde_json::to_vec(&readable(bytes)).unwrap_or_else(|_| b"null".to_vec())
}
