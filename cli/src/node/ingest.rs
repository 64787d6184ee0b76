//! The role `ingest`: the listener for events and for the transactions of HTTP sources.

use super::context::Context;
use super::sources::start_events;
use crate::backends::Backends;
use anyhow::{Context as _, Result};
use connectors::ingest::{Appender, Config, EventTopic, Ingest};
use connectors::sources::http::HttpSourceHandle;
use event_log::{ErrorAction, SharedEventLog};
use service::{AttemptError, Drain, RetryPolicy, chain, retry_blocking};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use topology::{Event, Names, Topology};

/// The brokers' default of `max.message.bytes`.
const MESSAGE_BYTES_MAX: usize = 1_048_588;

/// Registers the schemas of the events, then starts the listener. `sources` are the handles of HTTP sources by topic, named as
/// in the URL of a post.
pub async fn start(
    context: &Context,
    topology: &Topology,
    config: Config,
    sources: BTreeMap<String, HttpSourceHandle>,
) -> Result<SocketAddr> {
    let credentials = config.load_credentials()?;
    let listener = config.bind()?;
    let address = listener.address();
    let (backends, events, names) = (context.backends.clone(), topology.events.clone(), context.names.clone());
    let drain = context.tasks.drain();
    let register = tokio::task::spawn_blocking(move || register_events(&backends, &events, &names, &drain));
    let events = register.await??;
    let keyed_events = (!events.is_empty()).then(|| start_events(context));
    let router = Ingest {
        appender: Appender::start(&context.tasks, context.backends.log.clone()),
        events,
        keyed_events,
        sources,
        credentials: credentials.clone(),
        config,
    }
    .router();
    credentials.follow_files(&context.tasks);
    listener.serve(&context.tasks, router);
    Ok(address)
}

/// Registers the schemas of the events, and retries while the registry is unavailable.
fn register_events(backends: &Backends, events: &[Event], names: &Names, drain: &Drain) -> Result<Vec<EventTopic>> {
    let mut registered = Vec::new();
    for event in events {
        let topic: Arc<str> = names.event(event.name.as_str()).into();
        let subject = schemas::wire::subject(&topic, event.schema.name());
        let id = retry_blocking(RetryPolicy::START, drain, || {
            backends
                .registry
                .register(&subject, event.schema.text())
                .map_err(|error| {
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
            record_bytes_max: record_bytes_max(&backends.log, &topic),
            topic,
            schema: event.schema.clone(),
            id,
            key: event.key.clone(),
        });
    }
    Ok(registered)
}

/// The largest record that a topic accepts. The right to write a topic does not imply the right to read its settings; then
/// the default of the brokers applies.
fn record_bytes_max(log: &SharedEventLog, topic: &str) -> usize {
    let described = log.describe(topic).ok().flatten();
    let limit = described.and_then(|info| info.number("max.message.bytes"));
    limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(MESSAGE_BYTES_MAX)
}
