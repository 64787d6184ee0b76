//! Encodes rows of one table: values as text become the record key and the Avro value.
//!
//! Encoding a row of scalar columns does not allocate once the buffers have grown, and does not look up names. A value
//! that cannot be encoded is an error with the table and the column, and without the value, because errors are logged;
//! values are never changed to make them encodable.

use super::arrays::{self, ArrayError};
use super::masks::Masking;
use super::pgoutput::Value;
use super::text;
use crate::error::{Error, Result};
use schemas::codec::{self, Datum, Row};
use schemas::ids::{SchemaId, TableName};
use schemas::key::KeyWriter;
use schemas::schema::{Field, Kind, Logical, Schema, Type};
use schemas::wire;
use std::ops::Range;
use std::sync::Arc;

/// The parser of a column's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Bool,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Date,
    Timestamp,
    Timestamptz,
    Text,
}

impl Form {
    fn of(ty: &Type) -> Option<Form> {
        Some(match (&ty.kind, ty.logical) {
            (Kind::Boolean, _) => Form::Bool,
            (Kind::Int, Some(Logical::Date)) => Form::Date,
            (Kind::Int, _) => Form::Int,
            (Kind::Long, Some(Logical::TimestampMicros)) => Form::Timestamptz,
            (Kind::Long, Some(Logical::LocalTimestampMicros)) => Form::Timestamp,
            (Kind::Long, _) => Form::Long,
            (Kind::Float, _) => Form::Float,
            (Kind::Double, _) => Form::Double,
            (Kind::Bytes, _) => Form::Bytes,
            (Kind::String, _) => Form::Text,
            _ => return None,
        })
    }

    /// Parses a value. Not for [`Form::Bytes`], which needs a buffer.
    fn read(self, text: &[u8]) -> Option<Datum<'_>> {
        Some(match self {
            Form::Text | Form::Bytes => Datum::Str(std::str::from_utf8(text).ok()?),
            Form::Int => Datum::Int(text::i32(text)?),
            Form::Long => Datum::Long(text::i64(text)?),
            Form::Bool => Datum::Bool(text::bool(text)?),
            Form::Timestamptz => Datum::Long(text::timestamptz(text)?),
            Form::Timestamp => Datum::Long(text::timestamp(text)?),
            Form::Date => Datum::Int(text::date(text)?),
            Form::Float => Datum::Float(text::f32(text)?),
            Form::Double => Datum::Double(text::f64(text)?),
        })
    }

    /// Placeholder for an unchanged TOAST value in a column that is not nullable. Readers ignore it, because the column
    /// is listed in `_unchanged`. Only types of variable length are ever stored as TOAST.
    fn placeholder(self) -> Datum<'static> {
        match self {
            Form::Bytes => Datum::Bytes(b""),
            _ => Datum::Str(""),
        }
    }
}

#[derive(Debug)]
struct Column {
    name: Box<str>,
    /// The parser of the value, or of each item of an array.
    form: Form,
    is_array: bool,
    nullable: bool,
    mask: Option<Masking>,
}

impl Column {
    fn of(schema: &Schema, field: &Field) -> Option<Self> {
        let ty = schema.ty(schema.required(field.ty));
        let (item, is_array) = match &ty.kind {
            Kind::Array(items) => (schema.ty(schema.required(*items)), true),
            _ => (ty, false),
        };
        Some(Column {
            name: field.column().into(),
            form: Form::of(item)?,
            is_array,
            nullable: schema.takes_null(field.ty),
            mask: None,
        })
    }

    /// Whether values are decoded into a buffer before they are encoded.
    fn needs_buffer(&self) -> bool {
        self.is_array || self.form == Form::Bytes || self.mask.is_some()
    }

    /// Whether null is published instead of all values.
    fn is_hidden(&self) -> bool {
        self.mask == Some(Masking::Null)
    }

    /// Decodes a value into the buffers. Returns a range of bytes, or of items if it is an array.
    fn decode(&self, text: &[u8], decoded: &mut Decoded) -> std::result::Result<Range<usize>, Invalid> {
        if let Some(mask) = &self.mask {
            let from = decoded.bytes.len();
            mask.write(text, &mut decoded.bytes);
            return Ok(from..decoded.bytes.len());
        }
        if !self.is_array {
            let from = decoded.bytes.len();
            let is_valid = text::bytea(text, &mut decoded.bytes);
            return if is_valid {
                Ok(from..decoded.bytes.len())
            } else {
                Err(Invalid::Format)
            };
        }
        let from = decoded.items.len();
        arrays::parse(text, &mut decoded.bytes, &mut decoded.items).map_err(|error| match error {
            ArrayError::Dimensions => Invalid::Dimensions,
            ArrayError::Syntax => Invalid::Format,
        })?;
        if self.form == Form::Bytes {
            for item in decoded.items.iter_mut().skip(from).flatten() {
                let text = decoded.bytes.get(item.clone()).unwrap_or_default().to_vec();
                let start = decoded.bytes.len();
                if !text::bytea(&text, &mut decoded.bytes) {
                    return Err(Invalid::Format);
                }
                *item = start..decoded.bytes.len();
            }
        }
        Ok(from..decoded.items.len())
    }

    /// A value that was decoded into a range of the buffers.
    fn decoded<'b>(&self, range: Range<usize>, decoded: &'b Decoded) -> Option<Datum<'b>> {
        if self.mask.is_some() {
            return self.form.read(decoded.bytes.get(range)?);
        }
        if !self.is_array {
            return Some(Datum::Bytes(decoded.bytes.get(range)?));
        }
        let item = |item: &Option<Range<usize>>| {
            let Some(range) = item else { return Some(Datum::Null) };
            let bytes = decoded.bytes.get(range.clone())?;
            if self.form == Form::Bytes {
                Some(Datum::Bytes(bytes))
            } else {
                self.form.read(bytes)
            }
        };
        decoded
            .items
            .get(range)?
            .iter()
            .map(item)
            .collect::<Option<Vec<_>>>()
            .map(Datum::Array)
    }

    /// Placeholder for an unchanged TOAST value. Readers ignore it, because the column is listed in `_unchanged`.
    fn placeholder(&self) -> Datum<'static> {
        if self.nullable {
            Datum::Null
        } else if self.is_array {
            Datum::Array(Vec::new())
        } else {
            self.form.placeholder()
        }
    }
}

/// Why a value cannot be encoded.
#[derive(Debug, Clone, Copy)]
enum Invalid {
    Format,
    /// It is an array of several dimensions.
    Dimensions,
}

/// Encoder of one table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: TableName,
    schema: Arc<Schema>,
    id: SchemaId,
    columns: Vec<Column>,
    key: Vec<usize>,
    needs_buffer: bool,
}

/// Reusable buffers, shared by the rows of all tables.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    row: Row<'static>,
    decoded: Decoded,
    /// The decoded value of each column.
    ranges: Vec<Option<Range<usize>>>,
}

/// Values that are not parts of the received text.
#[derive(Debug, Default)]
struct Decoded {
    bytes: Vec<u8>,
    /// Items of arrays, as ranges of `bytes`; `None` for a null.
    items: Vec<Option<Range<usize>>>,
}

impl Table {
    /// Compiles the encoder. The fields of the schema are the declared columns in order, then `_unchanged`; `key` contains
    /// indices of columns.
    ///
    /// # Errors
    /// [`Error::Unpublishable`] if the schema has a type that no column can have.
    pub(super) fn new(name: TableName, schema: Arc<Schema>, id: SchemaId, key: Vec<usize>) -> Result<Self> {
        let fields = schema.fields();
        let count = fields.len().saturating_sub(1);
        let mut columns = Vec::with_capacity(count);
        for field in fields.iter().take(count) {
            let Some(column) = Column::of(&schema, field) else {
                let ty = schema.required(field.ty);
                return Err(Error::Unpublishable {
                    what: format!("table {name}, column {}", field.column()),
                    reason: format!("its schema has type {}, which no column can have", schema.describe(ty)),
                    fix: String::from("report this as a bug"),
                });
            };
            columns.push(column);
        }
        let needs_buffer = columns.iter().any(Column::needs_buffer);
        Ok(Table {
            name,
            schema,
            id,
            columns,
            key,
            needs_buffer,
        })
    }

    /// Masks columns.
    pub(super) fn masked(mut self, masking: impl Fn(&str) -> Option<Masking>) -> Self {
        for column in &mut self.columns {
            column.mask = masking(&column.name);
        }
        self.needs_buffer = self.columns.iter().any(Column::needs_buffer);
        self
    }

    /// Number of declared columns.
    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Names of the declared columns, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|c| &*c.name)
    }

    /// Names of the key columns, in key order.
    pub(super) fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().filter_map(|at| self.columns.get(*at)).map(|c| &*c.name)
    }

    /// The values of the key columns, as text; `None` if one of them is null.
    pub(super) fn key_texts(&self, values: &[Value<'_>]) -> Option<Vec<String>> {
        let text = |at: &usize| match values.get(*at) {
            Some(Value::Text(text)) => std::str::from_utf8(text).ok().map(str::to_owned),
            _ => None,
        };
        self.key.iter().map(text).collect()
    }

    /// Whether a column is part of the key.
    pub(super) fn is_key(&self, column: usize) -> bool {
        self.key.contains(&column)
    }

    /// Writes the record key of a row; `values` are in the order of the declared columns.
    pub(super) fn write_key(&self, values: &[Value<'_>], out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        let mut writer = KeyWriter::new(out).str(self.name.as_str());
        for at in &self.key {
            writer = self.write_key_part(writer, *at, values)?;
        }
        writer.finish();
        Ok(())
    }

    fn write_key_part<'o>(&self, key: KeyWriter<'o>, at: usize, values: &[Value<'_>]) -> Result<KeyWriter<'o>> {
        let (Some(column), Some(value)) = (self.columns.get(at), values.get(at)) else {
            return Err(self.column_error(at, "the row has no value for it"));
        };
        let Value::Text(text) = value else {
            // With a null in the key, different rows would have the same key.
            let reason = match value {
                Value::Null => "it is a key column and has no value, or its old value was not sent",
                _ => "it is a key column and its unchanged value was not sent; set REPLICA IDENTITY FULL",
            };
            return Err(self.column_error(at, reason));
        };
        let mut decoded = Decoded::default();
        let datum = if column.needs_buffer() {
            let range = column
                .decode(text, &mut decoded)
                .map_err(|invalid| self.invalid_value(at, invalid))?;
            column.decoded(range, &decoded)
        } else {
            column.form.read(text)
        };
        let datum = datum.ok_or_else(|| self.invalid_value(at, Invalid::Format))?;
        let ty = self.schema.fields().get(at).map(|f| self.schema.required(f.ty));
        let ty = ty.ok_or_else(|| self.column_error(at, "its schema has no field for it"))?;
        Ok(key.datum(&self.schema, ty, &datum))
    }

    /// Writes the record value of a row; `values` are in the order of the declared columns.
    pub(super) fn write_value(&self, values: &[Value<'_>], buffers: &mut Buffers, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        wire::frame(self.id, out);
        if self.needs_buffer {
            self.decode(values, buffers)?;
        }
        let mut row: Row<'_> = codec::recycle(std::mem::take(&mut buffers.row));
        let mut unchanged = Vec::new();
        for (at, (column, value)) in self.columns.iter().zip(values).enumerate() {
            let datum = match value {
                _ if column.is_hidden() => Some(Datum::Null),
                Value::Text(_) if column.needs_buffer() => {
                    let range = buffers.ranges.get(at).cloned().flatten();
                    range.and_then(|range| column.decoded(range, &buffers.decoded))
                }
                Value::Text(text) => column.form.read(text),
                Value::Null => Some(Datum::Null),
                Value::Unchanged => {
                    unchanged.push(Datum::Str(&column.name));
                    Some(column.placeholder())
                }
            };
            row.push(datum.ok_or_else(|| self.invalid_value(at, Invalid::Format))?);
        }
        row.push(if unchanged.is_empty() {
            Datum::Null
        } else {
            Datum::Array(unchanged)
        });
        let encoded = self.schema.encode(&row, out);
        buffers.row = codec::recycle(row);
        encoded.map_err(|e| Error::Unpublishable {
            what: format!("a row of table {}", self.name),
            reason: e.to_string(),
            fix: format!("compare the table with [[table]] {} in the topology", self.name),
        })
    }

    /// Decodes all values that need a buffer first, so that the row can borrow the values from one buffer.
    fn decode(&self, values: &[Value<'_>], buffers: &mut Buffers) -> Result<()> {
        let Buffers { decoded, ranges, .. } = buffers;
        decoded.bytes.clear();
        decoded.items.clear();
        ranges.clear();
        for (at, (column, value)) in self.columns.iter().zip(values).enumerate() {
            let range = match value {
                Value::Text(text) if column.needs_buffer() => Some(
                    column
                        .decode(text, decoded)
                        .map_err(|invalid| self.invalid_value(at, invalid))?,
                ),
                _ => None,
            };
            ranges.push(range);
        }
        Ok(())
    }

    #[cold]
    fn invalid_value(&self, at: usize, invalid: Invalid) -> Error {
        let column = self.columns.get(at);
        let name = column.map_or("?", |c| &c.name);
        match invalid {
            Invalid::Dimensions => Error::Unpublishable {
                what: format!("table {}, column {name}", self.name),
                reason: String::from("the array has several dimensions, which has no equivalent in Avro"),
                fix: format!("declare column {name} of [[table]] {} as text", self.name),
            },
            Invalid::Format => {
                let form = column.map_or(Form::Text, |c| c.form);
                let items = if column.is_some_and(|c| c.is_array) {
                    "array of "
                } else {
                    ""
                };
                self.column_error(at, &format!("the value is not a valid {items}{form:?} value"))
            }
        }
    }

    #[cold]
    fn column_error(&self, at: usize, reason: &str) -> Error {
        let column = self.columns.get(at).map_or("?", |c| &c.name);
        Error::Unpublishable {
            what: format!("table {}, column {column}", self.name),
            reason: reason.to_owned(),
            fix: format!(
                "declare column {column} of [[table]] {} with its type in the database",
                self.name
            ),
        }
    }
}
