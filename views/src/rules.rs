//! Compiled views: from a row of a table (or an event) to the rows of views, each in its bucket.
//!
//! Guarantees: the same row under the same rules gives the same outputs, byte for byte; a view that does not match, or
//! whose bucket has a null parameter, gives none. Never: a look at other rows.

mod bound;
mod compile;

pub use bound::{BindError, Bound, EvaluateError, Evaluated};
pub use compile::Rules;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use topology::expr::Program;

/// The rules of one input topic.
#[derive(Debug)]
pub struct SourceRules {
    topic: String,
    event: Option<String>,
    relations: BTreeMap<String, Arc<Relation>>,
}

impl SourceRules {
    /// Rules over a topic: of a source's tables, or of one event when `event` names it.
    pub fn new(topic: impl Into<String>, event: Option<String>, relations: Vec<Relation>) -> Self {
        let relations = relations.into_iter().map(|r| (r.name.clone(), Arc::new(r))).collect();
        SourceRules {
            topic: topic.into(),
            event,
            relations,
        }
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The event's name, when the topic is an event's.
    pub fn event(&self) -> Option<&str> {
        self.event.as_deref()
    }

    /// The views over a table or event; `None` when no view reads it.
    pub fn relation(&self, name: &str) -> Option<&Arc<Relation>> {
        self.relations.get(name)
    }
}

/// The views over one table or event.
#[derive(Debug)]
pub struct Relation {
    name: String,
    /// The declared columns in order; the name of each that some view uses.
    columns: Vec<Option<String>>,
    views: Vec<ViewRule>,
    partitions: i32,
}

impl Relation {
    /// Views over a table with these declared columns (`None`: no view uses it), into a `view.log` of so many
    /// partitions.
    pub fn new(name: impl Into<String>, columns: Vec<Option<String>>, views: Vec<ViewRule>, partitions: i32) -> Self {
        Relation {
            name: name.into(),
            columns,
            views,
            partitions,
        }
    }

    /// Table or event.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of its views.
    pub fn views(&self) -> impl Iterator<Item = &str> {
        self.views.iter().map(|v| v.name.as_str())
    }

    /// Name of a view by its index in [`ViewOutput::view`].
    pub fn view(&self, index: usize) -> &str {
        self.views.get(index).map_or("", |v| &v.name)
    }
}

/// One view.
#[derive(Debug, Clone)]
pub struct ViewRule {
    /// Name.
    pub name: String,
    /// The bucket's name.
    pub bucket: Vec<Piece>,
    /// The scope's name.
    pub scope: Vec<Piece>,
    /// Condition; a row that does not fulfil it is in no bucket.
    pub filter: Option<Program>,
    /// Names on the device, each with the index of its column.
    pub fields: Vec<(String, usize)>,
}

/// A part of a bucket's or scope's name; parts are joined by `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A word as it stands.
    Word(String),
    /// The value of a column, percent-escaped.
    Column(usize),
}

/// The rows that a row gives. One value serves many rows and keeps its memory.
#[derive(Debug, Default)]
pub struct ViewOutputs {
    rows: Vec<(usize, Range<usize>, i32, Range<usize>)>,
    names: String,
    json: Vec<u8>,
}

/// One row of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewOutput<'a> {
    /// Index of the view.
    pub view: usize,
    /// Bucket name.
    pub bucket: &'a str,
    /// Partition of `view.log`.
    pub partition: i32,
    /// The JSON for the device.
    pub json: &'a [u8],
}

impl ViewOutputs {
    /// Empties it.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.names.clear();
        self.json.clear();
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows.
    pub fn iter(&self) -> impl Iterator<Item = ViewOutput<'_>> {
        self.rows.iter().map(|(view, bucket, partition, json)| ViewOutput {
            view: *view,
            bucket: self.names.get(bucket.clone()).unwrap_or_default(),
            partition: *partition,
            json: self.json.get(json.clone()).unwrap_or_default(),
        })
    }
}
