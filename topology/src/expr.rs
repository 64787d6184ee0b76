//! Conditions over a row, in CEL (the Common Expression Language), checked before anything runs.
//!
//! [`Program::compile`] parses a text with the `cel` crate, checks it with our own type checker against the row's
//! columns, and builds our own tree, which [`Program::matches`] evaluates straight over the row's values.
//!
//! # What is supported
//! `==` `!=` `<` `<=` `>` `>=` · `&&` `||` `!` · `?:` · `in` with a list · `+ - * / %` · texts: `startsWith`,
//! `endsWith`, `contains`, `matches` (a literal regular expression), `size`, `+` · `has(field)` · conversions `int`,
//! `double`, `string`, `timestamp`, `duration` · literals: numbers, texts, bytes, `true`, `false`, `null`. A column is
//! its name, or `row.name`, or `row["any name"]`. Dates and timestamps without zone count as UTC; a
//! `float4` counts as the nearest double.
//!
//! # Null
//! Nothing but `==`, `!=`, `in` and `has` takes a column that may be null; `null` equals only `null`. Everything else
//! asks for a guard and the checker follows it: `note != null && note.size() > 3`, `note == null || …`,
//! `note != null ? … : …`, and also `note == "x" && …`. So a program that compiles never fails on a null. Unlike SQL,
//! `status != "draft"` is true for a null status.
//!
//! Guarantees: a program is a function of the row alone (no clock, no state), gives the same answer everywhere, and
//! agrees with the `cel` crate's interpreter (a property test). Errors have their place in the text. What can fail
//! while running is named by [`EvalError`]: overflow, division by zero, a text that does not convert; as in CEL,
//! `false && error` is false and `true || error` is true in either order.
//! Never: allocates to compare columns with literals; runs unbounded (no loops; regular expressions are linear).

mod check;
mod eval;
mod parse;
mod row_type;
mod scalar;
pub(crate) mod time;

pub use eval::{EvalError, EvalFault};
pub use scalar::{Cell, Scalar};

use schemas::codec::Datum;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// A value while a condition is evaluated.
#[derive(Debug, Clone, PartialEq)]
enum Value<'v> {
    Null,
    Bool(bool),
    /// An integer of any width.
    Int(i64),
    Double(f64),
    Text(Cow<'v, str>),
    Bytes(Cow<'v, [u8]>),
    /// Microseconds since 1970 in UTC. The greatest and least are infinity.
    Timestamp(i64),
    /// Microseconds.
    Duration(i64),
    /// A nested record.
    Row(&'v [Datum<'v>]),
    /// A list, and how its items are stored.
    List(&'v [Datum<'v>], Form),
    /// What conditions do not look into.
    Opaque,
}

/// The type of a column or of an expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// `true` or `false`.
    Bool,
    /// Integers of all widths.
    Int,
    /// Floating point numbers.
    Double,
    /// Texts, and all that is published as text (`numeric`, `uuid`, enums).
    Text,
    /// Bytes.
    Bytes,
    /// Instants; dates at midnight UTC; timestamps without zone as UTC.
    Timestamp,
    /// Spans of time.
    Duration,
    /// A list.
    List(Box<Field>),
    /// A nested record.
    Row(Arc<RowType>),
    /// Only `== null` and `!= null` can be asked; the name is for messages, such as `jsonb`.
    Opaque(&'static str),
    /// The type of `null`.
    Null,
}

/// How a value of a type is stored in a [`Datum`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As the datum says.
    Plain,
    /// An `Int` of days since 1970; the greatest and least are infinity.
    Date,
    /// A `Long` of milliseconds since 1970.
    Millis,
    /// A `Long` of microseconds since 1970.
    Micros,
}

/// A named value of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// How it is stored.
    pub form: Form,
    /// Whether it may be null.
    pub nullable: bool,
    /// What it is called where it was declared, such as `numeric`; for messages.
    pub declared: String,
}

/// The type of a row: what its values are, by index.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RowType {
    /// The fields, in the order of the row's data.
    pub fields: Vec<Field>,
}

/// Why a text is no program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExprError {
    /// Where in the text, in bytes.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// The fix.
    pub help: String,
}

impl ExprError {
    fn new(span: Range<usize>, message: impl Into<String>, help: impl Into<String>) -> Self {
        ExprError {
            span,
            message: message.into(),
            help: help.into(),
        }
    }
}

/// A compiled condition.
#[derive(Debug, Clone)]
pub struct Program {
    text: Arc<str>,
    node: Arc<eval::Node>,
    columns: Arc<[usize]>,
    paths: Arc<[Vec<usize>]>,
    warnings: Arc<[ExprError]>,
}

impl Program {
    /// Compiles a condition over rows of a type.
    ///
    /// # Errors
    /// All errors that were found, each with its place in the text.
    pub fn compile(text: &str, row: &RowType) -> Result<Self, Vec<ExprError>> {
        let tree = parse::parse(text)?;
        let checked = check::condition(text, &tree, row)?;
        Ok(Program {
            text: Arc::from(text),
            node: Arc::new(checked.node),
            columns: checked.columns.into(),
            paths: checked.paths.into(),
            warnings: checked.warnings.into(),
        })
    }

    /// Whether the row fulfils the condition.
    ///
    /// The row holds the data of the type's fields, by index; what is missing counts as null.
    ///
    /// # Errors
    /// Fails if a number overflows, is divided by zero, or a text does not convert, and the answer depends on it.
    pub fn matches(&self, row: &[Datum<'_>]) -> Result<bool, EvalError> {
        self.node.truth(row).map_err(|fail| fail.in_text(&self.text))
    }

    /// The text that it was compiled from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The row's top-level columns that it reads, ascending.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// What it reads, as indexes from the row down: of a nested record also the field.
    pub fn paths(&self) -> &[Vec<usize>] {
        &self.paths
    }

    /// What is probably not meant, such as a comparison of a column that is never null with null.
    pub fn warnings(&self) -> &[ExprError] {
        &self.warnings
    }
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

#[cfg(test)]
mod tests;
