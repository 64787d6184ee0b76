//! A stream thread: one member of the group, one session, and the tasks of the partitions assigned to it.
//!
//! Guarantees: everything that its tasks do between two commits becomes visible in one transaction with the offsets
//! that it was made from; after anything else than a known commit every task goes back to the last one.
//! Never: a wait while there is work; a sleep.

mod alone;
pub(crate) mod apart;
mod assignment;
pub(crate) mod caution;
mod commit;
mod failure;
mod recover;
mod step;

use crate::metrics::{self, Metrics};
use crate::pace::{Advice, Caps, Pace};
use crate::plan::Plan;
use crate::query::TaskReport;
use crate::restore::Restorer;
use crate::status::{Cause, Status};
use crate::stores::Stores;
use crate::task::{Phase, Task, TaskStore};
use crate::writer::Writer;
use crate::{Clock, Config, Error, Result, TaskId};
use event_log::{
    ErrorAction, Event, GroupConfig, GroupConsumer, GroupMetadata, Millis, Offset, OutBatch, RecordBatch,
    SharedEventLog, TopicPartition,
};
use recover::RESTORE_WAIT;
use service::chain;
use state_store::SharedStore;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// After a fence without a transaction timeout of its own a thread waits so long for a new assignment, which would be
/// the reason; without one another process runs under its name.
const FENCE_WAIT: Duration = Duration::from_secs(6);
/// Pause after the log was out of reach.
const BACKOFF: Duration = Duration::from_millis(200);
/// A wait for input that long without any says that there is none.
const DRAINED_AFTER: Duration = Duration::from_millis(10);
/// Committed rows wait for their flush in this part of a store's memory, at most, and as much again stays readable.
const SETTLED_SHARE: u64 = 8;
/// How often the status is written down although nothing changed.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// What all threads of an application share.
pub(crate) struct Shared {
    pub plan: Plan,
    pub config: Config,
    pub log: SharedEventLog,
    pub clock: Arc<dyn Clock>,
    pub stores: Arc<dyn Stores>,
    pub metrics: Metrics,
    pub status: Arc<Status>,
    /// Committed places, for the lag.
    pub places: Mutex<HashMap<TopicPartition, Place>>,
    /// Stores of standbys, until a stream thread takes them.
    warm: Mutex<HashMap<TaskId, TaskStore>>,
    /// Committed state of the tasks that work here, for queries.
    serving: Mutex<HashMap<TaskId, SharedStore>>,
    /// What the tasks of this process do.
    reports: Mutex<BTreeMap<TaskId, TaskReport>>,
}

/// A committed place in an input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub next: Offset,
    /// When nothing more was found to read, on the monotonic clock.
    pub drained: Option<Duration>,
    /// The greatest timestamp that its task had seen, in ms; 0 before the first record.
    pub stream_time: Millis,
}

impl Shared {
    pub(crate) fn new(
        plan: Plan,
        config: Config,
        log: SharedEventLog,
        clock: Arc<dyn Clock>,
        stores: Arc<dyn Stores>,
        status: Arc<Status>,
    ) -> Self {
        let metrics = Metrics::new(&plan.application);
        Shared {
            plan,
            config,
            log,
            clock,
            stores,
            metrics,
            status,
            places: Mutex::default(),
            warm: Mutex::default(),
            serving: Mutex::default(),
            reports: Mutex::default(),
        }
    }

    pub(crate) fn warm(&self) -> MutexGuard<'_, HashMap<TaskId, TaskStore>> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn serving(&self) -> MutexGuard<'_, HashMap<TaskId, SharedStore>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reports(&self) -> MutexGuard<'_, BTreeMap<TaskId, TaskReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a task that is not this process's any more.
    pub(crate) fn forget(&self, task: &TaskId) {
        self.serving().remove(task);
        self.reports().remove(task);
    }
}

/// Why a transaction did not become a known commit.
pub(crate) enum Broken {
    /// Another session of this name, or another generation of the group.
    Fenced(String),
    /// The log or the store refuses what this task wrote.
    Refused { task: usize, reason: String },
    /// Anything else.
    Failed(String),
}

/// One stream thread, to be driven by calls of [`StreamThread::turn`].
pub(crate) struct StreamThread {
    env: Arc<Shared>,
    name: String,
    writer: Writer,
    consumer: Option<Box<dyn GroupConsumer>>,
    member: Option<GroupMetadata>,
    tasks: Vec<Task>,
    restorer: Restorer,
    pace: Pace,
    /// Whether the last read found nothing.
    drained: bool,
    /// When the group was last asked, on the monotonic clock.
    polled: Duration,
    fence: Option<(Duration, String)>,
    aborts_in_a_row: u32,
    last_failure: Option<String>,
    /// No call to the log before this time, as it was out of reach.
    not_before: Duration,
    out_of_reach: Option<String>,
    published: Option<Duration>,
    overlay: ::metrics::Gauge,
    records: RecordBatch,
    /// Task and input of each partition of the batch.
    routes: Vec<Option<(usize, usize)>>,
    out: OutBatch,
    scratch: Vec<u8>,
    offsets: Vec<(TopicPartition, Offset)>,
    /// Tasks of the commit that is under way.
    who: Vec<usize>,
}

impl StreamThread {
    pub(crate) fn new(env: Arc<Shared>, index: usize) -> Self {
        let name = env.config.thread_name(&env.plan.application, index);
        let config = &env.config;
        let caps = Caps::new(config.commit_interval, config.commit_bytes_max, config.touches_view_log);
        let overlay = env.metrics.overlay(&name);
        StreamThread {
            writer: Writer::new(name.clone()),
            name,
            consumer: None,
            member: None,
            tasks: Vec::new(),
            restorer: Restorer::default(),
            pace: Pace::new(caps),
            drained: true,
            polled: Duration::ZERO,
            fence: None,
            aborts_in_a_row: 0,
            last_failure: None,
            not_before: Duration::ZERO,
            out_of_reach: None,
            published: None,
            overlay,
            records: RecordBatch::default(),
            routes: Vec::new(),
            out: OutBatch::default(),
            scratch: Vec::new(),
            offsets: Vec::new(),
            who: Vec::new(),
            env,
        }
    }

    /// Does the next thing: connects, recovers, commits, reads and processes. Waits at most `max_wait` for input, and
    /// returns how long the caller should wait before the next turn.
    ///
    /// # Errors
    /// What ends the thread, and with it the process: a fence by another process of the same name, a store that
    /// fails, a log that refuses for good.
    pub(crate) fn turn(&mut self, max_wait: Duration) -> Result<Duration> {
        let now = self.env.clock.elapsed();
        self.check_fence(now)?;
        self.publish(now);
        if now < self.not_before {
            return Ok(max_wait.min(self.not_before - now));
        }
        let ready = self.fence.is_none() && self.writer.mend(&self.env)?;
        if self.consumer.is_none() && !(ready && self.join()?) {
            let until = self.not_before.max(self.writer.not_before());
            return Ok(max_wait.min(until.saturating_sub(now)));
        }
        self.wake_up()?;
        let restored = if ready { self.recover(max_wait)? } else { 0 };
        let next_timer = if ready && self.member.is_some() {
            self.fire_due()?
        } else {
            None
        };
        let wait = match self.advise() {
            Advice::Commit => {
                self.commit(None)?;
                Duration::ZERO
            }
            Advice::ReadOn(wait) => wait,
            Advice::Nothing => max_wait,
        };
        self.flush_due()?;
        let recovering = ready && self.tasks.iter().any(|task| matches!(task.phase, Phase::Recovering(_)));
        let wait = match (recovering, restored) {
            (false, _) => wait,
            (true, 0) => wait.min(RESTORE_WAIT),
            (true, _) => Duration::ZERO,
        };
        self.read(next_timer.map_or(wait, |timer| timer.min(wait)))?;
        Ok(Duration::ZERO)
    }

    /// Lets the stores follow that are due.
    fn flush_due(&mut self) -> Result<()> {
        let now = self.env.clock.elapsed();
        let share = self.env.config.store_memory_bytes / SETTLED_SHARE;
        let bytes_max = usize::try_from(share).unwrap_or(usize::MAX);
        self.tasks
            .iter_mut()
            .try_for_each(|task| task.flush_if_due(now, bytes_max))?;
        Ok(())
    }

    /// Commits what is uncommitted and leaves the group; the static seat is kept for a restart.
    pub(crate) fn finish(mut self) -> Result<()> {
        if self.writer.is_ready() && self.fence.is_none() {
            self.commit(None)?;
        }
        self.tasks.iter().for_each(|task| self.env.forget(&task.id));
        self.tasks.iter_mut().try_for_each(Task::flush)?;
        self.tasks.clear();
        let left = self.consumer.take().map_or(Ok(()), GroupConsumer::close);
        left.map_err(|source| Error::EventLog {
            who: self.name.clone(),
            source,
        })
    }

    /// Whether every task works, with nothing uncommitted and no more input at the last read.
    pub(crate) fn is_quiet(&self) -> bool {
        let now = self.env.clock.now();
        self.drained
            && self.is_seated()
            && self
                .tasks
                .iter()
                .all(|task| matches!(task.phase, Phase::Running) && !task.has_work(now))
    }

    fn check_fence(&mut self, now: Duration) -> Result<()> {
        match &self.fence {
            Some((since, reason)) if now.saturating_sub(*since) > FENCE_WAIT => Err(Error::Fenced {
                who: self.name.clone(),
                reason: reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn join(&mut self) -> Result<bool> {
        let config = GroupConfig {
            group: self.env.plan.application.to_string(),
            instance: Some(self.name.clone()),
            topics: self.env.plan.topics(),
            session_timeout: self.env.config.session_timeout,
            protocol: self.env.config.group_protocol,
        };
        let joined = self.env.log.group(config);
        Ok(self
            .reached(joined)?
            .map(|consumer| self.consumer = Some(consumer))
            .is_some())
    }

    /// Sorts out what a call to the log returned: `None` when the log is out of reach for now.
    fn reached<T>(&mut self, returned: event_log::Result<T>) -> Result<Option<T>> {
        match returned {
            Ok(value) => {
                self.out_of_reach = None;
                Ok(Some(value))
            }
            Err(error) if error.action() == ErrorAction::Retry => {
                let reason = chain(&error);
                if self.out_of_reach.is_none() {
                    tracing::warn!(thread = self.name, reason, "log is out of reach; trying again");
                }
                self.out_of_reach = Some(reason);
                self.not_before = self.env.clock.elapsed() + BACKOFF;
                Ok(None)
            }
            Err(error @ event_log::Error::Fenced { .. }) => Err(Error::Fenced {
                who: self.name.clone(),
                reason: chain(&error),
            }),
            Err(source) => Err(Error::EventLog {
                who: self.name.clone(),
                source,
            }),
        }
    }

    fn advise(&mut self) -> Advice {
        let now = self.env.clock.elapsed();
        if !self.writer.is_ready() || self.fence.is_some() {
            return Advice::Nothing;
        }
        let at = self.env.clock.now();
        if self.tasks.iter().any(|task| task.is_live() && task.idle_for_long(at)) {
            return Advice::Commit;
        }
        let state_bytes = self.tasks.iter().map(Task::state_bytes).sum();
        self.pace.advise(now, state_bytes, self.drained)
    }

    fn read(&mut self, wait: Duration) -> Result<()> {
        let Some(consumer) = &mut self.consumer else {
            return Ok(());
        };
        let mut records = std::mem::take(&mut self.records);
        let event = consumer.poll(&mut records, self.env.config.poll_bytes_max, wait);
        self.polled = self.env.clock.elapsed();
        let done = match event {
            Ok(Event::Records) => {
                self.drained = false;
                let bytes = u64::try_from(records.byte_len()).unwrap_or(u64::MAX);
                self.env.metrics.bytes_in.increment(bytes);
                self.process(&records)
            }
            Ok(Event::Idle) => {
                self.drained = true;
                if wait >= DRAINED_AFTER {
                    self.note_drained();
                }
                Ok(())
            }
            Ok(Event::Assigned(partitions)) => self.assigned(&partitions),
            Ok(Event::Revoked(partitions)) => self.revoked(&partitions),
            Ok(Event::Lost(partitions)) => {
                self.lost(&partitions);
                Ok(())
            }
            Err(error @ event_log::Error::OutOfRange { .. }) => self.out_of_range(&error),
            Err(error) => self.reached(Err::<(), _>(error)).map(|_| ()),
        };
        self.records = records;
        done
    }

    /// Writes down for the lag that there is nothing more to read.
    fn note_drained(&self) {
        let now = self.env.clock.elapsed();
        let mut places = self.env.places.lock().unwrap_or_else(PoisonError::into_inner);
        for input in self
            .tasks
            .iter()
            .filter(|task| task.is_running())
            .flat_map(|task| &task.inputs)
        {
            if let Some(place) = places.get_mut(&input.at) {
                place.drained = Some(now);
            }
        }
    }

    /// Why the thread itself does not work, for people; `None` when it does.
    fn cause(&self) -> Option<Cause> {
        if let Some((_, reason)) = &self.fence {
            return Some(Cause::passing(format!(
                "fenced ({reason}); waiting for a new assignment"
            )));
        }
        if let Some(reason) = self.writer.waits_for.as_ref().or(self.out_of_reach.as_ref()) {
            return Some(Cause::outside(reason.clone()));
        }
        if let (Some(reason), 2..) = (&self.last_failure, self.aborts_in_a_row) {
            return Some(Cause::outside(format!("transactions are not committed: {reason}")));
        }
        if !self.is_seated() {
            return Some(Cause::passing("waiting for an assignment"));
        }
        // A topic that no member of the group reads has no task either, which could say so.
        let unassigned = self
            .consumer
            .as_ref()
            .map_or_else(Vec::new, |consumer| consumer.unassigned());
        (!unassigned.is_empty()).then(|| {
            let reason = format!("waiting for topics to be assigned: {}", unassigned.join(", "));
            Cause::passing(reason)
        })
    }

    /// Whether it is a member. With more threads than partitions one may have nothing to do, and is told nothing.
    fn is_seated(&self) -> bool {
        let seated =
            |consumer: &dyn GroupConsumer| consumer.group_metadata().is_ok_and(|member| member.generation >= 0);
        self.member.is_some() || self.consumer.as_deref().is_some_and(seated)
    }

    /// Writes down what stands between this thread and work.
    fn publish(&mut self, now: Duration) {
        if self
            .published
            .is_some_and(|last| now.saturating_sub(last) < STATUS_EVERY)
        {
            return;
        }
        self.published = Some(now);
        let waiting = self.tasks.iter().map(Task::state_bytes).sum();
        self.overlay.set(metrics::size(waiting));
        let own = self.cause();
        self.env.status.set(&self.name, own);
        for task in &self.tasks {
            self.env.status.set(
                &format!("{}, task {}", self.env.plan.application, task.id),
                task.cause(),
            );
        }
        let mut reports = self.env.reports();
        for task in &self.tasks {
            reports.insert(task.id.clone(), task.report());
        }
    }
}
