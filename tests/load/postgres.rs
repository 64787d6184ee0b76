//! The postgres connector: snapshot, a backlog of small and of large transactions, and one change at a time.
//!
//! Guarantees: the same rows go through `pg_recvlogical` beside it, which only throws them away. Never: settings that
//! a node would not run with.

#[path = "../it/postgres/stand.rs"]
pub mod stand;

use crate::world::{self, postgres_bin, wait_for};
use connectors::status::State;
use log::{Isolation, RecordBatch, SharedLog, StartFrom, TopicPartition};
use registry::SharedRegistry;
use stand::{Connector, Database, Setting};
use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(600);
const CHANGES_AT_A_TIME: usize = 2_000;

/// Runs on Kafka or on the embedded log: `postgres [kafka|embedded] [THOUSAND ROWS]`.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let log = match words.first().map_or("kafka", String::as_str) {
        "kafka" => log::kafka::KafkaLog::connect(log::kafka::Config::new(world::kafka()))?,
        "embedded" => {
            let dir = Some(directory.path().join("log"));
            log::embedded::EmbeddedLog::open(log::embedded::Config::new(dir, stand::clock()))?
        }
        other => anyhow::bail!("{other} is not a home of the log: kafka or embedded"),
    };
    let thousands = words.get(1).map_or(Ok(1_000), |text| text.parse())?;
    let registry: SharedRegistry = Arc::new(registry::embedded::Embedded::open(log.clone())?);
    println!("{}, {thousands} thousand rows", log.describe_self());
    let database = Arc::new(Database::new());
    bank(&database, thousands);
    backlogs(&database, &log, &registry, thousands);
    one_at_a_time(&database, &log, &registry);
    Ok(())
}

/// The four tables of pgbench, and a procedure that does its transaction many times.
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

fn setting(database: &Database, log: &SharedLog, registry: &SharedRegistry) -> Setting {
    let tables = [
        "branches(bid int4, bbalance int4?, filler bpchar?)",
        "tellers(tid int4, bid int4?, tbalance int4?, filler bpchar?)",
        "accounts(aid int4, bid int4?, abalance int4?, filler bpchar?)",
        "history(hid int8, tid int4?, bid int4?, aid int4?, delta int4?, mtime timestamp?, filler bpchar?)",
        "ticks(id int8, note text?)",
    ];
    Setting::on(database, &tables, log.clone(), registry.clone())
}

fn backlogs(database: &Arc<Database>, log: &SharedLog, registry: &SharedRegistry, thousands: usize) {
    let setting = setting(database, log, registry);
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let connector = setting.start(database);
    let rows = thousands * 1000 + 110;
    published(&connector, rows);
    figure("snapshot", rows, begun, cpu);
    connector.wait_for(State::Running);
    connector.stop().expect("a clean end");
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

/// Makes a backlog while the connector is away, and lets it and `pg_recvlogical` catch up, one after the other.
fn compared(setting: &Setting, database: &Database, what: &str, sql: &str, rows: usize) {
    let rival = world::unique("rival").replace('-', "_");
    database.sql(&format!(
        "SELECT pg_create_logical_replication_slot('{rival}', 'pgoutput')"
    ));
    database.sql(sql);
    let end = database.value("SELECT pg_current_wal_insert_lsn()").expect("a place");
    database.sql("INSERT INTO ticks VALUES (-1, ''); DELETE FROM ticks WHERE id = -1");
    let begun = Instant::now();
    receive(&database.url, &rival, &format!("trunkline_{}", setting.name), &end);
    let alone = begun.elapsed();
    database.sql(&format!("SELECT pg_drop_replication_slot('{rival}')"));
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let connector = setting.start(database);
    published(&connector, rows);
    figure(what, rows, begun, cpu);
    println!("    pg_recvlogical, thrown away: {:.0} rows/s", rate(rows, alone));
    connector.stop().expect("a clean end");
}

/// Lets `pg_recvlogical` read a slot up to this place, and throw away what it reads.
pub fn receive(url: &str, slot: &str, publication: &str, end: &str) {
    let received = Command::new(postgres_bin().join("pg_recvlogical"))
        .args(["-d", url, "--slot", slot, "--start", "-f", "-", "--endpos", end])
        .args([
            "-o",
            "proto_version=1",
            "-o",
            &format!("publication_names={publication}"),
        ])
        .stdout(Stdio::null())
        .status();
    assert!(received.expect("pg_recvlogical runs").success());
}

fn published(connector: &Connector, rows: usize) {
    wait_for("the rows to be published", LIMIT, || {
        let report = connector.handle.report();
        assert!(report.cause.is_none(), "{report:?}");
        (report.records_total >= u64::try_from(rows).expect("a count")).then_some(())
    });
}

fn figure(what: &str, rows: usize, begun: Instant, cpu: f64) {
    let (elapsed, cpu) = (begun.elapsed(), cpu_seconds() - cpu);
    #[expect(clippy::as_conversions, reason = "a figure for people")]
    let per_cpu = rows as f64 / cpu;
    println!(
        "{what}: {rows} rows in {elapsed:.2?}, {:.0} rows/s, {per_cpu:.0} rows per CPU second of this process",
        rate(rows, elapsed)
    );
}

#[expect(clippy::as_conversions, reason = "a figure for people")]
fn rate(rows: usize, elapsed: Duration) -> f64 {
    rows as f64 / elapsed.as_secs_f64()
}

/// CPU seconds of this process so far, from `/proc`: fields 14 and 15, in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = text.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

/// 200 changes a second: from the answer to the database's COMMIT until a reader of the topic has it.
fn one_at_a_time(database: &Arc<Database>, log: &SharedLog, registry: &SharedRegistry) {
    database.sql("TRUNCATE accounts, history");
    let other = Arc::new(Database::new());
    other.sql("CREATE TABLE ticks (id bigint PRIMARY KEY, note text)");
    let setting = Setting::on(&other, &["ticks(id int8, note text?)"], log.clone(), registry.clone());
    let connector = setting.start(&other);
    connector.wait_for(State::Running);
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashMap::new())));
    let (inside, noted) = (stop.clone(), seen.clone());
    let mut reader = log.reader(Isolation::ReadCommitted).expect("a reader");
    reader
        .assign(&[(
            TopicPartition::new(format!("change.{}", setting.name), 0),
            StartFrom::Start,
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
    other.session(|run| {
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
    let mut late: Vec<Duration> = answered.iter().enumerate().filter_map(late).collect();
    late.sort();
    let at = |part: usize| late.get(late.len() * part / 1000).copied().unwrap_or_default();
    println!(
        "200 changes/s, COMMIT's answer → read_committed reader: {} of {CHANGES_AT_A_TIME} seen, p50 {:.2?} (≤ 8 ms), p90 {:.2?}, p99 {:.2?}, max {:.2?}",
        late.len(),
        at(500),
        at(900),
        at(990),
        late.last().copied().unwrap_or_default()
    );
}
