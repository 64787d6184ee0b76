//! Reads of a table whose index and filter do not fit in the block cache.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::ops::ControlFlow;
use tempfile::TempDir;
use trunkline_state_store::{Direction, Engine, KeyRange, Options, SharedStore, Space, open};

const ROWS: Space = Space(0);
/// One load writes these rows as one table with a filter of 600 kB, while a shard of the cache has at most 512 kB.
const COUNT: u32 = 500_000;
/// Step between sampled rows: neighbours in the sample are far apart in the table.
const STEP: u32 = 7_368_787;

fn key(row: u32) -> Vec<u8> {
    format!("[\"row\",\"orders\",{}]", 100_000_000 + row).into_bytes()
}

fn value(row: u32) -> Vec<u8> {
    row.to_be_bytes().repeat(8)
}

fn filled_store() -> (TempDir, SharedStore) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        engine: Engine::Fjall,
        dir: dir.path().join("store"),
        spaces: vec!["rows"],
        memory_bytes: 8 << 20,
    };
    let store = open(&options).unwrap();
    let rows = (0..COUNT).map(|row| (key(row), Some(value(row))));
    store.load(ROWS, rows.collect()).unwrap();
    (dir, store)
}

fn sample(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|n| n.wrapping_mul(STEP) % COUNT)
}

/// Bytes that this thread has read from files, including the page cache. Compactions run on another thread.
#[cfg(target_os = "linux")]
fn bytes_read() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("rchar:"));
    count.unwrap().trim().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn lookup_reads_a_part_of_index_and_filter() {
    const LOOKUPS: u32 = 500;
    let (_dir, store) = filled_store();
    let before = bytes_read();
    for row in sample(LOOKUPS) {
        assert_eq!(store.get(ROWS, &key(row)).unwrap(), Some(value(row)));
    }
    // A lookup reads one block each of the filter, the index and the data, each of about 4 kB, and one filter block of
    // a table without the key.
    let bytes = (bytes_read() - before) / u64::from(LOOKUPS);
    assert!(bytes < 16 * 1024, "a lookup reads {bytes} bytes");
}

#[test]
fn scans_and_lookups_find_each_row_once() {
    let (_dir, store) = filled_store();
    for row in sample(300) {
        let end = (row + 1_000).min(COUNT);
        for direction in [Direction::Forward, Direction::Backward] {
            let mut found = Vec::new();
            let mut visit = |key: &[u8], value: &[u8]| {
                found.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            };
            store
                .scan(ROWS, KeyRange::new(&key(row), Some(&key(end))), direction, &mut visit)
                .unwrap();
            if direction == Direction::Backward {
                found.reverse();
            }
            let expected: Vec<_> = (row..end).map(|row| (key(row), value(row))).collect();
            assert!(found == expected, "{direction:?} from row {row}: {} rows", found.len());
        }
        let absent = [key(row), b"x".to_vec()].concat();
        assert_eq!(store.get(ROWS, &absent).unwrap(), None);
    }
}
