//! A source of the simulation: a database with ordered transactions, its replication slot, its snapshots, and the topic
//! to which they write.
//!
//! Within a source epoch, the slot streams every transaction completely and in order, but the topic may contain only a
//! part of a transaction for a while. The database after each transaction is kept for the oracle. Unless a snapshot is
//! running, a note that did not change is omitted, including when the row's key changes.

use super::HORIZON;
use super::row::{Rows, Value, any_note, any_value, framed, poisoned, replayed, tx_header};
use event_log::{Millis, TopicPartition};
use schemas::events::{ChunkEnd, Event};
use schemas::headers::{self, Tx};
use schemas::ids::SchemaId;
use schemas::version::Lsn;
use std::collections::BTreeMap;
use streams_test::simulation::{Broker, Rng, Row};

const CHUNK_ID: u32 = 8;

/// A change of a row in a transaction.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    key: i64,
    /// `None` deletes.
    value: Option<Value>,
    /// The note did not change.
    same_note: bool,
    /// In a key change: for the tombstone the new key, for the row the old key.
    other_key: Option<i64>,
    /// Whether the change deletes all rows of the table; it then has no key.
    truncates: bool,
}

/// A snapshot chunk in progress: low watermark, rows with the transaction at which they were read, high watermark.
#[derive(Default)]
struct Chunk {
    low: usize,
    snapshot: Option<(usize, Rows)>,
    high: Option<usize>,
}

/// Position and ordinal of a change within a source epoch.
#[derive(Clone, Copy)]
struct Ordinal {
    position: u64,
    ordinal: u32,
}

/// A dead letter that can be redriven: the time at which it was written, and the corrected record.
struct DeadLetter {
    at: Millis,
    row: Row,
}

/// A database and the topic of its changes.
pub struct Source {
    /// Name of its only table, and of the view over it.
    pub name: &'static str,
    keys: Vec<i64>,
    /// The database after each transaction.
    pub db: Vec<Rows>,
    txs: Vec<Vec<Change>>,
    topic: TopicPartition,
    /// Records on the topic that can be replayed: all except chunk ends and dead letters.
    put: Vec<Row>,
    dead: Vec<DeadLetter>,
    source_epoch: u32,
    /// The next transaction to stream, and the next change in it.
    next: usize,
    ordinal: usize,
    sequence: u32,
    todo: Vec<Vec<i64>>,
    chunk: Option<Chunk>,
    /// Whether changes were lost together with the slot, and the snapshot that restores them is not yet complete.
    gap: bool,
    streamed: BTreeMap<i64, usize>,
    /// Whether any record on the topic became a dead letter.
    pub had_dead_letters: bool,
    /// Whether the topic contains the end of the first snapshot.
    pub was_snapshotted: bool,
}

impl Source {
    /// A database with some transactions before its stream begins, which only the first snapshot contains.
    pub fn new(name: &'static str, keys: i64, rng: &mut Rng) -> Self {
        let mut source = Source {
            name,
            keys: (1..=keys).collect(),
            db: vec![Rows::new()],
            txs: vec![],
            topic: TopicPartition::new(format!("shop.change.{name}"), 0),
            put: vec![],
            dead: vec![],
            source_epoch: 1,
            next: 0,
            ordinal: 0,
            sequence: 0,
            todo: vec![],
            chunk: None,
            gap: false,
            streamed: BTreeMap::new(),
            had_dead_letters: false,
            was_snapshotted: false,
        };
        (0..rng.below(4)).for_each(|_| source.change(rng));
        (source.next, source.gap) = (source.txs.len(), true);
        source.snapshot();
        source
    }

    /// A transaction of up to three changes, where keys may change. Some begin with a TRUNCATE.
    pub fn change(&mut self, rng: &mut Rng) {
        let mut db = self.db.last().expect("the database begins empty").clone();
        let mut changes = Vec::new();
        if rng.chance(0.08) {
            let truncate = Change {
                truncates: true,
                ..Change::default()
            };
            apply(&mut db, truncate, &mut changes);
        } else if rng.chance(0.3) {
            // Several key changes in a row may return a row to its key or exchange the keys of two rows.
            for _ in 0..1 + rng.below(3) {
                self.move_row(&mut db, rng, &mut changes);
            }
        }
        let mut keys = self.keys.clone();
        rng.shuffle(&mut keys);
        let others = 1 + rng.below(3) - usize::from(!changes.is_empty());
        for key in keys.into_iter().take(others) {
            let old = db.get(&key).copied();
            let mut value = any_value(rng);
            let same_note = rng.chance(0.6) && old.is_some();
            if let (true, Some(old), Some(value)) = (same_note, old, value.as_mut()) {
                value.note = old.note;
            }
            let change = Change {
                key,
                value,
                same_note,
                ..Change::default()
            };
            apply(&mut db, change, &mut changes);
        }
        self.txs.push(changes);
        self.db.push(db);
    }

    /// Changes the key of a row to an unused one; usually its note does not change.
    fn move_row(&self, db: &mut Rows, rng: &mut Rng, changes: &mut Vec<Change>) {
        let (taken, free): (Vec<i64>, Vec<i64>) = self.keys.iter().partition(|key| db.contains_key(key));
        if taken.is_empty() || free.is_empty() {
            return;
        }
        let (from, to) = (rng.pick(&taken), rng.pick(&free));
        let mut value = db[&from];
        let same_note = rng.chance(0.8);
        if !same_note {
            value.note = any_note(rng);
        }
        let tombstone = Change {
            key: from,
            other_key: Some(to),
            ..Change::default()
        };
        let row = Change {
            key: to,
            value: Some(value),
            same_note,
            other_key: Some(from),
            ..Change::default()
        };
        apply(db, tombstone, changes);
        apply(db, row, changes);
    }

    fn row(&self, key: &str, value: Option<Vec<u8>>, at: Ordinal, last: bool) -> Row {
        let tx = Tx {
            source_epoch: self.source_epoch,
            position: Lsn(at.position),
            ordinal: at.ordinal,
            last,
            at_ms: self.place(),
        };
        Row {
            headers: vec![tx_header(&tx)],
            ..Row::new(key, value)
        }
    }

    /// For the oracle: twice the number of streamed transactions, plus 1 while changes are missing. It is written to
    /// the field for the commit time, which is copied to transaction end markers.
    fn place(&self) -> i64 {
        2 * i64::try_from(self.next).unwrap() + i64::from(self.gap)
    }

    fn key(&self, key: i64) -> String {
        format!("[\"{}\",{key}]", self.name)
    }

    fn put(&mut self, broker: &mut Broker, row: Row, replayable: bool) {
        if replayable {
            self.put.push(row.clone());
        }
        broker.append(&self.topic, [row]);
    }

    /// Starts a snapshot of the table in two chunks, between watermarks, while streaming continues.
    pub fn snapshot(&mut self) {
        let (low, high) = self.keys.split_at(self.keys.len() / 2);
        self.todo = vec![low.to_vec(), high.to_vec()];
        self.chunk = None;
    }

    /// Loses the slot: a transaction may remain incomplete in the topic, and the changes until now that were not
    /// streamed are lost.
    pub fn lose_slot(&mut self) {
        self.source_epoch += 1;
        (self.next, self.ordinal, self.gap) = (self.txs.len(), 0, true);
        self.streamed.clear();
        self.snapshot();
    }

    /// Advances the snapshot; returns whether one is running.
    pub fn snapshot_step(&mut self) -> bool {
        let now = self.txs.len();
        let db = self.db.last().expect("the database begins empty");
        match (&mut self.chunk, self.todo.first()) {
            (None, Some(_)) => {
                self.chunk = Some(Chunk {
                    low: now,
                    ..Chunk::default()
                });
            }
            (Some(chunk), Some(range)) if chunk.snapshot.is_none() => {
                let rows = db.iter().filter(|(key, _)| range.contains(key));
                chunk.snapshot = Some((now, rows.map(|(key, value)| (*key, *value)).collect()));
            }
            (Some(chunk), _) => drop(chunk.high.get_or_insert(now)),
            _ => {}
        }
        !self.todo.is_empty()
    }

    /// Writes the next record to the topic; with `may_fail`, the record may become a dead letter. Returns whether there
    /// was a record to write.
    pub fn emit(&mut self, broker: &mut Broker, rng: &mut Rng, may_fail: bool) -> bool {
        let reached = |c: &Chunk| c.high.is_some_and(|high| self.next >= high);
        if self.chunk.as_ref().is_some_and(reached) && self.ordinal == 0 {
            let end_fails = may_fail && rng.chance(0.06);
            self.emit_chunk(broker, end_fails);
        } else if self.next < self.txs.len() {
            let fails = may_fail && rng.chance(0.03);
            self.emit_change(broker, rng, fails);
        } else {
            return false;
        }
        true
    }

    /// Streamed transactions have odd positions, and chunks the even positions before them.
    fn emit_chunk(&mut self, broker: &mut Broker, end_fails: bool) {
        let chunk = self.chunk.take().expect("a chunk is due");
        let (seen, rows) = chunk.snapshot.expect("a chunk with a high watermark has rows");
        let position = 2 * u64::try_from(self.next).unwrap();
        for (key, value) in rows {
            // A row is dropped if a transaction that the chunk did not read has a streamed change of its key.
            if self.streamed.get(&key).is_none_or(|at| *at < seen) {
                self.sequence += 1;
                let at = Ordinal {
                    position,
                    ordinal: self.sequence,
                };
                let row = self.row(&self.key(key), Some(framed(value, false)), at, false);
                self.put(broker, row, true);
            }
        }
        let is_first = self.todo.len() > 1;
        let range = self.todo.remove(0);
        if self.todo.is_empty() {
            (self.gap, self.was_snapshotted) = (false, true);
        }
        self.sequence += 1;
        let (from, to) = (format!("[{}]", range[0]), format!("[{}]", range[range.len() - 1]));
        let mut low = Vec::new();
        Lsn(2 * u64::try_from(chunk.low).unwrap()).write(&mut low);
        let end = ChunkEnd {
            table: self.name,
            from: (!is_first).then_some(&*from),
            to: is_first.then_some(&*to),
            snapshot: "s",
            low: std::str::from_utf8(&low).unwrap(),
            is_final: self.todo.is_empty(),
        };
        let mut value = Vec::new();
        end.write(SchemaId(CHUNK_ID), &mut value);
        let key = format!("[\"~chunk\",\"{}\"]", self.name);
        let at = Ordinal {
            position,
            ordinal: self.sequence,
        };
        let row = self.row(&key, Some(value), at, true);
        if !end_fails {
            return self.put(broker, row, false);
        }
        broker.note("dead chunk end");
        self.had_dead_letters = true;
        let mut unreadable = row.clone();
        unreadable.value = Some(b"?".to_vec());
        self.put(broker, unreadable, false);
        let at = broker.now();
        self.dead.push(DeadLetter { at, row });
    }

    fn emit_change(&mut self, broker: &mut Broker, rng: &mut Rng, fails: bool) {
        let change = self.txs[self.next][self.ordinal];
        let key = change.key;
        let at = Ordinal {
            position: 2 * u64::try_from(self.next).unwrap() + 1,
            ordinal: u32::try_from(self.ordinal).unwrap(),
        };
        let changed: &[i64] = if change.truncates { &self.keys } else { &[key] };
        self.streamed.extend(changed.iter().map(|key| (*key, self.next)));
        self.ordinal += 1;
        let last = self.ordinal == self.txs[self.next].len();
        if last {
            (self.next, self.ordinal) = (self.next + 1, 0);
        }
        // During a snapshot, a streamed row may replace a row of a chunk, so it must be complete.
        let omit_note = change.same_note && self.todo.is_empty();
        let value = change.value.map(|value| framed(value, omit_note));
        broker.note(if change.truncates { "truncate" } else { "change" });
        let row_key = change.truncates.then(|| format!("[\"{}\"]", self.name));
        let row_key = row_key.unwrap_or_else(|| self.key(key));
        let mut row = self.row(&row_key, value, at, last);
        if let Some(other) = change.other_key {
            let name = if row.value.is_some() {
                headers::MOVED_FROM
            } else {
                headers::MOVED_TO
            };
            row.headers.push((name.to_owned(), Some(self.key(other).into_bytes())));
            broker.note(if omit_note {
                "key change without the note"
            } else {
                "key change"
            });
        }
        if !fails || row.value.is_none() {
            return self.put(broker, row, true);
        }
        self.had_dead_letters = true;
        if rng.chance(0.3) {
            broker.note("missing record");
            let missing = Row {
                headers: vec![row.headers[0].clone()],
                ..Row::new(format!("[\"~missing\",\"{}\",{key}]", self.name), None)
            };
            self.put(broker, missing, false);
        } else {
            broker.note("dead letter");
            self.put(broker, poisoned(row.clone(), rng), false);
        }
        let at = broker.now();
        self.dead.push(DeadLetter { at, row });
    }

    /// Redrives a dead letter with its original position, possibly more than once. If the dead letter is old, a
    /// snapshot may be taken instead.
    pub fn redrive(&mut self, broker: &mut Broker, rng: &mut Rng) {
        if self.dead.is_empty() {
            return;
        }
        let which = rng.below(self.dead.len());
        if broker.now() - self.dead[which].at > HORIZON / 2 && rng.chance(0.3) {
            return self.snapshot();
        }
        let row = if rng.chance(0.8) {
            self.dead.remove(which).row
        } else {
            self.dead[which].row.clone()
        };
        broker.note("redriven");
        let row = replayed(self.at_place(row), headers::REDRIVE);
        self.put(broker, row, false);
    }

    /// Whether changes are missing that only a snapshot can restore.
    pub fn is_behind(&self) -> bool {
        self.gap
    }

    /// A row with its original version and the current place of the source.
    fn at_place(&self, mut row: Row) -> Row {
        let tx = row.headers[0].1.as_deref().and_then(|tx| Tx::parse(tx).ok());
        row.headers[0] = tx_header(&Tx {
            at_ms: self.place(),
            ..tx.expect("a record has the header tx")
        });
        row
    }

    /// Replays a range of old records with their original positions.
    pub fn replay(&mut self, broker: &mut Broker, rng: &mut Rng) {
        let from = rng.below(self.put.len());
        let some: Vec<Row> = self.put.iter().skip(from).take(1 + rng.below(4)).cloned().collect();
        for row in some {
            broker.note("replayed");
            let row = replayed(self.at_place(row), headers::REPLAY);
            self.put(broker, row, false);
        }
    }
}

fn apply(db: &mut Rows, change: Change, changes: &mut Vec<Change>) {
    match change.value {
        None if change.truncates => db.clear(),
        Some(value) => drop(db.insert(change.key, value)),
        None => drop(db.remove(&change.key)),
    }
    changes.push(change);
}
