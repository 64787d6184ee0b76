//! Recovers the tasks of a thread while other tasks run, starts them, and stops them.

use super::abort::Interrupt;
use super::turn::StreamThread;
use crate::api::context::TaskId;
use crate::api::error::Result;
use crate::recovery::progress::{Next, StartPlan};
use crate::recovery::restore::{ObstacleKind, RESTORE_WAIT};
use crate::recovery::{self, CommandTarget};
use crate::task::{Phase, Task};
use event_log::{ErrorAction, ErrorScope, Offset};
use failpoint::hit;
use service::chain;
use std::time::Duration;

/// Interval at which a stopped task retries, because an operator can resolve most causes without a restart.
const STOPPED_RETRY: Duration = Duration::from_secs(10);

impl StreamThread {
    /// Resumes tasks whose pause has elapsed, and retries stopped tasks that are due.
    pub(super) fn wake_tasks(&mut self) -> Result<(), Interrupt> {
        let now = self.shared.clock.elapsed();
        for index in 0..self.tasks.len() {
            let task = self.tasks.at(index);
            match &task.phase {
                Phase::Paused { until, .. } if *until <= now => self.run_task(index)?,
                Phase::Stopped { retry_at: Some(at), .. } if *at <= now => task.recover(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Advances the recovering tasks and returns how many changelog records were read.
    pub(super) fn recover(&mut self, max_wait: Duration) -> Result<usize, Interrupt> {
        for index in 0..self.tasks.len() {
            self.recover_task(index)?;
        }
        let wait = if self.tasks.iter().any(Task::is_live) {
            Duration::ZERO
        } else {
            RESTORE_WAIT.min(max_wait)
        };
        let restored = self.restorer.turn(self.tasks.as_mut_slice(), &self.shared, wait);
        for obstacle in restored.obstacles {
            match obstacle.kind {
                ObstacleKind::Stop => self.stop_task(&obstacle.task, obstacle.reason, true),
                ObstacleKind::OutOfRange => self.quarantine(&obstacle.task, &obstacle.reason),
            }
        }
        Ok(restored.records)
    }

    /// Quarantines the store of a restoring task.
    fn quarantine(&mut self, id: &TaskId, reason: &str) {
        let task = self.tasks.find(id).expect("obstacles name tasks of this thread");
        let Phase::Recovering(recovery) = &task.phase else {
            return;
        };
        let mut recovery = recovery.clone();
        let next = recovery::quarantine(task, &mut recovery, &self.shared, reason);
        task.phase = Phase::Recovering(recovery);
        if let Next::Stop(reason) = next {
            self.stop_task(id, reason, true);
        }
    }

    fn recover_task(&mut self, index: usize) -> Result<(), Interrupt> {
        loop {
            let task = self.tasks.at(index);
            let Phase::Recovering(recovery) = &mut task.phase else {
                return Ok(());
            };
            let mut recovery = std::mem::take(recovery);
            let next = recovery::advance(task, &mut recovery, &self.shared);
            let restored = recovery.restored;
            task.phase = Phase::Recovering(recovery);
            match next {
                Next::Continue => {}
                Next::Wait => return Ok(()),
                Next::Stop(reason) => {
                    let id = task.id.clone();
                    self.stop_task(&id, reason, true);
                }
                Next::Start(plan) => return self.start_task(index, &plan, restored),
            }
        }
    }

    /// Starts a recovered task at its positions.
    fn start_task(&mut self, index: usize, plan: &StartPlan, restored: u64) -> Result<(), Interrupt> {
        let task = self.tasks.at(index);
        let first_start = task.sub.first_start;
        let starts = task.inputs.iter().zip(&plan.starts);
        let positions: event_log::Result<Vec<Offset>> = starts
            .map(|(input, start)| recovery::start_offset(first_start, input, *start, &self.shared))
            .collect();
        let positions = match positions {
            Err(error) if error.action() != ErrorAction::Retry => {
                let id = task.id.clone();
                self.stop_task(&id, chain(&error), true);
                return Ok(());
            }
            positions => self.membership.available(positions)?,
        };
        let Some(positions) = positions else {
            return Ok(());
        };
        let task = self.tasks.at(index);
        if let Err(error) = task.start_at(&positions, plan.commit_first, restored) {
            let id = task.id.clone();
            self.stop_task(&id, chain(&error), true);
            return Ok(());
        }
        let disk = task.store_mut().disk().clone();
        self.shared.serving().insert(task.id.clone(), disk);
        hit("streams.recovery.start");
        self.run_task(index)?;
        let task = self.tasks.at(index);
        if task.is_running() {
            tracing::info!(task = %task.id, offsets = ?positions, restored, "task runs");
            self.shared.metrics.recovery.recoveries.increment(1);
            self.published = None;
            if task.uncommitted.position_moved {
                self.committer.note_processed(0, 0);
            }
        }
        Ok(())
    }

    /// Reads a task's inputs from its positions. If the log is unavailable, the task tries again later.
    fn run_task(&mut self, index: usize) -> Result<(), Interrupt> {
        let consumer = self.membership.consumer();
        let consumer = consumer.expect("tasks exist only while the thread is in the group");
        match self.tasks.at(index).start_reading(consumer) {
            Ok(()) => Ok(()),
            Err(error) if error.scope().is_some() => self.input_failed(&error),
            Err(error) if error.action() == ErrorAction::Retry => {
                self.membership.available(Err::<(), _>(error))?;
                Ok(())
            }
            Err(error @ event_log::Error::Fenced { .. }) => self.poll_failed(error),
            Err(error) => {
                let id = self.tasks.at(index).id.clone();
                self.stop_task(&id, chain(&error), true);
                Ok(())
            }
        }
    }

    /// Stops the tasks with an input that cannot be read. Before that, commits what all tasks have done.
    pub(super) fn input_failed(&mut self, error: &event_log::Error) -> Result<(), Interrupt> {
        let Some(scope) = error.scope() else { return Ok(()) };
        self.try_commit()?;
        if let ErrorScope::Topic(topic) = scope {
            self.membership.note_topic(topic, chain(error));
        }
        let affected = |task: &&Task| !task.is_stopped() && task.inputs.iter().any(|input| scope.contains(&input.at));
        let stops: Vec<(TaskId, String)> = self
            .tasks
            .iter()
            .filter(affected)
            .map(|task| {
                let target = CommandTarget {
                    sub: &task.sub,
                    partition: task.id.partition,
                    inputs: &[],
                };
                let fix = target.resolve_unreadable_input(error);
                let fix = fix.map(|fix| format!("; {fix}")).unwrap_or_default();
                (task.id.clone(), format!("{}{fix}", chain(error)))
            })
            .collect();
        let retry_at = self.shared.clock.elapsed() + STOPPED_RETRY;
        for (id, reason) in stops {
            self.shared.metrics.recovery.unreadable_inputs.increment(1);
            let task = self.tasks.find(&id).expect("the ids are those of tasks");
            task.stop_reading(reason, retry_at);
            self.pause_stopped(&id);
        }
        Ok(())
    }

    /// Stops a task; the others continue. With `retry`, the task recovers again after a while.
    pub(super) fn stop_task(&mut self, id: &TaskId, reason: String, retry: bool) {
        let retry_at = retry.then(|| self.shared.clock.elapsed() + STOPPED_RETRY);
        let task = self.tasks.find(id).expect("only tasks of this thread are stopped");
        task.stop(reason, retry_at);
        self.pause_stopped(id);
    }

    /// Pauses the inputs of a stopped task.
    fn pause_stopped(&mut self, id: &TaskId) {
        self.published = None;
        let Some(task) = self.tasks.find(id) else { return };
        let partitions = task.partitions();
        if let Some(consumer) = self.membership.consumer() {
            task.pause_reading(consumer, &partitions);
        }
    }
}
