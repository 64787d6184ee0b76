//! The role `ingest`: the listener for events and for the transactions of HTTP sources.

use super::context::Context;
use anyhow::{Context as _, Result};
use connectors::ingest::{Config, EventTopic, Ingest};
use connectors::sources::http::HttpSourceHandle;
use event_log::ErrorAction;
use registry::SharedRegistry;
use service::{AttemptError, Drain, RetryPolicy, chain, retry_blocking};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use topology::{Event, Names, Topology};

/// Registers the schemas of the events, then starts the listener. `sources` are the handles of HTTP sources by topic, named as
/// in the URL of a post.
pub async fn start(
    context: &Context,
    topology: &Topology,
    config: Config,
    sources: BTreeMap<String, HttpSourceHandle>,
) -> Result<SocketAddr> {
    let listener = config.bind()?;
    let address = listener.address();
    let (registry, events, names) = (
        context.backends.registry.clone(),
        topology.events.clone(),
        context.names.clone(),
    );
    let drain = context.tasks.drain();
    let register = tokio::task::spawn_blocking(move || register_events(&registry, &events, &names, &drain));
    let router = Ingest {
        log: context.backends.log.clone(),
        events: register.await??,
        sources,
        config,
    }
    .router();
    listener.serve(&context.tasks, router);
    Ok(address)
}

/// Registers the schemas of the events, and retries while the registry is unavailable.
fn register_events(
    registry: &SharedRegistry,
    events: &[Event],
    names: &Names,
    drain: &Drain,
) -> Result<Vec<EventTopic>> {
    let mut registered = Vec::new();
    for event in events {
        let topic: Arc<str> = names.event(event.name.as_str()).into();
        let subject = schemas::wire::subject(&topic, event.schema.name());
        let id = retry_blocking(RetryPolicy::START, drain, || {
            registry.register(&subject, event.schema.text()).map_err(|error| {
                if error.action() != ErrorAction::Retry {
                    return AttemptError::Permanent(error);
                }
                tracing::warn!(%subject, cause = chain(&error), "registry unavailable; retrying");
                AttemptError::Temporary
            })
        });
        let id = id.with_context(|| format!("cannot register the schema of {topic}"))?;
        let id = id.context("stopped while waiting for the registry")?;
        registered.push(EventTopic {
            name: names.local(&topic).to_owned(),
            topic,
            schema: event.schema.clone(),
            id,
            key: event.key.clone(),
        });
    }
    Ok(registered)
}
