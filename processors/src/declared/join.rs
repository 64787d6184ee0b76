//! Joins: the newest row of each side by key, and what is said of a pair.
//!
//! Guarantees: an event is joined with the row that the right side has at the moment of processing, and the right side
//! says nothing by itself; of two tables, a change of either says the new pair, or a tombstone where there is none any
//! more, and nothing where the pair is as it was.
//! Never: more than one row a key and side.

use super::delta::Part;
use super::readable::named;
use super::reader::{Change, Sink, stop};
use super::shape::{OutputTopic, datum};
use super::values::{read_array, read_byte, read_bytes, read_row, write_bytes};
use event_log::{Millis, OutRecord};
use schemas::codec::Datum;
use std::sync::Arc;
use streams::{Context, Output, Result, State};
use topology::expr::{Cell, EvalError};
use topology::{Join, Processor, Side, Work};

/// Format of a pair in the state.
const FORMAT: u8 = 1;

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Pair {
    left: Option<Vec<u8>>,
    right: Option<Vec<u8>>,
    /// Hash of the record that was written last.
    shown: Option<u128>,
}

impl Pair {
    fn encode(&self) -> Vec<u8> {
        let flag = |there: bool, bit: u8| if there { bit } else { 0 };
        let flags = flag(self.left.is_some(), 1) | flag(self.right.is_some(), 2) | flag(self.shown.is_some(), 4);
        let mut out = vec![FORMAT, flags];
        self.left
            .iter()
            .chain(&self.right)
            .for_each(|values| write_bytes(&mut out, values));
        out.extend(self.shown.iter().flat_map(|hash| hash.to_be_bytes()));
        out
    }

    fn decode(mut bytes: &[u8]) -> Result<Pair, String> {
        let rest = &mut bytes;
        match read_byte(rest) {
            Some(FORMAT) => {}
            Some(found) => {
                return Err(format!(
                    "a pair in the state has format {found}, this release reads up to {FORMAT}; update it"
                ));
            }
            None => return Err(String::from("a pair in the state is damaged")),
        }
        let mut body = || {
            let flags = read_byte(rest)?;
            let mut values = |bit: u8| match flags & bit {
                0 => Some(None),
                _ => read_bytes(rest).map(|bytes| Some(bytes.to_vec())),
            };
            let (left, right) = (values(1)?, values(2)?);
            let shown = match flags & 4 {
                0 => None,
                _ => Some(u128::from_be_bytes(read_array(rest)?)),
            };
            Some(Pair { left, right, shown })
        };
        body().ok_or_else(|| String::from("a pair in the state is damaged"))
    }
}

/// A pair's state as JSON: the newest row of each side, and whether the output has a record of it; `None` of other
/// bytes.
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
        "shown": pair.shown.is_some(),
    }))
}

/// Keeps pairs and says what changes.
pub struct Pairs {
    name: Arc<str>,
    processor: Arc<Processor>,
    output: OutputTopic,
    value: Vec<u8>,
}

impl Pairs {
    /// Pairs of a processor; `None` if it is no join.
    pub fn new(name: &Arc<str>, processor: &Arc<Processor>, output: OutputTopic) -> Option<Self> {
        matches!(processor.work, Work::Join(_)).then(|| Pairs {
            name: name.clone(),
            processor: processor.clone(),
            output,
            value: Vec::new(),
        })
    }

    /// A row of one side changes; the old part only says that there was one.
    fn put(
        &mut self,
        side: Side,
        key: &[u8],
        new: Option<&Part<'_>>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<Option<String>> {
        let processor = self.processor.clone();
        let Work::Join(join) = &processor.work else {
            return Ok(None);
        };
        let state_key = state_key(key);
        let mut pair = match state.get(&state_key)? {
            Some(bytes) => Pair::decode(&bytes).map_err(|why| stop(&self.name, why))?,
            None => Pair::default(),
        };
        let values = new.map(|part| part.values.to_vec());
        match side {
            Side::Left => pair.left = values,
            Side::Right => pair.right = values,
        }
        let mut complaint = None;
        if join.left.is_table {
            match self.pair(join, pair.left.as_deref(), pair.right.as_deref())? {
                Ok(there) => {
                    let shown = there.then(|| xxhash_rust::xxh3::xxh3_128(&self.value));
                    if shown != pair.shown {
                        self.emit(key, there, None, output);
                    }
                    pair.shown = shown;
                }
                Err(why) => complaint = Some(why),
            }
        }
        if pair == Pair::default() {
            state.delete(&state_key);
        } else {
            state.put(&state_key, pair.encode());
        }
        Ok(complaint)
    }

    /// Joins an event with the row that stands there now.
    fn look_up(&mut self, part: &Part<'_>, state: &State, output: &mut Output) -> Result<Option<String>> {
        let processor = self.processor.clone();
        let Work::Join(join) = &processor.work else {
            return Ok(None);
        };
        let pair = match state.get(&state_key(part.key))? {
            Some(bytes) => Pair::decode(&bytes).map_err(|why| stop(&self.name, why))?,
            None => Pair::default(),
        };
        match self.pair(join, Some(part.values), pair.right.as_deref())? {
            Ok(true) => self.emit(part.key, true, Some(part.time), output),
            Ok(false) => {}
            Err(why) => return Ok(Some(why)),
        }
        Ok(None)
    }

    /// Writes the record of a pair into `value`; false when there is none. The inner error is one of the rows.
    fn pair(&mut self, join: &Join, left: Option<&[u8]>, right: Option<&[u8]>) -> Result<Result<bool, String>> {
        let Some(left) = left else { return Ok(Ok(false)) };
        if right.is_none() && !join.is_outer {
            return Ok(Ok(false));
        }
        let damaged = || stop(&self.name, "a row in the state is damaged");
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

    fn emit(&self, key: &[u8], is_there: bool, at: Option<Millis>, output: &mut Output) {
        let record = OutRecord {
            topic: &self.output.topic,
            partition: None,
            timestamp: at,
            key: Some(key),
            value: is_there.then_some(self.value.as_slice()),
        };
        output.send(record, []);
    }
}

/// The output's columns; `None` when the condition refuses the pair.
fn cells<'v>(join: &'v Join, row: &'v [Datum<'v>; 2]) -> Result<Option<Vec<Cell<'v>>>, EvalError> {
    if let Some(filter) = &join.filter
        && !filter.matches(row)?
    {
        return Ok(None);
    }
    let Datum::Record(left) = &row[0] else { return Ok(None) };
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
    fn take(
        &mut self,
        _: Context,
        change: Change<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<Option<String>> {
        let Change { side, delta, .. } = change;
        let is_event = match &self.processor.work {
            Work::Join(join) => side == Side::Left && !join.left.is_table,
            Work::Aggregate(_) => false,
        };
        if is_event {
            return match &delta.new {
                Some(part) => self.look_up(part, state, output),
                None => Ok(None),
            };
        }
        let new_key = delta.new.map(|part| part.key);
        let mut complaint = None;
        if let Some(old) = delta.old.filter(|old| Some(old.key) != new_key) {
            complaint = self.put(side, old.key, None, state, output)?;
        }
        if let Some(new) = &delta.new {
            complaint = self.put(side, new.key, Some(new), state, output)?.or(complaint);
        }
        Ok(complaint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_reads_back_and_a_cut_is_an_error() {
        for (left, right, shown) in [
            (None, None, None),
            (Some(vec![1]), None, Some(7)),
            (Some(vec![1]), Some(vec![]), None),
            (None, Some(vec![2]), None),
        ] {
            let pair = Pair { left, right, shown };
            let bytes = pair.encode();
            assert_eq!(Pair::decode(&bytes), Ok(pair));
            for cut in 0..bytes.len() {
                assert!(Pair::decode(&bytes[..cut]).is_err(), "{cut} bytes");
            }
        }
        assert!(Pair::decode(&[2]).unwrap_err().contains("format 2"));
    }
}
