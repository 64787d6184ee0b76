//! Benchmark of a stateful application on Kafka: time of a cold start, of a restart after SIGKILL and of a full restore,
//! idle CPU, and memory.
//!
//! The application runs in a separate process with a node's default settings. A start is complete when a reader of the
//! output has received the result of a record that was written before the start.

use crate::figures::{cpu_s, memory_mb, rate};
use crate::support;
use anyhow::Context;
use event_log::kafka::KafkaLog;
use event_log::{
    Cleanup, Isolation, OffsetSpec, OutBatch, OutRecord, Reader, RecordBatch, RecordSlice, SharedEventLog, StartFrom,
    TopicConfig, TopicPartition, TopicSpec,
};
use serde::{Deserialize, Serialize};
use service::{Readiness, Service, admin, telemetry};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::{Application, Config, FirstStart, Output, Processor, State, SubTopology, TaskInfo};

/// Argument that starts the measured process.
pub const CHILD: &str = "state-process";
const PARTITIONS: i32 = 4;
const VALUE_BYTES: usize = 100;
/// Number of writes per key; more than one, so that the changelog is longer than the state.
const TIMES: usize = 2;
/// Number of kills with full state.
const KILLS: usize = 5;
/// If a start takes longer, the log of the process is printed.
const LONG: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(300);

/// Configuration of the measured process.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ProcessConfig {
    kafka: String,
    application: String,
    input: String,
    output: String,
    dir: PathBuf,
    sled: bool,
    admin: u16,
}

impl ProcessConfig {
    /// Log file of the current process.
    fn log(&self) -> PathBuf {
        self.dir.with_extension("log")
    }
}

/// Stores the newest value of each key. A record without a value is a probe: it is copied to the output.
struct Keep(Arc<str>);

impl Processor for Keep {
    fn process(
        &mut self,
        _: streams::Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> streams::Result<()> {
        for record in records.iter() {
            let Some(key) = record.key() else { continue };
            if let Some(value) = record.value() {
                state.put(key, value.to_vec());
                continue;
            }
            let response = OutRecord {
                topic: &self.0,
                partition: Some(0),
                timestamp: None,
                key: Some(key),
                value: None,
            };
            output.send(response, []);
        }
        Ok(())
    }
}

/// Runs the measured process.
pub fn child(words: &[String]) -> anyhow::Result<()> {
    let config: ProcessConfig = serde_json::from_str(words.first().context("the configuration is missing")?)?;
    telemetry::logs(&telemetry::Config::default())?;
    Service::new().worker_threads(1).run(|tasks| async move {
        let readiness = Readiness::new();
        let listener = admin::Admin {
            readiness: readiness.clone(),
            metrics: telemetry::metrics(),
            drain: tasks.drain(),
        };
        let listen = admin::Config::on(SocketAddr::from(([127, 0, 0, 1], config.admin)));
        listener.serve(&tasks, &listen, admin::Routes::new())?;
        let output: Arc<str> = config.output.as_str().into();
        let sub = SubTopology {
            name: "keep".to_owned(),
            inputs: vec![config.input.clone()],
            store: "rows".to_owned(),
            factory: Arc::new(move |_: &TaskInfo| Box::new(Keep(output.clone()))),
            first_start: FirstStart::Earliest,
        };
        let application = Application {
            name: config.application.clone(),
            subtopologies: vec![sub],
        };
        let mut streams_config = Config::new("one", &config.dir);
        if config.sled {
            streams_config.stores.engine = state_store::Engine::Sled;
        }
        let log = KafkaLog::connect(event_log::kafka::Config::new(config.kafka.clone()))?;
        streams::run(
            application,
            streams_config,
            log,
            streams::Host {
                clock: service::clock::system(),
                tasks: &tasks,
                readiness: &readiness,
            },
        );
        Ok::<(), anyhow::Error>(())
    })?;
    Ok(())
}

/// Topics of the measured process, and a reader of its responses.
struct Harness {
    log: SharedEventLog,
    config: ProcessConfig,
    input: Arc<str>,
    responses: Box<dyn Reader>,
}

/// `state [fjall|sled] [THOUSAND KEYS]`.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let engine = words.first().map_or("fjall", String::as_str);
    let sled = match engine {
        "fjall" => false,
        "sled" => true,
        other => anyhow::bail!("unknown engine {other}; use fjall or sled"),
    };
    let keys: usize = words.get(1).map_or(Ok(1_000), |text| text.parse::<usize>())? * 1000;
    let dir = tempfile::tempdir()?;
    let mut harness = Harness::new(dir.path().to_owned(), sled)?;
    println!(
        "{}, {engine}, {PARTITIONS} tasks on one stream thread",
        harness.log.description()
    );
    harness.start("first start, with topics to create")?.stop()?;
    let process = harness.start("cold start, with empty state")?;
    process.idle();
    harness.fill(keys)?;
    process.memory(&format!(
        "after writing {keys} keys of {VALUE_BYTES} B {TIMES} times each"
    ));
    harness.kills(process)?;
    std::fs::remove_dir_all(dir.path().join("stores"))?;
    harness.restore(keys)
}

impl Harness {
    fn new(dir: PathBuf, sled: bool) -> anyhow::Result<Harness> {
        let kafka = support::kafka();
        let log = KafkaLog::connect(event_log::kafka::Config::new(kafka.clone()))?;
        let config = ProcessConfig {
            kafka,
            application: support::unique("bench"),
            input: support::unique("bench"),
            output: support::unique("bench"),
            dir: dir.join("stores"),
            sled,
            admin: support::free_port(),
        };
        let topic = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: PARTITIONS,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        log.create_topics(&[topic(&config.input), topic(&config.output)])?;
        let mut responses = log.reader(Isolation::ReadCommitted)?;
        responses.assign(&[(TopicPartition::new(config.output.as_str(), 0), StartFrom::Earliest)])?;
        let input = config.input.as_str().into();
        Ok(Harness {
            log,
            config,
            input,
            responses,
        })
    }

    /// Writes a probe.
    fn probe(&mut self) -> anyhow::Result<()> {
        let mut out = OutBatch::default();
        let record = OutRecord {
            topic: &self.input,
            partition: Some(0),
            timestamp: None,
            key: Some(b"[\"probe\"]"),
            value: None,
        };
        out.push(record, []);
        self.log.append(&out)?;
        Ok(())
    }

    fn wait_for_response(&mut self) -> anyhow::Result<()> {
        let mut batch = RecordBatch::default();
        let mut responses = 0;
        let end = Instant::now() + LIMIT;
        while responses == 0 {
            anyhow::ensure!(Instant::now() < end, "no response to the probe within {LIMIT:?}");
            responses = self.responses.poll(&mut batch, 1 << 20, Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// Writes a probe, starts the process, and prints the time from the start until the response can be read.
    fn start(&mut self, what: &str) -> anyhow::Result<Process> {
        self.probe()?;
        let begun = Instant::now();
        let process = Process::begin(&self.config)?;
        self.wait_for_response()?;
        let took = begun.elapsed();
        println!(
            "{what}: response to a waiting record {:.2} s after the start",
            took.as_secs_f64()
        );
        if took > LONG {
            println!("{}", std::fs::read_to_string(self.config.log())?);
        }
        Ok(process)
    }

    fn fill(&mut self, keys: usize) -> anyhow::Result<()> {
        let (value, mut out) = ([b'x'; VALUE_BYTES], OutBatch::default());
        for n in 0..keys * TIMES {
            let key = format!("[{}]", n % keys);
            let record = OutRecord {
                topic: &self.input,
                partition: Some(i32::try_from(n % keys)? % PARTITIONS),
                timestamp: None,
                key: Some(key.as_bytes()),
                value: Some(&value),
            };
            out.push(record, []);
            if out.len() == 20_000 {
                self.log.append(&out)?;
                out.clear();
            }
        }
        self.log.append(&out)?;
        for partition in 0..PARTITIONS {
            let at = TopicPartition::new(self.input.clone(), partition);
            let end = self.log.offset(&at, OffsetSpec::LogEnd)?;
            support::wait_for("everything to be committed", LIMIT, || {
                std::thread::sleep(Duration::from_millis(50));
                let committed = self.log.committed(&self.config.application, std::slice::from_ref(&at));
                committed.expect("offsets")[&at]
                    .is_some_and(|next| next >= end)
                    .then_some(())
            });
        }
        Ok(())
    }

    /// Kills and restarts the process [`KILLS`] times.
    fn kills(&mut self, mut process: Process) -> anyhow::Result<()> {
        for _ in 0..KILLS {
            process.kill()?;
            process = self.start("restart after SIGKILL")?;
            println!(
                "  restored changelog records: {:.0}",
                process.metric("trunkline_streams_restored_records_total")?
            );
        }
        process.memory("afterwards");
        process.stop()
    }

    /// Starts the process without its stores.
    fn restore(&mut self, keys: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        let process = Process::begin(&self.config)?;
        let count = "trunkline_streams_restored_records_total";
        support::wait_for("the first restored record", LIMIT, || {
            std::thread::sleep(Duration::from_millis(5));
            process.metric(count).ok().filter(|records| *records > 0.0)
        });
        let (first, cpu) = (Instant::now(), cpu_s(process.0.id()));
        support::wait_for("readiness", LIMIT, || {
            std::thread::sleep(Duration::from_millis(5));
            process.is_ready().then_some(())
        });
        let (took, records) = (first.elapsed(), process.metric(count)?);
        #[expect(
            clippy::as_conversions,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let records = records as usize;
        println!(
            "full restore of {keys} keys from {records} records: {:.2} s = {:.0} records/s (target: 700,000), {:.0} \
             records per CPU second; {:.2} s from the start of the process",
            took.as_secs_f64(),
            rate(records, took),
            rate(records, Duration::from_secs_f64(cpu_s(process.0.id()) - cpu)),
            begun.elapsed().as_secs_f64(),
        );
        process.memory("afterwards");
        process.stop()
    }
}

/// A running process; killed on drop.
struct Process(Child, u16);

impl Process {
    fn begin(config: &ProcessConfig) -> anyhow::Result<Process> {
        let log = std::fs::File::create(config.log())?;
        let child = Command::new(std::env::current_exe()?)
            .args([CHILD, &serde_json::to_string(config)?])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Process(child, config.admin))
    }

    fn get(&self, path: &str) -> anyhow::Result<(bool, String)> {
        let answer = reqwest::blocking::get(format!("http://127.0.0.1:{}{path}", self.1))?;
        Ok((answer.status().is_success(), answer.text()?))
    }

    fn is_ready(&self) -> bool {
        self.get("/readyz").is_ok_and(|(is_ready, _)| is_ready)
    }

    fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (_, text) = self.get("/metrics")?;
        let line = text.lines().find(|line| line.starts_with(name));
        Ok(line
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0))
    }

    fn idle(&self) {
        let (before, span) = (cpu_s(self.0.id()), Duration::from_secs(10));
        std::thread::sleep(span);
        let share = (cpu_s(self.0.id()) - before) / span.as_secs_f64() * 100.0;
        println!(
            "idle for 10 s: {share:.1} % of a core (target: < 1), resident {:.0} MB (target: < 40)",
            memory_mb(self.0.id(), "VmRSS:")
        );
    }

    fn memory(&self, when: &str) {
        let pid = self.0.id();
        println!(
            "  {when}: resident {:.0} MB, peak {:.0} MB (target: < 250)",
            memory_mb(pid, "VmRSS:"),
            memory_mb(pid, "VmHWM:")
        );
    }

    fn kill(mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    fn stop(mut self) -> anyhow::Result<()> {
        support::signal(self.0.id(), "-TERM");
        let status = self.0.wait()?;
        anyhow::ensure!(status.success(), "the process ended with {status}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
