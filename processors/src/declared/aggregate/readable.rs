//! A group's state, for people.
//!
//! Guarantees: the numbers are those that its record would have. Never: a look at the index of its values.

use super::acc::{Acc, Best};
use super::{Field, Group, read_group};
use crate::declared::readable::field_names;
use crate::declared::values::json;
use serde_json::{Map, Value, json};
use topology::{Processor, Work};

/// A group as JSON: its rows, whether the output has a record of it, and its fields; `None` of other bytes.
pub fn readable(processor: &Processor, bytes: &[u8]) -> Option<Value> {
    let Work::Aggregate(aggregate) = &processor.work else {
        return None;
    };
    let fields: Vec<Field> = aggregate.fields.iter().map(Field::of).collect();
    let mut group = Group::new(Vec::new(), &[], None, &fields);
    read_group(&mut group, &fields, bytes).ok()?;
    let names = field_names(processor, fields.len());
    let value = |field: &Field, acc: &Acc| match acc {
        Acc::Best(Best::Unknown) => Value::from("to be looked up"),
        _ => acc
            .value(field.function)
            .map_or_else(|| Value::from("beyond int8"), |datum| json(&datum)),
    };
    let values = fields.iter().zip(&group.accs).map(|(field, acc)| value(field, acc));
    let fields: Map<String, Value> = names.zip(values).collect();
    Some(json!({ "rows": group.rows, "shown": group.shown, "fields": fields }))
}
