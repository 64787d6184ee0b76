//! Shows the state of a declarative processor as JSON, for `trunkline state`.
//!
//! Keys of the state are already JSON. For a value that is not in the format of this release, the result is `None`.

use super::event_dedup;
use super::names::field_names;
use super::values::{json, read};
use super::{loading, stored_row, sweeps, table_rows};
use crate::{aggregate, join};
use serde_json::{Value, json};
use topology::{Feed, Processor, Side, Work};

/// A value of the state as JSON; `None` if it has another format, or is already text.
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
        "row" => stored_row::readable(value, &names(processor, parts.get(1)?.as_str()?)?),
        "source" => table_rows::readable_progress(value),
        "loading" => loading::readable(value),
        "sweep" => sweeps::readable(value),
        "gone" => (value == [1]).then_some(Value::Bool(true)),
        "failed" => event_dedup::expiry(value).map(|expires| json!({ "expires_ms": expires })),
        "closing" => value.is_empty().then_some(Value::Bool(true)),
        "clock" => {
            let at = value.try_into().ok().map(i64::from_be_bytes)?;
            Some(json!({ "stream_time_ms": at }))
        }
        _ => None,
    }
}

/// Names of the values that the rows of an input contribute.
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
