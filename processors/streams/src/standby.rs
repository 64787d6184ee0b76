//! Standbys: stores of other processes' tasks, kept up from their changelogs, so that a task that moves here starts
//! with a short tail to read.
//!
//! Guarantees: a store is a standby's or a task's, never both: a thread that gets the task takes it out of the shared
//! table, open and at its place. What cannot be used is set aside, as in a recovery.
//! Never: a record that is not committed; a store that another thread of this process works with.

mod place;

use crate::TaskId;
use crate::checkpoint::{self, STATE};
use crate::plan::Sub;
use crate::recovery::{Unopened, beginning, missed_tombstones, open_live};
use crate::restore::take;
use crate::task::TaskStore;
use crate::thread::Shared;
use event_log::{ErrorAction, GroupInfo, Isolation, Reader, RecordBatch, StartFrom, TopicPartition};
use failpoint::hit;
use service::chain;
use state_store::Batch;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How often the group is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;
/// Pause after a failure.
const BACKOFF: Duration = Duration::from_secs(1);

/// Keeps the standbys of one application in this process.
pub(crate) struct Standby {
    env: Arc<Shared>,
    reader: Option<Box<dyn Reader>>,
    /// What the reader reads, in order.
    assigned: Vec<(TopicPartition, TaskId)>,
    records: RecordBatch,
    looked: Option<Duration>,
    not_before: Duration,
    /// Tasks whose store or changelog only people can mend; not tried again.
    on_dead_letter: BTreeSet<TaskId>,
}

impl Standby {
    pub(crate) fn new(env: Arc<Shared>) -> Self {
        Standby {
            env,
            reader: None,
            assigned: Vec::new(),
            records: RecordBatch::default(),
            looked: None,
            not_before: Duration::ZERO,
            on_dead_letter: BTreeSet::new(),
        }
    }

    /// Looks at the group when it is time, and reads on; waits at most `wait` for records. Returns how long the caller
    /// should pause before the next turn.
    pub(crate) fn turn(&mut self, wait: Duration) -> Duration {
        let now = self.env.clock.elapsed();
        if now < self.not_before {
            return wait.min(self.not_before - now);
        }
        if self
            .looked
            .is_none_or(|looked| now.saturating_sub(looked) >= LOOK_EVERY)
        {
            self.looked = Some(now);
            if let Err(error) = self.look() {
                self.failed(&error);
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
                self.failed(&error);
                wait
            }
        }
    }

    /// Opens the stores that are wanted now, and closes those that are not.
    fn look(&mut self) -> event_log::Result<()> {
        let env = self.env.clone();
        let Some(group) = env.log.group_info(&env.plan.application)? else {
            return Ok(());
        };
        if group.state != "Stable" {
            return Ok(());
        }
        let wanted = wanted(&env, &group);
        env.warm().retain(|task, _| wanted.contains(task));
        for task in wanted {
            let here = env.warm().contains_key(&task) || env.serving().contains_key(&task);
            let sub = env.plan.subs.iter().find(|sub| sub.name == task.subtopology);
            if let Some(sub) = sub.filter(|_| !here && !self.on_dead_letter.contains(&task)) {
                self.open(sub, task)?;
            }
        }
        let warm = env.warm();
        env.metrics.standbys(warm.len());
        Ok(())
    }

    fn open(&mut self, sub: &Arc<Sub>, task: TaskId) -> event_log::Result<()> {
        let env = &self.env;
        let opened =
            open_live(sub, task.partition, env).and_then(|live| match missed_tombstones(&live, sub, env.clock.now()) {
                Some(reason) => Err(Unopened::Unusable(reason)),
                None => Ok(live),
            });
        match opened {
            Ok(mut live) => {
                if live.next.is_none() {
                    // What is read from the start on knows of everything that was written when it begins.
                    live.as_of = env.clock.now();
                    let changelog = TopicPartition::new(sub.changelog.clone(), task.partition);
                    match beginning(env, &changelog)? {
                        Ok(start) => live.next = Some(start),
                        Err(reason) => {
                            self.give_up(task, &reason);
                            return Ok(());
                        }
                    }
                }
                tracing::info!(application = %env.plan.application, %task, next_offset = live.next, "standby begins");
                env.warm().insert(task, live);
            }
            // A thread of this process has just let go of it, or is about to take it.
            Err(Unopened::Busy(_)) => {}
            Err(Unopened::Unusable(reason)) => self.quarantine(sub, task, &reason),
            Err(Unopened::Stop(reason)) => self.give_up(task, &reason),
        }
        Ok(())
    }

    fn quarantine(&mut self, sub: &Sub, task: TaskId, reason: &str) {
        match self.env.stores.quarantine(&sub.store_name(task.partition)) {
            Ok(place) => {
                let place = place.map(|path| path.display().to_string());
                tracing::warn!(%task, reason, place, "a standby's store is set aside; it is read anew from its changelog");
                self.env.metrics.quarantine.increment(1);
            }
            Err(error) => self.give_up(task, &chain(&error)),
        }
    }

    fn give_up(&mut self, task: TaskId, reason: &str) {
        tracing::warn!(%task, reason, "this task has no standby here");
        self.env.warm().remove(&task);
        self.on_dead_letter.insert(task);
    }

    /// Fills the batch; says whether there is anything to keep up at all.
    fn read(&mut self, wait: Duration) -> event_log::Result<bool> {
        let wanted: Vec<(TopicPartition, StartFrom, TaskId)> = {
            let warm = self.env.warm();
            let tasks: BTreeMap<&TaskId, &TaskStore> = warm.iter().collect();
            let wanted = tasks.into_iter().filter_map(|(task, live)| {
                let sub = self.env.plan.subs.iter().find(|sub| sub.name == task.subtopology)?;
                let at = TopicPartition::new(sub.changelog.clone(), task.partition);
                Some((at, StartFrom::Offset(live.next?), task.clone()))
            });
            wanted.collect()
        };
        if wanted.is_empty() && self.assigned.is_empty() {
            return Ok(false);
        }
        let reader = match &mut self.reader {
            Some(reader) => reader,
            empty => empty.insert(self.env.log.reader(Isolation::ReadCommitted)?),
        };
        // Whoever took a store and gave it back has moved it; only a reader that stands where the stores do goes on.
        let stands = |(at, from, _): &(TopicPartition, StartFrom, TaskId)| {
            reader
                .position(at)
                .is_some_and(|position| *from == StartFrom::Offset(position))
        };
        let same = wanted
            .iter()
            .map(|(at, ..)| at)
            .eq(self.assigned.iter().map(|(at, _)| at));
        if !(same && wanted.iter().all(stands)) {
            self.assigned.clear();
            let places: Vec<_> = wanted.iter().map(|(at, from, _)| (at.clone(), *from)).collect();
            reader.assign(&places)?;
            self.assigned.extend(wanted.into_iter().map(|(at, _, task)| (at, task)));
        }
        if self.assigned.is_empty() {
            return Ok(false);
        }
        reader.poll(&mut self.records, READ_BYTES, wait)?;
        Ok(true)
    }

    /// Brings each store up to what was read. A store is taken out of the table for no longer than its own batch.
    fn store(&mut self) {
        let Some(reader) = &self.reader else { return };
        let mut broken = Vec::new();
        for (at, task) in &self.assigned {
            let Some(position) = reader.position(at) else { continue };
            let mut warm = self.env.warm();
            // Taken by a thread meanwhile, or further than this batch already.
            let Some(live) = warm
                .get_mut(task)
                .filter(|live| live.next.is_some_and(|next| position >= next))
            else {
                continue;
            };
            let as_of = reader.at_end(at).map_or(live.as_of, |seen| seen.max(live.as_of));
            if let Err(reason) = self.keep_up(at, task, live, position, as_of) {
                warm.remove(task);
                broken.push((task.clone(), reason));
            }
        }
        if !broken.is_empty() {
            self.assigned.clear();
        }
        for (task, reason) in broken {
            self.give_up(task, &reason);
        }
    }

    fn keep_up(
        &self,
        at: &TopicPartition,
        task: &TaskId,
        live: &mut TaskStore,
        position: event_log::Offset,
        as_of: event_log::Millis,
    ) -> Result<(), String> {
        let sub = self.env.plan.subs.iter().find(|sub| sub.name == task.subtopology);
        let sub = sub.ok_or_else(|| "its sub-topology is not declared any more".to_owned())?;
        let next = live.next.unwrap_or_default();
        let (mut batch, mut count) = (Batch::default(), 0);
        let index = self.records.partitions().iter().position(|read| read == at);
        let mut commit_record = live.commit_record.clone();
        for record in self.records.iter().filter(|r| Some(r.partition_index()) == index) {
            if record.offset() >= next {
                let put = |key: &[u8], value: Option<&[u8]>| match value {
                    Some(value) => batch.put(STATE, key, value),
                    None => batch.delete(STATE, key),
                };
                take(record.key(), record.value(), &mut commit_record, put)
                    .map_err(|reason| format!("{at}@{}: {reason}", record.offset()))?;
                count += 1;
            }
        }
        // A quiet changelog's proof is written down now and then, or a restart would find the store too old.
        let stale = as_of.saturating_sub(live.as_of) > sub.delete_retention / 16;
        if !batch.is_empty() || commit_record != live.commit_record || stale {
            if let Some(commit_record) = &commit_record {
                checkpoint::put_commit_record(&mut batch, &commit_record.written());
            }
            checkpoint::put_checkpoint(&mut batch, &sub.origin(task.partition).checkpoint(position, as_of));
            live.store().commit(batch).map_err(|error| chain(&error))?;
            hit("runtime.standby.batch");
            live.as_of = as_of;
            live.commit_record = commit_record;
            live.next = Some(position);
        } else if position > next {
            // Control records only: nothing to write, the place is found again.
            live.next = Some(position);
        }
        self.env.metrics.standby_records.increment(count);
        Ok(())
    }

    fn failed(&mut self, error: &event_log::Error) {
        self.assigned.clear();
        self.not_before = self.env.clock.elapsed() + BACKOFF;
        let env = self.env.clone();
        if let event_log::Error::OutOfRange { at, .. } = error {
            let gone = env.plan.subs.iter().find(|sub| sub.changelog == at.topic);
            if let Some(sub) = gone {
                let task = TaskId {
                    subtopology: sub.name.clone(),
                    partition: at.partition,
                };
                if env.warm().remove(&task).is_some() {
                    self.quarantine(sub, task, &chain(error));
                }
            }
        } else if error.action() != ErrorAction::Retry {
            tracing::warn!(application = %env.plan.application, reason = chain(error), "standbys are not kept up");
        }
    }
}

/// The tasks to keep here, from the group as it is.
fn wanted(env: &Shared, group: &GroupInfo) -> BTreeSet<TaskId> {
    let mut processes = place::Processes::new();
    for thread in group.members.iter().filter_map(|member| member.instance.as_deref()) {
        if let Some(process) = process_of(&env.plan.application, thread) {
            processes.entry(process.to_owned()).or_default().push(thread.to_owned());
        }
    }
    let tasks: Vec<place::Tasks> = env
        .plan
        .subs
        .iter()
        .map(|sub| (sub.name.clone(), sub.partitions))
        .collect();
    place::wanted(&env.config.instance, &processes, &tasks, env.config.standby_replicas)
}

/// The instance that a thread's name is of: see [`crate::Config::thread_name`].
pub(crate) fn process_of<'n>(application: &str, thread: &'n str) -> Option<&'n str> {
    let rest = thread.strip_prefix(application)?.strip_prefix('-')?;
    let (instance, number) = rest.rsplit_once('-')?;
    number.parse::<u32>().ok().map(|_| instance)
}
