//! Database setups that the connector rejects, and the fixes in its errors.

use super::harness::{Database, LIMIT, Setting, embedded};
use crate::support::wait_for;
use connectors::commands::Command;
use connectors::source::OnMismatch;
use connectors::status::{Report, State};
use std::sync::Arc;

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
    connector.stop();
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
    connector.stop();
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
    assert!(found.fix.unwrap().contains("trunkline connect resync"));
    topic.read();
    assert_eq!(topic.records.len(), 3, "nothing is published past a gap");
    connector.send(Command::Resync);
    connector.wait_for(State::Running);
    topic.lines(6);
    assert!(
        topic.records[3..]
            .iter()
            .all(|r| r.tx.source_epoch > topic.records[0].tx.source_epoch)
    );
    let rows: Vec<String> = topic.rows().into_keys().collect();
    assert_eq!(rows, [r#"["orders","2"]"#, r#"["orders","3"]"#]);
    connector.stop();
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
fn foreign_slot_is_neither_used_nor_dropped() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    let setting = Setting {
        on_mismatch: OnMismatch::Resync,
        ..Setting::new(&database, &["orders(id int8)"])
    };
    // A first installation shows the name of the slot; the second one has another log.
    let first = setting.start(&database);
    first.wait_for(State::Running);
    first.stop();
    let slot = database.slot("slot_name").unwrap();
    assert!(slot.starts_with("trunkline_tests_"), "{slot}");
    let (log, registry) = embedded();
    let other = Setting {
        log: log.clone(),
        ..Setting::on(&database, &["orders(id int8)"], log, registry)
    };
    let other = Setting {
        on_mismatch: OnMismatch::Resync,
        ..other
    };
    let connector = other.start(&database);
    let found = connector.wait_for(State::Failed);
    assert!(found.cause.unwrap().contains("no position of this connector is stored"));
    let fix = found.fix.unwrap();
    assert!(
        fix.contains(&format!("SELECT pg_drop_replication_slot('{slot}')")),
        "{fix}"
    );
    // A request for a resync, which makes the connector store a position, does not drop it either.
    connector.send(Command::Resync);
    let cause = wait_for("the resync to be refused", LIMIT, || {
        let cause = connector.handle.report().cause?;
        cause.contains("does not name it").then_some(cause)
    });
    assert!(cause.contains(&slot), "{cause}");
    assert_eq!(database.slot("slot_name"), Some(slot.clone()));
    database.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    connector.wait_for(State::Running);
}

#[test]
fn databases_of_one_cluster_do_not_share_slots() {
    let (one, two) = (Database::new(), Database::new());
    for database in [&one, &two] {
        database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    }
    let first = Setting::new(&one, &["orders(id int8)"]);
    let second = Setting {
        name: first.name.clone(),
        log: first.log.clone(),
        registry: first.registry.clone(),
        ..Setting::new(&two, &["orders(id int8)"])
    };
    let connector = first.start(&one);
    connector.wait_for(State::Running);
    connector.stop();
    let slot = one.slot("slot_name").unwrap();
    // A wrong URL: the same connector at another database of the cluster.
    let connector = second.start(&two);
    let found = connector.wait_for(State::NeedsResync);
    assert!(found.cause.unwrap().contains("the database is"));
    connector.send(Command::Resync);
    connector.wait_for(State::Running);
    assert_eq!(one.slot("slot_name"), Some(slot));
    assert!(two.slot("slot_name").is_some());
}

/// A position that was written when the default name was another one.
#[test]
fn stored_slot_is_used_when_the_default_name_changes() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    let older = format!("older_{}", database.name);
    let (slot, publication) = (older.clone(), format!("{older}_pub"));
    let setting = Setting::new(&database, &["orders(id int8)"]);
    let before = Setting {
        adjust: Some(Arc::new(move |config| {
            (config.slot, config.publication) = (Some(slot.clone()), Some(publication.clone()));
        })),
        ..setting.clone()
    };
    let connector = before.start(&database);
    connector.wait_for(State::Running);
    connector.stop();
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    database.sql("INSERT INTO orders VALUES (1)");
    setting.topic().wait("the row", |records| {
        records.iter().any(|r| r.key == r#"["orders","1"]"#)
    });
    // A resync replaces that slot too, instead of leaving it behind.
    connector.send(Command::Resync);
    wait_for("the resync", LIMIT, || {
        let report = connector.handle.report();
        (report.state == State::Running && report.position.contains("source epoch 2")).then_some(())
    });
    let slots = database.sql(&format!(
        "SELECT slot_name::text FROM pg_replication_slots WHERE database = '{}'",
        database.name
    ));
    assert_eq!(slots, [[Some(older)]]);
}
