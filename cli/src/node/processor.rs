//! What the processors of a node have in common: configuration, schema lookup, and the start after registration.

use super::context::Context;
use crate::state_api::RunningProcessors;
use event_log::ErrorAction;
use processors::sync_views::{FetchSchema, Unavailable, patient};
use registry::SharedRegistry;
use schemas::ids::SchemaId;
use service::{AttemptError, Drain, RetryPolicy, chain, retry_blocking};
use std::convert::Infallible;
use std::sync::Arc;
use streams::{Application, Handle};
use topology::Processor;

/// Starts the applications of a processor as soon as `prepare` succeeds. `prepare` registers schemas and builds the
/// applications; while it fails, the component `<what>` is not ready and the attempt is repeated.
pub fn start(
    context: &Context,
    what: &str,
    config: streams::Config,
    declaration: Option<Arc<Processor>>,
    prepare: impl Fn() -> anyhow::Result<Vec<Application>> + Send + 'static,
) {
    let (context, what) = (context.clone(), what.to_owned());
    let tasks = context.tasks.clone();
    tasks.thread(what.replace(' ', "-"), move || {
        let drain = context.tasks.drain();
        let applications = prepare_with_retry(&context, &what, &drain, prepare);
        for application in applications.into_iter().flatten() {
            let handle = run(&context, application, config.clone());
            add(&context.backends.running, handle, declaration.clone());
        }
        Ok::<(), anyhow::Error>(())
    });
}

fn run(context: &Context, application: Application, config: streams::Config) -> Handle {
    let (log, clock) = (context.backends.log.clone(), context.backends.clock.clone());
    let host = streams::Host {
        clock,
        tasks: &context.tasks,
        readiness: &context.readiness,
    };
    streams::run(application, config, log, host)
}

fn add(running: &RunningProcessors, handle: Handle, declaration: Option<Arc<Processor>>) {
    running.add(handle, declaration);
}

/// Repeats `prepare` until it succeeds; `None` if the process stops before.
fn prepare_with_retry(
    context: &Context,
    what: &str,
    drain: &Drain,
    prepare: impl Fn() -> anyhow::Result<Vec<Application>>,
) -> Option<Vec<Application>> {
    let component = context.readiness.register(what);
    let Ok(applications) = retry_blocking(RetryPolicy::START, drain, || {
        let prepared = prepare().map_err(|error| {
            let cause = format!("{error:#}");
            tracing::warn!(%cause, component = what, "processor start failed; retrying");
            let registry = context.backends.registry.description();
            component.not_ready(cause, format!("check the log and the registry {registry}"));
            AttemptError::<Infallible>::Temporary
        });
        prepared.inspect(|_| component.ready())
    });
    applications
}

/// Configuration of a processor on this node.
pub fn config(context: &Context, processor: &str) -> streams::Config {
    let settings = &context.processors;
    let instance = settings.instance.as_deref().unwrap_or(&context.node);
    let mut config = streams::Config::new(instance, context.data.join("processors"));
    config.threads = settings.threads;
    config.stores.engine = settings.store.into();
    config.stores.memory_bytes = settings.store_memory_mib << 20;
    config.group.protocol = settings.group_protocol.into();
    config.commit.guarantee = settings.guarantee_of(processor);
    config.topics.replication = context.backends.replication;
    config.standby_replicas = settings.standby_replicas;
    config.advertised = context.backends.advertised.clone();
    config.members_topic = Some(context.names.members());
    config
}

/// Fetches schemas by id. An unknown id is retried for some seconds and then an error of the record (dead letter); any
/// other failure is retried.
pub fn fetch_schema(registry: SharedRegistry) -> FetchSchema {
    patient(Arc::new(move |id| match registry.by_id(SchemaId(id)) {
        Ok(text) => Ok(text.to_string()),
        Err(error) => {
            let action = match error {
                registry::Error::SchemaNotFound { .. } => ErrorAction::DeadLetter,
                _ => ErrorAction::Retry,
            };
            Err(Unavailable {
                reason: chain(&error),
                action,
            })
        }
    }))
}
