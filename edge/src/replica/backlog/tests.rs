//! Changes of one partition while another applies a large transaction.

use super::*;
use event_log::{Header, NewRecord, Offset, TimestampType};
use schemas::version::Version;
use std::sync::Arc;
use views::BucketId;
use views::record::{SchemaIds, VERSION, WRITER, Writer};
use views::replica::{Options, SPACES, Times};

const NOW: i64 = 1_000_000;
const WRITER_ID: &str = "p/t/0/0";

fn replica() -> Arc<Replica> {
    let store = state_store::open(&state_store::Options {
        engine: state_store::Engine::Memory,
        dir: "memory".into(),
        spaces: SPACES.to_vec(),
        memory_bytes: 1 << 20,
    });
    let options = Options {
        partitions: vec![0, 1],
        times: Times::default(),
        log: 1,
        pending_bytes_max: 1 << 20,
        flush_bytes: 1_000,
        now: NOW,
    };
    Arc::new(Replica::open(store.unwrap(), options).unwrap())
}

/// The records of both partitions.
#[derive(Default)]
struct Log {
    ends: [Offset; 2],
}

impl Log {
    /// Adds a transaction that writes `keys` in one bucket of a partition.
    fn transaction(&mut self, batch: &mut RecordBatch, partition: usize, keys: std::ops::Range<u32>) {
        let number = i32::try_from(partition).unwrap();
        let at = batch.intern(&TopicPartition::new("shop.view.log", number));
        let mut writer = Writer::new(
            WRITER_ID,
            SchemaIds {
                row: 1,
                transaction_end: 2,
                transaction_begin: 3,
                stale: 4,
                loaded: 5,
            },
        );
        let next = &mut self.ends[partition];
        let mut push = |key: &[u8], value: Option<&[u8]>| {
            let mut version = [0; 17];
            version[9..].copy_from_slice(&next.to_be_bytes());
            let headers: [Header<'_>; 2] = [(WRITER, Some(WRITER_ID.as_bytes())), (VERSION, Some(&version))];
            let record = NewRecord {
                offset: *next,
                timestamp: NOW,
                timestamp_type: TimestampType::LogAppend,
                key: Some(key),
                value,
            };
            batch.push(at, record, headers);
            *next += 1;
        };
        for key in keys {
            let (key, value) = writer.row("b", "v", &key.to_string(), Some(b"{}"));
            push(key, value);
        }
        let (key, value) = writer.transaction_end(Version::default(), NOW);
        push(key, value);
    }
}

fn rows(replica: &Replica, partition: i32) -> usize {
    replica.rows(partition, BucketId::of("b")).unwrap().len()
}

fn position(replica: &Replica, partition: i32) -> Offset {
    let positions = replica.positions();
    positions.into_iter().find(|(at, _)| *at == partition).unwrap().1
}

#[test]
fn change_does_not_wait_for_a_large_transaction_of_another_partition() {
    let (replica, mut log, mut batch) = (replica(), Log::default(), RecordBatch::default());
    let mut backlog = Backlog::new(replica.clone());
    log.transaction(&mut batch, 0, 0..100);
    log.transaction(&mut batch, 0, 100..101);
    log.transaction(&mut batch, 1, 0..1);
    let applied = backlog.add(&mut batch, NOW).unwrap();
    assert!(applied[0].1.is_partial);
    assert_eq!(applied[1].1.buckets, [BucketId::of("b")], "the other partition");
    assert_eq!(rows(&replica, 1), 1);

    // More records of both partitions, before the transaction is applied.
    let mut batch = RecordBatch::default();
    log.transaction(&mut batch, 0, 101..102);
    log.transaction(&mut batch, 1, 1..2);
    backlog.add(&mut batch, NOW).unwrap();
    assert_eq!(rows(&replica, 1), 2);
    assert_eq!(position(&replica, 0), 100, "the offset of the end marker");
    assert!(replica.health(NOW)[0].not_ready.is_some());

    let (mut pieces, mut woken) = (0, Vec::new());
    while let Some((at, applied)) = backlog.advance(NOW).unwrap() {
        assert_eq!(at.partition, 0);
        assert_eq!(
            applied.buckets.is_empty(),
            applied.is_partial,
            "wakes polls with the last piece"
        );
        woken.extend(applied.buckets);
        pieces += 1;
    }
    assert!(pieces > 3, "{pieces} pieces");
    assert_eq!((rows(&replica, 0), woken.len()), (102, 1));
    assert_eq!(position(&replica, 0), log.ends[0]);
    assert!(backlog.is_empty() && backlog.waiting.is_empty());
}

#[test]
fn partition_that_applies_a_transaction_is_not_current() {
    let (replica, mut log, mut batch) = (replica(), Log::default(), RecordBatch::default());
    let mut backlog = Backlog::new(replica.clone());
    log.transaction(&mut batch, 0, 0..100);
    backlog.add(&mut batch, NOW).unwrap();
    // The reader is at the end, but the replica is not.
    replica.at_end(0, log.ends[0], log.ends[0], NOW).unwrap();
    assert_eq!(position(&replica, 0), 100);
    while backlog.advance(NOW).unwrap().is_some() {}
    assert_eq!((rows(&replica, 0), position(&replica, 0)), (100, log.ends[0]));
}

#[test]
fn reading_stops_while_many_records_wait() {
    let (mut log, mut batch) = (Log::default(), RecordBatch::default());
    let mut backlog = Backlog::new(replica());
    log.transaction(&mut batch, 0, 0..100);
    backlog.add(&mut batch, NOW).unwrap();
    let mut added = 0;
    while !backlog.is_full() {
        let mut batch = RecordBatch::default();
        log.transaction(&mut batch, 0, 0..10_000);
        added += batch.byte_len();
        backlog.add(&mut batch, NOW).unwrap();
    }
    assert!(added < 2 * WAITING_BYTES_MAX);
    while backlog.advance(NOW).unwrap().is_some() {}
    assert!(!backlog.is_full());
}
