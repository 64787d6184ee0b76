//! A node: one process with the roles that the topology assigns to it, with one log and one registry.
//!
//! [`start`] opens the admin listener first, so that `/readyz` explains what the node waits for. Then it connects to the
//! log and the registry (retrying while they are unavailable), creates the topics, and starts the roles.

mod announcement;
mod context;
mod declarative;
mod ingest;
mod processor;
mod registry_listener;
mod sources;
mod sync_views;
mod topics;

pub use registry_listener::RegistryListener;
pub use sources::declared_tables;

use crate::backends::Backends;
use crate::config::Processors;
use crate::connect_api::{self, RunningConnectors, Worker};
use crate::issuers_api::{self, EdgeIssuers};
use crate::operations_api::{self, SharedOperations};
use crate::state_api::{self, SharedProcessors};
use announcement::Announcement;
use anyhow::{Context as _, Result};
use connectors::sources::postgres;
use context::Context;
use event_log::{ErrorAction, SharedEventLog};
use service::admin::{self, Admin, Routes};
use service::{AttemptError, Component, Drain, Readiness, RetryPolicy, Tasks, chain, retry_blocking, telemetry};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use topology::wiring::Wiring;
use topology::{Names, Role, SourceKind, Topology};
use views::rules::Rules;

/// What a node runs, and its configuration.
pub struct Plan {
    /// Name.
    pub name: String,
    /// The topology.
    pub topology: Topology,
    /// Roles to run.
    pub roles: Vec<Role>,
    /// Data directory of the state stores.
    pub data: PathBuf,
    /// Admin listener.
    pub admin: admin::Config,
    /// PostgreSQL connectors by name.
    pub connectors: BTreeMap<String, postgres::Config>,
    /// Ingest listener.
    pub ingest: Option<connectors::ingest::Config>,
    /// Edge.
    pub edge: Option<edge::Config>,
    /// Settings of processors.
    pub processors: Processors,
    /// Listener of the embedded registry.
    pub registry: Option<RegistryListener>,
    /// The connectors of the process, which are added when they start.
    pub running: RunningConnectors,
}

/// Addresses of a node's listeners.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Admin listener.
    pub admin: SocketAddr,
    /// Ingest listener.
    pub ingest: Option<SocketAddr>,
    /// Edge listener.
    pub edge: Option<SocketAddr>,
    /// Embedded registry.
    pub registry: Option<SocketAddr>,
}

/// Starts the roles of a node as tasks and returns the addresses of its listeners. `open` connects to the log and the
/// registry; it is called again while they are unavailable.
pub async fn start(
    plan: Plan,
    open: impl Fn() -> Result<Backends> + Send + Sync + Clone + 'static,
    tasks: &Tasks,
) -> Result<Addresses> {
    let readiness = Readiness::new();
    let metrics = telemetry::metrics();
    metrics.keep_up(tasks);
    let admin = Admin {
        readiness: readiness.clone(),
        metrics,
        drain: tasks.drain(),
    };
    let (operations, processors) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
    let worker = Worker {
        id: plan.name.clone(),
        connectors: plan.running.clone(),
    };
    let edge = plan.edge.as_ref().filter(|_| plan.roles.contains(&Role::Edge));
    let edge = edge.map(|edge| EdgeIssuers::of(&plan.name, &plan.topology, edge));
    let routes = routes(operations.clone(), processors.clone(), worker).merge(issuers_api::routes(edge));
    let admin = admin.serve(tasks, &plan.admin, routes)?;
    let component = readiness.register("log");
    component.not_ready(
        "connecting to the log and the registry",
        "wait; if this persists, check the addresses of the brokers and the registry",
    );
    let (declared, drain) = (Declared::of(&plan.topology), tasks.drain());
    let opened = tokio::task::spawn_blocking(move || {
        let backends = open_with_retry(&open, &declared, &component, &drain)?;
        Ok::<_, anyhow::Error>((backends, component))
    });
    let (mut backends, component) = opened.await??;
    backends.advertised = plan.admin.url(admin);
    assert!(operations.set(backends.operations()).is_ok(), "the log is opened once");
    assert!(
        processors.set(backends.running.clone()).is_ok(),
        "the log is opened once"
    );
    let announcement = Announcement {
        node: &plan.name,
        instance: plan.processors.instance.as_deref().unwrap_or(&plan.name),
        topic: plan.topology.names().members(),
    };
    announcement::start(announcement, &backends, tasks);
    watch(backends.log.clone(), component, tasks);
    let context = Context {
        node: plan.name.clone(),
        names: plan.topology.names(),
        backends,
        processors: plan.processors.clone(),
        data: plan.data.clone(),
        tasks: tasks.clone(),
        readiness,
    };
    start_roles(plan, &context, admin).await
}

/// What the topology declares about the log.
struct Declared {
    names: Names,
    wiring: Wiring,
}

impl Declared {
    fn of(topology: &Topology) -> Self {
        Declared {
            names: topology.names(),
            wiring: Wiring::of(topology),
        }
    }
}

/// Routes of the admin listener in addition to those that every process has.
fn routes(operations: SharedOperations, processors: SharedProcessors, worker: Worker) -> Routes {
    operations_api::routes(operations)
        .merge(state_api::routes(processors))
        .merge(connect_api::routes(worker))
}

/// Connects and creates the topics. Retries both while the log or the registry is unavailable.
fn open_with_retry(
    open: &impl Fn() -> Result<Backends>,
    declared: &Declared,
    component: &Component,
    drain: &Drain,
) -> Result<Backends> {
    let backends = retry_blocking(RetryPolicy::START, drain, || {
        let create = |backends: &Backends| topics::create(backends, &declared.names, &declared.wiring);
        let opened = open().and_then(|backends| create(&backends).map(|()| backends));
        opened.map_err(|error| {
            if !is_retryable(&error) {
                return AttemptError::Permanent(error);
            }
            let cause = format!("{error:#}");
            tracing::warn!(%cause, "log or registry unavailable; retrying");
            component.not_ready(cause, "start the brokers and the registry, or fix their addresses");
            AttemptError::Temporary
        })
    })?;
    let backends = backends.context("stopped while waiting for the log and the registry")?;
    component.ready();
    Ok(backends)
}

/// Updates the readiness of the log, because a role that waits in a call reports an outage only after its timeout.
fn watch(log: SharedEventLog, component: Component, tasks: &Tasks) {
    let drain = tasks.drain();
    component.set_detail(log.notice().map(|notice| notice.text));
    tasks.spawn("log-watch", async move {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = drain.started() => return Ok::<(), anyhow::Error>(()),
                _ = every.tick() => {}
            }
            match log.check_reachable() {
                Ok(()) => component.ready(),
                Err(error) => component.not_ready(chain(&error), fix(&error)),
            }
        }
    });
}

/// Returns the fix of an error of the log.
fn fix(error: &event_log::Error) -> &'static str {
    match error {
        event_log::Error::StorageUnavailable { fix, .. } => fix,
        event_log::Error::Storage { .. } => "restart the process",
        _ => "start the brokers, or fix their addresses",
    }
}

fn is_retryable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let log = cause.downcast_ref::<event_log::Error>().map(event_log::Error::action);
        let registry = cause.downcast_ref::<registry::Error>().map(registry::Error::action);
        log.or(registry) == Some(ErrorAction::Retry)
    })
}

async fn start_roles(plan: Plan, context: &Context, admin: SocketAddr) -> Result<Addresses> {
    let mut addresses = Addresses {
        admin,
        ingest: None,
        edge: None,
        registry: None,
    };
    let rules = Rules::compile(Arc::new(plan.topology.clone()));
    let handles = start_connectors(&plan, context)?;
    if plan.roles.contains(&Role::Ingest) || !handles.is_empty() {
        let config = plan.ingest.clone().with_context(|| {
            format!(
                "node {} has the role ingest or an http connector, but no [ingest] configuration; add [ingest] with \
                 listen and credentials",
                plan.name
            )
        })?;
        addresses.ingest = Some(ingest::start(context, &plan.topology, config, handles).await?);
    }
    start_processors(&plan, context, &rules);
    if plan.roles.contains(&Role::Edge) {
        let config = plan.edge.clone().with_context(|| {
            format!(
                "node {} has the role edge, but no [edge] configuration; add [edge] with listen and issuers",
                plan.name
            )
        })?;
        let edge = edge::EdgeContext {
            config,
            log: context.backends.log.clone(),
            view_log: context.names.view_log(),
            group: context.names.edge(&context.node),
            memberships: Arc::new(rules),
            clock: context.backends.clock.clone(),
        };
        addresses.edge = Some(edge::start(edge, &context.tasks, &context.readiness).await?);
    }
    if let Some(listener) = plan.registry.filter(|_| plan.roles.contains(&Role::Registry)) {
        addresses.registry = Some(listener.start(&context.tasks, &context.backends.registry)?);
    }
    Ok(addresses)
}

/// Starts the connectors and returns the handles of HTTP sources by topic, named as in the URL of a post.
fn start_connectors(
    plan: &Plan,
    context: &Context,
) -> Result<BTreeMap<String, connectors::sources::http::HttpSourceHandle>> {
    let (mut handles, mut started) = (BTreeMap::new(), Vec::new());
    for role in &plan.roles {
        let Role::Connector(name) = role else { continue };
        let source = plan.topology.source(name.as_str());
        let source = source.expect("the topology check resolves the connectors of a node's roles");
        match source.kind {
            SourceKind::Http => {
                let topic = context.names.change(source.name.as_str());
                let posted_to = context.names.local(&topic).to_owned();
                let (running, posts) = sources::start_http(context, source);
                started.push(running);
                handles.insert(posted_to, posts);
            }
            SourceKind::Postgres => {
                let config = plan.connectors.get(name.as_str()).with_context(|| {
                    format!(
                        "node {} runs connector {name}, but has no configuration for it; add [connectors.{name}] \
                         with a url",
                        plan.name
                    )
                })?;
                let declared = sources::DeclaredSource {
                    topology: &plan.topology,
                    source,
                };
                started.push(sources::start_postgres(context, declared, config)?);
            }
        }
    }
    plan.running.set(started);
    Ok(handles)
}

fn start_processors(plan: &Plan, context: &Context, rules: &Rules) {
    let topology = Arc::new(plan.topology.clone());
    for role in &plan.roles {
        match role {
            Role::Processor(name) if name == topology::SYNC_VIEWS => sync_views::start(context, rules),
            Role::Processor(name) => declarative::start(context, &topology, name),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
