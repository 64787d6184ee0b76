//! Crash recovery, outages and duplicate connectors: no record is lost or repeated, and no operator has to intervene
//! (invariant C14).

use super::harness::{Connector, Database, LIMIT, Setting, Topic, clock, names};
use crate::support::{self, Broker, Postgres, wait_for};
use connectors::commands::Command;
use connectors::source;
use connectors::status::{Handle, State};
use event_log::SharedEventLog;
use registry::SharedRegistry;
use service::{Drain, Readiness};
use std::path::Path;
use std::process::{self, Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Set in the child process only: address of its log, database, and name of the connector.
const CHILD: &str = "TRUNKLINE_TEST_CONNECTOR_CHILD";
const TABLES: [&str; 2] = [
    "accounts(id int4, balance int8)",
    "history(id int8, account int4, delta int8)",
];

/// Failpoints up to the end of the snapshot, and for each the pass at which it kills the process. The entries are run
/// in sequence, with one process each.
pub const SNAPSHOT_DEATHS: [&str; 7] = [
    "connector.initialized=kill",
    "connector.opened=kill",
    "connector.postgres.before_slot=kill",
    "connector.postgres.after_slot=kill",
    "connector.postgres.low_watermark=kill@2",
    "connector.postgres.chunk=kill@2",
    "connector.postgres.snapshot_end=kill",
];

/// Failpoints after the snapshot at which the process can be killed.
const STREAM_DEATHS: [&str; 9] = [
    "connector.before_send=kill@9",
    "connector.after_send=kill@9",
    "connector.before_commit=kill@12",
    "connector.after_commit=kill@12",
    "connector.after_acknowledge=kill@13",
    "connector.after_commit=kill",
    "connector.after_commit=kill@2",
    "connector.before_commit=kill@40",
    "connector.after_send=kill@30",
];

/// Address of a connector's log: `embedded DIR` or `kafka ADDRESS`.
fn open(place: &str) -> (SharedEventLog, SharedRegistry) {
    let log = match place.split_once(' ').unwrap() {
        ("embedded", dir) => {
            let dir = Path::new(dir).to_path_buf();
            event_log::embedded::EmbeddedLog::open(event_log::embedded::Config::new(Some(dir), clock())).unwrap()
        }
        (_, address) => {
            let mut config = event_log::kafka::Config::new(address);
            config.request_timeout = Duration::from_secs(5);
            event_log::kafka::KafkaLog::connect(config).unwrap()
        }
    };
    let registry = Arc::new(registry::embedded::Embedded::open(log.clone()).unwrap());
    (log, registry)
}

/// Main function of the child process. When run as a test it does nothing, because the variable is not set.
#[test]
fn child_runs_a_connector_until_killed() {
    let Some(child) = service::config::env(CHILD) else {
        return;
    };
    service::service::arm_failpoints().unwrap();
    let [place, url, name]: [String; 3] = serde_json::from_str(&child).unwrap();
    let (log, registry) = open(&place);
    let setting = Setting::named(name, url, &TABLES, log, registry);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let handle = Handle::new(&setting.name, Readiness::new().register("child"));
    let context = setting.context(handle, runtime.handle().clone());
    source::run(setting.source().unwrap(), &context, &Drain::new());
}

struct Killed(Child);

impl Killed {
    fn start(place: &str, url: &str, name: &str, failpoints: &str) -> Self {
        let child = serde_json::to_string(&[place, url, name]).unwrap();
        let process = process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "postgres::fault_injection::child_runs_a_connector_until_killed",
                "--nocapture",
            ])
            .env(CHILD, child)
            .env(service::config::FAILPOINTS, failpoints)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Killed(process)
    }

    fn died(&mut self, at: &str) {
        wait_for(&format!("the child to die at {at}"), LIMIT, || {
            self.0.try_wait().unwrap()
        });
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn bank(database: &Database) {
    database.sql(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
         CREATE TABLE history (id bigserial PRIMARY KEY, account int NOT NULL, delta bigint NOT NULL);
         INSERT INTO accounts SELECT n, 0 FROM generate_series(1, 3000) n",
    );
}

/// Transfers money until it is dropped, or a given number of times. Every transfer changes both tables. Some
/// transactions change many rows, some none.
struct Business {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Business {
    fn begin(database: &Arc<Database>, transactions_max: u64) -> Self {
        let (stop, database) = (Arc::new(AtomicBool::new(false)), database.clone());
        let inside = stop.clone();
        let thread = std::thread::Builder::new().name("business".to_owned());
        let work = move || {
            let mut n = 0_u64;
            while n < transactions_max && !inside.load(Ordering::Relaxed) {
                n += 1;
                let many = if n.is_multiple_of(10) { 1500 } else { 3 };
                let end = if n.is_multiple_of(7) { "ROLLBACK" } else { "COMMIT" };
                let moved = format!("SELECT id, id % 7 + {n} AS delta FROM accounts WHERE (id + {n}) % 3000 < {many}");
                database.sql(&format!(
                    "BEGIN; WITH moved AS ({moved}), done AS (UPDATE accounts a SET balance = balance + delta FROM moved m
                       WHERE a.id = m.id) INSERT INTO history (account, delta) SELECT id, delta FROM moved; {end}"
                ));
            }
        };
        Business {
            stop,
            thread: Some(thread.spawn(work).unwrap()),
        }
    }
}

impl Business {
    /// Waits until all transfers are done.
    fn ended(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Business {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn settle(database: &Database, topic: &mut Topic) {
    let count = |table: &str| {
        database
            .value(&format!("SELECT count(*) FROM {table}"))
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    let want = count("accounts") + count("history");
    let end = database.value("SELECT pg_current_wal_lsn()").unwrap();
    database.sql("INSERT INTO history VALUES (0, 0, 0)");
    topic.wait(&format!("everything up to {end}"), |records| {
        records.iter().any(|r| r.key == r#"["history","0"]"#)
    });
    let rows = topic.rows();
    if rows.len() != want + 1 {
        let ids = database.sql("SELECT id FROM history ORDER BY id");
        let missing: Vec<String> = ids
            .iter()
            .map(|r| r[0].clone().unwrap())
            .filter(|id| !rows.contains_key(&format!("[\"history\",\"{id}\"]")))
            .collect();
        eprintln!(
            "missing {} first {:?} last {:?}",
            missing.len(),
            missing.first(),
            missing.last()
        );
        let first: u64 = missing[0].parse().unwrap();
        let mut last_pos = String::new();
        for (n, r) in topic.records.iter().enumerate() {
            let pos = r.tx.position.to_string();
            if pos != last_pos {
                if r.table == "history" || r.table == "accounts" {
                    eprintln!(
                        "tx {pos} epoch {} first {} at {n} ord {}",
                        r.tx.source_epoch,
                        r.line(),
                        r.tx.ordinal
                    );
                }
                last_pos = pos;
            }
        }
        eprintln!("first missing {first}");
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(rows.len(), want + 1, "rows on the topic and in the database");
    let balances = database.sql("SELECT id, balance FROM accounts");
    for row in balances {
        let [id, balance] = [0, 1].map(|at| row[at].clone().unwrap());
        assert_eq!(
            rows[&format!("[\"accounts\",{id}]")],
            format!("{{\"id\":{id},\"balance\":\"{balance}\"}}")
        );
    }
}

/// At the end of every source transaction after the snapshot, the balances must be the sums of the history.
fn never_half(topic: &Topic) {
    let mut balances = std::collections::HashMap::new();
    let mut sums = std::collections::HashMap::new();
    let mut open: i64 = 0;
    let field = |row: &str, name: &str| -> i64 {
        let value: serde_json::Value = serde_json::from_str(row).unwrap();
        let value = &value[name];
        value
            .as_i64()
            .unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
    };
    let newest = topic.records.iter().map(|r| r.tx.source_epoch).max().unwrap();
    let mut chunks = 0;
    for record in topic.records.iter().filter(|r| r.tx.source_epoch == newest) {
        if record.key.starts_with("[\"~chunk") {
            chunks += 1;
        } else if record.table == "accounts" {
            let now = field(&record.row, "balance");
            open += now - balances.insert(record.key.clone(), now).unwrap_or(0);
        } else if sums.insert(record.key.clone(), ()).is_none() {
            open -= field(&record.row, "delta");
        }
        if record.tx.last && chunks == 2 {
            assert_eq!(open, 0, "half a transaction ends at {}", record.line());
        }
    }
    assert_eq!(chunks, 2);
}

fn survives_deaths(place: &str, log: impl Fn() -> (SharedEventLog, SharedRegistry)) {
    let database = Arc::new(Database::new());
    bank(&database);
    let setting = {
        let (log, registry) = log();
        Setting::on(&database, &TABLES, log, registry)
    };
    let (name, url) = (setting.name.clone(), setting.url.clone());
    // Only one process can have an embedded log open, which is the child.
    drop(setting);
    let business = Business::begin(&database, u64::MAX);
    for death in SNAPSHOT_DEATHS.into_iter().chain(STREAM_DEATHS) {
        let mut child = Killed::start(place, &url, &name, death);
        child.died(death);
    }
    drop(business);
    let (log, registry) = log();
    let setting = Setting::named(name, url, &TABLES, log, registry);
    {
        let mut reader = setting.log.reader(event_log::Isolation::ReadUncommitted).unwrap();
        let at = event_log::TopicPartition::new(names().positions(), 0);
        reader.assign(&[(at, event_log::StartFrom::Earliest)]).unwrap();
        let mut b = event_log::RecordBatch::default();
        while reader.poll(&mut b, 1 << 20, Duration::from_millis(200)).unwrap() > 0 {
            for r in b.iter() {
                eprintln!(
                    "pos {} {}",
                    r.offset(),
                    String::from_utf8_lossy(r.value().unwrap())
                        .split("tables")
                        .next()
                        .unwrap()
                );
            }
        }
    }
    let connector = setting.start(&database);
    // All rows can be on the topic before the snapshot of the larger table ends.
    connector.wait_for(State::Running);
    let mut topic = setting.topic();
    settle(&database, &mut topic);
    never_half(&topic);
    connector.stop();
}

#[test]
fn kill_at_any_step_on_embedded_log_is_exactly_once() {
    let dir = tempfile::tempdir().unwrap();
    let place = format!("embedded {}", dir.path().display());
    survives_deaths(&place, || open(&place));
}

#[test]
fn kill_at_any_step_on_kafka_is_exactly_once() {
    let place = format!("kafka {}", support::kafka());
    survives_deaths(&place, || open(&place));
}

#[test]
fn connector_survives_a_database_restart() {
    let mut cluster = Postgres::start();
    let database = Arc::new(Database::at(&cluster.url()));
    bank(&database);
    let setting = Setting::new(&database, &TABLES);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(3002);
    connector.wait_for(State::Running);
    for _ in 0..2 {
        Business::begin(&database, 100).ended();
        cluster.kill();
        let report = connector.wait_for(State::Retrying);
        assert!(report.cause.unwrap().contains("PostgreSQL at 127.0.0.1"));
        assert!(report.fix.unwrap().contains("the connector retries"));
        cluster.restart();
        connector.wait_for(State::Running);
    }
    settle(&database, &mut topic);
    never_half(&topic);
    drop(connector);
    drop(database);
}

#[test]
fn connector_survives_a_broker_restart() {
    let mut broker = Broker::start();
    let place = format!("kafka {}", broker.bootstrap());
    let database = Arc::new(Database::new());
    bank(&database);
    let (log, registry) = open(&place);
    let setting = Setting::on(&database, &TABLES, log, registry);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(3002);
    connector.wait_for(State::Running);
    let business = Business::begin(&database, 300);
    broker.kill();
    let report = connector.wait_for(State::Retrying);
    assert!(report.fix.unwrap().contains("the log is running and reachable"));
    broker.restart();
    connector.wait_for(State::Running);
    drop(business);
    // Read from the start with a new reader, because the previous reader may still return an error from the outage.
    let mut topic = setting.topic();
    settle(&database, &mut topic);
    never_half(&topic);
    drop(connector);
}

#[test]
fn newer_duplicate_fences_the_older_connector() {
    let database = Arc::new(Database::new());
    bank(&database);
    let setting = Setting::new(&database, &TABLES);
    let mut topic = setting.topic();
    let first = setting.start(&database);
    topic.lines(3002);
    first.wait_for(State::Running);
    let second = setting.start(&database);
    let business = Business::begin(&database, 300);
    // It waits for an operator; the process and its other connectors continue.
    let report = first.wait_for(State::Stopped);
    assert!(report.fix.unwrap().contains("stop one of the two processes"));
    second.wait_for(State::Running);
    drop(business);
    settle(&database, &mut topic);
    never_half(&topic);
}

#[test]
fn paused_connector_releases_the_slot_and_resumes() {
    let database = Arc::new(Database::new());
    bank(&database);
    let setting = Setting::new(&database, &TABLES);
    let mut topic = setting.topic();
    let connector = setting.start(&database);
    topic.lines(3002);
    connector.send(Command::Pause);
    connector.wait_for(State::Paused);
    wait_for("the slot to be free", LIMIT, || {
        database.slot("active").filter(|a| a == "false")
    });
    database.sql("INSERT INTO history (account, delta) VALUES (1, 0)");
    topic.read();
    assert_eq!(topic.records.len(), 3002);
    connector.send(Command::Resume);
    topic.lines(3003);
    connector.wait_for(State::Running);
}

#[test]
fn slot_of_an_idle_database_advances() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    let setting = Setting {
        heartbeat_seconds: 1,
        ..Setting::new(&database, &["orders(id int8)"])
    };
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    let other = Database::new();
    other.sql("CREATE TABLE noise AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n");
    let end = other.value("SELECT pg_current_wal_lsn()").unwrap();
    wait_for("the slot to pass the others' writing", LIMIT, || {
        database
            .slot(&format!("confirmed_flush_lsn >= '{end}'"))
            .filter(|past| past == "true")
    });
    wait_for("the lag to be known", LIMIT, || connector.handle.report().lag_bytes);
    assert_eq!(
        connector.handle.report().records_total,
        2,
        "only the snapshot's begin and end"
    );
    restarts_at_once(&setting, &database, connector);
}

/// The slot is not ahead of the stored position: a restart causes no mismatch.
fn restarts_at_once(setting: &Setting, database: &Database, connector: Connector) {
    connector.stop();
    let again = setting.start(database);
    again.wait_for(State::Running);
    again.stop();
}

#[test]
fn change_is_published_within_milliseconds() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    let setting = Setting::new(&database, &["orders(id int8)"]);
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    let mut topic = setting.topic();
    topic.lines(1);
    let begun = Instant::now();
    for n in 0..20 {
        database.sql(&format!("INSERT INTO orders VALUES ({n})"));
        topic.lines(n + 2);
    }
    // Long enough for a busy machine, but shorter than any polling interval.
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?} for 20 changes one after the other",
        begun.elapsed()
    );
    connector.stop();
}
