//! Benchmark of the PostgreSQL connector with its default settings: snapshot, backlogs of small and of large
//! transactions, and latency of single changes. As a baseline, `pg_recvlogical` receives the same rows and discards them.

#[path = "../e2e/postgres/harness.rs"]
pub mod harness;

use crate::figures::{Times, rate};
use crate::support::{self, postgres_bin, wait_for};
use connectors::status::State;
use event_log::{Isolation, RecordBatch, SharedEventLog, StartFrom, TopicPartition};
use harness::{Connector, Database, Setting, names};
use registry::SharedRegistry;
use service::telemetry::usage;
use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(600);
const CHANGES_AT_A_TIME: usize = 2_000;

/// `postgres [kafka|embedded] [THOUSAND ROWS]`.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let log = match words.first().map_or("kafka", String::as_str) {
        "kafka" => event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(support::kafka()))?,
        "embedded" => {
            let dir = Some(directory.path().join("log"));
            event_log::embedded::EmbeddedLog::open(event_log::embedded::Config::new(dir, harness::clock()))?
        }
        other => anyhow::bail!("unknown log {other}; use kafka or embedded"),
    };
    let thousands = words.get(1).map_or(Ok(1_000), |text| text.parse())?;
    let registry: SharedRegistry = Arc::new(registry::embedded::Embedded::open(log.clone())?);
    println!("{}, {thousands} thousand rows", log.description());
    let database = Arc::new(Database::new());
    bank(&database, thousands);
    backlogs(&database, &log, &registry, thousands);
    one_at_a_time(&database, &log, &registry);
    Ok(())
}

/// Creates the tables of pgbench and a procedure that runs its transaction `n` times.
fn bank(database: &Database, thousands: usize) {
    database.sql(&format!(
        "CREATE TABLE branches (bid int PRIMARY KEY, bbalance int, filler char(88));
         CREATE TABLE tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
         CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
         CREATE TABLE history (hid bigserial PRIMARY KEY, tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
         CREATE TABLE ticks (id bigint PRIMARY KEY, note text);
         INSERT INTO branches SELECT n, 0, '' FROM generate_series(1, 10) n;
         INSERT INTO tellers SELECT n, n % 10 + 1, 0, '' FROM generate_series(1, 100) n;
         INSERT INTO accounts SELECT n, n % 10 + 1, 0, '' FROM generate_series(1, {rows}) n;
         CREATE PROCEDURE trade(n int) LANGUAGE plpgsql AS $$
         BEGIN FOR i IN 1..n LOOP
            UPDATE accounts SET abalance = abalance + 7 WHERE aid = 1 + (i * 7919) % {rows};
            UPDATE tellers SET tbalance = tbalance + 7 WHERE tid = 1 + i % 100;
            UPDATE branches SET bbalance = bbalance + 7 WHERE bid = 1 + i % 10;
            INSERT INTO history (tid, bid, aid, delta, mtime) VALUES (1 + i % 100, 1 + i % 10, 1 + (i * 7919) % {rows}, 7, now());
            COMMIT;
         END LOOP; END $$",
        rows = thousands * 1000
    ));
}

fn setting(database: &Database, log: &SharedEventLog, registry: &SharedRegistry) -> Setting {
    let tables = [
        "branches(bid int4, bbalance int4?, filler bpchar?)",
        "tellers(tid int4, bid int4?, tbalance int4?, filler bpchar?)",
        "accounts(aid int4, bid int4?, abalance int4?, filler bpchar?)",
        "history(hid int8, tid int4?, bid int4?, aid int4?, delta int4?, mtime timestamp?, filler bpchar?)",
        "ticks(id int8, note text?)",
    ];
    Setting::on(database, &tables, log.clone(), registry.clone())
}

fn backlogs(database: &Arc<Database>, log: &SharedEventLog, registry: &SharedRegistry, thousands: usize) {
    let setting = setting(database, log, registry);
    let (begun, cpu) = (Instant::now(), usage().cpu_s);
    let connector = setting.start(database);
    let rows = thousands * 1000 + 110;
    published(&connector, rows);
    figure("snapshot", rows, begun, cpu);
    connector.wait_for(State::Running);
    connector.stop();
    database.sql(&format!(
        "ALTER DATABASE {} SET synchronous_commit = off",
        database.name
    ));
    let small = format!("CALL trade({})", thousands * 250);
    let large = "UPDATE accounts SET abalance = abalance + 1".to_owned();
    for (what, sql) in [
        ("small transactions of 4 changes", small),
        ("one large transaction", large),
    ] {
        compared(&setting, database, what, &sql, thousands * 1000);
    }
}

/// Writes a backlog while the connector is stopped, then lets `pg_recvlogical` and the connector catch up in turn.
fn compared(setting: &Setting, database: &Database, what: &str, sql: &str, rows: usize) {
    let baseline = CompetingConsumer::new(database);
    database.sql(sql);
    let end = baseline.end();
    database.sql("INSERT INTO ticks VALUES (-1, ''); DELETE FROM ticks WHERE id = -1");
    let alone = baseline.receive(&format!("trunkline_{}", setting.name), &end);
    let (begun, cpu) = (Instant::now(), usage().cpu_s);
    let connector = setting.start(database);
    published(&connector, rows);
    figure(what, rows, begun, cpu);
    println!("    pg_recvlogical, discarded: {:.0} rows/s", rate(rows, alone));
    connector.stop();
}

/// A replication slot for `pg_recvlogical`, which starts at the LSN of its creation.
pub struct CompetingConsumer<'d> {
    database: &'d Database,
    slot: String,
}

impl CompetingConsumer<'_> {
    pub fn new(database: &Database) -> CompetingConsumer<'_> {
        let slot = support::unique("baseline").replace('-', "_");
        let sql = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
        database.sql(&sql);
        CompetingConsumer { database, slot }
    }

    /// The current insert LSN.
    pub fn end(&self) -> String {
        let sql = "SELECT pg_current_wal_insert_lsn()";
        self.database.value(sql).expect("an LSN")
    }

    /// Time that `pg_recvlogical` takes to receive and discard everything up to `end`. It stops at the first change
    /// after `end`, so the caller must have written such a change.
    pub fn receive(self, publication: &str, end: &str) -> Duration {
        let begun = Instant::now();
        let received = Command::new(postgres_bin().join("pg_recvlogical"))
            .args([
                "-d",
                &self.database.url,
                "--slot",
                &self.slot,
                "--start",
                "-f",
                "-",
                "--endpos",
                end,
            ])
            .args([
                "-o",
                "proto_version=1",
                "-o",
                &format!("publication_names={publication}"),
            ])
            .stdout(Stdio::null())
            .status();
        let took = begun.elapsed();
        assert!(received.expect("pg_recvlogical runs").success());
        let free = format!(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = '{}' AND NOT active",
            self.slot
        );
        wait_for("the baseline's slot to be inactive", LIMIT, || {
            self.database.value(&free)
        });
        self.database
            .sql(&format!("SELECT pg_drop_replication_slot('{}')", self.slot));
        took
    }
}

fn published(connector: &Connector, rows: usize) {
    wait_for("the rows to be published", LIMIT, || {
        let report = connector.handle.report();
        assert!(report.cause.is_none(), "{report:?}");
        (report.records_total >= u64::try_from(rows).expect("a count")).then_some(())
    });
}

fn figure(what: &str, rows: usize, begun: Instant, cpu: f64) {
    let (elapsed, cpu) = (begun.elapsed(), usage().cpu_s - cpu);
    #[expect(clippy::as_conversions, reason = "a printed figure")]
    let per_cpu = rows as f64 / cpu;
    println!(
        "{what}: {rows} rows in {elapsed:.2?}, {:.0} rows/s, {per_cpu:.0} rows per CPU second of this process",
        rate(rows, elapsed)
    );
}

/// Latency at 200 changes per second, from the response to COMMIT until a reader of the topic has the record.
fn one_at_a_time(database: &Arc<Database>, log: &SharedEventLog, registry: &SharedRegistry) {
    database.sql("TRUNCATE accounts, history");
    let other = Arc::new(Database::new());
    other.sql("CREATE TABLE ticks (id bigint PRIMARY KEY, note text)");
    let setting = Setting::on(&other, &["ticks(id int8, note text?)"], log.clone(), registry.clone());
    let connector = setting.start(&other);
    connector.wait_for(State::Running);
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashMap::new())));
    let (inside, noted) = (stop.clone(), seen.clone());
    let mut reader = log.reader(Isolation::ReadCommitted).expect("open a reader");
    reader
        .assign(&[(
            TopicPartition::new(names().change(&setting.name), 0),
            StartFrom::Earliest,
        )])
        .expect("assign");
    let thread = std::thread::Builder::new().name("reader".to_owned()).spawn(move || {
        let mut batch = RecordBatch::default();
        while !inside.load(Ordering::Relaxed) {
            reader
                .poll(&mut batch, 1 << 20, Duration::from_millis(50))
                .expect("poll");
            let now = Instant::now();
            let keys = batch.iter().filter_map(|r| r.key().map(<[u8]>::to_vec));
            noted.lock().expect("unpoisoned").extend(keys.map(|key| (key, now)));
        }
    });
    let thread = thread.expect("a thread starts");
    let mut answered = Vec::with_capacity(CHANGES_AT_A_TIME);
    other.on_one_connection(|run| {
        let mut due = Instant::now();
        for n in 0..CHANGES_AT_A_TIME {
            due += Duration::from_millis(5);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            run(&format!("INSERT INTO ticks VALUES ({n}, 'a note')"));
            answered.push(Instant::now());
        }
    });
    std::thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("the reader ends");
    let seen = seen.lock().expect("unpoisoned");
    let late = |(n, at): (usize, &Instant)| {
        seen.get(format!("[\"ticks\",\"{n}\"]").as_bytes())
            .map(|seen| seen.saturating_duration_since(*at))
    };
    let late = Times::new(answered.iter().enumerate().filter_map(late).collect());
    println!(
        "200 changes/s, response to COMMIT → read_committed reader: {} of {CHANGES_AT_A_TIME} received, p50 {:.2?} (target: \
         ≤ 8 ms), p90 {:.2?}, p99 {:.2?}, max {:.2?}",
        late.count(),
        late.at(500),
        late.at(900),
        late.at(990),
        late.longest()
    );
}
