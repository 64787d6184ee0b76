//! Loyalty points as a real process: on Kafka when brokers are given, else on the embedded log of a directory.
//!
//! Operators' listener: `/readyz`, `/healthz`, `/metrics`, and, for a first look, `POST /orders/{customer}`,
//! `PUT /customers/{customer}` and `GET /points`. Guarantees: SIGTERM drains: what was processed is committed before the
//! end. Never: anything about points; that is `loyalty.rs`.

mod look;
mod loyalty;

use event_log::embedded::{self, EmbeddedLog};
use event_log::kafka::{self, KafkaLog};
use event_log::{Cleanup, SharedEventLog, TopicConfig, TopicSpec};
use loyalty::Topics;
use serde::Deserialize;
use service::admin::{self, Admin};
use service::{BoxError, Readiness, Service, SharedClock, Tasks, chain, clock, telemetry};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Partitions of the topics that are made here; those that exist keep theirs.
const PARTITIONS: i32 = 4;

/// What the environment may set, as `TRUNKLINE_BROKERS`, `TRUNKLINE_ADMIN__LISTEN` and so on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Name of the application and of its topics.
    name: String,
    /// Kafka's brokers; without them the log is embedded, and this process has it alone.
    brokers: Option<String>,
    /// Stores, and the embedded log.
    data: PathBuf,
    /// This process among those of the application.
    instance: String,
    /// Stream threads.
    threads: usize,
    /// Operators' listener.
    admin: admin::Config,
    /// Log lines.
    log: telemetry::Config,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            name: "loyalty".to_owned(),
            brokers: None,
            data: ".loyalty".into(),
            instance: "one".to_owned(),
            threads: 1,
            admin: admin::Config::default(),
            log: telemetry::Config {
                level: "info,fjall=warn,lsm_tree=warn".to_owned(),
                ..telemetry::Config::default()
            },
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loyalty: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), BoxError> {
    let settings: Settings = service::config::Sources::environment(&[]).read()?;
    telemetry::logs(&settings.log)?;
    // Tasks have an owner: the service. It hears SIGTERM, and returns when all of them have ended.
    Service::new().run(|tasks| start(settings, tasks))?;
    Ok(())
}

async fn start(settings: Settings, tasks: Tasks) -> Result<(), BoxError> {
    let (clock, readiness, topics) = (clock::system(), Readiness::new(), Topics::of(&settings.name));
    let metrics = telemetry::metrics();
    metrics.keep_up(&tasks);
    let (brokers, dir, now) = (settings.brokers.clone(), settings.data.join("log"), clock.clone());
    let made = topics.clone();
    // The log's calls block, so they have a thread of their own.
    let log = tokio::task::spawn_blocking(move || open(brokers, dir, &now, &made)).await??;
    let admin = Admin {
        readiness: readiness.clone(),
        metrics,
        drain: tasks.drain(),
    };
    let listens = admin
        .serve(&tasks, &settings.admin, look::router(log.clone(), topics))
        .await?;
    let mut config = streams::Config::new(&settings.instance, settings.data.join("stores"));
    config.threads = settings.threads;
    streams::run(
        loyalty::application(&settings.name),
        config,
        log.clone(),
        streams::Host {
            clock,
            tasks: &tasks,
            readiness: &readiness,
        },
    );
    tracing::info!(log = log.describe_self(), "loyalty runs; http://{listens}/readyz");
    Ok(())
}

/// Opens the log, and makes the topics that do not exist. Those of changelogs and dead letters are the runtime's to make.
fn open(
    brokers: Option<String>,
    dir: PathBuf,
    clock: &SharedClock,
    topics: &Topics,
) -> event_log::Result<SharedEventLog> {
    let now = clock.clone();
    let log = match brokers {
        Some(brokers) => KafkaLog::connect(kafka::Config::new(brokers))?,
        None => EmbeddedLog::open(embedded::Config::new(Some(dir), Arc::new(move || now.now_ms())))?,
    };
    let spec = |name: &str, cleanup| TopicSpec {
        name: name.to_owned(),
        partitions: PARTITIONS,
        replication: None,
        config: TopicConfig::new(cleanup),
    };
    log.create_topics(&[
        spec(&topics.orders, Cleanup::Delete),
        spec(&topics.customers, Cleanup::Compact),
        spec(&topics.points, Cleanup::Compact),
    ])?;
    Ok(log)
}
