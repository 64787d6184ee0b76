//! One partition of `view.log` in the random run, as Kafka keeps it: transactions, gaps, the cleaner.
//!
//! Guarantees: a reader gets committed records below the last stable offset, in order; what the cleaner takes stays in
//! `history`, for the oracle. Never: a broker.

use super::{DELETE_RETENTION, LAG, Random};
use log::{Header, RecordBatch, TimestampType, TopicPartition};
use schemas::version::Version;
use std::collections::BTreeMap;

/// The partition of a bucket: its scope lies in one.
pub fn partition_of(bucket: char) -> usize {
    if matches!(bucket, 'a' | 'b') { 0 } else { 1 }
}

/// What the oracle knows of a record and the replica does not.
#[derive(Clone, Debug)]
pub enum Ghost {
    /// A row: bucket, key, value.
    Row {
        bucket: char,
        key: &'static str,
        value: Option<i64>,
        version: Version,
    },
    /// An open mark.
    Mark,
    /// A closing: how many source transactions it stands for, and whether the truth is unknown until a snapshot.
    Close { transactions: usize, stale: bool },
}

#[derive(Clone, Debug)]
pub struct Record {
    pub offset: i64,
    pub time: i64,
    pub txn: u64,
    pub writer: usize,
    pub ghost: Ghost,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    headers: Vec<(&'static str, Vec<u8>)>,
    horizon: Option<i64>,
}

impl Record {
    /// A record that no partition has yet.
    pub fn new(
        txn: u64,
        writer: usize,
        ghost: Ghost,
        key: Vec<u8>,
        value: Option<Vec<u8>>,
        headers: Vec<(&'static str, Vec<u8>)>,
    ) -> Record {
        Record {
            offset: 0,
            time: 0,
            txn,
            writer,
            ghost,
            key,
            value,
            headers,
            horizon: None,
        }
    }
}

/// One partition of `view.log`.
#[derive(Default)]
pub struct Log {
    pub records: Vec<Record>,
    pub history: Vec<Record>,
    pub end: i64,
    open: BTreeMap<u64, i64>,
}

impl Log {
    /// Takes a record in at the end, in its transaction.
    pub fn append(&mut self, now: i64, mut record: Record) {
        (record.offset, record.time) = (self.end, now);
        self.open.entry(record.txn).or_insert(self.end);
        self.end += 1;
        self.history.push(record.clone());
        self.records.push(record);
    }

    /// A commit or abort: the marker takes an offset; aborted offsets are gaps.
    pub fn finish(&mut self, txn: u64, commit: bool) {
        if self.open.remove(&txn).is_none() {
            return;
        }
        self.end += 1;
        if !commit {
            self.records.retain(|r| r.txn != txn);
            self.history.retain(|r| r.txn != txn);
        }
    }

    pub fn stable(&self) -> i64 {
        self.open.values().copied().min().unwrap_or(self.end)
    }

    /// The cleaner: older than the lag, below the last stable offset, up to a random point.
    pub fn compact(&mut self, now: i64, random: &mut Random) {
        let young = self.records.iter().find(|r| r.time > now - LAG).map(|r| r.offset);
        let mut bound = self.stable().min(young.unwrap_or(i64::MAX));
        if random.chance(30) {
            bound = random.between(0, bound.max(0));
        }
        let newest: BTreeMap<Vec<u8>, i64> = self
            .records
            .iter()
            .filter(|r| r.offset < bound)
            .map(|r| (r.key.clone(), r.offset))
            .collect();
        self.records.retain_mut(|r| {
            if r.offset >= bound {
                return true;
            }
            if newest[&r.key] > r.offset {
                return false;
            }
            if r.value.is_none() {
                return now < *r.horizon.get_or_insert(now + DELETE_RETENTION);
            }
            true
        });
    }

    /// At most `max` records from `position` below the last stable offset, as a replica's reader gets them, and the
    /// position after them; at the end that is the last stable offset.
    pub fn read(&self, position: i64, max: usize) -> (RecordBatch, i64) {
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new("view.log", 0));
        let stable = self.stable();
        let from = self.records.partition_point(|r| r.offset < position);
        for r in &self.records[from..] {
            if r.offset >= stable || batch.len() == max {
                break;
            }
            let headers: Vec<Header<'_>> = r.headers.iter().map(|(n, v)| (*n, Some(v.as_slice()))).collect();
            batch.push(
                at,
                r.offset,
                r.time,
                TimestampType::LogAppend,
                Some(&r.key),
                r.value.as_deref(),
                headers,
            );
        }
        let last = batch.iter().last().map_or(position, |r| r.offset() + 1);
        let more = self.records.iter().any(|r| r.offset >= last && r.offset < stable);
        (batch, if more { last } else { stable.max(last) })
    }
}
