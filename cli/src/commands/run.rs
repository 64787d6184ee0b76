//! `trunkline run`: one node of the topology.

use crate::args;
use crate::backends::{self, Backends};
use crate::config::{self, Kafka, NodeConfig};
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
            "{} declares no node `{}`; there are: {}",
            run.topology.display(),
            run.node,
            known.join(", ")
        );
    };
    let config = config::read(&run.config)?;
    if let Some(edge) = &config.edge {
        edge::token::refuse_development(edge).context("a node does not take the keys of `trunkline dev`")?;
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
        registry_listen: config.registry.listen,
    };
    let (kafka, registry) = (Arc::new(config.kafka), Arc::new(config.registry));
    let open = move || open(&kafka, &registry);
    Service::new().run(|tasks| async move {
        let addresses = node::start(plan, open, &tasks).await?;
        tracing::info!(?addresses, "the node runs");
        Ok::<(), anyhow::Error>(())
    })?;
    Ok(())
}

/// Locks the directories in which the node keeps stores, for the life of the process.
fn claim_directories(roles: &[Role], config: &NodeConfig) -> Result<()> {
    let mut claimed = None;
    if roles.iter().any(|role| matches!(role, Role::Processor(_))) {
        claimed = Some(DataDir::claim(&config.data_dir, "`data_dir`")?.keep());
    }
    let edge = config.edge.as_ref().filter(|_| roles.contains(&Role::Edge));
    if let Some(edge) = edge {
        // The edge may share the directory of the node's processors.
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
