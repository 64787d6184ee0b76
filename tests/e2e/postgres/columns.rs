//! Which columns leave the database, and what replaces the values of masked columns.

use super::harness::{Database, LIMIT, Setting, Topic, table};
use crate::support::wait_for;
use connectors::sources::postgres::{ColumnLists, Severity};
use connectors::status::{State, TableState};
use event_log::{Isolation, RecordBatch, StartFrom, TopicPartition};
use std::sync::Arc;
use std::time::Duration;
use topology::{Mask, Names};

const SECRETS: [&str; 4] = ["ann@example.org", "555-1234", "Zacharias", "top-secret"];
const HASH: &str = "b2eadfbaaca8f7b30b76563378bedc2fe183e5b392a7710ab8166987238c66ef";

/// Users with a column that is not declared.
const USERS: &str = "CREATE TABLE users (id bigint PRIMARY KEY, email text NOT NULL, phone text, name text, note text,
    secret text);
    ALTER TABLE users ALTER COLUMN name SET STORAGE EXTERNAL;
    INSERT INTO users VALUES (1, 'ann@example.org', '555-1234', 'Zacharias', NULL, 'top-secret')";

fn has_lists(database: &Database) -> bool {
    let version = database.value("SELECT current_setting('server_version_num')");
    version.as_deref() >= Some("150000")
}

/// A logical slot of the test, whose content is what leaves the database.
struct Peek<'d>(&'d Database, String);

impl<'d> Peek<'d> {
    fn new(database: &'d Database) -> Self {
        let name = format!("peek_{}", database.name);
        database.sql(&format!(
            "SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
        ));
        Peek(database, name)
    }

    /// Everything that a publication has sent since the last call, as text.
    fn read(&self) -> String {
        let publication = publication(self.0);
        let changes = self.0.sql(&format!(
            "SELECT encode(data, 'escape') FROM pg_logical_slot_get_binary_changes('{}', NULL, NULL, 'proto_version', '1', \
             'publication_names', '\"{publication}\"')",
            self.1
        ));
        changes
            .into_iter()
            .flatten()
            .flatten()
            .collect::<Vec<String>>()
            .join("\n")
    }
}

fn publication(database: &Database) -> String {
    database.value("SELECT pubname FROM pg_publication").unwrap()
}

/// The published columns of a table, or nothing if it is not published.
fn published(database: &Database, table: &str) -> Option<String> {
    database.value(&format!(
        "SELECT array_to_string(attnames, ',') FROM pg_publication_tables WHERE tablename = '{table}'"
    ))
}

/// All bytes of a topic.
fn bytes(setting: &Setting, topic: &str) -> Vec<u8> {
    let mut reader = setting.log.reader(Isolation::ReadCommitted).unwrap();
    reader
        .assign(&[(TopicPartition::new(topic, 0), StartFrom::Earliest)])
        .unwrap();
    let (mut batch, mut all) = (RecordBatch::default(), Vec::new());
    while reader.poll(&mut batch, 4 << 20, Duration::from_millis(100)).unwrap() > 0 {
        for record in batch.iter() {
            all.extend_from_slice(record.key().unwrap_or_default());
            all.extend_from_slice(record.value().unwrap_or_default());
            for (_, value) in record.headers().iter() {
                all.extend_from_slice(value.unwrap_or_default());
            }
        }
    }
    all
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn masked(database: &Database) -> Setting {
    let mut setting = Setting {
        heartbeat_seconds: 1,
        ..Setting::new(
            database,
            &[
                "users(id int8, email text, phone text?, name text?, note text?)",
                "other(id int8)",
            ],
        )
    };
    setting.tables[0].masks = [("email", Mask::Hash), ("phone", Mask::Null), ("name", Mask::Partial)]
        .map(|(column, mask)| (column.to_owned(), mask))
        .into();
    setting.adjust = Some(Arc::new(|config| {
        config.mask_key = Some(service::Secret::new("0123456789abcdef"));
    }));
    setting
}

#[test]
fn undeclared_columns_stay_in_the_database_and_masked_values_are_on_no_topic() {
    let database = Database::new();
    database.sql(&format!("{USERS}; CREATE TABLE other (id bigint PRIMARY KEY)"));
    let setting = masked(&database);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    connector.wait_for(State::Running);
    let peek = Peek::new(&database);
    database.each(&[
        "INSERT INTO users SELECT 2, email, phone, name || repeat('.', 5000), NULL, secret FROM users WHERE id = 1",
        "UPDATE users SET secret = secret || '!' WHERE id = 2",
        // Too large for the topic, so it is a dead letter.
        "INSERT INTO users SELECT 3, email, phone, name, repeat('x', 2000000), secret FROM users WHERE id = 1",
        "UPDATE users SET id = 4 WHERE id = 1",
        "DELETE FROM users WHERE id = 2",
        "INSERT INTO other VALUES (1)",
    ]);
    topic.wait("the last change", |records| {
        records.iter().any(|r| r.key == r#"["other","1"]"#)
    });
    let rows = topic.rows();
    assert_eq!(
        rows[r#"["users","4"]"#],
        format!(r#"{{"id":"4","email":"{HASH}","phone":null,"name":"Z***","note":null}}"#)
    );
    for name in [
        names_change(&setting),
        Names::dead_letters(&names_change(&setting)),
        super::harness::names().positions(),
    ] {
        let all = bytes(&setting, &name);
        for secret in SECRETS {
            assert!(!contains(&all, secret), "{secret} is on topic {name}");
        }
    }
    let sent = peek.read();
    assert!(sent.contains("555-1234"), "masks are applied by the connector");
    if has_lists(&database) {
        assert!(
            !sent.contains("top-secret"),
            "the publication lists the declared columns"
        );
        assert_eq!(
            published(&database, "users").as_deref(),
            Some("id,email,phone,name,note")
        );
    }
    connector.stop();
}

fn names_change(setting: &Setting) -> String {
    super::harness::names().change(&setting.name)
}

/// Waits until the connector has changed the publication.
fn wait_for_list(database: &Database, table: &str, columns: Option<&str>) {
    wait_for("the column list", LIMIT, || {
        (published(database, table).as_deref() == columns).then_some(())
    });
}

fn snapshots(topic: &Topic, table: &str) -> usize {
    let end = format!("[\"~chunk\",\"{table}\"]");
    topic.records.iter().filter(|record| record.key == end).count()
}

#[test]
fn list_follows_the_declaration_and_the_table_without_a_gap() {
    let database = Database::new();
    database.sql(&format!("{USERS}; CREATE TABLE other (id bigint PRIMARY KEY)"));
    if !has_lists(&database) {
        return;
    }
    let setting = masked(&database);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    connector.wait_for(State::Running);
    topic.wait("the snapshots", |records| {
        records.iter().filter(|r| r.key.starts_with("[\"~chunk\"")).count() == 2
    });
    connector.stop();

    // A column and a table are no longer declared.
    let mut fewer = setting.clone();
    fewer.tables = vec![table("users(id int8, email text)")];
    fewer.tables[0].masks = setting.tables[0].masks.clone();
    fewer.tables[0].masks.retain(|column, _| column == "email");
    let connector = fewer.start(&database);
    wait_for_list(&database, "users", Some("id,email"));
    wait_for_list(&database, "other", None);
    let peek = Peek::new(&database);
    // PostgreSQL rejects updates while the list lacks the identity, so the connector removes the list.
    database.sql("ALTER TABLE users REPLICA IDENTITY FULL");
    wait_for_list(&database, "users", Some("id,email,phone,name,note,secret"));
    database.each(&[
        "UPDATE users SET secret = 'top-secret 2' WHERE id = 1",
        "ALTER TABLE users REPLICA IDENTITY DEFAULT",
    ]);
    wait_for_list(&database, "users", Some("id,email"));
    assert!(
        peek.read().contains("top-secret 2"),
        "a list is impossible with REPLICA IDENTITY FULL"
    );
    database.sql("UPDATE users SET secret = 'top-secret 3', phone = '555-9999' WHERE id = 1");
    let sent = peek.read();
    assert!(!sent.contains("top-secret") && !sent.contains("555-"), "{sent}");
    connector.wait_for(State::Running);
    topic.read();
    assert_eq!(
        (snapshots(&topic, "users"), snapshots(&topic, "other")),
        (1, 1),
        "no gap"
    );
    assert!(
        topic
            .records
            .iter()
            .all(|record| !record.key.starts_with("[\"~missing\""))
    );
    connector.stop();

    // A column and a table are declared again.
    let connector = setting.start(&database);
    topic.wait("the snapshots", |records| {
        records.iter().filter(|r| r.key.starts_with("[\"~chunk\"")).count() == 4
    });
    wait_for_list(&database, "users", Some("id,email,phone,name,note"));
    wait_for("both tables to run", LIMIT, || {
        let tables = connector.handle.report().tables;
        tables
            .iter()
            .all(|table| table.state == TableState::Running)
            .then_some(())
    });
    database.sql("INSERT INTO other VALUES (5)");
    topic.wait("a change", |records| {
        records.iter().any(|r| r.key == r#"["other","5"]"#)
    });
    assert!(topic.rows()[r#"["users","1"]"#].contains(r#""name":"Z***""#));
    connector.stop();
}

#[test]
fn table_whose_columns_are_all_declared_has_no_list_unless_it_is_requested() {
    let database = Database::new();
    database.sql("CREATE TABLE other (id bigint PRIMARY KEY, n int)");
    if !has_lists(&database) {
        return;
    }
    let has_list = || database.value("SELECT (prattrs IS NOT NULL)::text FROM pg_publication_rel");
    let mut setting = Setting {
        heartbeat_seconds: 1,
        ..Setting::new(&database, &["other(id int8, n int4?)"])
    };
    let connector = setting.start(&database);
    connector.wait_for(State::Running);
    assert_eq!(
        has_list().as_deref(),
        Some("false"),
        "PostgreSQL rejects changes of listed columns"
    );
    database.sql("ALTER TABLE other ADD COLUMN secret text");
    wait_for_list(&database, "other", Some("id,n"));
    connector.stop();
    for (lists, want) in [(ColumnLists::Never, "id,n,secret"), (ColumnLists::Always, "id,n")] {
        setting.adjust = Some(Arc::new(move |config| config.column_lists = lists));
        let connector = setting.start(&database);
        wait_for_list(&database, "other", Some(want));
        connector.stop();
        let findings = setting.source().unwrap().inspect().unwrap();
        let leaves = findings
            .iter()
            .any(|finding| finding.found.contains("column secret of table other leaves"));
        assert_eq!(leaves, want.contains("secret"), "{findings:?}");
        assert!(findings.iter().all(|f| f.severity != Severity::Problem), "{findings:?}");
    }
}

#[test]
fn changed_mask_makes_the_connector_read_the_table_again() {
    let database = Database::new();
    database.sql(&format!("{USERS}; CREATE TABLE other (id bigint PRIMARY KEY)"));
    let setting = masked(&database);
    let mut plain = setting.clone();
    plain.tables[0].masks.remove("name");
    let connector = plain.start(&database);
    let mut topic = setting.topic();
    connector.wait_for(State::Running);
    topic.wait("the row", |records| records.iter().any(|r| r.row.contains("Zacharias")));
    connector.stop();
    let connector = setting.start(&database);
    topic.wait("the masked row", |records| {
        records.iter().any(|r| r.row.contains("Z***"))
    });
    topic.wait("the end", |records| {
        records.iter().filter(|r| r.key == r#"["~chunk","users"]"#).count() == 2
    });
    connector.stop();
    // The key of a row is never masked.
    let mut of_key = setting.clone();
    of_key.tables[0].masks.insert(String::from("id"), Mask::Hash);
    let connector = of_key.start(&database);
    let found = wait_for("the table to stop", LIMIT, || {
        let tables = connector.handle.report().tables;
        tables
            .iter()
            .find(|t| t.table == "users" && t.state == TableState::NeedsSnapshot)
            .cloned()
    });
    let fix = found.fix.unwrap();
    assert!(fix.contains("remove id from mask of [[table]] users"), "{fix}");
    connector.stop();
    // The error for a missing key.
    let mut without = setting.clone();
    without.adjust = None;
    let error = without.source().err().unwrap().to_string();
    assert!(
        error.contains("column email of table users is masked with a hash"),
        "{error}"
    );
}

#[test]
fn permission_for_the_declared_columns_suffices() {
    let database = Database::new();
    let user = database.name.replace("db_", "columns_");
    let publication = format!("publication_{}", database.name);
    database.sql(&format!(
        "{USERS}; CREATE TABLE parts (id bigint PRIMARY KEY, note text, secret text) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100); INSERT INTO parts VALUES (1, 'one', 'x');
         CREATE ROLE {user} LOGIN REPLICATION; GRANT SELECT (id, email) ON users TO {user};
         GRANT SELECT (id) ON parts TO {user};
         CREATE PUBLICATION {publication} FOR TABLE users, parts WITH (publish_via_partition_root = true)"
    ));
    let mut setting = Setting::new(&database, &["users(id int8, email text)", "parts(id int8, note text?)"]);
    setting.url = setting.url.replace("postgres@", &format!("{user}@"));
    let name = publication.clone();
    setting.adjust = Some(Arc::new(move |config| config.publication = Some(name.clone())));
    let connector = setting.start(&database);
    let report = connector.wait_for(State::Failed);
    let (cause, fix) = (report.cause.unwrap(), report.fix.unwrap());
    assert!(
        cause.contains("has no permission to read column note of table parts"),
        "{cause}"
    );
    assert!(fix.contains(r#"GRANT SELECT ("note") ON "public"."parts" TO"#), "{fix}");
    connector.stop();
    database.sql(&format!("GRANT SELECT (note) ON parts TO {user}"));
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.wait("the snapshots", |records| {
        records.iter().filter(|r| r.key.starts_with("[\"~chunk\"")).count() == 2
    });
    let rows = topic.rows();
    assert_eq!(rows[r#"["parts","1"]"#], r#"{"id":"1","note":"one"}"#);
    assert!(rows[r#"["users","1"]"#].contains("ann@example.org"));
    connector.stop();
    // The publication belongs to somebody else, so the connector does not change it, and doctor names the columns.
    let findings = setting.source().unwrap().inspect().unwrap();
    let leaves = findings.iter().find(|f| {
        f.found
            .contains("column phone, name, note, secret of table users leaves")
    });
    assert_eq!(leaves.unwrap().severity, Severity::Warning, "{findings:?}");
    database.sql(&format!("DROP OWNED BY {user}; DROP ROLE {user}"));
}
