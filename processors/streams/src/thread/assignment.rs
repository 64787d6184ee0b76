//! What a thread does when the group gives it partitions, asks for them back, or has taken them.
//!
//! Guarantees: every partition that is given goes through recovery, also when it was this thread's before; what was
//! taken leaves nothing behind that could be committed; what is neither given nor taken goes on.
//! Never: a task that runs before all of its inputs are here.

use super::{Broken, StreamThread};
use crate::Result;
use crate::plan::Sub;
use crate::recovery::Recovery;
use crate::task::{Phase, Task};
use event_log::{GroupProtocol, TopicPartition};
use failpoint::hit;
use service::chain;
use std::sync::Arc;

impl StreamThread {
    /// These partitions are now this thread's.
    pub(super) fn assigned(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        hit("runtime.assigned");
        tracing::info!(thread = self.name, partitions = partitions.len(), "assigned");
        self.settle_assignment()?;
        let again = |task: &Task| task.is_live() && task.inputs.iter().any(|input| partitions.contains(&input.at));
        if self.tasks.iter().any(again) {
            self.broke(Broken::Failed(
                "partitions were assigned anew without having been revoked".to_owned(),
            ));
        }
        for at in partitions {
            let Some(sub) = self.env.plan.reader_of(&at.topic) else {
                continue;
            };
            let known = self
                .tasks
                .iter()
                .position(|t| t.id.subtopology == sub.name && t.id.partition == at.partition);
            let index = known.unwrap_or_else(|| {
                self.tasks.push(Task::new(sub.clone(), at.partition));
                self.tasks.len() - 1
            });
            let Some(task) = self.tasks.get_mut(index) else {
                continue;
            };
            task.inputs
                .iter_mut()
                .filter(|input| input.at == *at)
                .for_each(|input| input.assigned = true);
            if task.inputs.iter().all(|input| input.assigned) {
                task.phase = Phase::Recovering(Recovery::default());
            }
        }
        Ok(())
    }

    /// These partitions are about to be taken: a commit still fits.
    pub(super) fn revoked(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        hit("runtime.revoked");
        tracing::info!(thread = self.name, partitions = partitions.len(), "revoked");
        if self.writer.is_ready() && self.fence.is_none() {
            self.commit(None)?;
        }
        self.drop_tasks(partitions);
        self.settle_assignment()
    }

    /// These partitions are another's already.
    pub(super) fn lost(&mut self, partitions: &[TopicPartition]) {
        hit("runtime.lost");
        tracing::warn!(thread = self.name, partitions = partitions.len(), "lost");
        let now = self.env.clock.elapsed();
        self.drop_tasks(partitions);
        self.fence = None;
        self.member = None;
        if self.writer.open_for(now).is_some() {
            self.broke(Broken::Failed("partitions were lost".to_owned()));
        }
        let at = self.env.clock.now();
        if !self.tasks.iter().any(|task| task.has_work(at)) {
            self.pace.settled(now);
        }
    }

    /// Takes the membership that the coming commits carry.
    fn settle_assignment(&mut self) -> Result<()> {
        self.fence = None;
        self.published = None;
        let member = self.consumer.as_ref().map(|consumer| consumer.group_metadata());
        if let Some(member) = member {
            self.member = self.reached(member)?;
        }
        Ok(())
    }

    /// Asks for the membership again where its generation rises without an event. The partitions are this member's all
    /// the same: what it has lost it is told before it can be a member anew.
    pub(super) fn refresh_member(&mut self) -> Result<()> {
        if self.env.config.group_protocol == GroupProtocol::Classic || self.member.is_none() {
            return Ok(());
        }
        if let Some(member) = self.consumer.as_ref().map(|consumer| consumer.group_metadata()) {
            self.member = self.reached(member)?;
        }
        Ok(())
    }

    fn drop_tasks(&mut self, partitions: &[TopicPartition]) {
        let env = &self.env;
        let mut halves = Vec::new();
        self.tasks.retain_mut(|task| {
            let gone = task.inputs.iter().any(|input| partitions.contains(&input.at));
            if gone {
                env.status
                    .set(&format!("{}, task {}", env.plan.application, task.id), None);
                let mut places = env.places.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                task.inputs.iter().for_each(|input| {
                    places.remove(&input.at);
                });
                env.forget(&task.id);
                // What it holds is committed, so that it may be kept; a store that fails is only further behind.
                if let Err(error) = task.flush() {
                    tracing::warn!(task = %task.id, reason = chain(&error), "its store stays behind");
                }
                let kept = task.inputs.iter();
                let kept = kept.filter(|input| input.assigned && !partitions.contains(&input.at));
                let kept: Vec<_> = kept.map(|input| input.at.clone()).collect();
                if !kept.is_empty() {
                    halves.push((task.sub.clone(), task.id.partition, kept));
                }
            }
            !gone
        });
        for (sub, partition, kept) in halves {
            self.wait_for_rest(sub, partition, &kept);
        }
    }

    /// A task of which one input is gone and others are still here: it begins anew when the rest comes.
    fn wait_for_rest(&mut self, sub: Arc<Sub>, partition: i32, kept: &[TopicPartition]) {
        let mut task = Task::new(sub, partition);
        for input in task.inputs.iter_mut().filter(|input| kept.contains(&input.at)) {
            input.assigned = true;
        }
        // Its records would be read and ignored, which only costs time; the task starts from its committed place.
        if let Some(consumer) = &mut self.consumer {
            match consumer.pause(kept) {
                Ok(()) => task.paused = true,
                Err(error) => tracing::warn!(task = %task.id, reason = chain(&error), "cannot pause its partitions"),
            }
        }
        self.tasks.push(task);
    }
}
