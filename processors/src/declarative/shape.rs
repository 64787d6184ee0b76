//! Evaluates a processor's compiled expressions for the rows of one input.
//!
//! The result depends only on the row and has the same bytes each time, so that a contribution can be removed exactly
//! as it was added.

use super::values;
use schemas::codec::Datum;
use schemas::key::KeyWriter;
use schemas::pg_types::AvroType;
use schemas::schema::{Schema, TypeId};
use std::sync::Arc;
use topology::expr::{Cell, EvalError, Scalar};
use topology::{Aggregate, Feed, Function, Processor, Side, Work};

/// A buffer for one contribution, reused for many rows.
#[derive(Debug, Default)]
pub struct Shaped {
    /// The key: a canonical JSON array.
    pub key: Vec<u8>,
    /// Event time in ms, if a column is declared as the event time.
    pub time: Option<i64>,
    /// Encoded values of the contribution.
    pub values: Vec<u8>,
}

/// How rows of one input become contributions.
#[derive(Debug)]
pub struct Shape {
    processor: Arc<Processor>,
    side: Side,
    /// Types of the key columns in the output schema.
    key: Vec<(TypeId, AvroType)>,
}

impl Shape {
    /// Creates the shape of an input.
    pub fn new(processor: Arc<Processor>, side: Side) -> Self {
        let count = match &processor.work {
            Work::Aggregate(aggregate) => aggregate.group.len(),
            Work::Join(join) => join.left_key.len(),
        };
        let key = key_types(&processor, count);
        Shape { processor, side, key }
    }

    /// The input.
    pub fn feed(&self) -> &Feed {
        match (&self.processor.work, self.side) {
            (Work::Aggregate(aggregate), _) => &aggregate.feed,
            (Work::Join(join), Side::Left) => &join.left,
            (Work::Join(join), Side::Right) => &join.right,
        }
    }

    /// Evaluates a row of the used columns; `row_key` has the elements of the JSON array that is the record's key.
    /// Returns `false` if the row does not contribute.
    ///
    /// # Errors
    /// An expression failed on the row.
    pub fn evaluate(&self, row_key: &str, row: &[Datum<'_>], out: &mut Shaped) -> Result<bool, EvalError> {
        out.key.clear();
        out.values.clear();
        out.time = None;
        match (&self.processor.work, self.side) {
            (Work::Aggregate(aggregate), _) => self.aggregate(aggregate, row_key, row, out),
            (Work::Join(join), side) => {
                let key = match side {
                    Side::Left => &join.left_key,
                    Side::Right => &join.right_key,
                };
                if !self.write_key(key, row_key, row, &mut out.key)? && !join.is_outer {
                    return Ok(false);
                }
                row.iter()
                    .take(self.feed().columns.len())
                    .for_each(|datum| values::write(&mut out.values, datum));
                Ok(true)
            }
        }
    }

    /// The time of a contribution: the value of the declared column, else the record's timestamp. 0 if the processor
    /// does not depend on time, so that a change of the timestamp alone does not change the contribution.
    pub fn time_of(&self, shaped: &Shaped, at: i64) -> i64 {
        let matters = match (&self.processor.work, self.side) {
            (Work::Aggregate(aggregate), _) => aggregate.window.is_some(),
            (Work::Join(join), Side::Left) => !join.left.is_table,
            (Work::Join(_), Side::Right) => false,
        };
        if matters { shaped.time.unwrap_or(at) } else { 0 }
    }

    /// Whether the result depends on the order of a group's rows.
    pub fn is_ordered(&self) -> bool {
        match &self.processor.work {
            Work::Aggregate(aggregate) => {
                let ordered = |function| matches!(function, Function::First | Function::Latest);
                aggregate.fields.iter().any(|field| ordered(field.function))
            }
            Work::Join(_) => false,
        }
    }

    fn aggregate(
        &self,
        aggregate: &Aggregate,
        row_key: &str,
        row: &[Datum<'_>],
        out: &mut Shaped,
    ) -> Result<bool, EvalError> {
        if let Some(filter) = &aggregate.filter
            && !filter.matches(row)?
        {
            return Ok(false);
        }
        if let Some(time) = aggregate.window.as_ref().and_then(|window| window.time.as_ref()) {
            match time.eval(row)? {
                // The maximum and minimum are PostgreSQL's `infinity` and `-infinity`, which are in no window.
                Cell::Int(micros) if micros != i64::MAX && micros != i64::MIN => {
                    out.time = Some(micros.div_euclid(1000));
                }
                _ => return Ok(false),
            }
        }
        self.write_key(&aggregate.group, row_key, row, &mut out.key)?;
        for scalar in &aggregate.group {
            values::write_cell(&mut out.values, &scalar.eval(row)?);
        }
        for field in &aggregate.fields {
            match (&field.arg, field.function) {
                (None, _) => {}
                (Some(arg), Function::Count) => {
                    values::write_cell(&mut out.values, &Cell::Bool(arg.is_present(row)?));
                }
                (Some(arg), _) => values::write_cell(&mut out.values, &arg.eval(row)?),
            }
        }
        Ok(true)
    }

    /// Writes the key. Returns whether it contains no null.
    fn write_key(
        &self,
        key: &[Scalar],
        row_key: &str,
        row: &[Datum<'_>],
        out: &mut Vec<u8>,
    ) -> Result<bool, EvalError> {
        if self.feed().is_keyed {
            KeyWriter::new(out).inside(row_key).finish();
            return Ok(true);
        }
        let mut complete = true;
        let mut writer = KeyWriter::new(out);
        for (scalar, (id, ty)) in key.iter().zip(&self.key) {
            let cell = scalar.eval(row)?;
            complete &= !cell.is_null();
            writer = writer.datum(&self.processor.schema, *id, &values::fitted(datum(&cell), *ty));
        }
        writer.finish();
        Ok(complete)
    }
}

/// Avro types of the first columns of a processor's output.
fn key_types(processor: &Processor, count: usize) -> Vec<(TypeId, AvroType)> {
    let fields = processor.schema.fields().iter().zip(&processor.columns);
    fields
        .take(count)
        .map(|(field, column)| (field.ty, AvroType::of(&column.declared)))
        .collect()
}

/// A cell as an Avro value.
pub fn datum<'c>(cell: &'c Cell<'_>) -> Datum<'c> {
    match cell {
        Cell::Null => Datum::Null,
        Cell::Bool(value) => Datum::Bool(*value),
        Cell::Int(value) => Datum::Long(*value),
        Cell::Double(value) => Datum::Double(*value),
        Cell::Text(text) => Datum::Str(text),
        Cell::Bytes(bytes) => Datum::Bytes(bytes),
    }
}

/// Writes the values of a processor's output topic as Avro with the id of the output schema.
#[derive(Debug)]
pub struct OutputTopic {
    /// Its topic.
    pub topic: Arc<str>,
    schema: Arc<Schema>,
    types: Vec<AvroType>,
    frame: Vec<u8>,
}

impl OutputTopic {
    /// The output topic of a processor whose schema has this id.
    pub fn new(topic: impl Into<Arc<str>>, processor: &Processor, id: u32) -> Self {
        let mut frame = Vec::new();
        schemas::wire::frame(schemas::ids::SchemaId(id), &mut frame);
        OutputTopic {
            topic: topic.into(),
            schema: processor.schema.clone(),
            types: processor
                .columns
                .iter()
                .map(|column| AvroType::of(&column.declared))
                .collect(),
            frame,
        }
    }

    /// Converts the values to the types of their columns and writes the record with its schema id into `out`, which is
    /// cleared first.
    ///
    /// # Errors
    /// A value cannot be represented in its column's type.
    pub fn write(&self, row: &mut [Datum<'_>], out: &mut Vec<u8>) -> Result<(), schemas::codec::EncodeError> {
        for (datum, ty) in row.iter_mut().zip(&self.types) {
            let value = std::mem::replace(datum, Datum::Null);
            *datum = values::fitted(value, *ty);
        }
        out.clear();
        out.extend_from_slice(&self.frame);
        self.schema.encode(row, out)
    }
}
