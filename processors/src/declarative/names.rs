//! Names of encoded values, for showing the state.

use super::values::{json, read};
use serde_json::{Map, Value};
use topology::Processor;

/// Names of an aggregate's `count` fields, which are the last columns of its output.
pub fn field_names(processor: &Processor, count: usize) -> impl Iterator<Item = String> {
    let before = processor.columns.len().saturating_sub(count);
    processor
        .columns
        .iter()
        .skip(before)
        .map(|column| column.name.to_string())
}

/// Encoded values as a JSON object; `None` unless there is exactly one value per name.
pub fn named<'n>(names: impl IntoIterator<Item = &'n String>, mut bytes: &[u8]) -> Option<Value> {
    let mut object = Map::new();
    for name in names {
        object.insert(name.clone(), json(&read(&mut bytes)?));
    }
    bytes.is_empty().then_some(Value::Object(object))
}
