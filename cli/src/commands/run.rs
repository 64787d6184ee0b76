//! `trunkline run`: runs one node of the topology.

mod issuers;

use crate::args;
use crate::backends::{self, Backends};
use crate::config::{self, Kafka, NodeConfig};
use crate::connect_api::RunningConnectors;
use crate::data_dir::DataDir;
use crate::node::{self, Plan};
use anyhow::{Context, Result, bail};
use service::{Service, clock};
use std::sync::Arc;
use topology::Role;

/// Runs a node until SIGTERM.
pub fn run(run: &args::Run) -> Result<()> {
    let topology = super::topology::load(&run.topology)?;
    let Some(declared) = topology.node(&run.node) else {
        let known: Vec<&str> = topology.nodes.iter().map(|n| n.name.as_str()).collect();
        bail!(
            "{} has no node `{}`; available: {}",
            run.topology.display(),
            run.node,
            known.join(", ")
        );
    };
    let config = config::read(&run.config)?;
    if let Some(edge) = &config.edge {
        edge::token::reject_development_issuer(edge)
            .context("the edge configuration contains the public key of a `trunkline dev`")?;
    }
    if let Some(edge) = config.edge.as_ref().filter(|_| declared.roles.contains(&Role::Edge)) {
        issuers::check(&topology.memberships, edge)?;
    }
    claim_directories(&declared.roles, &config)?;
    let plan = Plan {
        name: run.node.clone(),
        roles: declared.roles.clone(),
        topology,
        data: config.data_dir,
        admin: config.admin,
        connectors: config.connectors,
        ingest: config.ingest,
        edge: config.edge,
        processors: config.processors,
        registry: node::RegistryListener::of(&config.registry),
        running: RunningConnectors::default(),
    };
    let (kafka, registry) = (Arc::new(config.kafka), Arc::new(config.registry));
    let open = move || open(&kafka, &registry);
    Service::new().run(|tasks| async move {
        let addresses = node::start(plan, open, &tasks).await?;
        tracing::info!(?addresses, "node started");
        Ok::<(), anyhow::Error>(())
    })?;
    Ok(())
}

/// Locks the directories with the stores of the node until the process exits.
fn claim_directories(roles: &[Role], config: &NodeConfig) -> Result<()> {
    let mut claimed = None;
    if roles.iter().any(|role| matches!(role, Role::Processor(_))) {
        claimed = Some(DataDir::claim(&config.data_dir, "`data_dir`")?.keep());
    }
    let edge = config.edge.as_ref().filter(|_| roles.contains(&Role::Edge));
    if let Some(edge) = edge {
        // The edge may use the same directory as the processors of this node.
        let same = claimed.is_some() && std::fs::canonicalize(&edge.data_dir).ok() == claimed;
        if !same {
            DataDir::claim(&edge.data_dir, "`edge.data_dir`")?.keep();
        }
    }
    Ok(())
}

fn open(kafka: &Kafka, registry: &config::Registry) -> Result<Backends> {
    let log = backends::kafka_log(kafka)?;
    let registry = backends::registry(registry, &log)?;
    Ok(Backends::new(log, registry, clock::system(), kafka.replication))
}
