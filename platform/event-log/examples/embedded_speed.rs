//! Measures the speed of the embedded log and prints the results with their targets. Each measurement also reads the
//! written records and counts them.
//!
//! Run `cargo run --release -p trunkline-event-log --example embedded_speed [memory|disk|singles]`. `singles` uses a directory
//! with a million transactions of one record, before and after their blocks are merged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trunkline_event_log::embedded::{Config, EmbeddedLog};
use trunkline_event_log::{
    Cleanup, Isolation, Millis, OutBatch, OutRecord, Outcome, RecordBatch, SharedEventLog, StartFrom, TopicConfig,
    TopicPartition, TopicSpec, TransactionalProducer, TransactionalProducerConfig,
};

const RECORDS: u32 = 2_000_000;
const PER_TRANSACTION: u32 = 1_000;
const PARTITIONS: u32 = 4;
const SMALL: usize = 5_000;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    if std::env::args().nth(1).is_some_and(|only| only == "singles") {
        return singles();
    }
    for place in ["memory", "disk"] {
        if std::env::args().nth(1).is_some_and(|only| only != place) {
            continue;
        }
        let dir = (place == "disk")
            .then(|| std::env::temp_dir().join(format!("trunkline-embedded-speed-{}", std::process::id())));
        println!("embedded log, {place}");
        measure(dir.clone())?;
        if let Some(dir) = dir {
            std::fs::remove_dir_all(dir)?;
        }
    }
    Ok(())
}

fn open(dir: Option<PathBuf>) -> Result<SharedEventLog, Failure> {
    Ok(EmbeddedLog::open(Config::new(dir, Arc::new(now)))?)
}

#[expect(clippy::disallowed_methods, reason = "a measurement runs on the machine's clock")]
fn now() -> Millis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

fn measure(dir: Option<PathBuf>) -> Result<(), Failure> {
    let log = open(dir.clone())?;
    let config = TopicConfig::new(Cleanup::Delete);
    let spec = |name: &str, partitions: u32| -> Result<TopicSpec, Failure> {
        let partitions = i32::try_from(partitions)?;
        Ok(TopicSpec {
            name: name.to_owned(),
            partitions,
            replication: None,
            config: config.clone(),
        })
    };
    log.create_topics(&[spec("bulk", PARTITIONS)?, spec("small", 1)?])?;
    bulk(&log)?;
    read_all(&log, "read back from the start")?;
    small(&log)?;
    idle(&log)?;
    drop(log);
    if dir.is_some() {
        let began = Instant::now();
        let log = open(dir)?;
        println!("  reopened in {:?}", began.elapsed());
        read_all(&log, "read back after reopening")?;
    }
    Ok(())
}

fn producer(log: &SharedEventLog) -> Result<Box<dyn TransactionalProducer>, Failure> {
    let transaction_timeout = Duration::from_secs(10);
    Ok(log.transactional_producer(TransactionalProducerConfig {
        transactional_id: "speed".to_owned(),
        transaction_timeout,
    })?)
}

fn commit(producer: &mut dyn TransactionalProducer) -> Result<(), Failure> {
    match producer.commit(None) {
        Outcome::Committed(_) => Ok(()),
        other => Err(format!("not committed: {other:?}").into()),
    }
}

/// Writes on one thread and reads committed records on another.
fn bulk(log: &SharedEventLog) -> Result<(), Failure> {
    let (topic, value): (Arc<str>, _) = ("bulk".into(), [7_u8; 184]);
    let mut producer = producer(log)?;
    let mut slowest = Duration::ZERO;
    let (began, cpu) = (Instant::now(), cpu_time());
    std::thread::scope(|scope| -> Result<(), Failure> {
        let reader = std::thread::Builder::new()
            .name("reader".to_owned())
            .spawn_scoped(scope, || drain(log).map_err(|error| error.to_string()))?;
        let mut batch = OutBatch::default();
        for n in 0..RECORDS / PER_TRANSACTION {
            let begun = Instant::now();
            batch.clear();
            for k in 0..PER_TRANSACTION {
                let number = n * PER_TRANSACTION + k;
                let key = [0, 0, 0, number].map(u32::to_be_bytes).concat();
                let partition = Some(i32::try_from(number % PARTITIONS)?);
                let record = OutRecord {
                    topic: &topic,
                    partition,
                    timestamp: None,
                    key: Some(&key),
                    value: Some(&value),
                };
                batch.push(record, []);
            }
            producer.begin()?;
            producer.send(&batch)?;
            commit(&mut *producer)?;
            slowest = slowest.max(begun.elapsed());
        }
        let written = began.elapsed();
        reader.join().map_err(|_| "the reader panicked")??;
        let all = began.elapsed();
        println!("  {RECORDS} records of 200 B in transactions of {PER_TRANSACTION}:");
        println!("    written               {:>9.0} records/s", rate(written));
        println!(
            "    and read committed    {:>9.0} records/s   (target 300,000)",
            rate(all)
        );
        println!("    slowest transaction   {slowest:>9.1?}");
        if let (Some(before), Some(after)) = (cpu, cpu_time()) {
            println!(
                "    records per CPU second{:>9.0}",
                f64::from(RECORDS) / (after - before)
            );
        }
        Ok(())
    })?;
    print_memory();
    Ok(())
}

fn rate(took: Duration) -> f64 {
    f64::from(RECORDS) / took.as_secs_f64()
}

fn drain(log: &SharedEventLog) -> Result<(), Failure> {
    let mut reader = log.reader(Isolation::ReadCommitted)?;
    let partitions: Vec<_> = (0..i32::try_from(PARTITIONS)?)
        .map(|partition| (TopicPartition::new("bulk", partition), StartFrom::Earliest))
        .collect();
    reader.assign(&partitions)?;
    let (mut batch, mut read, mut bytes) = (RecordBatch::default(), 0, 0);
    while read < usize::try_from(RECORDS)? {
        read += reader.poll(&mut batch, 1 << 20, Duration::from_secs(10))?;
        bytes += batch
            .iter()
            .map(|record| record.value().map_or(0, <[u8]>::len))
            .sum::<usize>();
    }
    if bytes != read * 184 {
        return Err("bytes are missing".into());
    }
    Ok(())
}

fn read_all(log: &SharedEventLog, what: &str) -> Result<(), Failure> {
    let began = Instant::now();
    drain(log)?;
    println!("  {what}: {:.0} records/s", rate(began.elapsed()));
    Ok(())
}

/// Writes transactions of one record, as under low load, with a reader that waits for each record.
fn small(log: &SharedEventLog) -> Result<(), Failure> {
    let at = TopicPartition::new("small", 0);
    let mut producer = producer(log)?;
    let mut reader = log.reader(Isolation::ReadCommitted)?;
    reader.assign(&[(at.clone(), StartFrom::Earliest)])?;
    let mut times = Vec::with_capacity(SMALL);
    let mut seen = Vec::with_capacity(SMALL);
    let mut batch = OutBatch::default();
    let topic = &at.topic;
    batch.push(
        OutRecord {
            topic,
            partition: Some(0),
            timestamp: None,
            key: Some(b"k"),
            value: Some(&[7; 184]),
        },
        [],
    );
    let mut read = RecordBatch::default();
    for _ in 0..SMALL {
        let begun = Instant::now();
        producer.begin()?;
        producer.send(&batch)?;
        commit(&mut *producer)?;
        times.push(begun.elapsed());
        if reader.poll(&mut read, 1 << 20, Duration::from_secs(1))? != 1 {
            return Err("the record did not come".into());
        }
        seen.push(begun.elapsed());
    }
    for (what, times) in [("begin to committed", &mut times), ("begin to read", &mut seen)] {
        times.sort();
        let at = |share: usize| times.get(SMALL * share / 1_000).copied().unwrap_or_default();
        println!(
            "  a transaction of one record, {what}: p50 {:?}, p99 {:?}, p99.9 {:?} (target p50 < 1 ms)",
            at(500),
            at(990),
            at(999)
        );
    }
    Ok(())
}

/// A million transactions of one record: cost of reading, opening and a cleaning pass.
fn singles() -> Result<(), Failure> {
    const SINGLES: u32 = 1_000_000;
    let dir = std::env::temp_dir().join(format!("trunkline-embedded-singles-{}", std::process::id()));
    let open = || {
        let mut config = Config::new(Some(dir.clone()), Arc::new(now));
        config.clean_every = None;
        trunkline_event_log::embedded::open(config)
    };
    let at = TopicPartition::new("singles", 0);
    let read = |log: &SharedEventLog, what: &str| -> Result<(), Failure> {
        let mut reader = log.reader(Isolation::ReadCommitted)?;
        reader.assign(&[(at.clone(), StartFrom::Earliest)])?;
        let (mut batch, mut count, began) = (RecordBatch::default(), 0, Instant::now());
        while count < usize::try_from(SINGLES)? {
            count += reader.poll(&mut batch, 1 << 20, Duration::from_secs(10))?;
        }
        let speed = f64::from(SINGLES) / began.elapsed().as_secs_f64();
        println!("  {what}: {speed:.0} records/s");
        Ok(())
    };
    {
        let log: SharedEventLog = open()?;
        let spec = TopicSpec {
            name: at.topic.to_string(),
            partitions: 1,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        log.create_topics(&[spec])?;
        let (mut producer, began) = (producer(&log)?, Instant::now());
        let mut batch = OutBatch::default();
        let record = OutRecord {
            topic: &at.topic,
            partition: Some(0),
            timestamp: None,
            key: Some(b"key"),
            value: Some(&[7; 100]),
        };
        batch.push(record, []);
        for _ in 0..SINGLES {
            producer.begin()?;
            producer.send(&batch)?;
            commit(&mut *producer)?;
        }
        println!("{SINGLES} transactions of one record in {:?}", began.elapsed());
    }
    for round in ["before", "after"] {
        let began = Instant::now();
        let log = open()?;
        println!("{round} merging: opened in {:?}", began.elapsed());
        let shared: SharedEventLog = log.clone();
        read(&shared, "read from the start")?;
        read(&shared, "and again")?;
        let began = Instant::now();
        log.clean(now())?;
        println!("  cleaning pass: {:?}", began.elapsed());
    }
    std::fs::remove_dir_all(&dir)?;
    print_memory();
    Ok(())
}

/// CPU time of twenty readers that wait while there are no new records, after the store has finished its background
/// work.
fn idle(log: &SharedEventLog) -> Result<(), Failure> {
    for _ in 0..30 {
        let before = cpu_time();
        std::thread::sleep(Duration::from_secs(1));
        if cpu_time()
            .zip(before)
            .is_none_or(|(after, before)| after - before < 0.02)
        {
            break;
        }
    }
    let before = cpu_time();
    std::thread::scope(|scope| -> Result<(), Failure> {
        for _ in 0..20 {
            std::thread::Builder::new().spawn_scoped(scope, || -> Result<(), String> {
                let mut reader = log
                    .reader(Isolation::ReadCommitted)
                    .map_err(|error| error.to_string())?;
                let from = [(TopicPartition::new("small", 0), StartFrom::LogEnd)];
                reader.assign(&from).map_err(|error| error.to_string())?;
                let polled = reader.poll(&mut RecordBatch::default(), 1 << 20, Duration::from_secs(3));
                polled.map(|_| ()).map_err(|error| error.to_string())
            })?;
        }
        Ok(())
    })?;
    if let (Some(before), Some(after)) = (before, cpu_time()) {
        println!(
            "  20 readers that wait for 3 s: {:.0} ms of CPU",
            1_000.0 * (after - before)
        );
    }
    Ok(())
}

/// Returns the CPU seconds of this process, if the system provides them.
fn cpu_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

fn print_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(line) = status.lines().find(|line| line.starts_with("VmRSS")) {
        println!("  resident: {}", line.trim_start_matches("VmRSS:").trim());
    }
}
