//! A node: the roles that a topology gives it, over one log and registry, with the operators' listener beside them.
//!
//! Guarantees: topics exist before a role starts; while the log is out of reach the node waits, red and saying so.
//! Never: a role that was not asked for.

use crate::backends::Backends;
use crate::config::Processors;
use crate::roles;
use anyhow::{Context, Result};
use connectors::ingest;
use connectors::sources::postgres;
use event_log::SharedEventLog;
use service::admin::{self, Admin};
use service::{Component, Readiness, Tasks, backoff::Backoff, chain, telemetry};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use topology::wiring::Wiring;
use topology::{Role, SourceKind, Topology};
use views::rules::Rules;

/// What a node runs, and with what.
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The topology.
    pub topology: Topology,
    /// Its roles.
    pub roles: Vec<Role>,
    /// Stores.
    pub data: PathBuf,
    /// Operators' listener.
    pub admin: admin::Config,
    /// Postgres connectors.
    pub connectors: BTreeMap<String, postgres::Config>,
    /// Backends' listener.
    pub ingest: Option<ingest::Config>,
    /// Devices' listener.
    pub edge: Option<edge::Config>,
    /// Processors.
    pub processors: Processors,
    /// Where the embedded registry is served.
    pub registry_listen: Option<SocketAddr>,
}

/// Where a node's listeners listen.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Operators.
    pub admin: SocketAddr,
    /// Backends.
    pub ingest: Option<SocketAddr>,
    /// Devices.
    pub edge: Option<SocketAddr>,
    /// Registry.
    pub registry: Option<SocketAddr>,
}

/// Starts a node's roles as tasks and returns where it listens. `open` connects to the log and the registry, and is
/// tried again while they are out of reach.
pub async fn start(
    plan: Plan,
    open: impl Fn() -> Result<Backends> + Send + Sync + Clone + 'static,
    tasks: &Tasks,
) -> Result<Addresses> {
    let readiness = Readiness::new();
    let metrics = telemetry::metrics();
    metrics.keep_up(tasks);
    let wiring = Wiring::of(&plan.topology);
    let found = Arc::new(std::sync::OnceLock::new());
    let admin = Admin {
        readiness: readiness.clone(),
        metrics,
        drain: tasks.drain(),
    };
    let late = found.clone();
    let operations = axum::Router::new().fallback(move |request: axum::extract::Request| {
        let late: Arc<std::sync::OnceLock<axum::Router>> = late.clone();
        async move {
            use axum::response::IntoResponse;
            match late.get() {
                Some(router) => tower::ServiceExt::oneshot(router.clone(), request)
                    .await
                    .into_response(),
                None => (axum::http::StatusCode::SERVICE_UNAVAILABLE, "the log is not open yet\n").into_response(),
            }
        }
    });
    let admin = admin.serve(tasks, &plan.admin, operations).await?;
    let component = readiness.register("log");
    component.not_ready(
        "not connected yet",
        "wait; if it stays, check the brokers and the registry",
    );
    let drain = tasks.drain();
    let home = tokio::task::spawn_blocking(move || {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let opened = open().and_then(|home| roles::create_topics(&home, &wiring).map(|()| home));
            match opened {
                Ok(home) => {
                    component.ready();
                    return Ok((home, component));
                }
                Err(error) if is_passing(&error) => {
                    let cause = format!("{error:#}");
                    tracing::warn!(%cause, "the log or the registry is out of reach; trying again");
                    component.not_ready(cause, "start the brokers and the registry, or mend their addresses");
                    anyhow::ensure!(backoff.pause_blocking(&drain), "stopped while the log was out of reach");
                }
                Err(error) => return Err(error),
            }
        }
    });
    let (mut home, component) = home.await??;
    home.advertised = plan.admin.url(admin);
    let _ = found.set(home.operator().router().merge(home.running.clone().router()));
    watch(home.log.clone(), component, tasks);
    start_roles(plan, &home, tasks, &readiness, admin).await
}

/// Makes the log's readiness follow whether it is in reach: a role in the middle of a call does not say so by itself.
fn watch(log: SharedEventLog, component: Component, tasks: &Tasks) {
    let drain = tasks.drain();
    tasks.spawn("log-watch", async move {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = drain.started() => return Ok::<(), anyhow::Error>(()),
                _ = every.tick() => {}
            }
            match log.check_reach() {
                Ok(()) => component.ready(),
                Err(error) => component.not_ready(chain(&error), "start the brokers, or mend their addresses"),
            }
        }
    });
}

/// Whether an error will pass by itself.
fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<event_log::Error>()
            .is_some_and(|e| e.action() == event_log::ErrorAction::Retry)
            || cause
                .downcast_ref::<registry::Error>()
                .is_some_and(|e| e.action() == event_log::ErrorAction::Retry)
    })
}

fn start_processors(plan: &Plan, home: &Backends, rules: &Rules, tasks: &Tasks, readiness: &Readiness) {
    let topology = Arc::new(plan.topology.clone());
    for role in &plan.roles {
        let Role::Processor(name) = role else { continue };
        let (processors, node, data) = (&plan.processors, plan.name.as_str(), plan.data.as_path());
        if name == topology::SYNC_VIEWS {
            roles::sync_views(home, rules, processors, node, data, tasks, readiness);
        } else {
            roles::run_declared(home, &topology, name, processors, node, data, tasks, readiness);
        }
    }
}

async fn start_roles(
    plan: Plan,
    home: &Backends,
    tasks: &Tasks,
    readiness: &Readiness,
    admin: SocketAddr,
) -> Result<Addresses> {
    let mut addresses = Addresses {
        admin,
        ingest: None,
        edge: None,
        registry: None,
    };
    let rules = roles::rules(plan.topology.clone());
    let mut inlets = BTreeMap::new();
    for role in &plan.roles {
        let Role::Connector(name) = role else { continue };
        let source = plan
            .topology
            .source(name.as_str())
            .context("a role's connector is declared")?;
        match source.kind {
            SourceKind::Http => drop(inlets.insert(source.topic(), roles::posted(home, source, tasks, readiness))),
            SourceKind::Postgres => {
                let missing = || {
                    format!(
                        "node {} runs connector {name}: give its [connectors.{name}] a url",
                        plan.name
                    )
                };
                let config = plan.connectors.get(name.as_str()).with_context(missing)?;
                roles::postgres(home, source, config, tasks, readiness)?;
            }
        }
    }
    if plan.roles.contains(&Role::Ingest) || !inlets.is_empty() {
        let missing = || {
            format!(
                "node {} takes posts: configure [ingest] with listen and credentials",
                plan.name
            )
        };
        let config = plan.ingest.clone().with_context(missing)?;
        addresses.ingest = Some(roles::ingest(home, &plan.topology, config, inlets, tasks).await?);
    }
    start_processors(&plan, home, &rules, tasks, readiness);
    if plan.roles.contains(&Role::Edge) {
        let missing = || {
            format!(
                "node {} is an edge: configure [edge] with listen and issuers",
                plan.name
            )
        };
        let config = plan.edge.clone().with_context(missing)?;
        let parts = edge::Parts {
            config,
            log: home.log.clone(),
            memberships: Arc::new(rules.clone()),
            clock: home.clock.clone(),
        };
        addresses.edge = Some(edge::start(parts, tasks, readiness).await?);
    }
    if let Some(listen) = plan.registry_listen.filter(|_| plan.roles.contains(&Role::Registry)) {
        let listener = service::http::bind(listen).await?;
        addresses.registry = Some(listener.local_addr()?);
        let routes = registry::rest::router(home.registry.clone());
        service::http::serve(tasks, "registry-listener", listener, routes, Duration::from_secs(2));
    }
    Ok(addresses)
}
