//! Benchmark of a state store: speed, memory and disk usage of fills, overwrites, reads, scans and a reopen.
//!
//! Each engine gets the same keys, in batches of 1,000 rows with a checkpoint in a second keyspace, as a stream task
//! commits them. Nothing is fsynced.

use anyhow::Context;
use state_store::{Batch, Direction, Engine, KeyRange, Options, SharedStore, Space};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

const BATCH: u64 = 1_000;

pub fn run(words: &[String]) -> anyhow::Result<()> {
    let engine = match words.first().map_or("fjall", String::as_str) {
        "fjall" => Engine::Fjall,
        "sled" => Engine::Sled,
        other => anyhow::bail!("unknown engine {other}; use fjall or sled"),
    };
    let number = |at: usize, default: u64| {
        words
            .get(at)
            .map_or(Ok(default), |word| word.parse())
            .context("rows, value bytes and memory MiB are numbers")
    };
    let (rows, value_bytes, memory_mib) = (number(1, 1_000_000)?, number(2, 100)?, number(3, 64)?);
    let dir = tempfile::tempdir()?;
    let options = Options {
        engine,
        dir: dir.path().join("store"),
        spaces: vec!["meta", "rows"],
        memory_bytes: memory_mib << 20,
    };
    println!("{engine:?}: {rows} rows, key 16 B, value {value_bytes} B, memory limit {memory_mib} MiB");
    let store = state_store::open(&options)?;
    let value_bytes = usize::try_from(value_bytes)?;
    let mut meter = Meter::new();
    let slowest = fill(&store, rows, value_bytes, 1)?;
    meter.print("fill, random keys", rows, &store, slowest);
    let slowest = fill(&store, rows, value_bytes, 2)?;
    meter.print("overwrite", rows, &store, slowest);
    meter.print("read", read(&store, rows)?, &store, Duration::ZERO);
    meter.print(
        "read, modify, write",
        modify(&store, rows, value_bytes)?,
        &store,
        Duration::ZERO,
    );
    meter.print("scan all", scan(&store)?, &store, Duration::ZERO);
    meter.print("short scans", short_scans(&store, rows)?, &store, Duration::ZERO);
    drop(store);
    meter.since = Instant::now();
    let store = state_store::open(&options)?;
    meter.print("reopen", 1, &store, Duration::ZERO);
    anyhow::ensure!(scan(&store)? == rows, "rows are missing after the reopen");
    Ok(())
}

/// Prints time, memory and disk usage of a phase.
struct Meter {
    since: Instant,
    cpu_s: f64,
    idle_bytes: f64,
}

impl Meter {
    fn new() -> Self {
        let usage = service::telemetry::usage();
        Self {
            since: Instant::now(),
            cpu_s: usage.cpu_s,
            idle_bytes: usage.resident_bytes,
        }
    }

    #[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "printed figures")]
    fn print(&mut self, phase: &str, rows: u64, store: &SharedStore, slowest: Duration) {
        let (wall, usage, stats) = (
            self.since.elapsed().as_secs_f64(),
            service::telemetry::usage(),
            store.stats(),
        );
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        println!(
            "{phase:<20} {wall:>7.2} s  {:>9.0}/s  cpu {:>6.2} s  resident +{:>5.0} MiB (engine reports {:>4.0})  disk {:>5.0} MiB{}",
            rows as f64 / wall,
            usage.cpu_s - self.cpu_s,
            mib(usage.resident_bytes - self.idle_bytes),
            mib(stats.memory_bytes as f64),
            mib(stats.disk_bytes as f64),
            if slowest.is_zero() {
                String::new()
            } else {
                format!("  slowest commit {slowest:.0?}")
            },
        );
        self.since = Instant::now();
        self.cpu_s = usage.cpu_s;
    }
}

/// The nth key, in pseudorandom order: multiplication by an odd number is a permutation of 64-bit numbers.
fn key(n: u64) -> [u8; 16] {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mixed.to_be_bytes());
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

/// A value that hardly compresses.
fn value(n: u64, round: u64, bytes: usize) -> Vec<u8> {
    let mut state = n ^ round.rotate_left(32) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_be_bytes());
    }
    out.truncate(bytes);
    out
}

fn fill(store: &SharedStore, rows: u64, value_bytes: usize, round: u64) -> anyhow::Result<Duration> {
    let mut slowest = Duration::ZERO;
    for first in (0..rows).step_by(usize::try_from(BATCH)?) {
        let mut batch = Batch::default();
        for n in first..(first + BATCH).min(rows) {
            batch.put(Space(1), key(n), value(n, round, value_bytes));
        }
        batch.put(Space(0), b"checkpoint", first.to_be_bytes());
        let since = Instant::now();
        store.commit(batch)?;
        slowest = slowest.max(since.elapsed());
    }
    Ok(slowest)
}

fn read(store: &SharedStore, rows: u64) -> anyhow::Result<u64> {
    let reads = rows.min(200_000);
    for n in 0..reads {
        store
            .get(Space(1), &key(n * 7_919 % rows))?
            .context("a row is missing")?;
    }
    Ok(reads)
}

fn modify(store: &SharedStore, rows: u64, value_bytes: usize) -> anyhow::Result<u64> {
    let total = rows.min(200_000);
    for first in (0..total).step_by(usize::try_from(BATCH)?) {
        let mut batch = Batch::default();
        for n in first..(first + BATCH).min(total) {
            let key = key(n * 7_919 % rows);
            let old = store.get(Space(1), &key)?.context("a row is missing")?;
            batch.put(Space(1), key, value(u64::from(old[0]) + n, 3, value_bytes));
        }
        store.commit(batch)?;
    }
    Ok(total)
}

fn scan(store: &SharedStore) -> anyhow::Result<u64> {
    let mut rows = 0;
    store.scan(Space(1), KeyRange::ALL, Direction::Forward, &mut |_, _| {
        rows += 1;
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

fn short_scans(store: &SharedStore, rows: u64) -> anyhow::Result<u64> {
    let scans = rows.min(20_000);
    for n in 0..scans {
        let mut left = 10;
        store.scan(
            Space(1),
            KeyRange::new(&key(n * 7_919 % rows), None),
            Direction::Forward,
            &mut |_, _| {
                left -= 1;
                if left == 0 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        )?;
    }
    Ok(scans)
}
