//! Declared processors as a node's roles: aggregates and joins of the topology.
//!
//! Guarantees: the schema of what a processor writes is registered before its first record. Never: a record without it.

use super::{DAY_MS, fetch, runtime_config};
use crate::backends::Backends;
use crate::config::Processors;
use anyhow::{Context, Result};
use processors::declared;
use service::{Readiness, Tasks, backoff::Backoff};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use topology::{Processor, Topology};

/// How long deleted rows of an input are remembered: as long as its topic holds records of them, and a day.
const HORIZON_MS: i64 = 8 * DAY_MS;

/// Starts a declared processor: registers its schema, then runs its threads.
#[expect(
    clippy::too_many_arguments,
    reason = "what a role of a node stands on, as the other roles take it"
)]
pub fn run_declared(
    home: &Backends,
    topology: &Arc<Topology>,
    name: &str,
    processors: &Processors,
    node: &str,
    data: &Path,
    tasks: &Tasks,
    readiness: &Readiness,
) {
    let Some(processor) = topology.processor(name).cloned().map(Arc::new) else {
        return;
    };
    let config = runtime_config(home, processors, name, node, data);
    let (home, topology, owner, readiness) = (home.clone(), topology.clone(), tasks.clone(), readiness.clone());
    tasks.thread(format!("{name}-schema"), move || {
        let component = readiness.register(format!("{} schema", processor.name));
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let drain = owner.drain();
        loop {
            match register(&home, &processor) {
                Ok(schema_id) => {
                    component.ready();
                    let application = declared::application(&declared::Config {
                        topology,
                        processor: processor.clone(),
                        schema_id,
                        horizon_ms: HORIZON_MS,
                        fetch: fetch(home.registry.clone()),
                    });
                    let (log, clock) = (home.log.clone(), home.clock.clone());
                    let handle = streams::run(
                        application,
                        config,
                        log,
                        streams::Host {
                            clock,
                            tasks: &owner,
                            readiness: &readiness,
                        },
                    );
                    home.running.add(handle, Some(processor));
                    return Ok(());
                }
                Err(error) => {
                    let cause = format!("{error:#}");
                    tracing::warn!(%cause, processor = processor.name, "a processor cannot start yet");
                    component.not_ready(cause, format!("check the registry {}", home.registry.describe_self()));
                }
            }
            if !backoff.pause_blocking(&drain) {
                return Ok::<(), anyhow::Error>(());
            }
        }
    });
}

fn register(home: &Backends, processor: &Processor) -> Result<u32> {
    let subject = schemas::wire::subject(&processor.topic(), processor.schema.name());
    let id = home.registry.register(&subject, processor.schema.text());
    Ok(id.with_context(|| format!("register {subject}"))?.0)
}
