//! Shows the state of a group as JSON.
//!
//! The values are those that the group's output record would have; the indexes of `min` and `max` are not read.

use super::accumulator::{Accumulator, Best};
use super::group::{Field, Group};
use crate::declarative::{field_names, json};
use serde_json::{Map, Value, json};
use topology::{Processor, Work};

/// A group as JSON: its number of rows, whether the output topic has a record of it, and its fields. `None` if the
/// bytes are not a group.
pub fn readable(processor: &Processor, bytes: &[u8]) -> Option<Value> {
    let Work::Aggregate(aggregate) = &processor.work else {
        return None;
    };
    let fields: Vec<Field> = aggregate.fields.iter().map(Field::of).collect();
    let mut group = Group::new(Vec::new(), &[], None, &fields);
    group.decode(&fields, bytes).ok()?;
    let names = field_names(processor, fields.len());
    let value = |field: &Field, accumulator: &Accumulator| match accumulator {
        Accumulator::Best(Best::Unknown) => Value::from("first entry of the index"),
        _ => accumulator
            .value(field.function)
            .map_or_else(|| Value::from("out of range of int8"), |datum| json(&datum)),
    };
    let values = fields
        .iter()
        .zip(&group.accumulators)
        .map(|(field, accumulator)| value(field, accumulator));
    let fields: Map<String, Value> = names.zip(values).collect();
    Some(json!({ "rows": group.rows, "shown": group.written, "fields": fields }))
}
