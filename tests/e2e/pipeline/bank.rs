//! pgbench over Kafka with one process per node. The nodes are killed in turn with SIGKILL; then an edge rebuilds its
//! replica from a `view.log` that the log cleaner has compacted.

use super::harness::Harness;
use crate::support::{alter_topic, sql, wait_for};
use event_log::{Isolation, OffsetSpec, RecordBatch, SharedEventLog, StartFrom, TopicPartition};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(180);
const VIEW_LOG: &str = "pgbench.view.log";

/// Topic settings that make Kafka's log cleaner compact within seconds. The minimum of `segment.bytes` in Kafka 4 is
/// 1 MiB.
const CLEANER: [(&str, &str); 4] = [
    ("segment.bytes", "1048576"),
    ("segment.ms", "2000"),
    ("min.compaction.lag.ms", "8000"),
    ("min.cleanable.dirty.ratio", "0.1"),
];

#[test]
fn pgbench_transactions_reach_devices_atomically() {
    let mut harness = Harness::new(5);
    harness.fleet.start_all();
    harness.fleet.wait_all_ready(LIMIT);
    harness.start_devices();
    harness.more_pages(1, LIMIT);
    let mut kills = 0;
    let mut load = harness.load(&["-c", "4", "-T", "60"]);
    for victim in ["connector", "processor", "edge-1"].iter().cycle() {
        harness.more_pages_or(2, LIMIT, &mut || !load.runs());
        if !load.runs() {
            break;
        }
        harness.fleet.kill(victim);
        harness.fleet.start(victim);
        harness.fleet.wait_ready(victim, LIMIT);
        kills += 1;
    }
    load.wait();
    assert!(
        kills >= 3,
        "only {kills} kills: not every node was killed under the load"
    );
    let trades = sql(&harness.postgres.url(), "SELECT count(*) FROM pgbench_history");
    let removed = rebuild_edge_under_the_cleaner(&mut harness);
    eprintln!(
        "{trades} transactions in 60 s, {kills} kills; {removed} records were removed before edge-2 started over"
    );
    harness.compare(LIMIT);
}

/// Starts an edge without data after the cleaner has compacted `view.log` under load. Returns the number of removed
/// records.
fn rebuild_edge_under_the_cleaner(harness: &mut Harness) -> u64 {
    harness.fleet.kill("edge-2");
    harness.fleet.wipe("edge-2");
    alter_topic(&harness.broker.bootstrap(), VIEW_LOG, &CLEANER);
    let load = harness.load(&["-c", "4", "-T", "200", "-R", "200"]);
    let log = event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(harness.broker.bootstrap())).unwrap();
    let removed = wait_for("the cleaner to remove records", LIMIT, || {
        std::thread::park_timeout(Duration::from_secs(1));
        let removed = superseded(&log);
        (removed > 1_000).then_some(removed)
    });
    harness.fleet.start("edge-2");
    harness.fleet.wait_ready("edge-2", LIMIT);
    harness.more_pages(4, LIMIT);
    drop(load);
    removed
}

/// Number of records of `branches` that the cleaner has removed from `view.log`: each transaction writes one record of
/// `branches` and one record of `history`, and the latter is never superseded.
fn superseded(log: &SharedEventLog) -> u64 {
    let partitions = log.describe(VIEW_LOG).unwrap().expect("it exists").partitions;
    let all: Vec<TopicPartition> = (0..partitions).map(|p| TopicPartition::new(VIEW_LOG, p)).collect();
    let ends = log.offsets(&all, OffsetSpec::LastStable).unwrap();
    let mut reader = log.reader(Isolation::ReadCommitted).unwrap();
    let from: Vec<_> = all.iter().map(|at| (at.clone(), StartFrom::Earliest)).collect();
    reader.assign(&from).unwrap();
    let (mut history, mut branches, mut batch) = (0_u64, 0_u64, RecordBatch::default());
    while all
        .iter()
        .zip(&ends)
        .any(|(at, end)| reader.position(at).unwrap_or(0) < *end)
    {
        reader.poll(&mut batch, 8 << 20, Duration::from_millis(200)).unwrap();
        for key in batch.iter().filter_map(|record| record.key()) {
            let key = std::str::from_utf8(key).unwrap();
            history += u64::from(key.contains("\",\"history\","));
            branches += u64::from(key.contains("\",\"branches\","));
        }
    }
    history.saturating_sub(branches)
}
