//! Projections: decode records of a writer schema into the fields that a reader needs, in the reader's order. A
//! projection is compiled once per pair of schemas. Schemas that do not match by Avro's resolution rules are rejected
//! when it is compiled.
//!
//! A field that the writer does not have gets its default. A field that the reader does not need is skipped.

use super::decode::Reader;
use super::{Datum, Row, Step};
use crate::codec::DecodeError;
use crate::evolution;
use crate::schema::{Kind, Schema, SchemaError, TypeId};
use std::sync::Arc;

/// Why a projection cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// Not a record.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The writer's record does not have a requested field.
    #[error("record {record} has no field {field}")]
    NoField {
        /// The writer's record.
        record: String,
        /// The requested field.
        field: String,
    },
    /// The two schemas do not resolve.
    #[error("records of {record} do not resolve to the reader schema: {reason}")]
    Incompatible {
        /// The writer's record.
        record: String,
        /// The field that cannot be resolved, and the reason.
        reason: String,
    },
}

/// What a projection does with a field of the writer.
#[derive(Debug, Clone, Copy)]
enum Take {
    /// Skip the field.
    Skip,
    /// Store the field at this index, unchanged.
    To(usize),
    /// Store it at this index, promoted to the reader's type.
    Promoted(usize, Promotion),
}

#[derive(Debug, Clone, Copy)]
enum Promotion {
    Long,
    Float,
    Double,
    Bytes,
    Str,
}

/// A compiled projection of a writer's records.
#[derive(Debug, Clone)]
pub struct Projection {
    writer: Arc<Schema>,
    reader: Option<Arc<Schema>>,
    takes: Vec<Take>,
    /// Indices of the fields that the writer does not have, each with the index of the reader's field.
    defaults: Vec<(usize, usize)>,
    wanted: usize,
}

impl Projection {
    /// Creates a projection to the named fields of the writer's record, in this order and with the writer's types.
    ///
    /// # Errors
    /// [`ProjectError`] if a field does not exist or occurs twice, or if the schema is not a record.
    pub fn of_fields(writer: Arc<Schema>, names: &[&str]) -> Result<Self, ProjectError> {
        let record = writer.record()?;
        let mut takes = vec![Take::Skip; record.fields.len()];
        let mut duplicates = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let no_field = || ProjectError::NoField {
                record: record.name.full.to_string(),
                field: (*name).to_owned(),
            };
            let take = record
                .position(name)
                .and_then(|at| takes.get_mut(at))
                .ok_or_else(no_field)?;
            match take {
                Take::Skip => *take = Take::To(index),
                _ => duplicates.push((*name).to_owned()),
            }
        }
        if let Some(name) = duplicates.first() {
            let reason = format!("field {name} is requested twice");
            return Err(ProjectError::Incompatible {
                record: record.name.full.to_string(),
                reason,
            });
        }
        Ok(Projection {
            takes,
            reader: None,
            defaults: Vec::new(),
            wanted: names.len(),
            writer,
        })
    }

    /// Creates a projection to all fields of the reader's record, in the reader's order. Fields match by name or alias,
    /// numbers are promoted, and fields that the writer does not have get their default. Arrays, maps and nested
    /// records must have the same structure in both schemas.
    ///
    /// # Errors
    /// [`ProjectError`] if the schemas do not match by Avro's resolution rules.
    pub fn between(writer: Arc<Schema>, reader: Arc<Schema>) -> Result<Self, ProjectError> {
        let from = writer.record()?;
        let to = reader.record()?;
        let incompatible = |reason: String| ProjectError::Incompatible {
            record: from.name.full.to_string(),
            reason,
        };
        let mut takes = vec![Take::Skip; from.fields.len()];
        let mut defaults = Vec::new();
        for (index, field) in to.fields.iter().enumerate() {
            let names = std::iter::once(&field.name).chain(&field.aliases);
            let Some(at) = names.filter_map(|name| from.position(name)).next() else {
                if field.default.is_none() {
                    return Err(incompatible(format!(
                        "field {} is missing and has no default",
                        field.name
                    )));
                }
                defaults.push((index, index));
                continue;
            };
            let (Some(take), Some(written)) = (takes.get_mut(at), from.fields.get(at)) else {
                continue;
            };
            *take = match resolve(&writer, written.ty, &reader, field.ty) {
                Some(None) => Take::To(index),
                Some(Some(promotion)) => Take::Promoted(index, promotion),
                None => {
                    let (was, wanted) = (writer.describe(written.ty), reader.describe(field.ty));
                    return Err(incompatible(format!(
                        "field {} is {was}, but the reader wants {wanted}",
                        field.name
                    )));
                }
            };
        }
        let wanted = to.fields.len();
        Ok(Projection {
            takes,
            defaults,
            wanted,
            writer,
            reader: Some(reader),
        })
    }

    /// The schema of the bodies that the projection decodes.
    pub fn writer(&self) -> &Arc<Schema> {
        &self.writer
    }

    /// Decodes the fields of the projection from a body, in the reader's order. `row` is cleared first.
    ///
    /// # Errors
    /// [`DecodeError`] if the body does not match the writer's schema.
    pub fn decode<'a>(&'a self, body: &'a [u8], row: &mut Row<'a>) -> Result<(), DecodeError> {
        row.clear();
        row.resize(self.wanted, Datum::Null);
        let mut reader = Reader::new(&self.writer, body);
        for (field, take) in self.writer.fields().iter().zip(&self.takes) {
            let step = || Step::Field(field.name.to_string());
            let within = |e| *super::decode::within(e, step);
            let (index, value) = match take {
                Take::Skip => {
                    reader.skip(field.ty, 0).map_err(within)?;
                    continue;
                }
                Take::To(index) => (*index, reader.value(field.ty, 0).map_err(within)?),
                Take::Promoted(index, promotion) => {
                    let value = reader.value(field.ty, 0).map_err(within)?;
                    let value = promote(value, *promotion);
                    let Some(value) = value else {
                        return Err(within(reader.failure("bytes that are read as a string are not UTF-8")));
                    };
                    (*index, value)
                }
            };
            if let Some(slot) = row.get_mut(index) {
                *slot = value;
            }
        }
        reader.end().map_err(|e| *e)?;
        self.fill_defaults(row)
    }

    fn fill_defaults<'a>(&'a self, row: &mut Row<'a>) -> Result<(), DecodeError> {
        let Some(reader) = &self.reader else { return Ok(()) };
        for (index, field) in &self.defaults {
            let field = reader.fields().get(*field);
            let default = field.and_then(|field| Some((field.ty, field.default.as_deref()?)));
            if let (Some(slot), Some((ty, bytes))) = (row.get_mut(*index), default) {
                *slot = reader.decode_value(ty, bytes)?;
            }
        }
        Ok(())
    }
}

/// How a field of the writer is converted to a field of the reader: unchanged (`Some(None)`), promoted, or not possible
/// (`None`).
fn resolve(writer: &Schema, from: TypeId, reader: &Schema, to: TypeId) -> Option<Option<Promotion>> {
    let null_is_lost = writer.takes_null(from) && !reader.takes_null(to);
    let (from, to) = (writer.required(from), reader.required(to));
    if null_is_lost {
        return None;
    }
    match (&writer.ty(from).kind, &reader.ty(to).kind) {
        (Kind::Int, Kind::Long) => Some(Some(Promotion::Long)),
        (Kind::Int | Kind::Long, Kind::Float) => Some(Some(Promotion::Float)),
        (Kind::Int | Kind::Long | Kind::Float, Kind::Double) => Some(Some(Promotion::Double)),
        (Kind::String, Kind::Bytes) => Some(Some(Promotion::Bytes)),
        (Kind::Bytes, Kind::String) => Some(Some(Promotion::Str)),
        (Kind::Null, _) if reader.takes_null(to) => Some(None),
        _ => evolution::same_shape(writer, from, reader, to).then_some(None),
    }
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "Avro's promotion of long to float loses precision"
)]
fn promote(value: Datum<'_>, promotion: Promotion) -> Option<Datum<'_>> {
    Some(match (value, promotion) {
        (Datum::Int(value), Promotion::Long) => Datum::Long(i64::from(value)),
        (Datum::Int(value), Promotion::Float) => Datum::Float(value as f32),
        (Datum::Long(value), Promotion::Float) => Datum::Float(value as f32),
        (Datum::Int(value), Promotion::Double) => Datum::Double(f64::from(value)),
        (Datum::Long(value), Promotion::Double) => Datum::Double(value as f64),
        (Datum::Float(value), Promotion::Double) => Datum::Double(f64::from(value)),
        (Datum::Str(text), Promotion::Bytes) => Datum::Bytes(text.as_bytes()),
        (Datum::Bytes(bytes), Promotion::Str) => Datum::Str(std::str::from_utf8(bytes).ok()?),
        (other, _) => other,
    })
}
