//! A process with state: how long it takes to start, to come back after kill -9 and to read everything back, and what
//! it holds in memory.
//!
//! Guarantees: the application runs in a process of its own, on Kafka, as a node runs it; a start ends when a reader
//! has what was made of a record that waited for it. Never: settings that a node would not run with.

use crate::figures::{cpu_s, memory_mb, rate};
use crate::support;
use anyhow::Context;
use event_log::kafka::KafkaLog;
use event_log::{
    Cleanup, Isolation, OffsetSpec, OutBatch, OutRecord, Reader, RecordBatch, SharedEventLog, StartFrom, TopicConfig,
    TopicPartition, TopicSpec,
};
use serde::{Deserialize, Serialize};
use service::{Readiness, Service, admin, telemetry};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::{Application, Config, FirstStart, Output, Processor, State, SubTopology, TaskInfo};

/// The word that makes this program the process that is measured.
pub const CHILD: &str = "state-process";
const PARTITIONS: i32 = 4;
const VALUE_BYTES: usize = 100;
/// How often every key is written, so that the changelog is longer than the state.
const TIMES: usize = 2;
/// How often it is killed with all its state.
const KILLS: usize = 5;
/// A start that takes longer is explained by what the process says.
const LONG: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(300);

/// What the process runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Part {
    kafka: String,
    application: String,
    input: String,
    output: String,
    dir: PathBuf,
    sled: bool,
    admin: u16,
}

impl Part {
    /// What the process says in this life of it.
    fn log(&self) -> PathBuf {
        self.dir.with_extension("log")
    }
}

/// Keeps each key's newest value; a record without a value is answered, so that a start can be timed.
struct Keep(Arc<str>);

impl Processor for Keep {
    fn process(
        &mut self,
        _: streams::Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        output: &mut Output,
    ) -> streams::Result<()> {
        for record in range.filter_map(|index| records.get(index)) {
            let Some(key) = record.key() else { continue };
            if let Some(value) = record.value() {
                state.put(key, value.to_vec());
                continue;
            }
            let answer = OutRecord {
                topic: &self.0,
                partition: Some(0),
                timestamp: None,
                key: Some(key),
                value: None,
            };
            output.send(answer, []);
        }
        Ok(())
    }
}

/// The process that is measured.
pub fn child(words: &[String]) -> anyhow::Result<()> {
    let part: Part = serde_json::from_str(words.first().context("what to run")?)?;
    telemetry::logs(&telemetry::Config::default())?;
    Service::new().worker_threads(1).run(|tasks| async move {
        let readiness = Readiness::new();
        let listener = admin::Admin {
            readiness: readiness.clone(),
            metrics: telemetry::metrics(),
            drain: tasks.drain(),
        };
        let listen = admin::Config {
            listen: SocketAddr::from(([127, 0, 0, 1], part.admin)),
            advertise: None,
        };
        listener.serve(&tasks, &listen, axum::Router::new()).await?;
        let output: Arc<str> = part.output.as_str().into();
        let sub = SubTopology {
            name: "keep".to_owned(),
            inputs: vec![part.input.clone()],
            store: "rows".to_owned(),
            factory: Arc::new(move |_: &TaskInfo| Box::new(Keep(output.clone()))),
            first_start: FirstStart::Earliest,
        };
        let application = Application {
            name: part.application.clone(),
            subtopologies: vec![sub],
        };
        let mut config = Config::new("one", &part.dir);
        if part.sled {
            config.stores.engine = state_store::Engine::Sled;
        }
        let log = KafkaLog::connect(event_log::kafka::Config::new(part.kafka.clone()))?;
        streams::run(
            application,
            config,
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

/// The parts beside the process: its topics, and a reader of its answers.
struct Stage {
    log: SharedEventLog,
    part: Part,
    input: Arc<str>,
    answers: Box<dyn Reader>,
    asked: usize,
}

/// `state [fjall|sled] [THOUSAND KEYS]`.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let engine = words.first().map_or("fjall", String::as_str);
    let sled = match engine {
        "fjall" => false,
        "sled" => true,
        other => anyhow::bail!("{other} is not an engine: fjall or sled"),
    };
    let keys: usize = words.get(1).map_or(Ok(1_000), |text| text.parse::<usize>())? * 1000;
    let dir = tempfile::tempdir()?;
    let mut stage = Stage::new(dir.path().to_owned(), sled)?;
    println!(
        "{}, {engine}, {PARTITIONS} tasks on one thread",
        stage.log.describe_self()
    );

    stage.start("first start, topics to be made")?.stop()?;
    let life = stage.start("cold start, on empty state")?;
    life.idle();
    stage.fill(keys)?;
    life.memory(&format!(
        "after {keys} keys of {VALUE_BYTES} B, each written {TIMES} times"
    ));
    stage.kills(life)?;
    std::fs::remove_dir_all(dir.path().join("stores"))?;
    stage.restore(keys)
}

impl Stage {
    fn new(dir: PathBuf, sled: bool) -> anyhow::Result<Stage> {
        let kafka = support::kafka();
        let log = KafkaLog::connect(event_log::kafka::Config::new(kafka.clone()))?;
        let part = Part {
            kafka,
            application: support::unique("load"),
            input: support::unique("load"),
            output: support::unique("load"),
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
        log.create_topics(&[topic(&part.input), topic(&part.output)])?;
        let mut answers = log.reader(Isolation::ReadCommitted)?;
        answers.assign(&[(TopicPartition::new(part.output.as_str(), 0), StartFrom::Earliest)])?;
        let input = part.input.as_str().into();
        Ok(Stage {
            log,
            part,
            input,
            answers,
            asked: 0,
        })
    }

    /// Asks the process something, by a record without a value.
    fn ask(&mut self) -> anyhow::Result<()> {
        let mut out = OutBatch::default();
        let record = OutRecord {
            topic: &self.input,
            partition: Some(0),
            timestamp: None,
            key: Some(b"[\"asked\"]"),
            value: None,
        };
        out.push(record, []);
        self.log.append(&out)?;
        self.asked += 1;
        Ok(())
    }

    fn wait_for_answer(&mut self) -> anyhow::Result<()> {
        let mut batch = RecordBatch::default();
        let mut answers = 0;
        let end = Instant::now() + LIMIT;
        while answers == 0 {
            anyhow::ensure!(Instant::now() < end, "no answer within {LIMIT:?}");
            answers = self.answers.poll(&mut batch, 1 << 20, Duration::from_millis(100))?;
        }
        Ok(())
    }

    /// Starts the process on a record that waits, and says how long it takes until its answer can be read.
    fn start(&mut self, what: &str) -> anyhow::Result<Life> {
        self.ask()?;
        let begun = Instant::now();
        let life = Life::begin(&self.part)?;
        self.wait_for_answer()?;
        let took = begun.elapsed();
        println!(
            "{what}: answer to a record that waited {:.2} s after the start",
            took.as_secs_f64()
        );
        if took > LONG {
            println!("{}", std::fs::read_to_string(self.part.log())?);
        }
        Ok(life)
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
                let committed = self.log.committed(&self.part.application, std::slice::from_ref(&at));
                committed.expect("offsets")[&at]
                    .is_some_and(|next| next >= end)
                    .then_some(())
            });
        }
        Ok(())
    }

    /// Kills the process again and again.
    fn kills(&mut self, mut life: Life) -> anyhow::Result<()> {
        for _ in 0..KILLS {
            life.kill()?;
            life = self.start("kill -9, then")?;
            println!(
                "  changelog records read: {:.0}",
                life.metric("trunkline_runtime_restored_records_total")?
            );
        }
        life.memory("after it");
        life.stop()
    }

    /// Starts the process without its stores.
    fn restore(&mut self, keys: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        let life = Life::begin(&self.part)?;
        let count = "trunkline_runtime_restored_records_total";
        support::wait_for("the first restored record", LIMIT, || {
            std::thread::sleep(Duration::from_millis(5));
            life.metric(count).ok().filter(|records| *records > 0.0)
        });
        let (first, cpu) = (Instant::now(), cpu_s(life.0.id()));
        support::wait_for("readiness", LIMIT, || {
            std::thread::sleep(Duration::from_millis(5));
            life.is_ready().then_some(())
        });
        let (took, records) = (first.elapsed(), life.metric(count)?);
        #[expect(
            clippy::as_conversions,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let records = records as usize;
        println!(
            "full restore of {keys} keys from {records} records: {:.2} s = {:.0} records/s (asked for: 700,000), {:.0} \
             records per CPU second; {:.2} s from the start of the process",
            took.as_secs_f64(),
            rate(records, took),
            rate(records, Duration::from_secs_f64(cpu_s(life.0.id()) - cpu)),
            begun.elapsed().as_secs_f64(),
        );
        life.memory("after it");
        life.stop()
    }
}

/// A life of the process.
struct Life(Child, u16);

impl Life {
    fn begin(part: &Part) -> anyhow::Result<Life> {
        let log = std::fs::File::create(part.log())?;
        let child = Command::new(std::env::current_exe()?)
            .args([CHILD, &serde_json::to_string(part)?])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Life(child, part.admin))
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
            "idle for 10 s: {share:.1} % of a core (asked for: < 1), resident {:.0} MB (asked for: < 40)",
            memory_mb(self.0.id(), "VmRSS:")
        );
    }

    fn memory(&self, when: &str) {
        let pid = self.0.id();
        println!(
            "  {when}: resident {:.0} MB, at most {:.0} MB (asked for: < 250)",
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

impl Drop for Life {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
