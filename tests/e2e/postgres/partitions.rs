//! Changes of partitions under a running connector.

use super::harness::{Database, LIMIT};
use super::table_states::{Case, MISSING, Running};
use crate::support::wait_for;

pub const PARTITIONED: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, note text) PARTITION BY RANGE (id);
    CREATE TABLE orders_0 PARTITION OF orders FOR VALUES FROM (0) TO (100);
    CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM (100) TO (200);
    INSERT INTO orders VALUES (1, 'one'), (101, 'two'); CREATE TABLE other (id bigint PRIMARY KEY)";

#[test]
fn partition_with_rows_that_comes_or_goes_is_read_again() {
    let cases: [Case; 4] = [
        (
            "attached",
            "CREATE TABLE orders_2 (LIKE orders INCLUDING ALL); INSERT INTO orders_2 VALUES (201, 'x');
             ALTER TABLE orders ATTACH PARTITION orders_2 FOR VALUES FROM (200) TO (300)",
            "was attached",
        ),
        (
            "detached",
            "ALTER TABLE orders DETACH PARTITION orders_1",
            "detached or dropped",
        ),
        ("dropped", "DROP TABLE orders_1", "detached or dropped"),
        ("truncated", "TRUNCATE orders_1", "was truncated or rewritten"),
    ];
    for (name, sql, cause) in cases {
        eprintln!("case {name}");
        let mut running = Running::new(PARTITIONED);
        running.still_runs();
        running.database.sql(sql);
        running.is_read_again(cause);
        running.stop();
    }
}

/// Waits until no transaction runs that is older than the rows of `orders`. Other tests use the same cluster.
fn wait_for_older_transactions(database: &Database) {
    let settled = "SELECT min(age(xmin)) > age(pg_snapshot_xmin(pg_current_snapshot())::xid) FROM orders";
    wait_for("older transactions", LIMIT, || {
        database.value(settled).filter(|settled| settled == "t")
    });
}

#[test]
fn rewritten_partition_does_not_stop_its_table() {
    let mut running = Running::new(PARTITIONED);
    wait_for_older_transactions(&running.database);
    running.still_runs();
    for sql in [
        "VACUUM FULL orders_1",
        "CLUSTER orders_1 USING orders_1_pkey",
        "VACUUM FULL orders",
    ] {
        running.database.sql(sql);
        running.still_runs();
    }
    running.topic.read();
    assert!(running.topic.records.iter().all(|record| record.key != MISSING));
    // The record is new, and the rewrite happens while the connector is stopped.
    running.database.sql("TRUNCATE orders_0");
    running.is_read_again("was truncated or rewritten");
    running.stop();
    running.database.sql("VACUUM FULL orders_1");
    running.restart();
    running.still_runs();
    let missing = running.topic.records.iter().filter(|record| record.key == MISSING);
    assert_eq!(missing.count(), 1);
}

#[test]
fn new_partition_and_truncated_root_do_not_stop_a_table() {
    let mut running = Running::new(PARTITIONED);
    running.still_runs();
    running.database.each(&[
        "BEGIN; CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM (200) TO (300); INSERT INTO orders VALUES (201, 'x');
         COMMIT",
        "TRUNCATE orders",
        "INSERT INTO orders VALUES (5, 'five')",
    ]);
    running.still_runs();
    running.restart();
    running.still_runs();
    let keys: Vec<String> = running
        .topic
        .rows()
        .into_keys()
        .filter(|k| k.contains("orders"))
        .collect();
    assert_eq!(keys, [r#"["orders","5"]"#]);
}
