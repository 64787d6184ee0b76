//! Updates by the edge: its replica of `view.log` and the replica's store.

use super::updates::{Figures, Random, TRANSACTION_ROWS, Updates, row_number, wait_for_compactions};
use anyhow::Context;
use edge::config::StoreConfig;
use event_log::{Header, NewRecord, Offset, RecordBatch, TimestampType, TopicPartition};
use schemas::version::Version;
use state_store::Engine;
use std::path::Path;
use views::record::{SchemaIds, VERSION, WRITER, Writer};
use views::replica::{FLUSH_BYTES, Options, SPACES, Times};
use views::{BucketId, Replica};

/// Rows of each bucket.
const BUCKET_ROWS: usize = 200;
const WRITER_ID: &str = "sync-views/shop.change.shop/00000000000000000000000000000001/0";
/// The time of every record, in ms.
const NOW: i64 = 1_000_000_000;
const MIB: u32 = 1 << 20;
/// Tombstones of about 2 MiB, the size of a poll.
const READ_ROWS: usize = 10_000;

pub fn build(dir: &Path, rows: usize) -> anyhow::Result<()> {
    let mut edge = Edge::open(dir, rows)?;
    let mut random = Random::new(3);
    for first in (0..rows).step_by(TRANSACTION_ROWS) {
        let chunk: Vec<usize> = (first..rows.min(first + TRANSACTION_ROWS)).collect();
        edge.apply(&chunk, &mut random)?;
    }
    edge.check()?;
    edge.store.persist()?;
    wait_for_compactions()
}

/// Removes all rows in one source transaction, as TRUNCATE does.
pub fn truncate(dir: &Path, rows: usize) -> anyhow::Result<Figures> {
    let mut edge = Edge::open(dir, rows)?;
    let figures = Updates { rows, count: rows }.measure_once(|| {
        let mut batch = RecordBatch::default();
        for row in 0..rows {
            if batch.len() == READ_ROWS {
                edge.read(&batch)?;
                batch.clear();
            }
            edge.push(&mut batch, row, None)?;
        }
        edge.push_end(&mut batch);
        edge.read(&batch)
    })?;
    let left = edge.live_rows()?;
    anyhow::ensure!(left == 0, "the first bucket still has {left} rows");
    Ok(figures)
}

pub fn measure(dir: &Path, updates: Updates) -> anyhow::Result<Figures> {
    let mut edge = Edge::open(dir, updates.rows)?;
    let mut random = Random::new(2);
    let figures = updates.measure(|chosen, _| edge.apply(chosen, &mut random))?;
    edge.check()?;
    Ok(figures)
}

struct Edge {
    replica: Replica,
    store: state_store::SharedStore,
    writer: Writer,
    /// In the order of their ids, as in the store.
    buckets: Vec<String>,
    next: Offset,
}

impl Edge {
    fn open(dir: &Path, rows: usize) -> anyhow::Result<Edge> {
        let config = StoreConfig::default();
        let store = state_store::open(&state_store::Options {
            engine: Engine::default(),
            dir: dir.to_owned(),
            spaces: SPACES.to_vec(),
            memory_bytes: u64::from(config.memory_mib * MIB),
        })?;
        let options = Options {
            partitions: vec![0],
            times: Times::default(),
            log: 1,
            pending_bytes_max: usize::try_from(config.pending_mib * MIB)?,
            flush_bytes: FLUSH_BYTES,
            now: NOW,
        };
        let replica = Replica::open(store.clone(), options)?;
        let (_, next) = *replica.positions().first().context("the replica has no partition")?;
        let schemas = SchemaIds {
            row: 1,
            transaction_end: 2,
            transaction_begin: 3,
            stale: 4,
            loaded: 5,
        };
        let mut buckets: Vec<String> = (0..rows.div_ceil(BUCKET_ROWS)).map(|n| format!("user:{n}")).collect();
        buckets.sort_by_cached_key(|name| BucketId::of(name));
        Ok(Edge {
            replica,
            store,
            writer: Writer::new(WRITER_ID, schemas),
            buckets,
            next,
        })
    }

    /// Applies a source transaction that writes these rows.
    fn apply(&mut self, rows: &[usize], random: &mut Random) -> anyhow::Result<()> {
        let mut batch = RecordBatch::default();
        for row in rows {
            let json = format!("{{\"id\":{},\"text\":\"{}\"}}", row_number(*row), random.text(180));
            self.push(&mut batch, *row, Some(&json))?;
        }
        self.push_end(&mut batch);
        self.read(&batch)
    }

    /// Adds the record of a row, which removes the row if it has no JSON.
    fn push(&mut self, batch: &mut RecordBatch, row: usize, json: Option<&str>) -> anyhow::Result<()> {
        let bucket = self.buckets.get(row / BUCKET_ROWS).context("no bucket for a row")?;
        let key = row_number(row).to_string();
        let (key, value) = self.writer.row(bucket, "v", &key, json.map(str::as_bytes));
        let mut version = [0; 17];
        version[5..13].copy_from_slice(&self.next.to_be_bytes());
        let headers: [Header<'_>; 2] = [(WRITER, Some(WRITER_ID.as_bytes())), (VERSION, Some(&version))];
        push(batch, self.next, key, value, &headers);
        self.next += 1;
        Ok(())
    }

    fn push_end(&mut self, batch: &mut RecordBatch) {
        let (key, value) = self.writer.transaction_end(Version::default(), NOW);
        push(batch, self.next, key, value, &[(WRITER, Some(WRITER_ID.as_bytes()))]);
        self.next += 1;
    }

    fn read(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let applied = self.replica.apply(0, batch.iter(), NOW)?;
        anyhow::ensure!(
            applied.rejected == 0,
            "the replica rejected {} records",
            applied.rejected
        );
        if applied.need_end {
            self.replica.set_end(0, self.next)?;
        }
        Ok(())
    }

    /// Rows of the first bucket.
    fn live_rows(&self) -> anyhow::Result<usize> {
        let bucket = self.buckets.first().context("no buckets")?;
        let rows = self.replica.rows(0, BucketId::of(bucket))?;
        Ok(rows.iter().filter(|row| row.parts().json.is_some()).count())
    }

    /// An update replaces a row, so the number of rows does not change.
    fn check(&self) -> anyhow::Result<()> {
        let rows = self.live_rows()?;
        anyhow::ensure!(
            rows == BUCKET_ROWS,
            "the first bucket has {rows} rows, not {BUCKET_ROWS}"
        );
        Ok(())
    }
}

fn push(batch: &mut RecordBatch, offset: Offset, key: &[u8], value: Option<&[u8]>, headers: &[Header<'_>]) {
    let at = batch.intern(&TopicPartition::new("shop.view.log", 0));
    let record = NewRecord {
        offset,
        timestamp: NOW,
        timestamp_type: TimestampType::LogAppend,
        key: Some(key),
        value,
    };
    batch.push(at, record, headers.iter().copied());
}
