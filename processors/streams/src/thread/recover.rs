//! A thread's way of taking its tasks back to the last commit and letting them go on from there.
//!
//! Guarantees: tasks recover beside those that run; nothing of them runs before the session is sound.
//! Never: a decision about a task's place; that is `recovery`'s.

use super::StreamThread;
use super::caution::Caution;
use crate::Result;
use crate::recovery::{self, Next, Recovery, Start};
use crate::restore::Obstacle;
use crate::task::{Phase, Task};
use event_log::Offset;
use failpoint::hit;
use service::chain;
use std::time::Duration;

/// How long a thread without work waits for a changelog to go on.
pub(super) const RESTORE_WAIT: Duration = Duration::from_millis(5);

impl StreamThread {
    /// Lets tasks go on whose pause is over.
    pub(super) fn wake_up(&mut self) -> Result<()> {
        let now = self.env.clock.elapsed();
        for index in 0..self.tasks.len() {
            let Some(task) = self.tasks.get_mut(index) else { break };
            match &task.phase {
                Phase::Resting { until, .. } if *until <= now => self.resume(index)?,
                Phase::Stopped { again: Some(again), .. } if *again <= now => {
                    task.phase = Phase::Recovering(Recovery::default());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes the recovering tasks forward; returns how many changelog records were read.
    pub(super) fn recover(&mut self, max_wait: Duration) -> Result<usize> {
        for index in 0..self.tasks.len() {
            self.recover_one(index)?;
        }
        let live = self.tasks.iter().any(Task::is_live);
        let wait = if live {
            Duration::ZERO
        } else {
            RESTORE_WAIT.min(max_wait)
        };
        let mut obstacles = Vec::new();
        let restored = self.restorer.turn(&mut self.tasks, &self.env, wait, &mut obstacles);
        for obstacle in obstacles {
            match obstacle {
                Obstacle::Stop { task, reason } => self.stop(task, reason, true),
                Obstacle::Gone { task: index, reason } => {
                    let Some(task) = self.tasks.get_mut(index) else {
                        continue;
                    };
                    let Phase::Recovering(recovery) = &task.phase else {
                        continue;
                    };
                    let mut recovery = recovery.clone();
                    let next = recovery::quarantine(task, &mut recovery, &self.env, &reason);
                    task.phase = Phase::Recovering(recovery);
                    if let Next::Stop(reason) = next {
                        self.stop(index, reason, true);
                    }
                }
            }
        }
        Ok(restored)
    }

    fn recover_one(&mut self, index: usize) -> Result<()> {
        while let Some(task) = self.tasks.get_mut(index) {
            let Phase::Recovering(recovery) = &mut task.phase else {
                return Ok(());
            };
            let mut recovery = std::mem::take(recovery);
            let next = recovery::advance(task, &mut recovery, &self.env);
            let restored = recovery.restored;
            task.phase = Phase::Recovering(recovery);
            match next {
                Next::Again => {}
                Next::Wait => return Ok(()),
                Next::Stop(reason) => self.stop(index, reason, true),
                Next::Start { places, write_down } => {
                    self.start(index, &places, write_down, restored)?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Starts a recovered task at its places.
    fn start(&mut self, index: usize, places: &[Start], write_down: bool, restored: u64) -> Result<()> {
        let Some(task) = self.tasks.get_mut(index) else {
            return Ok(());
        };
        let found: event_log::Result<Vec<Offset>> = places
            .iter()
            .enumerate()
            .map(|(input, start)| recovery::place(task, start, input, &self.env))
            .collect();
        let Some(found) = self.reached(found)? else {
            return Ok(());
        };
        let Some(task) = self.tasks.get_mut(index) else {
            return Ok(());
        };
        let live = task.live.as_ref().expect("a recovered task has its store open");
        if let Err(error) = task.processor.restore(&live.state) {
            self.stop(index, chain(&error), true);
            return Ok(());
        }
        task.stream_time = live
            .commit_record
            .as_ref()
            .map_or(0, |commit_record| commit_record.stream_time);
        for (input, next) in task.inputs.iter_mut().zip(&found) {
            input.next = *next;
        }
        // A commit whose outcome was not known has passed the refused records all the same: without an end of the caution
        // here no timer would fire before the next record.
        let passed = |caution: &Caution| caution.is_passed(found.iter().copied());
        task.caution = task.caution.take().filter(|caution| !passed(caution));
        (task.moved, task.restored) = (write_down, restored);
        self.env.serving().insert(task.id.clone(), live.store().clone());
        hit("runtime.recovery.start");
        self.resume(index)?;
        if let Some(task) = self
            .tasks
            .get(index)
            .filter(|task| matches!(task.phase, Phase::Running))
        {
            tracing::info!(task = %task.id, offsets = ?found, restored, "task runs");
            self.env.metrics.recoveries.increment(1);
            self.published = None;
            if task.moved {
                self.pace.worked(self.env.clock.elapsed(), 0, 0);
            }
        }
        Ok(())
    }

    /// Reads a task's inputs from its places on; when the log is out of reach the task recovers once more.
    fn resume(&mut self, index: usize) -> Result<()> {
        let Some(task) = self.tasks.get_mut(index) else {
            return Ok(());
        };
        let consumer = self
            .consumer
            .as_mut()
            .expect("tasks exist only while the thread is in the group");
        let mut done = Ok(());
        for input in &task.inputs {
            done = done.and_then(|()| consumer.start(&input.at, input.next));
        }
        if task.paused {
            let partitions = task.partitions();
            done = done.and_then(|()| consumer.resume(&partitions));
        }
        match done {
            Ok(()) => {
                task.paused = false;
                task.phase = Phase::Running;
                Ok(())
            }
            Err(error @ event_log::Error::OutOfRange { .. }) => self.out_of_range(&error),
            Err(error) => self.reached(Err::<(), _>(error)).map(|_| ()),
        }
    }
}
