//! Conditions and scalar expressions over a row, in CEL (Common Expression Language), compiled before anything runs.
//!
//! [`Program::compile`] parses the text with the `cel` crate and checks it against the types of the row's columns. The
//! result is a tree that [`Program::matches`] evaluates directly over the values of a row. [`Scalar`] is the same for
//! expressions that result in a value.
//!
//! # Supported
//! `==` `!=` `<` `<=` `>` `>=` · `&&` `||` `!` · `?:` · `in` with a list · `+ - * / %` · strings: `startsWith`,
//! `endsWith`, `contains`, `matches` (with a literal regular expression), `size`, `+` · `has(field)` · conversions `int`,
//! `double`, `string`, `timestamp`, `duration` · literals: numbers, strings, bytes, `true`, `false`, `null`. A column is
//! written as its name, `row.name` or `row["any name"]`. A `numeric` compares by value with other numbers. A field of a
//! `json` or `jsonb` column is written as `doc.name` or `doc["any name"]`, at any depth; a comparison with a value of
//! another JSON type is false. Dates and timestamps without time zone count as UTC; a `float4`
//! is converted to the nearest double.
//!
//! # Null
//! Only `==`, `!=`, `in` and `has` accept a nullable column; `null` equals only `null`. All other operations
//! require a guard, which the type checker recognizes: `note != null && note.size() > 3`, `note == null || …`, `note !=
//! null ? … : …`, and also `note == "x" && …`. Therefore a compiled program cannot fail because of null. Unlike in SQL,
//! `status != "draft"` is true if the status is null.
//!
//! # Evaluation
//! The result depends only on the row: there is no clock and no state. The result is equal to that of the
//! `cel` crate's interpreter (a property test compares them). The run time is bounded, because there are no loops, and
//! regular expressions run in linear time. [`EvalError`] lists what can fail: overflow, division by zero, conversions.
//! As in CEL, `false && error` is false and `true || error` is true in either order.

mod check;
mod decimal;
mod error;
mod eval;
mod parse;
mod program;
mod row_type;
mod scalar;
pub(crate) mod time;
mod types;
mod value;

pub use error::ExprError;
pub use eval::{EvalError, EvalErrorKind};
pub use program::Program;
pub use scalar::{Cell, Scalar};
pub use types::{Field, Form, RowType, Type};

#[cfg(test)]
mod tests;
