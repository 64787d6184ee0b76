//! Benchmark of the event log: latency of small transactions and throughput of an exactly-once copy, with the same
//! workload on each backend and the default settings of a node.

use crate::figures::Times;
use crate::support;
use event_log::embedded::EmbeddedLog;
use event_log::kafka::KafkaLog;
use event_log::{
    Cleanup, Event, GroupConfig, GroupConsumer, Isolation, Millis, OutBatch, OutRecord, Outcome, RecordBatch,
    SharedEventLog, StartFrom, TopicConfig, TopicPartition, TopicSpec, TransactionalProducer,
    TransactionalProducerConfig,
};
use service::telemetry::usage;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const SMALL: usize = 1_000;
const COPY_RECORDS: usize = 2_000_000;
const COPY_BYTES: usize = 200;
const PARTITIONS: i32 = 4;

/// `log [kafka|embedded]`.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    match words.first().map_or("kafka", String::as_str) {
        "kafka" => measure(&KafkaLog::connect(event_log::kafka::Config::new(support::kafka()))?),
        "embedded" => {
            let directory = tempfile::tempdir()?;
            let config = event_log::embedded::Config::new(Some(directory.path().join("log")), Arc::new(now));
            measure(&EmbeddedLog::open(config)?);
        }
        other => anyhow::bail!("unknown log {other}; use kafka or embedded"),
    }
    Ok(())
}

fn measure(log: &SharedEventLog) {
    println!("{}", log.description());
    small_transactions(log, false);
    small_transactions(log, true);
    copy(log);
}

/// Transactions of one record and one offset: the cost of a row change at low load.
fn small_transactions(log: &SharedEventLog, paced: bool) {
    let topic = topic(log, 1);
    let at = TopicPartition::new(topic.clone(), 0);
    let mut member = joined(log, &topic);
    let mut producer = producer(log);
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let (ready, is_ready) = mpsc::channel();
    let (reader_log, reader_stop, reader_at, began) = (log.clone(), stop.clone(), at.clone(), Instant::now());
    let seen_sent = sent.clone();
    let reader = std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
        let mut reader = reader_log.reader(Isolation::ReadCommitted).expect("a reader");
        reader.assign(&[(reader_at, StartFrom::LogEnd)]).expect("assign");
        ready.send(()).expect("the receiver is open");
        let (mut batch, mut late) = (RecordBatch::default(), Vec::new());
        while !reader_stop.load(Ordering::Relaxed) {
            if reader
                .poll(&mut batch, 1 << 20, Duration::from_millis(50))
                .expect("poll")
                > 0
            {
                late.push(nanos(began) - seen_sent.load(Ordering::SeqCst));
            }
        }
        late
    });
    is_ready.recv().expect("the reader is ready");
    let (mut commits, mut batch) = (Vec::with_capacity(SMALL), RecordBatch::default());
    for n in 0..SMALL {
        if paced {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut records = OutBatch::default();
        records.push(record(&topic, 0, &[b'x'; COPY_BYTES]), []);
        drop(member.poll(&mut batch, 1 << 20, Duration::ZERO).expect("poll"));
        let membership = member.group_metadata().expect("joined");
        let start = Instant::now();
        sent.store(nanos(began), Ordering::SeqCst);
        producer.begin().expect("begin");
        producer.send(&records).expect("send");
        let offset = i64::try_from(n).expect("small");
        let outcome = producer.commit(Some((&membership, &[(at.clone(), offset)])));
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
        commits.push(start.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    let late = reader.expect("a thread").join().expect("the reader ends");
    let late = late
        .into_iter()
        .map(|n| Duration::from_nanos(u64::try_from(n).unwrap_or(0)))
        .collect();
    let how = if paced { "200 per second" } else { "back to back" };
    println!("{SMALL} transactions of one record and one offset, {how}");
    println!(
        "  begin to committed       {}   (target: p50 about 3 ms)",
        percentiles(commits)
    );
    println!("  begin to a reader        {}", percentiles(late));
}

/// Copies every record of a topic exactly once, in transactions of 100 ms.
fn copy(log: &SharedEventLog) {
    let (from, to) = (topic(log, PARTITIONS), topic(log, PARTITIONS));
    fill(log, &from);
    let mut member = joined(log, &from);
    let mut producer = producer(log);
    let (mut batch, mut out) = (RecordBatch::default(), OutBatch::default());
    let mut next = vec![0; usize::try_from(PARTITIONS).expect("few")];
    let (mut copied, mut commits) = (0, 0);
    let (start, cpu) = (Instant::now(), usage().cpu_s);
    while copied < COPY_RECORDS {
        producer.begin().expect("begin");
        let opened = Instant::now();
        while opened.elapsed() < Duration::from_millis(100) && copied < COPY_RECORDS {
            match member
                .poll(&mut batch, 1 << 20, Duration::from_millis(20))
                .expect("poll")
            {
                Event::Records => {}
                Event::Idle => continue,
                other => panic!("{other:?}"),
            }
            out.clear();
            for r in batch.iter() {
                let partition = r.partition().partition;
                let record = OutRecord {
                    topic: &to,
                    partition: Some(partition),
                    timestamp: None,
                    key: r.key(),
                    value: r.value(),
                };
                out.push(record, []);
                *next.get_mut(usize::try_from(partition).expect("few")).expect("few") = r.offset() + 1;
            }
            copied += batch.len();
            producer.send(&out).expect("send");
        }
        let offsets: Vec<_> = (0..)
            .zip(&next)
            .map(|(p, o)| (TopicPartition::new(from.clone(), p), *o))
            .collect();
        let membership = member.group_metadata().expect("joined");
        let outcome = producer.commit(Some((&membership, &offsets)));
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
        commits += 1;
    }
    let (took, cpu) = (start.elapsed().as_secs_f64(), usage().cpu_s - cpu);
    let count = f64::from(u32::try_from(copied).expect("few"));
    println!("exactly-once copy of {COPY_RECORDS} records of {COPY_BYTES} B, {commits} commits");
    println!(
        "  {:.0} records/s, {:.0} records per CPU second of this process",
        count / took,
        count / cpu
    );
}

fn fill(log: &SharedEventLog, topic: &Arc<str>) {
    let mut producer = producer(log);
    let (value, chunk) = ([b'x'; COPY_BYTES], 20_000);
    let (start, cpu) = (Instant::now(), usage().cpu_s);
    for _ in 0..COPY_RECORDS / (10 * chunk) {
        producer.begin().expect("begin");
        for _ in 0..10 {
            let mut out = OutBatch::default();
            for n in 0..chunk {
                out.push(record(topic, i32::try_from(n).expect("few") % PARTITIONS, &value), []);
            }
            producer.send(&out).expect("send");
        }
        let outcome = producer.commit(None);
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }
    let count = f64::from(u32::try_from(COPY_RECORDS).expect("few"));
    let (took, cpu) = (start.elapsed().as_secs_f64(), usage().cpu_s - cpu);
    println!(
        "write: {:.0} records/s, {:.0} records per CPU second",
        count / took,
        count / cpu
    );
}

fn record<'a>(topic: &'a Arc<str>, partition: i32, value: &'a [u8]) -> OutRecord<'a> {
    OutRecord {
        topic,
        partition: Some(partition),
        timestamp: None,
        key: None,
        value: Some(value),
    }
}

fn topic(log: &SharedEventLog, partitions: i32) -> Arc<str> {
    let name = support::unique("bench");
    let config = TopicConfig::new(Cleanup::Delete);
    log.create_topics(&[TopicSpec {
        name: name.clone(),
        partitions,
        replication: None,
        config,
    }])
    .expect("a topic");
    name.into()
}

fn producer(log: &SharedEventLog) -> Box<dyn TransactionalProducer> {
    let transaction_timeout = Duration::from_secs(10);
    log.transactional_producer(TransactionalProducerConfig {
        transactional_id: support::unique("bench"),
        transaction_timeout,
    })
    .expect("create a transactional producer")
}

/// A group consumer that reads the whole topic from offset 0.
fn joined(log: &SharedEventLog, topic: &Arc<str>) -> Box<dyn GroupConsumer> {
    let config = GroupConfig {
        group: support::unique("bench"),
        instance: None,
        topics: vec![topic.clone()],
        session_timeout: Duration::from_secs(10),
        protocol: event_log::GroupProtocol::Classic,
    };
    let mut member = log.group(config).expect("a member");
    let mut batch = RecordBatch::default();
    let assigned = support::wait_for("the assignment", Duration::from_secs(30), || {
        match member.poll(&mut batch, 1, Duration::from_millis(50)).expect("poll") {
            Event::Assigned(partitions) => Some(partitions),
            _ => None,
        }
    });
    assigned.iter().for_each(|at| member.start(at, 0).expect("start"));
    member
}

fn percentiles(all: Vec<Duration>) -> String {
    let all = Times::new(all);
    format!(
        "p50 {:.2?}  p90 {:.2?}  p99 {:.2?}  max {:.2?}",
        all.at(500),
        all.at(900),
        all.at(990),
        all.at(999)
    )
}

fn nanos(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_nanos()).unwrap_or(i64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark uses the system clock")]
fn now() -> Millis {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("the clock is after 1970");
    Millis::try_from(since.as_millis()).expect("milliseconds fit 64 bits")
}
