//! Snapshots in chunks while the database changes, and snapshots of single tables.

use super::harness::{Connector, Database, LIMIT, Record, Setting, Topic};
use crate::support::{Postgres, wait_for};
use connectors::commands::Command;
use connectors::source::OnMismatch;
use connectors::status::{State, TableState};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const ITEMS: &str = "items(region text, id int4, big text?, n int4)";
const ROWS: usize = 8_000;

/// A table whose keys have another order in the database than in bytes, and whose rows fill several chunks.
fn items(database: &Database) {
    database.sql(&format!(
        "CREATE TABLE items (region text, id int, big text, n int NOT NULL, PRIMARY KEY (region, id));
         ALTER TABLE items ALTER COLUMN big SET STORAGE EXTERNAL;
         INSERT INTO items SELECT (ARRAY['a', 'B', 'ä', 'z'])[n % 4 + 1], n, repeat(md5(n::text), 80), 0
           FROM generate_series(1, {ROWS}) n"
    ));
}

/// Statements that run in a loop until the value is dropped; `$` is the number of the pass.
struct Workload {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Workload {
    fn begin(database: &Arc<Database>, statements: &'static [&'static str]) -> Self {
        let (stop, database) = (Arc::new(AtomicBool::new(false)), database.clone());
        let inside = stop.clone();
        let work = move || {
            let mut pass = 0_u32;
            while !inside.load(Ordering::Relaxed) {
                pass += 1;
                let sql: Vec<String> = statements.iter().map(|s| s.replace('$', &pass.to_string())).collect();
                database.on_one_connection(|run| sql.iter().for_each(|sql| run(sql)));
            }
        };
        let thread = std::thread::Builder::new().name(String::from("workload")).spawn(work);
        Workload {
            stop,
            thread: Some(thread.unwrap()),
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// The rows that a reader has who merges unchanged values, as sync-views does.
fn merged(records: &[Record]) -> BTreeMap<String, Value> {
    let mut rows: BTreeMap<String, (Value, (u32, u64))> = BTreeMap::new();
    let mut left = None;
    for record in records.iter().filter(|r| r.table == "items") {
        let version = (record.tx.source_epoch, record.tx.position.0);
        if record.key.starts_with("[\"~chunk\"") {
            let low: schemas::version::Lsn = record.row.split(' ').nth(3).unwrap().parse().unwrap();
            rows.retain(|_, (_, at)| *at >= (version.0, low.0));
        } else if record.key.starts_with("[\"~missing\"") {
        } else if record.value.is_none() {
            let row = rows.remove(&record.key);
            left = row.map(|(row, _)| row).filter(|_| record.moved.is_some());
        } else {
            let mut row: Value = serde_json::from_str(&record.row).unwrap();
            let before = match &record.moved {
                Some(_) => left.take(),
                None => rows.get(&record.key).map(|(row, _)| row.clone()),
            };
            for column in &record.unchanged {
                row[column] = before.as_ref().map_or(Value::Null, |before| before[column].clone());
            }
            rows.insert(record.key.clone(), (row, version));
        }
    }
    rows.into_iter().map(|(key, (row, _))| (key, row)).collect()
}

/// Waits for the end of the snapshot and of the stream, and compares the topic with the table.
fn equals(database: &Database, topic: &mut Topic) {
    wait_for("the end of the snapshot", LIMIT, || {
        topic.read();
        has_ended(topic).then_some(())
    });
    database.sql("INSERT INTO items VALUES ('last', 0, NULL, 0)");
    topic.wait("the last row", |records| {
        records.iter().any(|r| r.key == r#"["items","last",0]"#)
    });
    let rows = merged(&topic.records);
    let want = database.sql("SELECT region, id, md5(big), n FROM items");
    assert_eq!(rows.len(), want.len(), "rows on the topic and in the table");
    let hashes = rows
        .values()
        .map(|row| row["big"].as_str().unwrap_or_default().to_owned());
    let hashes: Vec<String> = hashes.collect();
    let list = hashes
        .iter()
        .map(|text| format!("('{text}')"))
        .collect::<Vec<_>>()
        .join(",");
    let hashed = database.sql(&format!("SELECT md5(t), t FROM (VALUES {list}) AS v(t)"));
    let hash_of: BTreeMap<String, String> = hashed
        .into_iter()
        .map(|row| (row[1].clone().unwrap(), row[0].clone().unwrap()))
        .collect();
    for row in want {
        let [region, id, big, n] = [0, 1, 2, 3].map(|at| row[at].clone());
        let key = format!("[\"items\",\"{}\",{}]", region.unwrap(), id.unwrap());
        let found = rows.get(&key).unwrap_or_else(|| panic!("{key} is missing"));
        assert_eq!(found["n"].to_string(), n.unwrap(), "{key}");
        let found = found["big"].as_str().map(|text| hash_of[text].clone());
        assert_eq!(found, big, "{key}");
    }
}

fn chunk_rows(topic: &Topic) -> usize {
    let rows = topic
        .records
        .iter()
        .filter(|r| r.snapshot.is_some() && r.value.is_some());
    rows.filter(|r| !r.key.starts_with("[\"~chunk\"")).count()
}

fn has_ended(topic: &Topic) -> bool {
    topic.records.iter().any(|r| r.key == r#"["~chunk","items"]"#)
}

/// Stops and starts the connector up to `times` times between chunks, at least once.
fn restarts(setting: &Setting, database: &Database, topic: &mut Topic, times: usize) -> Connector {
    for n in 0..times {
        let connector = setting.start(database);
        wait_for("another chunk", LIMIT, || {
            let report = connector.handle.report();
            (report.records_total > 1 || report.state == State::Running).then_some(())
        });
        connector.stop();
        topic.read();
        assert!(
            n > 0 || !has_ended(topic),
            "the first stop is in the middle of the snapshot"
        );
    }
    setting.start(database)
}

#[test]
fn snapshot_under_load_with_restarts_equals_the_table() {
    let database = Arc::new(Database::new());
    items(&database);
    let setting = Setting::new(&database, &[ITEMS]);
    let mut topic = setting.topic();
    let workload = Workload::begin(
        &database,
        &[
            // The large values are unchanged and are not sent.
            "UPDATE items SET n = n + 1 WHERE id % 101 = $ % 101",
            "DELETE FROM items WHERE id % 997 = $ % 997",
            "INSERT INTO items VALUES ('m', 100000 + $, repeat('x', 3000), 1), ('B', 200000 + $, NULL, 1)",
            // Rows move in front of the chunk that is read, and behind it.
            "UPDATE items SET region = CASE region WHEN 'z' THEN 'A' ELSE 'zz' END WHERE id % 499 = $ % 499",
            "BEGIN; UPDATE items SET big = repeat('new', 1000) WHERE id % 307 = $ % 307; ROLLBACK",
            "BEGIN; UPDATE items SET big = repeat('y', 2500), n = 7 WHERE id % 307 = $ % 307;
             UPDATE items SET n = 8 WHERE id % 307 = $ % 307; COMMIT",
        ],
    );
    let connector = restarts(&setting, &database, &mut topic, 3);
    wait_for("the end of the snapshot", LIMIT, || {
        topic.read();
        has_ended(&topic).then_some(())
    });
    drop(workload);
    equals(&database, &mut topic);
    connector.wait_for(State::Running);
    topic.rows();
    connector.stop();
}

#[test]
fn snapshot_ends_although_commits_are_never_visible_immediately() {
    // The shared cluster does not flush, so a commit is visible immediately.
    let cluster = Postgres::start();
    let database = Arc::new(Database::at(&cluster.url()));
    items(&database);
    database.sql(
        "CREATE TABLE busy (id int PRIMARY KEY, n int); INSERT INTO busy SELECT n, 0 FROM generate_series(1, 3) n",
    );
    let setting = Setting::new(&database, &[ITEMS]);
    let mut topic = setting.topic();
    // A commit record is in the WAL 20 ms before the transaction is visible. There is always such a transaction.
    let update = |id: u32| -> &'static [&'static str] {
        let update = format!("UPDATE busy SET n = n + 1 WHERE id = {id}");
        let update: &'static str = update.leak();
        let mut statements = vec!["SET commit_siblings = 0; SET commit_delay = 20000"];
        statements.extend([update; 50]);
        statements.leak()
    };
    let _workloads = [1, 2, 3].map(|id| Workload::begin(&database, update(id)));
    let connector = setting.start(&database);
    wait_for("the end of the snapshot", LIMIT, || {
        topic.read();
        has_ended(&topic).then_some(())
    });
    equals(&database, &mut topic);
    assert_eq!(chunk_rows(&topic), ROWS, "each row is published once");
    connector.stop();
}

#[test]
fn restart_reads_at_most_one_chunk_again() {
    let database = Arc::new(Database::new());
    items(&database);
    let setting = Setting::new(&database, &[ITEMS]);
    let mut topic = setting.topic();
    let connector = restarts(&setting, &database, &mut topic, 5);
    equals(&database, &mut topic);
    let ends = topic.records.iter().filter(|r| r.key.starts_with("[\"~chunk\""));
    assert_eq!(ends.count(), 1);
    // Chunks that were read and not committed are not on the topic.
    assert_eq!(chunk_rows(&topic), ROWS, "each row is published once");
    connector.stop();
}

#[test]
fn repair_of_a_table_publishes_no_other_table_again() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE items (region text, id int, big text, n int NOT NULL, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
         CREATE TABLE items_a PARTITION OF items FOR VALUES IN ('a'); CREATE TABLE items_b PARTITION OF items DEFAULT;
         INSERT INTO items VALUES ('a', 1, 'x', 1), ('b', 2, 'y', 2); CREATE TABLE other (id bigint PRIMARY KEY)",
    );
    let setting = Setting {
        on_mismatch: OnMismatch::Resync,
        heartbeat_seconds: 1,
        ..Setting::new(&database, &[ITEMS, "other(id int8)"])
    };
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    connector.wait_for(State::Running);
    // The catalog is read with the partition before it is truncated.
    wait_for("a heartbeat", LIMIT, || connector.handle.report().lag_bytes);
    database.each(&["TRUNCATE items_a", "INSERT INTO items VALUES ('a', 3, 'z', 3)"]);
    topic.wait("the repair", |records| {
        let ends = records.iter().filter(|r| r.key == r#"["~chunk","items"]"#);
        ends.count() == 2
    });
    topic.read();
    let missing = topic.records.iter().filter(|r| r.key == r#"["~missing","items"]"#);
    assert_eq!(missing.count(), 1, "readers know that the table was not complete");
    let keys: Vec<String> = topic.rows().into_keys().collect();
    assert_eq!(keys, [r#"["items","a",3]"#, r#"["items","b",2]"#]);
    assert!(topic.records.iter().all(|r| r.tx.source_epoch == 1));
    let others = topic.records.iter().filter(|r| r.table == "other").count();
    assert_eq!(others, 1, "only the end of its first snapshot");
    wait_for("the table to run", LIMIT, || {
        let tables = connector.handle.report().tables;
        tables.iter().all(|t| t.state == TableState::Running).then_some(())
    });
    connector.stop();
}

#[test]
fn table_and_column_that_are_declared_later_are_read_without_a_request() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text); CREATE TABLE more (id bigint PRIMARY KEY);
         INSERT INTO orders VALUES (1, 'one'); INSERT INTO more VALUES (1)",
    );
    let setting = Setting::new(&database, &["orders(id int8)"]);
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    connector.stop();
    let again = Setting {
        tables: Setting::on(
            &database,
            &["orders(id int8, note text?)", "more(id int8)"],
            setting.log.clone(),
            setting.registry.clone(),
        )
        .tables,
        ..setting.clone()
    };
    let mut topic = setting.topic();
    // This transaction wrote to the table before the connector added it to the publication.
    database.on_one_connection(|run| {
        run("BEGIN");
        run("INSERT INTO more VALUES (2)");
        let connector = again.start(&database);
        topic.wait("the column", |records| {
            records.iter().filter(|r| r.key == r#"["~chunk","orders"]"#).count() == 2
        });
        std::thread::sleep(std::time::Duration::from_millis(300));
        topic.read();
        assert!(topic.records.iter().all(|r| r.key != r#"["~chunk","more"]"#));
        run("COMMIT");
        topic.wait("the table", |records| {
            records.iter().any(|r| r.key == r#"["~chunk","more"]"#)
        });
        connector.wait_for(State::Running);
        let tables = connector.handle.report().tables;
        assert!(tables.iter().all(|t| t.state == TableState::Running), "{tables:?}");
        connector.stop();
    });
    let rows = topic.rows();
    assert_eq!(rows[r#"["orders","1"]"#], r#"{"id":"1","note":"one"}"#);
    assert!(
        rows.contains_key(r#"["more","1"]"#) && rows.contains_key(r#"["more","2"]"#),
        "{rows:?}"
    );
}

#[test]
fn requested_snapshot_reads_a_running_table_again() {
    let database = Database::new();
    items(&database);
    database.sql("CREATE TABLE other (id bigint PRIMARY KEY)");
    let setting = Setting::new(&database, &[ITEMS, "other(id int8)"]);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    connector.wait_for(State::Running);
    let request = |table: &str| {
        let tables = vec![table.to_owned()];
        let reply = connector.handle.send(Command::Snapshot { tables }).unwrap();
        reply.blocking_recv().unwrap()
    };
    let rejected = request("unknown").unwrap_err().to_string();
    assert!(rejected.contains("has no table unknown"), "{rejected}");
    request("items").unwrap();
    topic.wait("the second snapshot", |records| {
        records.iter().filter(|r| r.key == r#"["~chunk","items"]"#).count() == 2
    });
    assert_eq!(chunk_rows(&topic), 2 * ROWS);
    equals(&database, &mut topic);
    let missing = topic.records.iter().filter(|r| r.key.starts_with("[\"~missing\""));
    assert_eq!(missing.count(), 0, "the table was complete all the time");
    assert_eq!(topic.records.iter().filter(|r| r.table == "other").count(), 1);
    connector.stop();
}

#[test]
fn smallest_table_is_read_first() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE large (id int PRIMARY KEY, note text); CREATE TABLE small (id int PRIMARY KEY, note text);
         INSERT INTO large SELECT n, repeat('x', 1000) FROM generate_series(1, 100) n; INSERT INTO small VALUES (1, '');
         ANALYZE",
    );
    let setting = Setting::new(&database, &["large(id int4, note text?)", "small(id int4, note text?)"]);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    let lines = topic.lines(103);
    let small = lines.iter().position(|line| line.starts_with(r#"["~chunk","small"]"#));
    assert_eq!(small, Some(1), "{lines:?}");
    connector.stop();
}
