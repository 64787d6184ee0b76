//! Avro bodies in and out: rows as flat lists of values that borrow from the bytes they were read from.
//!
//! Guarantees: for a row of plain columns neither reading nor writing allocates; garbage is an error with the field's
//! path, and what is allocated for a body is bounded by its length. Never: a look-up by name on the way.

pub(crate) mod decode;
pub(crate) mod encode;
mod from_json;
mod project;

pub use decode::DecodeError;
pub use encode::EncodeError;
pub use from_json::JsonError;
pub use project::{ProjectError, Projection};

use std::fmt;

/// Deepest nesting of a value, in levels: deeper ones are refused.
pub const DEPTH_MAX: usize = 64;

/// A value of an Avro type. Logical types are their Avro kinds: a date is an `Int`, a timestamp a `Long`. An enum's
/// symbol is a `Str`, a fixed's bytes are `Bytes`.
#[derive(Debug, Clone, PartialEq)]
pub enum Datum<'a> {
    /// Null, in an optional type or as a type of its own.
    Null,
    /// Boolean.
    Bool(bool),
    /// 32 bits.
    Int(i32),
    /// 64 bits.
    Long(i64),
    /// 32 bits.
    Float(f32),
    /// 64 bits.
    Double(f64),
    /// Bytes, or a fixed's.
    Bytes(&'a [u8]),
    /// A string, or an enum's symbol.
    Str(&'a str),
    /// Items of an array.
    Array(Vec<Datum<'a>>),
    /// Entries of a map, in the order in which they were written.
    Map(Vec<(&'a str, Datum<'a>)>),
    /// Fields of a nested record, in order.
    Record(Vec<Datum<'a>>),
    /// A value of a union that is more than null and one other type: the branch and the value.
    Union(usize, Box<Datum<'a>>),
}

/// The fields of a record, in order.
pub type Row<'a> = Vec<Datum<'a>>;

/// Empties a row and gives its memory to rows that borrow from other bytes.
pub fn recycle<'b>(mut row: Row<'_>) -> Row<'b> {
    row.clear();
    // An empty vector collected in place keeps its allocation.
    row.into_iter().map(|_| Datum::Null).collect()
}

impl<'a> Datum<'a> {
    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Datum::Null)
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&'a str> {
        match self {
            Datum::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if it is bytes.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        match self {
            Datum::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The integer, if it is one of 32 or 64 bits.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Datum::Int(value) => Some(i64::from(*value)),
            Datum::Long(value) => Some(*value),
            _ => None,
        }
    }

    /// The boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Datum::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The items, if it is an array.
    pub fn as_array(&self) -> Option<&[Datum<'a>]> {
        match self {
            Datum::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The value's kind in Avro's words, for messages.
    pub fn word(&self) -> &'static str {
        match self {
            Datum::Null => "null",
            Datum::Bool(_) => "boolean",
            Datum::Int(_) => "int",
            Datum::Long(_) => "long",
            Datum::Float(_) => "float",
            Datum::Double(_) => "double",
            Datum::Bytes(_) => "bytes",
            Datum::Str(_) => "string",
            Datum::Array(_) => "array",
            Datum::Map(_) => "map",
            Datum::Record(_) => "record",
            Datum::Union(..) => "union",
        }
    }
}

/// A step of the way to a field: built only when something is wrong, innermost step first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Field(String),
    Item(usize),
    Entry(String),
}

/// Writes a path such as `items[2].price`.
pub(crate) fn write_path(f: &mut fmt::Formatter<'_>, innermost_first: &[Step], root: &str) -> fmt::Result {
    f.write_str(root)?;
    let mut first = root.is_empty();
    for step in innermost_first.iter().rev() {
        match step {
            Step::Field(name) if first => f.write_str(name)?,
            Step::Field(name) => write!(f, ".{name}")?,
            Step::Item(at) => write!(f, "[{at}]")?,
            Step::Entry(key) => write!(f, "[{key:?}]")?,
        }
        first = false;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
