//! Source transactions become records: what the stream says, in order, with keys, values and headers.
//!
//! Guarantees: ordinals depend on the transaction alone, so that a transaction which is sent again gives the same
//! ones, and what is stored already is left out; the last record of a transaction says so; the position is always that
//! of the last record given out.
//! Never: IO; a record of a table that is not declared.

use super::pgoutput::{Malformed, Message, Old, Relation, RelationId, Tuple, Value};
use super::position::Position;
use super::rows::{Memory, Table};
use crate::error::{Error, Result};
use event_log::{OutBatch, OutRecord};
use schemas::headers::{self, Tx};
use schemas::key::KeyWriter;
use schemas::version::Lsn;
use std::collections::HashMap;
use std::sync::Arc;

/// A change takes two ordinals, since a key that changes is a tombstone and a row.
const ORDINALS_PER_CHANGE: u32 = 2;
/// Milliseconds from 1970 to 2000, PostgreSQL's epoch.
const EPOCH_MS: i64 = 946_684_800_000;

/// A time of PostgreSQL's protocol in ms since 1970.
pub(super) fn unix_ms(micros_since_2000: i64) -> i64 {
    micros_since_2000.div_euclid(1_000).saturating_add(EPOCH_MS)
}

/// Gives records out.
#[derive(Debug)]
pub(super) struct Emitter {
    topic: Arc<str>,
    header: Vec<u8>,
}

impl Emitter {
    pub(super) fn new(topic: Arc<str>) -> Self {
        Emitter {
            topic,
            header: Vec::new(),
        }
    }

    /// Appends one record.
    pub(super) fn emit(&mut self, tx: &Tx, row: &Published<'_>, out: &mut OutBatch) {
        self.header.clear();
        tx.write(&mut self.header);
        let record = OutRecord {
            topic: &self.topic,
            partition: Some(0),
            timestamp: Some(tx.at_ms),
            key: Some(row.key),
            value: row.value,
        };
        let names = [
            (headers::TABLE, Some(row.table.as_bytes())),
            (headers::TX, Some(self.header.as_slice())),
        ];
        let extra = row.header.map(|(name, value)| (name, Some(value)));
        out.push(record, names.into_iter().chain(extra));
    }
}

/// The content of a record.
#[derive(Debug)]
pub(super) struct Published<'a> {
    pub(super) table: &'a str,
    pub(super) key: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
    /// A header besides those that every record has.
    pub(super) header: Option<(&'static str, &'a [u8])>,
}

/// How a relation of the stream is read: a declared table, and where each of its columns stands.
#[derive(Debug, Clone)]
struct Plan {
    table: usize,
    /// Number of declared columns.
    columns: usize,
    /// For each column of the relation the declared column that it is.
    slots: Arc<[Option<usize>]>,
    /// Whether the declared columns are the relation's first, in order.
    in_front: bool,
}

/// The source transaction that is being read.
#[derive(Debug)]
struct Transaction {
    commit_lsn: Lsn,
    at_ms: i64,
    next_ordinal: u32,
    /// It is stored whole already.
    stored: bool,
}

/// A record that waits for what follows, since only then it is known whether it is the last.
#[derive(Debug, Default)]
struct Held {
    full: bool,
    table: usize,
    ordinal: u32,
    key: Vec<u8>,
    value: Vec<u8>,
    tombstone: bool,
    /// The row's other key if its key changed: of a tombstone the new one, of a row the old one. Otherwise empty.
    other_key: Vec<u8>,
}

/// Where a record belongs, and its keys.
struct Place<'k> {
    table: usize,
    ordinal: u32,
    key: &'k [u8],
    /// As in [`Held`].
    other_key: &'k [u8],
}

impl<'k> Place<'k> {
    /// Of a record whose row keeps its key.
    fn new(table: usize, ordinal: u32, key: &'k [u8]) -> Self {
        Place {
            table,
            ordinal,
            key,
            other_key: &[],
        }
    }
}

/// Reads the stream of one incarnation.
#[derive(Debug)]
pub(super) struct Changes {
    tables: Arc<[Table]>,
    plans: HashMap<RelationId, Option<Plan>>,
    emitter: Emitter,
    position: Position,
    transaction: Option<Transaction>,
    held: Held,
    spare: Held,
    memory: Memory,
    values: Vec<Value<'static>>,
    before: Vec<Value<'static>>,
    old_key: Vec<u8>,
}

impl Changes {
    /// Goes on after a position.
    pub(super) fn new(topic: Arc<str>, tables: Arc<[Table]>, position: Position) -> Self {
        Changes {
            tables,
            plans: HashMap::new(),
            emitter: Emitter::new(topic),
            position,
            transaction: None,
            held: Held::default(),
            spare: Held::default(),
            memory: Memory::default(),
            values: Vec::new(),
            before: Vec::new(),
            old_key: Vec::new(),
        }
    }

    /// Where the last record given out stands.
    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// Whether a source transaction is being read.
    pub(super) fn is_inside(&self) -> bool {
        self.transaction.is_some()
    }

    /// A source transaction begins.
    pub(super) fn begin(&mut self, commit_lsn: Lsn, commit_time_micros: i64) {
        let stored = commit_lsn < self.position.whole;
        let at_ms = unix_ms(commit_time_micros);
        self.transaction = Some(Transaction {
            commit_lsn,
            at_ms,
            next_ordinal: 0,
            stored,
        });
        self.held.full = false;
    }

    /// The source transaction ends: its last record is given out, and it is whole.
    pub(super) fn commit(&mut self, end_lsn: Lsn, out: &mut OutBatch) {
        self.release(true, out);
        self.transaction = None;
        self.position.whole = self.position.whole.max(end_lsn);
    }

    /// Everything below this place was sent.
    pub(super) fn mark(&mut self, lsn: Lsn) {
        if self.transaction.is_none() {
            self.position.whole = self.position.whole.max(lsn);
        }
    }

    /// Reads one message of the output plugin.
    pub(super) fn change(&mut self, message: &Message<'_>, out: &mut OutBatch) -> Result<()> {
        match message {
            Message::Relation(relation) => self.relation(relation),
            Message::Insert { relation, new } => {
                let Some((plan, ordinal)) = self.next_change(*relation)? else {
                    return Ok(());
                };
                self.row(&plan, ordinal, None, *new, out)
            }
            Message::Update { relation, old, new } => {
                let Some((plan, ordinal)) = self.next_change(*relation)? else {
                    return Ok(());
                };
                self.row(&plan, ordinal, *old, *new, out)
            }
            Message::Delete { relation, old } => {
                let Some((plan, ordinal)) = self.next_change(*relation)? else {
                    return Ok(());
                };
                self.delete(&plan, ordinal, *old, out)
            }
            Message::Truncate { relations } => {
                for relation in relations.iter() {
                    let Some((plan, ordinal)) = self.next_change(relation)? else {
                        continue;
                    };
                    self.truncate(&plan, ordinal, out);
                }
                Ok(())
            }
            // The transport gives begins, commits and logical messages as frames of their own.
            _ => Ok(()),
        }
    }

    /// Learns a table's shape; it holds from here on.
    fn relation(&mut self, relation: &Relation<'_>) -> Result<()> {
        let schema = if relation.schema.is_empty() {
            "pg_catalog"
        } else {
            relation.schema
        };
        let is_it = |t: &Table| t.name.table() == relation.name && t.name.schema() == schema;
        let Some(index) = self.tables.iter().position(is_it) else {
            self.plans.insert(relation.id, None);
            return Ok(());
        };
        let table = self.tables.get(index).expect("the index was just found");
        let mut slots = vec![None; relation.columns.len()];
        for (declared, name) in table.names().enumerate() {
            let Some(at) = relation.columns.iter().position(|c| c.name == name) else {
                return Err(Error::Unpublishable {
                    what: format!("table {}, column {name}", table.name),
                    reason: String::from(
                        "the database does not send it any more: it was dropped, renamed or unpublished",
                    ),
                    next: format!(
                        "take {name} out of [[table]] {} in the topology, or add it back",
                        table.name
                    ),
                });
            };
            if let Some(slot) = slots.get_mut(at) {
                *slot = Some(declared);
            }
        }
        let columns = table.columns();
        let in_front = slots
            .iter()
            .take(columns)
            .enumerate()
            .all(|(at, slot)| *slot == Some(at));
        self.plans.insert(
            relation.id,
            Some(Plan {
                table: index,
                columns,
                slots: slots.into(),
                in_front,
            }),
        );
        Ok(())
    }

    /// Counts a change; gives what to do with it, or nothing for a table that is not declared.
    fn next_change(&mut self, relation: RelationId) -> Result<Option<(Plan, u32)>> {
        let Some(transaction) = &mut self.transaction else {
            return Err(broken("a change outside a transaction"));
        };
        let ordinal = transaction.next_ordinal;
        let next = ordinal
            .checked_add(ORDINALS_PER_CHANGE)
            .ok_or_else(|| Error::Unpublishable {
                what: format!("the transaction at {}", transaction.commit_lsn),
                reason: String::from("it has more than two thousand million changes"),
                next: String::from("resync the connector"),
            })?;
        transaction.next_ordinal = next;
        if transaction.stored {
            return Ok(None);
        }
        match self.plans.get(&relation) {
            Some(plan) => Ok(plan.clone().map(|plan| (plan, ordinal))),
            None => Err(broken("a change of a table that was not described")),
        }
    }

    /// A row was inserted or updated.
    fn row(
        &mut self,
        plan: &Plan,
        ordinal: u32,
        old: Option<Old<'_>>,
        new: Tuple<'_>,
        out: &mut OutBatch,
    ) -> Result<()> {
        let tables = Arc::clone(&self.tables);
        let table = tables.get(plan.table).expect("a plan's table exists");
        let mut values = recycle(std::mem::take(&mut self.values));
        pick(new, plan, &mut values);
        let mut key = std::mem::take(&mut self.spare.key);
        let mut value = std::mem::take(&mut self.spare.value);
        let mut old_key = std::mem::take(&mut self.old_key);
        old_key.clear();
        if let Some(old) = old {
            let mut before = recycle(std::mem::take(&mut self.before));
            pick(old.tuple, plan, &mut before);
            complete(&mut values, &before, old.whole, table);
            let written = table.write_key(&before, &mut old_key);
            self.before = recycle(before);
            written?;
        }
        let written = table
            .write_key(&values, &mut key)
            .and_then(|()| table.write_value(&values, &mut self.memory, &mut value));
        self.values = recycle(values);
        written?;
        let moved = !old_key.is_empty() && old_key != key;
        let mut place = Place::new(plan.table, ordinal, &key);
        if moved {
            let tombstone = Place {
                key: &old_key,
                other_key: &key,
                ..place
            };
            self.hold(&tombstone, None, out);
            place.ordinal += 1;
            place.other_key = &old_key;
        }
        self.hold(&place, Some(&mut value), out);
        (self.old_key, self.spare.key, self.spare.value) = (old_key, key, value);
        Ok(())
    }

    fn delete(&mut self, plan: &Plan, ordinal: u32, old: Old<'_>, out: &mut OutBatch) -> Result<()> {
        let tables = Arc::clone(&self.tables);
        let table = tables.get(plan.table).expect("a plan's table exists");
        let mut values = recycle(std::mem::take(&mut self.values));
        pick(old.tuple, plan, &mut values);
        let mut key = std::mem::take(&mut self.spare.key);
        let written = table.write_key(&values, &mut key);
        self.values = recycle(values);
        written?;
        self.hold(&Place::new(plan.table, ordinal, &key), None, out);
        self.spare.key = key;
        Ok(())
    }

    fn truncate(&mut self, plan: &Plan, ordinal: u32, out: &mut OutBatch) {
        let name = self.tables.get(plan.table).expect("a plan's table exists").name.clone();
        let mut key = std::mem::take(&mut self.spare.key);
        key.clear();
        KeyWriter::new(&mut key).str(name.as_str()).finish();
        self.hold(&Place::new(plan.table, ordinal, &key), None, out);
        self.spare.key = key;
    }

    /// Gives the held record out and holds this one, unless it is stored already. The value's buffer is exchanged.
    fn hold(&mut self, place: &Place<'_>, value: Option<&mut Vec<u8>>, out: &mut OutBatch) {
        let Some(transaction) = &self.transaction else { return };
        if self.position.has(transaction.commit_lsn, place.ordinal) {
            return;
        }
        self.release(false, out);
        self.held.full = true;
        self.held.table = place.table;
        self.held.ordinal = place.ordinal;
        self.held.tombstone = value.is_none();
        // The caller still needs its keys, so they are copied.
        place.key.clone_into(&mut self.held.key);
        place.other_key.clone_into(&mut self.held.other_key);
        if let Some(value) = value {
            std::mem::swap(&mut self.held.value, value);
        }
    }

    /// Gives the held record out.
    fn release(&mut self, last: bool, out: &mut OutBatch) {
        let Some(transaction) = &self.transaction else { return };
        if !std::mem::take(&mut self.held.full) {
            return;
        }
        let tx = Tx {
            incarnation: self.position.incarnation,
            position: transaction.commit_lsn,
            ordinal: self.held.ordinal,
            last,
            at_ms: transaction.at_ms,
        };
        let value = (!self.held.tombstone).then_some(self.held.value.as_slice());
        let table = self.tables.get(self.held.table).expect("a held record's table exists");
        let moved = if self.held.tombstone {
            headers::MOVED_TO
        } else {
            headers::MOVED_FROM
        };
        let other_key = self.held.other_key.as_slice();
        let row = Published {
            table: table.name.as_str(),
            key: &self.held.key,
            value,
            header: (!other_key.is_empty()).then_some((moved, other_key)),
        };
        self.emitter.emit(&tx, &row, out);
        self.position.lsn = transaction.commit_lsn;
        self.position.ordinal = Some(self.held.ordinal);
    }
}

fn broken(reason: &'static str) -> Error {
    Error::Unpublishable {
        what: String::from("the replication stream"),
        reason: reason.to_owned(),
        next: String::from("report this as a defect"),
    }
}

/// What a malformed message means.
pub(super) fn malformed(error: Malformed) -> Error {
    Error::Unpublishable {
        what: String::from("a message of the replication stream"),
        reason: error.to_string(),
        next: String::from("report this as a defect, with the server's version"),
    }
}

/// Picks the declared columns out of a tuple.
fn pick<'a>(tuple: Tuple<'a>, plan: &Plan, values: &mut Vec<Value<'a>>) {
    values.clear();
    if plan.in_front {
        values.extend(tuple.iter().take(plan.columns));
        values.resize(plan.columns, Value::Null);
        return;
    }
    values.resize(plan.columns, Value::Null);
    for (slot, value) in plan.slots.iter().zip(tuple.iter()) {
        if let Some(declared) = slot.and_then(|at| values.get_mut(at)) {
            *declared = value;
        }
    }
}

/// Takes values that were not sent again from the row before, as far as it has them.
fn complete<'a>(values: &mut [Value<'a>], before: &[Value<'a>], whole: bool, table: &Table) {
    for (at, (value, old)) in values.iter_mut().zip(before).enumerate() {
        let known = whole || table.is_key(at);
        if *value == Value::Unchanged && known && *old != Value::Unchanged {
            *value = *old;
        }
    }
}

/// Empties a list of values and gives its memory to values of another message.
pub(super) fn recycle<'b>(mut values: Vec<Value<'_>>) -> Vec<Value<'b>> {
    values.clear();
    // An empty vector collected in place keeps its allocation.
    values.into_iter().map(|_| Value::Null).collect()
}

#[cfg(test)]
mod tests;
