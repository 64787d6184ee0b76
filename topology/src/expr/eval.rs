//! The compiled expression tree, and its evaluation over a row.
//!
//! Types are checked at compile time, so only arithmetic and conversions can fail. As in CEL, if one operand of `&&` or
//! `||` decides the result, an error of the other operand has no effect. Comparing columns with literals does not
//! allocate.

use super::types::Form;
use super::value::Value;
use super::{decimal, time};
use regex::Regex;
use schemas::codec::Datum;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Range;

/// An evaluation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot evaluate `{part}`: {kind}")]
pub struct EvalError {
    /// The part of the expression that failed.
    pub part: String,
    /// Cause.
    pub kind: EvalErrorKind,
    span: Range<usize>,
}

/// Cause of a failed evaluation. It contains no values of the row, so it can be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvalErrorKind {
    /// An integer, timestamp or duration is out of range.
    #[error("integer overflow (64 bits)")]
    Overflow,
    /// Division by zero.
    #[error("division by zero")]
    DivideByZero,
    /// A value cannot be converted.
    #[error("the value cannot be converted")]
    Convert,
    /// A value does not have the declared type; the row was decoded with another schema.
    #[error("the value does not have the declared type")]
    Type,
}

impl EvalError {
    /// Byte range in the expression.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }
}

/// A failed evaluation, before the text of the expression is added. Small, because it is part of every result.
#[derive(Debug)]
pub(super) struct Fail {
    pub(super) kind: EvalErrorKind,
    span: Range<usize>,
}

impl Fail {
    pub(super) fn at(span: &Range<usize>, kind: EvalErrorKind) -> Self {
        Fail {
            kind,
            span: span.clone(),
        }
    }

    pub(super) fn in_text(self, text: &str) -> EvalError {
        let part = text.get(self.span.clone()).unwrap_or(text).to_string();
        EvalError {
            part,
            kind: self.kind,
            span: self.span,
        }
    }
}

type Result<T> = std::result::Result<T, Fail>;

/// An arithmetic operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arith {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A string method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

/// Target type of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Convert {
    Int,
    Double,
    Text,
    Timestamp,
    Duration,
}

/// A node of the compiled expression tree.
#[derive(Debug)]
pub(super) enum Node {
    Const(Value<'static>),
    Column(usize, Form),
    Field(Box<Node>, usize, Form),
    /// A value in a JSON document, by the names of the fields from its root.
    JsonPath(Box<Node>, Vec<String>),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    If(Box<Node>, Box<Node>, Box<Node>),
    Compare(Compare, Box<Node>, Box<Node>),
    /// `value in [literals]`
    InSet(Box<Node>, Vec<Value<'static>>),
    /// `value in [expressions]`
    InList(Box<Node>, Vec<Node>),
    /// `value in column`, where the column is a list.
    InColumn(Box<Node>, Box<Node>),
    Arith(Arith, Box<Node>, Box<Node>, Range<usize>),
    Negate(Box<Node>, Range<usize>),
    Text(TextTest, Box<Node>, Box<Node>),
    Matches(Box<Node>, Regex),
    Size(Box<Node>),
    Convert(Convert, Box<Node>, Range<usize>),
}

/// Range in errors about values of a wrong type, which the type check makes impossible.
const NOWHERE: Range<usize> = 0..usize::MAX;

impl Node {
    /// The value of the node for a row.
    pub(super) fn eval<'v>(&'v self, row: &'v [Datum<'v>]) -> Result<Value<'v>> {
        Ok(match self {
            Node::Const(value) => borrow(value),
            Node::Column(at, form) => read(row.get(*at), *form),
            Node::Field(of, at, form) => match of.eval(row)? {
                Value::Row(inner) => read(inner.get(*at), *form),
                _ => Value::Null,
            },
            Node::JsonPath(document, path) => match document.eval(row)? {
                Value::JsonText(text) => json_at(text, path),
                _ => Value::Null,
            },
            Node::If(condition, yes, no) => {
                return if condition.truth(row)? {
                    yes.eval(row)
                } else {
                    no.eval(row)
                };
            }
            Node::Arith(op, a, b, span) => {
                let (a, b) = (a.eval(row)?, b.eval(row)?);
                op.apply(a, b).map_err(|kind| Fail::at(span, kind))?
            }
            Node::Negate(a, span) => negate(a.eval(row)?).map_err(|kind| Fail::at(span, kind))?,
            Node::Size(a) => size(&a.eval(row)?)?,
            Node::Convert(to, a, span) => to
                .apply(a.eval(row)?)
                .ok_or_else(|| Fail::at(span, EvalErrorKind::Convert))?,
            Node::Not(_)
            | Node::And(..)
            | Node::Or(..)
            | Node::Compare(..)
            | Node::InSet(..)
            | Node::InList(..)
            | Node::InColumn(..)
            | Node::Text(..)
            | Node::Matches(..) => Value::Bool(self.truth(row)?),
        })
    }

    /// The boolean value of the node for a row.
    pub(super) fn truth(&self, row: &[Datum<'_>]) -> Result<bool> {
        Ok(match self {
            Node::Not(a) => !a.truth(row)?,
            Node::And(a, b) => decide(a, b, row, false)?,
            Node::Or(a, b) => decide(a, b, row, true)?,
            Node::Compare(compare, a, b) => match (compare, &**a, &**b) {
                // Fast path of the most frequent condition: a text column compared with a literal.
                (Compare::Eq, Node::Column(at, _), Node::Const(Value::Text(text))) => is_text(row.get(*at), text),
                (Compare::Ne, Node::Column(at, _), Node::Const(Value::Text(text))) => !is_text(row.get(*at), text),
                (compare, a, b) => compare.holds(&a.eval(row)?, &b.eval(row)?),
            },
            Node::InSet(value, set) => {
                let value = value.eval(row)?;
                set.iter().any(|element| equal(&value, element))
            }
            Node::InList(value, list) => in_list(value, list, row)?,
            Node::InColumn(value, list) => {
                let value = value.eval(row)?;
                match list.eval(row)? {
                    Value::List(items, form) => items.iter().any(|item| equal(&value, &read(Some(item), form))),
                    Value::Json(serde_json::Value::Array(items)) => {
                        items.into_iter().any(|item| equal(&value, &of_json(item)))
                    }
                    // Another value of a JSON document.
                    _ if matches!(**list, Node::JsonPath(..)) => false,
                    _ => return Err(Fail::at(&NOWHERE, EvalErrorKind::Type)),
                }
            }
            Node::Text(test, a, b) => test.holds(&a.eval(row)?, &b.eval(row)?),
            Node::Matches(a, regex) => matches!(a.eval(row)?, Value::Text(text) if regex.is_match(&text)),
            Node::If(condition, yes, no) => {
                return if condition.truth(row)? {
                    yes.truth(row)
                } else {
                    no.truth(row)
                };
            }
            Node::Const(_)
            | Node::Column(..)
            | Node::Field(..)
            | Node::JsonPath(..)
            | Node::Arith(..)
            | Node::Negate(..)
            | Node::Size(_)
            | Node::Convert(..) => match self.eval(row)? {
                Value::Bool(answer) => answer,
                _ => return Err(Fail::at(&NOWHERE, EvalErrorKind::Type)),
            },
        })
    }
}

fn is_text(datum: Option<&Datum<'_>>, text: &str) -> bool {
    matches!(datum, Some(Datum::Str(found)) if *found == text)
}

/// Converts a datum according to its storage form.
fn read<'v>(datum: Option<&'v Datum<'v>>, form: Form) -> Value<'v> {
    match (datum, form) {
        (None | Some(Datum::Null), _) => Value::Null,
        (Some(Datum::Str(text)), Form::Decimal) => Value::Decimal(text),
        (Some(Datum::Str(text)), Form::Json) => Value::JsonText(text),
        (Some(Datum::Str(text)), _) => Value::Text(Cow::Borrowed(text)),
        (Some(Datum::Long(i)), Form::Plain) => Value::Int(*i),
        (Some(Datum::Int(i)), Form::Plain) => Value::Int(i64::from(*i)),
        (Some(Datum::Bool(b)), _) => Value::Bool(*b),
        (Some(Datum::Double(d)), _) => Value::Double(*d),
        (Some(Datum::Float(d)), _) => Value::Double(f64::from(*d)),
        (Some(Datum::Bytes(bytes)), _) => Value::Bytes(Cow::Borrowed(bytes)),
        (Some(Datum::Long(i)), Form::Micros) => Value::Timestamp(*i),
        (Some(Datum::Long(i)), Form::Millis) => Value::Timestamp(i.saturating_mul(1000)),
        (Some(Datum::Int(i32::MAX)), Form::Date) => Value::Timestamp(i64::MAX),
        (Some(Datum::Int(i32::MIN)), Form::Date) => Value::Timestamp(i64::MIN),
        (Some(Datum::Int(days)), Form::Date) => Value::Timestamp(i64::from(*days).saturating_mul(time::MICROS_PER_DAY)),
        (Some(Datum::Record(fields)), _) => Value::Row(fields),
        (Some(Datum::Array(items)), form) => Value::List(items, form),
        (Some(_), _) => Value::Opaque,
    }
}

/// The value at a path of a JSON document; null if the path does not exist.
fn json_at(text: &str, path: &[String]) -> Value<'static> {
    let Ok(mut value) = serde_json::from_str::<serde_json::Value>(text) else {
        return Value::Opaque;
    };
    for name in path {
        match value.get_mut(name) {
            Some(inner) => value = inner.take(),
            None => return Value::Null,
        }
    }
    of_json(value)
}

fn of_json(value: serde_json::Value) -> Value<'static> {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => Value::Int(i),
            (None, Some(d)) => Value::Double(d),
            (None, None) => Value::Opaque,
        },
        serde_json::Value::String(text) => Value::Text(Cow::Owned(text)),
        nested => Value::Json(nested),
    }
}

/// `&&` (decided by false) and `||` (decided by true). If one operand decides, an error of the other has no effect.
fn decide(a: &Node, b: &Node, row: &[Datum<'_>], decided: bool) -> Result<bool> {
    match a.truth(row) {
        Ok(answer) if answer == decided => Ok(decided),
        Ok(_) => b.truth(row),
        Err(error) => match b.truth(row) {
            Ok(answer) if answer == decided => Ok(decided),
            _ => Err(error),
        },
    }
}

fn in_list(value: &Node, list: &[Node], row: &[Datum<'_>]) -> Result<bool> {
    let value = value.eval(row)?;
    let mut found = false;
    for element in list {
        // Every element is evaluated: as in CEL, an error in the list is an error of the expression.
        found |= equal(&value, &element.eval(row)?);
    }
    Ok(found)
}

fn borrow<'v>(value: &'v Value<'static>) -> Value<'v> {
    match value {
        Value::Text(text) => Value::Text(Cow::Borrowed(text)),
        Value::Bytes(bytes) => Value::Bytes(Cow::Borrowed(bytes)),
        other => other.clone(),
    }
}

fn size(value: &Value<'_>) -> Result<Value<'static>> {
    let size = match value {
        Value::Text(text) => text.chars().count(),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(items, _) => items.len(),
        _ => return Err(Fail::at(&NOWHERE, EvalErrorKind::Type)),
    };
    Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX)))
}

fn negate(value: Value<'_>) -> std::result::Result<Value<'static>, EvalErrorKind> {
    match value {
        Value::Int(i) => i.checked_neg().map(Value::Int).ok_or(EvalErrorKind::Overflow),
        Value::Double(d) => Ok(Value::Double(-d)),
        _ => Err(EvalErrorKind::Type),
    }
}

impl Compare {
    /// Compares two values. Numbers of different types compare by value; null equals only null.
    pub(super) fn holds(self, a: &Value<'_>, b: &Value<'_>) -> bool {
        match self {
            Compare::Eq => equal(a, b),
            Compare::Ne => !equal(a, b),
            Compare::Lt => order(a, b).is_some_and(Ordering::is_lt),
            Compare::Le => order(a, b).is_some_and(Ordering::is_le),
            Compare::Gt => order(a, b).is_some_and(Ordering::is_gt),
            Compare::Ge => order(a, b).is_some_and(Ordering::is_ge),
        }
    }
}

fn equal(a: &Value<'_>, b: &Value<'_>) -> bool {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Int(i), Value::Double(d)) | (Value::Double(d), Value::Int(i)) => {
            order_mixed(*i, *d) == Some(Ordering::Equal)
        }
        (Value::Decimal(_), _) | (_, Value::Decimal(_)) => order(a, b) == Some(Ordering::Equal),
        (a, b) => a == b,
    }
}

fn order(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) | (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(i), Value::Double(d)) => order_mixed(*i, *d),
        (Value::Double(d), Value::Int(i)) => order_mixed(*i, *d).map(Ordering::reverse),
        (Value::Decimal(a), Value::Decimal(b)) => decimal::compare(a, b),
        (Value::Decimal(a), Value::Int(i)) => decimal::compare(a, &i.to_string()),
        (Value::Decimal(a), Value::Double(d)) => decimal::compare_double(a, *d),
        (Value::Int(_) | Value::Double(_), Value::Decimal(_)) => order(b, a).map(Ordering::reverse),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// 2^63, the smallest double greater than all 64-bit integers.
const INTEGERS_END: f64 = 9_223_372_036_854_775_808.0;

/// Compares an integer with a double exactly, by value.
fn order_mixed(i: i64, d: f64) -> Option<Ordering> {
    if d.is_nan() {
        None
    } else if d >= INTEGERS_END {
        Some(Ordering::Less)
    } else if d < -INTEGERS_END {
        Some(Ordering::Greater)
    } else {
        let whole = d.trunc();
        let fraction = 0.0_f64.partial_cmp(&(d - whole))?;
        Some(i.cmp(&whole_to_int(whole)).then(fraction))
    }
}

#[expect(
    clippy::as_conversions,
    reason = "there is no other conversion; callers have checked the range"
)]
fn whole_to_int(whole: f64) -> i64 {
    whole as i64
}

#[expect(
    clippy::as_conversions,
    reason = "rounds to the nearest double, as CEL's double() does"
)]
fn int_to_double(i: i64) -> f64 {
    i as f64
}

impl Arith {
    pub(super) fn apply<'v>(self, a: Value<'v>, b: Value<'v>) -> std::result::Result<Value<'v>, EvalErrorKind> {
        match (a, b) {
            (Value::Int(a), Value::Int(b)) => self.ints(a, b).map(Value::Int),
            (Value::Double(a), Value::Double(b)) => Ok(Value::Double(match self {
                Arith::Add => a + b,
                Arith::Sub => a - b,
                Arith::Mul => a * b,
                Arith::Div => a / b,
                Arith::Rem => return Err(EvalErrorKind::Type),
            })),
            (Value::Text(a), Value::Text(b)) => Ok(Value::Text(a + b)),
            (Value::Timestamp(a), Value::Timestamp(b)) => Ok(Value::Duration(exact(a.checked_sub(b))?)),
            (Value::Timestamp(t), Value::Duration(d)) if self == Arith::Sub => {
                Ok(Value::Timestamp(shift(t, d.checked_neg())?))
            }
            (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t)) => {
                Ok(Value::Timestamp(shift(t, Some(d))?))
            }
            (Value::Duration(a), Value::Duration(b)) => self.ints(a, b).map(Value::Duration),
            _ => Err(EvalErrorKind::Type),
        }
    }

    fn ints(self, a: i64, b: i64) -> std::result::Result<i64, EvalErrorKind> {
        match self {
            Arith::Add => exact(a.checked_add(b)),
            Arith::Sub => exact(a.checked_sub(b)),
            Arith::Mul => exact(a.checked_mul(b)),
            Arith::Div | Arith::Rem if b == 0 => Err(EvalErrorKind::DivideByZero),
            Arith::Div => exact(a.checked_div(b)),
            Arith::Rem => exact(a.checked_rem(b)),
        }
    }
}

fn exact(result: Option<i64>) -> std::result::Result<i64, EvalErrorKind> {
    result.ok_or(EvalErrorKind::Overflow)
}

/// A timestamp plus a duration; infinity remains infinity.
fn shift(instant: i64, by: Option<i64>) -> std::result::Result<i64, EvalErrorKind> {
    if instant == i64::MAX || instant == i64::MIN {
        return Ok(instant);
    }
    exact(by.and_then(|by| instant.checked_add(by)))
}

impl TextTest {
    fn holds(self, a: &Value<'_>, b: &Value<'_>) -> bool {
        let (Value::Text(a), Value::Text(b)) = (a, b) else {
            return false;
        };
        match self {
            TextTest::StartsWith => a.starts_with(b.as_ref()),
            TextTest::EndsWith => a.ends_with(b.as_ref()),
            TextTest::Contains => a.contains(b.as_ref()),
        }
    }
}

impl Convert {
    fn apply(self, value: Value<'_>) -> Option<Value<'_>> {
        match (self, value) {
            (Convert::Int, Value::Int(i)) => Some(Value::Int(i)),
            (Convert::Int, Value::Double(d)) => {
                // As in CEL, truncates towards zero, and requires a value strictly inside the range.
                (d > -INTEGERS_END && d < INTEGERS_END).then(|| Value::Int(whole_to_int(d.trunc())))
            }
            (Convert::Int, Value::Text(text)) => text.parse().ok().map(Value::Int),
            // As for doubles, the fraction is dropped.
            (Convert::Int, Value::Decimal(text)) => {
                let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
                whole.parse().ok().map(Value::Int)
            }
            (Convert::Int, Value::Timestamp(t)) => Some(Value::Int(t.div_euclid(time::MICROS_PER_SECOND))),
            (Convert::Double, Value::Double(d)) => Some(Value::Double(d)),
            (Convert::Double, Value::Int(i)) => Some(Value::Double(int_to_double(i))),
            (Convert::Double, Value::Text(text)) => text.parse().ok().map(Value::Double),
            (Convert::Double, Value::Decimal(text)) => text.parse().ok().map(Value::Double),
            (Convert::Text, Value::Text(text)) => Some(Value::Text(text)),
            (Convert::Text, Value::Decimal(text)) => Some(Value::Text(Cow::Borrowed(text))),
            (Convert::Text, Value::Int(i)) => Some(Value::Text(Cow::Owned(i.to_string()))),
            (Convert::Text, Value::Bool(b)) => Some(Value::Text(Cow::Borrowed(if b { "true" } else { "false" }))),
            (Convert::Text, Value::Timestamp(t)) => time::write_timestamp(t).map(|text| Value::Text(Cow::Owned(text))),
            (Convert::Timestamp, Value::Timestamp(t)) => Some(Value::Timestamp(t)),
            (Convert::Timestamp, Value::Text(text)) => time::parse_timestamp(&text).map(Value::Timestamp),
            (Convert::Timestamp, Value::Int(seconds)) => {
                seconds.checked_mul(time::MICROS_PER_SECOND).map(Value::Timestamp)
            }
            (Convert::Duration, Value::Duration(d)) => Some(Value::Duration(d)),
            (Convert::Duration, Value::Text(text)) => time::parse_duration(&text).map(Value::Duration),
            _ => None,
        }
    }
}
