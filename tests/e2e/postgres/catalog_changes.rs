//! Changes of the catalog that are undone before the connector reads it again, and changes that look like others.

use super::harness::{Database, LIMIT, Setting};
use super::partitions::PARTITIONED;
use super::table_states::{Case, Running, TABLES};
use crate::support::wait_for;
use connectors::source::OnMismatch;
use connectors::status::{State, TableState};
use std::sync::Arc;

/// A statement that executes others for the connector's publication, whose name is `%I`.
fn on_publication(statements: &[&str]) -> String {
    let execute = |statement: &&str| {
        format!("EXECUTE format('{statement}', (SELECT pubname FROM pg_publication WHERE pubname LIKE 'trunkline%'));")
    };
    let body: Vec<String> = statements.iter().map(execute).collect();
    format!("DO $do$ BEGIN {} END $do$", body.join(" "))
}

#[test]
fn table_that_left_the_publication_and_returned_needs_a_snapshot() {
    let removed = on_publication(&["ALTER PUBLICATION %I DROP TABLE orders"]);
    let added = on_publication(&["ALTER PUBLICATION %I ADD TABLE orders"]);
    for is_stopped in [false, true] {
        let mut running = Running::new(TABLES);
        running.still_runs();
        if is_stopped {
            running.stop();
        }
        running
            .database
            .each(&[&removed, "INSERT INTO orders VALUES (3, 'lost')", &added]);
        if is_stopped {
            running.restart();
        }
        running.needs_snapshot("publication");
        assert!(!running.topic.rows().contains_key(r#"["orders","3"]"#));
        running.is_repaired();
        running.stop();
    }
}

#[test]
fn table_that_left_a_published_schema_and_returned_needs_a_snapshot() {
    let sql = format!("CREATE SCHEMA aside; {TABLES}");
    let mut running = Running::new(&sql);
    running.database.sql(&on_publication(&[
        "ALTER PUBLICATION %I ADD TABLES IN SCHEMA public",
        "ALTER PUBLICATION %I DROP TABLE orders",
    ]));
    running.needs_snapshot("was removed from publication");
    running.is_repaired();
    running.still_runs();
    running.database.each(&[
        "ALTER TABLE orders SET SCHEMA aside",
        "INSERT INTO aside.orders VALUES (3, 'lost')",
        "ALTER TABLE aside.orders SET SCHEMA public",
    ]);
    // The row that was inserted meanwhile is published, because the connector reads the table again.
    running.is_read_again("was removed from publication");
}

#[test]
fn options_that_were_changed_and_changed_back_need_a_snapshot() {
    let mut running = Running::new(TABLES);
    running.still_runs();
    running.stop();
    running.database.each(&[
        &on_publication(&["ALTER PUBLICATION %I SET (publish = ''insert'')"]),
        "DELETE FROM orders WHERE id = 1",
        &on_publication(&["ALTER PUBLICATION %I SET (publish = ''insert, update, delete, truncate'')"]),
    ]);
    running.restart();
    wait_for("both tables to be stopped", LIMIT, || {
        let is_stopped = |table: &str| running.table(table).state == TableState::NeedsSnapshot;
        (is_stopped("orders") && is_stopped("other")).then_some(())
    });
    let cause = running.table("other").cause.unwrap();
    assert!(cause.contains("the options of publication"), "{cause}");
    running.is_repaired();
}

#[test]
fn partition_that_was_detached_and_returned_is_read_again() {
    let mut running = Running::new(PARTITIONED);
    running.still_runs();
    running.stop();
    running.database.each(&[
        "ALTER TABLE orders DETACH PARTITION orders_1",
        "INSERT INTO orders_1 VALUES (150, 'lost')",
        "ALTER TABLE orders ATTACH PARTITION orders_1 FOR VALUES FROM (100) TO (200)",
    ]);
    running.restart();
    running.is_read_again("was detached and attached again");
}

#[test]
fn partition_with_rows_is_recognized_however_it_was_created() {
    let attach = "ALTER TABLE orders ATTACH PARTITION orders_2 FOR VALUES FROM (200) TO (300)";
    let filled = [
        "CREATE TABLE orders_2 (id bigint NOT NULL, note text); INSERT INTO orders_2 VALUES (201, 'x')",
        "CREATE TABLE orders_2 AS SELECT 201::bigint AS id, 'x'::text AS note; ALTER TABLE orders_2 ALTER id SET NOT NULL",
        "CREATE TABLE orders_2 (LIKE orders INCLUDING ALL); INSERT INTO orders_2 VALUES (201, 'x')",
    ];
    for create in filled {
        eprintln!("case {create}");
        let mut running = Running::new(PARTITIONED);
        running.still_runs();
        running.database.sql(&format!("BEGIN; {create}; {attach}; COMMIT"));
        running.is_read_again("a partition with rows");
        running.stop();
    }
    let mut running = Running::new(PARTITIONED);
    running.still_runs();
    running.database.sql(
        "BEGIN; CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM (200) TO (300) PARTITION BY RANGE (id);
         CREATE TABLE orders_20 PARTITION OF orders_2 DEFAULT; INSERT INTO orders VALUES (201, 'x'); COMMIT",
    );
    running.still_runs();
}

#[test]
fn rewritten_values_are_read_again() {
    let rewritten = "the table was rewritten";
    let cases: [Case; 4] = [
        (
            "same type",
            "ALTER TABLE orders ALTER COLUMN note TYPE text USING upper(note)",
            rewritten,
        ),
        (
            "wider type",
            "ALTER TABLE orders ALTER COLUMN n TYPE bigint USING n * 2",
            rewritten,
        ),
        (
            "same format",
            "ALTER TABLE orders ALTER COLUMN note TYPE varchar USING upper(note)",
            rewritten,
        ),
        (
            "label",
            "ALTER TYPE state RENAME VALUE 'open' TO 'new'",
            "label open of the type of column state",
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
        running
            .database
            .each(&["ALTER TYPE state ADD VALUE 'late'", "VACUUM FULL orders"]);
        running.still_runs();
        running.database.sql(sql);
        // The declaration does not have to change: values of the wider type that fit are published.
        running.is_read_again(cause);
        running.stop();
    }
}

#[test]
fn table_of_a_foreign_publication_does_not_stop_the_others() {
    let database = Database::new();
    let user = database.name.replace("db_", "user_");
    let mut setting = Setting {
        heartbeat_seconds: 1,
        on_mismatch: OnMismatch::Resync,
        ..Setting::new(&database, &["orders(id int8, note text?)", "other(id int8)"])
    };
    let publication = format!("publication_of_{}", setting.name);
    let of_the_owner = publication.clone();
    setting.adjust = Some(Arc::new(move |config| config.publication = Some(of_the_owner.clone())));
    database.sql(&format!(
        "CREATE ROLE {user} LOGIN REPLICATION; {TABLES}; GRANT SELECT ON orders, other TO {user};
         CREATE PUBLICATION {publication} FOR TABLE orders, other"
    ));
    setting.url = setting.url.replace("postgres@", &format!("{user}@"));
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    database.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE orders"));
    let found = wait_for("the table to need a snapshot", LIMIT, || {
        let tables = connector.handle.report().tables;
        let mut stopped = tables.iter().filter(|t| t.state == TableState::NeedsSnapshot);
        stopped.next().cloned()
    });
    let statement = format!(r#"ALTER PUBLICATION "{publication}" ADD TABLE "public"."orders""#);
    assert!(found.table == "orders" && found.fix.unwrap().contains(&statement));
    connector.stop();
    // With on_mismatch = "resync", the next open must not try to change a publication of another owner.
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    database.sql("INSERT INTO other VALUES (7)");
    let mut topic = setting.topic();
    topic.wait("the other table", |records| {
        records.iter().any(|r| r.key == r#"["other","7"]"#)
    });
    connector.stop();
    database.sql(&statement);
    let connector = setting.start(&database);
    topic.wait("the repair", |records| {
        records.iter().filter(|r| r.key == r#"["~chunk","orders"]"#).count() == 2
    });
    connector.wait_for(State::Running);
    connector.stop();
    database.sql(&format!("DROP OWNED BY {user}; DROP ROLE {user}"));
}
