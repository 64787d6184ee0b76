//! The roles `connector:<name>`: PostgreSQL and HTTP sources.

use super::context::Context;
use crate::connect_api::RunningConnector;
use anyhow::Result;
use connectors::consumers::{Consumer, Consumers};
use connectors::source::{Context as SourceContext, OnMismatch, run as run_source};
use connectors::sources::http::HttpSourceHandle;
use connectors::sources::postgres;
use connectors::status::Handle;
use schemas::ids::SourceName;
use schemas::pg_types::Column;
use std::collections::BTreeSet;
use topology::wiring::Wiring;
use topology::{Role, Source, Table, Topology};

/// A source of a topology.
#[derive(Clone, Copy)]
pub struct DeclaredSource<'t> {
    pub topology: &'t Topology,
    pub source: &'t Source,
}

/// Starts a PostgreSQL connector on its own thread.
pub fn start_postgres(
    context: &Context,
    declared: DeclaredSource<'_>,
    config: &postgres::Config,
) -> Result<RunningConnector> {
    let source = declared.source;
    let tables = declared_tables(source);
    let registry = context.backends.registry.clone();
    let connector = postgres::Source::new(&context.names, &source.name, config, tables, registry)?;
    let objects = connector.objects();
    let connector = if config.snapshot_lag_max == 0 {
        connector
    } else {
        let log = context.backends.log.clone();
        let (consumers, watcher) = Consumers::watch(log, consumers(context, declared), config.snapshot_lag_max);
        let drain = context.tasks.drain();
        context
            .tasks
            .thread(format!("consumers-{}", source.name), move || watcher.run(&drain));
        connector.with_consumers(consumers)
    };
    let handle = start(context, &ConnectorName::of(source), connector, config.on_mismatch);
    Ok(running(context, source, handle, Some(objects)))
}

/// The consumers of a source's records and of the views that are derived from them.
fn consumers(context: &Context, DeclaredSource { topology, source }: DeclaredSource<'_>) -> Vec<Consumer> {
    let names = topology.names();
    let change = names.change(source.name.as_str());
    let wiring = Wiring::of(topology);
    let inputs = wiring.processors.iter().flat_map(|processor| &processor.inputs);
    let readers = inputs.filter(|input| input.topic == change).map(|input| Consumer {
        group: input.group.clone(),
        topic: input.topic.clone(),
    });
    let nodes = topology.nodes.iter().filter(|node| node.roles.contains(&Role::Edge));
    let nodes = nodes.map(|node| node.name.as_str());
    // `dev` runs all roles in one node, which is not declared.
    let nodes: BTreeSet<&str> = nodes.chain([context.node.as_str()]).collect();
    let edges = nodes.into_iter().map(|node| Consumer {
        group: names.edge(node),
        topic: names.view_log(),
    });
    readers.chain(edges).collect()
}

/// Starts an HTTP source on its own thread. The ingest listener passes posted transactions to the returned handle.
pub fn start_http(context: &Context, source: &Source) -> (RunningConnector, HttpSourceHandle) {
    let table = |table: &Table| connectors::sources::http::DeclaredTable {
        name: table.name.as_str().into(),
        schema: table.schema.clone(),
        key: table.key.clone().unwrap_or_default(),
    };
    let tables = source.tables.iter().map(table).collect();
    let (registry, clock) = (context.backends.registry.clone(), context.backends.clock.clone());
    let topic = topic(context, source);
    let (connector, posts) = connectors::sources::http::Source::new(&source.name, &topic, tables, registry, clock);
    let handle = start(context, &ConnectorName::of(source), connector, OnMismatch::Stop);
    (running(context, source, handle, None), posts)
}

/// Starts the source that stores events with an idempotency key. It belongs to this process: its keys are not shared with
/// other processes, and a process with the same instance name takes it over.
pub fn start_events(context: &Context) -> HttpSourceHandle {
    let instance = context.processors.instance.as_deref().unwrap_or(&context.node);
    // A declared connector cannot have a name with a dot.
    let name = ConnectorName {
        name: format!("ingest.{instance}"),
        component: "ingest events".to_owned(),
    };
    let (registry, clock) = (context.backends.registry.clone(), context.backends.clock.clone());
    let source = SourceName::new("ingest").expect("the name is valid");
    let (connector, posts) = connectors::sources::http::Source::new(&source, "", Vec::new(), registry, clock);
    start(context, &name, connector, OnMismatch::Stop);
    posts
}

/// The names of a connector.
struct ConnectorName {
    /// In positions, metrics and the transactional id.
    name: String,
    /// In readiness.
    component: String,
}

impl ConnectorName {
    fn of(source: &Source) -> Self {
        Self {
            name: source.name.to_string(),
            component: format!("connector {}", source.name),
        }
    }
}

fn running(
    context: &Context,
    source: &Source,
    handle: Handle,
    objects: Option<postgres::ServerObjects>,
) -> RunningConnector {
    RunningConnector {
        name: source.name.to_string(),
        handle,
        topic: topic(context, source),
        tables: source.tables.iter().map(|table| table.name.to_string()).collect(),
        objects,
    }
}

fn start<S>(context: &Context, name: &ConnectorName, connector: S, on_mismatch: OnMismatch) -> Handle
where
    S: connectors::source::Source + Send + 'static,
{
    let component = context.readiness.register(name.component.as_str());
    let name = &name.name;
    let source_context = SourceContext {
        name: name.clone(),
        transactional_id: context.names.connector(name),
        transaction_timeout: connectors::source::TRANSACTION_TIMEOUT,
        positions_topic: context.names.positions(),
        log: context.backends.log.clone(),
        registry: context.backends.registry.clone(),
        clock: context.backends.clock.clone(),
        runtime: tokio::runtime::Handle::current(),
        handle: Handle::new(name, component),
        on_mismatch,
        replication: context.backends.replication,
    };
    let (handle, drain) = (source_context.handle.clone(), context.tasks.drain());
    context.tasks.thread(format!("connector-{name}"), move || {
        run_source(connector, &source_context, &drain);
    });
    handle
}

fn topic(context: &Context, source: &Source) -> String {
    context.names.change(source.name.as_str())
}

/// The tables of a PostgreSQL source.
pub fn declared_tables(source: &Source) -> Vec<postgres::Declared> {
    source.tables.iter().map(declared_table).collect()
}

fn declared_table(table: &Table) -> postgres::Declared {
    let key_names = |key: &Vec<usize>| {
        let columns = key.iter().filter_map(|at| table.columns.get(*at));
        columns.map(|column| column.name.clone()).collect()
    };
    let columns = table
        .columns
        .iter()
        .map(|c| Column::new(&c.name, &c.declared, c.nullable));
    let key = table.key.as_ref().map(key_names);
    let mut declared = postgres::Declared::new(table.name.clone(), columns.collect(), key);
    declared.masks.clone_from(&table.masks);
    declared
}
