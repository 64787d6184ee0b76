//! Reading what one schema wrote as another schema wants it: by field name, compiled once per pair.
//!
//! Guarantees: fields come in the wanted order; one that the writer has not is its default; a field that was not
//! asked for costs only its length. Never: a guess: schemas that do not resolve are refused when the pair is compiled.

use super::decode::Reader;
use super::{Datum, Row, Step};
use crate::codec::DecodeError;
use crate::evolution;
use crate::schema::{Kind, Schema, SchemaError, TypeId};
use std::sync::Arc;

/// Why one schema's data cannot be read as wanted.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// Not a record.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A wanted field is not there.
    #[error("record {record} has no field {field}")]
    NoField {
        /// The writer's record.
        record: String,
        /// The wanted field.
        field: String,
    },
    /// The two schemas do not resolve.
    #[error("data of {record} cannot be read as wanted: {reason}")]
    Incompatible {
        /// The writer's record.
        record: String,
        /// What does not resolve.
        reason: String,
    },
}

/// What happens to one field of the writer.
#[derive(Debug, Clone, Copy)]
enum Take {
    /// Passed over.
    Skip,
    /// Put at this place as it is.
    To(usize),
    /// Put at this place as the reader's wider type.
    Widened(usize, Wide),
}

#[derive(Debug, Clone, Copy)]
enum Wide {
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
    /// Places that the writer does not fill, each with the reader's field.
    defaults: Vec<(usize, usize)>,
    wanted: usize,
}

impl Projection {
    /// The named fields of the writer's record, in this order, with the writer's own types.
    ///
    /// # Errors
    /// [`ProjectError`] when a field is not there, or the schema is not a record.
    pub fn of_fields(writer: Arc<Schema>, names: &[&str]) -> Result<Self, ProjectError> {
        let record = writer.record()?;
        let mut takes = vec![Take::Skip; record.fields.len()];
        let mut doubles = Vec::new();
        for (place, name) in names.iter().enumerate() {
            let no_field = || ProjectError::NoField {
                record: record.name.full.to_string(),
                field: (*name).to_owned(),
            };
            let take = record
                .position(name)
                .and_then(|at| takes.get_mut(at))
                .ok_or_else(no_field)?;
            match take {
                Take::Skip => *take = Take::To(place),
                _ => doubles.push((*name).to_owned()),
            }
        }
        if let Some(name) = doubles.first() {
            let reason = format!("field {name} is wanted twice");
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

    /// All fields of the reader's record, in its order: by name or alias, narrower numbers widened, defaults where the
    /// writer has no such field. Inside arrays, maps and nested records the writer's own shape is kept, so these must
    /// be the same on both sides.
    ///
    /// # Errors
    /// [`ProjectError`] when the two do not resolve.
    pub fn between(writer: Arc<Schema>, reader: Arc<Schema>) -> Result<Self, ProjectError> {
        let from = writer.record()?;
        let to = reader.record()?;
        let refused = |reason: String| ProjectError::Incompatible {
            record: from.name.full.to_string(),
            reason,
        };
        let mut takes = vec![Take::Skip; from.fields.len()];
        let mut defaults = Vec::new();
        for (place, field) in to.fields.iter().enumerate() {
            let names = std::iter::once(&field.name).chain(&field.aliases);
            let Some(at) = names.filter_map(|name| from.position(name)).next() else {
                if field.default.is_none() {
                    return Err(refused(format!("field {} is missing, and has no default", field.name)));
                }
                defaults.push((place, place));
                continue;
            };
            let (Some(take), Some(written)) = (takes.get_mut(at), from.fields.get(at)) else {
                continue;
            };
            *take = match resolve(&writer, written.ty, &reader, field.ty) {
                Some(None) => Take::To(place),
                Some(Some(wide)) => Take::Widened(place, wide),
                None => {
                    let (was, wanted) = (writer.describe(written.ty), reader.describe(field.ty));
                    return Err(refused(format!("field {} is {was}, wanted is {wanted}", field.name)));
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

    /// The schema whose bodies it reads.
    pub fn writer(&self) -> &Arc<Schema> {
        &self.writer
    }

    /// Decodes the wanted fields of a body, in the wanted order. `row` is emptied first.
    ///
    /// # Errors
    /// [`DecodeError`] when the body does not fit the writer's schema.
    pub fn decode<'a>(&'a self, body: &'a [u8], row: &mut Row<'a>) -> Result<(), DecodeError> {
        row.clear();
        row.resize(self.wanted, Datum::Null);
        let mut reader = Reader::new(&self.writer, body);
        for (field, take) in self.writer.fields().iter().zip(&self.takes) {
            let step = || Step::Field(field.name.to_string());
            let within = |e| *super::decode::within(e, step);
            let (place, value) = match take {
                Take::Skip => {
                    reader.skip(field.ty, 0).map_err(within)?;
                    continue;
                }
                Take::To(place) => (*place, reader.value(field.ty, 0).map_err(within)?),
                Take::Widened(place, wide) => {
                    let value = reader.value(field.ty, 0).map_err(within)?;
                    let value = widen(value, *wide);
                    let Some(value) = value else {
                        return Err(within(reader.failure("bytes that were to be a string are not UTF-8")));
                    };
                    (*place, value)
                }
            };
            if let Some(slot) = row.get_mut(place) {
                *slot = value;
            }
        }
        reader.end().map_err(|e| *e)?;
        self.fill_defaults(row)
    }

    fn fill_defaults<'a>(&'a self, row: &mut Row<'a>) -> Result<(), DecodeError> {
        let Some(reader) = &self.reader else { return Ok(()) };
        for (place, field) in &self.defaults {
            let field = reader.fields().get(*field);
            let default = field.and_then(|field| Some((field.ty, field.default.as_deref()?)));
            if let (Some(slot), Some((ty, bytes))) = (row.get_mut(*place), default) {
                *slot = reader.decode_value(ty, bytes)?;
            }
        }
        Ok(())
    }
}

/// How a field of the writer becomes one of the reader: as it is (`Some(None)`), widened, or not at all (`None`).
fn resolve(writer: &Schema, from: TypeId, reader: &Schema, to: TypeId) -> Option<Option<Wide>> {
    let null_is_lost = writer.takes_null(from) && !reader.takes_null(to);
    let (from, to) = (writer.required(from), reader.required(to));
    if null_is_lost {
        return None;
    }
    match (&writer.ty(from).kind, &reader.ty(to).kind) {
        (Kind::Int, Kind::Long) => Some(Some(Wide::Long)),
        (Kind::Int | Kind::Long, Kind::Float) => Some(Some(Wide::Float)),
        (Kind::Int | Kind::Long | Kind::Float, Kind::Double) => Some(Some(Wide::Double)),
        (Kind::String, Kind::Bytes) => Some(Some(Wide::Bytes)),
        (Kind::Bytes, Kind::String) => Some(Some(Wide::Str)),
        (Kind::Null, _) if reader.takes_null(to) => Some(None),
        _ => evolution::same_shape(writer, from, reader, to).then_some(None),
    }
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "Avro promotes long to float with this loss"
)]
fn widen(value: Datum<'_>, wide: Wide) -> Option<Datum<'_>> {
    Some(match (value, wide) {
        (Datum::Int(value), Wide::Long) => Datum::Long(i64::from(value)),
        (Datum::Int(value), Wide::Float) => Datum::Float(value as f32),
        (Datum::Long(value), Wide::Float) => Datum::Float(value as f32),
        (Datum::Int(value), Wide::Double) => Datum::Double(f64::from(value)),
        (Datum::Long(value), Wide::Double) => Datum::Double(value as f64),
        (Datum::Float(value), Wide::Double) => Datum::Double(f64::from(value)),
        (Datum::Str(text), Wide::Bytes) => Datum::Bytes(text.as_bytes()),
        (Datum::Bytes(bytes), Wide::Str) => Datum::Str(std::str::from_utf8(bytes).ok()?),
        (other, _) => other,
    })
}
