//! Joins: the state contains the newest row of each side for each key.
//!
//! An event is joined with the row of the right side at the time of processing; a change of the right side alone writes
//! nothing. If both sides are tables, a change of either side writes the new pair, or a tombstone if the pair no longer
//! exists, and nothing if the pair is the same as before.

use crate::dead_letter::stop;
use crate::declarative::{
    Change, Contribution, OutputTopic, Sink, datum, named, read_array, read_byte, read_bytes, read_row, write_bytes,
};
use crate::step::Step;
use event_log::{Millis, OutRecord};
use schemas::codec::Datum;
use std::sync::Arc;
use streams::{Output, Result, State};
use topology::expr::{Cell, EvalError};
use topology::{Join, Processor, Side, Work};

/// Format of a pair in the state.
const FORMAT: u8 = 1;

/// The state of a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Pair {
    left: Option<Vec<u8>>,
    right: Option<Vec<u8>>,
    /// Hash of the output record that was written last; `None` if there is none or it was a tombstone.
    written: Option<u128>,
}

impl Pair {
    fn encode(&self) -> Vec<u8> {
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let flags = flag(self.left.is_some(), 1) | flag(self.right.is_some(), 2) | flag(self.written.is_some(), 4);
        let mut out = vec![FORMAT, flags];
        self.left
            .iter()
            .chain(&self.right)
            .for_each(|values| write_bytes(&mut out, values));
        out.extend(self.written.iter().flat_map(|hash| hash.to_be_bytes()));
        out
    }

    fn decode(mut bytes: &[u8]) -> Result<Pair, String> {
        let rest = &mut bytes;
        match read_byte(rest) {
            Some(FORMAT) => {}
            Some(found) => {
                return Err(format!(
                    "a pair in the state has format {found}, but this release reads up to format {FORMAT}; update \
                     Trunkline"
                ));
            }
            None => return Err(String::from("a pair in the state is corrupt")),
        }
        let mut body = || {
            let flags = read_byte(rest)?;
            let mut values = |bit: u8| match flags & bit {
                0 => Some(None),
                _ => read_bytes(rest).map(|bytes| Some(bytes.to_vec())),
            };
            let (left, right) = (values(1)?, values(2)?);
            let written = match flags & 4 {
                0 => None,
                _ => Some(u128::from_be_bytes(read_array(rest)?)),
            };
            Some(Pair { left, right, written })
        };
        body().ok_or_else(|| String::from("a pair in the state is corrupt"))
    }
}

/// A pair's state as JSON: the newest row of each side, and whether the output topic has a record of it. `None` if the
/// bytes are not a pair.
pub fn readable(processor: &Processor, bytes: &[u8]) -> Option<serde_json::Value> {
    let Work::Join(join) = &processor.work else { return None };
    let pair = Pair::decode(bytes).ok()?;
    let side = |row: Option<&Vec<u8>>, columns: &[String]| match row {
        Some(row) => named(columns, row),
        None => Some(serde_json::Value::Null),
    };
    Some(serde_json::json!({
        "left": side(pair.left.as_ref(), &join.left.columns)?,
        "right": side(pair.right.as_ref(), &join.right.columns)?,
        "shown": pair.written.is_some(),
    }))
}

/// Joins the rows of two sides.
pub struct Pairs {
    name: Arc<str>,
    processor: Arc<Processor>,
    output: OutputTopic,
    value: Vec<u8>,
}

impl Pairs {
    /// The join of a processor; `None` if it is an aggregate.
    pub fn new(name: &Arc<str>, processor: &Arc<Processor>, output: OutputTopic) -> Option<Self> {
        matches!(processor.work, Work::Join(_)).then(|| Pairs {
            name: name.clone(),
            processor: processor.clone(),
            output,
            value: Vec::new(),
        })
    }

    /// Stores the row of one side, or `None` if it is deleted, and writes the pair if it changed.
    fn put(
        &mut self,
        side: Side,
        key: &[u8],
        new: Option<&Contribution<'_>>,
        step: &mut Step<'_>,
    ) -> Result<Option<String>> {
        let processor = self.processor.clone();
        let Work::Join(join) = &processor.work else {
            unreachable!("`new` accepts joins only")
        };
        let state_key = state_key(key);
        let mut pair = match step.state.get(&state_key)? {
            Some(bytes) => Pair::decode(&bytes).map_err(|reason| stop(&self.name, reason))?,
            None => Pair::default(),
        };
        let values = new.map(|row| row.values.to_vec());
        match side {
            Side::Left => pair.left = values,
            Side::Right => pair.right = values,
        }
        let mut dead_letter = None;
        if join.left.is_table {
            match self.pair(join, pair.left.as_deref(), pair.right.as_deref())? {
                Ok(exists) => {
                    let written = exists.then(|| xxhash_rust::xxh3::xxh3_128(&self.value));
                    if written != pair.written {
                        self.send(key, exists, None, step.output);
                    }
                    pair.written = written;
                }
                Err(reason) => dead_letter = Some(reason),
            }
        }
        if pair == Pair::default() {
            step.state.delete(&state_key);
        } else {
            step.state.put(&state_key, pair.encode());
        }
        Ok(dead_letter)
    }

    /// Joins an event with the current row of the right side.
    fn look_up(&mut self, event: &Contribution<'_>, state: &State, output: &mut Output) -> Result<Option<String>> {
        let processor = self.processor.clone();
        let Work::Join(join) = &processor.work else {
            unreachable!("`new` accepts joins only")
        };
        let pair = match state.get(&state_key(event.key))? {
            Some(bytes) => Pair::decode(&bytes).map_err(|reason| stop(&self.name, reason))?,
            None => Pair::default(),
        };
        match self.pair(join, Some(event.values), pair.right.as_deref())? {
            Ok(true) => self.send(event.key, true, Some(event.time), output),
            Ok(false) => {}
            Err(reason) => return Ok(Some(reason)),
        }
        Ok(None)
    }

    /// Writes the record of a pair into `value`; `false` if the pair does not exist. The inner error makes the record a
    /// dead letter.
    fn pair(&mut self, join: &Join, left: Option<&[u8]>, right: Option<&[u8]>) -> Result<Result<bool, String>> {
        let Some(left) = left else { return Ok(Ok(false)) };
        if right.is_none() && !join.is_outer {
            return Ok(Ok(false));
        }
        let damaged = || stop(&self.name, "a row in the state is corrupt");
        let left = read_row(left, join.left.columns.len()).ok_or_else(damaged)?;
        let right = match right {
            Some(values) => Datum::Record(read_row(values, join.right.columns.len()).ok_or_else(damaged)?),
            None => Datum::Null,
        };
        let row = [Datum::Record(left), right];
        let cells = match cells(join, &row) {
            Ok(Some(cells)) => cells,
            Ok(None) => return Ok(Ok(false)),
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut datums: Vec<Datum<'_>> = cells.iter().map(datum).collect();
        let written = self.output.write(&mut datums, &mut self.value);
        Ok(written.map(|()| true).map_err(|error| error.to_string()))
    }

    fn send(&self, key: &[u8], exists: bool, at: Option<Millis>, output: &mut Output) {
        let record = OutRecord {
            topic: &self.output.topic,
            partition: None,
            timestamp: at,
            key: Some(key),
            value: exists.then_some(self.value.as_slice()),
        };
        output.send(record, []);
    }
}

/// The output's columns; `None` if the pair does not match the condition.
fn cells<'v>(join: &'v Join, row: &'v [Datum<'v>; 2]) -> Result<Option<Vec<Cell<'v>>>, EvalError> {
    if let Some(filter) = &join.filter
        && !filter.matches(row)?
    {
        return Ok(None);
    }
    let Datum::Record(left) = &row[0] else {
        unreachable!("the left row of a pair is an Avro record")
    };
    let key = join.left_key.iter().map(|scalar| scalar.eval(left));
    let fields = join.fields.iter().map(|scalar| scalar.eval(row));
    key.chain(fields).collect::<Result<Vec<_>, _>>().map(Some)
}

fn state_key(key: &[u8]) -> Vec<u8> {
    let mut out = b"[\"p\",".to_vec();
    out.extend_from_slice(key.get(1..).unwrap_or_default());
    out
}

impl Sink for Pairs {
    fn apply(&mut self, change: Change<'_>, step: &mut Step<'_>) -> Result<Option<String>> {
        let Change { side, delta, .. } = change;
        let is_event = match &self.processor.work {
            Work::Join(join) => side == Side::Left && !join.left.is_table,
            Work::Aggregate(_) => false,
        };
        if is_event {
            return match &delta.new {
                Some(event) => self.look_up(event, step.state, step.output),
                None => Ok(None),
            };
        }
        let new_key = delta.new.map(|row| row.key);
        let mut dead_letter = None;
        if let Some(old) = delta.old.filter(|old| Some(old.key) != new_key) {
            dead_letter = self.put(side, old.key, None, step)?;
        }
        if let Some(new) = &delta.new {
            dead_letter = self.put(side, new.key, Some(new), step)?.or(dead_letter);
        }
        Ok(dead_letter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pair_round_trips_and_truncation_is_an_error() {
        for (left, right, written) in [
            (None, None, None),
            (Some(vec![1]), None, Some(7)),
            (Some(vec![1]), Some(vec![]), None),
            (None, Some(vec![2]), None),
        ] {
            let pair = Pair { left, right, written };
            let bytes = pair.encode();
            assert_eq!(Pair::decode(&bytes), Ok(pair));
            for cut in 0..bytes.len() {
                assert!(Pair::decode(&bytes[..cut]).is_err(), "{cut} bytes");
            }
        }
        assert!(Pair::decode(&[2]).unwrap_err().contains("format 2"));
    }
}
