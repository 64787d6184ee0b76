//! Projections: decode records of a writer schema into the fields that a reader needs, in the reader's order. A
//! projection is compiled once per pair of schemas. Schemas that do not match by Avro's resolution rules are rejected
//! when it is compiled.
//!
//! A field that the writer does not have gets its default. A field that the reader does not need is skipped.

use super::decode::Reader;
use super::resolve::{Compiler, Fields, Pair, Plan};
use super::{Datum, Row};
use crate::codec::DecodeError;
use crate::schema::{Schema, SchemaError};
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

/// A compiled projection of a writer's records.
#[derive(Debug, Clone)]
pub struct Projection {
    writer: Arc<Schema>,
    reader: Arc<Schema>,
    plan: Plan,
    fields: Fields,
}

impl Projection {
    /// Creates a projection to the named fields of the writer's record, in this order and with the writer's types.
    ///
    /// # Errors
    /// [`ProjectError`] if a field does not exist or occurs twice, or if the schema is not a record.
    pub fn of_fields(writer: Arc<Schema>, names: &[&str]) -> Result<Self, ProjectError> {
        let record = writer.record()?;
        let mut wanted: Vec<Option<usize>> = Vec::with_capacity(names.len());
        for name in names {
            let at = record.position(name).ok_or_else(|| ProjectError::NoField {
                record: record.name.full.to_string(),
                field: (*name).to_owned(),
            })?;
            if wanted.contains(&Some(at)) {
                return Err(ProjectError::Incompatible {
                    record: record.name.full.to_string(),
                    reason: format!("field {name} is requested twice"),
                });
            }
            wanted.push(Some(at));
        }
        Self::resolve(writer.clone(), writer, &wanted)
    }

    /// Creates a projection to all fields of the reader's record, in the reader's order.
    ///
    /// # Errors
    /// [`ProjectError`] if the schemas do not match by Avro's resolution rules.
    pub fn between(writer: Arc<Schema>, reader: Arc<Schema>) -> Result<Self, ProjectError> {
        let wanted: Vec<Option<usize>> = (0..reader.fields().len()).map(Some).collect();
        Self::resolve(writer, reader, &wanted)
    }

    /// Creates a projection to fields of the reader's record. `wanted` contains the index of the reader's field for each
    /// decoded value; a value without a field is null. No index may occur twice.
    ///
    /// Values have the reader's types, by Avro's resolution rules: fields match by name or alias, numbers are promoted,
    /// and fields that the writer does not have get their default. Names of records are ignored. In addition to Avro's
    /// rules, logical types with different units do not match.
    ///
    /// # Errors
    /// [`ProjectError`] if a wanted field can never be read.
    pub fn resolve(writer: Arc<Schema>, reader: Arc<Schema>, wanted: &[Option<usize>]) -> Result<Self, ProjectError> {
        let from = writer.record()?;
        reader.record()?;
        let mut compiler = Compiler::new(Pair {
            writer: &writer,
            reader: &reader,
        });
        let fields = compiler.fields(writer.root(), reader.root(), wanted);
        let fields = fields.map_err(|conflict| ProjectError::Incompatible {
            record: from.name.full.to_string(),
            reason: format!("field {} {}", conflict.path, conflict.problem),
        })?;
        let plan = compiler.finish();
        Ok(Projection {
            writer,
            reader,
            plan,
            fields,
        })
    }

    /// The schema of the bodies that the projection decodes.
    pub fn writer(&self) -> &Arc<Schema> {
        &self.writer
    }

    /// Decodes the fields of the projection from a body, in their order. `row` is cleared first.
    ///
    /// # Errors
    /// [`DecodeError`] if the body does not match the writer's schema, or contains a value that the reader's type does not
    /// accept, such as null or an unknown enum symbol.
    pub fn decode<'a>(&'a self, body: &'a [u8], row: &mut Row<'a>) -> Result<(), DecodeError> {
        row.clear();
        row.resize(self.fields.width, Datum::Null);
        let pair = Pair {
            writer: &self.writer,
            reader: &self.reader,
        };
        let mut input = Reader::new(&self.writer, body);
        let decoded = self.plan.fields(pair, &self.fields, &mut input, row);
        decoded.and_then(|()| input.end()).map_err(|e| *e)
    }
}
