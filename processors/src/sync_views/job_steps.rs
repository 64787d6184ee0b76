//! Steps of jobs. A TRUNCATE, the end of a snapshot chunk, or a change of the rules can concern any number of rows, and a
//! step must fit a transaction.
//!
//! Other records are processed between the steps of a job. Before a record reads a row, the jobs that remove rows are
//! applied to that row ([`SyncViews::sweep_row`]), so that no record notices that a job has not reached its row yet. No
//! transaction end marker is written while a job exists, so that no part of a job is ever visible (I3).

use super::jobs::{Phase, Rebuild, TableSweep, Task, Work, sweeps_of};
use super::state::{Missing, Row, Snapshot, StateError, damaged};
use super::{SyncViews, Target, put_row};
use crate::input::{AfterRejection, ChangeRecord, Found, Job, KeySpan, Replayed, Sweep, find, keys};
use crate::step::Step;
use schemas::version::Version;
use std::sync::Arc;
use streams::{RejectedTimer, Result};
use views::rules::{Relation, ViewOutputs};

/// Maximum length of the JSON of a row that a job writes.
const REBUILT_BYTES_MAX: usize = 900_000;

impl SyncViews {
    /// Adds the job of a TRUNCATE or of the end of a chunk. Its first step belongs to the record, and most jobs end with it.
    pub(super) fn add_sweep(&mut self, input: &ChangeRecord<'_>) {
        let Some(sweep) = Sweep::of(input) else { return };
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
        let redriven = input.replayed == Some(Replayed::Redrive);
        self.jobs.push(Work::new(Task::Sweep(TableSweep {
            sweep,
            covers,
            redriven,
        })));
    }

    /// Continues the jobs until they have ended, or this call of the processor has done the work of a step.
    pub(super) fn continue_jobs(&mut self, step: &mut Step<'_>) -> Result<()> {
        while let Some(mut queued) = self.jobs.take() {
            let has_ended = self.continue_job(&mut queued.job, step)?;
            match self
                .jobs
                .put_back_or_end(queued, has_ended, step.state)
                .map(|work| work.task)
            {
                Some(Task::Sweep(of)) => self.end_sweep(&of, step)?,
                Some(Task::Rebuild(rebuild)) => self.views_changed(&rebuild, step.output),
                None => {}
            }
        }
        Ok(())
    }

    /// Continues a job, and returns whether it has ended.
    fn continue_job(&mut self, job: &mut Job<Work>, step: &mut Step<'_>) -> Result<bool> {
        if job.work.phase == Phase::Rows {
            self.begin_rebuild(job, step)?;
            let found = self.find_rows(job, step)?;
            for (state_key, value) in &found.rows {
                match &job.work.task {
                    Task::Sweep(of) => self.remove_row(&of.sweep, state_key, value, step)?,
                    Task::Rebuild(rebuild) => self.rebuild_row(rebuild, state_key, value, step)?,
                }
            }
            if job.moves_on(found.next).map_err(|e| damaged(&e))? {
                return Ok(false);
            }
            (job.work.phase, job.cursor) = (Phase::Missing, String::new());
        }
        let found = self.find_entries(job, step)?;
        for (key, _) in &found.rows {
            match &job.work.task {
                Task::Sweep(of) => self.cover(&of.sweep, key, step)?,
                Task::Rebuild(_) => step.state.delete(key),
            }
        }
        Ok(!job.moves_on(found.next).map_err(|e| damaged(&e))?)
    }

    /// Called when the effects of a job's step, which was alone in its transaction, were rejected. The row that causes it is
    /// searched with smaller steps. It is skipped, and its views are stale until it is written again. So one row becomes
    /// one dead letter, and the job continues. If it is the marks at the end of the job that are rejected, the job ends
    /// without them: it would otherwise be repeated without end.
    pub(super) fn step_rejected(&mut self, step: &mut Step<'_>) -> Result<RejectedTimer> {
        match self.jobs.rejected() {
            AfterRejection::Nothing => Ok(RejectedTimer::DeadLetter),
            AfterRejection::FewerRows => Ok(RejectedTimer::Retried),
            AfterRejection::SkipsRow => {
                if let Some(mut queued) = self.jobs.take() {
                    let has_ended = self.skip_row(&mut queued.job, step)?;
                    if let Some(work) = self.jobs.put_back_or_end(queued, has_ended, step.state) {
                        let table = work.table();
                        tracing::error!(
                            table,
                            "job ended without the marks of its views, because they were rejected"
                        );
                    }
                }
                Ok(RejectedTimer::DeadLetter)
            }
        }
    }

    /// Skips the row or entry of the next step. Returns whether there is none, so that only the end of the job is left.
    fn skip_row(&mut self, job: &mut Job<Work>, step: &mut Step<'_>) -> Result<bool> {
        let is_row = job.work.phase == Phase::Rows;
        let found = if is_row {
            self.find_rows(job, step)?
        } else {
            self.find_entries(job, step)?
        };
        let table = job.work.table().to_owned();
        for (state_key, value) in found.rows.iter().filter(|_| is_row) {
            let version = match &job.work.task {
                Task::Sweep(of) => of.sweep.at,
                Task::Rebuild(_) => Row::header(value).map_err(|e| damaged(&e))?.version,
            };
            let row_key = keys::row_key_of(state_key, keys::table_prefix(&table).len());
            tracing::error!(
                table,
                row_key,
                "row skipped by a job, because its removal or change was rejected"
            );
            self.record_missing(&table, state_key, version, step)?;
        }
        if is_row {
            let continues = job.moves_on(found.next).map_err(|e| damaged(&e))?;
            if !continues {
                (job.work.phase, job.cursor) = (Phase::Missing, String::new());
            }
            // A step without rows was rejected because of what followed them.
            return if continues || !found.rows.is_empty() {
                Ok(false)
            } else {
                self.skip_row(job, step)
            };
        }
        // The key directly after the last entry, which must not be found again.
        let after = found.rows.last().map(|(key, _)| [key.as_slice(), b"\0"].concat());
        let has_entry = job.moves_on(found.next.or(after)).map_err(|e| damaged(&e))?;
        Ok(!has_entry)
    }

    /// The rows of the next step.
    fn find_rows(&mut self, job: &Job<Work>, step: &Step<'_>) -> Result<Found> {
        let has_relation = self.config.rules.relation(job.work.table()).is_some();
        let prefix = keys::table_prefix(job.work.table()).len();
        let (spans, cursor) = (job.work.spans(), job.cursor.as_bytes());
        let selects = &mut |key: &[u8], value: &[u8]| match &job.work.task {
            Task::Sweep(of) => {
                is_removed(&of.sweep, keys::row_key_of(key, prefix), value).map_err(|error| damaged(&error))
            }
            Task::Rebuild(_) => {
                let header = Row::header(value).map_err(|error| damaged(&error))?;
                Ok(!has_relation || !header.is_deleted)
            }
        };
        find(step.state, &spans, cursor, &mut self.jobs.budget, selects)
    }

    /// The missing entries that the next step removes.
    fn find_entries(&mut self, job: &Job<Work>, step: &Step<'_>) -> Result<Found> {
        let removes_entries = match &job.work.task {
            Task::Sweep(of) => of.covers && self.stream.missing.contains_key(&of.sweep.table),
            Task::Rebuild(rebuild) => self.config.rules.relation(&rebuild.table).is_none(),
        };
        if !removes_entries {
            return Ok(Found::default());
        }
        let prefix = keys::missing_prefix(job.work.table()).len();
        let (spans, cursor) = (missing_spans(&job.work.spans()), job.cursor.as_bytes());
        let selects = &mut |key: &[u8], value: &[u8]| match &job.work.task {
            Task::Sweep(of) => {
                let missing = Missing::decode(value).map_err(|error| damaged(&error))?;
                Ok(of.sweep.covers(keys::row_key_of(key, prefix), missing.newest))
            }
            Task::Rebuild(_) => Ok(true),
        };
        find(step.state, &spans, cursor, &mut self.jobs.budget, selects)
    }

    /// Called when the job of a chunk end has ended. The last chunk of a snapshot proves, together with all chunks before it,
    /// the state of the whole table.
    fn end_sweep(&mut self, of: &TableSweep, step: &mut Step<'_>) -> Result<()> {
        let TableSweep {
            sweep,
            covers,
            redriven,
        } = of;
        let whole_table = keys::missing_key(&keys::whole_table_key(&sweep.table));
        let entry = step.state.get(&whole_table)?.map(|value| Missing::decode(&value));
        let entry = entry.transpose().map_err(|e| damaged(&e))?;
        // The table lacked only this record.
        let is_missing = entry.is_some_and(|missing| missing.only && missing.newest == sweep.at);
        if *covers && *redriven && is_missing {
            self.cover(sweep, &whole_table, step)?;
        }
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
            self.table_loaded(&sweep.table, step.output);
            let low: Option<Version> = snapshot.low.parse().ok();
            let low = low.ok_or_else(|| damaged(&StateError::Damaged("the version of a snapshot")))?;
            let entry = step.state.get(&whole_table)?.map(|value| Missing::decode(&value));
            let entry = entry.transpose().map_err(|e| damaged(&e))?;
            if entry.is_some_and(|missing| missing.newest < low) {
                self.cover(sweep, &whole_table, step)?;
            }
        }
        // Clears a mark that was set by an earlier release, which had no missing entries.
        self.update_stale_mark(&sweep.table, step.output);
        Ok(())
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

    /// Before the first step of a rebuild: the rows of a table that no view read before are not in the state, so any of them
    /// may be missing.
    fn begin_rebuild(&mut self, job: &Job<Work>, step: &mut Step<'_>) -> Result<()> {
        let Task::Rebuild(rebuild) = &job.work.task else {
            return Ok(());
        };
        let table = &rebuild.table;
        if !rebuild.is_new || !job.cursor.is_empty() || self.config.rules.relation(table).is_none() {
            return Ok(());
        }
        tracing::warn!(table, "views are stale until the table is snapshotted");
        self.record_missing(table, &keys::whole_table_key(table), self.floor, step)
    }

    /// Writes a row as the rules require now.
    fn rebuild_row(&mut self, rebuild: &Rebuild, state_key: &[u8], value: &[u8], step: &mut Step<'_>) -> Result<()> {
        let row = Row::decode(value).map_err(|e| damaged(&e))?;
        match self.config.rules.relation(&rebuild.table).cloned() {
            Some(relation) => self.rewrite_row(&relation, state_key, row, step),
            None => {
                self.forget_row(&rebuild.table, state_key, &row, step);
                Ok(())
            }
        }
    }

    /// Writes a row as the rules require now. If its image is not sufficient, the row lacks its last change.
    fn rewrite_row(
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

    /// Applies the jobs to a row that a record is about to read, and to its missing entry, as if they had ended before the
    /// record.
    pub(super) fn sweep_row(&mut self, table: &str, state_key: &[u8], step: &mut Step<'_>) -> Result<()> {
        if self.jobs.is_empty() {
            return Ok(());
        }
        let row_key = keys::row_key_of(state_key, keys::table_prefix(table).len());
        let missing_key = keys::missing_key(state_key);
        for TableSweep { sweep, covers, .. } in sweeps_of(&self.jobs, table) {
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
