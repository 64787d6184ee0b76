//! Recovers the tasks of a thread while other tasks run, starts them, and stops them.

use super::abort::{Abort, Interrupt};
use super::turn::StreamThread;
use crate::api::context::TaskId;
use crate::api::error::Result;
use crate::recovery::progress::{Next, StartPlan};
use crate::recovery::restore::{ObstacleKind, RESTORE_WAIT};
use crate::recovery::{self, CommandTarget, recreated_input};
use crate::task::{Phase, Task};
use event_log::{ErrorAction, ErrorScope, Offset};
use failpoint::hit;
use service::chain;
use std::ops::ControlFlow;
use std::time::Duration;

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
            // A request that fails may have taken as long as its timeout. If all tasks repeated it, the thread would not
            // poll for so long that the group removes it.
            if self.recover_task(index)?.is_break() {
                break;
            }
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

    /// Advances the recovery of a task. Breaks if a request has failed.
    fn recover_task(&mut self, index: usize) -> Result<ControlFlow<()>, Interrupt> {
        loop {
            let task = self.tasks.at(index);
            let Phase::Recovering(recovery) = &mut task.phase else {
                return Ok(ControlFlow::Continue(()));
            };
            let mut recovery = std::mem::take(recovery);
            let next = recovery::advance(task, &mut recovery, &self.shared);
            let restored = recovery.restored;
            task.phase = Phase::Recovering(recovery);
            match next {
                Next::Continue => {}
                Next::Wait => return Ok(ControlFlow::Continue(())),
                Next::BackOff => return Ok(ControlFlow::Break(())),
                Next::Stop(reason) => {
                    let id = task.id.clone();
                    self.stop_task(&id, reason, true);
                }
                Next::Start(plan) => {
                    self.start_task(index, &plan, restored)?;
                    return Ok(match self.membership.unavailable() {
                        Some(_) => ControlFlow::Break(()),
                        None => ControlFlow::Continue(()),
                    });
                }
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
        for (id, reason) in stops {
            self.stop_reading(&id, reason);
        }
        Ok(())
    }

    /// Stops the tasks with an input that was deleted and created again. What they have done since the last commit is
    /// discarded, because it may include records of the new topic at positions of the former one.
    pub(super) fn stop_recreated(&mut self) {
        let recreated = self.shared.recreated().clone();
        if recreated.is_empty() {
            return;
        }
        let affected = self.tasks.iter().filter(|task| task.is_live() || task.is_recovering());
        let affected: Vec<(TaskId, String)> = affected
            .filter_map(|task| {
                let mut topics = task.inputs.iter().map(|input| &input.at.topic);
                let topic = topics.find(|topic| recreated.contains(*topic))?;
                Some((task.id.clone(), recreated_input(topic)))
            })
            .collect();
        for (id, reason) in affected {
            let is_live = self.tasks.find(&id).is_some_and(|task| task.is_live());
            if is_live && self.committer.open_for().is_some() {
                self.roll_back(Abort::Failed(reason.clone()));
            }
            self.stop_reading(&id, reason);
        }
    }

    /// Stops a task with an input that cannot be read.
    fn stop_reading(&mut self, id: &TaskId, reason: String) {
        self.shared.metrics.recovery.unreadable_inputs.increment(1);
        let now = self.shared.clock.elapsed();
        let task = self.tasks.find(id).expect("only tasks of this thread are stopped");
        task.stop_reading(now, reason);
        self.pause_stopped(id);
    }

    /// Stops a task; the others continue. With `retry`, the task recovers again after a while.
    pub(super) fn stop_task(&mut self, id: &TaskId, reason: String, retry: bool) {
        let now = self.shared.clock.elapsed();
        let task = self.tasks.find(id).expect("only tasks of this thread are stopped");
        let retry_at = retry.then(|| now + task.retry_delay());
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
