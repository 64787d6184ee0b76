//! The role `processor:sync-views`: one application for each input, so that an input that cannot be processed does not stop
//! the others, and each is read by other threads.

use super::context::{Context, DAY_MS};
use super::processor;
use anyhow::{Context as _, Result};
use processors::sync_views::{self, SyncViews};
use schemas::events::{Event as _, Loaded, Stale, TransactionBegin, TransactionEnd, ViewRow};
use std::sync::Arc;
use streams::{Application, FirstStart, SubTopology, TaskInfo};
use topology::SYNC_VIEWS;
use topology::wiring::SYNC_VIEWS_STORE;
use views::record::SchemaIds;
use views::rules::{Rules, SourceRules};

/// Registers the schemas of `view.log`, then runs the stream threads.
pub fn start(context: &Context, rules: &Rules) {
    let mut config = processor::config(context, SYNC_VIEWS);
    config.commit.touches_view_log = true;
    let (prepared, rules) = (context.clone(), rules.clone());
    processor::start(context, "sync-views schemas", config, None, move || {
        let schemas = register_schemas(&prepared)?;
        let horizon_ms = horizon_ms(&prepared)?;
        let inputs: Vec<Arc<SourceRules>> = rules.sources().to_vec();
        let unread = unread_inputs(&prepared, &inputs)?;
        let settings = Settings {
            partitions: rules.partitions(),
            schemas,
            horizon_ms,
        };
        Ok(applications(&prepared, inputs.into_iter().chain(unread), settings))
    });
}

/// What the applications of all inputs have in common.
#[derive(Clone, Copy)]
struct Settings {
    /// Partition count of `view.log`.
    partitions: i32,
    schemas: SchemaIds,
    horizon_ms: i64,
}

/// Inputs that no view reads any more. Their rows are still in the state, so their applications remove them from devices
/// and from the state.
fn unread_inputs(context: &Context, read: &[Arc<SourceRules>]) -> Result<Vec<Arc<SourceRules>>> {
    let (topics, names) = (context.backends.log.topics()?, &context.names);
    let inputs = topics.iter().filter_map(|topic| names.sync_views_input(topic));
    let unread = inputs.filter(|input| read.iter().all(|rules| rules.topic() != input));
    let mut rules = Vec::new();
    for input in unread {
        if !topics.contains(&input) {
            tracing::warn!(
                input,
                "the input of views that were removed does not exist; its rows stay on devices"
            );
            continue;
        }
        let event = match names.local(&input).split_once('.') {
            Some(("change", _)) | None => None,
            Some((_, name)) => Some(name.to_owned()),
        };
        rules.push(Arc::new(SourceRules::new(input, event, Vec::new())));
    }
    Ok(rules)
}

fn register_schemas(context: &Context) -> Result<SchemaIds> {
    let topic = context.names.view_log();
    let register = |name: &str, text: &str| -> Result<u32> {
        let subject = schemas::wire::subject(&topic, name);
        let id = context.backends.registry.register(&subject, text);
        Ok(id.with_context(|| format!("cannot register {subject}"))?.0)
    };
    Ok(SchemaIds {
        row: register(ViewRow::NAME, ViewRow::AVSC)?,
        transaction_end: register(TransactionEnd::NAME, TransactionEnd::AVSC)?,
        transaction_begin: register(TransactionBegin::NAME, TransactionBegin::AVSC)?,
        stale: register(Stale::NAME, Stale::AVSC)?,
        loaded: register(Loaded::NAME, Loaded::AVSC)?,
    })
}

/// How long deleted rows stay in the state: `delete.retention.ms` of `view.log` minus a margin.
fn horizon_ms(context: &Context) -> Result<i64> {
    let topic = context.names.view_log();
    let info = context.backends.log.describe(&topic)?;
    let info = info.with_context(|| format!("topic {topic} does not exist"))?;
    let retention = info.number("delete.retention.ms").unwrap_or(7 * DAY_MS);
    Ok(retention - DAY_MS.min(retention / 7))
}

fn applications(
    context: &Context,
    inputs: impl Iterator<Item = Arc<SourceRules>>,
    settings: Settings,
) -> Vec<Application> {
    let Settings {
        partitions,
        schemas,
        horizon_ms,
    } = settings;
    let fetch = processor::fetch_schema(context.backends.registry.clone());
    let view_log: Arc<str> = context.names.view_log().into();
    let sub_topology = |source: &Arc<SourceRules>| {
        let (source, fetch, view_log) = (source.clone(), fetch.clone(), view_log.clone());
        let topic = source.topic().to_owned();
        SubTopology {
            name: SYNC_VIEWS_STORE.to_owned(),
            inputs: vec![topic],
            store: SYNC_VIEWS_STORE.to_owned(),
            first_start: FirstStart::Earliest,
            factory: Arc::new(move |task: &TaskInfo| {
                let topic_id = task.inputs.first().map(|i| i.id.to_string()).unwrap_or_default();
                // The topic id is part of the writer id, so that a topic that was created again has a new writer; see
                // docs/protocol/view-sync.md.
                let writer = format!("{SYNC_VIEWS}/{}/{topic_id}/{}", source.topic(), task.id.partition);
                Box::new(SyncViews::new(sync_views::Config {
                    rules: source.clone(),
                    writer,
                    topic_id,
                    view_log: view_log.clone(),
                    partitions,
                    schemas,
                    horizon_ms,
                    job_step: sync_views::StepLimits::default(),
                    fetch: fetch.clone(),
                }))
            }),
        }
    };
    let application = |source: Arc<SourceRules>| Application {
        name: context.names.sync_views(source.topic()),
        subtopologies: vec![sub_topology(&source)],
    };
    inputs.map(application).collect()
}
