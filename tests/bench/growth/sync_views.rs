//! Updates by the sync-views processor with the store of a task.
//!
//! The initial rows are loaded with the values that the processor would write, because processing twenty million
//! records would take longer than the measurement.

use super::updates::{Figures, Random, Updates, row_number, wait_for_compactions};
use anyhow::Context;
use event_log::{ErrorAction, NewRecord, RecordBatch, TimestampType, TopicPartition};
use processors::sync_views::{Config, StepLimits, SyncViews, Unavailable};
use schemas::headers::{self, Tx};
use schemas::schema::Schema;
use schemas::version::Lsn;
use state_store::{Engine, Options, SharedStore, Space};
use std::path::Path;
use std::sync::Arc;
use streams_test::StepDriver;
use views::record::SchemaIds;
use views::rules::{Piece, Relation, SourceRules, ViewRule};

const SCHEMA_ID: u32 = 7;
/// The schema as the PostgreSQL connector writes it: columns that the source may omit are kept in the state.
const SCHEMA: &str = r#"{"type":"record","name":"t","fields":[{"name":"owner","type":"string"},{"name":"a","type":"string"},
    {"name":"b","type":"string"},{"name":"c","type":"string"},
    {"name":"_unchanged","type":["null",{"type":"array","items":"string"}],"default":null}]}"#;
/// Owners of the rows; each is a bucket.
const OWNERS: usize = 1_000;
/// Characters of each of the three texts of a row; Avro encodes such a length in one byte.
const TEXT: usize = 60;
/// Rows per load.
const LOAD_ROWS: usize = 50_000;
/// Names of the keyspaces in a task's store, as `streams` opens it.
const SPACES: [&str; 2] = ["meta", "state"];
const STATE: Space = Space(1);

pub fn build(dir: &Path, rows: usize) -> anyhow::Result<()> {
    let store = open(dir)?;
    let values = values()?;
    let mut numbers = 0..rows;
    loop {
        let chunk = numbers.by_ref().take(LOAD_ROWS);
        let loaded: Vec<_> = chunk
            .map(|row| (state_key(row), values.get(owner(row)).cloned()))
            .collect();
        if loaded.is_empty() {
            store.persist()?;
            return wait_for_compactions();
        }
        store.load(STATE, loaded)?;
    }
}

pub fn measure(dir: &Path, updates: Updates) -> anyhow::Result<Figures> {
    let mut driver = StepDriver::over("sync-views", Box::new(processor()), open(dir)?)?;
    let mut random = Random::new(2);
    // Above the positions of the loaded rows and of earlier measurements.
    let first = u64::try_from(service::clock::system().now_ms())? * 1_000;
    updates.measure(|chosen, transaction| {
        let position = first + u64::try_from(transaction)?;
        driver.feed(&records(chosen, position, &mut random)?)?;
        let written = driver.commit()?.len();
        // There must be a view row per update, which proves that no update was older than the state, and the end
        // marker.
        anyhow::ensure!(
            written == chosen.len() + 1,
            "{written} records written for {} updates",
            chosen.len()
        );
        Ok(())
    })
}

fn open(dir: &Path) -> anyhow::Result<SharedStore> {
    let options = Options {
        engine: Engine::default(),
        dir: dir.to_owned(),
        spaces: SPACES.to_vec(),
        memory_bytes: streams::Config::new("growth", dir).stores.memory_bytes,
    };
    Ok(state_store::open(&options)?)
}

/// The state of a row for each owner. A row's number is only in its key, so the rows of an owner have the same value.
fn values() -> anyhow::Result<Vec<Vec<u8>>> {
    let mut driver = StepDriver::new("sync-views", Box::new(processor()))?;
    let rows: Vec<usize> = (0..OWNERS).collect();
    driver.feed(&records(&rows, 1, &mut Random::new(3))?)?;
    driver.commit()?;
    let value = |row: &usize| -> anyhow::Result<Vec<u8>> {
        let value = driver.state().get(&state_key(*row))?;
        let value = value.context("the processor stores its rows under another key")?;
        Ok(value.into_owned())
    };
    rows.iter().map(value).collect()
}

fn owner(row: usize) -> usize {
    row % OWNERS
}

fn state_key(row: usize) -> Vec<u8> {
    format!("[\"row\",\"t\",{}]", row_number(row)).into_bytes()
}

fn processor() -> SyncViews {
    let rule = ViewRule {
        name: "v".to_owned(),
        version: 1,
        bucket: vec![Piece::Column(0)],
        scope: vec![Piece::Column(0)],
        filter: None,
        fields: vec![("a".to_owned(), 1), ("b".to_owned(), 2), ("c".to_owned(), 3)],
    };
    let schema = Schema::parse(SCHEMA).expect("a valid schema");
    let relation = Relation::new("t", Arc::new(schema), &[0, 1, 2, 3].into(), vec![rule], 1);
    let rules = SourceRules::new("bench.change.t", None, vec![relation]);
    SyncViews::new(Config {
        rules: Arc::new(rules),
        writer: "sync-views/bench.change.t/id/0".to_owned(),
        topic_id: "id".to_owned(),
        view_log: "bench.view.log".into(),
        partitions: 1,
        schemas: SchemaIds {
            row: 1,
            transaction_end: 2,
            transaction_begin: 3,
            stale: 4,
            loaded: 5,
        },
        horizon_ms: i64::MAX / 2,
        job_step: StepLimits::default(),
        fetch: Arc::new(|id| {
            (id == SCHEMA_ID).then(|| SCHEMA.to_owned()).ok_or(Unavailable {
                reason: format!("schema {id} is not known"),
                action: ErrorAction::DeadLetter,
            })
        }),
    })
}

/// A source transaction that writes these rows.
fn records(rows: &[usize], position: u64, random: &mut Random) -> anyhow::Result<RecordBatch> {
    let mut batch = RecordBatch::default();
    let at = batch.intern(&TopicPartition::new("bench.change.t", 0));
    for (index, row) in rows.iter().enumerate() {
        let mut value = vec![0];
        value.extend_from_slice(&SCHEMA_ID.to_be_bytes());
        let owner = format!("user:{}", owner(*row));
        for text in [owner, random.text(TEXT), random.text(TEXT), random.text(TEXT)] {
            value.push(u8::try_from(2 * text.len())?);
            value.extend_from_slice(text.as_bytes());
        }
        // No column is left out.
        value.push(0);
        let tx = Tx {
            source_epoch: 1,
            position: Lsn(position),
            ordinal: u32::try_from(index)?,
            last: index + 1 == rows.len(),
            at_ms: 1,
        };
        let mut header = Vec::new();
        tx.write(&mut header);
        let key = format!("[\"t\",{}]", row_number(*row));
        let (key, header) = (Some(key.as_bytes()), (headers::TX, Some(header.as_slice())));
        let offset = i64::try_from(index)?;
        batch.push(
            at,
            NewRecord {
                offset,
                timestamp: 0,
                timestamp_type: TimestampType::Create,
                key,
                value: Some(&value),
            },
            [header],
        );
    }
    Ok(batch)
}
