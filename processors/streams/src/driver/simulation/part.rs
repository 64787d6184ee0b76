//! One partition of the simulated log: records, open transactions, control records, the cleaner.
//!
//! Guarantees: the last stable offset, offsets that control records and aborted records take, compaction with tombstones
//! that expire behave as Kafka's do. What the cleaner takes stays known to oracles.
//! Never: a record that a reader gets and Kafka would hide, or the other way round.

use super::Rng;
use event_log::{Millis, Offset};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a record says.
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

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Committed,
    Aborted,
    Control,
}

/// A record in its place.
#[derive(Debug, Clone)]
pub struct Rec {
    /// Offset.
    pub offset: Offset,
    /// When it was appended.
    pub at: Millis,
    /// What it says.
    pub row: Arc<Row>,
    pub(super) txn: Option<u64>,
    pub(super) fate: Fate,
    /// Until when the cleaner keeps a tombstone, from its first pass on.
    horizon: Option<Millis>,
}

/// How a partition is cleaned.
#[derive(Debug, Clone, Copy)]
pub struct Cleaning {
    /// `min.compaction.lag.ms`: younger records are left alone.
    pub lag_ms: Millis,
    /// `delete.retention.ms`.
    pub delete_retention_ms: Millis,
}

/// What a pass of the cleaner took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cleaned {
    pub records: usize,
    pub tombstones: usize,
}

/// One partition.
#[derive(Debug, Default)]
pub struct Part {
    log: Vec<Rec>,
    end: Offset,
    open: BTreeMap<u64, Offset>,
    /// Committed records that the cleaner has taken.
    cleaned: BTreeMap<Offset, Rec>,
}

impl Part {
    /// The offset behind everything, open transactions included.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// The last stable offset.
    pub fn stable(&self) -> Offset {
        self.open.values().copied().min().unwrap_or(self.end)
    }

    /// Every record from an offset on that was ever committed below the last stable offset, in order, also those that
    /// were cleaned away.
    pub fn history(&self, from: Offset) -> Vec<Rec> {
        let stable = self.stable();
        let kept = self.log.get(self.place(from)..).unwrap_or_default().iter();
        let kept = kept.filter(|r| r.fate == Fate::Committed && r.offset < stable);
        let cleaned = self.cleaned.range(from..).map(|(_, r)| r);
        let mut all: Vec<Rec> = cleaned.chain(kept).cloned().collect();
        all.sort_by_key(|r| r.offset);
        all
    }

    pub(super) fn append(&mut self, now: Millis, rows: &[Arc<Row>], txn: Option<u64>) -> Offset {
        let first = self.end;
        if let Some(txn) = txn {
            self.open.entry(txn).or_insert(first);
        }
        let fate = if txn.is_some() { Fate::Open } else { Fate::Committed };
        for row in rows {
            self.push(now, row.clone(), txn, fate);
        }
        first
    }

    fn push(&mut self, at: Millis, row: Arc<Row>, txn: Option<u64>, fate: Fate) {
        self.log.push(Rec {
            offset: self.end,
            at,
            row,
            txn,
            fate,
            horizon: None,
        });
        self.end += 1;
    }

    /// Records of an open transaction, in order.
    pub(super) fn of_transaction(&self, txn: u64) -> impl Iterator<Item = &Rec> {
        let from = self.open.get(&txn).map_or(self.log.len(), |first| self.place(*first));
        let open = self.log.get(from..).unwrap_or_default().iter();
        open.filter(move |r| r.txn == Some(txn) && r.fate == Fate::Open)
    }

    fn place(&self, offset: Offset) -> usize {
        self.log.partition_point(|r| r.offset < offset)
    }

    /// A control record ends a transaction here.
    pub(super) fn mark(&mut self, now: Millis, txn: u64, commit: bool) {
        let fate = if commit { Fate::Committed } else { Fate::Aborted };
        if let Some(first) = self.open.remove(&txn) {
            let from = self.place(first);
            let own = self.log.iter_mut().skip(from).filter(|r| r.txn == Some(txn));
            own.for_each(|r| r.fate = fate);
        }
        self.push(now, Arc::default(), None, Fate::Control);
    }

    /// Reads read_committed: at most `n` records from an offset on, and the position behind them.
    pub fn read(&self, from: Offset, n: usize) -> (Vec<Rec>, Offset) {
        self.read_below(from, n, self.stable(), |r| r.fate == Fate::Committed)
    }

    /// The same read_uncommitted.
    pub fn read_uncommitted(&self, from: Offset, n: usize) -> (Vec<Rec>, Offset) {
        self.read_below(from, n, self.end, |r| r.fate != Fate::Control)
    }

    fn read_below(&self, from: Offset, n: usize, limit: Offset, shows: impl Fn(&Rec) -> bool) -> (Vec<Rec>, Offset) {
        let (mut out, mut position) = (Vec::new(), from);
        for record in self.log.get(self.place(from)..).unwrap_or_default() {
            if record.offset >= limit || out.len() == n {
                return (out, position);
            }
            position = record.offset + 1;
            if shows(record) {
                out.push(record.clone());
            }
        }
        (out, position.max(limit))
    }

    /// Whether nothing committed stands at or after an offset.
    pub fn is_read(&self, from: Offset) -> bool {
        self.read(from, 1).0.is_empty()
    }

    /// A pass of the cleaner below a random dirty limit, never past the last stable offset or into young records.
    pub(super) fn clean(&mut self, now: Millis, how: &Cleaning, rng: &mut Rng) -> Cleaned {
        let young = self.log.iter().find(|r| r.at > now - how.lag_ms).map(|r| r.offset);
        let most = young
            .filter(|_| how.lag_ms > 0)
            .map_or(self.stable(), |young| young.min(self.stable()));
        let limit = Offset::try_from(rng.below(usize::try_from(most).unwrap_or_default() + 1)).unwrap_or_default();
        let mut last: BTreeMap<Option<Vec<u8>>, Offset> = BTreeMap::new();
        for r in self.log.iter().take_while(|r| r.offset < limit) {
            if r.fate == Fate::Committed {
                last.insert(r.row.key.clone(), r.offset);
            }
        }
        let mut done = Cleaned::default();
        let cleaned = &mut self.cleaned;
        self.log.retain_mut(|r| {
            if r.offset >= limit {
                return true;
            }
            if r.fate != Fate::Committed {
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
