//! Converts source transactions of the replication stream into records with keys, values and headers. No IO.
//!
//! Ordinals depend only on the content of the source transaction. A transaction that the slot sends again therefore
//! gets the same ordinals, and records at or below the stored position are skipped. The last record of a transaction is
//! marked as last. The position is always that of the last record that was emitted. Changes of undeclared tables
//! produce no record.

use super::pgoutput::{DecodeError, Message, Old, Relation, RelationId, Tuple, Value};
use super::position::Position;
use super::rows::{Buffers, Table};
use crate::error::{Error, Result};
use event_log::{OutBatch, OutRecord};
use schemas::headers::{self, Tx};
use schemas::key::KeyWriter;
use schemas::version::Lsn;
use std::collections::HashMap;
use std::sync::Arc;

/// A change has two ordinals, because a change of the key becomes a tombstone and a row.
const ORDINALS_PER_CHANGE: u32 = 2;
/// Milliseconds from 1970-01-01 to 2000-01-01, the epoch of the replication protocol.
const EPOCH_MS: i64 = 946_684_800_000;

/// Converts a time of the replication protocol to ms since 1970.
pub(super) fn unix_ms(micros_since_2000: i64) -> i64 {
    micros_since_2000.div_euclid(1_000).saturating_add(EPOCH_MS)
}

/// Appends records with the headers that every source record has.
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
    /// An additional header.
    pub(super) header: Option<(&'static str, &'a [u8])>,
}

/// Maps a relation of the stream to a declared table and its columns.
#[derive(Debug, Clone)]
struct Mapping {
    table: usize,
    /// Number of declared columns.
    columns: usize,
    /// For each column of the relation, the index of the declared column.
    slots: Arc<[Option<usize>]>,
    /// Whether the declared columns are the first columns of the relation, in the same order.
    is_prefix: bool,
}

/// The open source transaction.
#[derive(Debug)]
struct Transaction {
    commit_lsn: Lsn,
    at_ms: i64,
    next_ordinal: u32,
    /// Whether all records of the transaction are already published.
    published: bool,
}

/// A record that is not emitted yet, because only the next message shows whether it is the last one of its transaction.
#[derive(Debug, Default)]
struct PendingRecord {
    is_present: bool,
    table: usize,
    ordinal: u32,
    key: Vec<u8>,
    value: Vec<u8>,
    tombstone: bool,
    /// If the row's key changed: for the tombstone the new key, for the row the old key. Otherwise empty.
    other_key: Vec<u8>,
}

/// A change that needs a record: the mapping of its table and its first ordinal.
struct Change {
    mapping: Mapping,
    ordinal: u32,
}

/// Identity of a record to emit.
struct RecordId<'k> {
    table: usize,
    ordinal: u32,
    key: &'k [u8],
    /// See [`PendingRecord`].
    other_key: &'k [u8],
}

impl<'k> RecordId<'k> {
    /// Identity of a record whose row keeps its key.
    fn new(table: usize, ordinal: u32, key: &'k [u8]) -> Self {
        RecordId {
            table,
            ordinal,
            key,
            other_key: &[],
        }
    }
}

/// Converts the stream of one source epoch.
#[derive(Debug)]
pub(super) struct Changes {
    tables: Arc<[Table]>,
    mappings: HashMap<RelationId, Option<Mapping>>,
    emitter: Emitter,
    position: Position,
    transaction: Option<Transaction>,
    pending: PendingRecord,
    spare: PendingRecord,
    buffers: Buffers,
    values: Vec<Value<'static>>,
    before: Vec<Value<'static>>,
    old_key: Vec<u8>,
}

impl Changes {
    /// Continues after a position.
    pub(super) fn new(topic: Arc<str>, tables: Arc<[Table]>, position: Position) -> Self {
        Changes {
            tables,
            mappings: HashMap::new(),
            emitter: Emitter::new(topic),
            position,
            transaction: None,
            pending: PendingRecord::default(),
            spare: PendingRecord::default(),
            buffers: Buffers::default(),
            values: Vec::new(),
            before: Vec::new(),
            old_key: Vec::new(),
        }
    }

    /// The position after the last emitted record.
    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// Whether a source transaction is open.
    pub(super) fn is_inside(&self) -> bool {
        self.transaction.is_some()
    }

    /// Begins a source transaction.
    pub(super) fn begin(&mut self, commit_lsn: Lsn, commit_time_micros: i64) {
        let published = commit_lsn < self.position.complete_lsn;
        let at_ms = unix_ms(commit_time_micros);
        self.transaction = Some(Transaction {
            commit_lsn,
            at_ms,
            next_ordinal: 0,
            published,
        });
        self.pending.is_present = false;
    }

    /// Ends the source transaction: emits its last record and advances the position to the end of the transaction.
    pub(super) fn commit(&mut self, end_lsn: Lsn, out: &mut OutBatch) {
        self.emit_pending(true, out);
        self.transaction = None;
        self.position.complete_lsn = self.position.complete_lsn.max(end_lsn);
    }

    /// Advances the position to an LSN below which everything was sent. Ignored within a source transaction, because
    /// the rest of the transaction is still to come.
    pub(super) fn advance(&mut self, lsn: Lsn) {
        if self.transaction.is_none() {
            self.position.complete_lsn = self.position.complete_lsn.max(lsn);
        }
    }

    /// Converts one message of the output plugin.
    pub(super) fn change(&mut self, message: &Message<'_>, out: &mut OutBatch) -> Result<()> {
        match message {
            Message::Relation(relation) => self.relation(relation),
            Message::Insert { relation, new } => {
                let Some(change) = self.next_change(*relation)? else {
                    return Ok(());
                };
                self.row(&change, None, *new, out)
            }
            Message::Update { relation, old, new } => {
                let Some(change) = self.next_change(*relation)? else {
                    return Ok(());
                };
                self.row(&change, *old, *new, out)
            }
            Message::Delete { relation, old } => {
                let Some(change) = self.next_change(*relation)? else {
                    return Ok(());
                };
                self.delete(&change, *old, out)
            }
            Message::Truncate { relations } => {
                for relation in relations.iter() {
                    let Some(change) = self.next_change(relation)? else {
                        continue;
                    };
                    self.truncate(&change, out);
                }
                Ok(())
            }
            // The transport delivers begin, commit and logical messages as separate frames.
            _ => Ok(()),
        }
    }

    /// Stores the mapping of a relation; it is valid until the relation is sent again.
    fn relation(&mut self, relation: &Relation<'_>) -> Result<()> {
        let schema = if relation.schema.is_empty() {
            "pg_catalog"
        } else {
            relation.schema
        };
        let is_it = |t: &Table| t.name.table() == relation.name && t.name.schema() == schema;
        let Some(index) = self.tables.iter().position(is_it) else {
            self.mappings.insert(relation.id, None);
            return Ok(());
        };
        let table = self.tables.get(index).expect("the index was just found");
        let mut slots = vec![None; relation.columns.len()];
        for (declared, name) in table.names().enumerate() {
            let Some(at) = relation.columns.iter().position(|c| c.name == name) else {
                return Err(Error::Unpublishable {
                    what: format!("table {}, column {name}", table.name),
                    reason: String::from(
                        "the database no longer sends it: it was dropped, renamed or removed from the publication",
                    ),
                    fix: format!(
                        "remove {name} from [[table]] {} in the topology, or add it to the table or publication again",
                        table.name
                    ),
                });
            };
            if let Some(slot) = slots.get_mut(at) {
                *slot = Some(declared);
            }
        }
        let columns = table.columns();
        let is_prefix = slots
            .iter()
            .take(columns)
            .enumerate()
            .all(|(at, slot)| *slot == Some(at));
        self.mappings.insert(
            relation.id,
            Some(Mapping {
                table: index,
                columns,
                slots: slots.into(),
                is_prefix,
            }),
        );
        Ok(())
    }

    /// Assigns the ordinal of a change. `None` if the change needs no record, because its table is not declared or the
    /// change is already published.
    fn next_change(&mut self, relation: RelationId) -> Result<Option<Change>> {
        let Some(transaction) = &mut self.transaction else {
            return Err(protocol_error("a change outside a transaction"));
        };
        let ordinal = transaction.next_ordinal;
        let next = ordinal
            .checked_add(ORDINALS_PER_CHANGE)
            .ok_or_else(|| Error::Unpublishable {
                what: format!("the transaction at {}", transaction.commit_lsn),
                reason: String::from("it has more than 2^31 changes"),
                fix: String::from("resync the connector"),
            })?;
        transaction.next_ordinal = next;
        if transaction.published {
            return Ok(None);
        }
        match self.mappings.get(&relation) {
            Some(mapping) => Ok(mapping.clone().map(|mapping| Change { mapping, ordinal })),
            None => Err(protocol_error(
                "a change of a table without a preceding relation message",
            )),
        }
    }

    /// Converts an insert or update. If the key changed, a tombstone for the old key precedes the row.
    fn row(&mut self, change: &Change, old: Option<Old<'_>>, new: Tuple<'_>, out: &mut OutBatch) -> Result<()> {
        let tables = Arc::clone(&self.tables);
        let table = tables.get(change.mapping.table).expect("a mapping's table exists");
        let mut values = recycle(std::mem::take(&mut self.values));
        pick(new, &change.mapping, &mut values);
        let mut key = std::mem::take(&mut self.spare.key);
        let mut value = std::mem::take(&mut self.spare.value);
        let mut old_key = std::mem::take(&mut self.old_key);
        old_key.clear();
        if let Some(old) = old {
            let mut before = recycle(std::mem::take(&mut self.before));
            pick(old.tuple, &change.mapping, &mut before);
            fill_unchanged(&mut values, &before, old.is_full, table);
            let written = table.write_key(&before, &mut old_key);
            self.before = recycle(before);
            written?;
        }
        let written = table
            .write_key(&values, &mut key)
            .and_then(|()| table.write_value(&values, &mut self.buffers, &mut value));
        self.values = recycle(values);
        written?;
        let moved = !old_key.is_empty() && old_key != key;
        let mut record = RecordId::new(change.mapping.table, change.ordinal, &key);
        if moved {
            let tombstone = RecordId {
                key: &old_key,
                other_key: &key,
                ..record
            };
            self.push(&tombstone, None, out);
            record.ordinal += 1;
            record.other_key = &old_key;
        }
        self.push(&record, Some(&mut value), out);
        (self.old_key, self.spare.key, self.spare.value) = (old_key, key, value);
        Ok(())
    }

    fn delete(&mut self, change: &Change, old: Old<'_>, out: &mut OutBatch) -> Result<()> {
        let tables = Arc::clone(&self.tables);
        let table = tables.get(change.mapping.table).expect("a mapping's table exists");
        let mut values = recycle(std::mem::take(&mut self.values));
        pick(old.tuple, &change.mapping, &mut values);
        let mut key = std::mem::take(&mut self.spare.key);
        let written = table.write_key(&values, &mut key);
        self.values = recycle(values);
        written?;
        self.push(&RecordId::new(change.mapping.table, change.ordinal, &key), None, out);
        self.spare.key = key;
        Ok(())
    }

    fn truncate(&mut self, change: &Change, out: &mut OutBatch) {
        let name = self
            .tables
            .get(change.mapping.table)
            .expect("a mapping's table exists")
            .name
            .clone();
        let mut key = std::mem::take(&mut self.spare.key);
        key.clear();
        KeyWriter::new(&mut key).str(name.as_str()).finish();
        self.push(&RecordId::new(change.mapping.table, change.ordinal, &key), None, out);
        self.spare.key = key;
    }

    /// Emits the pending record and makes this record the pending one, unless it is already published. Swaps the
    /// value's buffer.
    fn push(&mut self, record: &RecordId<'_>, value: Option<&mut Vec<u8>>, out: &mut OutBatch) {
        let Some(transaction) = &self.transaction else { return };
        if self.position.contains(transaction.commit_lsn, record.ordinal) {
            return;
        }
        self.emit_pending(false, out);
        self.pending.is_present = true;
        self.pending.table = record.table;
        self.pending.ordinal = record.ordinal;
        self.pending.tombstone = value.is_none();
        // The caller keeps its key buffers, so the keys are copied.
        record.key.clone_into(&mut self.pending.key);
        record.other_key.clone_into(&mut self.pending.other_key);
        if let Some(value) = value {
            std::mem::swap(&mut self.pending.value, value);
        }
    }

    /// Emits the pending record, if there is one.
    fn emit_pending(&mut self, last: bool, out: &mut OutBatch) {
        let Some(transaction) = &self.transaction else { return };
        if !std::mem::take(&mut self.pending.is_present) {
            return;
        }
        let tx = Tx {
            incarnation: self.position.source_epoch,
            position: transaction.commit_lsn,
            ordinal: self.pending.ordinal,
            last,
            at_ms: transaction.at_ms,
        };
        let value = (!self.pending.tombstone).then_some(self.pending.value.as_slice());
        let table = self
            .tables
            .get(self.pending.table)
            .expect("a pending record's table exists");
        let moved = if self.pending.tombstone {
            headers::MOVED_TO
        } else {
            headers::MOVED_FROM
        };
        let other_key = self.pending.other_key.as_slice();
        let row = Published {
            table: table.name.as_str(),
            key: &self.pending.key,
            value,
            header: (!other_key.is_empty()).then_some((moved, other_key)),
        };
        self.emitter.emit(&tx, &row, out);
        self.position.lsn = transaction.commit_lsn;
        self.position.ordinal = Some(self.pending.ordinal);
    }
}

fn protocol_error(reason: &'static str) -> Error {
    Error::Unpublishable {
        what: String::from("the replication stream"),
        reason: reason.to_owned(),
        fix: String::from("report this as a bug"),
    }
}

/// Maps a decoder error.
pub(super) fn decode_error(error: DecodeError) -> Error {
    Error::Unpublishable {
        what: String::from("a message of the replication stream"),
        reason: error.to_string(),
        fix: String::from("report this as a bug, with the version of the server"),
    }
}

/// Selects the values of the declared columns.
fn pick<'a>(tuple: Tuple<'a>, mapping: &Mapping, values: &mut Vec<Value<'a>>) {
    values.clear();
    if mapping.is_prefix {
        values.extend(tuple.iter().take(mapping.columns));
        values.resize(mapping.columns, Value::Null);
        return;
    }
    values.resize(mapping.columns, Value::Null);
    for (slot, value) in mapping.slots.iter().zip(tuple.iter()) {
        if let Some(declared) = slot.and_then(|at| values.get_mut(at)) {
            *declared = value;
        }
    }
}

/// Sets values that were not sent (unchanged TOAST values) from the old row, as far as the old row contains them.
fn fill_unchanged<'a>(values: &mut [Value<'a>], before: &[Value<'a>], is_full: bool, table: &Table) {
    for (at, (value, old)) in values.iter_mut().zip(before).enumerate() {
        let known = is_full || table.is_key(at);
        if *value == Value::Unchanged && known && *old != Value::Unchanged {
            *value = *old;
        }
    }
}

/// Clears a list of values and keeps its allocation for values with another lifetime.
pub(super) fn recycle<'b>(mut values: Vec<Value<'_>>) -> Vec<Value<'b>> {
    values.clear();
    // Collecting an empty vector in place keeps its allocation.
    values.into_iter().map(|_| Value::Null).collect()
}

#[cfg(test)]
mod tests;
