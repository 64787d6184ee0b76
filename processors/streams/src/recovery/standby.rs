//! Standbys: stores of other processes' tasks that follow their changelogs, so that a task that is assigned to this
//! process has little to restore.
//!
//! A store belongs to a standby or to a task, never to both. The stream thread that is assigned the task removes the
//! open store from the shared map and performs the complete recovery from the store's position. A standby reads
//! `read_committed`, follows the same checkpoint rules as a task, and never commits.

mod placement;

use crate::api::application::instance_of_member;
use crate::api::context::TaskId;
use crate::plan::Sub;
use crate::recovery::open::{OpenError, begin_full_restore, full_restore_start, missed_tombstones, open_store};
use crate::shared::Shared;
use crate::task::changelog::read_record;
use crate::task::checkpoint::{self, STATE};
use crate::task::task_store::TaskStore;
use event_log::{ErrorAction, GroupInfo, Isolation, Millis, Offset, Reader, RecordBatch, StartFrom, TopicPartition};
use failpoint::hit;
use placement::TaskCount;
use service::chain;
use state_store::Batch;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Interval between reads of the group's assignment.
const PLACEMENT_EVERY: Duration = Duration::from_secs(3);
/// Bytes read by one poll.
const READ_BYTES: usize = 1 << 20;
/// Pause after a failure.
const BACKOFF: Duration = Duration::from_secs(1);
/// Interval at which a stopped standby is started again.
const STOPPED_RETRY: Duration = Duration::from_secs(60);

/// The standbys of one application in this process.
pub(crate) struct Standbys {
    shared: Arc<Shared>,
    reader: Option<Box<dyn Reader>>,
    /// The partitions that are assigned to the reader, in order.
    assigned: Vec<StandbyPartition>,
    records: RecordBatch,
    placed: Option<Duration>,
    not_before: Duration,
    /// Tasks whose store or changelog has a problem, and when their standby is started again, on the monotonic clock.
    stopped: BTreeMap<TaskId, Duration>,
}

/// A changelog partition and the task of its standby.
struct StandbyPartition {
    at: TopicPartition,
    task: TaskId,
}

/// How far the reader has read a partition.
#[derive(Clone, Copy)]
struct ReadPosition {
    position: Offset,
    /// A time at which nothing at or after `position` had been written.
    as_of: Millis,
}

impl Standbys {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Standbys {
            shared,
            reader: None,
            assigned: Vec::new(),
            records: RecordBatch::default(),
            placed: None,
            not_before: Duration::ZERO,
            stopped: BTreeMap::new(),
        }
    }

    /// Updates the placement if that is due and reads records, waiting for at most `wait`. Returns how long the caller
    /// should pause before the next call.
    pub(crate) fn turn(&mut self, wait: Duration) -> Duration {
        let now = self.shared.clock.elapsed();
        if now < self.not_before {
            return wait.min(self.not_before - now);
        }
        if self
            .placed
            .is_none_or(|placed| now.saturating_sub(placed) >= PLACEMENT_EVERY)
        {
            self.placed = Some(now);
            if let Err(error) = self.update_placement() {
                self.read_failed(&error);
                return wait;
            }
        }
        match self.read(wait) {
            Ok(true) => {
                self.store();
                Duration::ZERO
            }
            Ok(false) => wait,
            Err(error) => {
                self.read_failed(&error);
                wait
            }
        }
    }

    /// Opens the stores of the standbys that this process should have now, and closes all others.
    fn update_placement(&mut self) -> event_log::Result<()> {
        let shared = self.shared.clone();
        let Some(group) = shared.log.group_info(&shared.plan.application)? else {
            return Ok(());
        };
        if group.state != "Stable" {
            return Ok(());
        }
        let wanted = wanted(&shared, &group);
        shared.standbys().retain(|task, _| wanted.contains(task));
        let now = shared.clock.elapsed();
        self.stopped.retain(|_, retry_at| now < *retry_at);
        for task in wanted {
            let known = shared.standbys().contains_key(&task) || shared.serving().contains_key(&task);
            let sub = shared.plan.subs.iter().find(|sub| sub.name == task.subtopology);
            if let Some(sub) = sub.filter(|_| !known && !self.stopped.contains_key(&task)) {
                match self.open(sub, task.clone()) {
                    Err(error) if error.scope().is_some() => self.stop(task, &chain(&error)),
                    opened => opened?,
                }
            }
        }
        let standbys = shared.standbys();
        shared.metrics.standbys(standbys.len());
        Ok(())
    }

    fn open(&mut self, sub: &Arc<Sub>, task: TaskId) -> event_log::Result<()> {
        let shared = &self.shared;
        let opened = open_store(sub, task.partition, shared).and_then(|store| {
            match missed_tombstones(&store, sub, shared.clock.now()) {
                Some(reason) => Err(OpenError::Unusable(reason)),
                None => Ok(store),
            }
        });
        match opened {
            Ok(mut store) => {
                if store.next.is_none() {
                    // A full restore reads every tombstone that exists when the restore starts.
                    let as_of = shared.clock.now();
                    let origin = sub.origin(task.partition);
                    let start = full_restore_start(shared, &origin.changelog)?;
                    let begun = start.and_then(|start| {
                        begin_full_restore(&mut store, &origin, start, as_of).map_err(|error| chain(&error))
                    });
                    if let Err(reason) = begun {
                        self.stop(task, &reason);
                        return Ok(());
                    }
                }
                tracing::info!(application = %shared.plan.application, %task, next_offset = store.next, "standby started");
                shared.standbys().insert(task, store);
            }
            // A stream thread of this process has just closed the store, or is about to open it.
            Err(OpenError::Locked(_)) => {}
            Err(OpenError::Unusable(reason)) => self.quarantine(sub, task, &reason),
            Err(OpenError::Stop(reason)) => self.stop(task, &reason),
        }
        Ok(())
    }

    fn quarantine(&mut self, sub: &Sub, task: TaskId, reason: &str) {
        match self.shared.stores.quarantine(&sub.store_name(task.partition)) {
            Ok(path) => {
                let path = path.map(|path| path.display().to_string());
                tracing::warn!(%task, reason, path, "standby store quarantined; restoring in full from the changelog");
                self.shared.metrics.recovery.quarantines.increment(1);
            }
            // A query still reads a snapshot of the store.
            Err(state_store::Error::Locked { .. }) => {}
            Err(error) => self.stop(task, &chain(&error)),
        }
    }

    /// Stops the standby of one task for a while.
    fn stop(&mut self, task: TaskId, reason: &str) {
        tracing::warn!(%task, reason, "standby stopped");
        self.shared.standbys().remove(&task);
        self.stopped.insert(task, self.shared.clock.elapsed() + STOPPED_RETRY);
    }

    /// Fills the batch and returns whether there is any standby.
    fn read(&mut self, wait: Duration) -> event_log::Result<bool> {
        let wanted: Vec<(StandbyPartition, StartFrom)> = {
            let standbys = self.shared.standbys();
            let tasks: BTreeMap<&TaskId, &TaskStore> = standbys.iter().collect();
            let wanted = tasks.into_iter().filter_map(|(task, store)| {
                let sub = self.shared.plan.subs.iter().find(|sub| sub.name == task.subtopology)?;
                let at = TopicPartition::new(sub.changelog.clone(), task.partition);
                let target = StandbyPartition { at, task: task.clone() };
                Some((target, StartFrom::Offset(store.next?)))
            });
            wanted.collect()
        };
        if wanted.is_empty() && self.assigned.is_empty() {
            return Ok(false);
        }
        let reader = match &mut self.reader {
            Some(reader) => reader,
            empty => empty.insert(self.shared.log.reader(Isolation::ReadCommitted)?),
        };
        // A task that used a store in the meantime has changed its position. The reader continues only if its positions
        // are exactly those of the stores.
        let in_position = |(target, from): &(StandbyPartition, StartFrom)| {
            reader
                .position(&target.at)
                .is_some_and(|position| *from == StartFrom::Offset(position))
        };
        let same = wanted
            .iter()
            .map(|(target, _)| &target.at)
            .eq(self.assigned.iter().map(|target| &target.at));
        if !(same && wanted.iter().all(in_position)) {
            self.assigned.clear();
            let partitions: Vec<_> = wanted.iter().map(|(target, from)| (target.at.clone(), *from)).collect();
            reader.assign(&partitions)?;
            self.assigned.extend(wanted.into_iter().map(|(target, _)| target));
        }
        if self.assigned.is_empty() {
            return Ok(false);
        }
        reader.poll(&mut self.records, READ_BYTES, wait)?;
        Ok(true)
    }

    /// Applies the records that were read to the stores. The map is locked for one store at a time, so that a stream
    /// thread waits for at most one batch.
    fn store(&mut self) {
        let Some(reader) = &self.reader else { return };
        let mut failed = Vec::new();
        for target in &self.assigned {
            let Some(position) = reader.position(&target.at) else {
                continue;
            };
            let mut standbys = self.shared.standbys();
            // A stream thread may have taken the store, or the store may already contain this batch.
            let Some(store) = standbys
                .get_mut(&target.task)
                .filter(|store| store.next.is_some_and(|next| position >= next))
            else {
                continue;
            };
            // `as_of` advances only if the reader proves that it has reached the end (C10).
            let as_of = reader.at_end(&target.at);
            let as_of = as_of.map_or(store.as_of, |at_end| at_end.max(store.as_of));
            if let Err(reason) = self.apply(target, store, ReadPosition { position, as_of }) {
                standbys.remove(&target.task);
                failed.push((target.task.clone(), reason));
            }
        }
        if !failed.is_empty() {
            self.assigned.clear();
        }
        for (task, reason) in failed {
            self.stop(task, &reason);
        }
    }

    /// Writes the records of one changelog partition that were read to a standby's store.
    fn apply(&self, target: &StandbyPartition, store: &mut TaskStore, read: ReadPosition) -> Result<(), String> {
        let StandbyPartition { at, task } = target;
        let sub = self.shared.plan.subs.iter().find(|sub| sub.name == task.subtopology);
        let sub = sub.ok_or_else(|| "its sub-topology is no longer declared".to_owned())?;
        let next = store.next.unwrap_or_default();
        let (mut batch, mut count) = (Batch::default(), 0);
        let index = self.records.partitions().iter().position(|read| read == at);
        let mut commit_record = store.commit_record.clone();
        for record in self.records.iter().filter(|r| Some(r.partition_index()) == index) {
            if record.offset() >= next {
                let put = |key: &[u8], value: Option<&[u8]>| match value {
                    Some(value) => batch.put(STATE, key, value),
                    None => batch.delete(STATE, key),
                };
                read_record(record.key(), record.value(), &mut commit_record, put)
                    .map_err(|reason| format!("{at}@{}: {reason}", record.offset()))?;
                count += 1;
            }
        }
        // The newer `as_of` of an idle changelog is written from time to time, because otherwise the store would be too
        // old after a restart (C10).
        let stale = read.as_of.saturating_sub(store.as_of) > sub.delete_retention / 16;
        if !batch.is_empty() || commit_record != store.commit_record || stale {
            if let Some(commit_record) = &commit_record {
                checkpoint::put_commit_record(&mut batch, &commit_record.encode());
            }
            let origin = sub.origin(task.partition);
            checkpoint::put_checkpoint(&mut batch, &origin.checkpoint(read.position, read.as_of));
            store.disk().commit(batch).map_err(|error| chain(&error))?;
            hit("streams.standby.batch");
            store.as_of = read.as_of;
            store.commit_record = commit_record;
            store.next = Some(read.position);
        } else if read.position > next {
            // There were only control records, so there is nothing to write. After a restart the reader skips them
            // again.
            store.next = Some(read.position);
        }
        self.shared.metrics.recovery.standby_records.increment(count);
        Ok(())
    }

    fn read_failed(&mut self, error: &event_log::Error) {
        self.assigned.clear();
        self.not_before = self.shared.clock.elapsed() + BACKOFF;
        let shared = self.shared.clone();
        let affected: Vec<TaskId> = match error.scope() {
            Some(scope) => {
                let affected = |task: &&TaskId| {
                    let sub = shared.plan.subs.iter().find(|sub| sub.name == task.subtopology);
                    sub.is_some_and(|sub| scope.contains(&sub.origin(task.partition).changelog))
                };
                shared.standbys().keys().filter(affected).cloned().collect()
            }
            None => Vec::new(),
        };
        if affected.is_empty() && error.action() != ErrorAction::Retry {
            tracing::warn!(application = %shared.plan.application, reason = chain(error), "cannot update standbys");
            self.reader = None;
        }
        // One changelog that cannot be read does not affect the others.
        for task in affected {
            let sub = shared.plan.subs.iter().find(|sub| sub.name == task.subtopology);
            shared.standbys().remove(&task);
            match (error, sub) {
                (event_log::Error::OutOfRange { .. }, Some(sub)) => self.quarantine(sub, task, &chain(error)),
                _ => self.stop(task, &chain(error)),
            }
        }
    }
}

/// The standbys that this process should have, according to the current members of the group.
fn wanted(shared: &Shared, group: &GroupInfo) -> BTreeSet<TaskId> {
    let mut processes = placement::Processes::new();
    for thread in group.members.iter().filter_map(|member| member.instance.as_deref()) {
        if let Some(process) = instance_of_member(&shared.plan.application, thread) {
            processes.entry(process.to_owned()).or_default().push(thread.to_owned());
        }
    }
    let tasks: Vec<TaskCount> = shared
        .plan
        .subs
        .iter()
        .map(|sub| TaskCount {
            subtopology: sub.name.clone(),
            partitions: sub.partitions,
        })
        .collect();
    placement::wanted(
        &shared.config.instance,
        &processes,
        &tasks,
        shared.config.standby_replicas,
    )
}
