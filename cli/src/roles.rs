//! The roles of a node, each started over the same log and registry.
//!
//! Guarantees: what a role needs from outside and does not reach yet makes readiness red and is tried again; what is
//! configured wrongly fails the start. Never: a role that knows which others run here.

mod declared;

pub use declared::run_declared;

use crate::backends::Backends;
use crate::config::Processors;
use anyhow::{Context, Result};
use connectors::ingest::{self, EventTopic, Ingest};
use connectors::source::{Context as SourceContext, OnMismatch, run as run_source};
use connectors::sources::http::Inlet;
use connectors::sources::postgres;
use connectors::status::Handle;
use event_log::ErrorAction;
use processors::sync_views::{self, SyncViews, Unavailable};
use registry::SharedRegistry;
use schemas::events::{Event as _, Stale, TransactionBegin, TransactionEnd, ViewRow};
use schemas::ids::SchemaId;
use schemas::pg_types::Column;
use service::{Readiness, Tasks, backoff::Backoff, chain};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use streams::{Application, FirstStart, SubTopology, TaskInfo};
use topology::wiring::Wiring;
use topology::{SYNC_VIEWS, Source, Topology, VIEW_LOG};
use views::record::SchemaIds;
use views::rules::Rules;

/// Starts sync-views: registers the control records, then runs its threads.
pub fn sync_views(
    home: &Backends,
    rules: &Rules,
    processors: &Processors,
    node: &str,
    data: &Path,
    tasks: &Tasks,
    readiness: &Readiness,
) {
    let mut config = runtime_config(home, processors, SYNC_VIEWS, node, data);
    config.touches_view_log = true;
    let (home, rules, owner, readiness) = (home.clone(), rules.clone(), tasks.clone(), readiness.clone());
    tasks.thread("sync-views-schemas", move || {
        let component = readiness.register("sync-views schemas");
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let drain = owner.drain();
        loop {
            match prepare(&home) {
                Ok((schemas, horizon_ms)) => {
                    component.ready();
                    let application = application(&home, &rules, schemas, horizon_ms);
                    let (log, clock) = (home.log.clone(), home.clock.clone());
                    let handle = streams::run(application, config, log, clock, &owner, &readiness);
                    home.running.add(handle, None);
                    return Ok(());
                }
                Err(error) => {
                    let cause = format!("{error:#}");
                    tracing::warn!(%cause, "sync-views cannot start yet");
                    component.not_ready(
                        cause,
                        format!("check the registry {} and the log", home.registry.describe_self()),
                    );
                }
            }
            if !backoff.pause_blocking(&drain) {
                return Ok::<(), anyhow::Error>(());
            }
        }
    });
}

/// How this node runs an application.
fn runtime_config(home: &Backends, processors: &Processors, name: &str, node: &str, data: &Path) -> streams::Config {
    let mut config = streams::Config::new(processors.instance.as_deref().unwrap_or(node), data.join("processors"));
    config.threads = processors.threads;
    config.engine = processors.store.into();
    config.store_memory_bytes = processors.store_memory_mib << 20;
    config.group_protocol = processors.group_protocol.into();
    config.guarantee = processors.guarantee_of(name);
    config.replication = home.replication;
    config.standby_replicas = processors.standby_replicas;
    config.advertised = home.advertised.clone();
    config
}

/// Ids of the control records' schemas, and how long deleted rows are remembered.
fn prepare(home: &Backends) -> Result<(SchemaIds, i64)> {
    let register = |name: &str, text: &str| -> Result<u32> {
        let subject = schemas::wire::subject(VIEW_LOG, name);
        let id = home
            .registry
            .register(&subject, text)
            .with_context(|| format!("register {subject}"))?;
        Ok(id.0)
    };
    let schemas = SchemaIds {
        row: register(ViewRow::NAME, ViewRow::AVSC)?,
        closing: register(TransactionEnd::NAME, TransactionEnd::AVSC)?,
        open: register(TransactionBegin::NAME, TransactionBegin::AVSC)?,
        stale: register(Stale::NAME, Stale::AVSC)?,
    };
    let info = home.log.describe(VIEW_LOG)?.context("topic view.log does not exist")?;
    let retention = info.number("delete.retention.ms").unwrap_or(7 * DAY_MS);
    Ok((schemas, retention - DAY_MS.min(retention / 7)))
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

fn application(home: &Backends, rules: &Rules, schemas: SchemaIds, horizon_ms: i64) -> Application {
    let partitions = rules.partitions();
    let fetch = fetch(home.registry.clone());
    let line = |line: &Arc<views::rules::SourceRules>| {
        let (line, fetch) = (line.clone(), fetch.clone());
        let topic = line.topic().to_owned();
        SubTopology {
            name: topic.clone(),
            inputs: vec![topic.clone()],
            store: topic,
            first_start: FirstStart::Earliest,
            factory: Arc::new(move |task: &TaskInfo| {
                let topic_id = task.inputs.first().map(|i| i.id.to_string()).unwrap_or_default();
                let writer = format!("{SYNC_VIEWS}/{}/{topic_id}/{}", line.topic(), task.id.partition);
                let config = sync_views::Config {
                    rules: line.clone(),
                    writer,
                    topic_id,
                    view_log: VIEW_LOG.into(),
                    partitions,
                    schemas,
                    horizon_ms,
                    fetch: fetch.clone(),
                };
                Box::new(SyncViews::new(config))
            }),
        }
    };
    Application {
        name: SYNC_VIEWS.into(),
        subtopologies: rules.lines().iter().map(line).collect(),
    }
}

/// Schemas by id, for a processor: out of reach is tried again, unknown is the record's fault.
fn fetch(registry: SharedRegistry) -> sync_views::FetchSchema {
    Arc::new(move |id| match registry.by_id(SchemaId(id)) {
        Ok(text) => Ok(text.to_string()),
        Err(error) => {
            let fate = match error {
                registry::Error::SchemaNotFound { .. } => ErrorAction::DeadLetter,
                _ => ErrorAction::Retry,
            };
            Err(Unavailable {
                reason: chain(&error),
                fate,
            })
        }
    })
}

/// Starts a postgres connector on a thread of its own.
pub fn postgres(
    home: &Backends,
    source: &Source,
    config: &postgres::Config,
    tasks: &Tasks,
    readiness: &Readiness,
) -> Result<()> {
    let declared = source.tables.iter().map(declared).collect();
    let connector = postgres::Source::new(&source.name, config, declared, home.registry.clone())?;
    connect(home, source, connector, config.on_mismatch, tasks, readiness);
    Ok(())
}

/// Starts an http source on a thread of its own; its posts come in through what is returned.
pub fn posted(home: &Backends, source: &Source, tasks: &Tasks, readiness: &Readiness) -> Inlet {
    let table = |t: &topology::Table| connectors::sources::http::DeclaredTable {
        name: t.name.as_str().into(),
        schema: t.schema.clone(),
        key: t.key.clone().unwrap_or_default(),
    };
    let declared = source.tables.iter().map(table).collect();
    let (connector, inlet) =
        connectors::sources::http::Source::new(&source.name, declared, home.registry.clone(), home.clock.clone());
    connect(home, source, connector, OnMismatch::Stop, tasks, readiness);
    inlet
}

fn connect<S: connectors::source::Source + Send + 'static>(
    home: &Backends,
    source: &Source,
    connector: S,
    on_mismatch: OnMismatch,
    tasks: &Tasks,
    readiness: &Readiness,
) {
    let name = source.name.to_string();
    let context = SourceContext {
        name: name.clone(),
        log: home.log.clone(),
        registry: home.registry.clone(),
        clock: home.clock.clone(),
        runtime: tokio::runtime::Handle::current(),
        handle: Handle::new(&name, readiness.register(format!("connector {name}"))),
        on_mismatch,
    };
    let drain = tasks.drain();
    tasks.thread(format!("connector-{name}"), move || {
        run_source(connector, &context, &drain)
    });
}

fn declared(table: &topology::Table) -> postgres::Declared {
    let key = table.key.as_ref();
    postgres::Declared {
        name: table.name.clone(),
        columns: table
            .columns
            .iter()
            .map(|c| Column::new(&c.name, &c.declared, c.nullable))
            .collect(),
        key: key.map(|k| {
            k.iter()
                .filter_map(|at| table.columns.get(*at))
                .map(|c| c.name.clone())
                .collect()
        }),
    }
}

/// Starts the backends' listener; the events' schemas are registered first.
pub async fn ingest(
    home: &Backends,
    topology: &Topology,
    config: ingest::Config,
    sources: BTreeMap<String, Inlet>,
    tasks: &Tasks,
) -> Result<SocketAddr> {
    let listener = service::http::bind(config.listen).await?;
    let address = listener.local_addr()?;
    let (registry, declared) = (home.registry.clone(), topology.events.clone());
    let drain = tasks.drain();
    let register = tokio::task::spawn_blocking(move || register_events(&registry, &declared, &drain));
    let events = register.await??;
    let router = Ingest {
        log: home.log.clone(),
        events,
        sources,
        config,
    }
    .router();
    service::http::serve(tasks, "ingest-listener", listener, router, Duration::from_secs(5));
    Ok(address)
}

/// Registers the events' schemas, again and again while the registry is out of reach.
fn register_events(
    registry: &SharedRegistry,
    events: &[topology::Event],
    drain: &service::Drain,
) -> Result<Vec<EventTopic>> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut done = Vec::new();
    for event in events {
        let topic: Arc<str> = event.topic().into();
        let subject = schemas::wire::subject(&topic, event.schema.name());
        let id = loop {
            match registry.register(&subject, event.schema.text()) {
                Ok(id) => break id,
                Err(error) if error.action() == ErrorAction::Retry => {
                    tracing::warn!(%subject, "the registry is out of reach: {}", chain(&error));
                    anyhow::ensure!(
                        backoff.pause_blocking(drain),
                        "stopped while the registry was out of reach"
                    );
                }
                Err(error) => return Err(error).with_context(|| format!("register the schema of {topic}")),
            }
        };
        done.push(EventTopic {
            topic,
            schema: event.schema.clone(),
            id,
            key: event.key.clone(),
        });
    }
    Ok(done)
}

/// Creates the topics that must exist before anything runs.
pub fn create_topics(home: &Backends, wiring: &Wiring) -> Result<()> {
    let specs: Vec<event_log::TopicSpec> = wiring
        .topics
        .iter()
        .filter(|t| t.is_created_at_start())
        .map(|t| spec(t, home.replication))
        .collect();
    let made = home
        .log
        .create_topics(&specs)
        .context("create the topics of the topology")?;
    for (spec, _) in specs.iter().zip(made).filter(|(_, made)| !made) {
        let found = home.log.describe(&spec.name)?;
        if let Some(info) = found.filter(|i| i.partitions != spec.partitions) {
            anyhow::bail!(
                "topic {} has {} partitions and the topology says {}; a topic's count is for life: mend the topology",
                spec.name,
                info.partitions,
                spec.partitions
            );
        }
    }
    Ok(())
}

fn spec(topic: &topology::wiring::Topic, replication: Option<i32>) -> event_log::TopicSpec {
    use topology::wiring::Cleanup;
    let cleanup = match topic.cleanup {
        Cleanup::Delete => event_log::Cleanup::Delete,
        Cleanup::Compact => event_log::Cleanup::Compact,
    };
    let mut config = event_log::TopicConfig::new(cleanup);
    if topic.log_append_time {
        config.timestamps = event_log::TimestampPolicy::LogAppendTime;
    }
    config.retention_ms = topic.retention_ms;
    config.retention_bytes = topic.retention_bytes;
    config.min_compaction_lag_ms = topic.min_compaction_lag_ms;
    config.delete_retention_ms = topic.delete_retention_ms;
    event_log::TopicSpec {
        name: topic.name.clone(),
        partitions: topic.partitions,
        replication,
        config,
    }
}

/// The topology's rules.
pub fn rules(topology: Topology) -> Rules {
    Rules::compile(Arc::new(topology))
}
