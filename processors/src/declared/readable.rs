//! What the state holds, for people: the values of a declared processor's rows as JSON.
//!
//! Guarantees: a value that is not as this release writes it is `None`, never a guess. Never: a key, which is JSON
//! as it stands; a write.

use super::values::{json, read};
use super::{aggregate, join, rows};
use serde_json::{Map, Value, json};
use topology::{Feed, Processor, Side, Work};

/// The value of a state row as JSON; `None` for one of another layout, and for text, which needs no help.
pub fn readable(processor: &Processor, key: &[u8], value: &[u8]) -> Option<Value> {
    let Value::Array(parts) = serde_json::from_slice(key).ok()? else {
        return None;
    };
    match parts.first()?.as_str()? {
        "g" | "w" => aggregate::readable(processor, value),
        "x" => {
            let mut rest = value;
            let datum = read(&mut rest)?;
            rest.is_empty().then(|| json(&datum))
        }
        "p" => join::readable(processor, value),
        "row" => rows::readable(value, &names(processor, parts.get(1)?.as_str()?)?),
        "line" => rows::readable_line(value),
        "gone" | "failed" => (value == [1]).then_some(Value::Bool(true)),
        "closing" => value.is_empty().then_some(Value::Bool(true)),
        "clock" => {
            let at = value.try_into().ok().map(i64::from_be_bytes)?;
            Some(json!({ "stream_time_ms": at }))
        }
        _ => None,
    }
}

/// Names of the values that rows of a side give.
fn names(processor: &Processor, side: &str) -> Option<Vec<String>> {
    let side = match side {
        "left" => Side::Left,
        "right" => Side::Right,
        _ => return None,
    };
    let feed = |(_, feed): (Side, &Feed)| feed.columns.clone();
    match &processor.work {
        Work::Join(_) => processor.feeds().into_iter().find(|(of, _)| *of == side).map(feed),
        Work::Aggregate(aggregate) => {
            let groups = processor.columns.iter().map(|column| column.name.to_string());
            let args = field_names(processor, aggregate.fields.len()).zip(&aggregate.fields);
            let args = args.filter(|(_, field)| field.arg.is_some()).map(|(name, _)| name);
            Some(groups.take(aggregate.group.len()).chain(args).collect())
        }
    }
}

/// Names of an aggregate's fields, so many: they are the last columns of its output.
pub(super) fn field_names(processor: &Processor, count: usize) -> impl Iterator<Item = String> {
    let before = processor.columns.len().saturating_sub(count);
    processor
        .columns
        .iter()
        .skip(before)
        .map(|column| column.name.to_string())
}

/// So many values, and nothing behind them, by their names.
pub(super) fn named<'n>(names: impl IntoIterator<Item = &'n String>, mut bytes: &[u8]) -> Option<Value> {
    let mut object = Map::new();
    for name in names {
        object.insert(name.clone(), json(&read(&mut bytes)?));
    }
    bytes.is_empty().then_some(Value::Object(object))
}
