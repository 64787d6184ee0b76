//! Rules bound to the schema that rows were written with.
//!
//! Guarantees: bytes that do not fit the schema are an error with the field's path. Never: a look-up by name per row.

use super::{Piece, Relation, ViewOutputs, ViewRule};
use crate::partition_of;
use schemas::codec::{Datum, DecodeError, Row};
use schemas::device_json;
use schemas::schema::{Schema, SchemaError, TypeId};
use std::borrow::Cow;
use std::sync::Arc;
use topology::expr::EvalError;
use topology::template::{BUCKET_BYTES_MAX, escape_into};

/// Values shorter than this are never left out by a source: PostgreSQL's pointer to a large value is as long.
const KEPT_BYTES_MIN: usize = 18;

/// Why rules do not fit a schema.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The schema cannot be read.
    #[error("the schema of `{relation}` cannot be read: {reason}")]
    Schema {
        /// Table or event.
        relation: String,
        /// Why.
        reason: SchemaError,
    },
    /// A column that a view uses is not in the schema.
    #[error("column `{column}` of `{relation}`, which views use, is not in the schema of its records")]
    Column {
        /// Table or event.
        relation: String,
        /// Column.
        column: String,
    },
}

/// Why a row gives no outputs.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// The body does not fit the schema.
    #[error("the row does not fit its schema: {0}")]
    Decode(DecodeError),
    /// A condition failed.
    #[error("condition of view `{view}`: {reason}")]
    Condition {
        /// View.
        view: String,
        /// Why.
        reason: EvalError,
    },
    /// A bucket's name would be too long.
    #[error("bucket of view `{view}` has a name longer than {BUCKET_BYTES_MAX} bytes")]
    Bucket {
        /// View.
        view: String,
    },
    /// A column was left out as unchanged, and nothing is known of the row.
    #[error("column `{column}` was left out as unchanged in a row that was never seen whole; snapshot the table")]
    Missing {
        /// Column.
        column: String,
    },
}

/// The rules of a relation over one writer's schema.
#[derive(Debug)]
pub struct Bound {
    relation: Arc<Relation>,
    schema: Schema,
    /// By the index of the declaration; `None` for a column that no view uses.
    columns: Vec<Option<Column>>,
    unchanged: Option<usize>,
    /// The schema has the declared columns in their declared order, so that rows need not be put in order.
    in_order: bool,
}

#[derive(Debug)]
struct Column {
    name: String,
    at: usize,
    ty: TypeId,
}

/// What an evaluation leaves.
#[derive(Debug, PartialEq, Eq)]
pub struct Evaluated {
    /// What must be kept of the row for the next evaluation.
    pub kept: Vec<(String, Vec<u8>)>,
    /// Nothing that was kept before has gone into it.
    pub whole: bool,
}

impl Relation {
    /// Binds the rules to a schema's text.
    ///
    /// # Errors
    /// A text that is no record schema, or one without a column that views use.
    pub fn bind(self: &Arc<Self>, schema: &str) -> Result<Bound, BindError> {
        let refuse = |reason| BindError::Schema {
            relation: self.name.clone(),
            reason,
        };
        let schema = Schema::parse(schema).map_err(refuse)?;
        let record = schema.record().map_err(refuse)?;
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
        Ok(Bound {
            relation: self.clone(),
            columns,
            unchanged,
            in_order,
            schema,
        })
    }
}

impl Bound {
    /// Evaluates all views over a row: `body` is its Avro body, `kept` what the last evaluation returned for it.
    ///
    /// # Errors
    /// A row that does not fit its schema, or that a condition cannot judge.
    pub fn evaluate(
        &self,
        body: &[u8],
        kept: Vec<(String, Vec<u8>)>,
        outputs: &mut ViewOutputs,
    ) -> Result<Evaluated, EvaluateError> {
        let mut row = Row::new();
        self.schema.decode(body, &mut row).map_err(EvaluateError::Decode)?;
        let whole = self.merge(&mut row, &kept)?;
        let declared: Option<Row<'_>> = (!self.in_order).then(|| {
            let value = |c: &Option<Column>| c.as_ref().and_then(|c| row.get(c.at).cloned()).unwrap_or(Datum::Null);
            self.columns.iter().map(value).collect()
        });
        for (index, view) in self.relation.views.iter().enumerate() {
            self.view(index, view, &row, declared.as_ref().unwrap_or(&row), outputs)?;
        }
        Ok(Evaluated {
            kept: self.keep(&row),
            whole,
        })
    }

    /// Puts kept values where the source left a column out as unchanged; says whether there was none.
    fn merge<'k>(&self, row: &mut Row<'k>, kept: &'k [(String, Vec<u8>)]) -> Result<bool, EvaluateError> {
        let mut whole = true;
        let listed = self.unchanged.and_then(|at| row.get(at));
        let Some(names) = listed.and_then(Datum::as_array).map(<[Datum<'_>]>::to_vec) else {
            return Ok(whole);
        };
        for name in names.iter().filter_map(Datum::as_str) {
            let Some(column) = self.columns.iter().flatten().find(|c| c.name == name) else {
                continue;
            };
            let missing = || EvaluateError::Missing {
                column: name.to_owned(),
            };
            let (_, value) = kept.iter().find(|(kept, _)| kept == name).ok_or_else(missing)?;
            let slot = row.get_mut(column.at).ok_or_else(missing)?;
            whole = false;
            *slot = match std::str::from_utf8(value) {
                Ok(text) if !self.is_bytes(column) => Datum::Str(text),
                _ => Datum::Bytes(value),
            };
        }
        Ok(whole)
    }

    fn is_bytes(&self, column: &Column) -> bool {
        matches!(
            self.schema.ty(self.schema.required(column.ty)).kind,
            schemas::schema::Kind::Bytes
        )
    }

    fn keep(&self, row: &Row<'_>) -> Vec<(String, Vec<u8>)> {
        // A source that never leaves a column out (an event) has nothing to be kept.
        let columns = self.columns.iter().flatten().filter(|_| self.unchanged.is_some());
        let kept = columns.filter_map(|column| {
            let value = match row.get(column.at)? {
                Datum::Str(text) => text.as_bytes(),
                Datum::Bytes(bytes) => bytes,
                _ => return None,
            };
            (value.len() > KEPT_BYTES_MIN).then(|| (column.name.clone(), value.to_vec()))
        });
        kept.collect()
    }

    fn view(
        &self,
        index: usize,
        view: &ViewRule,
        row: &Row<'_>,
        declared: &Row<'_>,
        out: &mut ViewOutputs,
    ) -> Result<(), EvaluateError> {
        if let Some(filter) = &view.filter {
            let matched = filter.matches(declared);
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
        // A scope has only the bucket's own parameters, so it is never null where the bucket is not.
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
        let column = self.columns.get(column).and_then(Option::as_ref);
        match column.and_then(|c| Some((c.ty, row.get(c.at)?))) {
            Some((ty, datum)) => device_json::write(&self.schema, ty, datum, json),
            None => json.extend_from_slice(b"null"),
        }
    }

    /// Appends a name; `false` when a parameter is null.
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

/// The text of a JSON scalar: strings without their quotes; `None` for null.
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
