//! Processes a batch: runs of records of one task, in the order in which they were read, and timers that are due.
//!
//! Output of a run is sent before the next run starts, so that the brokers write it while the thread processes.

use super::abort::{Abort, Interrupt};
use super::pacing::Advice;
use super::tasks::Run;
use super::turn::StreamThread;
use crate::admin::metrics;
use crate::api::context::TaskId;
use crate::task::StepError;
use event_log::{Millis, RecordBatch};
use service::chain;
use std::time::Duration;

impl StreamThread {
    /// Processes a batch. After an abort, everything that is not committed is read again.
    pub(super) fn process(&mut self, records: &RecordBatch) -> Result<(), Interrupt> {
        self.tasks.route(records);
        let mut from = 0;
        while let Some(run) = self.tasks.next_run(records, from) {
            from = run.range.end;
            self.process_run(records, &run)?;
        }
        Ok(())
    }

    /// Commits what all tasks have done since the last commit, or only what one task has done.
    pub(super) fn commit(&mut self, only: Option<&TaskId>) -> Result<(), Interrupt> {
        let tasks = self.tasks.as_mut_slice();
        self.committer.commit(tasks, only, &mut self.membership)
    }

    fn process_run(&mut self, records: &RecordBatch, run: &Run) -> Result<(), Interrupt> {
        let isolating = self.tasks.at(run.task).bisection.records.is_some();
        if isolating {
            // The next transaction will contain only records of this task, for the bisection.
            self.commit(None)?;
        }
        let now = self.shared.clock.now();
        let task = self.tasks.at(run.task);
        match task.process(now, run.newest, records.slice(run.range.clone())) {
            Ok(()) => {}
            Err(StepError::NotReady(reason)) => {
                self.pause_task(run.task, reason);
                return Ok(());
            }
            Err(StepError::Failed(reason)) => {
                let task = task.id.clone();
                let retry = false;
                return Err(Abort::TaskFailed { task, reason, retry }.into());
            }
        }
        self.tasks.advance(run, records);
        let count = u64::try_from(run.range.len()).unwrap_or(u64::MAX);
        self.shared.metrics.flow.records_in.increment(count);
        let task = self.tasks.at(run.task);
        let bytes = self.committer.send_output(task)?;
        self.committer.note_processed(run.range.len(), bytes);
        if isolating {
            let id = task.id.clone();
            return self.commit(Some(&id));
        }
        self.fire(run.task, now)?;
        match self.committer.advise(self.tasks.state_bytes(), false) {
            Advice::Commit => self.commit(None),
            Advice::Read(_) | Advice::Nothing => Ok(()),
        }
    }

    /// Fires the timers that are due and returns the time until the next wall-clock timer.
    pub(super) fn fire_due(&mut self) -> Result<Option<Duration>, Interrupt> {
        let (now, mut next) = (self.shared.clock.now(), None);
        for index in 0..self.tasks.len() {
            self.fire(index, now)?;
            let at = self.tasks.at(index).next_timer()?;
            next = next.into_iter().chain(at).min();
        }
        let left = |at: Millis| Duration::from_millis(u64::try_from(at.saturating_sub(now)).unwrap_or(0));
        Ok(next.map(left))
    }

    /// Fires the timers of a task. While a poison timer is being isolated, timers fire in separate transactions.
    fn fire(&mut self, index: usize, now: Millis) -> Result<(), Interrupt> {
        let task = self.tasks.at(index);
        // While a poison record is being isolated, a transaction contains only that record.
        if !task.is_running() || task.bisection.records.is_some() {
            return Ok(());
        }
        if task.bisection.timers.is_none() {
            return self.call_timers(index, now).map(drop);
        }
        if !task.has_due_timer(now)? {
            return Ok(());
        }
        let id = task.id.clone();
        self.commit(None)?;
        let fired = self.call_timers(index, now)?;
        self.commit(Some(&id))?;
        let bisection = &mut self.tasks.at(index).bisection;
        bisection.timers = bisection.timers.take().and_then(|timers| timers.committed(fired));
        Ok(())
    }

    /// Calls the processor for due timers of a task, sends their output, and returns the number of timers.
    fn call_timers(&mut self, index: usize, now: Millis) -> Result<usize, Interrupt> {
        let task = self.tasks.at(index);
        let fired = task.fire(now).map_err(|error| Abort::TaskFailed {
            task: task.id.clone(),
            reason: chain(&error),
            retry: false,
        })?;
        if fired.count == 0 {
            return Ok(0);
        }
        let flow = &self.shared.metrics.flow;
        flow.timers.increment(u64::try_from(fired.count).unwrap_or(u64::MAX));
        if let Some(late_ms) = fired.late_ms {
            flow.timer_late_seconds.record(metrics::float(late_ms) / 1_000.0);
        }
        let bytes = self.committer.send_output(task)?;
        self.committer.note_processed(0, bytes);
        Ok(fired.count)
    }

    /// Pauses a task whose processor is not ready; the other tasks continue.
    fn pause_task(&mut self, index: usize, reason: String) {
        let task = self.tasks.at(index);
        task.pause(self.shared.clock.elapsed(), reason);
        self.published = None;
        let partitions = task.partitions();
        if let Some(consumer) = self.membership.consumer() {
            task.pause_reading(consumer, &partitions);
        }
    }
}
