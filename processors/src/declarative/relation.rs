//! One input of a processor (the input of an aggregate, or a side of a join): its name, its expressions, its rows, and
//! the schemas with which its records were written.

use super::shape::Shape;
use super::table_rows::TableRows;
use crate::input::{FetchSchema, Unavailable, schema_id};
use event_log::ErrorAction;
use schemas::codec::{DecodeError, Projection, Row};
use schemas::schema::Schema;
use std::collections::HashMap;
use std::sync::Arc;
use topology::Side;

/// A projection of one writer schema to the columns that the processor uses.
#[derive(Debug)]
pub struct Bound {
    projection: Projection,
    /// Whether the list of unchanged columns follows the used columns.
    pub lists_unchanged: bool,
}

impl Bound {
    fn new(text: &str, columns: &[String], relation: &str) -> Result<Self, String> {
        let writer = Schema::parse(text).map_err(|e| format!("the schema of `{relation}` cannot be parsed: {e}"))?;
        let mut names = Vec::with_capacity(columns.len() + 1);
        for column in columns {
            let field = writer.fields().iter().find(|field| field.column() == column.as_str());
            let missing = || {
                format!(
                    "the processor uses column `{column}` of `{relation}`, but the record's schema does not contain \
                     it; redeploy the source or the topology so that both match"
                )
            };
            names.push(field.ok_or_else(missing)?.name.to_string());
        }
        let lists_unchanged = writer
            .fields()
            .iter()
            .any(|field| *field.name == *schemas::pg_types::UNCHANGED);
        if lists_unchanged {
            names.push(String::from(schemas::pg_types::UNCHANGED));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let projection = Projection::of_fields(Arc::new(writer), &names).map_err(|e| e.to_string())?;
        Ok(Bound {
            projection,
            lists_unchanged,
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
    bound: HashMap<u32, Arc<Bound>>,
    /// Ids of schemas that cannot be used, with the reason.
    unusable: HashMap<u32, String>,
    last: Option<(u32, Arc<Bound>)>,
}

impl Relation {
    /// Creates an input without schemas; `prepare` fetches them.
    pub fn new(side: Side, name: String, shape: Shape, rows: Option<TableRows>) -> Self {
        Relation {
            side,
            name,
            shape,
            rows,
            bound: HashMap::new(),
            unusable: HashMap::new(),
            last: None,
        }
    }

    /// Returns the projection for the schema that `value` was written with. `prepare` must have fetched that schema.
    pub fn bound(&self, value: &[u8]) -> Result<Arc<Bound>, String> {
        let id = schema_id(value).ok_or("the value has no schema id")?;
        if let Some((last, bound)) = &self.last
            && *last == id
        {
            return Ok(bound.clone());
        }
        self.bound.get(&id).cloned().ok_or_else(|| {
            let reason = self.unusable.get(&id).cloned();
            reason.unwrap_or_else(|| format!("schema {id} is incompatible with the declaration of `{}`", self.name))
        })
    }

    /// Fetches a schema unless it is known.
    pub fn prepare(&mut self, id: u32, fetch: &FetchSchema) -> Result<(), Unavailable> {
        if self.last.as_ref().is_some_and(|(last, _)| *last == id) || self.unusable.contains_key(&id) {
            return Ok(());
        }
        if !self.bound.contains_key(&id) {
            let text = match fetch(id) {
                Ok(text) => text,
                Err(error) if error.action == ErrorAction::DeadLetter => {
                    self.unusable.insert(id, error.reason);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            match Bound::new(&text, &self.shape.feed().columns, &self.name) {
                Ok(bound) => drop(self.bound.insert(id, Arc::new(bound))),
                Err(reason) => drop(self.unusable.insert(id, reason)),
            }
        }
        self.last = self.bound.get(&id).map(|bound| (id, bound.clone()));
        Ok(())
    }
}
