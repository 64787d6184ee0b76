//! Converts source transactions of the replication stream into records with keys, values and headers. No IO.
//!
//! Ordinals depend on the content of the source transaction only, so a transaction that the slot replays gets the same
//! ordinals, and records at or below the stored position are skipped. The last record of a transaction is marked as last.
//! The position is always that of the last record that was emitted. Changes of undeclared tables produce no record.
//!
//! If a table's definition no longer matches its static record, the table is stopped: its changes are skipped, and one
//! record informs readers that changes are missing. A row that cannot be encoded becomes a dead letter. In both cases
//! the other tables and rows continue.

mod chunks;

pub(super) use chunks::{ChunkRows, Outcome};

use super::drift::{self, Cause};
use super::emitter::{Emitter, Missing, Published};
use super::parts::{Change, Content, EncodedRow, Lacking, PendingRecord, RecordId, Rejection, Sent, Transaction};
use super::pgoutput::{DecodeError, Message, Old, Relation, RelationId, Tuple, Value};
use super::position::Position;
use super::relations::{KnownRelation, Mapped, Mapping, map};
use super::rows::{Buffers, Table};
use super::static_record::{NeedsSnapshot, TableRecord, TableSnapshot};
use super::tuples::{fill_unchanged, pick, recycle};
use super::window::Window;
use crate::error::{Error, Result};
use event_log::OutBatch;
use schemas::headers::{self, Tx};
use schemas::ids::{SchemaId, TableName};
use schemas::key::KeyWriter;
use schemas::version::Lsn;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A change has two ordinals, because a change of the key becomes a tombstone and a row.
const ORDINALS_PER_CHANGE: u32 = 2;
/// Milliseconds from 1970-01-01 to 2000-01-01, the epoch of the replication protocol.
const EPOCH_MS: i64 = 946_684_800_000;

/// Converts a time of the replication protocol to ms since 1970.
pub(super) fn unix_ms(micros_since_2000: i64) -> i64 {
    micros_since_2000.div_euclid(1_000).saturating_add(EPOCH_MS)
}

/// Parameters of the conversion.
pub(super) struct Setup {
    /// The connector.
    pub(super) connector: Arc<str>,
    /// All declared tables, including stopped ones.
    pub(super) declared: Arc<[TableName]>,
    /// Encoders of the tables that are not stopped.
    pub(super) tables: Arc<[Arc<Table>]>,
    pub(super) emitter: Emitter,
    /// The registered schema of `ChunkEnd`.
    pub(super) chunk_end: SchemaId,
}

/// Converts the stream of one source epoch.
pub(super) struct Changes {
    setup: Setup,
    mappings: HashMap<RelationId, Mapped>,
    /// The definitions of the declared tables.
    relations: HashMap<RelationId, KnownRelation>,
    position: Position,
    transaction: Option<Transaction>,
    pending: PendingRecord,
    row: EncodedRow,
    buffers: Buffers,
    values: Vec<Value<'static>>,
    before: Vec<Value<'static>>,
    /// Commit LSN of the last truncation of each table.
    truncated: BTreeMap<String, Lsn>,
    window: Window,
}

impl Changes {
    /// Continues after a position.
    pub(super) fn new(setup: Setup, position: Position) -> Self {
        let mut changes = Changes {
            setup,
            mappings: HashMap::new(),
            relations: HashMap::new(),
            position,
            transaction: None,
            pending: PendingRecord::default(),
            row: EncodedRow::default(),
            buffers: Buffers::default(),
            values: Vec::new(),
            before: Vec::new(),
            truncated: BTreeMap::new(),
            window: Window::default(),
        };
        changes.resume_snapshot();
        changes
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
    pub(super) fn begin(&mut self, commit_lsn: Lsn, commit_time_micros: i64, xid: u32) {
        self.window.begin(xid);
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

    /// Advances the position to an LSN below which the server has sent everything, and publishes at this position which
    /// tables were stopped. Does nothing inside a source transaction, whose remaining changes have not arrived yet.
    pub(super) fn advance(&mut self, lsn: Lsn, out: &mut OutBatch) {
        if self.transaction.is_none() && lsn >= self.position.complete_lsn {
            self.position.complete_lsn = lsn;
            self.publish_stopped(lsn, out);
        }
    }

    /// Number of dead letters since the last call.
    pub(super) fn take_dead_letters(&mut self) -> u64 {
        self.setup.emitter.take_dead_letters()
    }

    /// Commit LSN of the last truncation of a table.
    pub(super) fn truncated_at(&self, table: &str) -> Option<Lsn> {
        self.truncated.get(table).copied()
    }

    /// Replaces the static record of a table.
    pub(super) fn set_record(&mut self, table: &str, record: TableRecord) {
        if self.position.source.table(table) != Some(&record) {
            self.position.source = self.position.source.with(|content| {
                content.tables.insert(table.to_owned(), record);
            });
        }
    }

    /// Stops a table: from now on its changes are skipped. `first` is the fix that is required before a snapshot.
    pub(super) fn stop(&mut self, table: &str, cause: Cause, first: Option<&str>) {
        let connector = &self.setup.connector;
        let state = NeedsSnapshot {
            automatic: cause.is_migration,
            ..drift::needs_snapshot(connector, table, cause.text, first)
        };
        tracing::error!(%connector, table, cause = state.cause, fix = state.fix, "table needs a snapshot");
        self.stop_with(table, state);
    }

    fn stop_with(&mut self, table: &str, state: NeedsSnapshot) {
        self.position.source = self.position.source.with(|content| {
            if let Some(record) = content.tables.get_mut(table) {
                record.needs_snapshot = Some(state);
                // A requested snapshot begins again when readers are informed.
                record.snapshot = record.snapshot.take().map(|_| TableSnapshot::Wanted);
            }
        });
        self.end_snapshot(table);
        for mapped in self.mappings.values_mut() {
            if is_mapping_of(&self.setup.tables, mapped, table) {
                *mapped = Mapped::Stopped(table.into());
            }
        }
    }

    /// Converts one message of the output plugin.
    pub(super) fn change(&mut self, message: &Message<'_>, out: &mut OutBatch) -> Result<()> {
        match message {
            Message::Relation(relation) => {
                self.relation(relation);
                Ok(())
            }
            Message::Insert { relation, new } => {
                let Some(change) = self.next_change(*relation, out)? else {
                    return Ok(());
                };
                self.row(&change, None, *new, out);
                Ok(())
            }
            Message::Update { relation, old, new } => {
                let Some(change) = self.next_change(*relation, out)? else {
                    return Ok(());
                };
                self.row(&change, *old, *new, out);
                Ok(())
            }
            Message::Delete { relation, old } => {
                let Some(change) = self.next_change(*relation, out)? else {
                    return Ok(());
                };
                self.delete(&change, *old, out);
                Ok(())
            }
            Message::Truncate { relations } => {
                for relation in relations.iter() {
                    let Some(change) = self.next_change(relation, out)? else {
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

    /// Stores the mapping of a relation, which is valid until the relation is sent again. Stops the table if it no
    /// longer matches.
    fn relation(&mut self, relation: &Relation<'_>) {
        let found = map(
            relation,
            &self.setup.declared,
            &self.setup.tables,
            &self.position.source,
        );
        let mapped = match found {
            Ok(mapped) => mapped,
            Err(misfit) => {
                self.stop(misfit.table.as_str(), misfit.cause, None);
                Mapped::Stopped(misfit.table.as_str().into())
            }
        };
        if matches!(mapped, Mapped::Undeclared) {
            self.relations.remove(&relation.id);
        } else {
            self.relations.insert(relation.id, KnownRelation::new(relation));
        }
        self.mappings.insert(relation.id, mapped);
    }

    /// Assigns the ordinal of a change. Returns `None` if the change needs no record, because its table is not declared
    /// or is stopped, or because it is already published.
    fn next_change(&mut self, relation: RelationId, out: &mut OutBatch) -> Result<Option<Change>> {
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
            Some(Mapped::Table(mapping)) => Ok(Some(Change {
                mapping: mapping.clone(),
                ordinal,
            })),
            Some(Mapped::Undeclared) => Ok(None),
            Some(Mapped::Stopped(table)) => {
                let table = Arc::clone(table);
                self.skip(&table, ordinal, out);
                Ok(None)
            }
            None => Err(protocol_error(
                "a change of a table without a preceding relation message",
            )),
        }
    }

    /// Skips a change of a stopped table. The first skipped change is replaced by the record that informs readers.
    fn skip(&mut self, table: &str, ordinal: u32, out: &mut OutBatch) {
        let record = self.position.source.table(table);
        // A snapshot that is still to come contains the change.
        if record.is_none_or(|record| record.snapshot.is_none()) {
            metrics::counter!("trunkline_connector_skipped_changes_total", "connector" => self.setup.connector.to_string(),
                "table" => table.to_owned())
            .increment(1);
        }
        let pending = self.pending.is_present && self.pending.table == table;
        if pending && matches!(self.pending.missing, Some(Lacking::Stopped(_))) {
            return;
        }
        let state = record.and_then(|record| record.needs_snapshot.as_ref());
        if let Some(state) = state.filter(|state| !state.published) {
            let lacking = Lacking::Stopped(state.cause.clone());
            self.push(&RecordId::new(table, ordinal, &[]), Content::Missing(lacking), out);
        }
    }

    /// Publishes, outside of source transactions, which tables were stopped. It cannot wait for the next change of the
    /// table, which may never come.
    fn publish_stopped(&mut self, lsn: Lsn, out: &mut OutBatch) {
        // The WAL record that ends at `lsn` began before this LSN, and the next one begins at or after `lsn`.
        let at = Lsn(lsn.0.saturating_sub(1));
        if at < self.position.lsn {
            return;
        }
        let stopped = self.position.source.stopped().filter(|(_, state)| !state.published);
        let stopped: Vec<(String, String)> = stopped
            .map(|(table, state)| (table.to_owned(), state.cause.clone()))
            .collect();
        for (table, cause) in stopped {
            let ordinal = match self.position.ordinal {
                Some(ordinal) if self.position.lsn == at => ordinal.saturating_add(1),
                _ => 0,
            };
            let tx = Tx {
                source_epoch: self.position.source_epoch,
                position: at,
                ordinal,
                last: true,
                at_ms: 0,
            };
            self.setup.emitter.missing(&tx, &Missing::of_table(&table, &cause), out);
            (self.position.lsn, self.position.ordinal) = (at, Some(ordinal));
            self.stop_is_published(&table);
        }
    }

    fn stop_is_published(&mut self, table: &str) {
        self.position.source = self.position.source.with(|content| {
            let record = content.tables.get_mut(table);
            if let Some(state) = record.and_then(|record| record.needs_snapshot.as_mut()) {
                state.published = true;
            }
        });
    }

    /// Converts an insert or update. If the key changed, a tombstone of the old key precedes the row.
    fn row(&mut self, change: &Change, old: Option<Old<'_>>, new: Tuple<'_>, out: &mut OutBatch) {
        let tables = Arc::clone(&self.setup.tables);
        let table = tables.get(change.mapping.table).expect("a mapping's table exists");
        let mut row = std::mem::take(&mut self.row);
        let rejection = self
            .encode_row(table, &change.mapping, &Sent { old, new }, &mut row)
            .err();
        let has_key = rejection.as_ref().is_none_or(|rejection| rejection.has_key);
        let name = table.name.as_str();
        let mut record = RecordId::new(name, change.ordinal, if has_key { &row.key } else { &[] });
        if has_key && !row.old_key.is_empty() && row.old_key != row.key {
            let tombstone = RecordId {
                key: &row.old_key,
                other_key: &row.key,
                ..record
            };
            self.push(&tombstone, Content::Tombstone, out);
            record.ordinal += 1;
            record.other_key = &row.old_key;
        }
        let content = match rejection {
            None => Content::Row(&mut row.value),
            Some(rejection) => Content::Missing(Lacking::DeadLetter(rejection.reason)),
        };
        self.push(&record, content, out);
        self.row = row;
    }

    /// Encodes the key and value of a row, and its key before the change if it was sent.
    fn encode_row(
        &mut self,
        table: &Table,
        mapping: &Mapping,
        sent: &Sent<'_>,
        row: &mut EncodedRow,
    ) -> Result<(), Rejection> {
        let rejected = |has_key: bool| {
            move |error: Error| Rejection {
                has_key,
                reason: service::chain(&error),
            }
        };
        row.old_key.clear();
        let mut values = recycle(std::mem::take(&mut self.values));
        pick(sent.new, mapping, &mut values);
        let mut old_written = Ok(());
        if let Some(old) = sent.old {
            let mut before = recycle(std::mem::take(&mut self.before));
            pick(old.tuple, mapping, &mut before);
            fill_unchanged(&mut values, &before, old.is_full, table);
            old_written = table.write_key(&before, &mut row.old_key);
            self.before = recycle(before);
        }
        let written = old_written
            .and_then(|()| table.write_key(&values, &mut row.key))
            .map_err(rejected(false))
            .and_then(|()| {
                table
                    .write_value(&values, &mut self.buffers, &mut row.value)
                    .map_err(rejected(true))
            });
        match &written {
            Ok(()) => self.window.row(table, row, &values),
            Err(rejection) if rejection.has_key => self.window.gone(table, &row.key),
            Err(_) => {}
        }
        self.note_moved_rows(table);
        self.values = recycle(values);
        written
    }

    fn delete(&mut self, change: &Change, old: Old<'_>, out: &mut OutBatch) {
        let tables = Arc::clone(&self.setup.tables);
        let table = tables.get(change.mapping.table).expect("a mapping's table exists");
        let mut values = recycle(std::mem::take(&mut self.values));
        pick(old.tuple, &change.mapping, &mut values);
        let mut key = std::mem::take(&mut self.row.key);
        let written = table.write_key(&values, &mut key);
        self.values = recycle(values);
        let name = table.name.as_str();
        match written {
            Ok(()) => {
                self.window.gone(table, &key);
                self.push(&RecordId::new(name, change.ordinal, &key), Content::Tombstone, out);
            }
            Err(error) => {
                let lacking = Lacking::DeadLetter(service::chain(&error));
                self.push(
                    &RecordId::new(name, change.ordinal, &[]),
                    Content::Missing(lacking),
                    out,
                );
            }
        }
        self.row.key = key;
    }

    fn truncate(&mut self, change: &Change, out: &mut OutBatch) {
        let tables = Arc::clone(&self.setup.tables);
        let table = tables.get(change.mapping.table).expect("a mapping's table exists");
        let name = table.name.as_str();
        let mut key = std::mem::take(&mut self.row.key);
        key.clear();
        KeyWriter::new(&mut key).str(name).finish();
        self.push(&RecordId::new(name, change.ordinal, &key), Content::Tombstone, out);
        self.row.key = key;
        let lsn = self.transaction.as_ref().map_or(Lsn(0), |t| t.commit_lsn);
        self.truncated.insert(name.to_owned(), lsn);
        self.window.truncate(table);
        if let Some(record) = self.position.source.table(name).filter(|r| !r.partitions.is_empty()) {
            // The truncation gave the partitions new file nodes, which the next comparison with the catalog records.
            let mut record = record.clone();
            record.partitions.values_mut().for_each(|p| p.file_node = 0);
            self.set_record(name, record);
        }
    }

    /// Emits the pending record and makes `record` pending, unless it is already published. Swaps the value's buffer.
    fn push(&mut self, record: &RecordId<'_>, content: Content<'_>, out: &mut OutBatch) {
        let Some(transaction) = &self.transaction else { return };
        if self.position.contains(transaction.commit_lsn, record.ordinal) {
            return;
        }
        self.emit_pending(false, out);
        let pending = &mut self.pending;
        pending.is_present = true;
        pending.ordinal = record.ordinal;
        record.table.clone_into(&mut pending.table);
        // The caller keeps its key buffers, so the keys are copied.
        record.key.clone_into(&mut pending.key);
        record.other_key.clone_into(&mut pending.other_key);
        pending.tombstone = !matches!(content, Content::Row(_));
        pending.missing = None;
        match content {
            Content::Row(value) => std::mem::swap(&mut pending.value, value),
            Content::Tombstone => {}
            Content::Missing(lacking) => pending.missing = Some(lacking),
        }
    }

    /// Emits the pending record, if there is one.
    fn emit_pending(&mut self, last: bool, out: &mut OutBatch) {
        let Some(transaction) = &self.transaction else { return };
        if !std::mem::take(&mut self.pending.is_present) {
            return;
        }
        let tx = Tx {
            source_epoch: self.position.source_epoch,
            position: transaction.commit_lsn,
            ordinal: self.pending.ordinal,
            last,
            at_ms: transaction.at_ms,
        };
        self.position.lsn = transaction.commit_lsn;
        self.position.ordinal = Some(self.pending.ordinal);
        let (pending, emitter) = (&self.pending, &mut self.setup.emitter);
        match &pending.missing {
            Some(Lacking::DeadLetter(reason)) => {
                let missing = Missing::of_row(&pending.table, &pending.key, reason);
                emitter.dead_letter(&tx, &missing, out);
            }
            Some(Lacking::Stopped(cause)) => {
                emitter.missing(&tx, &Missing::of_table(&pending.table, cause), out);
                let table = pending.table.clone();
                self.stop_is_published(&table);
            }
            None => {
                let moved = if pending.tombstone {
                    headers::MOVED_TO
                } else {
                    headers::MOVED_FROM
                };
                let other_key = pending.other_key.as_slice();
                let row = Published {
                    table: &pending.table,
                    key: &pending.key,
                    value: (!pending.tombstone).then_some(pending.value.as_slice()),
                    header: (!other_key.is_empty()).then_some((moved, other_key)),
                };
                emitter.emit(&tx, &row, out);
            }
        }
    }
}

/// Whether a relation is mapped to this table.
fn is_mapping_of(tables: &[Arc<Table>], mapped: &Mapped, table: &str) -> bool {
    match mapped {
        Mapped::Table(mapping) => tables.get(mapping.table).is_some_and(|t| t.name.as_str() == table),
        Mapped::Stopped(name) => **name == *table,
        Mapped::Undeclared => false,
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

#[cfg(test)]
mod tests;
