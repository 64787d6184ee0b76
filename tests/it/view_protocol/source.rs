//! A source of the random run: a database, its slot, its snapshots, and the topic that they fill.
//!
//! Guarantees: each incarnation of the slot streams every transaction from its beginning on, in order, a dead letter as a
//! record without a key; the database after each transaction is kept, for the oracle. Never: PostgreSQL.

use super::{HORIZON, Random};
use schemas::version::Version;
use std::collections::BTreeMap;

/// A value of a row: its bucket (`None`: no bucket) and a number.
pub type Value = (Option<char>, i64);
/// Rows of a source by key.
pub type Rows = BTreeMap<&'static str, Value>;

/// What a record of the topic says.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A row; a dead letter has no key.
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

/// Whether and why a record comes a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    No,
    Replay,
    Redrive,
}

/// A record of the topic, with how many transactions of the source it follows and whether the truth is known then.
#[derive(Clone, Debug)]
pub struct Change {
    pub kind: Kind,
    pub again: Again,
    pub transactions: usize,
    pub stale: bool,
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
    pub topic: Vec<Change>,
    txs: Vec<Vec<(&'static str, Option<Value>)>>,
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
