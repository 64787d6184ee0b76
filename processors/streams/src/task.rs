//! A task: partition *n* of a sub-topology, with its processor, store and input positions.
//!
//! [`Task`] collects the effects of steps in memory. Everything since the last commit can be discarded (invariant C7,
//! complete rollback), and nothing is written to the store or the log here.

pub(crate) mod changelog;
pub(crate) mod checkpoint;
pub(crate) mod commit_record;
mod reading;
pub(crate) mod report;
pub(crate) mod task_store;
pub(crate) mod timers;
mod uncommitted;

use crate::admin::status::Cause;
use crate::api::context::{Context, InputTopic, TaskId};
use crate::api::error::Result;
use crate::api::output::{Body, Output, Stage};
use crate::api::processor::{Processor, RejectedTimer};
use crate::api::state::State;
use crate::api::timer::{Timer, TimerClock};
use crate::plan::Sub;
use crate::recovery::progress::Recovery;
use crate::thread::poison_isolation::record_bisection::{PoisonRecord, RecordBisection, RejectedRecords};
use crate::thread::poison_isolation::timer_bisection::TimerBisection;
use commit_record::CommitRecord;
use event_log::{
    ErrorAction, GroupConsumer, Millis, Offset, OutBatch, Produced, RecordRef, RecordSlice, TopicPartition,
};
use reading::Reading;
use report::TaskReport;
use service::chain;
use std::sync::Arc;
use std::time::Duration;
use task_store::TaskStore;
use timers::Fired;
use uncommitted::{FirstRecord, Uncommitted};

/// Maximum number of timers that fire in one call, so that the limits of the transaction are checked in between.
const TIMERS_MAX: usize = 1024;

/// One input partition of a task.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub at: TopicPartition,
    /// Offset of the next record to process.
    pub next: Offset,
    pub assigned: bool,
}

/// What a task is doing.
pub(crate) enum Phase {
    /// Some inputs of the task are not assigned yet.
    Waiting,
    /// The task returns to its last commit.
    Recovering(Box<Recovery>),
    /// The task processes records.
    Running,
    /// The processor is not ready until this time, on the monotonic clock. The task still takes part in commits.
    Paused { until: Duration, reason: String },
    /// An operator must act.
    Stopped {
        reason: String,
        /// When the task retries, on the monotonic clock; `None` if only a restart can help.
        retry_at: Option<Duration>,
    },
}

/// Why records were not processed.
pub(crate) enum StepError {
    /// The processor is not ready; nothing was processed.
    NotReady(String),
    /// The processor failed.
    Failed(String),
}

/// Isolation of a poison record or timer (C13).
#[derive(Default)]
pub(crate) struct Bisection {
    /// While set, a transaction contains records of this task only, and no timer fires.
    pub records: Option<RecordBisection>,
    /// While set, timers fire in transactions that contain nothing else.
    pub timers: Option<TimerBisection>,
}

/// One task.
pub(crate) struct Task {
    pub sub: Arc<Sub>,
    pub id: TaskId,
    pub changelog: TopicPartition,
    processor: Box<dyn Processor>,
    pub inputs: Vec<Input>,
    pub store: Option<TaskStore>,
    pub phase: Phase,
    pub uncommitted: Uncommitted,
    pub stream_time: Millis,
    pub bisection: Bisection,
    /// Number of changelog records that the last recovery read.
    restored: u64,
    reading: Reading,
}

impl Task {
    pub(crate) fn new(sub: Arc<Sub>, partition: i32) -> Task {
        let info = sub.info(partition);
        let inputs = info.inputs.iter().map(|input| Input {
            at: TopicPartition {
                topic: input.name.clone(),
                partition,
            },
            next: 0,
            assigned: false,
        });
        Task {
            id: info.id.clone(),
            changelog: TopicPartition {
                topic: sub.changelog.clone(),
                partition,
            },
            processor: (sub.factory)(&info),
            inputs: inputs.collect(),
            store: None,
            phase: Phase::Waiting,
            uncommitted: Uncommitted::new(Output::of_task(sub.application.clone(), partition)),
            stream_time: 0,
            bisection: Bisection::default(),
            restored: 0,
            reading: Reading::default(),
            sub,
        }
    }

    /// Whether the task may take part in a commit.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Paused { .. })
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    pub(crate) fn is_recovering(&self) -> bool {
        matches!(self.phase, Phase::Recovering(_))
    }

    /// The open store.
    pub(crate) fn store_mut(&mut self) -> &mut TaskStore {
        self.store
            .as_mut()
            .expect("recovery opens the store before a task runs or commits")
    }

    pub(crate) fn partitions(&self) -> Vec<TopicPartition> {
        self.inputs.iter().map(|input| input.at.clone()).collect()
    }

    /// Whether the task has one of these partitions.
    pub(crate) fn reads_any(&self, partitions: &[TopicPartition]) -> bool {
        self.inputs.iter().any(|input| partitions.contains(&input.at))
    }

    /// Why the task does not work; `None` if it does.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match &self.phase {
            Phase::Running => None,
            Phase::Waiting => Some(Cause::transient("waiting for the assignment of its other inputs")),
            Phase::Paused { reason, .. } => Some(Cause::unavailable(format!("paused: {reason}"))),
            Phase::Stopped { reason, .. } => Some(Cause::operator(format!("stopped: {reason}"))),
            Phase::Recovering(recovery) => Some(match (&recovery.waits_for, recovery.restoring_until()) {
                (Some(reason), _) => Cause::unavailable(reason.clone()),
                (None, Some(end)) => {
                    let next = self.changelog_next().unwrap_or_default();
                    Cause::transient(format!("restoring from {}: offset {next} of {end}", self.changelog))
                }
                (None, None) => Cause::transient("recovering"),
            }),
        }
    }

    /// Status for operators.
    pub(crate) fn report(&self) -> TaskReport {
        let restoring = match &self.phase {
            Phase::Recovering(recovery) => recovery.restoring_until(),
            _ => None,
        };
        let phase = match &self.phase {
            Phase::Running => "running",
            Phase::Waiting => "waiting",
            Phase::Paused { .. } => "paused",
            Phase::Stopped { .. } => "stopped",
            Phase::Recovering(_) if restoring.is_some() => "restoring",
            Phase::Recovering(_) => "recovering",
        };
        let next = self.changelog_next();
        let input = |input: &Input| (input.at.topic.to_string(), input.at.partition, input.next);
        TaskReport {
            task: self.id.to_string(),
            store: self.sub.store.clone(),
            partition: self.id.partition,
            phase,
            cause: self.cause().map(|cause| cause.text),
            inputs: self.inputs.iter().map(input).collect(),
            changelog_next: next,
            restored: self.restored,
            restore_left: restoring.map(|end| end.saturating_sub(next.unwrap_or_default()).max(0)),
        }
    }

    fn changelog_next(&self) -> Option<Offset> {
        self.store.as_ref().and_then(|store| store.next)
    }

    /// Size of uncommitted state in bytes: the rows, and the changelog records that a commit writes for them.
    pub(crate) fn state_bytes(&self) -> usize {
        self.store.as_ref().map_or(0, |store| store.state.uncommitted_bytes * 2)
    }

    /// Whether the task must take part in a commit now.
    pub(crate) fn has_work(&self, now: Millis) -> bool {
        let uncommitted = &self.uncommitted;
        let changed_rows = || {
            self.store
                .as_ref()
                .is_some_and(|store| !store.state.uncommitted.is_empty())
        };
        self.is_live()
            && (uncommitted.position_moved
                || !uncommitted.output.records.is_empty()
                || changed_rows()
                || self.is_idle_too_long(now))
    }

    /// Whether the task has not committed for a quarter of the tombstone retention. It then commits only its position,
    /// so that the store of an idle task does not become too old (invariant C10, no missed tombstone).
    pub(crate) fn is_idle_too_long(&self, now: Millis) -> bool {
        let limit = self.sub.delete_retention / 4;
        self.store
            .as_ref()
            .is_some_and(|store| now.saturating_sub(store.as_of) > limit)
    }

    /// Marks an input as assigned. After the last input is assigned, the task starts to recover, even if it had these
    /// inputs before: another process may have committed in the meantime.
    pub(crate) fn assign(&mut self, at: &TopicPartition) {
        for input in self.inputs.iter_mut().filter(|input| input.at == *at) {
            input.assigned = true;
        }
        if self.inputs.iter().all(|input| input.assigned) {
            self.recover();
        }
    }

    /// Starts the recovery.
    pub(crate) fn recover(&mut self) {
        self.phase = Phase::Recovering(Box::default());
    }

    /// Discards everything since the last commit (C7) and starts the recovery. A stopped task remains stopped.
    pub(crate) fn roll_back(&mut self) {
        if let Some(store) = &mut self.store {
            store.state.roll_back();
        }
        self.uncommitted.clear();
        if !matches!(self.phase, Phase::Waiting | Phase::Stopped { .. }) {
            self.recover();
        }
    }

    /// Rolls back and stops; with `retry_at`, the recovery starts again at that time.
    pub(crate) fn stop(&mut self, reason: String, retry_at: Option<Duration>) {
        // A stopped task retries every few seconds, but only a new cause is news.
        if self.reading.last_stop.as_ref() == Some(&reason) {
            tracing::debug!(task = %self.id, reason, "task stopped again");
        } else {
            tracing::error!(task = %self.id, reason, "task stopped");
            self.reading.last_stop = Some(reason.clone());
        }
        self.roll_back();
        self.phase = Phase::Stopped { reason, retry_at };
    }

    /// Stops because an input cannot be read, until the next retry.
    pub(crate) fn stop_reading(&mut self, now: Duration, reason: String) {
        self.reading.failed = true;
        let retry_at = now + self.retry_delay();
        self.stop(reason, Some(retry_at));
    }

    /// Delay until a stopped task retries. Consecutive stops get longer.
    pub(crate) fn retry_delay(&mut self) -> Duration {
        self.reading.next_retry()
    }

    /// Whether the task stopped because an input could not be read, and has not read its inputs since.
    pub(crate) fn has_failed_input(&self) -> bool {
        self.reading.failed
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::Stopped { .. })
    }

    /// Pauses because the processor is not ready. Consecutive pauses get longer.
    pub(crate) fn pause(&mut self, now: Duration, reason: String) {
        let pause = self.reading.next_pause();
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(task = %self.id, reason, pause_ms, "task paused");
        self.phase = Phase::Paused {
            until: now + pause,
            reason,
        };
    }

    /// Pauses the partitions in the consumer. If that fails, their records are read and skipped, which only costs time.
    pub(crate) fn pause_reading(&mut self, consumer: &mut dyn GroupConsumer, partitions: &[TopicPartition]) {
        if self.reading.paused {
            return;
        }
        match consumer.pause(partitions) {
            Ok(()) => self.reading.paused = true,
            Err(error) => tracing::warn!(task = %self.id, reason = chain(&error), "cannot pause partitions"),
        }
    }

    /// Starts to read the inputs at the task's positions, and to process them.
    pub(crate) fn start_reading(&mut self, consumer: &mut dyn GroupConsumer) -> event_log::Result<()> {
        for input in &self.inputs {
            consumer.start(&input.at, input.next)?;
        }
        if self.reading.paused {
            consumer.resume(&self.partitions())?;
        }
        self.reading.paused = false;
        self.reading.failed = false;
        self.phase = Phase::Running;
        Ok(())
    }

    /// Prepares a recovered task to run at these positions.
    pub(crate) fn start_at(&mut self, positions: &[Offset], commit_first: bool, restored: u64) -> Result<()> {
        let store = self.store.as_ref().expect("a recovered task has its store open");
        self.processor.restore(&store.state)?;
        let commit_record = store.commit_record.as_ref();
        self.stream_time = commit_record.map_or(0, |commit_record| commit_record.stream_time);
        for (input, next) in self.inputs.iter_mut().zip(positions) {
            input.next = *next;
        }
        // A commit with an unknown outcome may have included the rejected records. If so, the isolation must end here,
        // because otherwise no timer would fire before the next record (C13, C15).
        let passed = |bisection: &RecordBisection| bisection.is_passed(positions.iter().copied());
        self.bisection.records = self.bisection.records.take().filter(|bisection| !passed(bisection));
        self.uncommitted.position_moved = commit_first || self.processor.wants_commit();
        self.restored = restored;
        Ok(())
    }

    /// Processes records, all of this task, and notes them as uncommitted. The caller then advances the positions.
    pub(crate) fn process(&mut self, now: Millis, newest: Millis, records: RecordSlice<'_>) -> Result<(), StepError> {
        let Some(first) = records.first() else { return Ok(()) };
        let bisection = self.bisection.records.as_ref();
        let poison = bisection.and_then(|bisection| bisection.poison_at(first));
        let context = Context {
            now,
            stream_time: self.stream_time.max(newest),
        };
        match poison.cloned() {
            Some(poison) => self.dead_letter(context, first, poison)?,
            None => self.step(context, records)?,
        }
        self.stream_time = self.stream_time.max(newest);
        self.uncommitted.position_moved = true;
        if self.uncommitted.records == 0 {
            self.uncommitted.first = Some(FirstRecord {
                at: first.partition().clone(),
                offset: first.offset(),
                timestamp: first.timestamp(),
            });
        }
        self.uncommitted.records += records.len();
        self.reading.progressed();
        Ok(())
    }

    fn step(&mut self, context: Context, records: RecordSlice<'_>) -> Result<(), StepError> {
        let prepared = self.processor.prepare(records);
        prepared.map_err(|error| match error.action() {
            ErrorAction::Retry => StepError::NotReady(chain(&error)),
            ErrorAction::DeadLetter | ErrorAction::Stop => StepError::Failed(chain(&error)),
        })?;
        let store = self.store.as_mut().expect("a running task has its store open");
        let output = &mut self.uncommitted.output;
        let processed = self.processor.process(context, records, &mut store.state, output);
        output.clear_cause();
        processed.map_err(|error| StepError::Failed(chain(&error)))
    }

    /// Writes the poison record as a dead letter, in the transaction of its offset (C2). A dead letter without body means that
    /// the previous attempt was rejected, possibly for what `on_dead_letter` wrote, so it is not called then.
    fn dead_letter(&mut self, context: Context, record: RecordRef<'_>, poison: PoisonRecord) -> Result<(), StepError> {
        let notifies = poison.body == Body::Whole;
        let error = RejectedOutput { reason: poison.reason };
        let output = &mut self.uncommitted.output;
        output.dead_letter_with(record, Stage::Produce, &error, poison.body);
        if notifies {
            let store = self.store.as_mut().expect("a running task has its store open");
            let noted = self.processor.on_dead_letter(context, record, &mut store.state, output);
            output.clear_cause();
            noted.map_err(|error| StepError::Failed(chain(&error)))?;
        }
        Ok(())
    }

    /// Fires timers that are due, up to a limit, and returns which timers fired.
    pub(crate) fn fire(&mut self, now: Millis) -> Result<Fired> {
        let context = self.context(now);
        let store = self.store.as_mut().expect("a running task has its store open");
        let (processor, bisection) = (&mut self.processor, self.bisection.timers.as_ref());
        let input = self.inputs.first().map(|input| &input.at);
        let mut call = |timer: &Timer, state: &mut State, output: &mut Output| {
            let poison = bisection.and_then(|bisection| bisection.poison(timer));
            match (poison, input) {
                (Some(poison), Some(input)) => {
                    if processor.on_rejected_timer(context, timer, state, output)? == RejectedTimer::DeadLetter {
                        output.dead_letter_of_timer(input, timer, &poison.reason);
                    }
                    Ok(())
                }
                _ => processor.on_timer(context, timer, state, output),
            }
        };
        let count_max = bisection.map_or(TIMERS_MAX, |bisection| bisection.chunk.min(TIMERS_MAX));
        // When a timer fires, its row is deleted. So the task has a changed row and takes part in the commit (C3, C12).
        let uncommitted = &mut self.uncommitted;
        let fired = timers::fire(context, &mut store.state, &mut uncommitted.output, count_max, &mut call)?;
        uncommitted.timers += fired.count;
        uncommitted.last_timer = fired.last.clone().or(uncommitted.last_timer.take());
        Ok(fired)
    }

    fn context(&self, now: Millis) -> Context {
        Context {
            now,
            stream_time: self.stream_time,
        }
    }

    /// Whether a timer is due.
    pub(crate) fn has_due_timer(&mut self, now: Millis) -> Result<bool> {
        let context = self.context(now);
        let state = &mut self.store_mut().state;
        for clock in TimerClock::ALL {
            if state.first_timer(clock)?.is_some_and(|at| at <= clock.now(context)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Due time of the task's first wall-clock timer, if it may fire.
    pub(crate) fn next_timer(&mut self) -> Result<Option<Millis>> {
        let fires = self.is_running() && self.bisection.records.is_none();
        let store = self.store.as_mut().filter(|_| fires);
        store.map_or(Ok(None), |store| store.state.first_timer(TimerClock::Wall))
    }

    /// Halves the set of suspect records or timers after a rejected transaction. Returns whether the bisection can continue;
    /// it cannot if even the smallest dead letter was rejected.
    pub(crate) fn bisect(&mut self, reason: String) -> bool {
        let bisection = self.bisection.timers.take();
        let Uncommitted { records, timers, .. } = self.uncommitted;
        let last_timer = self.uncommitted.last_timer.as_ref().filter(|_| timers > 0);
        match (records, last_timer) {
            (0, Some(last)) => {
                self.bisection.timers = TimerBisection::after(bisection, timers, last, reason);
                self.bisection.timers.is_some()
            }
            // While it is unknown whether a record or a timer is the cause, neither is treated as poison.
            (_, Some(_)) => {
                self.bisection.timers = Some(TimerBisection::from_records(bisection, timers));
                true
            }
            (_, None) => {
                self.bisection.timers = bisection;
                self.bisect_records(Some(reason))
            }
        }
    }

    /// Makes transactions of the uncommitted records smaller. Without a reason, no record is treated as poison.
    pub(crate) fn bisect_records(&mut self, reason: Option<String>) -> bool {
        let first = self.uncommitted.first.clone();
        let rejected = RejectedRecords {
            records: self.uncommitted.records,
            first: first.map(|first| (first.at, first.offset)),
            until: self.inputs.iter().map(|input| input.next).collect(),
            reason,
        };
        self.bisection.records = RecordBisection::after(self.bisection.records.take(), rejected);
        self.bisection.records.is_some()
    }

    /// Why the store would reject what the steps wrote; `None` if it would not reject anything.
    pub(crate) fn state_rejection(&self) -> Option<String> {
        let rejection = self.store.as_ref().and_then(|store| store.state.rejection());
        rejection.map(|rejection| chain(&rejection))
    }

    /// Calls the processor before a commit.
    pub(crate) fn before_commit(&mut self, now: Millis) -> Result<()> {
        let context = self.context(now);
        let store = self.store.as_mut().expect("a task that commits has its store open");
        let output = &mut self.uncommitted.output;
        self.processor.before_commit(context, &mut store.state, output)
    }

    /// Appends one changelog record for each changed row.
    pub(crate) fn push_rows(&self, out: &mut OutBatch, scratch: &mut Vec<u8>) {
        let store = self.store.as_ref().expect("a task that commits has its store open");
        changelog::push_rows(out, &self.changelog, &store.state.uncommitted, scratch);
    }

    /// Appends the commit record, even if only the position changed (C3).
    pub(crate) fn push_commit_record(&mut self, out: &mut OutBatch, scratch: &mut Vec<u8>, transactional: bool) {
        let store = self.store.as_ref().expect("a task that commits has its store open");
        let position = |input: &Input| (input.at.topic.to_string(), input.at.partition, input.next);
        let topic_id = |input: &InputTopic| (input.name.to_string(), input.id.to_string());
        let record = CommitRecord {
            seq: store
                .commit_record
                .as_ref()
                .map_or(0, |commit_record| commit_record.seq)
                + 1,
            offsets: self.inputs.iter().map(position).collect(),
            topic_ids: self.sub.inputs.iter().map(topic_id).collect(),
            stream_time: self.stream_time,
            at_least_once: !transactional,
        };
        changelog::push_commit_record(out, &self.changelog, &record, scratch);
        self.uncommitted.commit_record = Some(record);
    }

    /// Moves the changed rows to the committed buffer after a known commit (C4); the store is written by the next flush.
    /// Returns the number of dead letters that were committed.
    pub(crate) fn committed(&mut self, produced: &Produced, now: Duration) -> u64 {
        let store = self.store.as_mut().expect("a task that commits has its store open");
        let rows = std::mem::take(&mut store.state.uncommitted);
        store.state.uncommitted_bytes = 0;
        store.state.committed.add(rows, now);
        store.as_of = store.as_of.max(produced.timestamp);
        store.next = Some(produced.next_offset);
        store.commit_record = self.uncommitted.commit_record.take();
        if self.uncommitted.records > 0 {
            let next = self.inputs.iter().map(|input| (&input.at, input.next));
            let bisection = self.bisection.records.take();
            self.bisection.records = bisection.and_then(|bisection| bisection.committed(next));
        }
        let dead_letters = self.uncommitted.output.dead_letters();
        self.uncommitted.clear();
        dead_letters
    }

    /// Flushes the committed buffer if it is due. A recovering task writes restored rows in bulk instead.
    pub(crate) fn flush_if_due(&mut self, now: Duration, bytes_max: usize) -> state_store::Result<()> {
        let recovering = self.is_recovering();
        if let Some(store) = &mut self.store {
            store.state.committed.release_idle(now);
        }
        match &mut self.store {
            Some(store) if !recovering && store.state.committed.is_due(now, bytes_max) => {
                store.flush(&self.sub.origin(self.id.partition))
            }
            _ => Ok(()),
        }
    }

    /// Flushes the committed buffer.
    pub(crate) fn flush(&mut self) -> state_store::Result<()> {
        let origin = self.sub.origin(self.id.partition);
        self.store.as_mut().map_or(Ok(()), |store| store.flush(&origin))
    }
}

/// Error of the dead letter of a poison record.
#[derive(Debug, thiserror::Error)]
#[error("output for this record was rejected: {reason}")]
struct RejectedOutput {
    reason: String,
}
