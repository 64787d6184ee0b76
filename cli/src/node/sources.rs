//! The roles `connector:<name>`: PostgreSQL and HTTP sources.

use super::context::Context;
use anyhow::Result;
use connectors::source::{Context as SourceContext, OnMismatch, run as run_source};
use connectors::sources::http::HttpSourceHandle;
use connectors::sources::postgres;
use connectors::status::Handle;
use schemas::pg_types::Column;
use topology::{Source, Table};

/// Starts a PostgreSQL connector on its own thread.
pub fn start_postgres(context: &Context, source: &Source, config: &postgres::Config) -> Result<()> {
    let tables = source.tables.iter().map(declared_table).collect();
    let registry = context.backends.registry.clone();
    let connector = postgres::Source::new(&context.names, &source.name, config, tables, registry)?;
    start(context, source, connector, config.on_mismatch);
    Ok(())
}

/// Starts an HTTP source on its own thread. The ingest listener passes posted transactions to the returned handle.
pub fn start_http(context: &Context, source: &Source) -> HttpSourceHandle {
    let table = |table: &Table| connectors::sources::http::DeclaredTable {
        name: table.name.as_str().into(),
        schema: table.schema.clone(),
        key: table.key.clone().unwrap_or_default(),
    };
    let tables = source.tables.iter().map(table).collect();
    let (registry, clock) = (context.backends.registry.clone(), context.backends.clock.clone());
    let topic = topic(context, source);
    let (connector, handle) = connectors::sources::http::Source::new(&source.name, &topic, tables, registry, clock);
    start(context, source, connector, OnMismatch::Stop);
    handle
}

fn start<S>(context: &Context, source: &Source, connector: S, on_mismatch: OnMismatch)
where
    S: connectors::source::Source + Send + 'static,
{
    let name = source.name.to_string();
    let component = context.readiness.register(format!("connector {name}"));
    let source_context = SourceContext {
        name: name.clone(),
        transactional_id: context.names.connector(&name),
        positions_topic: context.names.positions(),
        log: context.backends.log.clone(),
        registry: context.backends.registry.clone(),
        clock: context.backends.clock.clone(),
        runtime: tokio::runtime::Handle::current(),
        handle: Handle::new(&name, component),
        on_mismatch,
    };
    let drain = context.tasks.drain();
    context.tasks.thread(format!("connector-{name}"), move || {
        run_source(connector, &source_context, &drain)
    });
}

fn topic(context: &Context, source: &Source) -> String {
    context.names.change(source.name.as_str())
}

fn declared_table(table: &Table) -> postgres::Declared {
    let key_names = |key: &Vec<usize>| {
        let columns = key.iter().filter_map(|at| table.columns.get(*at));
        columns.map(|column| column.name.clone()).collect()
    };
    postgres::Declared {
        name: table.name.clone(),
        columns: table
            .columns
            .iter()
            .map(|c| Column::new(&c.name, &c.declared, c.nullable))
            .collect(),
        key: table.key.as_ref().map(key_names),
    }
}
