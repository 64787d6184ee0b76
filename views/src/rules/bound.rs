//! Rules bound to the schema with which the rows were written.
//!
//! Views are defined on the declared schema of their relation. Rows that were written with another schema are read by
//! Avro's resolution, which is compiled once per schema. No name is looked up per row, and a value of a declared column
//! always has the declared type.

use super::{Piece, Relation, ViewOutputs, ViewRule};
use crate::partition_of;
use schemas::codec::{Datum, DecodeError, ProjectError, Projection, Row};
use schemas::device_json;
use schemas::schema::{Field, Kind, Schema, SchemaError, TypeId};
use std::borrow::Cow;
use std::sync::Arc;
use topology::expr::EvalError;
use topology::template::{BUCKET_BYTES_MAX, escape_into};

/// PostgreSQL omits an unchanged value only if it is stored out of line (TOAST), where a pointer of 18 bytes replaces
/// it. Shorter texts and bytes are always sent, so they need not be kept.
const KEPT_BYTES_MIN: usize = 18;

/// Why rules cannot be bound to a schema.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The schema cannot be parsed.
    #[error("cannot parse the schema of `{relation}`: {reason}")]
    Schema {
        /// Table or event type.
        relation: String,
        /// Cause.
        reason: SchemaError,
    },
    /// A column that views use cannot be read as declared.
    #[error(
        "{reason}; write the records of `{relation}` with a compatible schema, or correct the declaration so that both match"
    )]
    Incompatible {
        /// Table or event type.
        relation: String,
        /// Cause.
        reason: ProjectError,
    },
}

/// Why a row cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The bytes do not match the schema, or a value cannot be read as declared.
    #[error(transparent)]
    Decode(DecodeError),
    /// A condition failed.
    #[error("the condition of view `{view}` failed: {reason}")]
    Condition {
        /// View.
        view: String,
        /// Cause.
        reason: EvalError,
    },
    /// The name of a bucket is too long.
    #[error("bucket name of view `{view}` is longer than {BUCKET_BYTES_MAX} bytes")]
    Bucket {
        /// View.
        view: String,
    },
    /// The source omitted a column as unchanged, and there is no kept value.
    #[error(
        "column `{column}` was omitted as unchanged but no earlier value is stored; take a new snapshot of the table"
    )]
    Missing {
        /// Column.
        column: String,
    },
}

/// The views of a relation, bound to one schema.
#[derive(Debug)]
pub struct Bound {
    relation: Arc<Relation>,
    /// `None` if the rows were written with the declared schema.
    resolution: Option<Projection>,
}

/// The value of a column that the source may omit when the row changes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Column.
    pub name: String,
    /// Value. That of an array is its type, a zero byte, and its Avro encoding.
    pub value: Vec<u8>,
    /// Where the value begins in the Avro body of the row; `None` if it is not in the body.
    pub at: Option<usize>,
}

/// Result of an evaluation, apart from the outputs.
#[derive(Debug, PartialEq, Eq)]
pub struct Evaluated {
    /// Column values to keep for the next evaluation of this row, in case the source omits them then. They include
    /// columns that no view uses, because the rules may change.
    pub kept: Vec<Kept>,
    /// Whether the row was complete, so that no kept value was used.
    pub complete: bool,
}

impl Relation {
    /// Binds the views to a schema.
    ///
    /// # Errors
    /// The text is not a record schema, or a column that views use cannot be read as declared.
    pub fn bind(self: &Arc<Self>, schema: &str) -> Result<Bound, BindError> {
        let resolution = if schema == self.schema.text() {
            None
        } else {
            let writer = Schema::parse(schema).map_err(|reason| BindError::Schema {
                relation: self.name.clone(),
                reason,
            })?;
            let (writer, reader) = (Arc::new(writer), &self.schema);
            let used =
                |(at, column): (usize, &Option<_>)| (column.is_some() || self.unchanged == Some(at)).then_some(at);
            let used: Vec<Option<usize>> = self.columns.iter().enumerate().map(used).collect();
            let all: Vec<Option<usize>> = (0..self.columns.len()).map(Some).collect();
            // Columns that no view uses are read if possible, because the rules may change.
            let resolution = Projection::resolve(writer.clone(), reader.clone(), &all);
            let resolution = resolution.or_else(|_| Projection::resolve(writer, reader.clone(), &used));
            Some(resolution.map_err(|reason| BindError::Incompatible {
                relation: self.name.clone(),
                reason,
            })?)
        };
        Ok(Bound {
            relation: self.clone(),
            resolution,
        })
    }
}

impl Bound {
    /// Evaluates all views for a row. `body` is its Avro body, `kept` the values that the last evaluation of the row returned.
    ///
    /// # Errors
    /// The row does not match its schema, or a condition cannot be evaluated.
    pub fn evaluate(&self, body: &[u8], kept: &[Kept], outputs: &mut ViewOutputs) -> Result<Evaluated, EvaluateError> {
        let mut row = Row::new();
        let decoded = match &self.resolution {
            None => self.relation.schema.decode(body, &mut row),
            Some(resolution) => resolution.decode(body, &mut row),
        };
        decoded.map_err(EvaluateError::Decode)?;
        let complete = self.merge(&mut row, kept)?;
        for (index, view) in self.relation.views.iter().enumerate() {
            self.view(index, view, &row, outputs)?;
        }
        Ok(Evaluated {
            kept: self.keep(&row, body),
            complete,
        })
    }

    /// Replaces the columns that the source omitted as unchanged with their kept values. Returns false if there were any.
    fn merge<'k>(&'k self, row: &mut Row<'k>, kept: &'k [Kept]) -> Result<bool, EvaluateError> {
        let mut complete = true;
        let listed = self.relation.unchanged.and_then(|at| row.get(at));
        let Some(names) = listed.and_then(Datum::as_array).map(<[Datum<'_>]>::to_vec) else {
            return Ok(complete);
        };
        for name in names.iter().filter_map(Datum::as_str) {
            let mut columns = self.columns();
            let Some((at, column)) = columns.find(|(_, column)| column.column() == name) else {
                continue;
            };
            let missing = || EvaluateError::Missing {
                column: name.to_owned(),
            };
            let kept = kept.iter().find(|kept| kept.name == name);
            let Some(datum) = kept.and_then(|kept| self.kept_datum(column, &kept.value)) else {
                if self.relation.columns.get(at).is_some_and(Option::is_some) {
                    return Err(missing());
                }
                continue;
            };
            *row.get_mut(at).ok_or_else(missing)? = datum;
            complete = false;
        }
        Ok(complete)
    }

    /// A kept value as a value of its column; `None` if the column has another type than when the value was kept.
    fn kept_datum<'k>(&'k self, column: &Field, value: &'k [u8]) -> Option<Datum<'k>> {
        let schema = &self.relation.schema;
        let ty = schema.required(column.ty);
        match (&schema.ty(ty).kind, std::str::from_utf8(value)) {
            (Kind::Array(_), _) => {
                let encoded = value.strip_prefix(self.array_prefix(ty).as_slice())?;
                schema.decode_value(ty, encoded).ok()
            }
            (Kind::Bytes, _) | (_, Err(_)) => Some(Datum::Bytes(value)),
            (_, Ok(text)) => Some(Datum::Str(text)),
        }
    }

    /// The start of a kept array: its type. It is followed by the Avro encoding, which does not contain the type.
    fn array_prefix(&self, ty: TypeId) -> Vec<u8> {
        let mut prefix = self.relation.schema.describe(ty).into_bytes();
        prefix.push(0);
        prefix
    }

    /// The value of an array column to keep. The source may omit an array of any length: PostgreSQL's header of an array
    /// is longer than a TOAST pointer.
    fn kept_array(&self, column: &Field, array: &Datum<'_>) -> Option<Vec<u8>> {
        let schema = &self.relation.schema;
        let ty = schema.required(column.ty);
        let mut value = self.array_prefix(ty);
        schema.encode_value(ty, array, &mut value).ok()?;
        Some(value)
    }

    /// All declared columns with their indexes.
    fn columns(&self) -> impl Iterator<Item = (usize, &Field)> {
        let columns = self.relation.schema.fields().iter().enumerate();
        columns.filter(|(at, _)| Some(*at) != self.relation.unchanged)
    }

    fn keep(&self, row: &Row<'_>, body: &[u8]) -> Vec<Kept> {
        // Without `_unchanged` in its schema (events), a source never omits a column.
        let columns = self.columns().filter(|_| self.relation.unchanged.is_some());
        let kept = columns.filter_map(|(at, column)| {
            let value = match row.get(at)? {
                Datum::Str(text) => text.as_bytes(),
                Datum::Bytes(bytes) => bytes,
                array @ Datum::Array(items) if !items.is_empty() => {
                    return Some(Kept {
                        name: column.column().to_owned(),
                        value: self.kept_array(column, array)?,
                        at: None,
                    });
                }
                _ => return None,
            };
            (value.len() > KEPT_BYTES_MIN).then(|| Kept {
                name: column.column().to_owned(),
                value: value.to_vec(),
                at: offset_in(body, value),
            })
        });
        kept.collect()
    }

    fn view(&self, index: usize, view: &ViewRule, row: &Row<'_>, out: &mut ViewOutputs) -> Result<(), EvaluateError> {
        if let Some(filter) = &view.filter {
            let matched = filter.matches(row);
            let reason = |reason| EvaluateError::Condition {
                view: view.name.clone(),
                reason,
            };
            if !matched.map_err(reason)? {
                return Ok(());
            }
        }
        let from = out.names.len();
        if !self.name(&view.bucket, row, &mut out.names) {
            out.names.truncate(from);
            return Ok(());
        }
        let through = out.names.len();
        if through - from > BUCKET_BYTES_MAX {
            return Err(EvaluateError::Bucket {
                view: view.name.clone(),
            });
        }
        // The parameters of a scope are a subset of the bucket's, so none of them is null here.
        let partition = if view.scope == view.bucket {
            partition_of(
                out.names.get(from..through).unwrap_or_default(),
                self.relation.partitions,
            )
        } else {
            let mut scope = String::new();
            self.name(&view.scope, row, &mut scope);
            partition_of(&scope, self.relation.partitions)
        };
        let json = out.json.len();
        self.payload(view, row, &mut out.json);
        out.rows.push((index, from..through, partition, json..out.json.len()));
        Ok(())
    }

    fn payload(&self, view: &ViewRule, row: &Row<'_>, json: &mut Vec<u8>) {
        json.push(b'{');
        for (n, (name, column)) in view.fields.iter().enumerate() {
            if n > 0 {
                json.push(b',');
            }
            schemas::json::write_str(json, name);
            json.push(b':');
            self.value(*column, row, json);
        }
        json.push(b'}');
    }

    fn value(&self, column: usize, row: &Row<'_>, json: &mut Vec<u8>) {
        let found = self.relation.columns.get(column).and_then(Option::as_ref);
        match found.and_then(|found| Some((found.ty, row.get(column)?))) {
            Some((ty, datum)) => device_json::write(&self.relation.schema, ty, datum, json),
            None => json.extend_from_slice(b"null"),
        }
    }

    /// Appends a bucket or scope name; `false` if a parameter is null.
    fn name(&self, pieces: &[Piece], row: &Row<'_>, out: &mut String) -> bool {
        let mut json = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            if n > 0 {
                out.push(':');
            }
            match piece {
                Piece::Word(word) => out.push_str(word),
                Piece::Column(column) => {
                    json.clear();
                    self.value(*column, row, &mut json);
                    match plain(&json) {
                        Some(text) => escape_into(out, &text),
                        None => return false,
                    }
                }
            }
        }
        true
    }
}

/// Where a part of a body begins; `None` if it is not a part of the body.
fn offset_in(body: &[u8], part: &[u8]) -> Option<usize> {
    let at = part.as_ptr().addr().checked_sub(body.as_ptr().addr())?;
    (body.get(at..)?.len() >= part.len()).then_some(at)
}

/// Text of a JSON scalar, strings without quotes; `None` for null.
pub(crate) fn plain(json: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(json).ok()?;
    if text == "null" {
        return None;
    }
    let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) else {
        return Some(text.into());
    };
    if inner.contains('\\') {
        serde_json::from_str::<String>(text).ok().map(Cow::Owned)
    } else {
        Some(inner.into())
    }
}
