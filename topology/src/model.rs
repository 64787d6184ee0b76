//! The declared graph, as it stands in `topology.toml`.
//!
//! Guarantees: every value keeps its place in the file; nothing is resolved, only typed. What is unknown, missing or
//! of a wrong type is reported and left out, so that the rest can still be checked.
//! Never: reads a file; decides whether a name exists (`check` does).

mod processor;
mod reader;

pub use processor::{Processor, Window};
pub use reader::At;
pub(crate) use reader::inside;

use crate::problem::{Problem, Problems};
use reader::Table as Reader;
use std::ops::Range;
use toml::de::DeTable;

/// Names and texts, in the order of the file.
pub type Entries = Vec<(At<String>, At<String>)>;

/// Everything that one `topology.toml` declares.
#[derive(Debug, Clone, Default)]
pub struct Declared {
    /// `name`: the topology's name; part of consumer groups and transactional ids.
    pub name: Option<At<String>>,
    /// `[[connector]]`: sources of rows.
    pub connectors: Vec<Connector>,
    /// `[[table]]`: the tables of the sources, with the columns that are published.
    pub tables: Vec<Table>,
    /// `[[event]]`: events that are not rows.
    pub events: Vec<Event>,
    /// `[[processor]]`: streams that are made of streams.
    pub processors: Vec<Processor>,
    /// `[view_log]`: the one topic of all views.
    pub view_log: ViewLog,
    /// `[[bucket]]`: kinds of buckets, and their scopes.
    pub buckets: Vec<Bucket>,
    /// `[[view]]`: which rows go into which bucket.
    pub views: Vec<View>,
    /// `[[membership]]`: who may read which bucket.
    pub memberships: Vec<Membership>,
    /// `[[issuer]]`: who issues the devices' tokens, and which claims they carry.
    pub issuers: Vec<Issuer>,
    /// `[[node]]`: processes and what each of them runs.
    pub nodes: Vec<Node>,
}

/// A source of rows. It publishes to the topic `change.<name>`.
#[derive(Debug, Clone)]
pub struct Connector {
    /// `name`: what `from = "<name>.<table>"` refers to.
    pub name: At<String>,
    /// `kind`: `postgres` (logical replication) or `http` (transactions posted as JSON).
    pub kind: At<String>,
}

/// A table of a source.
#[derive(Debug, Clone)]
pub struct Table {
    /// `source`: the connector's name.
    pub source: At<String>,
    /// `name`: `orders`, or `sales.orders` for another schema than `public`.
    pub name: At<String>,
    /// `key`: columns of the row's key. Default: the primary key, which the connector reads at its start; an `http`
    /// source has none to read and must declare it.
    pub key: Option<At<Vec<At<String>>>>,
    /// `columns`: column to PostgreSQL type, `?` behind the type if the column may be null. Only these are published.
    pub columns: At<Entries>,
}

/// A kind of event. Its topic is `event.<name>`; it is ingested by HTTP.
#[derive(Debug, Clone)]
pub struct Event {
    /// `name`: what `from = "event:<name>"` refers to.
    pub name: At<String>,
    /// `schema`: an Avro record schema, relative to the topology file.
    pub schema: Option<At<String>>,
    /// `fields`: the short form instead of `schema`: field to PostgreSQL type, as a table's `columns`.
    pub fields: Option<At<Entries>>,
    /// `key`: fields of the record's key. One key's events stay in order.
    pub key: Option<At<Vec<At<String>>>>,
    /// `partitions` of the topic. Default: 12.
    pub partitions: Option<At<i64>>,
    /// Where the table stands.
    pub span: Range<usize>,
}

/// `view.log`.
#[derive(Debug, Clone, Default)]
pub struct ViewLog {
    /// `partitions`: fixed for life, at most 128. Default: 16.
    pub partitions: Option<At<i64>>,
}

/// A kind of bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// `name`: words and parameters with `:` between them, such as `user:{id}`.
    pub name: At<String>,
    /// `scope`: the unit of order and of atomicity; a constant, or made of the bucket's own parameters. Default: the
    /// bucket itself.
    pub scope: Option<At<String>>,
}

/// A view: rows of one input, put into buckets.
#[derive(Debug, Clone)]
pub struct View {
    /// `name`, as devices see it.
    pub name: At<String>,
    /// `from`: `<source>.<table>`, `event:<name>` or `processor:<name>` (`topic:<name>`: later).
    pub from: At<String>,
    /// `bucket`: a bucket's pattern with columns as its parameters, such as `user:{customer_id}`. A row with a null
    /// parameter is in no bucket.
    pub bucket: At<String>,
    /// `fields`: the columns that devices get, in this order. Default: all.
    pub fields: Option<At<Vec<At<String>>>>,
    /// `rename`: column to the name that devices get it under.
    pub rename: Option<At<Entries>>,
    /// `where`: an expression (CEL) over the columns; rows for which it is false are not in the view.
    pub filter: Option<At<String>>,
    /// `key`: of an event view, must be the event's key.
    pub key: Option<At<Vec<At<String>>>>,
}

/// A membership: from a token's claims, or (later) from data.
#[derive(Debug, Clone)]
pub struct Membership {
    /// `bucket`: a bucket's pattern with claims as its parameters, such as `user:{sub}`. A claim that is a list gives
    /// a bucket for each element.
    pub bucket: At<String>,
    /// `issuer`: only tokens of this issuer. Default: of any.
    pub issuer: Option<At<String>>,
    /// `from`: rows that grant (later).
    pub from: Option<At<String>>,
    /// `principal`: to whom they grant (later).
    pub principal: Option<At<String>>,
}

/// An issuer of tokens. Where its keys are is process configuration; here stands its alias, which is part of a
/// principal, and what its tokens say.
#[derive(Debug, Clone)]
pub struct Issuer {
    /// `name`: the alias.
    pub name: At<String>,
    /// `claims` that its tokens carry besides `sub`; memberships may use these.
    pub claims: Option<At<Vec<At<String>>>>,
}

/// A process.
#[derive(Debug, Clone)]
pub struct Node {
    /// `name`, as in `trunkline run <name>`.
    pub name: At<String>,
    /// `runs`: `connector:<name>`, `processor:<name>`, `edge`, `ingest`, `registry`.
    pub runs: At<Vec<At<String>>>,
}

impl Declared {
    /// Reads the text of a topology file.
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
    let span = table.span.clone();
    table.finish();
    // Without columns the name stays known, so that a view of the table is not a problem of its own.
    let columns = columns.unwrap_or(At {
        value: Vec::new(),
        span,
    });
    Some(Table {
        source: source?,
        name: name?,
        key,
        columns,
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
