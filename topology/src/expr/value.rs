//! Values during the evaluation of an expression.

use super::types::Form;
use schemas::codec::Datum;
use std::borrow::Cow;

/// A value during evaluation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'v> {
    Null,
    Bool(bool),
    /// An integer of any width.
    Int(i64),
    Double(f64),
    Text(Cow<'v, str>),
    /// A decimal number, as PostgreSQL prints it.
    Decimal(&'v str),
    /// The text of a JSON document.
    JsonText(&'v str),
    /// A list or an object in a JSON document.
    Json(serde_json::Value),
    Bytes(Cow<'v, [u8]>),
    /// Microseconds since 1970 in UTC; the maximum and minimum are infinity and -infinity.
    Timestamp(i64),
    /// Microseconds.
    Duration(i64),
    /// A nested record.
    Row(&'v [Datum<'v>]),
    /// A list, and the storage form of its items.
    List(&'v [Datum<'v>], Form),
    /// A value that conditions cannot use.
    Opaque,
}
