//! Benchmark of the stream runtime with its default settings and one stream thread: a copy, a count with state, and the
//! latency of single records.

mod aggregate;
mod workload;

use crate::support;
use event_log::embedded::EmbeddedLog;
use event_log::kafka::{KafkaLog, baseline};
use event_log::{
    Isolation, Millis, OffsetSpec, OutBatch, OutRecord, RecordBatch, RecordSlice, SharedEventLog, StartFrom,
    TopicPartition,
};
use service::{Readiness, Tasks, telemetry};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::{Context, Output, ProcessingGuarantee, Processor, State};
use workload::{PARTITIONS, VALUE_BYTES, Workload, fill, filled, topic, workload};

const COPY_RECORDS: usize = 2_000_000;
const COUNT_RECORDS: usize = 1_000_000;
const SINGLES: usize = 1_000;
const LIMIT: Duration = Duration::from_secs(300);

/// Copies its input.
struct Copy(Arc<str>);

impl Processor for Copy {
    fn process(
        &mut self,
        _: Context,
        records: RecordSlice<'_>,
        _: &mut State,
        output: &mut Output,
    ) -> streams::Result<()> {
        for r in records.iter() {
            let partition = Some(r.partition().partition);
            let out = OutRecord {
                topic: &self.0,
                partition,
                timestamp: None,
                key: r.key(),
                value: r.value(),
            };
            output.send(out, []);
        }
        Ok(())
    }
}

/// Counts records by key and writes each count.
struct Count(Arc<str>);

impl Processor for Count {
    fn process(
        &mut self,
        _: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> streams::Result<()> {
        for r in records.iter() {
            let key = r.key().unwrap_or_default();
            let before = state
                .get(key)?
                .and_then(|value| value.as_ref().try_into().ok())
                .map_or(0, u64::from_be_bytes);
            let after = (before + 1).to_be_bytes();
            state.put(key, after.to_vec());
            let partition = Some(r.partition().partition);
            let out = OutRecord {
                topic: &self.0,
                partition,
                timestamp: None,
                key: Some(key),
                value: Some(&after),
            };
            output.send(out, []);
        }
        Ok(())
    }
}

/// `runtime [kafka|embedded] [PART]`; without a part, all of them.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let part = words.get(1).map(String::as_str);
    let parts = ["copy", "count", "aggregate", "singles", "alone"];
    if let Some(part) = part.filter(|part| !parts.contains(part)) {
        anyhow::bail!("unknown part {part}; use one of {}", parts.join(", "));
    }
    let measure = |log: &SharedEventLog, kafka| measure(log, kafka, &|name| part.is_none_or(|only| only == name));
    match words.first().map_or("kafka", String::as_str) {
        "kafka" => {
            let config = event_log::kafka::Config::new(support::kafka());
            measure(&KafkaLog::connect(config.clone())?, Some(config))
        }
        "embedded" => {
            let directory = tempfile::tempdir()?;
            let config = event_log::embedded::Config::new(Some(directory.path().join("log")), Arc::new(now));
            measure(&EmbeddedLog::open(config)?, None)
        }
        other => anyhow::bail!("unknown log {other}; use kafka or embedded"),
    }
}

fn measure(
    log: &SharedEventLog,
    kafka: Option<event_log::kafka::Config>,
    wanted: &dyn Fn(&str) -> bool,
) -> anyhow::Result<()> {
    println!("{}", log.description());
    let dir = tempfile::tempdir()?;
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let guard = executor.enter();
    if wanted("copy") {
        let workload = filled(log, dir.path(), COPY_RECORDS, |to| Box::new(Copy(to)))?;
        let copied = bulk(log, &executor, "copy", COPY_RECORDS, workload)?;
        if let Some(kafka) = kafka {
            limits(log, &kafka, copied)?;
        }
    }
    if wanted("count") {
        let workload = filled(log, dir.path(), COUNT_RECORDS, |to| Box::new(Count(to)))?;
        bulk(log, &executor, "count", COUNT_RECORDS, workload)?;
    }
    if wanted("aggregate") {
        let workload = aggregate::workload(log, dir.path(), COUNT_RECORDS)?;
        bulk(log, &executor, "declarative count()", COUNT_RECORDS, workload)?;
    }
    if wanted("singles") {
        singles(log, dir.path(), &executor, ProcessingGuarantee::ExactlyOnce)?;
    }
    if wanted("alone") {
        println!("at least once, without transactions:");
        let mut copy = filled(log, dir.path(), COPY_RECORDS, |to| Box::new(Copy(to)))?;
        let mut count = filled(log, dir.path(), COUNT_RECORDS, |to| Box::new(Count(to)))?;
        copy.config.commit.guarantee = ProcessingGuarantee::AtLeastOnce;
        count.config.commit.guarantee = ProcessingGuarantee::AtLeastOnce;
        bulk(log, &executor, "copy", COPY_RECORDS, copy)?;
        bulk(log, &executor, "count", COUNT_RECORDS, count)?;
        singles(log, dir.path(), &executor, ProcessingGuarantee::AtLeastOnce)?;
    }
    drop(guard);
    Ok(())
}

/// Measures the time until the application has committed all records of its input.
fn bulk(
    log: &SharedEventLog,
    executor: &tokio::runtime::Runtime,
    what: &str,
    records: usize,
    workload: Workload,
) -> anyhow::Result<Speed> {
    let inputs: Vec<_> = (0..PARTITIONS)
        .map(|p| TopicPartition::new(workload.from.clone(), p))
        .collect();
    let tasks = Tasks::new();
    let group = workload.application.name.clone();
    let (start, before) = (Instant::now(), telemetry::usage());
    streams::run(
        workload.application,
        workload.config,
        log.clone(),
        streams::Host {
            clock: service::clock::system(),
            tasks: &tasks,
            readiness: &Readiness::new(),
        },
    );
    let first = support::wait_for("the first commit", LIMIT, || {
        let committed = log.committed(&group, &inputs).expect("committed offsets");
        committed
            .values()
            .any(|offset| offset.is_some_and(|offset| offset > 0))
            .then(|| start.elapsed())
    });
    let want = i64::try_from(records)?;
    support::wait_for("everything to be committed", LIMIT, || {
        std::thread::sleep(Duration::from_millis(20));
        let committed = log.committed(&group, &inputs).expect("committed offsets");
        (committed.values().map(|offset| offset.unwrap_or(0)).sum::<i64>() >= want).then_some(())
    });
    let (took, after) = (start.elapsed().as_secs_f64(), telemetry::usage());
    executor.block_on(tasks.join(Duration::from_secs(30)))?;
    let speed = Speed::of(records, took, after.cpu_s - before.cpu_s)?;
    println!("{what} of {records} records, one stream thread, {PARTITIONS} partitions");
    println!(
        "  {speed}, {:.0} MB resident; first commit after {first:.2?}",
        after.resident_bytes / 1e6
    );
    Ok(speed)
}

/// Records per second and per CPU second.
#[derive(Clone, Copy)]
struct Speed {
    a_second: f64,
    a_cpu_second: f64,
}

impl Speed {
    fn of(records: usize, took_s: f64, cpu_s: f64) -> anyhow::Result<Speed> {
        let records = f64::from(u32::try_from(records)?);
        Ok(Speed {
            a_second: records / took_s,
            a_cpu_second: records / cpu_s,
        })
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Speed { a_second, a_cpu_second } = self;
        write!(
            f,
            "{a_second:.0} records/s, {a_cpu_second:.0} records per CPU second of this process"
        )
    }
}

/// Compares with a copy by plain librdkafka, once with the same memory limits and once with 1 GiB of queue.
fn limits(log: &SharedEventLog, kafka: &event_log::kafka::Config, ours: Speed) -> anyhow::Result<()> {
    let unbounded = vec![
        ("queued.max.messages.kbytes", "1048576"),
        ("fetch.max.bytes", "67108864"),
    ];
    for (what, settings) in [("the same memory limits", Vec::new()), ("1 GiB of queue", unbounded)] {
        let (from, to) = (topic(log), topic(log));
        fill(log, &from, COPY_RECORDS)?;
        let copy = baseline::Copy {
            from,
            to,
            partitions: PARTITIONS,
            records: COPY_RECORDS,
            commit_every: Duration::from_millis(100),
            settings,
        };
        let (start, before) = (Instant::now(), telemetry::usage());
        baseline::copy(kafka, &support::unique("bench"), &copy)?;
        let (took, after) = (start.elapsed().as_secs_f64(), telemetry::usage());
        let speed = Speed::of(COPY_RECORDS, took, after.cpu_s - before.cpu_s)?;
        println!("baseline: the same copy by librdkafka alone, with {what}");
        println!(
            "  {speed}; Trunkline reaches {:.2} of it per second (target: 0.75) and {:.2} per CPU second (target: 0.80)",
            ours.a_second / speed.a_second,
            ours.a_cpu_second / speed.a_cpu_second
        );
    }
    Ok(())
}

/// Latency of single records at 200 per second, from the append to a reader of the output.
fn singles(
    log: &SharedEventLog,
    dir: &Path,
    executor: &tokio::runtime::Runtime,
    guarantee: ProcessingGuarantee,
) -> anyhow::Result<()> {
    let mut workload = workload(log, dir, |to| Box::new(Count(to)));
    workload.config.commit.touches_view_log = guarantee == ProcessingGuarantee::ExactlyOnce;
    workload.config.commit.guarantee = guarantee;
    let (tasks, readiness) = (Tasks::new(), Readiness::new());
    streams::run(
        workload.application,
        workload.config,
        log.clone(),
        streams::Host {
            clock: service::clock::system(),
            tasks: &tasks,
            readiness: &readiness,
        },
    );
    support::wait_for("readiness", LIMIT, || readiness.report().ready.then_some(()));
    let at = TopicPartition::new(workload.to.clone(), 0);
    let mut reader = log.reader(Isolation::ReadCommitted)?;
    reader.assign(&[(at.clone(), StartFrom::Offset(log.offset(&at, OffsetSpec::Earliest)?))])?;
    let (mut late, mut batch) = (Vec::with_capacity(SINGLES), RecordBatch::default());
    for _ in 0..SINGLES {
        let mut out = OutBatch::default();
        let record = OutRecord {
            topic: &workload.from,
            partition: Some(0),
            timestamp: None,
            key: Some(b"[1]"),
            value: Some(&[b'x'; VALUE_BYTES]),
        };
        out.push(record, []);
        let start = Instant::now();
        log.append(&out)?;
        while reader.poll(&mut batch, 1 << 20, Duration::from_secs(1))? == 0 {}
        late.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(5).saturating_sub(start.elapsed()));
    }
    executor.block_on(tasks.join(Duration::from_secs(30)))?;
    late.sort();
    let part = |part: usize| late.get(late.len() * part / 1000).copied().unwrap_or_default();
    println!("single records, from the start of the append to a reader of the output");
    println!(
        "  p50 {:.2?}  p90 {:.2?}  p99 {:.2?}  max {:.2?}",
        part(500),
        part(900),
        part(990),
        part(999)
    );
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a benchmark uses the system clock")]
fn now() -> Millis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("the clock is after 1970");
    Millis::try_from(since.as_millis()).expect("milliseconds fit 64 bits")
}
