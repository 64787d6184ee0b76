//! Applies a rebalance to the tasks of a thread: partitions are assigned, revoked or lost.
//!
//! The group announces a change of assignment in one of three ways. *Assigned* partitions go through recovery, even if
//! the thread had them before. *Revoked* partitions belong to the thread until it polls again, so the thread commits
//! first. *Lost* partitions may already belong to another member, so nothing that was processed for them may be
//! committed (C6, C7). The thread decides about commit and rollback; see `turn`.

use super::membership::Membership;
use super::tasks::Tasks;
use crate::api::error::Result;
use crate::shared::Shared;
use crate::task::Task;
use event_log::TopicPartition;
use failpoint::hit;
use service::chain;

/// The parts of a thread that a rebalance changes.
pub(super) struct Rebalance<'t> {
    pub thread: &'t str,
    pub shared: &'t Shared,
    pub tasks: &'t mut Tasks,
    pub membership: &'t mut Membership,
}

impl Rebalance<'_> {
    /// Records an assignment. Returns whether a live task has some of these partitions although they were not revoked.
    pub(super) fn was_not_revoked(&mut self, partitions: &[TopicPartition]) -> Result<bool> {
        hit("streams.assigned");
        tracing::info!(
            thread = self.thread,
            partitions = partitions.len(),
            "partitions assigned"
        );
        self.membership.refresh()?;
        let not_revoked = |task: &Task| task.is_live() && task.reads_any(partitions);
        Ok(self.tasks.iter().any(not_revoked))
    }

    /// Adds assigned partitions to their tasks.
    pub(super) fn assign(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            if let Some(sub) = self.shared.plan.reader_of(&at.topic) {
                self.tasks.assign(sub, at);
            }
        }
    }

    /// Drops the tasks of revoked partitions, after the last commit for them.
    pub(super) fn revoke(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        tracing::info!(
            thread = self.thread,
            partitions = partitions.len(),
            "partitions revoked"
        );
        self.drop_tasks(partitions);
        self.membership.refresh()
    }

    /// Drops the tasks of lost partitions, and the group metadata under which they were read.
    pub(super) fn lose(&mut self, partitions: &[TopicPartition]) {
        hit("streams.lost");
        tracing::warn!(thread = self.thread, partitions = partitions.len(), "partitions lost");
        self.drop_tasks(partitions);
        self.membership.lose();
    }

    /// Drops the tasks that have one of these partitions. A task that still has some of its inputs waits until all
    /// inputs are assigned again.
    fn drop_tasks(&mut self, partitions: &[TopicPartition]) {
        for mut task in self.tasks.remove(partitions) {
            let shared = self.shared;
            shared.status.set(&shared.status_name(&task.id), None);
            let mut positions = shared.positions();
            for input in &task.inputs {
                positions.remove(&input.at);
            }
            drop(positions);
            shared.forget(&task.id);
            // The buffer contains committed rows only. If the flush fails, the store only lags further behind the log
            // (C4).
            if let Err(error) = task.flush() {
                tracing::warn!(task = %task.id, reason = chain(&error), "cannot flush store of revoked task");
            }
            let kept = task.inputs.iter();
            let kept = kept.filter(|input| input.assigned && !partitions.contains(&input.at));
            let kept: Vec<_> = kept.map(|input| input.at.clone()).collect();
            if !kept.is_empty() {
                let mut waiting = Task::new(task.sub.clone(), task.id.partition);
                kept.iter().for_each(|at| waiting.assign(at));
                if let Some(consumer) = self.membership.consumer() {
                    waiting.pause_reading(consumer, &kept);
                }
                self.tasks.push(waiting);
            }
        }
    }
}
