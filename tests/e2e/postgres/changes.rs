//! Records of snapshots and transactions.

use super::harness::{Database, Setting};
use connectors::status::State;

const ORDERS: &str = "orders(id int8, note text?)";

#[test]
fn snapshot_precedes_transactions_in_commit_order() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text); INSERT INTO orders VALUES (1, 'one'), (2, NULL);
         CREATE SCHEMA sales; CREATE TABLE sales.lines (order_id int, n int, qty numeric, PRIMARY KEY (order_id, n))",
    );
    let setting = Setting::new(&database, &[ORDERS, "sales.lines(order_id int4, n int4, qty numeric?)"]);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(4);
    connector.wait_for(State::Running);
    database.sql(
        "BEGIN; INSERT INTO orders VALUES (3, 'drei'); INSERT INTO sales.lines VALUES (3, 1, 1.50);
         UPDATE orders SET note = 'eins' WHERE id = 1; DELETE FROM orders WHERE id = 2; COMMIT;
         INSERT INTO sales.lines VALUES (3, 2, NULL)",
    );
    let lines = topic.lines(9);
    let low = topic.records[2].row.split(' ').nth(3).unwrap();
    let low_of_lines = topic.records[3].row.split(' ').nth(3).unwrap();
    let want = [
        r#"["orders","1"] {"id":"1","note":"one"}"#.to_owned(),
        r#"["orders","2"] {"id":"2","note":null}"#.to_owned(),
        format!(r#"["~chunk","orders"] chunk orders low {low} final true ."#),
        format!(r#"["~chunk","sales.lines"] chunk sales.lines low {low_of_lines} final true ."#),
        r#"["orders","3"] {"id":"3","note":"drei"}"#.to_owned(),
        r#"["sales.lines",3,1] {"order_id":3,"n":1,"qty":"1.50"}"#.to_owned(),
        r#"["orders","1"] {"id":"1","note":"eins"}"#.to_owned(),
        r#"["orders","2"] - ."#.to_owned(),
        r#"["sales.lines",3,2] {"order_id":3,"n":2,"qty":null} ."#.to_owned(),
    ];
    assert_eq!(lines, want);
    assert_eq!(topic.rows().len(), 4);
    let records = &topic.records;
    assert!(
        records[..4]
            .iter()
            .all(|r| r.snapshot.is_some() && r.tx.source_epoch == 1)
    );
    assert!(records[4..].iter().all(|r| r.snapshot.is_none()));
    let one = &records[4..8];
    assert!(
        one.iter()
            .all(|r| r.tx.position == one[0].tx.position && r.tx.at_ms == one[0].tx.at_ms)
    );
    let announced: Vec<&str> = topic.announced.iter().map(|r| r.key.as_str()).collect();
    assert_eq!(announced, [r#"["~missing","orders"]"#, r#"["~missing","sales.lines"]"#]);
    let report = connector.handle.report();
    assert_eq!(
        (report.state, report.records_total, report.cause),
        // Two of the records tell readers that the first snapshot of a table has not ended.
        (State::Running, 11, None)
    );
    connector.stop();
}

#[test]
fn restart_continues_at_the_stored_position() {
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY, note text); INSERT INTO orders VALUES (1, 'one')");
    let setting = Setting::new(&database, &[ORDERS]);
    let mut topic = setting.topic();
    let connector = setting.start(&database);
    topic.lines(2);
    connector.stop();
    for id in 2..6 {
        database.sql(&format!("INSERT INTO orders VALUES ({id}, 'while it was away')"));
        let connector = setting.start(&database);
        let lines = topic.lines(id + 1);
        assert_eq!(lines.len(), id + 1);
        assert!(lines[id].starts_with(&format!(r#"["orders","{id}"]"#)), "{lines:?}");
        connector.stop();
    }
    topic.read();
    assert_eq!((topic.records.len(), topic.rows().len()), (6, 5));
}

#[test]
fn unchanged_toast_is_named_and_old_key_gets_tombstone() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text, big text, small int);
         ALTER TABLE orders ALTER COLUMN big SET STORAGE EXTERNAL;
         CREATE TABLE whole (id bigint PRIMARY KEY, big text NOT NULL, small int);
         ALTER TABLE whole ALTER COLUMN big SET STORAGE EXTERNAL; ALTER TABLE whole REPLICA IDENTITY FULL",
    );
    // The declaration has another column order than the table and does not contain the column `small`.
    let tables = [
        "orders(big text, id int8, note text?)",
        "whole(id int8, big text, small int4?)",
    ];
    database.sql("ALTER TABLE orders ALTER COLUMN big SET NOT NULL");
    let setting = Setting::new(&database, &tables);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(2);
    connector.wait_for(State::Running);
    database.each(&[
        "INSERT INTO orders VALUES (1, 'a', repeat('x', 4000), 1)",
        "UPDATE orders SET note = 'b' WHERE id = 1",
        "UPDATE orders SET id = 2 WHERE id = 1",
        "UPDATE orders SET small = 5",
        "DELETE FROM orders",
        "INSERT INTO whole VALUES (1, repeat('y', 4000), 1)",
        "UPDATE whole SET small = 2",
        "UPDATE whole SET id = 7",
        "DELETE FROM whole WHERE id = 7",
    ]);
    let lines = topic.lines(13);
    let (x, y) = ("x".repeat(4000), "y".repeat(4000));
    let want = [
        format!(r#"["orders","1"] {{"big":"{x}","id":"1","note":"a"}} ."#),
        r#"["orders","1"] {"big":"","id":"1","note":"b"} unchanged ["big"] ."#.to_owned(),
        r#"["orders","1"] -"#.to_owned(),
        r#"["orders","2"] {"big":"","id":"2","note":"b"} unchanged ["big"] ."#.to_owned(),
        r#"["orders","2"] {"big":"","id":"2","note":"b"} unchanged ["big"] ."#.to_owned(),
        r#"["orders","2"] - ."#.to_owned(),
        format!(r#"["whole","1"] {{"id":"1","big":"{y}","small":1}} ."#),
        format!(r#"["whole","1"] {{"id":"1","big":"{y}","small":2}} ."#),
        r#"["whole","1"] -"#.to_owned(),
        format!(r#"["whole","7"] {{"id":"7","big":"{y}","small":2}} ."#),
        r#"["whole","7"] - ."#.to_owned(),
    ];
    for (line, want) in lines[2..].iter().zip(want) {
        assert!(*line == want, "{line:.120} instead of {want:.120}");
    }
    assert!(topic.rows().is_empty());
}

#[test]
fn truncate_is_one_record_per_table() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, note text); CREATE TABLE other (id bigint PRIMARY KEY);
         CREATE TABLE undeclared (id bigint PRIMARY KEY); INSERT INTO orders VALUES (1, 'one')",
    );
    let setting = Setting::new(&database, &[ORDERS, "other(id int8)"]);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(3);
    connector.wait_for(State::Running);
    database.sql("BEGIN; INSERT INTO orders VALUES (2, ''); TRUNCATE orders, other, undeclared; INSERT INTO other VALUES (9); COMMIT");
    let lines = topic.lines(7);
    let mut truncated = lines[4..6].to_vec();
    truncated.sort();
    assert_eq!(truncated, [r#"["orders"] -"#, r#"["other"] -"#]);
    assert_eq!(lines[6], r#"["other","9"] {"id":"9"} ."#);
    assert_eq!(topic.rows().into_keys().collect::<Vec<_>>(), [r#"["other","9"]"#]);
}

#[test]
fn large_transaction_spans_commits_and_ends_once() {
    const ROWS: usize = 150_000;
    let database = Database::new();
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY, note text)");
    let setting = Setting::new(&database, &[ORDERS]);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(1);
    connector.wait_for(State::Running);
    database.sql(&format!(
        "INSERT INTO orders SELECT n, 'note ' || n FROM generate_series(1, {ROWS}) n"
    ));
    database.sql("DELETE FROM orders WHERE id = 7");
    topic.lines(ROWS + 2);
    assert_eq!(topic.records.len(), ROWS + 2);
    let one = &topic.records[1..=ROWS];
    assert!(one.iter().all(|r| r.tx.position == one[0].tx.position));
    assert_eq!(one.iter().filter(|r| r.tx.last).count(), 1);
    assert!(one[ROWS - 1].tx.last);
    assert_eq!(topic.rows().len(), ROWS - 1);
    // In the end, the transaction is acknowledged completely, so that the database can remove its WAL.
    let end = topic.records[ROWS + 1].tx.position.to_string();
    crate::support::wait_for("the slot to be acknowledged", super::harness::LIMIT, || {
        let ahead = database.slot(&format!("confirmed_flush_lsn > '{end}'"));
        ahead.filter(|ahead| ahead == "true")
    });
}

#[test]
fn partitions_are_published_as_their_root_table() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE readings (id bigint, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE readings_2025 PARTITION OF readings FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
         CREATE TABLE readings_2026 PARTITION OF readings FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         INSERT INTO readings VALUES (1, '2025-05-05'), (2, '2026-06-06')",
    );
    let setting = Setting::new(&database, &["readings(id int8, at date)"]);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(3);
    connector.wait_for(State::Running);
    database.each(&[
        "INSERT INTO readings VALUES (3, '2026-01-01')",
        "UPDATE readings SET at = '2026-12-31' WHERE id = 1",
    ]);
    let lines = topic.lines(6);
    let want = [
        r#"["readings","3","2026-01-01"] {"id":"3","at":"2026-01-01"} ."#,
        r#"["readings","1","2025-05-05"] -"#,
        r#"["readings","1","2026-12-31"] {"id":"1","at":"2026-12-31"} ."#,
    ];
    assert_eq!(lines[3..], want);
}
