//! Changes of tables, publications and partitions under a running connector: the affected table needs a snapshot and is
//! reported with its cause and fix, its views are marked stale, and the other tables continue.

use super::harness::{Connector, Database, LIMIT, Record, Setting, Topic};
use crate::support::{Dev, binary, wait_for};
use connectors::commands::Command;
use connectors::source::OnMismatch;
use connectors::status::{State, TableReport, TableState};
use std::collections::BTreeSet;
use topology::Names;

const ORDERS: &str = "orders(id int8, note text?)";
const OTHER: &str = "other(id int8)";
pub const TABLES: &str =
    "CREATE TABLE orders (id bigint PRIMARY KEY, note text); INSERT INTO orders VALUES (1, 'one'), (2, 'two');
    CREATE TABLE other (id bigint PRIMARY KEY)";
pub const MISSING: &str = r#"["~missing","orders"]"#;

/// A database with tables `orders` and `other`, and a running connector of both.
pub struct Running {
    pub database: Database,
    pub setting: Setting,
    connector: Option<Connector>,
    pub topic: Topic,
    others: u32,
}

impl Running {
    pub fn new(sql: &str) -> Self {
        Self::with(ORDERS, sql)
    }

    /// Starts the connector with this declaration of `orders`.
    pub fn with(orders: &str, sql: &str) -> Self {
        let database = Database::new();
        database.sql(sql);
        let setting = Setting {
            heartbeat_seconds: 1,
            ..Setting::new(&database, &[orders, OTHER])
        };
        let connector = setting.start(&database);
        connector.wait_for(State::Running);
        let topic = setting.topic();
        Running {
            database,
            setting,
            connector: Some(connector),
            topic,
            others: 0,
        }
    }

    fn connector(&self) -> &Connector {
        self.connector.as_ref().unwrap()
    }

    pub fn table(&self, name: &str) -> TableReport {
        let report = self.connector().handle.report();
        report.tables.iter().find(|t| t.table == name).unwrap().clone()
    }

    pub fn restart(&mut self) {
        self.stop();
        self.connector = Some(self.setting.start(&self.database));
        self.connector().wait_for(State::Running);
    }

    pub fn stop(&mut self) {
        if let Some(connector) = self.connector.take() {
            connector.stop();
        }
    }

    /// Waits until `orders` needs a snapshot for this reason and readers are informed, and checks that `other` is still
    /// published.
    pub fn needs_snapshot(&mut self, cause: &str) {
        wait_for("the table to need a snapshot", LIMIT, || {
            (self.table("orders").state == TableState::NeedsSnapshot).then_some(())
        });
        let found = self.table("orders");
        assert!(found.cause.as_ref().unwrap().contains(cause), "{found:?}");
        assert!(
            found.fix.as_ref().unwrap().contains("trunkline connect snapshot"),
            "{found:?}"
        );
        self.topic.wait("readers to know it", |records| {
            records.iter().any(|record| record.key == MISSING)
        });
        self.others_continue();
        assert_eq!(self.table("other").state, TableState::Running);
    }

    /// Waits until `orders` was read again for this reason without a request, and compares the topic with the table.
    pub fn is_read_again(&mut self, cause: &str) {
        let is_cause = |reason: &String| reason.contains(cause);
        self.topic.wait("readers to know the cause", |records| {
            let is_it = |r: &Record| r.key == MISSING && r.missing.as_ref().is_some_and(is_cause);
            records.iter().any(is_it)
        });
        self.others_continue();
        wait_for("the table to run", LIMIT, || {
            (self.table("orders").state == TableState::Running).then_some(())
        });
        self.equals_the_table();
    }

    /// Waits until the topic contains the rows of `orders`.
    pub fn equals_the_table(&mut self) {
        let rows = self.database.sql("SELECT id FROM orders ORDER BY id");
        let want: BTreeSet<String> = rows
            .into_iter()
            .map(|row| format!("[\"orders\",\"{}\"]", row[0].as_ref().unwrap()))
            .collect();
        wait_for("the rows of the table", LIMIT, || {
            self.topic.read();
            let keys = self.topic.rows().into_keys();
            (keys
                .filter(|key| key.starts_with("[\"orders\","))
                .collect::<BTreeSet<_>>()
                == want)
                .then_some(())
        });
    }

    pub fn others_continue(&mut self) {
        self.others += 1;
        self.database
            .sql(&format!("INSERT INTO other VALUES ({})", self.others));
        let key = format!(r#"["other","{}"]"#, self.others);
        self.topic
            .wait("the other table", |records| records.iter().any(|r| r.key == key));
    }

    /// Waits until the monitor has read the current catalog, and checks that `orders` is still published.
    pub fn still_runs(&mut self) {
        let beat = "SELECT max(query_start) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
             AND application_name = 'trunkline heartbeat' AND query LIKE '%emit_message%'";
        for _ in 0..2 {
            let before = self.database.value("SELECT clock_timestamp()").unwrap();
            wait_for("a heartbeat", LIMIT, || {
                self.database
                    .value(&format!("SELECT ({beat}) > '{before}'"))
                    .filter(|later| later == "t")
            });
        }
        let found = self.table("orders");
        assert_eq!(found.state, TableState::Running, "{found:?}");
        self.others_continue();
    }

    /// Checks that a resync without an operator makes the topic equal to the tables.
    pub fn is_repaired(&mut self) {
        self.stop();
        let setting = Setting {
            on_mismatch: OnMismatch::Resync,
            ..self.setting.clone()
        };
        self.connector = Some(setting.start(&self.database));
        wait_for("the table to run", LIMIT, || {
            let report = self.connector().handle.report();
            let orders = report.tables.iter().find(|t| t.table == "orders");
            (report.state == State::Running && orders?.state == TableState::Running).then_some(())
        });
        let rows = self.database.value("SELECT count(*) FROM orders").unwrap();
        wait_for("the rows of the table", LIMIT, || {
            self.topic.read();
            let published = self.topic.rows();
            let count = published.keys().filter(|key| key.starts_with("[\"orders\",")).count();
            (count.to_string() == rows).then_some(())
        });
    }
}

#[test]
fn swapped_table_needs_a_snapshot_and_the_others_continue() {
    let mut running = Running::new(TABLES);
    running.database.sql(
        "ALTER TABLE orders RENAME TO orders_old; CREATE TABLE orders (id bigint PRIMARY KEY, note text);
         INSERT INTO orders VALUES (7, 'new'); INSERT INTO orders_old VALUES (8, 'lost')",
    );
    running.needs_snapshot("orders");
    let published = running.topic.rows();
    assert!(!published.contains_key(r#"["orders","8"]"#));
    // The state is stored.
    running.restart();
    assert_eq!(running.table("orders").state, TableState::NeedsSnapshot);
    let missing = running.topic.records.iter().filter(|r| r.key == MISSING).count();
    assert_eq!(missing, 1, "it is published once");
    running.is_repaired();
}

#[test]
fn table_replaced_while_the_connector_is_stopped_needs_a_snapshot() {
    let mut running = Running::new(TABLES);
    running.stop();
    running.database.sql(
        "DROP TABLE orders; CREATE TABLE orders (id bigint PRIMARY KEY, note text); INSERT INTO orders VALUES (9, 'nine')",
    );
    running.restart();
    running.needs_snapshot("was replaced");
    running.is_repaired();
}

/// Name of the case, statements, and expected cause.
pub type Case = (&'static str, &'static str, &'static str);

#[test]
fn changes_that_make_rows_wrong_need_a_snapshot() {
    let cases: [Case; 8] = [
        ("dropped", "DROP TABLE orders", "no longer exists"),
        (
            "renamed",
            "ALTER TABLE orders RENAME TO gone; INSERT INTO gone VALUES (3, NULL)",
            "",
        ),
        (
            "unpublished",
            "DO $$ BEGIN EXECUTE format('ALTER PUBLICATION %I DROP TABLE orders', (SELECT pubname FROM pg_publication)); END $$",
            "no longer contains table orders",
        ),
        (
            "filtered",
            "DO $$ BEGIN EXECUTE format('ALTER PUBLICATION %I SET TABLE orders WHERE (id > 1), other',
             (SELECT pubname FROM pg_publication)); END $$",
            "row filter",
        ),
        (
            "inherited",
            "CREATE TABLE child () INHERITS (orders)",
            "inherit from table orders",
        ),
        (
            "rekeyed",
            "ALTER TABLE orders DROP CONSTRAINT orders_pkey; ALTER TABLE orders ADD PRIMARY KEY (note)",
            "the key of table orders is (note)",
        ),
        (
            "deferrable",
            "ALTER TABLE orders DROP CONSTRAINT orders_pkey; ALTER TABLE orders ADD PRIMARY KEY (id) DEFERRABLE",
            "replica identity of table orders lacks key column id",
        ),
        (
            "retyped",
            "ALTER TABLE orders ALTER COLUMN note TYPE bytea USING note::bytea",
            "type of column note",
        ),
    ];
    for (name, sql, cause) in cases {
        eprintln!("case {name}");
        let mut running = Running::new(TABLES);
        let version = running.database.value("SELECT current_setting('server_version_num')");
        // Row filters exist since version 15.
        if name == "filtered" && version.as_deref() < Some("150000") {
            continue;
        }
        running.database.sql(sql);
        running.needs_snapshot(cause);
        running.stop();
    }
}

#[test]
fn usual_migrations_read_the_table_again_without_a_request() {
    let cases: [Case; 5] = [
        (
            "column dropped",
            "ALTER TABLE orders DROP COLUMN note; INSERT INTO orders VALUES (3)",
            "column note of table orders was dropped",
        ),
        (
            "column replaced",
            "ALTER TABLE orders DROP COLUMN note; ALTER TABLE orders ADD COLUMN note text",
            "replaced by another column",
        ),
        (
            "wider",
            "ALTER TABLE orders ALTER COLUMN n TYPE bigint; UPDATE orders SET n = 3000000 WHERE id = 1",
            "the table was rewritten",
        ),
        (
            "label renamed",
            "ALTER TYPE state RENAME VALUE 'open' TO 'new'; INSERT INTO orders VALUES (3, 'x', 1, 'new')",
            "label open of the type of column state",
        ),
        (
            "rewritten",
            "ALTER TABLE orders ALTER COLUMN note TYPE text USING upper(note)",
            "the table was rewritten",
        ),
    ];
    for (name, sql, cause) in cases {
        eprintln!("case {name}");
        let mut running = Running::with(
            "orders(id int8, note text?, n int4?, state state?)",
            "CREATE TYPE state AS ENUM ('open', 'paid');
             CREATE TABLE orders (id bigint PRIMARY KEY, note text, n int, state state);
             INSERT INTO orders VALUES (1, 'one', 1, 'open'), (2, 'two', 2, 'paid');
             CREATE TABLE other (id bigint PRIMARY KEY)",
        );
        running.still_runs();
        running.database.sql(sql);
        running.is_read_again(cause);
        running.database.sql("DELETE FROM orders WHERE id = 1");
        running.still_runs();
        running.restart();
        running.still_runs();
        running.equals_the_table();
        if name == "column dropped" {
            assert!(running.topic.rows()[r#"["orders","2"]"#].contains(r#""note":null"#));
        }
        running.stop();
    }
}

#[test]
fn renamed_column_is_not_published_as_null() {
    let mut running = Running::new(TABLES);
    running.still_runs();
    running.database.sql("ALTER TABLE orders RENAME COLUMN note TO remark");
    running.needs_snapshot("column note of table orders was dropped or renamed");
    let fix = running.table("orders").fix.unwrap();
    assert!(
        fix.contains("write remark instead of note in [[table]] orders"),
        "{fix}"
    );
}

#[test]
fn replica_identity_that_no_longer_covers_the_key_stops_the_table_before_the_first_delete() {
    let sql = format!("{TABLES}; ALTER TABLE orders REPLICA IDENTITY FULL");
    let mut running = Running::with(
        "orders(id int8, note text) key note",
        &sql.replace("note text", "note text NOT NULL UNIQUE"),
    );
    running.database.each(&[
        "ALTER TABLE orders REPLICA IDENTITY DEFAULT",
        "DELETE FROM orders WHERE id = 1",
    ]);
    running.needs_snapshot("replica identity of table orders lacks key column note");
    let tombstones = running
        .topic
        .records
        .iter()
        .filter(|r| r.table == "orders" && r.value.is_none());
    assert!(tombstones.map(|r| r.key.as_str()).all(|key| key == MISSING));
}

#[test]
fn key_that_changed_while_the_connector_was_stopped_stops_the_table() {
    let mut running = Running::new(&TABLES.replace("note text", "note text NOT NULL"));
    running.stop();
    running.database.each(&[
        "ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD PRIMARY KEY (note)",
        "DELETE FROM orders WHERE id = 1",
    ]);
    running.restart();
    running.needs_snapshot("the key of table orders is (note), but its rows were read with key (id)");
    running.is_repaired();
}

#[test]
fn harmless_changes_do_not_stop_a_table() {
    let mut running = Running::new(TABLES);
    for sql in [
        "ALTER TABLE orders ADD COLUMN extra int DEFAULT 1",
        "ALTER TABLE orders DROP COLUMN extra",
        "ALTER TABLE orders REPLICA IDENTITY FULL",
        "ALTER TABLE orders ALTER COLUMN note TYPE varchar",
        "VACUUM FULL orders",
        "ALTER TABLE orders ALTER COLUMN note SET NOT NULL",
    ] {
        running.database.sql(sql);
        running.database.sql("UPDATE orders SET note = 'changed' WHERE id = 1");
        running.still_runs();
    }
    running.database.sql("DELETE FROM orders WHERE id = 2");
    running.others_continue();
    let rows = running.topic.rows();
    assert!(rows[r#"["orders","1"]"#].contains("changed"));
    assert!(!rows.contains_key(r#"["orders","2"]"#));
}

#[test]
fn replaced_publication_needs_a_resync() {
    let mut running = Running::new(TABLES);
    running.stop();
    let name = running.database.value("SELECT pubname FROM pg_publication").unwrap();
    for sql in [
        format!("DROP PUBLICATION {name}"),
        format!("CREATE PUBLICATION {name} FOR TABLE orders, other"),
    ] {
        running.database.sql(&sql);
        running.database.sql("DELETE FROM orders WHERE id = 1");
        let connector = running.setting.start(&running.database);
        let report = connector.wait_for(State::NeedsResync);
        assert!(report.cause.unwrap().contains(&format!("publication {name}")));
        connector.stop();
    }
    running.is_repaired();
}

#[test]
fn row_level_security_is_refused_before_a_partial_snapshot() {
    let database = Database::new();
    let user = database.name.replace("db_", "user_");
    database.sql(&format!(
        "CREATE ROLE {user} LOGIN REPLICATION; {TABLES}; ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
         GRANT SELECT ON orders, other TO {user}"
    ));
    let mut setting = Setting::new(&database, &[ORDERS, OTHER]);
    setting.url = setting.url.replace("postgres@", &format!("{user}@"));
    let connector = setting.start(&database);
    let report = connector.wait_for(State::Failed);
    assert!(report.cause.unwrap().contains("row-level security of table orders"));
    assert!(
        report
            .fix
            .unwrap()
            .contains(&format!("ALTER ROLE \"{user}\" BYPASSRLS"))
    );
    connector.stop();
    database.sql(&format!("DROP OWNED BY {user}; DROP ROLE {user}"));
}

#[test]
fn rows_that_cannot_be_published_are_dead_letters_in_snapshot_and_stream() {
    let database = Database::new();
    let big = "repeat('x', 2000000)";
    database.sql(&format!(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text, at timestamptz);
         INSERT INTO orders VALUES (1, 'one', now()), (2, {big}, now()), (3, 'three', '294276-12-31'), (4, 'four', 'infinity')"
    ));
    let setting = Setting::new(&database, &["orders(id int8, note text?, at timestamptz?)"]);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.wait("the snapshot", |records| records.len() == 5);
    connector.wait_for(State::Running);
    let keys =
        |topic: &Topic, from: usize| -> Vec<String> { topic.records[from..].iter().map(|r| r.key.clone()).collect() };
    let missing = |id: u32| format!(r#"["~missing","orders","{id}"]"#);
    let row = |id: u32| format!(r#"["orders","{id}"]"#);
    let chunk = String::from(r#"["~chunk","orders"]"#);
    assert_eq!(keys(&topic, 0), [row(1), missing(2), missing(3), row(4), chunk]);
    database.sql(&format!(
        "BEGIN; INSERT INTO orders VALUES (5, 'five', now()); UPDATE orders SET note = {big} WHERE id = 1;
         UPDATE orders SET at = '294276-12-31' WHERE id = 4; COMMIT; UPDATE orders SET note = 'two' WHERE id = 2"
    ));
    topic.wait("the stream", |records| records.len() == 9);
    assert_eq!(keys(&topic, 5), [row(5), missing(1), missing(4), row(2)]);
    assert!(topic.records[7].tx.last && topic.records[8].tx.last);
    assert_eq!(connector.handle.report().state, State::Running);
    connector.stop();
    let mut dead = setting.dead_letters();
    dead.wait("the dead letters", |records| records.len() == 4);
    assert_eq!(keys(&dead, 0), [missing(2), missing(3), missing(1), missing(4)]);
}

#[test]
fn position_of_an_older_release_needs_a_resync_which_raises_the_source_epoch() {
    let running = Running::new(TABLES);
    let (database, setting) = (&running.database, &running.setting);
    let mut topic = setting.topic();
    topic.wait("the snapshot", |records| records.len() == 4);
    let name = setting.name.clone();
    running.connector.unwrap().stop();
    setting.store_position(r#"{"v":1,"kind":"postgres","epoch":4,"system":"7","tables":{}}"#);
    let connector = setting.start(database);
    let report = connector.wait_for(State::NeedsResync);
    assert!(report.cause.unwrap().contains("has format 1 of an older release"));
    assert!(
        report
            .fix
            .unwrap()
            .contains(&format!("trunkline connect resync {name}"))
    );
    connector.send(Command::Resync);
    // A position that cannot be read does not prove whose slot it is, so the operator drops it.
    let slot = database.slot("slot_name").unwrap();
    wait_for("the slot to be refused", LIMIT, || {
        let fix = connector.handle.report().fix?;
        fix.contains(&format!("SELECT pg_drop_replication_slot('{slot}')"))
            .then_some(())
    });
    database.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    topic.wait("the new snapshot", |records| records.len() == 8);
    assert!(topic.records[4..].iter().all(|r| r.tx.source_epoch == 5));
    connector.wait_for(State::Running);
}

#[test]
fn doctor_names_the_table_and_its_view_is_stale() {
    let database = Database::new();
    database.sql(TABLES);
    let directory = tempfile::tempdir().unwrap();
    let topology = directory.path().join("topology.toml");
    let file = topology.to_str().unwrap();
    Dev::output(&["init", "--postgres", &database.url, "--file", file]);
    let declared: toml::Table = std::fs::read_to_string(&topology).unwrap().parse().unwrap();
    let view_log = Names::of(declared["name"].as_str().unwrap()).view_log();
    let data = directory.path().join("data");
    let dev = Dev::start(&data, &["--topology", file, "--postgres", &database.url]);
    wait_for("the snapshot", LIMIT, || {
        database
            .slot("confirmed_flush_lsn IS NOT NULL")
            .filter(|done| done == "true")
    });
    database.each(&[
        "ALTER TABLE orders RENAME TO orders_old",
        "INSERT INTO orders_old VALUES (3, 'lost')",
    ]);
    let doctor = || {
        let data = data.to_str().unwrap();
        let mut doctor = std::process::Command::new(binary());
        doctor.args(["doctor", "--data", data]).output().unwrap()
    };
    let found = wait_for("doctor to name the table", LIMIT, || {
        let found = doctor();
        let text = String::from_utf8(found.stdout.clone()).unwrap();
        text.contains("table orders needs a snapshot").then_some(found)
    });
    assert!(!found.status.success());
    wait_for("the view to be stale", LIMIT, || {
        let stale = |record: &serde_json::Value| record["key"][0] == "~stale" && record["value"]["stale"] == true;
        dev.records(&view_log).iter().any(stale).then_some(())
    });
}
