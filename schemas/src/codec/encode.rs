//! Values to Avro bytes.
//!
//! Guarantees: writes a body that every Avro reader takes, or nothing: on an error the output is as it was. Narrower
//! numbers are taken for wider types, as Avro's readers do. Never: a look-up by name, but for enums and unions.

use super::{DEPTH_MAX, Datum, Step, write_path};
use crate::schema::{Kind, Schema, TypeId};
use std::fmt;

/// Why values do not fit a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeError {
    path: Vec<Step>,
    reason: String,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("row does not fit its Avro schema: ")?;
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
fn failure(reason: String) -> Failure {
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

/// Appends an integer, zigzag and in groups of seven bits.
pub(crate) fn write_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = (value << 1 ^ value >> 63).cast_unsigned();
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

/// Appends a length or a count.
pub(crate) fn write_length(out: &mut Vec<u8>, length: usize) {
    write_long(out, i64::try_from(length).unwrap_or(i64::MAX));
}

/// Appends a length and the bytes.
pub(crate) fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

impl Schema {
    /// Appends the Avro body of a record's fields, given in order.
    ///
    /// # Errors
    /// [`EncodeError`] when a value does not fit its field, or there are not as many as fields; `out` is then as it was.
    pub fn encode(&self, row: &[Datum<'_>], out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let from = out.len();
        let result = match &self.ty(self.root()).kind {
            Kind::Record(_) => self.write_fields(self.root(), row, out, 0),
            _ => Err(failure(format!(
                "the schema is {} and not a record",
                self.describe(self.root())
            ))),
        };
        result.map_err(|e| {
            out.truncate(from);
            *e
        })
    }

    /// Appends the Avro bytes of a value of any type.
    ///
    /// # Errors
    /// [`EncodeError`] when it does not fit; `out` is then as it was.
    pub fn encode_value(&self, ty: TypeId, value: &Datum<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let from = out.len();
        self.write_value(ty, value, out, 0).map_err(|e| {
            out.truncate(from);
            *e
        })
    }

    fn write_fields(&self, ty: TypeId, row: &[Datum<'_>], out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        let Kind::Record(record) = &self.ty(ty).kind else {
            return Err(self.misfit(ty, &Datum::Record(Vec::new())));
        };
        if row.len() != record.fields.len() {
            return Err(failure(format!(
                "{} values for {} fields",
                row.len(),
                record.fields.len()
            )));
        }
        for (field, value) in record.fields.iter().zip(row) {
            if let Err(failure) = self.write_value(field.ty, value, out, depth) {
                return Err(within(failure, Step::Field(field.name.to_string())));
            }
        }
        Ok(())
    }

    fn write_value(&self, ty: TypeId, value: &Datum<'_>, out: &mut Vec<u8>, depth: usize) -> Result<(), Failure> {
        match (&self.ty(ty).kind, value) {
            (Kind::Optional { null_first, inner, .. }, value) => {
                let null = value.is_null();
                out.push(if null == *null_first { 0 } else { 2 });
                if !null {
                    self.write_value(*inner, value, out, depth)?;
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
                None => return Err(failure(format!("{symbol:?} is no symbol of {}", self.describe(ty)))),
            },
            _ if depth >= DEPTH_MAX => return Err(failure(format!("nested deeper than {DEPTH_MAX} levels"))),
            (Kind::Array(items), Datum::Array(values)) => {
                write_count(out, values.len());
                for (at, value) in values.iter().enumerate() {
                    self.write_value(*items, value, out, depth + 1)
                        .map_err(|e| within(e, Step::Item(at)))?;
                }
                out.push(0);
            }
            (Kind::Map(values), Datum::Map(entries)) => {
                write_count(out, entries.len());
                for (key, value) in entries {
                    write_bytes(out, key.as_bytes());
                    let written = self.write_value(*values, value, out, depth + 1);
                    written.map_err(|e| within(e, Step::Entry((*key).to_owned())))?;
                }
                out.push(0);
            }
            (Kind::Record(_), Datum::Record(row)) => self.write_fields(ty, row, out, depth + 1)?,
            (Kind::Union(branches), value) => self.write_union(ty, branches, value, out, depth + 1)?,
            _ => return Err(self.misfit(ty, value)),
        }
        Ok(())
    }

    /// Writes into a union: the branch that the value names, else the first branch of exactly its kind, else the first
    /// that takes it.
    fn write_union(
        &self,
        ty: TypeId,
        branches: &[TypeId],
        value: &Datum<'_>,
        out: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), Failure> {
        if let Datum::Union(at, inner) = value {
            let Some(branch) = branches.get(*at) else {
                return Err(failure(format!("branch {at} of {}", self.describe(ty))));
            };
            write_length(out, *at);
            return self.write_value(*branch, inner, out, depth);
        }
        let exact = branches.iter().position(|b| self.word(*b) == value.word());
        for at in exact.into_iter().chain(0..branches.len()) {
            let Some(branch) = branches.get(at) else { continue };
            let from = out.len();
            write_length(out, at);
            if self.write_value(*branch, value, out, depth).is_ok() {
                return Ok(());
            }
            out.truncate(from);
        }
        Err(self.misfit(ty, value))
    }

    #[cold]
    fn misfit(&self, ty: TypeId, value: &Datum<'_>) -> Failure {
        let got = match value {
            Datum::Bytes(bytes) => format!("{} bytes", bytes.len()),
            value => value.word().to_owned(),
        };
        failure(format!("expected {}, got {got}", self.describe(ty)))
    }
}

fn write_count(out: &mut Vec<u8>, count: usize) {
    if count > 0 {
        write_length(out, count);
    }
}
