//! What a thread drops when something did not become a known commit, and which task it stops.
//!
//! Guarantees: after a failed transaction nothing of it is left in any task; a stopped task holds up no other one.
//! Never: a second attempt at the same transaction.

use super::caution::Caution;
use super::{Broken, StreamThread};
use crate::Result;
use crate::recovery::LOOK_AGAIN;
use crate::task::{Phase, Task};
use service::chain;

/// Aborts in a row, without a reason that says whose, after which transactions are made smaller.
const ABORTS_BEFORE_CAUTION: u32 = 3;

impl StreamThread {
    pub(super) fn out_of_range(&mut self, error: &event_log::Error) -> Result<()> {
        let event_log::Error::OutOfRange { at, .. } = error else {
            return Ok(());
        };
        let task = self
            .tasks
            .iter()
            .position(|task| task.inputs.iter().any(|input| input.at == *at));
        self.commit(None)?;
        if let Some(task) = task {
            let lost = self.tasks.get(task).map(|task| lost_records(task, error));
            self.stop(task, lost.unwrap_or_default(), true);
        }
        Ok(())
    }

    /// Stops a task and no other; with `look_again` it tries from the beginning after a while.
    pub(super) fn stop(&mut self, index: usize, reason: String, look_again: bool) {
        let again = look_again.then(|| self.env.clock.elapsed() + LOOK_AGAIN);
        let Some(task) = self.tasks.get_mut(index) else { return };
        tracing::error!(task = %task.id, reason, "task stopped");
        task.roll_back();
        task.phase = Phase::Stopped { reason, again };
        self.published = None;
        self.pause(index);
    }

    pub(super) fn pause(&mut self, index: usize) {
        let (Some(task), Some(consumer)) = (self.tasks.get_mut(index), &mut self.consumer) else {
            return;
        };
        if task.paused {
            return;
        }
        match consumer.pause(&task.partitions()) {
            Ok(()) => task.paused = true,
            // Its records are then read and ignored, which only costs time.
            Err(error) => tracing::warn!(task = %task.id, reason = chain(&error), "cannot pause its partitions"),
        }
    }

    /// Drops everything since the last commit; every task goes back to it, over a new producer.
    pub(super) fn broke(&mut self, cause: Broken) {
        let now = self.env.clock.elapsed();
        let timed_out = self
            .writer
            .open_for(now)
            .is_some_and(|age| age >= self.env.config.transaction_timeout);
        self.aborts_in_a_row = self.aborts_in_a_row.saturating_add(1);
        self.env.metrics.aborts.increment(1);
        let mut on_dead_letter = None;
        match cause {
            Broken::Fenced(reason) => {
                self.env.metrics.fences.increment(1);
                tracing::warn!(thread = self.name, reason, timed_out, "fenced");
                if !timed_out {
                    self.fence = Some((now, reason));
                }
            }
            Broken::Refused { task: index, reason } => {
                tracing::warn!(
                    thread = self.name,
                    reason,
                    "what a task wrote is refused; looking for the record or timer that it is made of"
                );
                let narrowed = self.tasks.get_mut(index).map(|task| task.narrow(reason.clone()));
                on_dead_letter = (narrowed == Some(false)).then_some((index, reason));
            }
            Broken::Failed(reason) => {
                tracing::warn!(
                    thread = self.name,
                    reason,
                    "transaction not committed; going back to the last commit"
                );
                self.last_failure = Some(reason);
                if self.aborts_in_a_row >= ABORTS_BEFORE_CAUTION {
                    for task in self.tasks.iter_mut().filter(|task| task.uncommitted > 0) {
                        task.caution = Caution::after(task.caution.take(), task.refused(None));
                    }
                }
            }
        }
        self.writer.break_off(now);
        self.pace.settled(now);
        for index in 0..self.tasks.len() {
            let Some(task) = self.tasks.get_mut(index) else { break };
            let live = task.is_live();
            task.roll_back();
            if live {
                self.pause(index);
            }
        }
        self.published = None;
        if let Some((index, reason)) = on_dead_letter {
            self.stop(
                index,
                format!("the log refuses even a dead letter of what its output is made of: {reason}"),
                false,
            );
        }
    }
}

fn lost_records(task: &Task, error: &event_log::Error) -> String {
    format!(
        "{}: records that were not yet processed are gone, by retention or by hand; to go on without them: \
         `trunkline offsets skip {} {}/{}`",
        chain(error),
        task.sub.application,
        task.sub.store,
        task.id.partition
    )
}
