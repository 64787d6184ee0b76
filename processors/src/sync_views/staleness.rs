//! Missing entries and stale marks: which views lack changes, and for how long.
//!
//! A change that became a dead letter leaves a missing entry for its row, and the views of a table are marked stale in
//! every partition while a row of the table has an entry. An entry is removed only by a record that proves the state of
//! the row: a newer change that contains the whole row or deletes it, the redriven dead letter, or a snapshot chunk or
//! truncation whose range contains the row. A change that omits columns does not prove the values of those columns. The
//! rules are in docs/protocol/view-sync.md, "Stale rows", and ADR 8.

use super::jobs::Rebuild;
use super::key_change::Applied;
use super::state::{Missing, Row, damaged};
use super::{SyncViews, put_row};
use crate::input::{self, ChangeRecord, KeyChange, Kind, LoadedMark, Sweep, keys};
use crate::step::Step;
use event_log::{Millis, RecordRef};
use schemas::headers;
use schemas::version::Version;
use streams::{Output, Result, State};

impl SyncViews {
    /// Updates the missing entries of the rows that a change concerns. A row that contains values of its old key also
    /// lacks the changes that the old key lacks.
    pub(super) fn applied(
        &mut self,
        input: &ChangeRecord<'_>,
        applied: Applied<'_, '_>,
        step: &mut Step<'_>,
    ) -> Result<()> {
        let state_key = &applied.change.state_key;
        let Some(origin) = applied.origin else {
            // The tombstone of a key change proves nothing, because the next record may contain values that were kept
            // from this row.
            let leaves = applied.change.key_change == KeyChange::Leaves;
            return self.resolve_missing(input, state_key, applied.complete && !leaves, step);
        };
        if !applied.complete && step.state.get(&keys::missing_key(&origin.state_key))?.is_some() {
            self.record_missing(input.table, state_key, input.version, step)?;
        } else {
            // The row contains no values of another row that had the new key before.
            self.resolve_missing(input, state_key, true, step)?;
        }
        self.resolve_missing(input, &origin.state_key, true, step)?;
        if let Some(mut row) = origin.row.filter(|row| !row.kept.is_empty()) {
            row.kept.clear();
            step.state.put(&origin.state_key, row.encode());
        }
        Ok(())
    }

    /// Adds a missing entry for the row of a record that became a dead letter. Without its TRUNCATE or the end of a chunk,
    /// any row of the table may be one that does not exist any more.
    pub(super) fn record_missed(&mut self, input: &ChangeRecord<'_>, step: &mut Step<'_>) -> Result<()> {
        let whole_table;
        let state_key = match &input.kind {
            Kind::Row(change) => &change.state_key,
            Kind::Missing { state_key } => state_key,
            Kind::Truncate | Kind::ChunkEnd(_) => {
                whole_table = keys::whole_table_key(input.table);
                &whole_table
            }
            Kind::Loaded(_) => return Ok(()),
        };
        self.record_missing(input.table, state_key, input.version, step)
    }

    /// Processes a record that cannot be read: adds a missing entry for its row or table, if its key contains them. Its
    /// header `tx` may be readable, and then the record still counts for its source transaction. Returns its commit time.
    pub(super) fn record_unreadable(&mut self, record: RecordRef<'_>, step: &mut Step<'_>) -> Result<Millis> {
        let rules = self.config.rules.clone();
        let tx = input::tx_of(&record, rules.event());
        if let Some(tx) = &tx {
            if tx.source_epoch > self.stream.source_epoch {
                self.begin_source_epoch(tx.source_epoch);
            }
            self.last = tx.version();
            if record.header(headers::REPLAYED).is_none() {
                self.stream_dirty |= self.stream.open == tx.last;
                self.stream.open = !tx.last;
            }
        }
        let of_table = |table| (table, keys::whole_table_key(table));
        let found = input::row_of(&record, rules.event());
        let found = found.or_else(|| input::swept_table_of(&record, rules.event()).map(of_table));
        if let Some((table, state_key)) = found {
            // Without a readable version, the record is at least as new as the record before it.
            self.record_missing(table, &state_key, self.last.max(self.floor), step)?;
        }
        Ok(tx.map_or(record.timestamp(), |tx| tx.at_ms))
    }

    /// Adds a change to the missing entry of a row.
    pub(super) fn record_missing(
        &mut self,
        table: &str,
        state_key: &[u8],
        version: Version,
        step: &mut Step<'_>,
    ) -> Result<()> {
        if self.config.rules.relation(table).is_none() {
            return Ok(());
        }
        self.sweep_row(table, state_key, step)?;
        let key = keys::missing_key(state_key);
        let known = match step.state.get(&key)? {
            Some(bytes) => Some(Missing::decode(&bytes).map_err(|e| damaged(&e))?),
            None => None,
        };
        let missing = match known {
            Some(known) => Missing {
                newest: known.newest.max(version),
                only: known.only && known.newest == version,
            },
            None => {
                *self.stream.missing.entry(table.to_owned()).or_default() += 1;
                self.stream_dirty = true;
                Missing {
                    newest: version,
                    only: true,
                }
            }
        };
        step.state.put(&key, missing.encode());
        self.update_stale_mark(table, step.output);
        Ok(())
    }

    /// Removes the missing entry of a row if the change that was applied proves that it lacks nothing; `complete` if the
    /// row contains no values of earlier changes.
    pub(super) fn resolve_missing(
        &mut self,
        input: &ChangeRecord<'_>,
        state_key: &[u8],
        complete: bool,
        step: &mut Step<'_>,
    ) -> Result<()> {
        if !self.stream.missing.contains_key(input.table) {
            return Ok(());
        }
        let key = keys::missing_key(state_key);
        let Some(bytes) = step.state.get(&key)? else {
            return Ok(());
        };
        let missing = Missing::decode(&bytes).map_err(|e| damaged(&e))?;
        let is_missing_change = missing.only && missing.newest == input.version;
        if is_missing_change || (complete && missing.newest <= input.version) {
            self.remove_missing(input.table, &key, step.state, step.output);
        }
        Ok(())
    }

    /// Removes a missing entry, because a sweep proves the state of its row.
    pub(super) fn cover(&mut self, sweep: &Sweep, key: &[u8], step: &mut Step<'_>) -> Result<()> {
        // The state has no such row, or it was deleted before the missing change, and the sweep proves that the row is
        // deleted. Store that, because otherwise redriving the dead letter of an earlier change would restore the row (I4).
        let state_key = keys::row_of_missing_key(key);
        let row = match step.state.get(&state_key)? {
            Some(bytes) => Row::decode(&bytes).map_err(|e| damaged(&e))?,
            None => Row {
                deleted_ms: Some(step.context.now),
                ..Row::default()
            },
        };
        let is_older = row.deleted_ms.is_some() && row.version < sweep.at;
        if state_key != keys::whole_table_key(&sweep.table) && is_older {
            let version = sweep.at;
            put_row(&state_key, row.deleted_ms, &Row { version, ..row }, step.state);
        }
        self.remove_missing(&sweep.table, key, step.state, step.output);
        Ok(())
    }

    fn remove_missing(&mut self, table: &str, key: &[u8], state: &mut State, output: &mut Output) {
        state.delete(key);
        self.stream_dirty = true;
        if let Some(count) = self.stream.missing.get_mut(table) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.stream.missing.remove(table);
                self.update_stale_mark(table, output);
            }
        }
    }

    /// Writes the stale marks of a table again if the last ones are no longer correct.
    pub(super) fn update_stale_mark(&mut self, table: &str, output: &mut Output) {
        let stale = self.stream.missing.contains_key(table);
        if stale == self.stream.stale.contains(table) {
            return;
        }
        // If no view reads the table any more, `views_changed` clears the marks.
        let Some(relation) = self.config.rules.relation(table).cloned() else {
            return;
        };
        if stale {
            self.stream.stale.insert(table.to_owned());
        } else {
            self.stream.stale.remove(table);
        }
        self.stream_dirty = true;
        for view in relation.views() {
            self.write_stale_mark(view, stale, output);
        }
    }

    /// Writes a mark to every partition, because a device reads only some partitions.
    fn write_stale_mark(&mut self, view: &str, stale: bool, output: &mut Output) {
        for partition in 0..self.config.partitions {
            self.view_log.stale_mark(view, stale, partition, output);
            self.stream.touched.insert(partition);
        }
        self.stream_dirty = true;
    }

    /// Called with the loaded mark of a task of the processor that writes the input.
    pub(super) fn task_loaded(&mut self, mark: LoadedMark, processor: &str, output: &mut Output) {
        self.stream_dirty = true;
        if self.stream.loaded_by.add(mark) {
            self.table_loaded(processor, output);
        }
    }

    /// Called when a snapshot of a table has ended. The first one makes its views loaded.
    pub(super) fn table_loaded(&mut self, table: &str, output: &mut Output) {
        let loaded = self.stream.loaded.get_or_insert_default();
        if !loaded.insert(table.to_owned()) {
            return;
        }
        tracing::info!(table, "views are loaded");
        self.stream_dirty = true;
        let relation = self.config.rules.relation(table).cloned();
        for view in relation.iter().flat_map(|relation| relation.views()) {
            self.write_loaded_mark(view, true, output);
        }
    }

    /// Writes a mark to every partition. It becomes visible together with the rows of the snapshot.
    fn write_loaded_mark(&mut self, view: &str, loaded: bool, output: &mut Output) {
        for partition in 0..self.config.partitions {
            self.view_log.loaded_mark(view, loaded, partition, output);
            self.stream.touched.insert(partition);
        }
        self.stream_dirty = true;
    }

    /// Updates the marks of the views of a table after the rules have changed.
    pub(super) fn views_changed(&mut self, rebuild: &Rebuild, output: &mut Output) {
        let table = rebuild.table.as_str();
        let (is_stale, is_loaded) = (self.stream.stale.contains(table), self.stream.is_loaded(table));
        for view in &rebuild.removed {
            if is_stale {
                self.write_stale_mark(view, false, output);
            }
            if is_loaded {
                self.write_loaded_mark(view, false, output);
            }
        }
        let Some(relation) = self.config.rules.relation(table).cloned() else {
            self.stream.stale.remove(table);
            self.stream.missing.remove(table);
            if let Some(loaded) = &mut self.stream.loaded {
                loaded.remove(table);
            }
            self.stream_dirty = true;
            return;
        };
        for view in relation.views() {
            // The marks of a view that read another table may be set.
            let is_moved = rebuild.moved.iter().any(|moved| moved == view);
            if is_stale || is_moved {
                self.write_stale_mark(view, is_stale, output);
            }
            if is_loaded || is_moved {
                self.write_loaded_mark(view, is_loaded, output);
            }
        }
    }
}
