//! Encodes values to Avro bytes. Values of narrower number types are accepted for wider ones, following Avro's promotion
//! rules.

use super::{DEPTH_MAX, Datum, Step, write_path};
use crate::schema::{Kind, Schema, TypeId};
use std::fmt;

/// Why values do not match a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeError {
    path: Vec<Step>,
    reason: String,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("row does not match its Avro schema: ")?;
        if !self.path.is_empty() {
            write_path(f, &self.path, "")?;
            f.write_str(": ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for EncodeError {}

type Failure = Box<EncodeError>;

#[cold]
pub(super) fn failure(reason: String) -> Failure {
    Box::new(EncodeError {
        path: Vec::new(),
        reason,
    })
}

#[cold]
fn within(mut failure: Failure, step: Step) -> Failure {
    failure.path.push(step);
    failure
}

/// Appends an integer in zigzag variable-length encoding.
pub(crate) fn write_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = (value << 1 ^ value >> 63).cast_unsigned();
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

/// Appends a length or count.
pub(crate) fn write_length(out: &mut Vec<u8>, length: usize) {
    write_long(out, i64::try_from(length).unwrap_or(i64::MAX));
}

/// Appends a length and the bytes.
pub(crate) fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Encodes values of one schema.
pub(super) struct Encoder<'s> {
    pub(super) schema: &'s Schema,
}

impl Encoder<'_> {
    pub(super) fn fields(&self, ty: TypeId, row: &[Datum<'_>], out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        let Kind::Record(record) = &self.schema.ty(ty).kind else {
            return Err(self.mismatch(ty, &Datum::Record(Vec::new())));
        };
        if row.len() != record.fields.len() {
            return Err(failure(format!(
                "got {} values for {} fields",
                row.len(),
                record.fields.len()
            )));
        }
        for (field, value) in record.fields.iter().zip(row) {
            if let Err(failure) = self.value(field.ty, value, out, depth) {
                return Err(within(failure, Step::Field(field.name.to_string())));
            }
        }
        Ok(())
    }

    pub(super) fn value(&self, ty: TypeId, value: &Datum<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        match (&self.schema.ty(ty).kind, value) {
            (Kind::Optional { null_first, inner, .. }, value) => {
                let null = value.is_null();
                out.push(if null == *null_first { 0 } else { 2 });
                if !null {
                    self.value(*inner, value, out, depth)?;
                }
            }
            (Kind::Null, Datum::Null) => {}
            (Kind::Boolean, Datum::Bool(value)) => out.push(u8::from(*value)),
            (Kind::Int | Kind::Long, Datum::Int(value)) => write_long(out, i64::from(*value)),
            (Kind::Long, Datum::Long(value)) => write_long(out, *value),
            (Kind::Float, Datum::Float(value)) => out.extend_from_slice(&value.to_le_bytes()),
            (Kind::Double, Datum::Double(value)) => out.extend_from_slice(&value.to_le_bytes()),
            (Kind::Double, Datum::Float(value)) => out.extend_from_slice(&f64::from(*value).to_le_bytes()),
            (Kind::Double, Datum::Int(value)) => out.extend_from_slice(&f64::from(*value).to_le_bytes()),
            (Kind::Bytes, Datum::Bytes(bytes)) => write_bytes(out, bytes),
            (Kind::Bytes | Kind::String, Datum::Str(text)) => write_bytes(out, text.as_bytes()),
            (Kind::Fixed(fixed), Datum::Bytes(bytes)) if bytes.len() == fixed.size => out.extend_from_slice(bytes),
            (Kind::Enum(e), Datum::Str(symbol)) => match e.symbols.iter().position(|s| **s == **symbol) {
                Some(at) => write_length(out, at),
                None => {
                    return Err(failure(format!(
                        "{symbol:?} is not a symbol of {}",
                        self.schema.describe(ty)
                    )));
                }
            },
            _ if depth >= DEPTH_MAX => return Err(failure(format!("nested more than {DEPTH_MAX} levels deep"))),
            (Kind::Array(items), Datum::Array(values)) => {
                write_count(out, values.len());
                for (at, value) in values.iter().enumerate() {
                    self.value(*items, value, out, depth + 1)
                        .map_err(|e| within(e, Step::Item(at)))?;
                }
                out.push(0);
            }
            (Kind::Map(values), Datum::Map(entries)) => {
                write_count(out, entries.len());
                for (key, value) in entries {
                    write_bytes(out, key.as_bytes());
                    let written = self.value(*values, value, out, depth + 1);
                    written.map_err(|e| within(e, Step::Entry((*key).to_owned())))?;
                }
                out.push(0);
            }
            (Kind::Record(_), Datum::Record(row)) => self.fields(ty, row, out, depth + 1)?,
            (Kind::Union(_), value) => self.union(ty, value, out, depth + 1)?,
            _ => return Err(self.mismatch(ty, value)),
        }
        Ok(())
    }

    /// Encodes a union value: with the branch in the value, else with the first branch of the value's type, else with
    /// the first branch that accepts the value.
    fn union(&self, ty: TypeId, value: &Datum<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        let Kind::Union(branches) = &self.schema.ty(ty).kind else {
            return Err(self.mismatch(ty, value));
        };
        if let Datum::Union(at, inner) = value {
            let Some(branch) = branches.get(*at) else {
                return Err(failure(format!("union has no branch {at}")));
            };
            write_length(out, *at);
            return self.value(*branch, inner, out, depth);
        }
        let exact = branches.iter().position(|b| self.schema.type_name(*b) == value.name());
        for at in exact.into_iter().chain(0..branches.len()) {
            let Some(branch) = branches.get(at) else { continue };
            let from = out.len();
            write_length(out, at);
            if self.value(*branch, value, out, depth).is_ok() {
                return Ok(());
            }
            out.truncate(from);
        }
        Err(self.mismatch(ty, value))
    }

    #[cold]
    fn mismatch(&self, ty: TypeId, value: &Datum<'_>) -> Failure {
        let got = match value {
            Datum::Bytes(bytes) => format!("{} bytes", bytes.len()),
            value => value.name().to_owned(),
        };
        failure(format!("expected {}, got {got}", self.schema.describe(ty)))
    }
}

fn write_count(out: &mut Vec<u8>, count: usize) {
    if count > 0 {
        write_length(out, count);
    }
}
