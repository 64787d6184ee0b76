//! Memory of a connector while it publishes a source transaction that does not fit into it.

use super::harness::Database;
use crate::support::{self, Fleet, unique, wait_for};
use event_log::{Isolation, RecordBatch, StartFrom, TopicPartition};
use std::time::Duration;
use topology::Names;

const LIMIT: Duration = Duration::from_secs(180);
/// About 120 MB of rows.
const ROWS: usize = 300_000;
/// How much the transaction may add to the peak: the buffers of receiver, batch and producer, all of which have limits.
const GROWTH_MAX: u64 = 80 << 20;
/// Limit of the connector's process.
const PEAK_MAX: u64 = 150 << 20;

/// A value of `/proc/PID/status`, in bytes.
fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kilobytes: u64 = line.trim_end_matches("kB").trim().parse().unwrap();
    kilobytes << 10
}

#[test]
fn large_source_transaction_is_not_held_in_memory() {
    let database = Database::new();
    database.sql("CREATE TABLE accounts (id int PRIMARY KEY, n int NOT NULL, filler text NOT NULL); INSERT INTO accounts VALUES (0, 0, '')");
    let name = unique("memory");
    let topology = format!(
        "name = \"{name}\"\n[[connector]]\nname = \"db\"\nkind = \"postgres\"\n\
         [[table]]\nsource = \"db\"\nname = \"accounts\"\nkey = [\"id\"]\n\
         columns = {{ id = \"int4\", n = \"int4\", filler = \"text\" }}\n\
         [[node]]\nname = \"schemas\"\nruns = [\"registry\"]\n[[node]]\nname = \"connector\"\nruns = [\"connector:db\"]\n"
    );
    let settings = format!("[connectors.db]\nurl = \"{}\"\n", database.url);
    let mut fleet = Fleet::new(&topology, &support::kafka(), &settings);
    fleet.start("schemas");
    fleet.wait_ready("schemas", LIMIT);
    fleet.start("connector");
    fleet.wait_ready("connector", LIMIT);
    let pid = fleet.running("connector").unwrap();
    database.sql("UPDATE accounts SET n = 1");
    let topic = Names::of(&name).change("db");
    wait_for("the first change", LIMIT, || (count(&topic) > 2).then_some(()));
    let before = memory(pid, "VmHWM:");
    database.sql(&format!(
        "INSERT INTO accounts SELECT n, 0, repeat(md5(n::text), 12) FROM generate_series(1, {ROWS}) n"
    ));
    wait_for("the transaction", LIMIT, || (count(&topic) > ROWS).then_some(()));
    let peak = memory(pid, "VmHWM:");
    let (before_mb, peak_mb) = (before >> 20, peak >> 20);
    eprintln!("peak of resident memory: {before_mb} MB before, {peak_mb} MB after a transaction of {ROWS} rows");
    assert!(peak - before < GROWTH_MAX, "{before_mb} MB, then {peak_mb} MB");
    assert!(peak < PEAK_MAX, "{peak_mb} MB");
    fleet.stop("connector", LIMIT);
}

/// Number of committed records of a topic.
fn count(topic: &str) -> usize {
    let log = event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(support::kafka())).unwrap();
    let mut reader = log.reader(Isolation::ReadCommitted).unwrap();
    reader
        .assign(&[(TopicPartition::new(topic, 0), StartFrom::Earliest)])
        .unwrap();
    let (mut batch, mut records) = (RecordBatch::default(), 0);
    while reader.poll(&mut batch, 8 << 20, Duration::from_millis(500)).unwrap() > 0 {
        records += batch.iter().count();
    }
    records
}
