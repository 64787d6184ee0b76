//! The loyalty example as a service: on Kafka if brokers are configured, else on an embedded log in a directory.
//!
//! The admin listener serves `/readyz`, `/healthz` and `/metrics`, and, to try the example, `POST /orders/{customer}`,
//! `PUT /customers/{customer}` and `GET /points`. SIGTERM drains: processed records are committed before the process
//! ends. The processor is in `loyalty.rs`.

mod demo_api;
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

/// Partition count of topics that are created; existing topics keep their partition counts.
const PARTITIONS: i32 = 4;

/// Configuration from the environment: `TRUNKLINE_BROKERS`, `TRUNKLINE_ADMIN__LISTEN` and so on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Name of the application and of its topics.
    name: String,
    /// Kafka bootstrap servers. Without them the log is embedded, and only one process can use it.
    brokers: Option<String>,
    /// Directory of the stores and the embedded log.
    data: PathBuf,
    /// Name of this process, unique within the application.
    instance: String,
    /// Stream threads.
    threads: usize,
    /// Admin listener.
    admin: admin::Config,
    /// Logging.
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
    // The service owns all tasks. It handles SIGTERM and returns when they have ended.
    Service::new().run(|tasks| start(settings, tasks))?;
    Ok(())
}

async fn start(settings: Settings, tasks: Tasks) -> Result<(), BoxError> {
    let (clock, readiness, topics) = (clock::system(), Readiness::new(), Topics::of(&settings.name));
    let metrics = telemetry::metrics();
    metrics.keep_up(&tasks);
    let (brokers, dir, now) = (settings.brokers.clone(), settings.data.join("log"), clock.clone());
    let created = topics.clone();
    // Calls of the log block, so they must not run on a thread of the async runtime.
    let log = tokio::task::spawn_blocking(move || open(brokers, dir, &now, &created)).await??;
    let admin = Admin {
        readiness: readiness.clone(),
        metrics,
        drain: tasks.drain(),
    };
    let listens = admin.serve(&tasks, &settings.admin, demo_api::routes(log.clone(), topics))?;
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
    tracing::info!(log = log.description(), readyz = %format!("http://{listens}/readyz"), "loyalty started");
    Ok(())
}

/// Opens the log, and creates missing topics. `streams::run` creates changelogs and dead-letter topics itself.
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
