//! The contents of `topology.toml` before they are checked.
//!
//! Every value keeps its position in the file; names are not resolved. Unknown keys, missing keys and values of a wrong
//! type are reported and omitted, so that the rest can be checked.

mod processor;
mod reader;

pub use processor::{Processor, Window};
pub(crate) use reader::inside;
pub use reader::{At, Entries};

use crate::problem::{Problem, Problems};
use reader::Table as Reader;
use std::ops::Range;
use toml::de::DeTable;

/// The declarations of a `topology.toml`.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// `name`: name of the topology; part of consumer groups and transactional ids.
    pub name: Option<At<String>>,
    /// `[[connector]]`: sources of rows.
    pub connectors: Vec<Connector>,
    /// `[[table]]`: tables of the sources, with their published columns.
    pub tables: Vec<Table>,
    /// `[[event]]`: event types, whose records are not table rows.
    pub events: Vec<Event>,
    /// `[[processor]]`: declarative processors.
    pub processors: Vec<Processor>,
    /// `[view_log]`: the topic of all views.
    pub view_log: ViewLog,
    /// `[[bucket]]`: buckets and their scopes.
    pub buckets: Vec<Bucket>,
    /// `[[view]]`: which rows are in which bucket.
    pub views: Vec<View>,
    /// `[[membership]]`: which claims grant access to which bucket.
    pub memberships: Vec<Membership>,
    /// `[[issuer]]`: issuers of tokens, and their claims.
    pub issuers: Vec<Issuer>,
    /// `[[node]]`: processes and their roles.
    pub nodes: Vec<Node>,
}

/// A connector. It publishes to the topic `<topology>.change.<name>`.
#[derive(Debug, Clone)]
pub struct Connector {
    /// `name`, used in `from = "<name>.<table>"`.
    pub name: At<String>,
    /// `kind`: `postgres` (logical replication) or `http` (transactions posted as JSON).
    pub kind: At<String>,
}

/// A table of a source.
#[derive(Debug, Clone)]
pub struct Table {
    /// `source`: name of the connector.
    pub source: At<String>,
    /// `name`: `orders`, or `sales.orders` for a table outside the schema `public`.
    pub name: At<String>,
    /// `key`: key columns. Default for PostgreSQL: the primary key, which the connector reads at start. Required for
    /// tables of an `http` source.
    pub key: Option<At<Vec<At<String>>>>,
    /// `columns`: column to PostgreSQL type, with `?` for nullable columns. Only these columns are published.
    pub columns: At<Entries>,
    /// `mask`: column to the replacement of its values: `null`, `hash` or `partial`. Default: none.
    pub mask: Option<At<Entries>>,
}

/// A kind of event. It is posted by HTTP and written to the topic `<topology>.event.<name>`.
#[derive(Debug, Clone)]
pub struct Event {
    /// `name`, used in `from = "event:<name>"`.
    pub name: At<String>,
    /// `schema`: path of an Avro record schema, relative to the topology file.
    pub schema: Option<At<String>>,
    /// `fields`: alternative to `schema`: field to PostgreSQL type, as `columns` of a table.
    pub fields: Option<At<Entries>>,
    /// `key`: fields of the record key. Events with the same key stay in order.
    pub key: Option<At<Vec<At<String>>>>,
    /// `partitions` of the topic. Default: 12.
    pub partitions: Option<At<i64>>,
    /// Byte range of the TOML table in the topology file.
    pub span: Range<usize>,
}

/// `view.log`.
#[derive(Debug, Clone, Default)]
pub struct ViewLog {
    /// `partitions`, at most 128; cannot change after the first start. Default: 16.
    pub partitions: Option<At<i64>>,
}

/// A bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// `name`: words and parameters separated by `:`, such as `user:{id}`.
    pub name: At<String>,
    /// `scope`: unit of order and atomicity; a constant, or a template with parameters of the bucket. Default: the bucket
    /// itself.
    pub scope: Option<At<String>>,
}

/// A view: rows of one input in buckets.
#[derive(Debug, Clone)]
pub struct View {
    /// `name` of the view, as devices receive it.
    pub name: At<String>,
    /// `from`: `<source>.<table>`, `event:<name>` or `processor:<name>`.
    pub from: At<String>,
    /// `bucket`: template of a bucket with columns as parameters, such as `user:{customer_id}`. A row with a null
    /// parameter is in no bucket.
    pub bucket: At<String>,
    /// `fields`: columns that are sent to devices, in this order. Default: all.
    pub fields: Option<At<Vec<At<String>>>>,
    /// `rename`: column to its name on devices.
    pub rename: Option<At<Entries>>,
    /// `where`: CEL condition over the columns; rows for which it is false are not in the view.
    pub filter: Option<At<String>>,
    /// `key` of a view of an event type; must be the key of the event type.
    pub key: Option<At<Vec<At<String>>>>,
}

/// A membership: claims that grant access to buckets.
#[derive(Debug, Clone)]
pub struct Membership {
    /// `bucket`: template of a bucket with claims as parameters, such as `user:{sub}`. A list claim grants access to one
    /// bucket per element.
    pub bucket: At<String>,
    /// `issuer`: only tokens of this issuer. Default: any issuer.
    pub issuer: Option<At<String>>,
    /// `from`: rows that grant access; not supported.
    pub from: Option<At<String>>,
    /// `principal`: user to whom a row grants access; not supported.
    pub principal: Option<At<String>>,
}

/// An issuer of tokens. Its keys are part of the configuration of edges.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// `name`: alias of the issuer; part of a principal.
    pub name: At<String>,
    /// `claims` of its tokens besides `sub`, which memberships may use.
    pub claims: Option<At<Vec<At<String>>>>,
}

/// A node: one process.
#[derive(Debug, Clone)]
pub struct Node {
    /// `name`, used in `trunkline run <name>`.
    pub name: At<String>,
    /// `runs`: `connector:<name>`, `processor:<name>`, `edge`, `ingest`, `registry`.
    pub runs: At<Vec<At<String>>>,
}

impl Declared {
    /// Parses the text of a topology file.
    pub(crate) fn parse(text: &str, problems: &Problems) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            problems.add(
                Problem::error(error.span().unwrap_or(0..0), error.message().to_string())
                    .label("the TOML syntax error is here")
                    .help("fix the syntax; the other checks run after that"),
            );
        }
        if problems.errors() > 0 {
            return Declared::default();
        }
        let root = Reader::root(&root, problems);
        let declared = Declared {
            name: root.required("name", "\"shop\""),
            connectors: root.tables("connector").into_iter().filter_map(connector).collect(),
            tables: root.tables("table").into_iter().filter_map(table).collect(),
            events: root.tables("event").into_iter().filter_map(event).collect(),
            processors: root
                .tables("processor")
                .into_iter()
                .filter_map(processor::processor)
                .collect(),
            view_log: root.table("view_log").map(view_log).unwrap_or_default(),
            buckets: root.tables("bucket").into_iter().filter_map(bucket).collect(),
            views: root.tables("view").into_iter().filter_map(view).collect(),
            memberships: root.tables("membership").into_iter().filter_map(membership).collect(),
            issuers: root.tables("issuer").into_iter().filter_map(issuer).collect(),
            nodes: root.tables("node").into_iter().filter_map(node).collect(),
        };
        root.finish();
        declared
    }
}

fn connector(mut table: Reader<'_, '_>) -> Option<Connector> {
    let name = table.required("name", "\"shop\"");
    table.called(name.as_ref());
    let kind = table.required("kind", "\"postgres\"");
    table.finish();
    Some(Connector {
        name: name?,
        kind: kind?,
    })
}

fn table(mut table: Reader<'_, '_>) -> Option<Table> {
    let name = table.required("name", "\"orders\"");
    table.called(name.as_ref());
    let source = table.required("source", "\"shop\"");
    let key = table.texts("key");
    table.expect("columns", "{ id = \"int8\", note = \"text?\" }");
    let columns = table.map("columns");
    let mask = table.map("mask");
    let span = table.span.clone();
    table.finish();
    // A table without columns is kept, so that its views are not reported as views of an unknown input.
    let columns = columns.unwrap_or(At {
        value: Vec::new(),
        span,
    });
    Some(Table {
        source: source?,
        name: name?,
        key,
        columns,
        mask,
    })
}

fn event(mut table: Reader<'_, '_>) -> Option<Event> {
    let name = table.required("name", "\"order_viewed\"");
    table.called(name.as_ref());
    let schema = table.text("schema");
    let fields = table.map("fields");
    let key = table.texts("key");
    let partitions = table.integer("partitions");
    let span = table.span.clone();
    table.finish();
    Some(Event {
        name: name?,
        schema,
        fields,
        key,
        partitions,
        span,
    })
}

fn view_log(table: Reader<'_, '_>) -> ViewLog {
    let partitions = table.integer("partitions");
    table.finish();
    ViewLog { partitions }
}

fn bucket(mut table: Reader<'_, '_>) -> Option<Bucket> {
    let name = table.required("name", "\"user:{id}\"");
    table.called(name.as_ref());
    let scope = table.text("scope");
    table.finish();
    Some(Bucket { name: name?, scope })
}

fn view(mut table: Reader<'_, '_>) -> Option<View> {
    let name = table.required("name", "\"orders\"");
    table.called(name.as_ref());
    let from = table.required("from", "\"shop.orders\"");
    let bucket = table.required("bucket", "\"user:{customer_id}\"");
    let fields = table.texts("fields");
    let rename = table.map("rename");
    let filter = table.text("where");
    let key = table.texts("key");
    table.finish();
    Some(View {
        name: name?,
        from: from?,
        bucket: bucket?,
        fields,
        rename,
        filter,
        key,
    })
}

fn membership(mut table: Reader<'_, '_>) -> Option<Membership> {
    let bucket = table.required("bucket", "\"user:{sub}\"");
    table.called(bucket.as_ref());
    let issuer = table.text("issuer");
    let from = table.text("from");
    let principal = table.text("principal");
    table.finish();
    Some(Membership {
        bucket: bucket?,
        issuer,
        from,
        principal,
    })
}

fn issuer(mut table: Reader<'_, '_>) -> Option<Issuer> {
    let name = table.required("name", "\"customers\"");
    table.called(name.as_ref());
    let claims = table.texts("claims");
    table.finish();
    Some(Issuer { name: name?, claims })
}

fn node(mut table: Reader<'_, '_>) -> Option<Node> {
    let name = table.required("name", "\"edge-1\"");
    table.called(name.as_ref());
    table.expect("runs", "[\"edge\"]");
    let runs = table.texts("runs");
    table.finish();
    Some(Node {
        name: name?,
        runs: runs?,
    })
}
