//! A task: one partition of a sub-topology, with its processor, its state and its place in the inputs.
//!
//! Guarantees: what the steps since the last commit have made can be dropped without a trace.
//! Never: a write to the store or the log by itself.

use crate::checkpoint::{self, Origin, STATE};
use crate::commit_record::{CHANGELOG_VERSION, COMMIT_RECORD_KEY, CommitRecord};
use crate::output::Body;
use crate::plan::Sub;
use crate::query::TaskReport;
use crate::recovery::Recovery;
use crate::status::Cause;
use crate::thread::apart::Apart;
use crate::thread::caution::{Caution, Poison, Refused};
use crate::timer::{self, Fired, TimerClock};
use crate::{Context, Output, Processor, Stage, State, TaskId, Timer};
use event_log::{ErrorAction, Millis, Offset, OutBatch, OutRecord, Produced, RecordBatch, TopicPartition};
use failpoint::hit;
use service::chain;
use state_store::{Batch, SharedStore};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Timers that fire at a time at most.
const TIMERS_MAX: usize = 1024;

/// One input partition of a task and the offset of the next record to process.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub at: TopicPartition,
    pub next: Offset,
    pub assigned: bool,
}

/// An open store and what is known of it.
pub(crate) struct TaskStore {
    pub state: State,
    /// Next offset of the changelog; `None` while the store is empty and nothing was read.
    pub next: Option<Offset>,
    /// See [`checkpoint::Checkpoint::as_of`].
    pub as_of: Millis,
    pub commit_record: Option<CommitRecord>,
}

impl TaskStore {
    pub(crate) fn store(&self) -> &SharedStore {
        &self.state.store
    }

    /// Brings the store up to the last commit: rows, commit_record and checkpoint in one batch.
    pub(crate) fn flush(&mut self, origin: &Origin) -> state_store::Result<()> {
        let Some(next) = self.next.filter(|_| self.state.settled.is_dirty()) else {
            return Ok(());
        };
        let mut batch = Batch::default();
        self.state.settled.write_into(&mut batch, STATE);
        self.put_meta(&mut batch, origin, next);
        self.store().commit(batch)?;
        hit("runtime.flush");
        self.state.settled.flushed();
        Ok(())
    }

    /// The same for what was restored, which is much and not read again soon: first the rows, then commit_record and
    /// checkpoint. A crash in between leaves rows that are read once more.
    pub(crate) fn load(&mut self, origin: &Origin) -> state_store::Result<()> {
        let Some(next) = self.next else { return Ok(()) };
        let rows = self.state.settled.take_rows();
        self.store().load(STATE, rows)?;
        let mut batch = Batch::default();
        self.put_meta(&mut batch, origin, next);
        self.store().commit(batch)
    }

    fn put_meta(&self, batch: &mut Batch, origin: &Origin, next: Offset) {
        if let Some(commit_record) = &self.commit_record {
            checkpoint::put_commit_record(batch, &commit_record.written());
        }
        checkpoint::put_checkpoint(batch, &origin.checkpoint(next, self.as_of));
    }
}

/// What a task is doing.
pub(crate) enum Phase {
    /// Not all of its inputs are assigned yet.
    Waiting,
    /// On the way back to the last commit.
    Recovering(Recovery),
    /// Processing.
    Running,
    /// Paused until the time, as its processor is not ready.
    Resting { until: Duration, reason: String },
    /// Needs people.
    Stopped {
        reason: String,
        /// When it is looked at again, on the monotonic clock, if people can mend it without a restart.
        again: Option<Duration>,
    },
}

/// Why a range was not processed.
pub(crate) enum Trouble {
    /// Nothing of it was; try again later.
    Rest(String),
    /// It failed in the middle, or before it in a way that will not mend.
    Stop(String),
}

/// One task.
pub(crate) struct Task {
    pub sub: Arc<Sub>,
    pub id: TaskId,
    pub changelog: TopicPartition,
    pub processor: Box<dyn Processor>,
    pub inputs: Vec<Input>,
    pub live: Option<TaskStore>,
    pub output: Output,
    pub phase: Phase,
    /// Whether its place in the inputs moved, or must be written down, since the last commit.
    pub moved: bool,
    /// Records processed since the last commit.
    pub uncommitted: usize,
    /// Where the first of them stood, and its timestamp.
    first: Option<(TopicPartition, Offset)>,
    first_ms: Millis,
    pub stream_time: Millis,
    pub caution: Option<Caution>,
    /// Timers that fired since the last commit, and the latest of them.
    fired: usize,
    fired_last: Option<Timer>,
    /// How timers fire while one is looked for of which something was made that the log refuses.
    pub apart: Option<Apart>,
    /// Changelog records that its last recovery read.
    pub restored: u64,
    /// Pauses in a row for a processor that is not ready.
    pub rests: u32,
    /// Whether its partitions are paused in the consumer.
    pub paused: bool,
    /// The commit_record of the commit that is under way, as a value and as it is written.
    pending: Option<CommitRecord>,
    commit_record: Vec<u8>,
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
            live: None,
            output: Output::of_task(sub.application.clone(), partition),
            phase: Phase::Waiting,
            moved: false,
            uncommitted: 0,
            first: None,
            first_ms: 0,
            stream_time: 0,
            caution: None,
            fired: 0,
            fired_last: None,
            apart: None,
            restored: 0,
            rests: 0,
            paused: false,
            pending: None,
            commit_record: Vec::new(),
            sub,
        }
    }

    /// Whether it may take part in a commit.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Resting { .. })
    }

    /// Why the task does not work, for people; `None` when it does.
    pub(crate) fn cause(&self) -> Option<Cause> {
        match &self.phase {
            Phase::Running => None,
            Phase::Waiting => Some(Cause::passing("waiting for the rest of its inputs")),
            Phase::Resting { reason, .. } => Some(Cause::outside(format!("paused: {reason}"))),
            Phase::Stopped { reason, .. } => Some(Cause::people(format!("stopped: {reason}"))),
            Phase::Recovering(recovery) => Some(match (&recovery.waits_for, recovery.restoring_until()) {
                (Some(reason), _) => Cause::outside(reason.clone()),
                (None, Some(end)) => {
                    let next = self.live.as_ref().and_then(|live| live.next).unwrap_or_default();
                    Cause::passing(format!("restoring from {}: offset {next} of {end}", self.changelog))
                }
                (None, None) => Cause::passing("recovering"),
            }),
        }
    }

    /// What it does, for people and programs.
    pub(crate) fn report(&self) -> TaskReport {
        let next = self.live.as_ref().and_then(|live| live.next).unwrap_or_default();
        let restoring = match &self.phase {
            Phase::Recovering(recovery) => recovery.restoring_until(),
            _ => None,
        };
        let phase = match &self.phase {
            Phase::Running => "running",
            Phase::Waiting => "waiting",
            Phase::Resting { .. } => "paused",
            Phase::Stopped { .. } => "stopped",
            Phase::Recovering(_) if restoring.is_some() => "restoring",
            Phase::Recovering(_) => "recovering",
        };
        let input = |input: &Input| (input.at.topic.to_string(), input.at.partition, input.next);
        TaskReport {
            task: self.id.to_string(),
            store: self.sub.store.clone(),
            partition: self.id.partition,
            phase,
            cause: self.cause().map(|cause| cause.text),
            inputs: self.inputs.iter().map(input).collect(),
            changelog_next: self.live.as_ref().and_then(|live| live.next),
            restored: self.restored,
            restore_left: restoring.map(|end| end.saturating_sub(next).max(0)),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    pub(crate) fn partitions(&self) -> Vec<TopicPartition> {
        self.inputs.iter().map(|input| input.at.clone()).collect()
    }

    /// What changed state occupies until it is committed: the rows, and once more the changelog's records of them.
    pub(crate) fn state_bytes(&self) -> usize {
        self.live.as_ref().map_or(0, |live| live.state.overlay_bytes * 2)
    }

    /// Whether a commit has something of this task to write, or is due although nothing came (see the tombstone rule).
    pub(crate) fn has_work(&self, now: Millis) -> bool {
        self.is_live() && (self.moved || !self.output.out.is_empty() || self.overlay_waits() || self.idle_for_long(now))
    }

    fn overlay_waits(&self) -> bool {
        self.live.as_ref().is_some_and(|live| !live.state.overlay.is_empty())
    }

    /// Whether a quarter of the time has passed after which unread tombstones may be gone.
    pub(crate) fn idle_for_long(&self, now: Millis) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| now.saturating_sub(live.as_of) > self.sub.delete_retention / 4)
    }

    /// Drops everything since the last commit, and begins the way back to it. A stopped task stays stopped.
    pub(crate) fn roll_back(&mut self) {
        if let Some(live) = &mut self.live {
            live.state.roll_back();
        }
        self.output.clear();
        self.moved = false;
        self.uncommitted = 0;
        self.fired = 0;
        if !matches!(self.phase, Phase::Waiting | Phase::Stopped { .. }) {
            self.phase = Phase::Recovering(Recovery::default());
        }
    }

    /// Processes a range of records, all of this task, and moves its place behind them.
    pub(crate) fn process(
        &mut self,
        now: Millis,
        newest: Millis,
        records: &RecordBatch,
        range: Range<usize>,
    ) -> Result<(), Trouble> {
        let letter = self
            .caution
            .as_ref()
            .and_then(|caution| caution.poison_at(records, range.start))
            .cloned();
        let context = Context {
            now,
            stream_time: self.stream_time.max(newest),
        };
        if let Some(poison) = letter {
            let tells = poison.body == Body::Whole;
            self.bury(records, range.start, poison);
            let live = self.live.as_mut().expect("a running task has its store open");
            if let Some(record) = records.get(range.start).filter(|_| tells) {
                let told = self
                    .processor
                    .on_dead_letter(context, record, &mut live.state, &mut self.output);
                self.output.uncaused();
                told.map_err(|error| Trouble::Stop(chain(&error)))?;
            }
        } else {
            self.processor
                .prepare(records, range.clone())
                .map_err(|error| match error.action() {
                    ErrorAction::Retry => Trouble::Rest(chain(&error)),
                    _ => Trouble::Stop(chain(&error)),
                })?;
            let live = self.live.as_mut().expect("a running task has its store open");
            let step = self
                .processor
                .process(context, records, range.clone(), &mut live.state, &mut self.output);
            self.output.uncaused();
            step.map_err(|error| Trouble::Stop(chain(&error)))?;
        }
        self.stream_time = self.stream_time.max(newest);
        self.moved = true;
        if self.uncommitted == 0 {
            let first = records.get(range.start);
            self.first = first.map(|record| (record.partition().clone(), record.offset()));
            self.first_ms = first.map_or(0, |record| record.timestamp());
        }
        self.uncommitted += range.len();
        Ok(())
    }

    /// Timestamp of the first record since the last commit, in ms; `None` without one.
    pub(crate) fn first_ms(&self) -> Option<Millis> {
        (self.uncommitted > 0).then_some(self.first_ms)
    }

    /// Lets timers fire that are due; says how many did. A range of them at most, so that caps are looked at.
    pub(crate) fn fire(&mut self, now: Millis) -> crate::Result<Fired> {
        let context = self.context(now);
        let live = self.live.as_mut().expect("a running task has its store open");
        let (processor, apart) = (&mut self.processor, self.apart.as_ref());
        let input = self.inputs.first().map(|input| &input.at);
        let mut call = |timer: &Timer, state: &mut State, output: &mut Output| match (
            apart.and_then(|apart| apart.poison(timer)),
            input,
        ) {
            (Some(poison), Some(input)) => {
                output.bury_timer(input, timer, &poison.reason);
                Ok(())
            }
            _ => processor.on_timer(context, timer, state, output),
        };
        let at_most = apart.map_or(TIMERS_MAX, |apart| apart.at_most.min(TIMERS_MAX));
        // A timer that fires deletes its row, so that the task has something to commit, with its commit_record and its offsets.
        let fired = timer::fire(context, &mut live.state, &mut self.output, at_most, &mut call)?;
        self.fired += fired.count;
        self.fired_last = fired.last.clone().or(self.fired_last.take());
        Ok(fired)
    }

    fn context(&self, now: Millis) -> Context {
        let stream_time = self.stream_time;
        Context { now, stream_time }
    }

    /// Whether a timer is due.
    pub(crate) fn is_due(&mut self, now: Millis) -> crate::Result<bool> {
        let context = self.context(now);
        let live = self.live.as_mut().expect("a running task has its store open");
        for clock in TimerClock::ALL {
            if live
                .state
                .first_timer(clock)?
                .is_some_and(|at| at <= clock.now(context))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Narrows down what of an aborted transaction made something that the log or the store refuses, of the records in
    /// it or of the timers; false when nothing is left to give up.
    pub(crate) fn narrow(&mut self, reason: String) -> bool {
        let apart = self.apart.take();
        match (self.uncommitted, self.fired_last.as_ref().filter(|_| self.fired > 0)) {
            (0, Some(last)) => {
                self.apart = Apart::after(apart, self.fired, last, reason);
                self.apart.is_some()
            }
            (_, Some(_)) => {
                self.apart = Some(Apart::from_records(apart, self.fired));
                true
            }
            (_, None) => {
                self.apart = apart;
                self.caution = Caution::after(self.caution.take(), self.refused(Some(reason)));
                self.caution.is_some()
            }
        }
    }

    /// What the steps have written that no store takes.
    pub(crate) fn refusal(&self) -> Option<String> {
        let refusal = self.live.as_ref().and_then(|live| live.state.refusal());
        refusal.map(|refusal| chain(&refusal))
    }

    /// When its first timer of the wall clock is due.
    pub(crate) fn wakes_at(&mut self) -> crate::Result<Option<Millis>> {
        let fires = matches!(self.phase, Phase::Running) && self.caution.is_none();
        let live = self.live.as_mut().filter(|_| fires);
        live.map_or(Ok(None), |live| live.state.first_timer(TimerClock::Wall))
    }

    fn bury(&mut self, records: &RecordBatch, index: usize, poison: Poison) {
        let error = TooLarge { reason: poison.reason };
        if let Some(record) = records.get(index) {
            self.output.bury(record, Stage::Produce, &error, poison.body);
        }
    }

    /// What of this task was in a transaction that the log refused.
    pub(crate) fn refused(&self, reason: Option<String>) -> Refused {
        let first = self.first.clone().filter(|_| self.uncommitted > 0);
        let until = self.inputs.iter().map(|input| input.next).collect();
        Refused {
            records: self.uncommitted,
            first,
            until,
            reason,
        }
    }

    /// Gives the processor its last word before a commit.
    pub(crate) fn before_commit(&mut self, now: Millis) -> crate::Result<()> {
        let context = self.context(now);
        let live = self.live.as_mut().expect("a task that commits has its store open");
        self.processor.before_commit(context, &mut live.state, &mut self.output)
    }

    /// Adds a record of its changelog to a batch.
    fn push(&self, out: &mut OutBatch, key: &[u8], value: Option<&[u8]>) {
        let TopicPartition { topic, partition } = &self.changelog;
        let record = OutRecord {
            topic,
            partition: Some(*partition),
            timestamp: None,
            key: Some(key),
            value,
        };
        out.push(record, []);
    }

    /// Adds the changed keys to a batch, as records of its changelog.
    pub(crate) fn drain_rows(&self, out: &mut OutBatch, scratch: &mut Vec<u8>) {
        let live = self.live.as_ref().expect("a task that commits has its store open");
        for (key, value) in live.state.overlay.iter() {
            scratch.clear();
            scratch.push(CHANGELOG_VERSION);
            scratch.extend_from_slice(value.as_deref().unwrap_or_default());
            self.push(out, key, value.as_ref().map(|_| scratch.as_slice()));
        }
    }

    /// Adds its commit_record to a batch; `alone` says that there is no transaction around it.
    pub(crate) fn drain_marker(&mut self, out: &mut OutBatch, alone: bool) {
        let live = self.live.as_ref().expect("a task that commits has its store open");
        let commit_record = CommitRecord {
            seq: live.commit_record.as_ref().map_or(0, |commit_record| commit_record.seq) + 1,
            offsets: self
                .inputs
                .iter()
                .map(|i| (i.at.topic.to_string(), i.at.partition, i.next))
                .collect(),
            stream_time: self.stream_time,
            alone,
        };
        self.commit_record.clear();
        commit_record.write(&mut self.commit_record);
        self.push(out, COMMIT_RECORD_KEY, Some(&self.commit_record));
        self.pending = Some(commit_record);
    }

    /// Takes over a transaction that was committed; the store follows with its next flush.
    pub(crate) fn apply(&mut self, produced: &Produced, now: Duration) {
        let live = self.live.as_mut().expect("a task that commits has its store open");
        let committed = std::mem::take(&mut live.state.overlay);
        live.state.overlay_bytes = 0;
        live.state.settled.settle(committed, now);
        live.as_of = live.as_of.max(produced.timestamp);
        live.next = Some(produced.next_offset);
        live.commit_record = self.pending.take();
        self.moved = false;
        self.uncommitted = 0;
        self.fired = 0;
    }

    /// Flushes what was committed, if it is time to. What is restored goes to the store by another way.
    pub(crate) fn flush_if_due(&mut self, now: Duration, bytes_max: usize) -> state_store::Result<()> {
        let restores = matches!(self.phase, Phase::Recovering(_));
        match &mut self.live {
            Some(live) if !restores && live.state.settled.is_due(now, bytes_max) => {
                live.flush(&self.sub.origin(self.id.partition))
            }
            _ => Ok(()),
        }
    }

    /// Flushes what was committed.
    pub(crate) fn flush(&mut self) -> state_store::Result<()> {
        let origin = self.sub.origin(self.id.partition);
        self.live.as_mut().map_or(Ok(()), |live| live.flush(&origin))
    }
}

/// Why a record became a dead letter although its processor had nothing against it.
#[derive(Debug, thiserror::Error)]
#[error("what was made of this record cannot be written: {reason}")]
struct TooLarge {
    reason: String,
}
