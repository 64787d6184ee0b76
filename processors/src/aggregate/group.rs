//! Groups: their accumulators, their encoding in the state, and their state keys.

use super::accumulator::Accumulator;
use crate::declarative::{read_byte, read_bytes, read_signed, write_bytes, write_signed};
use event_log::Millis;
use topology::expr::Type;
use topology::{AggregateField, Function};

/// Format of a group in the state.
const FORMAT: u8 = 1;

/// One field of the output.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The aggregate function.
    pub function: Function,
    /// Whether the function has an argument; `count()` has none.
    pub has_arg: bool,
    /// Whether the argument is a double.
    pub of_doubles: bool,
    /// Whether the result is one of the values, as for `min` and `max`.
    pub is_best: bool,
}

impl Field {
    /// A declared field.
    pub fn of(field: &AggregateField) -> Field {
        Field {
            function: field.function,
            has_arg: field.arg.is_some(),
            of_doubles: field.arg.as_ref().is_some_and(|arg| *arg.ty() == Type::Double),
            is_best: matches!(
                field.function,
                Function::Min | Function::Max | Function::First | Function::Latest
            ),
        }
    }
}

/// A group in memory.
#[derive(Debug)]
pub struct Group {
    /// The group's key in the state.
    pub state_key: Vec<u8>,
    /// Elements of the JSON array that is the group's key, without the window.
    pub key: Vec<u8>,
    /// Start of the group's window, in ms.
    pub start: Option<Millis>,
    /// Values of its group columns, encoded.
    pub columns: Vec<u8>,
    /// Number of rows in the group.
    pub rows: i64,
    /// One accumulator per field.
    pub accumulators: Vec<Accumulator>,
    /// Whether the output topic has a record of the group.
    pub written: bool,
    /// Whether the group changed since the last commit.
    pub dirty: bool,
}

impl Group {
    /// A group without rows.
    pub fn new(state_key: Vec<u8>, key: &[u8], start: Option<Millis>, fields: &[Field]) -> Group {
        let accumulators = fields
            .iter()
            .map(|field| Accumulator::new(field.function, field.of_doubles));
        Group {
            state_key,
            key: key.to_vec(),
            start,
            columns: Vec::new(),
            rows: 0,
            accumulators: accumulators.collect(),
            written: false,
            dirty: false,
        }
    }

    /// Encodes the group, including the format byte.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.columns.len() + 12 * self.accumulators.len());
        out.push(FORMAT);
        out.push(u8::from(self.written));
        write_signed(&mut out, self.rows);
        write_bytes(&mut out, &self.columns);
        self.accumulators
            .iter()
            .for_each(|accumulator| accumulator.write(&mut out));
        out
    }

    /// Decodes the output of [`Self::encode`] into this group.
    pub fn decode(&mut self, fields: &[Field], mut bytes: &[u8]) -> Result<(), String> {
        let rest = &mut bytes;
        match read_byte(rest) {
            Some(FORMAT) => {}
            Some(found) => {
                return Err(format!(
                    "a group in the state has format {found}, but this release reads up to format {FORMAT}; update \
                     Trunkline"
                ));
            }
            None => return Err(String::from("a group in the state is corrupt")),
        }
        let mut body = || {
            self.written = read_byte(rest)? == 1;
            self.rows = read_signed(rest)?;
            self.columns = read_bytes(rest)?.to_vec();
            let accumulators = fields
                .iter()
                .map(|field| Accumulator::read(field.function, field.of_doubles, rest));
            self.accumulators = accumulators.collect::<Option<_>>()?;
            Some(())
        };
        body().ok_or_else(|| String::from("a group in the state is corrupt"))
    }
}

/// Writes the state key of a group: `["g",group…]`, or, with windows, `["w","start of the window",group…]`.
pub fn group_state_key(start: Option<Millis>, key: &[u8], out: &mut Vec<u8>) {
    out.clear();
    match start {
        None => out.extend_from_slice(b"[\"g\","),
        Some(start) => {
            out.extend_from_slice(b"[\"w\",\"");
            out.extend_from_slice(start.to_string().as_bytes());
            out.extend_from_slice(b"\",");
        }
    }
    out.extend_from_slice(key);
    out.push(b']');
}

/// Writes the prefix of a field's index: `["x",field,"start of the window",group…,"`; the start is empty without windows.
pub fn index_prefix(field: usize, start: Option<Millis>, key: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(b"[\"x\",");
    out.extend_from_slice(field.to_string().as_bytes());
    out.extend_from_slice(b",\"");
    if let Some(start) = start {
        out.extend_from_slice(start.to_string().as_bytes());
    }
    out.extend_from_slice(b"\",");
    out.extend_from_slice(key);
    out.extend_from_slice(b",\"");
}
