//! Rules bound to the schema with which the rows were written.
//!
//! Binding resolves columns to positions once per schema, so that no name is looked up per row.

use super::{Piece, Relation, ViewOutputs, ViewRule};
use crate::partition_of;
use schemas::codec::{Datum, DecodeError, Row};
use schemas::device_json;
use schemas::schema::{Schema, SchemaError, TypeId};
use std::borrow::Cow;
use std::sync::Arc;
use topology::expr::EvalError;
use topology::template::{BUCKET_BYTES_MAX, escape_into};

/// PostgreSQL omits an unchanged value only if it is stored out of line (TOAST), where a pointer of 18 bytes replaces
/// it. Shorter values are always sent, so they need not be kept.
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
    /// A column that a view uses is not in the schema.
    #[error(
        "column `{column}` of `{relation}` is used by views but missing in the schema of its records; redeploy the source or the topology so that both match"
    )]
    Column {
        /// Table or event type.
        relation: String,
        /// Column.
        column: String,
    },
}

/// Why a row cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The bytes do not match the schema.
    #[error("the row does not match its schema: {0}")]
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
    schema: Schema,
    /// By declared index; `None` for a column that no view uses.
    columns: Vec<Option<Column>>,
    /// All columns of the schema, which other views may use later.
    all: Vec<Column>,
    unchanged: Option<usize>,
    /// Whether the schema has the columns in the declared order, so that decoded rows can be used without reordering.
    in_order: bool,
}

#[derive(Debug)]
struct Column {
    name: String,
    at: usize,
    ty: TypeId,
}

/// A decoded row, in the order of its schema and in the declared order.
struct Input<'a, 'r> {
    row: &'a Row<'r>,
    declared: &'a Row<'r>,
}

/// The value of a column that the source may omit when the row changes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Column.
    pub name: String,
    /// Value.
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
    /// The text is not a record schema, or a column that views use is missing in it.
    pub fn bind(self: &Arc<Self>, schema: &str) -> Result<Bound, BindError> {
        let invalid = |reason| BindError::Schema {
            relation: self.name.clone(),
            reason,
        };
        let schema = Schema::parse(schema).map_err(invalid)?;
        let record = schema.record().map_err(invalid)?;
        let column = |name: &Option<String>| {
            let Some(name) = name else { return Ok(None) };
            let at = record.fields.iter().position(|f| f.column() == name.as_str());
            let found = at.and_then(|at| record.fields.get(at).map(|f| (at, f.ty)));
            let missing = || BindError::Column {
                relation: self.name.clone(),
                column: name.clone(),
            };
            let (at, ty) = found.ok_or_else(missing)?;
            Ok(Some(Column {
                name: name.clone(),
                at,
                ty,
            }))
        };
        let columns: Vec<Option<Column>> = self.columns.iter().map(column).collect::<Result<_, BindError>>()?;
        let in_order = columns
            .iter()
            .enumerate()
            .all(|(at, c)| c.as_ref().is_none_or(|c| c.at == at));
        let unchanged = record.position("_unchanged");
        let fields = record.fields.iter().enumerate();
        let all = fields
            .filter(|(at, _)| Some(*at) != unchanged)
            .map(|(at, field)| Column {
                name: field.column().to_owned(),
                at,
                ty: field.ty,
            })
            .collect();
        Ok(Bound {
            relation: self.clone(),
            columns,
            all,
            unchanged,
            in_order,
            schema,
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
        self.schema.decode(body, &mut row).map_err(EvaluateError::Decode)?;
        let complete = self.merge(&mut row, kept)?;
        let declared: Option<Row<'_>> = (!self.in_order).then(|| {
            let value = |c: &Option<Column>| c.as_ref().and_then(|c| row.get(c.at).cloned()).unwrap_or(Datum::Null);
            self.columns.iter().map(value).collect()
        });
        for (index, view) in self.relation.views.iter().enumerate() {
            let input = Input {
                row: &row,
                declared: declared.as_ref().unwrap_or(&row),
            };
            self.view(index, view, &input, outputs)?;
        }
        Ok(Evaluated {
            kept: self.keep(&row, body),
            complete,
        })
    }

    /// Replaces the columns that the source omitted as unchanged with their kept values. Returns false if there were any.
    fn merge<'k>(&self, row: &mut Row<'k>, kept: &'k [Kept]) -> Result<bool, EvaluateError> {
        let mut complete = true;
        let listed = self.unchanged.and_then(|at| row.get(at));
        let Some(names) = listed.and_then(Datum::as_array).map(<[Datum<'_>]>::to_vec) else {
            return Ok(complete);
        };
        for name in names.iter().filter_map(Datum::as_str) {
            let Some(column) = self.all.iter().find(|c| c.name == name) else {
                continue;
            };
            let is_used = self.columns.iter().flatten().any(|used| used.at == column.at);
            let missing = || EvaluateError::Missing {
                column: name.to_owned(),
            };
            let Some(Kept { value, .. }) = kept.iter().find(|kept| kept.name == name) else {
                if is_used {
                    return Err(missing());
                }
                continue;
            };
            let slot = row.get_mut(column.at).ok_or_else(missing)?;
            complete = false;
            *slot = match std::str::from_utf8(value) {
                Ok(text) if !self.is_bytes(column) => Datum::Str(text),
                _ => Datum::Bytes(value),
            };
        }
        Ok(complete)
    }

    fn is_bytes(&self, column: &Column) -> bool {
        matches!(
            self.schema.ty(self.schema.required(column.ty)).kind,
            schemas::schema::Kind::Bytes
        )
    }

    fn keep(&self, row: &Row<'_>, body: &[u8]) -> Vec<Kept> {
        // Without `_unchanged` in its schema (events), a source never omits a column.
        let columns = self.all.iter().filter(|_| self.unchanged.is_some());
        let kept = columns.filter_map(|column| {
            let value = match row.get(column.at)? {
                Datum::Str(text) => text.as_bytes(),
                Datum::Bytes(bytes) => bytes,
                _ => return None,
            };
            (value.len() > KEPT_BYTES_MIN).then(|| Kept {
                name: column.name.clone(),
                value: value.to_vec(),
                at: offset_in(body, value),
            })
        });
        kept.collect()
    }

    fn view(
        &self,
        index: usize,
        view: &ViewRule,
        input: &Input<'_, '_>,
        out: &mut ViewOutputs,
    ) -> Result<(), EvaluateError> {
        if let Some(filter) = &view.filter {
            let matched = filter.matches(input.declared);
            let reason = |reason| EvaluateError::Condition {
                view: view.name.clone(),
                reason,
            };
            if !matched.map_err(reason)? {
                return Ok(());
            }
        }
        let from = out.names.len();
        if !self.name(&view.bucket, input.row, &mut out.names) {
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
            self.name(&view.scope, input.row, &mut scope);
            partition_of(&scope, self.relation.partitions)
        };
        let json = out.json.len();
        self.payload(view, input.row, &mut out.json);
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
        let column = self.columns.get(column).and_then(Option::as_ref);
        match column.and_then(|c| Some((c.ty, row.get(c.at)?))) {
            Some((ty, datum)) => device_json::write(&self.schema, ty, datum, json),
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
