//! The roles `processor:<name>` of declarative processors: aggregates and joins of the topology.

use super::context::{Context, DAY_MS};
use super::processor;
use anyhow::{Context as _, Result};
use processors::declarative;
use schemas::events::{Event as _, Loaded};
use std::sync::Arc;
use topology::{Processor, Topology};

/// How long deleted input rows stay in the state: the topics' retention of 7 days, plus one day.
const HORIZON_MS: i64 = 8 * DAY_MS;

/// Registers the schema of the processor's output, then runs its stream threads.
pub fn start(context: &Context, topology: &Arc<Topology>, name: &str) {
    let processor = topology.processor(name).cloned().map(Arc::new);
    let processor = processor.expect("the topology check resolves the processors of a node's roles");
    let config = processor::config(context, name);
    let (prepared, topology, declaration) = (context.clone(), topology.clone(), processor.clone());
    processor::start(context, &format!("{name} schema"), config, Some(processor), move || {
        let schema_id = register_schema(
            &prepared,
            &declaration,
            declaration.schema.name(),
            declaration.schema.text(),
        )?;
        let loaded_schema_id = register_schema(&prepared, &declaration, Loaded::NAME, Loaded::AVSC)?;
        Ok(vec![declarative::application(&declarative::Config {
            topology: topology.clone(),
            processor: declaration.clone(),
            schema_id,
            loaded_schema_id,
            horizon_ms: HORIZON_MS,
            sweep_step: processors::declarative::StepLimits::default(),
            fetch: processor::fetch_schema(prepared.backends.registry.clone()),
        })])
    });
}

fn register_schema(context: &Context, processor: &Processor, name: &str, text: &str) -> Result<u32> {
    let topic = context.names.processor(&processor.name);
    let subject = schemas::wire::subject(&topic, name);
    let id = context.backends.registry.register(&subject, text);
    Ok(id.with_context(|| format!("cannot register {subject}"))?.0)
}
