//! Selects the values of declared columns from rows of the stream, and fills in values that the server did not send.

use super::pgoutput::{Tuple, Value};
use super::relations::Mapping;
use super::rows::Table;

/// Selects the values of the declared columns.
pub(super) fn pick<'a>(tuple: Tuple<'a>, mapping: &Mapping, values: &mut Vec<Value<'a>>) {
    values.clear();
    if mapping.is_prefix {
        values.extend(tuple.iter().take(mapping.columns));
        values.resize(mapping.columns, Value::Null);
        return;
    }
    values.resize(mapping.columns, Value::Null);
    for (slot, value) in mapping.slots.iter().zip(tuple.iter()) {
        if let Some(declared) = slot.and_then(|at| values.get_mut(at)) {
            *declared = value;
        }
    }
}

/// Fills in values that were not sent (unchanged TOAST values) from the old row, if it contains them.
pub(super) fn fill_unchanged<'a>(values: &mut [Value<'a>], before: &[Value<'a>], is_full: bool, table: &Table) {
    for (at, (value, old)) in values.iter_mut().zip(before).enumerate() {
        let known = is_full || table.is_key(at);
        if *value == Value::Unchanged && known && *old != Value::Unchanged {
            *value = *old;
        }
    }
}

/// Clears a list of values and keeps its allocation for values with another lifetime.
pub(super) fn recycle<'b>(mut values: Vec<Value<'_>>) -> Vec<Value<'b>> {
    values.clear();
    // Collecting an emptied vector in place keeps its allocation.
    values.into_iter().map(|_| Value::Null).collect()
}
