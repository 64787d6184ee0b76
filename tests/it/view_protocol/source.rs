//! The line of the random run up to `view.log`: sources, their topics, writers, and one log partition.

use super::{DELETE_RETENTION, HORIZON, LAG, Random};
use log::{Header, RecordBatch, TimestampType, TopicPartition};
use schemas::version::Version;
use std::collections::{BTreeMap, BTreeSet};
use views::record;

/// A value of a row: its bucket (`None`: no bucket) and a number.
pub type Value = (Option<char>, i64);
/// Rows of a source by key.
pub type Rows = BTreeMap<&'static str, Value>;

const SCHEMAS: record::SchemaIds = record::SchemaIds {
    row: 1,
    closing: 2,
    open: 3,
    stale: 4,
};

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

/// One partition of `view.log`, as Kafka keeps it.
#[derive(Default)]
pub struct Log {
    pub records: Vec<Record>,
    pub history: Vec<Record>,
    pub end: i64,
    open: BTreeMap<u64, i64>,
}

impl Log {
    fn append(&mut self, now: i64, mut record: Record) {
        (record.offset, record.time) = (self.end, now);
        self.open.entry(record.txn).or_insert(self.end);
        self.end += 1;
        self.history.push(record.clone());
        self.records.push(record);
    }

    /// A commit or abort: the marker takes an offset; aborted offsets are gaps.
    fn finish(&mut self, txn: u64, commit: bool) {
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

#[derive(Clone, Debug)]
enum Kind {
    Row {
        key: Option<&'static str>,
        value: Option<Value>,
        version: Version,
        last: bool,
    },
    /// The end of a snapshot chunk: its keys, and the version below which a row that is not in it is gone.
    End {
        range: Vec<&'static str>,
        low: Version,
        version: Version,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    No,
    Replay,
    Redrive,
}

#[derive(Clone, Debug)]
struct Change {
    kind: Kind,
    again: Again,
    transactions: usize,
    stale: bool,
}

#[derive(Clone, Debug, Default)]
struct Chunk {
    low: usize,
    snapshot: Option<(usize, Rows)>,
    high: Option<usize>,
}

/// A database with ordered transactions, a snapshot that runs beside them, and a slot that can be lost.
pub struct Source {
    pub keys: Vec<&'static str>,
    pub snapshots: bool,
    pub db: Vec<Rows>,
    pub dead: Vec<(i64, &'static str, Option<Value>, Version)>,
    txs: Vec<Vec<(&'static str, Option<Value>)>>,
    topic: Vec<Change>,
    incarnation: u32,
    next: usize,
    ordinal: usize,
    sequence: u32,
    todo: Vec<Vec<&'static str>>,
    chunk: Option<Chunk>,
    gap: bool,
    streamed: BTreeMap<&'static str, usize>,
}

impl Source {
    pub fn new(keys: &[&'static str], snapshots: bool) -> Self {
        Source {
            keys: keys.to_vec(),
            snapshots,
            db: vec![Rows::new()],
            dead: vec![],
            txs: vec![],
            topic: vec![],
            incarnation: 1,
            next: 0,
            ordinal: 0,
            sequence: 0,
            todo: vec![],
            chunk: None,
            gap: false,
            streamed: BTreeMap::new(),
        }
    }

    pub fn commit(&mut self, changes: Vec<(&'static str, Option<Value>)>) {
        let mut db = self.db.last().expect("the database begins empty").clone();
        for (key, value) in &changes {
            match value {
                Some(value) => drop(db.insert(key, *value)),
                None => drop(db.remove(key)),
            }
        }
        self.txs.push(changes);
        self.db.push(db);
    }

    fn put(&mut self, kind: Kind, again: Again) {
        let (transactions, stale) = (self.next, self.gap || !self.dead.is_empty());
        self.topic.push(Change {
            kind,
            again,
            transactions,
            stale,
        });
    }

    /// Streamed transactions have even positions, chunks the odd ones before them.
    fn version(&self, position: usize, ordinal: u32) -> Version {
        Version {
            incarnation: self.incarnation,
            position: position as u64,
            ordinal,
        }
    }

    pub fn snapshot(&mut self) {
        let half = self.keys.len() / 2;
        self.todo = vec![self.keys[..half].to_vec(), self.keys[half..].to_vec()];
        self.chunk = None;
    }

    pub fn snapshotting(&self) -> bool {
        !self.todo.is_empty()
    }

    /// Half a transaction may be in the topic; what changes until the slot is there again is lost.
    pub fn lose_slot(&mut self) {
        self.incarnation += 1;
        (self.next, self.ordinal, self.gap) = (self.txs.len(), 0, true);
        self.dead.clear();
        self.streamed.clear();
        self.snapshot();
    }

    pub fn snapshot_step(&mut self) {
        let now = self.txs.len();
        let db = self.db.last().expect("the database begins empty");
        match (&mut self.chunk, self.todo.first()) {
            (None, Some(_)) => {
                self.chunk = Some(Chunk {
                    low: now,
                    ..Chunk::default()
                })
            }
            (Some(chunk), Some(range)) if chunk.snapshot.is_none() => {
                let rows = db
                    .iter()
                    .filter(|(k, _)| range.contains(k))
                    .map(|(k, v)| (*k, *v))
                    .collect();
                chunk.snapshot = Some((now, rows));
            }
            (Some(chunk), _) => drop(chunk.high.get_or_insert(now)),
            _ => {}
        }
    }

    /// Puts the next thing on the topic; `dead` lets a record be dead-lettered now and then.
    pub fn emit(&mut self, now: i64, dead: Option<&mut Random>) -> bool {
        let due = self
            .chunk
            .as_ref()
            .is_some_and(|c| c.high.is_some_and(|h| self.next >= h))
            && self.ordinal == 0;
        if due {
            self.emit_chunk();
        } else if self.next < self.txs.len() {
            self.emit_change(now, dead);
        } else {
            return false;
        }
        true
    }

    fn emit_chunk(&mut self) {
        let chunk = self.chunk.take().expect("a chunk is due");
        let (seen, rows) = chunk.snapshot.expect("a chunk with a high watermark has rows");
        let position = 2 * self.next;
        for (key, value) in rows {
            // The newest streamed change of its key is by a transaction that the chunk did not see: drop it.
            if self.streamed.get(key).is_none_or(|at| *at < seen) {
                self.sequence += 1;
                let version = self.version(position, self.sequence);
                self.put(
                    Kind::Row {
                        key: Some(key),
                        value: Some(value),
                        version,
                        last: false,
                    },
                    Again::No,
                );
            }
        }
        let range = self.todo.remove(0);
        if self.todo.is_empty() {
            self.gap = false;
            self.dead.clear();
        }
        self.sequence += 1;
        let (low, version) = (self.version(2 * chunk.low, 0), self.version(position, self.sequence));
        self.put(Kind::End { range, low, version }, Again::No);
    }

    fn emit_change(&mut self, now: i64, dead: Option<&mut Random>) {
        let (key, value) = self.txs[self.next][self.ordinal];
        let version = self.version(2 * self.next + 1, self.ordinal as u32);
        self.streamed.insert(key, self.next);
        self.ordinal += 1;
        let last = self.ordinal == self.txs[self.next].len();
        if last {
            (self.next, self.ordinal) = (self.next + 1, 0);
        }
        let dies = self.snapshots && self.todo.is_empty() && dead.is_some_and(|r| r.chance(2));
        if dies {
            self.dead.push((now, key, value, version));
        }
        self.put(
            Kind::Row {
                key: (!dies).then_some(key),
                value,
                version,
                last,
            },
            Again::No,
        );
    }

    /// Dead letters come back with their original positions; what is too old calls for a snapshot instead.
    pub fn redrive(&mut self, now: i64) {
        match self.dead.first() {
            Some((at, ..)) if now - at > HORIZON / 2 => self.snapshot(),
            Some(_) => {
                let (_, key, value, version) = self.dead.remove(0);
                self.put(
                    Kind::Row {
                        key: Some(key),
                        value,
                        version,
                        last: true,
                    },
                    Again::Redrive,
                );
            }
            None => {}
        }
    }

    /// Any old stretch again, whole records, original positions.
    pub fn replay(&mut self, random: &mut Random) {
        if self.topic.is_empty() {
            return;
        }
        let from = random.below(self.topic.len());
        let count = random.between(1, 4) as usize;
        let again: Vec<Kind> = self
            .topic
            .iter()
            .skip(from)
            .take(count)
            .map(|c| c.kind.clone())
            .collect();
        for kind in again {
            if matches!(kind, Kind::Row { key: Some(_), .. }) {
                self.put(kind, Again::Replay);
            }
        }
    }
}

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

/// One writer: what sync-views does, small enough to be read beside the design.
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
                logs[p].append(now, blank(txn, self.source, Ghost::Mark, key, value, vec![]));
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
            blank(self.txn.expect("in a transaction"), self.source, ghost, k, v, headers),
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
            logs[p].append(now, blank(txn, self.source, ghost.clone(), key, value, vec![]));
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

pub fn writer_name(source: usize) -> String {
    format!("sync-views/s{source}/0/0")
}

fn blank(
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
