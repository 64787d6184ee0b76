//! The checked graph: every name resolved, every condition compiled, every template in segments.
//!
//! Guarantees: a [`Topology`] exists only if its check found no error, so that indexes in it point at what they say;
//! the same text gives the same rules version in every release that means the same by it.
//! Never: a value that still has to be looked up by name.

mod claims;
mod processors;

pub use claims::{BUCKETS_MAX, ClaimError};
pub use processors::{Aggregate, AggregateField, Feed, Function, Join, OutputKind, Processor, Side, Window, Work};

use crate::expr::Program;
use crate::template::{self, Part, Template, TooLong};
use schemas::ids::{ConnectorName, EventName, SourceName, TableName, ViewName};
use schemas::schema::Schema;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The topic of all views.
pub const VIEW_LOG: &str = "view.log";
/// The name of the built-in processor that writes views.
pub const SYNC_VIEWS: &str = "sync-views";

/// A checked topology.
#[derive(Debug, Clone)]
pub struct Topology {
    /// The topology's name; part of consumer groups and transactional ids.
    pub name: String,
    /// Sources of rows.
    pub sources: Vec<Source>,
    /// Events that are not rows.
    pub events: Vec<Event>,
    /// Streams that are made of streams.
    pub processors: Vec<Processor>,
    /// Kinds of buckets.
    pub buckets: Vec<Bucket>,
    /// Views.
    pub views: Vec<View>,
    /// Who may read which bucket.
    pub memberships: Vec<Membership>,
    /// Issuers that are declared; empty = any issuer that process configuration knows.
    pub issuers: Vec<String>,
    /// Processes.
    pub nodes: Vec<Node>,
    /// Partitions of `view.log`, at most 128.
    pub view_log_partitions: i32,
    /// Hash of all that decides which rows a device has: buckets, scopes, views, partitions of `view.log`. Cursors
    /// hold it; memberships are not part of it, because they are asked anew at every poll.
    pub rules_version: u64,
}

/// What kind of connector feeds a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// Logical replication.
    Postgres,
    /// Transactions posted as JSON.
    Http,
}

/// A source of rows: one connector, one topic of one partition.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, and the connector's.
    pub name: SourceName,
    /// The connector's kind.
    pub kind: SourceKind,
    /// Its tables, in the order of the file.
    pub tables: Vec<Table>,
}

impl Source {
    /// Its topic: `change.<name>`.
    pub fn topic(&self) -> String {
        format!("change.{}", self.name)
    }

    /// A table by its name.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name.as_str() == name)
    }
}

/// A table of a source.
#[derive(Debug, Clone)]
pub struct Table {
    /// `orders`, or `sales.orders`.
    pub name: TableName,
    /// The published columns, in the order of the file, which is the order of the schema's fields.
    pub columns: Vec<Column>,
    /// The key's columns as indexes into `columns`; `None` = the primary key, which the connector reads.
    pub key: Option<Vec<usize>>,
    /// The Avro schema of its records on the source's topic. Its last field is `_unchanged`, which is no column.
    pub schema: Arc<Schema>,
}

/// A kind of event: one topic.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its name.
    pub name: EventName,
    /// The schema's fields.
    pub columns: Vec<Column>,
    /// The key's fields as indexes into `columns`.
    pub key: Vec<usize>,
    /// Partitions of its topic.
    pub partitions: i32,
    /// The Avro schema of its records.
    pub schema: Arc<Schema>,
}

impl Event {
    /// Its topic: `event.<name>`.
    pub fn topic(&self) -> String {
        format!("event.{}", self.name)
    }
}

/// A column of a table, or a field of an event.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type: PostgreSQL's own name (`int8`, `numeric`), or Avro's word for an event's field.
    pub declared: String,
    /// Whether it may be null.
    pub nullable: bool,
}

/// A kind of bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// Its pattern: `user:{id}`.
    pub pattern: Template,
    /// Its scope's pattern; the parameters are indexes into the pattern's parts.
    pub scope: Vec<Segment>,
}

/// A part of a template, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// A word, as it stands.
    Literal(String),
    /// A parameter: the index of a column, or of a part of the bucket's name.
    Param(usize),
}

impl Bucket {
    /// The scope of a bucket by its name; `None` if the name is not one of this kind.
    pub fn scope_of(&self, name: &str) -> Option<String> {
        let parts = self.pattern.split(name)?;
        let mut scope = String::new();
        for segment in &self.scope {
            if !scope.is_empty() {
                scope.push(':');
            }
            scope.push_str(match segment {
                Segment::Literal(word) => word,
                Segment::Param(at) => parts.get(*at)?,
            });
        }
        Some(scope)
    }
}

/// What a view's rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// A table: indexes into `sources` and its `tables`.
    Table {
        /// Index into [`Topology::sources`].
        source: usize,
        /// Index into [`Source::tables`].
        table: usize,
    },
    /// An event: index into [`Topology::events`]. A row's key is the event's key: the newest event of a key is shown.
    Event(usize),
    /// What a processor writes: index into [`Topology::processors`]. A row's key is the record's.
    Processor(usize),
}

/// A view.
#[derive(Debug, Clone)]
pub struct View {
    /// Its name, as devices see it. Names are unique.
    pub name: ViewName,
    /// Where its rows come from.
    pub input: Input,
    /// What devices get of a row, in this order.
    pub fields: Vec<ViewField>,
    /// The kind of its bucket: index into [`Topology::buckets`].
    pub bucket: usize,
    /// The bucket's name, its parameters columns of the input.
    pub bucket_name: Vec<Segment>,
    /// The scope's name, its parameters columns of the input.
    pub scope_name: Vec<Segment>,
    /// Which rows are in the view; `None` = all.
    pub filter: Option<Program>,
    /// Hash of all that decides what the view holds: input, key, fields, types, bucket, scope, condition.
    pub rules_version: u64,
}

/// A field of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewField {
    /// The column's index in the input.
    pub column: usize,
    /// The name that devices get it under.
    pub name: String,
}

impl View {
    /// Writes the row's bucket to the end of `out`: `param` gives a column's value as text, or `None` for null.
    /// Returns false, and leaves `out` as it was, if a parameter is null: such a row is in no bucket.
    ///
    /// # Errors
    /// [`TooLong`] if the name would exceed [`template::BUCKET_BYTES_MAX`]; `out` is left as it was.
    pub fn write_bucket<'p>(
        &self,
        out: &mut String,
        param: impl FnMut(usize) -> Option<Cow<'p, str>>,
    ) -> Result<bool, TooLong> {
        write_segments(&self.bucket_name, out, param)
    }

    /// Writes the row's scope, as [`View::write_bucket`] does the bucket.
    ///
    /// # Errors
    /// [`TooLong`], as there.
    pub fn write_scope<'p>(
        &self,
        out: &mut String,
        param: impl FnMut(usize) -> Option<Cow<'p, str>>,
    ) -> Result<bool, TooLong> {
        write_segments(&self.scope_name, out, param)
    }

    /// Indexes of all columns of the input that the view looks at (fields, bucket, condition), ascending.
    pub fn columns(&self) -> Vec<usize> {
        let params = self.bucket_name.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::Param(column) => Some(*column),
        });
        let filter = self.filter.iter().flat_map(|program| program.columns().iter().copied());
        let mut all: Vec<usize> = self
            .fields
            .iter()
            .map(|field| field.column)
            .chain(params)
            .chain(filter)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn write_segments<'p>(
    segments: &[Segment],
    out: &mut String,
    mut param: impl FnMut(usize) -> Option<Cow<'p, str>>,
) -> Result<bool, TooLong> {
    let start = out.len();
    for segment in segments {
        if out.len() > start {
            out.push(':');
        }
        match segment {
            Segment::Literal(word) => out.push_str(word),
            Segment::Param(at) => match param(*at) {
                Some(value) => template::escape_into(out, &value),
                None => {
                    out.truncate(start);
                    return Ok(false);
                }
            },
        }
        if out.len() - start > template::BUCKET_BYTES_MAX {
            out.truncate(start);
            return Err(TooLong);
        }
    }
    Ok(true)
}

/// A membership from claims.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The kind of bucket: index into [`Topology::buckets`].
    pub bucket: usize,
    /// The bucket's name, its parameters claims.
    pub template: Template,
    /// Only tokens of this issuer; `None` = of any.
    pub issuer: Option<String>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it runs.
    pub roles: Vec<Role>,
}

/// What a process can run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A connector. One of kind `http` takes its transactions on the node's ingest listener.
    Connector(ConnectorName),
    /// A processor, such as `sync-views`.
    Processor(String),
    /// The edge: devices.
    Edge,
    /// The ingest listener for events.
    Ingest,
    /// The embedded schema registry.
    Registry,
}

impl fmt::Display for Role {
    /// As it stands in a node's `runs`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Connector(name) => write!(f, "connector:{name}"),
            Role::Processor(name) => write!(f, "processor:{name}"),
            Role::Edge => f.write_str("edge"),
            Role::Ingest => f.write_str("ingest"),
            Role::Registry => f.write_str("registry"),
        }
    }
}

impl Topology {
    /// A source by its name.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name.as_str() == name)
    }

    /// An event by its name.
    pub fn event(&self, name: &str) -> Option<&Event> {
        self.events.iter().find(|event| event.name.as_str() == name)
    }

    /// A declared processor by its name.
    pub fn processor(&self, name: &str) -> Option<&Processor> {
        self.processors.iter().find(|processor| processor.name == name)
    }

    /// What an input is called where it is read: `shop.orders`, `event:order_viewed`, `processor:totals`.
    pub fn from_of(&self, input: Input) -> String {
        let named = match input {
            Input::Table { source, table } => self.sources.get(source).and_then(|source| {
                let table = source.tables.get(table)?;
                Some(format!("{}.{}", source.name, table.name))
            }),
            Input::Event(at) => self.events.get(at).map(|event| format!("event:{}", event.name)),
            Input::Processor(at) => self.processors.get(at).map(|p| format!("processor:{}", p.name)),
        };
        named.unwrap_or_default()
    }

    /// Partitions of an input's topic.
    pub fn partitions_of(&self, input: Input) -> i32 {
        match input {
            Input::Table { .. } => 1,
            Input::Event(at) => self.events.get(at).map_or(1, |event| event.partitions),
            Input::Processor(at) => self.processors.get(at).map_or(1, |processor| processor.partitions),
        }
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The topic of an input.
    pub fn topic_of(&self, input: Input) -> String {
        match input {
            Input::Table { source, .. } => self.sources.get(source).map(Source::topic).unwrap_or_default(),
            Input::Event(event) => self.events.get(event).map(Event::topic).unwrap_or_default(),
            Input::Processor(at) => self.processors.get(at).map(Processor::topic).unwrap_or_default(),
        }
    }

    /// The columns of an input.
    pub fn columns_of(&self, input: Input) -> &[Column] {
        match input {
            Input::Table { source, table } => self
                .sources
                .get(source)
                .and_then(|s| s.tables.get(table))
                .map(|t| t.columns.as_slice()),
            Input::Event(event) => self.events.get(event).map(|event| event.columns.as_slice()),
            Input::Processor(at) => self.processors.get(at).map(|processor| processor.columns.as_slice()),
        }
        .unwrap_or_default()
    }

    /// The scope of a bucket by its name; `None` if no declared bucket has such a name.
    pub fn scope_of(&self, bucket: &str) -> Option<String> {
        self.buckets.iter().find_map(|declared| declared.scope_of(bucket))
    }

    /// The buckets that a token opens, sorted, each once.
    ///
    /// # Errors
    /// [`ClaimError`] if the claims open more than [`BUCKETS_MAX`] buckets, or one with too long a name.
    pub fn buckets_of(
        &self,
        issuer: &str,
        claims: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Vec<String>, ClaimError> {
        claims::buckets_of(&self.memberships, issuer, claims)
    }
}

/// Resolves a template's parameters to indexes; `None` for a parameter that `index` does not know.
pub(crate) fn resolve(template: &Template, mut index: impl FnMut(&str) -> Option<usize>) -> Option<Vec<Segment>> {
    let segment = |part: &Part| match part {
        Part::Word(word) => Some(Segment::Literal(word.clone())),
        Part::Param(name, _) => index(name).map(Segment::Param),
    };
    template.parts().iter().map(segment).collect()
}
