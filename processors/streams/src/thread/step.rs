//! How a batch of input becomes steps: runs of records of one task, in the order in which they were read.
//!
//! Guarantees: no allocation for a record; what a run made is sent before the next run begins, so that the log works
//! while the next one is processed.
//! Never: a record of a task that does not run; it is read again when the task starts.

use super::{Broken, StreamThread};
use crate::Result;
use crate::metrics;
use crate::pace::Advice;
use crate::task::{Phase, Task, Trouble};
use crate::timer::Fired;
use event_log::{Millis, RecordBatch};
use service::chain;
use std::ops::Range;
use std::time::Duration;

/// Records given to one step at most, so that caps are looked at often enough.
const STEP_RECORDS_MAX: usize = 1024;
const REST_MIN: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(5);

/// Records of one task, one after the other in the batch.
struct Run {
    task: usize,
    range: Range<usize>,
    /// Greatest timestamp among them.
    newest: Millis,
}

impl StreamThread {
    /// Processes a batch. Ends early when a transaction fails: everything not committed is then read again.
    pub(super) fn process(&mut self, records: &RecordBatch) -> Result<()> {
        self.route(records);
        let mut from = 0;
        while let Some(run) = self.next_run(records, from) {
            from = run.range.end;
            if !self.work(records, run)? {
                break;
            }
        }
        Ok(())
    }

    fn route(&mut self, records: &RecordBatch) {
        self.routes.clear();
        let tasks = &self.tasks;
        self.routes.extend(records.partitions().iter().map(|at| {
            tasks.iter().enumerate().find_map(|(index, task)| {
                task.inputs
                    .iter()
                    .position(|input| input.at == *at)
                    .map(|input| (index, input))
            })
        }));
    }

    /// The next run at or after an index of the batch.
    fn next_run(&self, records: &RecordBatch, from: usize) -> Option<Run> {
        let mut run: Option<Run> = None;
        let mut limit = STEP_RECORDS_MAX;
        for index in from..records.len() {
            let record = records.get(index)?;
            let route = self.routes.get(record.partition_index()).copied().flatten();
            let wanted = route.and_then(|(task, input)| {
                let of = self.tasks.get(task).filter(|of| matches!(of.phase, Phase::Running))?;
                of.inputs
                    .get(input)
                    .filter(|input| record.offset() >= input.next)
                    .map(|_| (task, of))
            });
            match (&mut run, wanted) {
                (None, None) => {}
                (None, Some((task, of))) => {
                    limit = of.caution.as_ref().map_or(limit, |caution| caution.chunk.min(limit));
                    run = Some(Run {
                        task,
                        range: index..index + 1,
                        newest: record.timestamp(),
                    });
                }
                (Some(run), Some((task, _))) if task == run.task && run.range.len() < limit => {
                    run.range.end = index + 1;
                    run.newest = run.newest.max(record.timestamp());
                }
                (Some(_), _) => break,
            }
        }
        run
    }

    /// Processes one run and sends what it made; says whether the rest of the batch may follow.
    fn work(&mut self, records: &RecordBatch, run: Run) -> Result<bool> {
        let Run {
            task: index,
            range,
            newest,
        } = run;
        let cautious = self.tasks.get(index).is_some_and(|task| task.caution.is_some());
        // A transaction in which a refused record is looked for is that task's alone.
        if cautious && !self.commit(None)? {
            return Ok(false);
        }
        let now = self.env.clock.now();
        let Some(task) = self.tasks.get_mut(index) else {
            return Ok(true);
        };
        match task.process(now, newest, records, range.clone()) {
            Ok(()) => {}
            Err(Trouble::Rest(reason)) => {
                self.rest(index, reason);
                return Ok(true);
            }
            Err(Trouble::Stop(reason)) => {
                self.broke(Broken::Failed(format!("a task stops: {reason}")));
                self.stop(index, reason, false);
                return Ok(false);
            }
        }
        self.move_on(index, records, range.clone());
        self.env
            .metrics
            .records_in
            .increment(u64::try_from(range.len()).unwrap_or(u64::MAX));
        let elapsed = self.env.clock.elapsed();
        let Some(sent_bytes) = self.send_effects(index, elapsed) else {
            return Ok(false);
        };
        self.pace.worked(elapsed, range.len(), sent_bytes);
        if cautious {
            return self.commit(Some(index));
        }
        if !self.fire(index, now)? {
            return Ok(false);
        }
        let state_bytes = self.tasks.iter().map(Task::state_bytes).sum();
        match self.pace.advise(elapsed, state_bytes, false) {
            Advice::Commit => self.commit(None),
            Advice::ReadOn(_) | Advice::Nothing => Ok(true),
        }
    }

    /// Lets every running task's timers fire that are due, and says how long until the next one of the wall clock.
    pub(super) fn fire_due(&mut self) -> Result<Option<Duration>> {
        let (now, mut next) = (self.env.clock.now(), None);
        for index in 0..self.tasks.len() {
            if !self.fire(index, now)? {
                return Ok(None);
            }
            let Some(task) = self.tasks.get_mut(index) else { break };
            let at = task.wakes_at()?;
            next = next.into_iter().chain(at).min();
        }
        let left = |at: Millis| Duration::from_millis(u64::try_from(at.saturating_sub(now)).unwrap_or(0));
        Ok(next.map(left))
    }

    /// Lets a task's timers fire; says whether the transaction can go on. While one is looked for of which something was
    /// made that is refused, they fire in transactions of their own.
    fn fire(&mut self, index: usize, now: Millis) -> Result<bool> {
        // While a refused record is looked for, the transaction is that record's alone.
        let idle = |task: &&mut Task| task.is_running() && task.caution.is_none();
        let Some(task) = self.tasks.get_mut(index).filter(idle) else {
            return Ok(true);
        };
        if task.apart.is_none() {
            return Ok(self.call_timers(index, now).is_some());
        }
        if !task.is_due(now)? {
            return Ok(true);
        }
        if !self.commit(None)? {
            return Ok(false);
        }
        let Some(fired) = self.call_timers(index, now) else {
            return Ok(false);
        };
        let committed = self.commit(Some(index))?;
        if let Some(task) = self.tasks.get_mut(index).filter(|_| committed) {
            task.apart = task.apart.take().and_then(|apart| apart.committed(fired));
        }
        Ok(committed)
    }

    /// Calls a task's timers that are due and sends what they made; how many, or `None` when the transaction failed.
    fn call_timers(&mut self, index: usize, now: Millis) -> Option<usize> {
        let Fired { count, late_ms, .. } = match self.tasks.get_mut(index)?.fire(now) {
            Ok(fired) => fired,
            Err(error) => {
                let reason = chain(&error);
                self.broke(Broken::Failed(format!("a task stops: {reason}")));
                self.stop(index, reason, false);
                return None;
            }
        };
        if count == 0 {
            return Some(0);
        }
        let metrics = &self.env.metrics;
        metrics.timers.increment(u64::try_from(count).unwrap_or(u64::MAX));
        if let Some(late_ms) = late_ms {
            metrics.timer_late_seconds.record(metrics::float(late_ms) / 1_000.0);
        }
        let elapsed = self.env.clock.elapsed();
        let bytes = self.send_effects(index, elapsed)?;
        self.pace.worked(elapsed, 0, bytes);
        Some(count)
    }

    /// Moves a task's places behind a range.
    fn move_on(&mut self, index: usize, records: &RecordBatch, range: Range<usize>) {
        let Some(task) = self.tasks.get_mut(index) else { return };
        task.rests = 0;
        for record in range.filter_map(|index| records.get(index)) {
            let route = self.routes.get(record.partition_index()).copied().flatten();
            if let Some(input) = route.and_then(|(_, input)| task.inputs.get_mut(input)) {
                input.next = record.offset() + 1;
            }
        }
    }

    /// Sends what a task has said; `None` when the transaction failed by it.
    pub(super) fn send_effects(&mut self, index: usize, now: Duration) -> Option<usize> {
        let Some(task) = self.tasks.get_mut(index) else {
            return Some(0);
        };
        if let Some(reason) = task.refusal() {
            self.broke(Broken::Refused { task: index, reason });
            return None;
        }
        if task.output.out.is_empty() {
            return Some(0);
        }
        let bytes = task.output.out.byte_len();
        let sent = self.writer.send(now, &task.output.out);
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.env.metrics.records_out.increment(count(task.output.out.len()));
        self.env.metrics.bytes_out.increment(count(bytes));
        task.output.out.clear();
        self.sent(index, sent).then_some(bytes)
    }

    /// Sorts out what the log said to records of a task; says whether they are on their way.
    pub(super) fn sent(&mut self, index: usize, sent: event_log::Result<()>) -> bool {
        match sent {
            Ok(()) => return true,
            Err(error @ event_log::Error::TooLarge { .. }) => {
                self.broke(Broken::Refused {
                    task: index,
                    reason: chain(&error),
                });
            }
            Err(error @ event_log::Error::Fenced { .. }) => self.broke(Broken::Fenced(chain(&error))),
            // No other task need wait until somebody makes the topic.
            Err(error @ (event_log::Error::UnknownTopic { .. } | event_log::Error::InvalidTopic { .. })) => {
                let reason = format!("what it writes has no place: {}", chain(&error));
                self.broke(Broken::Failed(format!("a task stops: {reason}")));
                self.stop(index, reason, true);
            }
            Err(error) => self.broke(Broken::Failed(chain(&error))),
        }
        false
    }

    /// Pauses a task whose processor is not ready for its next records; the others go on.
    fn rest(&mut self, index: usize, reason: String) {
        let now = self.env.clock.elapsed();
        let Some(task) = self.tasks.get_mut(index) else { return };
        let pause = REST_MIN.saturating_mul(1 << task.rests.min(10)).min(REST_MAX);
        task.rests = task.rests.saturating_add(1);
        tracing::warn!(task = %task.id, reason, pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), "task pauses");
        task.phase = Phase::Resting {
            until: now + pause,
            reason,
        };
        self.published = None;
        self.pause(index);
    }
}
