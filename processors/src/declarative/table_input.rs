//! Converts changes of tables to deltas: rows that are written or deleted, truncations, and rows that a snapshot did
//! not find.
//!
//! A change removes exactly what the row contributed before, including if a truncation or a snapshot chunk deletes the
//! row. A change that does not alter the contribution is no delta.

use super::delta::Delta;
use super::event_dedup::order_by_time;
use super::loading::Loading;
use super::relation::Relation;
use super::sink::{Change, Pipeline};
use super::stored_row::{Kept, Row, RowContribution};
use super::sweeps::{self, TableSweep};
use super::table_rows::TableRows;
use crate::dead_letter::{RecordError, StepError};
use crate::input::{self, AfterRejection, ChangeRecord, Found, Job, KeyChange, Kind, keys};
use event_log::{RecordRef, TopicPartition};
use schemas::codec::{Datum, Row as Datums};
use schemas::version::Version;
use streams::{RejectedTimer, Stage};
use topology::Side;

/// Processes a record of a change topic, or of a processor that writes a table.
pub fn process(
    relations: &mut [Relation],
    event: Option<&str>,
    record: &RecordRef<'_>,
    pipeline: &mut Pipeline<'_>,
) -> Result<(), StepError> {
    let source_epoch = relations
        .iter()
        .filter_map(|r| r.rows.as_ref())
        .map(TableRows::source_epoch)
        .max();
    let input = ChangeRecord::read(record, event, source_epoch.unwrap_or(1))?;
    for relation in relations.iter_mut() {
        let Some(mut rows) = relation.rows.take() else { continue };
        rows.begin(&input);
        let applied = if relation.name == input.table {
            let table_change = TableChange {
                relation,
                record,
                input: &input,
                order: if event.is_some() {
                    order_by_time(record.timestamp(), record.offset())
                } else {
                    order_of(input.version)
                },
            };
            table_change.apply(&mut rows, pipeline)
        } else {
            Ok(())
        };
        relation.rows = Some(rows);
        applied?;
    }
    Ok(())
}

/// A change record of a relation.
struct TableChange<'c, 'r> {
    relation: &'c Relation,
    record: &'c RecordRef<'r>,
    input: &'c ChangeRecord<'r>,
    /// Order of the row among others.
    order: u128,
}

fn order_of(version: Version) -> u128 {
    u128::from(version.source_epoch) << 96 | u128::from(version.position) << 32 | u128::from(version.ordinal)
}

impl TableChange<'_, '_> {
    fn apply(&self, rows: &mut TableRows, pipeline: &mut Pipeline<'_>) -> Result<(), StepError> {
        match &self.input.kind {
            Kind::Row(change) => {
                self.sweep_row(change.row_key, rows, pipeline)?;
                self.apply_row(change, rows, pipeline)
            }
            Kind::Loaded(mark) => {
                pipeline.loading.marked(self.relation.side, *mark);
                Ok(())
            }
            // The row keeps its previous contribution.
            Kind::Missing { .. } => Ok(()),
            Kind::Truncate | Kind::ChunkEnd(_) => {
                add_sweep(rows, self.input, self.record, pipeline.loading, self.relation.side);
                sweep(self.relation, rows, self.record.partition(), pipeline)
            }
        }
    }

    /// Removes a row that the record is about to read, if a sweep removes it and has not reached it yet.
    fn sweep_row(&self, row_key: &str, rows: &mut TableRows, pipeline: &mut Pipeline<'_>) -> Result<(), StepError> {
        if rows.sweeps.is_empty() {
            return Ok(());
        }
        let state_key = rows.state_key(row_key);
        let row = rows.get(&state_key, pipeline.step.state)?.transpose();
        let row = row.map_err(|e| pipeline.damaged(e))?;
        let Some(row) = row.filter(|row| row.deleted_ms.is_none()) else {
            return Ok(());
        };
        let Some(sweep) = sweeps::removing(&rows.sweeps, row_key, row.version).cloned() else {
            return Ok(());
        };
        let swept = SweptRow {
            state_key: &state_key,
            row,
        };
        let removed = swept.remove(self.relation, rows, &sweep, pipeline);
        removed.or_else(|error| swept.not_removed(error, self.relation, self.record.partition(), pipeline))
    }

    fn apply_row(
        &self,
        change: &input::Change<'_>,
        rows: &mut TableRows,
        pipeline: &mut Pipeline<'_>,
    ) -> Result<(), StepError> {
        let (row_key, version) = (change.row_key, self.input.version);
        let state_key = rows.state_key(row_key);
        let old = rows
            .get(&state_key, pipeline.step.state)?
            .transpose()
            .map_err(|e| pipeline.damaged(e))?;
        // If a change was already applied, a replay, a redrive or a second snapshot must not apply it again.
        if version <= old.as_ref().map_or(rows.floor(), |old| old.version) {
            return Ok(());
        }
        // An old record of an unknown row must not bring back a row that a sweep may already have passed.
        if old.is_none() && sweeps::removing(&rows.sweeps, row_key, version).is_some() {
            return Ok(());
        }
        let old = old.unwrap_or_default();
        let mut row = Row {
            version,
            deleted_ms: change.value.is_none().then_some(pipeline.step.context.now),
            ..Row::default()
        };
        let origin = match change.key_change {
            KeyChange::Arrives { from, left } => Origin::read(rows, from, left, pipeline)?,
            KeyChange::None | KeyChange::Leaves => None,
        };
        // The kept values of a deleted row belong to the same row under its new key, not to another row under the old
        // key.
        let live = if old.deleted_ms.is_none() {
            old.kept.as_slice()
        } else {
            &[]
        };
        let kept = match change.key_change {
            KeyChange::Arrives { .. } => origin.as_ref().map_or(&[][..], |origin| &origin.row.kept),
            KeyChange::None | KeyChange::Leaves => live,
        };
        if let Some(value) = change.value {
            (row.contribution, row.kept) = self.evaluate(row_key, value, kept, pipeline)?;
        } else if change.key_change == KeyChange::Leaves {
            // The next record, which is the same row under its new key, may omit the same columns.
            row.kept = live.to_vec();
        }
        let delta = Delta {
            row: row_key.as_bytes(),
            old: old.contribution.as_ref().map(RowContribution::as_contribution),
            new: row.contribution.as_ref().map(RowContribution::as_contribution),
        };
        let applied = if self.is_delta(&old, &row) {
            pipeline.apply(Change {
                side: self.relation.side,
                delta,
                at: self.record.timestamp(),
            })
        } else {
            Ok(())
        };
        // With a record error, the change has nevertheless been applied, so the row must be stored.
        if let Err(StepError::Task(error)) = applied {
            return Err(StepError::Task(error));
        }
        rows.put(&state_key, old.deleted_ms, &row, pipeline.step.state);
        if let Some(origin) = origin {
            origin.clear_kept(pipeline);
        }
        applied
    }

    fn is_delta(&self, old: &Row, new: &Row) -> bool {
        match (&old.contribution, &new.contribution) {
            (None, None) => false,
            (Some(old), Some(new)) => {
                (&old.key, old.time, &old.values) != (&new.key, new.time, &new.values)
                    || self.relation.shape.is_ordered()
            }
            _ => true,
        }
    }

    /// Returns the contribution of a row, and the values to keep for the row's next change.
    fn evaluate(
        &self,
        row_key: &str,
        value: &[u8],
        known: &[Kept],
        pipeline: &mut Pipeline<'_>,
    ) -> Result<(Option<RowContribution>, Vec<Kept>), RecordError> {
        let bound = self
            .relation
            .bound(value)
            .map_err(|e| RecordError::new(Stage::ValueConverter, e))?;
        let mut datums: Datums<'_> = Vec::new();
        bound
            .decode(value, &mut datums)
            .map_err(|e| RecordError::new(Stage::ValueConverter, e))?;
        let shape = &self.relation.shape;
        let columns = &shape.feed().columns;
        let mut kept = Vec::new();
        if bound.lists_unchanged {
            self.fill_unchanged(columns, &mut datums, known)?;
            let values = columns.iter().zip(&datums);
            kept.extend(values.filter_map(|(name, datum)| Some((name.clone(), self.relation.kept(name, datum)?))));
        }
        let contributes = shape.evaluate(row_key, &datums, pipeline.shaped);
        if !contributes.map_err(|e| RecordError::new(Stage::Transformation, e))? {
            return Ok((None, kept));
        }
        let contribution = RowContribution {
            key: pipeline.shaped.key.clone(),
            order: self.order,
            time: shape.time_of(pipeline.shaped, self.record.timestamp()),
            values: pipeline.shaped.values.clone(),
        };
        Ok((Some(contribution), kept))
    }

    /// Sets the columns that the source omitted as unchanged to their kept values.
    fn fill_unchanged<'d>(
        &'d self,
        columns: &[String],
        datums: &mut Datums<'d>,
        kept: &'d [Kept],
    ) -> Result<(), RecordError> {
        let listed = datums
            .get(columns.len())
            .and_then(Datum::as_array)
            .map(<[Datum<'_>]>::to_vec);
        for name in listed.iter().flatten().filter_map(Datum::as_str) {
            let Some(at) = columns.iter().position(|column| column == name) else {
                continue;
            };
            let missing = || {
                let reason = format!(
                    "the source omitted column `{name}` as unchanged, but no earlier value of the row is known; snapshot \
                     the table"
                );
                RecordError::new(Stage::Transformation, reason)
            };
            let (_, value) = kept.iter().find(|(kept, _)| kept == name).ok_or_else(missing)?;
            let slot = datums.get_mut(at).ok_or_else(missing)?;
            *slot = self.relation.restored(name, value).ok_or_else(missing)?;
        }
        Ok(())
    }
}

/// Adds the sweep of a TRUNCATE or of the end of a chunk.
fn add_sweep(
    rows: &mut TableRows,
    input: &ChangeRecord<'_>,
    record: &RecordRef<'_>,
    loading: &mut Loading,
    side: Side,
) {
    if let Some(of) = TableSweep::of(input, rows.name(), record.timestamp()) {
        loading.chunk_ends(side, &of.sweep, rows.floor());
        rows.sweeps.push(of);
    }
}

/// Processes a record whose effects the log or the store has rejected. Its row is not applied, but a sweep starts with its
/// timer, and finds the row that is the cause.
pub fn rejected(relations: &mut [Relation], event: Option<&str>, record: &RecordRef<'_>, loading: &mut Loading) {
    let rows = relations.iter().filter_map(|r| r.rows.as_ref());
    let source_epoch = rows.map(TableRows::source_epoch).max();
    let Ok(input) = ChangeRecord::read(record, event, source_epoch.unwrap_or(1)) else {
        return;
    };
    for relation in relations {
        let Some(rows) = &mut relation.rows else { continue };
        rows.begin(&input);
        if relation.name == input.table {
            add_sweep(rows, &input, record, loading, relation.side);
        }
    }
}

/// Continues the sweeps of a relation: each step of a sweep removes some rows. `at` is the partition of its input.
pub fn continue_sweeps(
    relation: &mut Relation,
    at: &TopicPartition,
    pipeline: &mut Pipeline<'_>,
) -> Result<(), StepError> {
    let Some(mut rows) = relation.rows.take() else {
        return Ok(());
    };
    let swept = sweep(relation, &mut rows, at, pipeline);
    relation.rows = Some(rows);
    swept
}

/// Called when the effects of a sweep's step, which was alone in its transaction, were rejected. The row that causes it is
/// searched with smaller steps, and skipped: it keeps its contribution. So one row becomes one dead letter.
pub fn step_rejected(relation: &mut Relation, pipeline: &mut Pipeline<'_>) -> Result<RejectedTimer, StepError> {
    let Some(rows) = &mut relation.rows else {
        return Ok(RejectedTimer::DeadLetter);
    };
    match rows.sweeps.rejected() {
        AfterRejection::Nothing => return Ok(RejectedTimer::DeadLetter),
        AfterRejection::FewerRows => return Ok(RejectedTimer::Retried),
        AfterRejection::SkipsRow => {}
    }
    if let Some(queued) = rows.sweeps.take() {
        let found = find_rows(&queued.job, rows, pipeline)?;
        for (state_key, _) in &found.rows {
            let row = String::from_utf8_lossy(state_key).into_owned();
            tracing::error!(
                processor = pipeline.name,
                row,
                "row skipped by a sweep, because its removal was rejected"
            );
        }
        let ended = rows.sweeps.advance(queued, found.next, pipeline.step.state);
        if let Some(of) = ended.map_err(|e| pipeline.damaged(e))? {
            pipeline.loading.sweep_ended(relation.side, &of.sweep);
        }
    }
    Ok(RejectedTimer::DeadLetter)
}

/// Continues sweeps until they have ended, or this call of the processor has done the work of a step.
fn sweep(
    relation: &Relation,
    rows: &mut TableRows,
    at: &TopicPartition,
    pipeline: &mut Pipeline<'_>,
) -> Result<(), StepError> {
    while let Some(queued) = rows.sweeps.take() {
        let found = find_rows(&queued.job, rows, pipeline)?;
        for (state_key, value) in &found.rows {
            let row = Row::decode(value).map_err(|e| pipeline.damaged(e))?;
            let swept = SweptRow { state_key, row };
            swept
                .remove(relation, rows, &queued.job.work, pipeline)
                .or_else(|error| swept.not_removed(error, relation, at, pipeline))?;
        }
        let ended = rows.sweeps.advance(queued, found.next, pipeline.step.state);
        if let Some(of) = ended.map_err(|e| pipeline.damaged(e))? {
            pipeline.loading.sweep_ended(relation.side, &of.sweep);
        }
    }
    Ok(())
}

/// The rows of the next step of a sweep.
fn find_rows(job: &Job<TableSweep>, rows: &mut TableRows, pipeline: &Pipeline<'_>) -> Result<Found, StepError> {
    let damaged = |error| pipeline.damaged(error);
    Ok(sweeps::find_rows(
        job,
        &mut rows.sweeps.budget,
        pipeline.step.state,
        &damaged,
    )?)
}

/// A live row that a sweep removes.
struct SweptRow<'r> {
    state_key: &'r [u8],
    row: Row,
}

impl SweptRow<'_> {
    /// Removes the row. Its new version is that of the record that removes it. With a record error, the row was nevertheless
    /// removed.
    fn remove(
        &self,
        relation: &Relation,
        rows: &mut TableRows,
        of: &TableSweep,
        pipeline: &mut Pipeline<'_>,
    ) -> Result<(), StepError> {
        let row_key = keys::row_key_of(self.state_key, rows.prefix().len());
        let applied = match &self.row.contribution {
            Some(contribution) => pipeline.apply(Change {
                side: relation.side,
                delta: Delta {
                    row: row_key.as_bytes(),
                    old: Some(contribution.as_contribution()),
                    new: None,
                },
                at: of.timestamp,
            }),
            None => Ok(()),
        };
        let deleted = Row {
            version: of.sweep.at,
            deleted_ms: Some(pipeline.step.context.now),
            ..Row::default()
        };
        rows.put(self.state_key, None, &deleted, pipeline.step.state);
        applied
    }

    /// Writes a dead letter for the row, because the result without it cannot be written. As the row is removed, that
    /// happens once per version of the row.
    fn not_removed(
        &self,
        error: StepError,
        relation: &Relation,
        at: &TopicPartition,
        pipeline: &mut Pipeline<'_>,
    ) -> Result<(), StepError> {
        let StepError::Record(error) = error else {
            return Err(error);
        };
        let key = keys::row_key_of(self.state_key, keys::table_prefix(relation.side.name()).len());
        let unwritten = Unwritten {
            table: relation.name.clone(),
            key: key.to_owned(),
            reason: error.source.to_string(),
        };
        pipeline.step.output.dead_letter_of_input(at, error.stage, &unwritten);
        Ok(())
    }
}

/// The result without a removed row cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("row [{key}] of `{table}` is removed, but the result without it cannot be written: {reason}")]
struct Unwritten {
    table: String,
    key: String,
    reason: String,
}

/// The state of a row's old key, as it was after the tombstone that the key change wrote.
struct Origin {
    state_key: Vec<u8>,
    row: Row,
}

impl Origin {
    /// `None` if there is no state for the old key, or if it was changed after `left`: it may then contain the values
    /// of another row.
    fn read(rows: &TableRows, from: &str, left: Version, pipeline: &Pipeline<'_>) -> Result<Option<Origin>, StepError> {
        let state_key = rows.state_key(from);
        let row = rows
            .get(&state_key, pipeline.step.state)?
            .transpose()
            .map_err(|e| pipeline.damaged(e))?;
        let row = row.filter(|row| row.deleted_ms.is_some() && row.version == left);
        Ok(row.map(|row| Origin { state_key, row }))
    }

    /// Removes the kept values from the old key, because the row has them under its new key now.
    fn clear_kept(mut self, pipeline: &mut Pipeline<'_>) {
        if !self.row.kept.is_empty() {
            self.row.kept.clear();
            pipeline.step.state.put(&self.state_key, self.row.encode());
        }
    }
}
