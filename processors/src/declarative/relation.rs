//! One input of a processor (the input of an aggregate, or a side of a join): its name, its expressions, its rows, and
//! the schemas with which its records were written.

use super::shape::Shape;
use super::table_rows::TableRows;
use crate::input::{BoundSchemas, FetchSchema, Unavailable, schema_id};
use schemas::codec::{Datum, DecodeError, Projection, Row};
use schemas::schema::{Kind, Schema, TypeId};
use std::sync::Arc;
use topology::Side;

/// Maximum length of a value that PostgreSQL always sends: a TOAST pointer has 18 bytes, so no shorter value is moved
/// out of its row.
const SENT_BYTES_MAX: usize = 18;

/// A projection of one writer schema to the columns that the processor uses, as they are declared.
#[derive(Debug)]
pub struct Bound {
    projection: Projection,
    /// Whether the list of unchanged columns follows the used columns.
    pub lists_unchanged: bool,
}

impl Bound {
    fn new(text: &str, declared: &Arc<Schema>, columns: &[String], relation: &str) -> Result<Self, String> {
        let writer = Schema::parse(text).map_err(|e| format!("the schema of `{relation}` cannot be parsed: {e}"))?;
        let fields = declared.fields();
        let column = |name: &String| fields.iter().position(|field| field.column() == name.as_str());
        let mut wanted: Vec<Option<usize>> = columns.iter().map(column).collect();
        let unchanged = fields
            .iter()
            .position(|field| *field.name == *schemas::pg_types::UNCHANGED);
        wanted.extend(unchanged.map(Some));
        let projection = Projection::resolve(Arc::new(writer), declared.clone(), &wanted).map_err(|error| {
            format!(
                "{error}; write the records of `{relation}` with a compatible schema, or correct the declaration so \
                 that both match"
            )
        })?;
        Ok(Bound {
            projection,
            lists_unchanged: unchanged.is_some(),
        })
    }

    /// Decodes the used columns of a framed value.
    pub fn decode<'v>(&'v self, value: &'v [u8], row: &mut Row<'v>) -> Result<(), DecodeError> {
        let body = value.get(schemas::wire::FRAME_LENGTH..).unwrap_or_default();
        self.projection.decode(body, row)
    }
}

/// One input of a processor, as it is read from a topic.
pub struct Relation {
    /// The left (or only) input of the processor, or the right one.
    pub side: Side,
    /// The name of the table, event or processor in the input's records.
    pub name: String,
    /// The declared expressions.
    pub shape: Shape,
    /// Its rows if it is a table, `None` if it is an event.
    pub rows: Option<TableRows>,
    /// Declared schema of its records.
    declared: Arc<Schema>,
    schemas: BoundSchemas<Bound>,
    last: Option<(u32, Arc<Bound>)>,
}

impl Relation {
    /// Creates an input that is read as `declared`, without the schemas of its records; `prepare` fetches them.
    pub fn new(side: Side, name: String, declared: Arc<Schema>, shape: Shape, rows: Option<TableRows>) -> Self {
        Relation {
            side,
            name,
            shape,
            rows,
            declared,
            schemas: BoundSchemas::default(),
            last: None,
        }
    }

    /// Returns the projection for the schema that `value` was written with. `prepare` must have fetched that schema.
    pub fn bound(&self, value: &[u8]) -> Result<Arc<Bound>, String> {
        let id = schema_id(value).ok_or("the value has no schema id")?;
        match &self.last {
            Some((last, bound)) if *last == id => Ok(bound.clone()),
            _ => self.schemas.get(id).cloned(),
        }
    }

    /// The value of a column to keep for the next change of its row; `None` if the source always sends it. A kept array
    /// begins with its type, which its Avro encoding does not contain.
    pub fn kept(&self, column: &str, datum: &Datum<'_>) -> Option<Vec<u8>> {
        let value = match datum {
            Datum::Str(text) => text.as_bytes(),
            Datum::Bytes(bytes) => bytes,
            // The source may omit an array of any length: PostgreSQL's header of an array is longer than a TOAST pointer.
            Datum::Array(items) if !items.is_empty() => {
                let ty = self.type_of(column)?;
                let mut value = self.array_prefix(ty);
                self.declared.encode_value(ty, datum, &mut value).ok()?;
                return Some(value);
            }
            _ => return None,
        };
        (value.len() > SENT_BYTES_MAX).then(|| value.to_vec())
    }

    /// A kept value as a value of its column; `None` if the column has another type than when the value was kept.
    pub fn restored<'k>(&'k self, column: &str, value: &'k [u8]) -> Option<Datum<'k>> {
        let ty = self.type_of(column)?;
        match &self.declared.ty(ty).kind {
            Kind::Array(_) => {
                let encoded = value.strip_prefix(self.array_prefix(ty).as_slice())?;
                self.declared.decode_value(ty, encoded).ok()
            }
            Kind::Bytes => Some(Datum::Bytes(value)),
            _ => Some(std::str::from_utf8(value).map_or(Datum::Bytes(value), Datum::Str)),
        }
    }

    fn type_of(&self, column: &str) -> Option<TypeId> {
        let mut fields = self.declared.fields().iter();
        let field = fields.find(|field| field.column() == column)?;
        Some(self.declared.required(field.ty))
    }

    fn array_prefix(&self, ty: TypeId) -> Vec<u8> {
        let mut prefix = self.declared.describe(ty).into_bytes();
        prefix.push(0);
        prefix
    }

    /// Fetches a schema unless it is known.
    pub fn prepare(&mut self, id: u32, fetch: &FetchSchema) -> Result<(), Unavailable> {
        if self.last.as_ref().is_some_and(|(last, _)| *last == id) {
            return Ok(());
        }
        let (declared, columns, name) = (&self.declared, &self.shape.feed().columns, &self.name);
        self.schemas
            .prepare(id, fetch, |text| Bound::new(text, declared, columns, name))?;
        if let Ok(bound) = self.schemas.get(id) {
            self.last = Some((id, bound.clone()));
        }
        Ok(())
    }
}
