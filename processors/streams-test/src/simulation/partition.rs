//! A partition of the simulated log: records, open transactions, control records and log compaction.
//!
//! The last stable offset, the offsets of control and aborted records, and compaction with expiring tombstones behave
//! as in Kafka. Oracles can also read records that compaction removed.

use super::Rng;
use event_log::{Header, Millis, NewRecord, Offset, RecordBatch, TimestampType, TopicPartition};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The content of a record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
    /// Headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Row {
    /// A row without headers.
    pub fn new(key: impl Into<Vec<u8>>, value: Option<Vec<u8>>) -> Self {
        Row {
            key: Some(key.into()),
            value,
            headers: Vec::new(),
        }
    }

    /// The last header of this name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().rev().find(|(of, _)| of == name)?;
        std::str::from_utf8(found.1.as_deref()?).ok()
    }
}

/// The transactional status of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordStatus {
    Open,
    Committed,
    Aborted,
    Control,
}

/// A record in the log.
#[derive(Debug, Clone)]
pub struct LogRecord {
    /// Offset.
    pub offset: Offset,
    /// Append time of the record.
    pub at: Millis,
    /// Contents of the record.
    pub row: Arc<Row>,
    pub(super) txn: Option<u64>,
    pub(super) status: RecordStatus,
    /// Time after which compaction may remove the tombstone; set by the first pass that visits it.
    horizon: Option<Millis>,
}

/// Settings of log compaction.
#[derive(Debug, Clone, Copy)]
pub struct Cleaning {
    /// `min.compaction.lag.ms`: younger records are kept.
    pub lag_ms: Millis,
    /// `delete.retention.ms`.
    pub delete_retention_ms: Millis,
}

/// Number of records that a compaction pass removed, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cleaned {
    pub records: usize,
    pub tombstones: usize,
}

/// A partition.
#[derive(Debug, Default)]
pub struct Partition {
    log: Vec<LogRecord>,
    end: Offset,
    open: BTreeMap<u64, Offset>,
    /// Committed records that compaction removed.
    cleaned: BTreeMap<Offset, LogRecord>,
}

impl Partition {
    /// The log end (high watermark).
    pub fn end(&self) -> Offset {
        self.end
    }

    /// The last stable offset.
    pub fn stable(&self) -> Offset {
        self.open.values().copied().min().unwrap_or(self.end)
    }

    /// Every record from an offset on that was ever committed below the last stable offset, in order, including records that
    /// compaction removed.
    pub fn history(&self, from: Offset) -> Vec<LogRecord> {
        let stable = self.stable();
        let kept = self.log.get(self.index_of(from)..).unwrap_or_default().iter();
        let kept = kept.filter(|r| r.status == RecordStatus::Committed && r.offset < stable);
        let cleaned = self.cleaned.range(from..).map(|(_, r)| r);
        let mut all: Vec<LogRecord> = cleaned.chain(kept).cloned().collect();
        all.sort_by_key(|r| r.offset);
        all
    }

    pub(super) fn append(&mut self, now: Millis, rows: &[Arc<Row>], txn: Option<u64>) -> Offset {
        let first = self.end;
        if let Some(txn) = txn {
            self.open.entry(txn).or_insert(first);
        }
        let status = if txn.is_some() {
            RecordStatus::Open
        } else {
            RecordStatus::Committed
        };
        for row in rows {
            self.push(now, row.clone(), txn, status);
        }
        first
    }

    fn push(&mut self, at: Millis, row: Arc<Row>, txn: Option<u64>, status: RecordStatus) {
        self.log.push(LogRecord {
            offset: self.end,
            at,
            row,
            txn,
            status,
            horizon: None,
        });
        self.end += 1;
    }

    /// Records of an open transaction, in order.
    pub(super) fn of_transaction(&self, txn: u64) -> impl Iterator<Item = &LogRecord> {
        let from = self
            .open
            .get(&txn)
            .map_or(self.log.len(), |first| self.index_of(*first));
        let open = self.log.get(from..).unwrap_or_default().iter();
        open.filter(move |r| r.txn == Some(txn) && r.status == RecordStatus::Open)
    }

    fn index_of(&self, offset: Offset) -> usize {
        self.log.partition_point(|r| r.offset < offset)
    }

    /// Appends the control record of a transaction.
    pub(super) fn mark(&mut self, now: Millis, txn: u64, commit: bool) {
        let status = if commit {
            RecordStatus::Committed
        } else {
            RecordStatus::Aborted
        };
        if let Some(first) = self.open.remove(&txn) {
            let from = self.index_of(first);
            let own = self.log.iter_mut().skip(from).filter(|r| r.txn == Some(txn));
            own.for_each(|r| r.status = status);
        }
        self.push(now, Arc::default(), None, RecordStatus::Control);
    }

    /// A `read_committed` read: at most `n` records from an offset on, and the position after them.
    pub fn read(&self, from: Offset, n: usize) -> (Vec<LogRecord>, Offset) {
        self.read_below(from, n, self.stable(), |r| r.status == RecordStatus::Committed)
    }

    /// A `read_uncommitted` read.
    pub fn read_uncommitted(&self, from: Offset, n: usize) -> (Vec<LogRecord>, Offset) {
        self.read_below(from, n, self.end, |r| r.status != RecordStatus::Control)
    }

    fn read_below(
        &self,
        from: Offset,
        n: usize,
        limit: Offset,
        includes: impl Fn(&LogRecord) -> bool,
    ) -> (Vec<LogRecord>, Offset) {
        let (mut out, mut position) = (Vec::new(), from);
        for record in self.log.get(self.index_of(from)..).unwrap_or_default() {
            if record.offset >= limit || out.len() == n {
                return (out, position);
            }
            position = record.offset + 1;
            if includes(record) {
                out.push(record.clone());
            }
        }
        (out, position.max(limit))
    }

    /// Whether there is no committed record at or after an offset.
    pub fn is_read(&self, from: Offset) -> bool {
        self.read(from, 1).0.is_empty()
    }

    /// Performs a compaction pass below a random offset, which is at most the last stable offset and the offset of the
    /// first record that is too young.
    pub(super) fn clean(&mut self, now: Millis, how: &Cleaning, rng: &mut Rng) -> Cleaned {
        let young = self.log.iter().find(|r| r.at > now - how.lag_ms).map(|r| r.offset);
        let most = young
            .filter(|_| how.lag_ms > 0)
            .map_or(self.stable(), |young| young.min(self.stable()));
        let limit = Offset::try_from(rng.below(usize::try_from(most).unwrap_or_default() + 1)).unwrap_or_default();
        let mut last: BTreeMap<Option<Vec<u8>>, Offset> = BTreeMap::new();
        for r in self.log.iter().take_while(|r| r.offset < limit) {
            if r.status == RecordStatus::Committed {
                last.insert(r.row.key.clone(), r.offset);
            }
        }
        let mut done = Cleaned::default();
        let cleaned = &mut self.cleaned;
        self.log.retain_mut(|r| {
            if r.offset >= limit {
                return true;
            }
            if r.status != RecordStatus::Committed {
                return false;
            }
            let newest = last.get(&r.row.key) == Some(&r.offset);
            let dead = newest && r.row.value.is_none();
            let keep = newest && (!dead || now < *r.horizon.get_or_insert(now + how.delete_retention_ms));
            if !keep {
                done.records += 1;
                done.tombstones += usize::from(dead);
                cleaned.insert(r.offset, r.clone());
            }
            keep
        });
        done
    }
}

/// Puts records into a batch.
pub(super) fn fill(batch: &mut RecordBatch, at: &TopicPartition, records: &[LogRecord]) {
    let index = batch.intern(at);
    for r in records {
        let headers = r.row.headers.iter();
        let headers: Vec<Header<'_>> = headers.map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let (key, value) = (r.row.key.as_deref(), r.row.value.as_deref());
        batch.push(
            index,
            NewRecord {
                offset: r.offset,
                timestamp: r.at,
                timestamp_type: TimestampType::LogAppend,
                key,
                value,
            },
            headers,
        );
    }
}

/// Creates a batch of these records.
pub fn batch_of(at: &TopicPartition, records: &[LogRecord]) -> RecordBatch {
    let mut batch = RecordBatch::default();
    fill(&mut batch, at, records);
    batch
}
