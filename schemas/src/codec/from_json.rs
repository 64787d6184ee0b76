//! Encodes JSON to Avro bytes: requests of backends, and the defaults in the text of a schema.
//!
//! Nothing is rounded, guessed or dropped: unknown fields are rejected, and a default is used only for an absent field.
//! Errors contain the JSON path, the expected type and the value.

use super::encode::{write_bytes, write_length, write_long};
use super::{DEPTH_MAX, Step, write_path};
use crate::schema::{Field, Kind, Logical, Record, Schema, TypeId};
use crate::{pg_text, time};
use base64::Engine as _;
use serde_json::Value;
use std::fmt;

/// Why a JSON value does not match a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonError {
    steps: Vec<Step>,
    /// The expected type and the value.
    pub reason: String,
}

impl JsonError {
    /// The JSON path, such as `$.items[2].price`; `$` is the root.
    pub fn path(&self) -> String {
        struct Path<'e>(&'e [Step]);
        impl fmt::Display for Path<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_path(f, self.0, "$")
            }
        }
        Path(&self.steps).to_string()
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_path(f, &self.steps, "$")?;
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for JsonError {}

pub(super) type Failure = Box<JsonError>;

#[cold]
pub(super) fn failure(reason: impl Into<String>) -> Failure {
    Box::new(JsonError {
        steps: Vec::new(),
        reason: reason.into(),
    })
}

#[cold]
pub(super) fn within(mut failure: Failure, step: Step) -> Failure {
    failure.steps.push(step);
    failure
}

/// The JSON representation of Avro values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Rows as devices receive them (docs/reference/formats.md): bytes are base64, times are strings.
    Row,
    /// Defaults in a schema, as specified by Avro: bytes are strings of code points, times are numbers.
    Default,
}

/// Encodes JSON values by one schema.
pub(super) struct Writer<'s> {
    pub(super) schema: &'s Schema,
    pub(super) dialect: Dialect,
}

impl Writer<'_> {
    pub(super) fn value(&self, id: TypeId, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        let ty = self.schema.ty(id);
        match (&ty.kind, value) {
            (Kind::Optional { null_first, inner, .. }, value) => {
                let null = value.is_null();
                out.push(if null == *null_first { 0 } else { 2 });
                if null {
                    Ok(())
                } else {
                    self.value(*inner, value, out, depth)
                }
            }
            (Kind::String, value) if ty.is_json() && self.dialect == Dialect::Row => {
                write_bytes(out, value.to_string().as_bytes());
                Ok(())
            }
            (Kind::Null, Value::Null) => Ok(()),
            (Kind::Boolean, Value::Bool(value)) => {
                out.push(u8::from(*value));
                Ok(())
            }
            (Kind::Int | Kind::Long, Value::Number(_) | Value::String(_)) => {
                let number = self.integer(id, value).ok_or_else(|| self.mismatch(id, value))?;
                write_long(out, number);
                Ok(())
            }
            (Kind::Float | Kind::Double, Value::Number(_) | Value::String(_)) => self.float(id, value, out),
            (Kind::String, Value::String(text)) => {
                if ty.logical == Some(Logical::Uuid) && uuid::Uuid::try_parse(text).is_err() {
                    return Err(self.mismatch(id, value));
                }
                let pg_type = ty.pg.as_deref().filter(|_| self.dialect == Dialect::Row);
                if pg_type.is_some_and(|pg_type| !pg_text::is_value(pg_type, text)) {
                    return Err(self.mismatch(id, value));
                }
                write_bytes(out, text.as_bytes());
                Ok(())
            }
            // `numeric` is stored as text. JSON integers keep their digits, but a JSON parser may round fractions.
            (Kind::String, Value::Number(n)) if ty.pg.as_deref() == Some("numeric") => {
                if !(n.is_i64() || n.is_u64()) {
                    return Err(failure(format!(
                        "a numeric with a fraction must be a string, such as \"{n}\""
                    )));
                }
                write_bytes(out, n.to_string().as_bytes());
                Ok(())
            }
            (Kind::Bytes | Kind::Fixed(_), Value::String(text)) => self.bytes(id, text, out),
            (Kind::Enum(e), Value::String(text)) => match e.symbols.iter().position(|s| **s == **text) {
                Some(at) => {
                    write_length(out, at);
                    Ok(())
                }
                None => Err(self.mismatch(id, value)),
            },
            _ if depth >= DEPTH_MAX => Err(failure(format!("nested more than {DEPTH_MAX} levels deep"))),
            (Kind::Array(_) | Kind::Map(_) | Kind::Record(_) | Kind::Union(_), value) => {
                self.nested(id, value, out, depth + 1)
            }
            _ => Err(self.mismatch(id, value)),
        }
    }

    fn nested(&self, id: TypeId, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        match (&self.schema.ty(id).kind, value) {
            (Kind::Array(items), Value::Array(values)) => {
                if !values.is_empty() {
                    write_length(out, values.len());
                }
                for (at, value) in values.iter().enumerate() {
                    self.value(*items, value, out, depth)
                        .map_err(|e| within(e, Step::Item(at)))?;
                }
                out.push(0);
                Ok(())
            }
            (Kind::Map(values), Value::Object(entries)) => {
                if !entries.is_empty() {
                    write_length(out, entries.len());
                }
                for (key, value) in entries {
                    write_bytes(out, key.as_bytes());
                    self.value(*values, value, out, depth)
                        .map_err(|e| within(e, Step::Entry(key.clone())))?;
                }
                out.push(0);
                Ok(())
            }
            (Kind::Record(record), Value::Object(object)) => self.record(record, object, out, depth),
            (Kind::Union(_), value) => self.union(id, value, out, depth),
            _ => Err(self.mismatch(id, value)),
        }
    }

    fn record(
        &self,
        record: &Record,
        object: &serde_json::Map<String, Value>,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Failure> {
        let mut known = 0;
        for field in &record.fields {
            let step = || Step::Field(field.column().to_owned());
            match object.get(field.column()) {
                Some(value) => {
                    known += 1;
                    self.value(field.ty, value, out, depth).map_err(|e| within(e, step()))?;
                }
                None => match (&field.default, self.is_optional(field)) {
                    (Some(bytes), _) => out.extend_from_slice(bytes),
                    (None, true) => self.value(field.ty, &Value::Null, out, depth)?,
                    (None, false) => return Err(within(failure("is missing and has no default"), step())),
                },
            }
        }
        if known == object.len() {
            return Ok(());
        }
        let unknown = object
            .keys()
            .find(|key| record.fields.iter().all(|field| field.column() != key.as_str()));
        Err(unknown_field(record, unknown.cloned().unwrap_or_default()))
    }

    /// Requests may omit nullable fields. In the defaults of a schema, records must be complete.
    fn is_optional(&self, field: &Field) -> bool {
        self.dialect == Dialect::Row && is_absent_allowed(self.schema, field)
    }

    /// Encodes with the first branch that accepts the value. If the value is ambiguous, Avro's JSON encoding
    /// `{"branch": value}` selects the branch.
    fn union(&self, id: TypeId, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        let Kind::Union(branches) = &self.schema.ty(id).kind else {
            return Err(self.mismatch(id, value));
        };
        let from = out.len();
        let tagged = value
            .as_object()
            .filter(|object| object.len() == 1)
            .and_then(|object| object.iter().next());
        if let Some((tag, inner)) = tagged {
            let at = branches.iter().position(|b| self.branch_name(*b) == tag);
            if let Some((at, branch)) = at.and_then(|at| Some((at, *branches.get(at)?))) {
                write_length(out, at);
                return self
                    .value(branch, inner, out, depth)
                    .map_err(|e| within(e, Step::Field(tag.clone())));
            }
        }
        let mut deepest: Option<Failure> = None;
        for (at, branch) in branches.iter().enumerate() {
            write_length(out, at);
            match self.value(*branch, value, out, depth) {
                Ok(()) => return Ok(()),
                // Returns the error of the branch with which the value agrees most deeply, because that is probably the
                // intended branch.
                Err(e) if e.steps.len() > deepest.as_ref().map_or(0, |d| d.steps.len()) => deepest = Some(e),
                Err(_) => {}
            }
            out.truncate(from);
        }
        Err(deepest.unwrap_or_else(|| self.mismatch(id, value)))
    }

    fn branch_name(&self, id: TypeId) -> &str {
        match &self.schema.ty(id).kind {
            Kind::Record(record) => &record.name.full,
            Kind::Enum(e) => &e.name.full,
            Kind::Fixed(fixed) => &fixed.name.full,
            _ => self.schema.type_name(id),
        }
    }

    /// Converts a number or a string to the integer of the type; `None` if it is out of range.
    fn integer(&self, id: TypeId, value: &Value) -> Option<i64> {
        let ty = self.schema.ty(id);
        let wide = matches!(ty.kind, Kind::Long);
        let number = match value {
            Value::Number(n) => n.as_i64()?,
            Value::String(_) if self.dialect == Dialect::Default => return None,
            Value::String(text) => match ty.logical {
                Some(Logical::Date) => i64::from(time::parse_date(text)?),
                Some(Logical::TimeMillis) => exact_millis(time::parse_time(text)?)?,
                Some(Logical::TimeMicros) => time::parse_time(text)?,
                Some(Logical::TimestampMillis) => exact_millis(time::parse_timestamp(text, true)?)?,
                Some(Logical::TimestampMicros) => time::parse_timestamp(text, true)?,
                Some(Logical::LocalTimestampMillis) => exact_millis(time::parse_timestamp(text, false)?)?,
                Some(Logical::LocalTimestampMicros) => time::parse_timestamp(text, false)?,
                _ if wide && canonical_digits(text) => text.parse().ok()?,
                _ => return None,
            },
            _ => return None,
        };
        (wide || i32::try_from(number).is_ok()).then_some(number)
    }

    fn float(&self, id: TypeId, value: &Value, out: &mut Vec<u8>) -> Result<(), Failure> {
        let number = match value {
            Value::Number(n) => n.as_f64(),
            Value::String(text) => match text.as_str() {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                _ => None,
            },
            _ => None,
        };
        let number = number.ok_or_else(|| self.mismatch(id, value))?;
        if matches!(self.schema.ty(id).kind, Kind::Double) {
            out.extend_from_slice(&number.to_le_bytes());
            return Ok(());
        }
        #[expect(
            clippy::as_conversions,
            clippy::cast_possible_truncation,
            reason = "the only way to round to 32 bits"
        )]
        let narrow = number as f32;
        if narrow.is_infinite() && number.is_finite() {
            return Err(self.mismatch(id, value));
        }
        out.extend_from_slice(&narrow.to_le_bytes());
        Ok(())
    }

    fn bytes(&self, id: TypeId, text: &str, out: &mut Vec<u8>) -> Result<(), Failure> {
        let ty = self.schema.ty(id);
        let decoded: Option<Vec<u8>> = match (self.dialect, ty.logical) {
            (Dialect::Default, _) => text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect(),
            (Dialect::Row, Some(Logical::Decimal { scale })) => {
                crate::decimal::parse(text, scale, fixed_size(&ty.kind))
            }
            (Dialect::Row, Some(Logical::Uuid)) => uuid::Uuid::try_parse(text).ok().map(|id| id.as_bytes().to_vec()),
            (Dialect::Row, _) => base64::engine::general_purpose::STANDARD.decode(text).ok(),
        };
        let Some(bytes) = decoded else {
            return Err(self.mismatch(id, &Value::String(text.to_owned())));
        };
        match fixed_size(&ty.kind) {
            Some(size) if size != bytes.len() => Err(failure(format!(
                "expected {}, got {} bytes",
                self.schema.describe(id),
                bytes.len()
            ))),
            Some(_) => {
                out.extend_from_slice(&bytes);
                Ok(())
            }
            None => {
                write_bytes(out, &bytes);
                Ok(())
            }
        }
    }

    #[cold]
    fn mismatch(&self, id: TypeId, value: &Value) -> Failure {
        failure(format!("expected {}, got {}", self.expected(id), got(value)))
    }

    fn expected(&self, id: TypeId) -> String {
        let ty = self.schema.ty(id);
        if let Some((pg_type, example)) = ty.pg.as_deref().and_then(|pg| Some((pg, pg_text::example(pg)?))) {
            return format!("{pg_type}, such as \"{example}\"");
        }
        let hint = match (&ty.kind, ty.logical) {
            _ if self.dialect == Dialect::Default => "",
            (_, Some(Logical::Date)) => " (YYYY-MM-DD)",
            (_, Some(Logical::TimestampMicros | Logical::TimestampMillis)) => " (RFC 3339)",
            (_, Some(Logical::LocalTimestampMicros | Logical::LocalTimestampMillis)) => " (YYYY-MM-DDThh:mm:ss)",
            (_, Some(Logical::TimeMicros | Logical::TimeMillis)) => " (hh:mm:ss)",
            (Kind::Bytes | Kind::Fixed(_), None) => " (base64)",
            _ => "",
        };
        format!("{}{hint}", self.schema.describe(id))
    }
}

/// Whether a request may omit a field without a default: it is null then.
pub(super) fn is_absent_allowed(schema: &Schema, field: &Field) -> bool {
    matches!(schema.ty(field.ty).kind, Kind::Optional { .. })
}

/// The error for a field that the record does not have.
#[cold]
pub(super) fn unknown_field(record: &Record, name: String) -> Failure {
    let fields: Vec<&str> = record.fields.iter().map(Field::column).collect();
    let reason = format!(
        "is not a field of {}; its fields are {}",
        record.name.full,
        fields.join(", ")
    );
    within(failure(reason), Step::Field(name))
}

fn fixed_size(kind: &Kind) -> Option<usize> {
    match kind {
        Kind::Fixed(fixed) => Some(fixed.size),
        _ => None,
    }
}

fn exact_millis(micros: i64) -> Option<i64> {
    (micros % 1000 == 0).then_some(micros / 1000)
}

fn canonical_digits(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// A short description of a JSON value for messages.
fn got(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("boolean {value}"),
        Value::Number(n) => format!("number {n}"),
        Value::String(text) if text.chars().count() > 40 => {
            format!("string {:?}…", text.chars().take(40).collect::<String>())
        }
        Value::String(text) => format!("string {text:?}"),
        Value::Array(items) => format!("an array of {} items", items.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}
