//! The process that is killed: a counting application. The order of the input determines the output, so that a lost,
//! duplicate or unexpected record changes the counts.

use event_log::{OutRecord, RecordSlice, SharedEventLog};
use serde::{Deserialize, Serialize};
use service::{Readiness, Service, Tasks, chain, telemetry};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use streams::{Application, Config, Context, FirstStart, Handle, Output, Processor, State, SubTopology, TaskInfo};

use crate::support::{self, wait_for};

/// Set only in the child: its [`ProcessConfig`] as JSON.
const CHILD: &str = "TRUNKLINE_TEST_STREAMS_CHILD";

/// Configuration of a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessConfig {
    pub kafka: String,
    pub application: String,
    pub instance: String,
    pub input: String,
    pub output: String,
    pub dir: PathBuf,
    pub sled: bool,
    /// Whether it uses the consumer group protocol of KIP-848.
    pub kip848: bool,
    /// Whether it processes at least once, without transactions.
    pub at_least_once: bool,
}

/// Counts records by key and writes each count with the offset of its input record.
struct Counter {
    output: Arc<str>,
    partition: i32,
}

impl Processor for Counter {
    fn process(
        &mut self,
        _: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> streams::Result<()> {
        for record in records.iter() {
            let Some(key) = record.key() else { continue };
            let before = state
                .get(key)?
                .map(|value| String::from_utf8_lossy(&value).into_owned());
            let count = before.map_or(0, |text| text.parse::<u64>().expect("a number")) + 1;
            state.put(key, count.to_string().into_bytes());
            let value = format!("{count} {}", record.offset());
            let out = OutRecord {
                topic: &self.output,
                partition: Some(self.partition),
                timestamp: None,
                key: Some(key),
                value: Some(value.as_bytes()),
            };
            output.send(out, []);
        }
        Ok(())
    }
}

impl ProcessConfig {
    /// Connects to Kafka.
    pub fn log(&self) -> SharedEventLog {
        event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(self.kafka.clone())).expect("connect")
    }

    /// Starts the application in this process with two stream threads; `set` may change the configuration.
    pub fn run(
        &self,
        log: SharedEventLog,
        tasks: &Tasks,
        readiness: &Readiness,
        set: impl FnOnce(&mut Config),
    ) -> Handle {
        let output: Arc<str> = self.output.as_str().into();
        let sub = SubTopology {
            name: "count".to_owned(),
            inputs: vec![self.input.clone()],
            store: "counts".to_owned(),
            factory: Arc::new(move |info: &TaskInfo| {
                Box::new(Counter {
                    output: output.clone(),
                    partition: info.id.partition,
                })
            }),
            first_start: FirstStart::Earliest,
        };
        let application = Application {
            name: self.application.clone(),
            subtopologies: vec![sub],
        };
        let mut config = Config::new(&self.instance, &self.dir);
        config.stores.engine = if self.sled {
            state_store::Engine::Sled
        } else {
            state_store::Engine::Fjall
        };
        config.stores.memory_bytes = 8 << 20;
        config.group.session_timeout = Duration::from_secs(6);
        config.threads = 2;
        if self.at_least_once {
            config.commit.guarantee = streams::ProcessingGuarantee::AtLeastOnce;
        }
        if self.kip848 {
            config.group.protocol = event_log::GroupProtocol::Consumer;
        }
        set(&mut config);
        streams::run(
            application,
            config,
            log,
            streams::Host {
                clock: service::clock::system(),
                tasks,
                readiness,
            },
        )
    }

    /// Starts a process that runs the application with these failpoints.
    pub fn spawn(&self, failpoints: &str) -> ChildProcess {
        let log = self.dir.with_extension("log");
        let words = File::options().create(true).append(true).open(&log);
        let child = Command::new(std::env::current_exe().expect("know this binary"))
            .args([
                "--exact",
                "stream_processes::child::child_runs_the_application",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, serde_json::to_string(self).expect("plain values"))
            .env(service::config::FAILPOINTS, failpoints)
            .stdout(Stdio::null())
            .stderr(words.expect("open a log file"))
            .spawn()
            .expect("start a child");
        ChildProcess { child, log }
    }
}

/// Main function of the child. When the variable is not set, it does nothing.
#[test]
fn child_runs_the_application() {
    let Some(config) = service::config::env(CHILD) else {
        return;
    };
    let config: ProcessConfig = serde_json::from_str(&config).expect("the configuration is JSON");
    telemetry::logs(&telemetry::Config::default()).expect("log");
    let ended = Service::new().worker_threads(1).run(move |tasks| async move {
        config.run(config.log(), &tasks, &Readiness::new(), |_| {});
        tasks.drain().started().await;
    });
    if let Err(error) = ended {
        eprintln!("ended with: {}", chain(&error));
        panic!("the service failed");
    }
}

/// A child process; killed on drop.
pub struct ChildProcess {
    child: Child,
    log: PathBuf,
}

impl ChildProcess {
    /// Waits until the process has ended without being killed.
    pub fn ended(&mut self, why: &str) -> ExitStatus {
        wait_for(why, Duration::from_secs(60), || {
            self.child.try_wait().expect("poll the exit status")
        })
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("poll the exit status").is_none()
    }

    /// Last lines of its log.
    pub fn log_tail(&self) -> String {
        support::last_lines(&self.log, 20)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    pub fn signal(&self, signal: &str) {
        support::signal(self.child.id(), signal);
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A configuration with unique names.
pub fn process_config(kafka: String, dir: PathBuf) -> ProcessConfig {
    ProcessConfig {
        kafka,
        application: support::unique("count"),
        instance: "one".to_owned(),
        input: support::unique("input"),
        output: support::unique("output"),
        dir,
        sled: false,
        kip848: false,
        at_least_once: false,
    }
}
