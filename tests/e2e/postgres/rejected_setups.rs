//! Database setups that the connector rejects, and the fixes in its errors.

use super::harness::{Database, LIMIT, Setting};
use crate::support::wait_for;
use connectors::source::OnMismatch;
use connectors::status::{Report, State, TableState};

fn report(database: &Database, tables: &[&str], state: State) -> Report {
    Setting::new(database, tables).start(database).wait_for(state)
}

#[test]
fn unpublishable_table_names_the_statement() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE keyless (id bigint NOT NULL, note text); CREATE TABLE orders (id bigint PRIMARY KEY, note text)",
    );
    let found = report(&database, &["keyless(id int8, note text?)"], State::Failed);
    assert!(
        found
            .cause
            .unwrap()
            .contains("table keyless has no primary key and no declared key")
    );
    assert!(
        found
            .fix
            .unwrap()
            .contains("ALTER TABLE \"public\".\"keyless\" REPLICA IDENTITY FULL")
    );
    let found = report(
        &database,
        &["orders(id int4, note text)", "gone(id int8)"],
        State::Failed,
    );
    let cause = found.cause.unwrap();
    for part in [
        "column id of table orders is int8, but is declared as int4",
        "note of table orders is nullable",
        "gone does not exist",
    ] {
        assert!(cause.contains(part), "{cause}");
    }
    // The connector has created nothing that the owner would have to remove.
    assert_eq!(
        database.value("SELECT count(*) FROM pg_publication"),
        Some(String::from("0"))
    );
    assert_eq!(database.slot("slot_name"), None);
}

#[test]
fn declared_key_replaces_missing_primary_key() {
    let database = Database::new();
    database.sql("CREATE TABLE keyless (id bigint NOT NULL, note text); INSERT INTO keyless VALUES (1, 'a')");
    let setting = Setting::new(&database, &["keyless(id int8, note text?) key id"]);
    let connector = setting.start(&database);
    let failed = connector.wait_for(State::Failed);
    assert!(failed.fix.unwrap().contains("REPLICA IDENTITY FULL"));
    let cause = failed.cause.unwrap();
    assert!(
        cause.contains("no unique index of table keyless covers its declared key (id)"),
        "{cause}"
    );
    // The connector recovers after the statements have been run.
    database.sql("CREATE UNIQUE INDEX ON keyless (id); ALTER TABLE keyless REPLICA IDENTITY FULL");
    let mut topic = setting.topic();
    topic.lines(2);
    connector.wait_for(State::Running);
    database.each(&["UPDATE keyless SET note = 'b'", "DELETE FROM keyless"]);
    assert_eq!(
        topic.lines(4)[2..],
        [r#"["keyless","1"] {"id":"1","note":"b"} ."#, r#"["keyless","1"] - ."#]
    );
}

#[test]
fn missing_permission_names_the_owners_statement() {
    let database = Database::new();
    let user = database.name.replace("db_", "user_");
    database.sql(&format!(
        "CREATE TABLE orders (id bigint PRIMARY KEY); CREATE ROLE {user} LOGIN"
    ));
    let mut setting = Setting::new(&database, &["orders(id int8)"]);
    setting.url = setting.url.replace("postgres@", &format!("{user}@"));
    let connector = setting.start(&database);
    let expect_fix = |part: &str| {
        wait_for(part, LIMIT, || {
            connector.handle.report().fix.filter(|fix| fix.contains(part))
        });
    };
    expect_fix(&format!("ALTER ROLE \"{user}\" REPLICATION"));
    database.sql(&format!("ALTER ROLE {user} REPLICATION"));
    expect_fix(&format!("GRANT SELECT ON \"public\".\"orders\" TO \"{user}\""));
    database.sql(&format!("GRANT SELECT ON orders TO {user}"));
    expect_fix("CREATE PUBLICATION \"trunkline_");
    let statement = connector.handle.report().fix.unwrap();
    let statement = statement
        .split(": ")
        .nth(1)
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    database.sql(&statement);
    connector.wait_for(State::Running);
    connector.stop().unwrap();
    database.sql(&format!(
        "REVOKE ALL ON orders FROM {user}; DROP OWNED BY {user}; DROP ROLE {user}"
    ));
}

#[test]
fn possible_gap_needs_resync_which_removes_old_rows() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY); INSERT INTO orders VALUES (1), (2)");
    let setting = Setting::new(&database, &["orders(id int8)"]);
    let mut topic = setting.topic();
    let connector = setting.start(&database);
    topic.lines(3);
    connector.wait_for(State::Running);
    connector.stop().unwrap();
    // The slot is dropped, then rows are inserted and deleted.
    wait_for("the slot to be free", LIMIT, || {
        database.slot("active").filter(|a| a == "false")
    });
    database.sql(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()",
    );
    database.sql("DELETE FROM orders WHERE id = 1; INSERT INTO orders VALUES (3)");
    let connector = setting.start(&database);
    let found = connector.wait_for(State::NeedsResync);
    assert!(found.cause.unwrap().contains("no longer exists"));
    assert!(found.fix.unwrap().contains("on_mismatch = \"resync\""));
    topic.read();
    assert_eq!(topic.records.len(), 3, "nothing is published past a gap");
    connector.handle.resync();
    connector.wait_for(State::Running);
    topic.lines(6);
    assert!(
        topic.records[3..]
            .iter()
            .all(|r| r.tx.source_epoch > topic.records[0].tx.source_epoch)
    );
    let rows: Vec<String> = topic.rows().into_keys().collect();
    assert_eq!(rows, [r#"["orders","2"]"#, r#"["orders","3"]"#]);
    connector.stop().unwrap();
    // The slot is advanced beyond the stored position.
    database.sql("INSERT INTO orders VALUES (4)");
    wait_for("the slot to be free", LIMIT, || {
        database.slot("active").filter(|a| a == "false")
    });
    database.sql(
        "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM pg_replication_slots \
         WHERE database = current_database()",
    );
    let setting = Setting {
        on_mismatch: OnMismatch::Resync,
        ..setting
    };
    let connector = setting.start(&database);
    topic.wait("the resync", |records| {
        records.iter().filter(|r| r.key.starts_with("[\"~chunk")).count() == 3
    });
    connector.wait_for(State::Running);
    assert_eq!(topic.rows().len(), 3);
}

#[test]
fn foreign_slot_is_not_used() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    let setting = Setting::new(&database, &["orders(id int8)"]);
    database.sql(&format!(
        "SELECT pg_create_logical_replication_slot('trunkline_{}', 'pgoutput')",
        setting.name
    ));
    let connector = setting.start(&database);
    let found = connector.wait_for(State::NeedsResync);
    assert!(found.cause.unwrap().contains("no position of this connector is stored"));
}

#[test]
fn table_declared_later_needs_a_snapshot_and_the_others_continue() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY, note text); CREATE TABLE more (id bigint PRIMARY KEY)");
    let setting = Setting::new(&database, &["orders(id int8)"]);
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    connector.stop().unwrap();
    let stopped = |tables: &[&str]| {
        let again = Setting {
            tables: Setting::on(&database, tables, setting.log.clone(), setting.registry.clone()).tables,
            ..setting.clone()
        };
        let connector = again.start(&database);
        let report = connector.wait_for(State::Running);
        let tables = report.tables.iter().filter(|t| t.state == TableState::NeedsSnapshot);
        let causes: Vec<String> = tables.filter_map(|t| t.cause.clone()).collect();
        connector.stop().unwrap();
        causes
    };
    let causes = stopped(&["orders(id int8)", "more(id int8)"]);
    assert_eq!(causes, ["table more is declared but was not part of the snapshot"]);
    database.sql("INSERT INTO orders VALUES (1)");
    let mut topic = setting.topic();
    let connector = setting.start(&database);
    topic.wait("the other table", |records| {
        records.iter().any(|r| r.key == r#"["orders","1"]"#)
    });
    connector.stop().unwrap();
    assert_eq!(stopped(&["orders(id int8)"]), Vec::<String>::new());
    let causes = stopped(&["orders(id int8, note text?)"]);
    assert_eq!(
        causes,
        ["column note of table orders is declared but was not part of the snapshot"]
    );
}
