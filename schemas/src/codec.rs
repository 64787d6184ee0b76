//! Avro codec: encodes and decodes record bodies as flat rows of values that borrow from the decoded bytes.
//!
//! Rows of scalar columns are encoded and decoded without allocation and without looking up names. Invalid bytes are an
//! error with the path of the field. Memory use is bounded by the length of the body.

pub(crate) mod decode;
pub(crate) mod encode;
mod from_json;
mod from_json_text;
mod methods;
mod project;
mod resolve;

pub use decode::DecodeError;
pub use encode::EncodeError;
pub use from_json::JsonError;
pub use from_json_text::UnknownFields;
pub use project::{ProjectError, Projection};

use std::fmt;

/// Maximum nesting depth of values. Values with deeper nesting are rejected.
pub const DEPTH_MAX: usize = 64;

/// A value of an Avro type. Logical types use their underlying type: a date is an `Int`, a timestamp is a `Long`. An enum
/// symbol is a `Str`, a `fixed` value is `Bytes`.
#[derive(Debug, Clone, PartialEq)]
pub enum Datum<'a> {
    /// Null, of an optional type or the null type.
    Null,
    /// Boolean.
    Bool(bool),
    /// 32-bit integer.
    Int(i32),
    /// 64-bit integer.
    Long(i64),
    /// 32-bit float.
    Float(f32),
    /// 64-bit float.
    Double(f64),
    /// Bytes, or a `fixed` value.
    Bytes(&'a [u8]),
    /// A string, or an enum symbol.
    Str(&'a str),
    /// Items of an array.
    Array(Vec<Datum<'a>>),
    /// Entries of a map, in encoding order.
    Map(Vec<(&'a str, Datum<'a>)>),
    /// Fields of a nested record, in order.
    Record(Vec<Datum<'a>>),
    /// A value of a union that is not just null and one other type: the index of the branch, and the value.
    Union(usize, Box<Datum<'a>>),
}

/// The fields of a record, in order.
pub type Row<'a> = Vec<Datum<'a>>;

/// Clears a row and keeps its allocation for rows with another lifetime.
pub fn recycle<'b>(mut row: Row<'_>) -> Row<'b> {
    row.clear();
    // Collecting an empty vector in place keeps its allocation.
    row.into_iter().map(|_| Datum::Null).collect()
}

impl<'a> Datum<'a> {
    /// Whether the value is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Datum::Null)
    }

    /// The string, if the value is a string.
    pub fn as_str(&self) -> Option<&'a str> {
        match self {
            Datum::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if the value is bytes.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        match self {
            Datum::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The value as an integer, if it is an `Int` or a `Long`.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Datum::Int(value) => Some(i64::from(*value)),
            Datum::Long(value) => Some(*value),
            _ => None,
        }
    }

    /// The boolean, if the value is a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Datum::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The items, if the value is an array.
    pub fn as_array(&self) -> Option<&[Datum<'a>]> {
        match self {
            Datum::Array(items) => Some(items),
            _ => None,
        }
    }

    /// Avro's name of the value's type, for messages.
    pub fn name(&self) -> &'static str {
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

/// A step of the path to a field. Paths are built only for errors, from the innermost step outwards.
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
