//! Jobs: a TRUNCATE or the end of a snapshot chunk removes any number of rows, in steps that fit a transaction.
//!
//! Other records are processed between the steps of a job. Before a record reads a row, the jobs are applied to that row
//! ([`SyncViews::sweep_row`]), so that no record notices that a job has not reached its row yet. No transaction end marker
//! is written while a job exists, so that no part of a job is ever visible (I3).

use super::jobs::{Job, Jobs, Phase};
use super::state::{Missing, Row, StateError, damaged};
use super::{SyncViews, put_row};
use crate::input::{ChangeRecord, KeySpan, Sweep, find, keys};
use crate::step::Step;
use streams::Result;

impl SyncViews {
    /// Starts the job of a TRUNCATE or of the end of a chunk, and does its first step. Most jobs end with it.
    pub(super) fn start_job(&mut self, input: &ChangeRecord<'_>, step: &mut Step<'_>) -> Result<()> {
        let Some(sweep) = Sweep::of(input) else { return Ok(()) };
        // At or below the floor, the rows of the chunk may have been ignored, so the chunk proves nothing about missing
        // changes.
        let covers = sweep.chunk.as_ref().is_none_or(|end| sweep.low(end) > self.floor);
        self.jobs.push(Job {
            sweep,
            covers,
            phase: Phase::Rows,
            cursor: String::new(),
        });
        self.continue_jobs(step)
    }

    /// Continues the jobs until they have ended, or this call of the processor has done the work of a step.
    pub(super) fn continue_jobs(&mut self, step: &mut Step<'_>) -> Result<()> {
        while let Some(mut queued) = self.jobs.take() {
            let has_ended = self.continue_job(&mut queued.job, step)?;
            if !has_ended {
                self.jobs.put_back(queued);
                continue;
            }
            Jobs::end(&queued, step.state);
            let sweep = queued.job.sweep;
            if sweep.chunk.as_ref().is_some_and(|end| end.last) {
                // Clears a mark that was set by an earlier release, which had no missing entries.
                self.update_stale_mark(&sweep.table, step.output);
            }
        }
        Ok(())
    }

    /// Continues a job, and returns whether it has ended.
    fn continue_job(&mut self, job: &mut Job, step: &mut Step<'_>) -> Result<bool> {
        let spans = job.sweep.spans();
        if job.phase == Phase::Rows {
            let next = self.remove_rows(job, &spans, step)?;
            if let Some(next) = next {
                job.continue_at(next).map_err(|e| damaged(&e))?;
                return Ok(false);
            }
            (job.phase, job.cursor) = (Phase::Missing, String::new());
        }
        if !job.covers || !self.stream.missing.contains_key(&job.sweep.table) {
            return Ok(true);
        }
        match self.remove_missing_entries(job, &spans, step)? {
            Some(next) => {
                job.continue_at(next).map_err(|e| damaged(&e))?;
                Ok(false)
            }
            None => Ok(true),
        }
    }

    /// Removes rows, and returns the key at which to continue.
    fn remove_rows(&mut self, job: &Job, spans: &[KeySpan], step: &mut Step<'_>) -> Result<Option<Vec<u8>>> {
        let (sweep, cursor) = (&job.sweep, job.cursor.as_bytes());
        let prefix = keys::table_prefix(&sweep.table).len();
        let mut failed = None;
        let found = find(step.state, spans, cursor, &mut self.jobs.budget, &mut |key, value| {
            is_removed(sweep, keys::row_key_of(key, prefix), value).unwrap_or_else(|error| {
                failed = Some(error);
                false
            })
        })?;
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
        row.kept.clear();
        put_row(state_key, None, &row, step.state);
        Ok(())
    }

    /// Removes missing entries, and returns the key at which to continue.
    fn remove_missing_entries(&mut self, job: &Job, spans: &[KeySpan], step: &mut Step<'_>) -> Result<Option<Vec<u8>>> {
        let (sweep, cursor) = (&job.sweep, job.cursor.as_bytes());
        let prefix = keys::missing_prefix(&sweep.table).len();
        let of_entries = |span: &KeySpan| KeySpan {
            from: keys::missing_key(&span.from),
            end: keys::missing_key(&span.end),
        };
        let spans: Vec<KeySpan> = spans.iter().map(of_entries).collect();
        let mut failed = None;
        let found = find(
            step.state,
            &spans,
            cursor,
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

    /// Applies the jobs to a row that a record is about to read, and to its missing entry, as if they had ended before the
    /// record.
    pub(super) fn sweep_row(&mut self, table: &str, state_key: &[u8], step: &mut Step<'_>) -> Result<()> {
        if self.jobs.is_empty() {
            return Ok(());
        }
        let row_key = keys::row_key_of(state_key, keys::table_prefix(table).len());
        let missing_key = keys::missing_key(state_key);
        for Job { sweep, covers, .. } in self.jobs.of_table(table) {
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

/// Whether a sweep removes the row with this value. Only the value's header is decoded.
fn is_removed(sweep: &Sweep, row_key: &str, value: &[u8]) -> Result<bool, StateError> {
    let header = Row::header(value)?;
    Ok(!header.is_deleted && sweep.removes(row_key, header.version))
}
