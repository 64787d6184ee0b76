//! Key changes of rows with an unchanged TOAST value, which PostgreSQL does not send: devices must see the rows of the
//! table.

use super::harness::{Database, LIMIT, Setting, names};
use crate::support::wait_for;
use connectors::status::State;
use event_log::{ErrorAction, Isolation, NewRecord, RecordBatch, StartFrom, TimestampType, TopicPartition};
use processors::sync_views::{self, SyncViews, Unavailable};
use schemas::headers;
use schemas::ids::{SchemaId, SourceName};
use schemas::pg_types::{self, Column};
use schemas::schema::Schema;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use streams_test::StepDriver;
use views::record::{self, SchemaIds, ViewRecord};
use views::rules::{Piece, Relation, SourceRules, ViewRule};

const DOCUMENTS: &str = "documents(id int8, owner text, body text)";

/// Creates sync-views with a view of each table, by owner.
fn sync_views(setting: &Setting) -> StepDriver {
    let topic = names().change(&setting.name);
    let relations = setting.tables.iter().map(|table| {
        let rule = ViewRule {
            name: table.name.to_string(),
            version: 1,
            bucket: vec![Piece::Column(1)],
            scope: vec![Piece::Column(1)],
            filter: None,
            fields: vec![("body".to_owned(), 2)],
        };
        let source = SourceName::new(&setting.name).expect("a valid name");
        let columns =
            [("id", "int8"), ("owner", "text"), ("body", "text")].map(|(name, ty)| Column::declared(name, ty));
        let schema = pg_types::table_schema(&source, &table.name, &columns).expect("valid columns");
        let schema = Schema::parse(&schema).expect("a valid schema");
        Relation::new(
            table.name.to_string(),
            Arc::new(schema),
            &[0, 1, 2].into(),
            vec![rule],
            1,
        )
    });
    let rules = SourceRules::new(topic.as_str(), None, relations.collect());
    let registry = setting.registry.clone();
    let processor = SyncViews::new(sync_views::Config {
        rules: Arc::new(rules),
        writer: format!("sync-views/{topic}/id/0"),
        topic_id: "id".to_owned(),
        view_log: names().view_log().into(),
        partitions: 1,
        schemas: SchemaIds {
            row: 1,
            transaction_end: 2,
            transaction_begin: 3,
            stale: 4,
            loaded: 5,
        },
        horizon_ms: 1_000_000,
        job_step: sync_views::StepLimits::default(),
        fetch: Arc::new(move |id| {
            let text = registry.by_id(SchemaId(id));
            text.map(|text| text.to_string()).map_err(|e| Unavailable {
                reason: e.to_string(),
                action: ErrorAction::DeadLetter,
            })
        }),
    });
    StepDriver::new("sync-views", Box::new(processor)).unwrap()
}

/// The contents of each table's view after these records of the topic, as `view key` and the row. A commit after every
/// record also separates the two records of a key change.
fn shown(setting: &Setting, records: usize) -> BTreeMap<String, String> {
    let mut driver = sync_views(setting);
    let mut reader = setting.log.reader(Isolation::ReadCommitted).unwrap();
    let topic = TopicPartition::new(names().change(&setting.name), 0);
    reader.assign(&[(topic.clone(), StartFrom::Earliest)]).unwrap();
    let (mut rows, mut seen) = (BTreeMap::new(), 0);
    wait_for("the records of the topic", LIMIT, || {
        let mut batch = RecordBatch::default();
        reader.poll(&mut batch, 4 << 20, Duration::from_millis(50)).unwrap();
        for record in batch.iter() {
            let mut one = RecordBatch::default();
            let at = one.intern(&topic);
            let (offset, time) = (record.offset(), record.timestamp());
            let (key, value) = (record.key(), record.value());
            one.push(
                at,
                NewRecord {
                    offset,
                    timestamp: time,
                    timestamp_type: TimestampType::Create,
                    key,
                    value,
                },
                record.headers().iter(),
            );
            driver.feed(&one).unwrap();
            apply(&mut driver, &mut rows);
            seen += 1;
        }
        (seen >= records).then_some(())
    });
    rows
}

fn apply(driver: &mut StepDriver, rows: &mut BTreeMap<String, String>) {
    let mut out = RecordBatch::default();
    let view_log = out.intern(&TopicPartition::new(names().view_log(), 0));
    for written in driver.commit().unwrap() {
        assert_eq!(
            written.topic,
            names().view_log(),
            "a dead letter: {:?}",
            written.headers
        );
        let headers = written.headers.iter();
        let headers = headers.map(|(name, value)| (name.as_str(), value.as_deref()));
        let (key, value) = (written.key.as_deref(), written.value.as_deref());
        out.push(
            view_log,
            NewRecord {
                offset: 0,
                timestamp: 0,
                timestamp_type: TimestampType::LogAppend,
                key,
                value,
            },
            headers,
        );
    }
    for record in out.iter() {
        match record::parse(&record).unwrap() {
            ViewRecord::Row(row) => {
                let at = format!("{} {} {}", row.view, row.bucket, row.key);
                match row.json {
                    Some(json) => drop(rows.insert(at, String::from_utf8(json.to_vec()).unwrap())),
                    None => drop(rows.remove(&at)),
                }
            }
            // Until its first snapshot has ended, a view is stale.
            ViewRecord::Stale { view, stale: true, .. } => drop(rows.insert(format!("stale {view}"), String::new())),
            ViewRecord::Stale { view, stale: false, .. } => drop(rows.remove(&format!("stale {view}"))),
            _ => {}
        }
    }
}

/// The same rows, read from the database.
fn rows_of(database: &Database, table: &str) -> BTreeMap<String, String> {
    let rows = database.sql(&format!("SELECT id, owner, body FROM {table}"));
    let row = |row: Vec<Option<String>>| {
        let [Some(id), Some(owner), Some(body)] = row.as_slice() else {
            panic!("{row:?}")
        };
        (format!("{table} {owner} \"{id}\""), format!("{{\"body\":\"{body}\"}}"))
    };
    rows.into_iter().map(row).collect()
}

#[test]
fn unchanged_large_columns_follow_rows_to_their_new_keys() {
    let database = Database::new();
    for table in ["documents", "whole"] {
        database.sql(&format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, owner text NOT NULL, body text NOT NULL);
             ALTER TABLE {table} ALTER COLUMN body SET STORAGE EXTERNAL;
             INSERT INTO {table} SELECT n, 'ann', repeat('body ' || n || ' ', 1500) FROM generate_series(1, 6) n"
        ));
    }
    database.sql("ALTER TABLE whole REPLICA IDENTITY FULL");
    let setting = Setting::new(&database, &[DOCUMENTS, "whole(id int8, owner text, body text)"]);
    let connector = setting.start(&database);
    let mut topic = setting.topic();
    topic.lines(14);
    connector.wait_for(State::Running);
    let mut count = 14;
    for table in ["documents", "whole"] {
        let statements = [
            // The cases: one change; two rows swap their keys through a third key; a chain of changes, after which the
            // first key is used again; a row is deleted and another row gets its key; a new large value together with a
            // new key.
            ("UPDATE t SET id = 10 WHERE id = 1", 2),
            (
                "UPDATE t SET id = 0 WHERE id = 2; UPDATE t SET id = 2 WHERE id = 3; UPDATE t SET id = 3, owner = 'bob' WHERE id = 0",
                6,
            ),
            (
                "UPDATE t SET id = 11 WHERE id = 4; UPDATE t SET id = 12 WHERE id = 11;
                 INSERT INTO t VALUES (4, 'ann', 'short')",
                5,
            ),
            ("DELETE FROM t WHERE id = 5; UPDATE t SET id = 5 WHERE id = 6", 3),
            ("UPDATE t SET id = 13, body = repeat('new ', 3000) WHERE id = 10", 2),
            ("UPDATE t SET owner = 'eve' WHERE id IN (2, 13)", 2),
        ];
        for (statement, records) in statements {
            let statement = statement.replace(" t ", &format!(" {table} "));
            database.sql(&format!("BEGIN; {statement}; COMMIT"));
            count += records;
        }
    }
    topic.lines(count);
    let records = &topic.records;
    let first = records[14].clone();
    assert_eq!(first.line(), r#"["documents","1"] -"#);
    assert_eq!(
        first.moved,
        Some((headers::MOVED_TO, r#"["documents","10"]"#.to_owned()))
    );
    let second = records[15].clone();
    assert_eq!(second.unchanged, ["body"]);
    assert_eq!(
        second.moved,
        Some((headers::MOVED_FROM, r#"["documents","1"]"#.to_owned()))
    );
    let left_out = records.iter().filter(|r| !r.unchanged.is_empty() && r.moved.is_some());
    assert_eq!(left_out.count(), 7, "rows whose key changed without their body");
    assert!(records.iter().all(|r| r.table == "documents" || r.unchanged.is_empty()));
    let mut want = rows_of(&database, "documents");
    want.extend(rows_of(&database, "whole"));
    let got = shown(&setting, count);
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    assert!(got == want, "a row has another body than in the database");
    connector.stop();
}
