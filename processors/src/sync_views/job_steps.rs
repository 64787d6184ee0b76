//! Steps of jobs. A TRUNCATE, the end of a snapshot chunk, or a change of the rules can concern any number of rows, and a
//! step must fit a transaction.
//!
//! Other records are processed between the steps of a job. Before a record reads a row, the jobs that remove rows are
//! applied to that row ([`SyncViews::sweep_row`]), so that no record notices that a job has not reached its row yet. No
//! transaction end marker is written while a job exists, so that no part of a job is ever visible (I3).

use super::jobs::{Job, Jobs, Phase, Rebuild, TableSweep, Work};
use super::state::{Missing, Row, Snapshot, StateError, damaged};
use super::{SyncViews, Target, put_row};
use crate::input::{ChangeRecord, KeySpan, Sweep, find, keys};
use crate::step::Step;
use schemas::version::Version;
use std::sync::Arc;
use streams::Result;
use views::rules::{Relation, ViewOutputs};

/// Maximum length of the JSON of a row that a job writes.
const REBUILT_BYTES_MAX: usize = 900_000;

impl SyncViews {
    /// Starts the job of a TRUNCATE or of the end of a chunk, and does its first step. Most jobs end with it.
    pub(super) fn start_sweep(&mut self, input: &ChangeRecord<'_>, step: &mut Step<'_>) -> Result<()> {
        let Some(sweep) = Sweep::of(input) else { return Ok(()) };
        // At or below the floor, the rows of the chunk may have been ignored, so the chunk proves nothing about missing
        // changes.
        let low = sweep.chunk.as_ref().map(|end| sweep.low(end));
        let covers = low.is_none_or(|low| low > self.floor);
        if let (Some(end), Some(low)) = (&sweep.chunk, low)
            && end.is_first()
            && covers
        {
            // A change that the chunk itself lacks has its position, which may be just below `low`.
            let of_chunk = Version { ordinal: 0, ..sweep.at };
            let (id, low) = (end.snapshot.clone(), low.min(of_chunk).to_string());
            self.stream.snapshots.insert(sweep.table.clone(), Snapshot { id, low });
            self.stream_dirty = true;
        }
        if !covers {
            self.stream_dirty |= self.stream.snapshots.remove(&sweep.table).is_some();
        }
        self.jobs.push(Job::new(Work::Sweep(TableSweep { sweep, covers })));
        self.continue_jobs(step)
    }

    /// Continues the jobs until they have ended, or this call of the processor has done the work of a step.
    pub(super) fn continue_jobs(&mut self, step: &mut Step<'_>) -> Result<()> {
        while let Some(mut queued) = self.jobs.take() {
            if !self.continue_job(&mut queued.job, step)? {
                self.jobs.put_back(queued);
                continue;
            }
            Jobs::end(&queued, step.state);
            match &queued.job.work {
                Work::Sweep(TableSweep { sweep, .. }) => self.end_sweep(sweep, step)?,
                Work::Rebuild(rebuild) => self.views_changed(&rebuild.table, &rebuild.removed, step.output),
            }
        }
        Ok(())
    }

    /// Continues a job, and returns whether it has ended.
    fn continue_job(&mut self, job: &mut Job, step: &mut Step<'_>) -> Result<bool> {
        let spans = job.spans();
        if job.phase == Phase::Rows {
            let next = match &job.work {
                Work::Sweep(of) => self.remove_rows(&of.sweep, &spans, &job.cursor, step)?,
                Work::Rebuild(rebuild) => self.rebuild_rows(rebuild, &spans, &job.cursor, step)?,
            };
            if let Some(next) = next {
                job.continue_at(next).map_err(|e| damaged(&e))?;
                return Ok(false);
            }
            (job.phase, job.cursor) = (Phase::Missing, String::new());
        }
        let next = match &job.work {
            Work::Sweep(of) if of.covers && self.stream.missing.contains_key(&of.sweep.table) => {
                self.remove_missing_entries(&of.sweep, &spans, &job.cursor, step)?
            }
            Work::Rebuild(rebuild) if self.config.rules.relation(&rebuild.table).is_none() => {
                self.forget_missing_entries(&spans, &job.cursor, step)?
            }
            Work::Sweep(_) | Work::Rebuild(_) => None,
        };
        if let Some(next) = next {
            job.continue_at(next).map_err(|e| damaged(&e))?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Called when the job of a chunk end has ended. The last chunk of a snapshot proves, together with all chunks before it,
    /// the state of the whole table.
    fn end_sweep(&mut self, sweep: &Sweep, step: &mut Step<'_>) -> Result<()> {
        let Some(end) = sweep.chunk.as_ref().filter(|end| end.last) else {
            return Ok(());
        };
        if let Some(snapshot) = self
            .stream
            .snapshots
            .remove(&sweep.table)
            .filter(|of| of.id == end.snapshot)
        {
            self.stream_dirty = true;
            let low: Option<Version> = snapshot.low.parse().ok();
            let low = low.ok_or_else(|| damaged(&StateError::Damaged("the version of a snapshot")))?;
            let key = keys::missing_key(&keys::whole_table_key(&sweep.table));
            let entry = step.state.get(&key)?.map(|value| Missing::decode(&value));
            if let Some(entry) = entry
                && entry.map_err(|e| damaged(&e))?.newest < low
            {
                self.cover(sweep, &key, step)?;
            }
        }
        // Clears a mark that was set by an earlier release, which had no missing entries.
        self.update_stale_mark(&sweep.table, step.output);
        Ok(())
    }

    /// Removes rows, and returns the key at which to continue.
    fn remove_rows(
        &mut self,
        sweep: &Sweep,
        spans: &[KeySpan],
        cursor: &str,
        step: &mut Step<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let prefix = keys::table_prefix(&sweep.table).len();
        let mut failed = None;
        let found = find(
            step.state,
            spans,
            cursor.as_bytes(),
            &mut self.jobs.budget,
            &mut |key, value| {
                is_removed(sweep, keys::row_key_of(key, prefix), value).unwrap_or_else(|error| {
                    failed = Some(error);
                    false
                })
            },
        )?;
        if let Some(error) = failed {
            return Err(damaged(&error));
        }
        for (state_key, value) in &found.rows {
            self.remove_row(sweep, state_key, value, step)?;
        }
        Ok(found.next)
    }

    /// Removes a row. Its new version is that of the record that removes it.
    fn remove_row(&mut self, sweep: &Sweep, state_key: &[u8], value: &[u8], step: &mut Step<'_>) -> Result<()> {
        let mut row = Row::decode(value).map_err(|e| damaged(&e))?;
        let row_key = keys::row_key_of(state_key, keys::table_prefix(&sweep.table).len());
        for written in std::mem::take(&mut row.written) {
            self.write_removal(&written, row_key, sweep.at, step.output);
        }
        row.version = sweep.at;
        row.deleted_ms = Some(step.context.now);
        row.image = None;
        row.kept.clear();
        put_row(state_key, None, &row, step.state);
        Ok(())
    }

    /// Removes missing entries, and returns the key at which to continue.
    fn remove_missing_entries(
        &mut self,
        sweep: &Sweep,
        spans: &[KeySpan],
        cursor: &str,
        step: &mut Step<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let prefix = keys::missing_prefix(&sweep.table).len();
        let spans = missing_spans(spans);
        let mut failed = None;
        let found = find(
            step.state,
            &spans,
            cursor.as_bytes(),
            &mut self.jobs.budget,
            &mut |key, value| match Missing::decode(value) {
                Ok(missing) => sweep.covers(keys::row_key_of(key, prefix), missing.newest),
                Err(error) => {
                    failed = Some(error);
                    false
                }
            },
        )?;
        if let Some(error) = failed {
            return Err(damaged(&error));
        }
        for (key, _) in &found.rows {
            self.cover(sweep, key, step)?;
        }
        Ok(found.next)
    }

    /// Writes rows as the rules require now, and returns the key at which to continue.
    fn rebuild_rows(
        &mut self,
        rebuild: &Rebuild,
        spans: &[KeySpan],
        cursor: &str,
        step: &mut Step<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let table = &rebuild.table;
        let relation = self.config.rules.relation(table).cloned();
        if rebuild.is_new && cursor.is_empty() && relation.is_some() {
            // The rows of the table were not read before, so any of them may be missing.
            tracing::warn!(table, "views are stale until the table is snapshotted");
            self.record_missing(table, &keys::whole_table_key(table), self.floor, step)?;
        }
        let mut failed = None;
        let found = find(
            step.state,
            spans,
            cursor.as_bytes(),
            &mut self.jobs.budget,
            &mut |_, value| match Row::header(value) {
                Ok(header) => relation.is_none() || !header.is_deleted,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            },
        )?;
        if let Some(error) = failed {
            return Err(damaged(&error));
        }
        for (state_key, value) in &found.rows {
            let row = Row::decode(value).map_err(|e| damaged(&e))?;
            match &relation {
                Some(relation) => self.rebuild_row(relation, state_key, row, step)?,
                None => self.forget_row(table, state_key, &row, step),
            }
        }
        Ok(found.next)
    }

    /// Writes a row as the rules require now. If its image is not sufficient, the row lacks its last change.
    fn rebuild_row(
        &mut self,
        relation: &Arc<Relation>,
        state_key: &[u8],
        mut row: Row,
        step: &mut Step<'_>,
    ) -> Result<()> {
        let table = relation.name();
        let row_key = keys::row_key_of(state_key, keys::table_prefix(table).len());
        let mut outputs = ViewOutputs::default();
        let evaluated = match &row.image {
            None => Err("the state does not contain its columns".to_owned()),
            Some(image) => match self.bindings.stored(image.schema, relation, step.state)? {
                Ok(bound) => bound
                    .evaluate(&image.body, &row.kept, &mut outputs)
                    .map_err(|e| e.to_string())
                    .and_then(|_| check_size(&outputs)),
                Err(reason) => Err(reason),
            },
        };
        if let Err(reason) = evaluated {
            tracing::debug!(table, row_key, reason, "row cannot be rebuilt");
            // Rows of removed views are removed in any case.
            let version = row.version;
            let exists = |view: &str| relation.views().any(|name| name == view);
            for removed in row.written.extract_if(.., |written| !exists(&written.view)) {
                self.write_removal(&removed, row_key, version, step.output);
            }
            step.state.put(state_key, row.encode());
            return self.record_missing(table, state_key, version, step);
        }
        let target = Target {
            relation,
            row_key,
            version: row.version,
        };
        self.write_difference(&target, &mut row.written, &outputs, step.output);
        step.state.put(state_key, row.encode());
        Ok(())
    }

    /// Removes a row of a table that no view reads any more, from the views and from the state.
    fn forget_row(&mut self, table: &str, state_key: &[u8], row: &Row, step: &mut Step<'_>) {
        let row_key = keys::row_key_of(state_key, keys::table_prefix(table).len());
        for written in &row.written {
            self.write_removal(written, row_key, row.version, step.output);
        }
        if let Some(at) = row.deleted_ms {
            step.state.delete(&keys::deleted_key(at, state_key));
        }
        step.state.delete(state_key);
        self.floor = self.floor.max(row.version);
        self.stream_dirty = true;
    }

    /// Removes the missing entries of a table that no view reads any more.
    fn forget_missing_entries(
        &mut self,
        spans: &[KeySpan],
        cursor: &str,
        step: &mut Step<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let (spans, cursor) = (missing_spans(spans), cursor.as_bytes());
        let found = find(step.state, &spans, cursor, &mut self.jobs.budget, &mut |_, _| true)?;
        for (key, _) in &found.rows {
            step.state.delete(key);
        }
        Ok(found.next)
    }

    /// Applies the jobs to a row that a record is about to read, and to its missing entry, as if they had ended before the
    /// record.
    pub(super) fn sweep_row(&mut self, table: &str, state_key: &[u8], step: &mut Step<'_>) -> Result<()> {
        if self.jobs.is_empty() {
            return Ok(());
        }
        let row_key = keys::row_key_of(state_key, keys::table_prefix(table).len());
        let missing_key = keys::missing_key(state_key);
        for TableSweep { sweep, covers } in self.jobs.sweeps_of(table) {
            let row = step.state.get(state_key)?.map(std::borrow::Cow::into_owned);
            if let Some(value) = row
                && is_removed(&sweep, row_key, &value).map_err(|e| damaged(&e))?
            {
                self.remove_row(&sweep, state_key, &value, step)?;
            }
            if !covers || !self.stream.missing.contains_key(table) {
                continue;
            }
            let entry = step.state.get(&missing_key)?.map(|value| Missing::decode(&value));
            if let Some(entry) = entry
                && sweep.covers(row_key, entry.map_err(|e| damaged(&e))?.newest)
            {
                self.cover(&sweep, &missing_key, step)?;
            }
        }
        Ok(())
    }
}

/// A rejected output would stop the job, so a row that the log may reject is not written.
fn check_size(outputs: &ViewOutputs) -> std::result::Result<(), String> {
    let largest = outputs.iter().map(|output| output.json.len()).max();
    match largest.filter(|bytes| *bytes > REBUILT_BYTES_MAX) {
        Some(bytes) => Err(format!(
            "the row has {bytes} bytes, but the limit is {REBUILT_BYTES_MAX}"
        )),
        None => Ok(()),
    }
}

/// The ranges of the keys of missing entries for ranges of rows.
fn missing_spans(spans: &[KeySpan]) -> Vec<KeySpan> {
    let of_entries = |span: &KeySpan| KeySpan {
        from: keys::missing_key(&span.from),
        end: keys::missing_key(&span.end),
    };
    spans.iter().map(of_entries).collect()
}

/// Whether a sweep removes the row with this value. Only the value's header is decoded.
fn is_removed(sweep: &Sweep, row_key: &str, value: &[u8]) -> Result<bool, StateError> {
    let header = Row::header(value)?;
    Ok(!header.is_deleted && sweep.removes(row_key, header.version))
}
