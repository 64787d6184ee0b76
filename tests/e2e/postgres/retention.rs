//! Write-ahead log that the server retains for a slot: reported in every state, with a limit that acts.

use super::harness::{Connector, Database, LIMIT, Setting};
use crate::support::{Postgres, wait_for};
use connectors::commands::Command;
use connectors::source::run;
use connectors::sources::postgres::{Config, OnMaxRetainedWal, WalSize};
use connectors::status::{Handle, State};
use service::{Drain, Readiness};
use std::sync::Arc;

fn limited(database: &Database, action: OnMaxRetainedWal) -> Setting {
    let limit = WalSize::try_from(String::from("24MB")).unwrap();
    Setting {
        heartbeat_seconds: 1,
        adjust: Some(Arc::new(move |config: &mut Config| {
            (config.max_retained_wal, config.on_max_retained_wal) = (Some(limit), action);
        })),
        ..Setting::new(database, &["orders(id int8)"])
    }
}

/// Writes more write-ahead log than the limit.
fn write_wal(database: &Database) {
    for _ in 0..6 {
        database.sql(
            "CREATE TABLE IF NOT EXISTS filler (n int); INSERT INTO filler SELECT n FROM generate_series(1, 100000) n; \
             TRUNCATE filler; SELECT pg_switch_wal()",
        );
    }
}

fn alarm(connector: &Connector) -> String {
    wait_for("the alarm", LIMIT, || connector.handle.report().alarm).cause
}

#[test]
fn paused_connector_reports_what_its_slot_retains() {
    let cluster = Postgres::start();
    let database = Database::at(&cluster.url());
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    let setting = limited(&database, OnMaxRetainedWal::Report);
    let readiness = Readiness::new();
    let handle = Handle::new(&setting.name, readiness.register("connector"));
    let (context, drain) = (setting.context(handle.clone(), database.runtime()), Drain::new());
    let (source, inside) = (setting.source().unwrap(), drain.clone());
    let thread = std::thread::Builder::new()
        .spawn(move || run(source, &context, &inside))
        .unwrap();
    let connector = Connector::of(handle, drain, thread);
    connector.wait_for(State::Running);
    wait_for("a first measurement", LIMIT, || {
        connector.handle.report().retained_bytes
    });
    connector.send(Command::Pause);
    connector.wait_for(State::Paused);
    assert!(readiness.report().ready);
    write_wal(&database);
    let cause = alarm(&connector);
    assert!(cause.contains("more than max_retained_wal = 24 MB"), "{cause}");
    assert!(!readiness.report().ready);
    assert!(connector.handle.report().retained_bytes > Some(24 << 20));
    connector.send(Command::Resume);
    wait_for("the connector to catch up", LIMIT, || {
        database.sql("CHECKPOINT");
        let report = connector.handle.report();
        (report.state == State::Running && report.alarm.is_none()).then_some(())
    });
    assert!(readiness.report().ready);
    connector.stop();
}

#[test]
fn slot_beyond_the_limit_is_dropped_if_configured() {
    let cluster = Postgres::start();
    let database = Database::at(&cluster.url());
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY)");
    let setting = limited(&database, OnMaxRetainedWal::DropSlot);
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    connector.send(Command::Pause);
    connector.wait_for(State::Paused);
    // The slot of another application is not touched.
    database.sql("SELECT pg_create_logical_replication_slot('other', 'pgoutput')");
    write_wal(&database);
    let count = || database.value("SELECT count(*)::text FROM pg_replication_slots");
    wait_for("the slot to be dropped", LIMIT, || {
        (count().as_deref() == Some("1")).then_some(())
    });
    assert_eq!(database.slot("slot_name").as_deref(), Some("other"));
    connector.send(Command::Resume);
    let report = connector.wait_for(State::NeedsResync);
    let cause = report.cause.unwrap();
    assert!(cause.contains("the slot was dropped because"), "{cause}");
    database.sql("SELECT pg_drop_replication_slot('other')");
    database.sql("INSERT INTO orders VALUES (1)");
    connector.send(Command::Resync);
    connector.wait_for(State::Running);
    let mut topic = setting.topic();
    topic.wait("the row", |records| {
        records.iter().any(|r| r.key == r#"["orders","1"]"#)
    });
    connector.stop();
}
