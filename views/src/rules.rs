//! Compiled views: evaluate a row of a table, or an event, to rows of views with their buckets.
//!
//! Evaluation depends on the row and the rules only, and equal inputs give byte-identical outputs: sync-views compares
//! outputs to find what changed. A view whose condition is false, or whose bucket has a null parameter, has no output.

mod bound;
mod compile;

pub use bound::{BindError, Bound, EvaluateError, Evaluated, Kept};
pub use compile::Rules;

use schemas::schema::{Field, Schema, TypeId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use topology::expr::Program;

/// Views with one input topic.
#[derive(Debug)]
pub struct SourceRules {
    topic: String,
    event: Option<String>,
    relations: BTreeMap<String, Arc<Relation>>,
}

impl SourceRules {
    /// Creates the rules of a topic with the tables of a source, or with one event type if `event` is set.
    pub fn new(topic: impl Into<String>, event: Option<String>, relations: Vec<Relation>) -> Self {
        let relations = relations.into_iter().map(|r| (r.name.clone(), Arc::new(r))).collect();
        SourceRules {
            topic: topic.into(),
            event,
            relations,
        }
    }

    /// Input topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Name of the event type or processor, if each record of the topic is a source transaction.
    pub fn event(&self) -> Option<&str> {
        self.event.as_deref()
    }

    /// All tables, or the event type, that views read.
    pub fn relations(&self) -> impl Iterator<Item = &Arc<Relation>> {
        self.relations.values()
    }

    /// Views whose input is a table or event type; `None` if no view reads it.
    pub fn relation(&self, name: &str) -> Option<&Arc<Relation>> {
        self.relations.get(name)
    }
}

/// Views with the same table or event type as input.
#[derive(Debug)]
pub struct Relation {
    name: String,
    /// Declared schema of the rows.
    schema: Arc<Schema>,
    /// By field of the schema; `None` for a field that no view uses.
    columns: Vec<Option<Column>>,
    /// Index of the field that lists the omitted columns. Events have none.
    unchanged: Option<usize>,
    views: Vec<ViewRule>,
    partitions: i32,
}

/// A column that views use.
#[derive(Debug)]
struct Column {
    name: String,
    ty: TypeId,
}

impl Relation {
    /// Creates the views of a table. `schema` is the declared schema of its rows, and `views` refer to its fields by their
    /// indexes, of which `used` contains all; `partitions` is the partition count of `view.log`.
    pub fn new(
        name: impl Into<String>,
        schema: Arc<Schema>,
        used: &BTreeSet<usize>,
        views: Vec<ViewRule>,
        partitions: i32,
    ) -> Self {
        let column = |(at, field): (usize, &Field)| {
            used.contains(&at).then(|| Column {
                name: field.column().to_owned(),
                ty: field.ty,
            })
        };
        let columns = schema.fields().iter().enumerate().map(column).collect();
        let unchanged = schema
            .fields()
            .iter()
            .position(|field| *field.name == *schemas::pg_types::UNCHANGED);
        Relation {
            name: name.into(),
            schema,
            columns,
            unchanged,
            views,
            partitions,
        }
    }

    /// Name of the table or event type.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the views.
    pub fn views(&self) -> impl Iterator<Item = &str> {
        self.views.iter().map(|v| v.name.as_str())
    }

    /// Whether a view uses this column.
    pub fn uses(&self, column: &str) -> bool {
        self.columns.iter().flatten().any(|used| used.name == column)
    }

    /// Names of the views with the versions of their rules.
    pub fn versions(&self) -> impl Iterator<Item = (&str, u64)> {
        self.views.iter().map(|v| (v.name.as_str(), v.version))
    }

    /// Name of the view with the index [`ViewOutput::view`].
    pub fn view(&self, index: usize) -> &str {
        self.views.get(index).map_or("", |v| &v.name)
    }
}

/// One view.
#[derive(Debug, Clone)]
pub struct ViewRule {
    /// Name.
    pub name: String,
    /// Hash of everything that determines the contents of the view. If it changes, the view is rebuilt.
    pub version: u64,
    /// Template of the bucket name.
    pub bucket: Vec<Piece>,
    /// Template of the scope name.
    pub scope: Vec<Piece>,
    /// Condition. A row that does not meet it is in no bucket.
    pub filter: Option<Program>,
    /// Field names on the device, each with the index of its column.
    pub fields: Vec<(String, usize)>,
}

/// Part of the template of a bucket or scope name. Parts are joined by `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Literal text.
    Word(String),
    /// Value of a column, percent-encoded.
    Column(usize),
}

/// Outputs of an evaluation. Reusable: [`ViewOutputs::clear`] keeps the memory.
#[derive(Debug, Default)]
pub struct ViewOutputs {
    rows: Vec<(usize, Range<usize>, i32, Range<usize>)>,
    names: String,
    json: Vec<u8>,
}

/// One row of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewOutput<'a> {
    /// Index of the view in its [`Relation`].
    pub view: usize,
    /// Bucket name.
    pub bucket: &'a str,
    /// Partition of `view.log`.
    pub partition: i32,
    /// Row as JSON.
    pub json: &'a [u8],
}

impl ViewOutputs {
    /// Removes all outputs.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.names.clear();
        self.json.clear();
    }

    /// Number of outputs.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no outputs.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Iterates over the outputs.
    pub fn iter(&self) -> impl Iterator<Item = ViewOutput<'_>> {
        self.rows.iter().map(|(view, bucket, partition, json)| ViewOutput {
            view: *view,
            bucket: self.names.get(bucket.clone()).unwrap_or_default(),
            partition: *partition,
            json: self.json.get(json.clone()).unwrap_or_default(),
        })
    }
}
