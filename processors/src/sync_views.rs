//! sync-views: turns the changes of one source stream (a database's topic, or a partition of an event topic) into the
//! rows of views in `view.log`.
//!
//! [`SyncViews`] implements the writer of docs/protocol/view-sync.md. For each row, the state contains the version and
//! the outputs that were last written. A change that is not newer is ignored, and only differences are written. When a
//! source transaction ends, a transaction end marker is written to each partition that it wrote to. The marker makes
//! the transaction's records in that partition visible at once (invariant I3, no partial transaction).

mod binding;
mod job_steps;
mod jobs;
mod key_change;
#[cfg(test)]
mod simulation;
mod staleness;
mod state;

#[cfg(test)]
mod tests;
mod view_log;

pub use crate::input::{FetchSchema, StepLimits, Unavailable, patient};

use crate::dead_letter::{RecordError, StepError};
use crate::input::{self, Change, ChangeRecord, KeyChange, Kind, Replayed, keys};
use crate::step::Step;
use binding::Bindings;
use event_log::{Millis, RecordRef, RecordSlice};
use jobs::{Jobs, Rebuild, Task, Work};
use key_change::{Applied, Origin};
use schemas::version::Version;
use state::{Image, Row, STREAM, StateError, StreamState, TransactionEnd, WrittenRow, damaged, rule_versions};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use streams::{Context, Error, Output, Processor, RejectedTimer, Result, Stage, State, Timer};
use topology::Names;
use view_log::{ViewLog, ViewRow};
use views::record;
use views::rules::{EvaluateError, Kept, Relation, SourceRules, ViewOutputs};

/// Maximum number of deleted rows that are removed from the state per commit, so that a commit stays short.
const FORGET_MAX: usize = 256;

/// Configuration of sync-views for one source stream.
#[derive(Clone)]
pub struct Config {
    /// Rules of the source stream's views.
    pub rules: Arc<SourceRules>,
    /// Writer id: `<processor>/<topic>/<topic id>/<partition>`.
    pub writer: String,
    /// Id of the input topic, 32 hexadecimal digits.
    pub topic_id: String,
    /// Name of the topic `view.log`.
    pub view_log: Arc<str>,
    /// Partition count of `view.log`.
    pub partitions: i32,
    /// Ids of the control records' schemas.
    pub schemas: record::SchemaIds,
    /// How long deleted rows stay in the state, in ms: `delete.retention.ms` of `view.log` minus a margin.
    pub horizon_ms: i64,
    /// Limits of a step of a job: removing the rows that a TRUNCATE or the end of a snapshot chunk shows to be gone.
    pub job_step: StepLimits,
    /// Fetches a schema by id. Called in `prepare` only, because it does IO.
    pub fetch: FetchSchema,
}

/// The processor of one source stream.
pub struct SyncViews {
    config: Config,
    /// Name of the application, which its dead letters contain.
    application: String,
    view_log: ViewLog,
    bindings: Bindings,
    stream: StreamState,
    /// Version up to which changes of unknown rows are ignored.
    floor: Version,
    stream_dirty: bool,
    /// Version of the last record.
    last: Version,
    outputs: ViewOutputs,
    jobs: Jobs,
    /// Last version and commit time in ms of the last source transaction that ended.
    ended: Option<(Version, Millis)>,
}

/// Where the rows of a change are written.
struct Target<'t> {
    relation: &'t Relation,
    row_key: &'t str,
    version: Version,
}

impl From<StateError> for StepError {
    fn from(error: StateError) -> Self {
        StepError::Task(damaged(&error))
    }
}

impl SyncViews {
    /// Creates a processor without state; `restore` reads the state.
    pub fn new(config: Config) -> Self {
        let topic = config.rules.topic();
        SyncViews {
            application: Names::owning(topic).map_or_else(String::new, |names| names.sync_views(topic)),
            view_log: ViewLog::new(config.view_log.clone(), config.writer.clone(), config.schemas),
            bindings: Bindings::new(config.rules.clone(), config.fetch.clone()),
            stream: StreamState::new(&config.topic_id),
            floor: Version::default(),
            stream_dirty: false,
            last: Version::default(),
            outputs: ViewOutputs::default(),
            jobs: jobs::queue(config.job_step),
            ended: None,
            config,
        }
    }

    /// Processes a record. If `rejected`, the log or the store has rejected the effects of the record, and the record
    /// has already been written as a dead letter. It is still counted as a part of its source transaction, but its
    /// change is not applied to the row.
    fn process_record(&mut self, record: RecordRef<'_>, rejected: bool, step: &mut Step<'_>) -> Result<(), Error> {
        if input::is_redriven_for_another(&record, &self.application) {
            return Ok(());
        }
        step.output.caused_by(record);
        let rules = self.config.rules.clone();
        let input = match ChangeRecord::read(&record, rules.event(), self.stream.source_epoch) {
            Ok(input) => input,
            Err(error) => {
                if !rejected {
                    step.output.dead_letter(record, error.stage, error.source.as_ref());
                }
                let at_ms = self.record_unreadable(record, step)?;
                self.close(at_ms, step.output);
                return Ok(());
            }
        };
        if input.version.source_epoch > self.stream.source_epoch {
            self.begin_source_epoch(input.version.source_epoch);
        }
        self.last = input.version;
        let changed = if rejected {
            self.apply_rejected(&input, step).map_err(StepError::Task)
        } else {
            self.apply(&input, step)
        };
        match changed {
            Ok(()) => {}
            Err(StepError::Task(error)) => return Err(error),
            Err(StepError::Record(error)) => {
                step.output.dead_letter(record, error.stage, error.source.as_ref());
                self.record_missed(&input, step)?;
            }
        }
        // A replayed record neither begins nor ends a source transaction: if one is open, it has not ended with the
        // replayed record (I3).
        if input.replayed.is_none() {
            self.stream_dirty |= self.stream.open == input.last;
            self.stream.open = !input.last;
        }
        self.close(input.at_ms, step.output);
        Ok(())
    }

    /// Processes a record whose effects the log or the store has rejected.
    fn apply_rejected(&mut self, input: &ChangeRecord<'_>, step: &mut Step<'_>) -> Result<(), Error> {
        match &input.kind {
            // The first step of its job was rejected. The job starts with the timer, which finds the row that is the cause.
            Kind::Truncate | Kind::ChunkEnd(_) if self.config.rules.relation(input.table).is_some() => {
                self.add_sweep(input);
                Ok(())
            }
            _ => self.record_missed(input, step),
        }
    }

    /// The source starts over with a snapshot.
    ///
    /// `touched` is kept: these partitions contain records of a transaction that the source lost, and the next
    /// transaction end marker must be written to them too (I3). The floor rises to the end of the previous epoch, so
    /// that a replayed record of that epoch does not restore a row that is unknown now (invariant I4, no return to an
    /// older state).
    fn begin_source_epoch(&mut self, epoch: u32) {
        self.floor = self.floor.max(Version {
            source_epoch: epoch - 1,
            position: u64::MAX,
            ordinal: u32::MAX,
        });
        self.stream.source_epoch = epoch;
        self.stream.open = false;
        self.stream_dirty = true;
    }

    fn apply(&mut self, input: &ChangeRecord<'_>, step: &mut Step<'_>) -> Result<(), StepError> {
        let Some(relation) = self.config.rules.relation(input.table).cloned() else {
            return Ok(());
        };
        match &input.kind {
            Kind::Row(change) => self.apply_row(input, &relation, change, step),
            Kind::Truncate | Kind::ChunkEnd(_) => {
                self.add_sweep(input);
                Ok(self.continue_jobs(step)?)
            }
            Kind::Loaded(mark) => {
                self.task_loaded(*mark, input.table, step.output);
                Ok(())
            }
            Kind::Missing { state_key } => {
                self.sweep_row(input.table, state_key, step)?;
                let known = match step.state.get(state_key)? {
                    Some(bytes) => Row::decode(&bytes)?.version,
                    // A later record may have proved that the row lacks nothing, so its entry may already be removed.
                    None if input.replayed.is_some() => return Ok(()),
                    None => self.floor,
                };
                if input.version > known {
                    self.record_missing(input.table, state_key, input.version, step)?;
                }
                Ok(())
            }
        }
    }

    fn apply_row(
        &mut self,
        input: &ChangeRecord<'_>,
        relation: &Arc<Relation>,
        change: &Change<'_>,
        step: &mut Step<'_>,
    ) -> Result<(), StepError> {
        self.sweep_row(input.table, &change.state_key, step)?;
        let old = match step.state.get(&change.state_key)? {
            Some(bytes) => Some(Row::decode(&bytes)?),
            None => None,
        };
        // A change that is not newer is ignored, so that a replay, a redrive or a second snapshot never replaces a
        // newer row (I4).
        if input.version <= old.as_ref().map_or(self.floor, |o| o.version) {
            if input.replayed == Some(Replayed::Redrive) && old.is_none() {
                self.record_missing(input.table, &change.state_key, self.floor, step)?;
            }
            return Ok(());
        }
        let origin = Origin::of(input, change, step.state)?;
        let mut row = old.unwrap_or_default();
        let was_deleted = row.deleted_ms;
        self.outputs.clear();
        let mut complete = true;
        match change.value {
            Some(value) => {
                let bound = self.bindings.get(value, input.table)?;
                let kept: &[Kept] = match &origin {
                    Some(origin) => origin.kept(),
                    None if was_deleted.is_none() => &row.kept,
                    // The kept values of a deleted row belong to the same row under its new key, not to another row
                    // under the old key.
                    None => &[],
                };
                let body = value.get(schemas::wire::FRAME_LENGTH..).unwrap_or_default();
                let evaluated = bound.evaluate(body, kept, &mut self.outputs);
                let evaluated = evaluated.map_err(evaluation_error)?;
                (row.kept, complete) = (evaluated.kept, evaluated.complete);
                row.image = Image::of(value);
                if row.image.is_none() {
                    row.kept.retain(|kept| relation.uses(&kept.name));
                }
                row.deleted_ms = None;
            }
            None => {
                // The tombstone of a key change keeps the values for the next record, unless the row was deleted before.
                if change.key_change != KeyChange::Leaves || was_deleted.is_some() {
                    row.kept.clear();
                }
                row.image = None;
                row.deleted_ms = Some(step.context.now);
            }
        }
        row.version = input.version;
        let outputs = std::mem::take(&mut self.outputs);
        let target = Target {
            relation,
            row_key: change.row_key,
            version: input.version,
        };
        self.write_difference(&target, &mut row.written, &outputs, step.output);
        self.outputs = outputs;
        put_row(&change.state_key, was_deleted, &row, step.state);
        self.applied(
            input,
            Applied {
                change,
                origin,
                complete,
            },
            step,
        )?;
        Ok(())
    }

    /// Writes the difference between the outputs that were last written for a row and its outputs now.
    ///
    /// The removal from a bucket that the row left is written first. An output that did not change is not written.
    fn write_difference(
        &mut self,
        target: &Target<'_>,
        written: &mut Vec<WrittenRow>,
        outputs: &ViewOutputs,
        output: &mut Output,
    ) {
        let relation = target.relation;
        for old in written.iter() {
            let stays = outputs
                .iter()
                .any(|o| (relation.view(o.view), o.bucket, o.partition) == (&*old.view, &*old.bucket, old.partition));
            if !stays {
                self.write_removal(old, target.row_key, target.version, output);
            }
        }
        let mut now = Vec::with_capacity(outputs.len());
        for view_output in outputs.iter() {
            let view = relation.view(view_output.view);
            let hash = xxhash_rust::xxh3::xxh3_128(view_output.json);
            let same = written.iter().any(|w| {
                (&*w.view, &*w.bucket, w.partition, w.hash) == (view, view_output.bucket, view_output.partition, hash)
            });
            if !same {
                let row = ViewRow {
                    bucket: view_output.bucket,
                    view,
                    row_key: target.row_key,
                    json: Some(view_output.json),
                    partition: view_output.partition,
                    version: target.version,
                };
                self.write_row(&row, output);
            }
            let (view, bucket) = (view.to_owned(), view_output.bucket.to_owned());
            now.push(WrittenRow {
                view,
                bucket,
                partition: view_output.partition,
                hash,
            });
        }
        *written = now;
    }

    fn write_row(&mut self, row: &ViewRow<'_>, output: &mut Output) {
        self.view_log.row(row, output);
        self.stream_dirty |= self.stream.touched.insert(row.partition);
    }

    fn write_removal(&mut self, written: &WrittenRow, row_key: &str, version: Version, output: &mut Output) {
        let removal = ViewRow {
            bucket: &written.bucket,
            view: &written.view,
            row_key,
            json: None,
            partition: written.partition,
            version,
        };
        self.write_row(&removal, output);
    }

    /// Makes everything that was written visible, unless a source transaction is open. While a job exists, the end marker
    /// waits for it: what a part of the job wrote must not be visible (I3).
    fn close(&mut self, at_ms: i64, output: &mut Output) {
        if self.stream.open {
            return;
        }
        self.ended = Some((self.last, at_ms));
        self.stream_dirty = true;
        if self.jobs.is_empty() {
            self.end_transaction(at_ms, output);
        }
    }

    /// Makes what the jobs wrote visible, if none is left and no source transaction is open.
    fn close_after_jobs(&mut self, output: &mut Output) {
        if self.jobs.is_empty() && !self.stream.open {
            let (last, at_ms) = self.ended.unwrap_or_default();
            self.last = last;
            self.end_transaction(at_ms, output);
        }
    }

    /// Starts the jobs that rebuild the views of the tables whose rules have changed since the rows were written.
    fn compare_rules(&mut self) {
        let rules = rule_versions(&self.config.rules);
        // A state of format 1 does not have the rules with which its rows were written.
        let before = self
            .stream
            .rules
            .replace(rules.clone())
            .unwrap_or_else(|| rules.clone());
        // An earlier release did not write loaded marks: the jobs write them.
        let is_unmarked = self.stream.loaded.is_none();
        self.stream
            .loaded
            .get_or_insert_with(|| before.keys().cloned().collect());
        let tables: BTreeSet<&String> = before.keys().chain(rules.keys()).collect();
        for table in tables {
            let (old, new) = (before.get(table), rules.get(table));
            if old == new && !is_unmarked {
                continue;
            }
            let views = old.into_iter().flat_map(|views| views.keys());
            // A view of another table of the stream may have the same name now. Its marks stay.
            let exists = |view: &String| rules.values().any(|views| views.contains_key(view));
            let is_moved = |view: &&String| {
                let mut others = before.iter().filter(|(other, _)| *other != table);
                others.any(|(_, views)| views.contains_key(*view))
            };
            let views_now = new.into_iter().flat_map(|views| views.keys());
            let rebuild = Rebuild {
                table: table.clone(),
                removed: views.filter(|view| !exists(view)).cloned().collect(),
                moved: views_now.filter(is_moved).cloned().collect(),
                is_new: old.is_none(),
            };
            tracing::info!(table, removed = ?rebuild.removed, "rules of views have changed, rebuilding");
            self.jobs.push(Work::new(Task::Rebuild(rebuild)));
            self.stream_dirty = true;
        }
    }

    /// Writes an end marker to each partition that was written to since its last end marker.
    fn end_transaction(&mut self, at_ms: i64, output: &mut Output) {
        if self.stream.touched.is_empty() {
            return;
        }
        for partition in std::mem::take(&mut self.stream.touched) {
            self.view_log.end_marker(self.last, at_ms, partition, output);
        }
        self.stream_dirty = true;
    }

    /// Removes rows that were deleted before the horizon from the state. The floor rises to their versions, so that a
    /// replay does not restore them (I4).
    fn forget_deleted(&mut self, now: Millis, state: &mut State) -> Result<(), Error> {
        let mut old: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let before = now - self.config.horizon_ms;
        state.scan(keys::DELETED, &mut |key, _| {
            match keys::parse_deleted_key(key) {
                Some((at, state_key)) if at < before && old.len() < FORGET_MAX => old.push((key.to_vec(), state_key)),
                _ => return ControlFlow::Break(()),
            }
            ControlFlow::Continue(())
        })?;
        for (deleted_key, state_key) in old {
            if let Some(bytes) = state.get(&state_key)? {
                let row = Row::decode(&bytes).map_err(|e| damaged(&e))?;
                // The next record of the open transaction may be this row under its new key, for which the kept values
                // are needed.
                if self.stream.open && !row.kept.is_empty() {
                    continue;
                }
                self.floor = self.floor.max(row.version);
            }
            state.delete(&deleted_key);
            state.delete(&state_key);
            self.stream_dirty = true;
        }
        Ok(())
    }
}

impl Processor for SyncViews {
    fn prepare(&mut self, records: RecordSlice<'_>) -> Result<()> {
        self.bindings.prepare(records)
    }

    fn process(
        &mut self,
        context: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        self.jobs.begin_step();
        self.bindings.save(state)?;
        let mut step = Step { context, state, output };
        for record in records.iter() {
            self.process_record(record, false, &mut step)?;
        }
        Ok(())
    }

    fn on_dead_letter(
        &mut self,
        context: Context,
        record: RecordRef<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        self.jobs.begin_step();
        self.process_record(record, true, &mut Step { context, state, output })
    }

    fn on_timer(&mut self, context: Context, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        self.jobs.fired(timer);
        self.continue_jobs(&mut Step { context, state, output })?;
        self.close_after_jobs(output);
        Ok(())
    }

    fn on_rejected_timer(
        &mut self,
        context: Context,
        timer: &Timer,
        state: &mut State,
        output: &mut Output,
    ) -> Result<RejectedTimer> {
        self.jobs.fired(timer);
        let rejected = self.step_rejected(&mut Step { context, state, output })?;
        self.close_after_jobs(output);
        Ok(rejected)
    }

    fn before_commit(&mut self, context: Context, state: &mut State, output: &mut Output) -> Result<()> {
        self.forget_deleted(context.now, state)?;
        // Compaction may remove every row of an open source transaction. The begin marker is not removed, so a replica
        // that is rebuilt from the log recognizes that it is incomplete (invariant I6, equal replicas).
        for partition in &self.stream.touched {
            self.view_log.begin_marker(self.last, *partition, output);
        }
        self.jobs.store(context.now, state);
        if self.stream_dirty {
            self.stream.floor = self.floor.to_string();
            self.stream.end = self.ended.map(|(last, at_ms)| TransactionEnd {
                last: last.to_string(),
                at_ms,
            });
            state.put(STREAM, self.stream.encode());
            self.stream_dirty = false;
        }
        Ok(())
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let stored = state.get(STREAM)?;
        // The first commit stores the rules.
        self.stream_dirty = stored.is_none();
        self.stream = match stored {
            Some(bytes) => StreamState::decode(&bytes).map_err(|e| damaged(&e))?,
            None => StreamState {
                rules: Some(rule_versions(&self.config.rules)),
                ..StreamState::new(&self.config.topic_id)
            },
        };
        if self.stream.topic_id != self.config.topic_id {
            // The topic was deleted and created again. Its offsets start at 0 again, so the epoch increases so that
            // versions increase.
            self.stream.topic_id.clone_from(&self.config.topic_id);
            self.stream.source_epoch += 1;
            self.stream_dirty = true;
        }
        self.floor = self
            .stream
            .floor
            .parse()
            .map_err(|_| damaged(&StateError::Damaged("the floor")))?;
        self.ended = match &self.stream.end {
            Some(end) => Some((end.version()?, end.at_ms)),
            None => None,
        };
        self.last = self.ended.map_or(self.floor, |(last, _)| last);
        self.bindings.restored();
        self.jobs.restore(state)?.map_err(|e| damaged(&e))?;
        self.compare_rules();
        Ok(())
    }

    fn wants_commit(&self) -> bool {
        self.jobs.is_dirty()
    }
}

fn evaluation_error(error: EvaluateError) -> RecordError {
    let stage = match &error {
        EvaluateError::Decode(_) => Stage::ValueConverter,
        _ => Stage::Transformation,
    };
    RecordError::new(stage, error)
}

/// Stores a row. While the row is deleted, it is also in the list of deleted rows; `was_deleted` is the time under
/// which it was in the list before.
fn put_row(state_key: &[u8], was_deleted: Option<Millis>, row: &Row, state: &mut State) {
    if let Some(at) = was_deleted {
        state.delete(&keys::deleted_key(at, state_key));
    }
    if let Some(at) = row.deleted_ms {
        state.put(&keys::deleted_key(at, state_key), vec![1]);
    }
    state.put(state_key, row.encode());
}
