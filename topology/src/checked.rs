//! The checked topology: names are resolved to indexes, conditions are compiled, templates are split into segments.
//!
//! A [`Topology`] is created only if the check found no error, so its indexes are valid.

mod claims;
mod input;
mod processors;

pub use claims::{BUCKETS_MAX, ClaimError, Membership};
pub use input::{Column, Input, Mask};
pub use processors::{Aggregate, AggregateField, Feed, Function, Join, OutputKind, Processor, Side, Window, Work};

pub use crate::resource_names::SYNC_VIEWS;

use crate::expr::Program;
use crate::resource_names::Names;
use crate::template::{self, Part, Template, TooLong};
use schemas::ids::{ConnectorName, EventName, SourceName, TableName, ViewName};
use schemas::schema::Schema;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A checked topology.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Name. The names of topics, consumer groups and transactional ids begin with it.
    pub name: String,
    /// Sources of rows.
    pub sources: Vec<Source>,
    /// Event types, whose records are not table rows.
    pub events: Vec<Event>,
    /// Declarative processors.
    pub processors: Vec<Processor>,
    /// Buckets.
    pub buckets: Vec<Bucket>,
    /// Views.
    pub views: Vec<View>,
    /// Memberships.
    pub memberships: Vec<Membership>,
    /// Declared issuers. If empty, every issuer in the configuration of an edge is accepted.
    pub issuers: Vec<String>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Number of partitions of `view.log`.
    pub view_log_partitions: i32,
    /// Hash of everything that determines which rows a device has: buckets, scopes, views, partitions of `view.log`.
    /// Memberships are not included, because they are evaluated at every poll.
    pub rules_version: u64,
}

/// Kind of a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// Logical replication of PostgreSQL.
    Postgres,
    /// Transactions posted as JSON.
    Http,
}

/// A source of rows: one connector and one topic with one partition.
#[derive(Debug, Clone)]
pub struct Source {
    /// Name of the source and of its connector.
    pub name: SourceName,
    /// Kind of the connector.
    pub kind: SourceKind,
    /// Tables, in the order of the file.
    pub tables: Vec<Table>,
}

impl Source {
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
    /// Published columns, in the order of the file and of the schema's fields.
    pub columns: Vec<Column>,
    /// Key columns as indexes into `columns`; `None` for the primary key, which the connector reads from the database.
    pub key: Option<Vec<usize>>,
    /// Avro schema of the table's records. Its last field, `_unchanged`, is not a column.
    pub schema: Arc<Schema>,
    /// Masked columns, by name.
    pub masks: BTreeMap<String, Mask>,
}

/// An event type, with its own topic.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its name.
    pub name: EventName,
    /// Fields of the schema.
    pub columns: Vec<Column>,
    /// Key fields as indexes into `columns`.
    pub key: Vec<usize>,
    /// Number of partitions of the topic.
    pub partitions: i32,
    /// Avro schema of the records.
    pub schema: Arc<Schema>,
}

/// A declared bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// Template, such as `user:{id}`.
    pub pattern: Template,
    /// Template of the scope; parameters are indexes into the parts of `pattern`.
    pub scope: Vec<Segment>,
}

/// A resolved part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// A literal word.
    Literal(String),
    /// A parameter: index of a column, or of a part of the bucket name.
    Param(usize),
}

impl Bucket {
    /// The scope of the bucket with this name; `None` if the name does not match the template.
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

/// A view.
#[derive(Debug, Clone)]
pub struct View {
    /// Name of the view, as devices receive it.
    pub name: ViewName,
    /// Input.
    pub input: Input,
    /// Fields that are sent to devices, in this order.
    pub fields: Vec<ViewField>,
    /// Bucket: index into [`Topology::buckets`].
    pub bucket: usize,
    /// Template of the bucket name; parameters are columns of the input.
    pub bucket_name: Vec<Segment>,
    /// Template of the scope; parameters are columns of the input.
    pub scope_name: Vec<Segment>,
    /// Condition for rows of the view; `None` for all rows.
    pub filter: Option<Program>,
    /// Hash of everything that determines the contents of the view: input, key, fields, types, bucket, scope, condition.
    pub rules_version: u64,
}

/// A field of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewField {
    /// Column index in the input.
    pub column: usize,
    /// Name on devices.
    pub name: String,
}

impl View {
    /// Appends the bucket name of a row to `out`. `param` returns the text of a column's value, or `None` for null.
    /// Returns false and leaves `out` unchanged if a parameter is null: such a row belongs to no bucket.
    ///
    /// # Errors
    /// [`TooLong`] if the name would exceed [`template::BUCKET_BYTES_MAX`]; `out` is unchanged.
    pub fn write_bucket<'p>(
        &self,
        out: &mut String,
        param: impl FnMut(usize) -> Option<Cow<'p, str>>,
    ) -> Result<bool, TooLong> {
        write_segments(&self.bucket_name, out, param)
    }

    /// Appends the scope of a row to `out`, as [`View::write_bucket`] does for the bucket.
    ///
    /// # Errors
    /// [`TooLong`], as [`View::write_bucket`].
    pub fn write_scope<'p>(
        &self,
        out: &mut String,
        param: impl FnMut(usize) -> Option<Cow<'p, str>>,
    ) -> Result<bool, TooLong> {
        write_segments(&self.scope_name, out, param)
    }

    /// Indexes of all input columns that the view uses (fields, bucket, condition), in ascending order.
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

/// A node: one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Roles.
    pub roles: Vec<Role>,
}

/// A role of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A connector. A connector of kind `http` receives transactions through the node's ingest listener.
    Connector(ConnectorName),
    /// A processor: `sync-views` or a declarative one.
    Processor(String),
    /// The edge, which serves devices.
    Edge,
    /// The ingest listener for events.
    Ingest,
    /// The embedded schema registry.
    Registry,
}

impl fmt::Display for Role {
    /// As written in `runs`.
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
    /// The names of its topics, consumer groups and transactional ids.
    pub fn names(&self) -> Names {
        Names::of(self.name.as_str())
    }

    /// A source by its name.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name.as_str() == name)
    }

    /// An event by its name.
    pub fn event(&self, name: &str) -> Option<&Event> {
        self.events.iter().find(|event| event.name.as_str() == name)
    }

    /// A declarative processor by its name.
    pub fn processor(&self, name: &str) -> Option<&Processor> {
        self.processors.iter().find(|processor| processor.name == name)
    }

    /// The name of an input in `from`: `shop.orders`, `event:order_viewed`, `processor:totals`.
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

    /// Number of partitions of an input's topic.
    pub fn partitions_of(&self, input: Input) -> i32 {
        match input {
            Input::Table { .. } => 1,
            Input::Event(at) => self.events.get(at).map_or(1, |event| event.partitions),
            Input::Processor(at) => self.processors.get(at).map_or(1, |processor| processor.partitions),
        }
    }

    /// Whether a topic of this input has no complete state before first snapshots of tables have ended: a table of a
    /// database, or the output of a processor that reads one.
    pub fn has_snapshot(&self, input: Input) -> bool {
        match input {
            Input::Table { source, .. } => {
                let source = self.sources.get(source);
                source.is_some_and(|source| source.kind == SourceKind::Postgres)
            }
            Input::Event(_) => false,
            Input::Processor(at) => self
                .processors
                .get(at)
                .is_some_and(|processor| self.processor_has_snapshot(processor)),
        }
    }

    /// Like [`Topology::has_snapshot`], for the output of a processor. Records of windows and of joins with events are not
    /// rows of a state.
    pub fn processor_has_snapshot(&self, processor: &Processor) -> bool {
        let feeds = processor.feeds();
        processor.output == OutputKind::Table && feeds.iter().any(|(_, feed)| self.has_snapshot(feed.input))
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The topic of an input.
    pub fn topic_of(&self, input: Input) -> String {
        let names = self.names();
        let topic = match input {
            Input::Table { source, .. } => self
                .sources
                .get(source)
                .map(|source| names.change(source.name.as_str())),
            Input::Event(at) => self.events.get(at).map(|event| names.event(event.name.as_str())),
            Input::Processor(at) => self
                .processors
                .get(at)
                .map(|processor| names.processor(&processor.name)),
        };
        topic.unwrap_or_default()
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

    /// The Avro schema of an input's records, as declared. Its first fields are the columns of the input.
    pub fn schema_of(&self, input: Input) -> Option<&Arc<Schema>> {
        match input {
            Input::Table { source, table } => {
                let table = self.sources.get(source)?.tables.get(table)?;
                Some(&table.schema)
            }
            Input::Event(at) => Some(&self.events.get(at)?.schema),
            Input::Processor(at) => Some(&self.processors.get(at)?.schema),
        }
    }

    /// The scope of the bucket with this name; `None` if the name matches no declared bucket.
    pub fn scope_of(&self, bucket: &str) -> Option<String> {
        self.buckets.iter().find_map(|declared| declared.scope_of(bucket))
    }

    /// The buckets to which a token grants access, sorted and without duplicates.
    ///
    /// # Errors
    /// [`ClaimError`] if there are more than [`BUCKETS_MAX`] buckets, or a bucket name is too long.
    pub fn buckets_of(
        &self,
        issuer: &str,
        claims: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Vec<String>, ClaimError> {
        claims::buckets_of(&self.memberships, issuer, claims)
    }
}

/// Resolves the parameters of a template to indexes; `None` if `index` returns `None` for a parameter.
pub(crate) fn resolve(template: &Template, mut index: impl FnMut(&str) -> Option<usize>) -> Option<Vec<Segment>> {
    let segment = |part: &Part| match part {
        Part::Word(word) => Some(Segment::Literal(word.clone())),
        Part::Param(name, _) => index(name).map(Segment::Param),
    };
    template.parts().iter().map(segment).collect()
}
