//! Types of columns and expressions.

use std::sync::Arc;

/// The type of a column or of an expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// `true` or `false`.
    Bool,
    /// Integers of all widths.
    Int,
    /// Floating point numbers.
    Double,
    /// Strings, and most types that are published as text (`uuid`, enums).
    Text,
    /// Decimal numbers (`numeric`), which are published as text.
    Decimal,
    /// Bytes.
    Bytes,
    /// Timestamps. A date counts as midnight UTC, and a timestamp without time zone as UTC.
    Timestamp,
    /// Durations.
    Duration,
    /// A list.
    List(Box<Field>),
    /// A nested record.
    Row(Arc<RowType>),
    /// A JSON document (`json`, `jsonb`), or a value in it, whose type is known only for a row.
    Json,
    /// A type that only supports `== null` and `!= null`. The name, such as `map`, is for messages.
    Opaque(&'static str),
    /// The type of `null`.
    Null,
}

/// How a value of a type is stored in a `Datum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The value as it is in the datum.
    Plain,
    /// An `Int` of days since 1970; the maximum and minimum are infinity and -infinity.
    Date,
    /// A `Long` of milliseconds since 1970.
    Millis,
    /// A `Long` of microseconds since 1970.
    Micros,
    /// The text of a decimal number.
    Decimal,
    /// The text of a JSON document.
    Json,
}

/// A field of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Name.
    pub name: String,
    /// Type.
    pub ty: Type,
    /// Storage form.
    pub form: Form,
    /// Whether it is nullable.
    pub nullable: bool,
    /// Declared type, such as `numeric`, for messages.
    pub declared: String,
}

/// The type of a row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RowType {
    /// The fields, in the order of the row's data.
    pub fields: Vec<Field>,
}
