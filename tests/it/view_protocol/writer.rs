//! A writer of the random run: what sync-views does, from a source's topic to the partitions of `view.log`.
//!
//! Guarantees: state, position and records are committed together or not at all. Never: the code of sync-views; it is
//! written a second time, small enough to be read beside the design.

use super::HORIZON;
use super::log::{Ghost, Log, Record, partition_of};
use super::source::{Again, Kind, Source, Value};
use schemas::version::Version;
use std::collections::{BTreeMap, BTreeSet};
use views::record;

const SCHEMAS: record::SchemaIds = record::SchemaIds {
    row: 1,
    closing: 2,
    open: 3,
    stale: 4,
};

#[derive(Clone, Default)]
struct State {
    rows: BTreeMap<&'static str, (Version, Option<Value>, i64)>,
    position: usize,
    touched: BTreeSet<usize>,
    open: bool,
    floor: Version,
    transactions: usize,
    stale: bool,
    incarnation: u32,
    need: BTreeSet<&'static str>,
}

/// One writer, of one source.
pub struct Writer {
    pub source: usize,
    pub began: i64,
    pub pause: i64,
    pub txn: Option<u64>,
    committed: State,
    work: State,
    records: record::Writer,
}

impl Writer {
    pub fn new(source: usize) -> Self {
        let state = State {
            incarnation: 1,
            ..State::default()
        };
        let records = record::Writer::new(writer_name(source), SCHEMAS);
        Writer {
            source,
            began: 0,
            pause: 0,
            txn: None,
            committed: state.clone(),
            work: state,
            records,
        }
    }

    pub fn needs_snapshot(&self) -> bool {
        !self.committed.need.is_empty()
    }

    /// Commit: state, position and records together. Abort: back to the last commit.
    pub fn finish(&mut self, logs: &mut [Log], now: i64, commit: bool) {
        let Some(txn) = self.txn.take() else { return };
        if commit {
            for p in self.work.touched.clone() {
                let (key, value) = self.records.open_mark(Version::default());
                let (key, value) = (key.to_vec(), value.map(<[u8]>::to_vec));
                logs[p].append(now, Record::new(txn, self.source, Ghost::Mark, key, value, vec![]));
            }
        }
        for log in logs {
            log.finish(txn, commit);
        }
        if commit {
            self.committed = self.work.clone();
        }
    }

    fn send(&mut self, logs: &mut [Log], now: i64, bucket: char, key: &'static str, value: Option<i64>, at: Version) {
        let p = partition_of(bucket);
        self.work.touched.insert(p);
        let row_key = format!("\"{}\",\"{key}\"", self.source);
        let json = value.map(|v| v.to_string());
        let (k, v) = self
            .records
            .row(&bucket.to_string(), "v", &row_key, json.as_deref().map(str::as_bytes));
        let (k, v) = (k.to_vec(), v.map(<[u8]>::to_vec));
        let headers = vec![
            (record::WRITER, writer_name(self.source).into_bytes()),
            (record::VERSION, at.to_bytes().to_vec()),
        ];
        let ghost = Ghost::Row {
            bucket,
            key,
            value,
            version: at,
        };
        logs[p].append(
            now,
            Record::new(self.txn.expect("in a transaction"), self.source, ghost, k, v, headers),
        );
    }

    fn close(&mut self, logs: &mut [Log], now: i64, at: Version) {
        let ghost = Ghost::Close {
            transactions: self.work.transactions,
            stale: self.work.stale || !self.work.need.is_empty(),
        };
        for p in std::mem::take(&mut self.work.touched) {
            let (key, value) = self.records.closing(at, now);
            let (key, value) = (key.to_vec(), value.map(<[u8]>::to_vec));
            let txn = self.txn.expect("in a transaction");
            logs[p].append(now, Record::new(txn, self.source, ghost.clone(), key, value, vec![]));
        }
    }

    fn apply(
        &mut self,
        logs: &mut [Log],
        now: i64,
        key: &'static str,
        at: Version,
        value: Option<Value>,
        again: Again,
    ) {
        let old = self.work.rows.get(key).copied();
        if at <= old.map_or(self.work.floor, |o| o.0) {
            if again == Again::Redrive && old.is_none() {
                self.work.need.insert(key);
            }
            return;
        }
        let was = old.and_then(|o| o.1);
        let out = value.filter(|v| v.0.is_some());
        if was != out {
            if let Some((Some(bucket), _)) = was.filter(|w| out.is_none_or(|o| o.0 != w.0)) {
                self.send(logs, now, bucket, key, None, at);
            }
            if let Some((Some(bucket), number)) = out {
                self.send(logs, now, bucket, key, Some(number), at);
            }
        }
        self.work.rows.insert(key, (at, out, now));
    }

    /// Applies the next record of the topic.
    pub fn step(&mut self, source: &Source, logs: &mut [Log], now: i64, txn: u64) -> bool {
        let position = if self.txn.is_some() {
            self.work.position
        } else {
            self.committed.position
        };
        let Some(change) = source.topic.get(position).cloned() else {
            return false;
        };
        if self.txn.is_none() {
            (self.txn, self.began, self.work) = (Some(txn), now, self.committed.clone());
        }
        self.work.position += 1;
        self.forget(now);
        let (Kind::Row { version: at, .. } | Kind::End { version: at, .. }) = change.kind;
        if at.incarnation > self.work.incarnation {
            (self.work.incarnation, self.work.open) = (at.incarnation, false);
        }
        let last = match change.kind {
            Kind::End { ref range, low, .. } => {
                let gone = |(k, row): (&&'static str, &(Version, Option<Value>, i64))| {
                    (range.contains(k) && row.0 < low && row.1.is_some()).then_some(*k)
                };
                for key in self.work.rows.iter().filter_map(gone).collect::<Vec<_>>() {
                    self.apply(logs, now, key, at, None, Again::No);
                }
                if low > self.work.floor {
                    self.work.need.retain(|k| !range.contains(k));
                }
                true
            }
            Kind::Row { key, value, last, .. } => {
                if let Some(key) = key {
                    self.apply(logs, now, key, at, value, change.again);
                }
                last
            }
        };
        if change.again == Again::No {
            (self.work.transactions, self.work.stale) = (change.transactions, change.stale);
            self.work.open = !last;
        } else if !self.work.open {
            self.work.stale = change.stale;
        }
        if !self.work.open && (last || change.again != Again::No) {
            self.close(logs, now, at);
        }
        true
    }

    /// Deleted rows are kept until the horizon; then a floor stands for them.
    fn forget(&mut self, now: i64) {
        let old = |(k, r): (&&'static str, &(Version, Option<Value>, i64))| {
            (r.1.is_none() && r.2 < now - HORIZON).then_some((*k, r.0))
        };
        for (key, version) in self.work.rows.iter().filter_map(old).collect::<Vec<_>>() {
            self.work.floor = self.work.floor.max(version);
            self.work.rows.remove(key);
        }
    }
}

fn writer_name(source: usize) -> String {
    format!("sync-views/s{source}/0/0")
}
