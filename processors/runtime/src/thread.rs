//! A stream thread: one member of the group, one session, and the tasks of the partitions assigned to it.
//!
//! Guarantees: everything that its tasks do between two commits becomes visible in one transaction with the offsets
//! that it was made from; after anything else than a known commit every task goes back to the last one.
//! Never: a wait while there is work; a sleep.

mod assignment;
pub(crate) mod caution;
mod commit;
mod step;

use crate::error::chain;
use crate::metrics::Metrics;
use crate::pace::{Advice, Caps, Pace};
use crate::plan::Plan;
use crate::recovery::{self, LOOK_AGAIN, Next, Recovery, Start};
use crate::restore::{Obstacle, Restorer};
use crate::status::Status;
use crate::stores::Stores;
use crate::task::{Phase, Task};
use crate::writer::Writer;
use crate::{Clock, Config, Error, Result, hit};
use caution::Caution;
use log::{Event, Fate, GroupConfig, GroupConsumer, Member, Offset, OutBatch, RecordBatch, SharedLog, TopicPartition};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// After a fence without a transaction timeout of its own a thread waits so long for a new assignment, which would be
/// the reason; without one another process runs under its name.
const FENCE_WAIT: Duration = Duration::from_secs(6);
/// Pause after the log was out of reach.
const BACKOFF: Duration = Duration::from_millis(200);
/// How long a thread without work waits for a changelog to go on.
const RESTORE_WAIT: Duration = Duration::from_millis(5);
/// How often the status is written down although nothing changed.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Aborts in a row, without a reason that says whose, after which transactions are made smaller.
const ABORTS_BEFORE_CAUTION: u32 = 3;

/// What all threads of an application share.
pub(crate) struct Env {
    pub plan: Plan,
    pub config: Config,
    pub log: SharedLog,
    pub clock: Arc<dyn Clock>,
    pub stores: Arc<dyn Stores>,
    pub metrics: Metrics,
    pub status: Arc<Status>,
    /// Committed places, for the lag.
    pub places: Mutex<HashMap<TopicPartition, Offset>>,
}

impl Env {
    pub(crate) fn new(
        plan: Plan,
        config: Config,
        log: SharedLog,
        clock: Arc<dyn Clock>,
        stores: Arc<dyn Stores>,
        status: Arc<Status>,
    ) -> Self {
        let metrics = Metrics::new(&plan.application);
        Env { plan, config, log, clock, stores, metrics, status, places: Mutex::default() }
    }
}

/// Why a transaction did not become a known commit.
pub(crate) enum Cause {
    /// Another session of this name, or another generation of the group.
    Fenced(String),
    /// The log refuses what this task wrote.
    Refused { task: usize, reason: String },
    /// Anything else.
    Failed(String),
}

/// One stream thread, to be driven by calls of [`StreamThread::turn`].
pub(crate) struct StreamThread {
    env: Arc<Env>,
    name: String,
    writer: Writer,
    consumer: Option<Box<dyn GroupConsumer>>,
    member: Option<Member>,
    tasks: Vec<Task>,
    restorer: Restorer,
    pace: Pace,
    /// Whether the last read found nothing.
    drained: bool,
    fence: Option<(Duration, String)>,
    aborts_in_a_row: u32,
    /// No call to the log before this time, as it was out of reach.
    not_before: Duration,
    out_of_reach: Option<String>,
    published: Option<Duration>,
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
    pub(crate) fn new(env: Arc<Env>, index: usize) -> Self {
        let name = env.config.thread_name(&env.plan.application, index);
        let config = &env.config;
        let caps = Caps::new(config.commit_interval, config.commit_bytes_max, config.touches_view_log);
        StreamThread {
            writer: Writer::new(name.clone()),
            name,
            consumer: None,
            member: None,
            tasks: Vec::new(),
            restorer: Restorer::default(),
            pace: Pace::new(caps),
            drained: true,
            fence: None,
            aborts_in_a_row: 0,
            not_before: Duration::ZERO,
            out_of_reach: None,
            published: None,
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
        let wait = match self.advise() {
            Advice::Commit => {
                self.commit(None)?;
                Duration::ZERO
            }
            Advice::ReadOn(wait) => wait,
            Advice::Nothing => max_wait,
        };
        let recovering = ready && self.tasks.iter().any(|task| matches!(task.phase, Phase::Recovering(_)));
        let wait = match (recovering, restored) {
            (false, _) => wait,
            (true, 0) => wait.min(RESTORE_WAIT),
            (true, _) => Duration::ZERO,
        };
        self.read(wait)?;
        Ok(Duration::ZERO)
    }

    /// Commits what is uncommitted and leaves the group; the static seat is kept for a restart.
    pub(crate) fn finish(mut self) -> Result<()> {
        if self.writer.is_ready() && self.fence.is_none() {
            self.commit(None)?;
        }
        self.tasks.clear();
        let left = self.consumer.take().map_or(Ok(()), GroupConsumer::close);
        left.map_err(|source| Error::Log { who: self.name.clone(), source })
    }

    /// Whether every task works, with nothing uncommitted and no more input at the last read.
    pub(crate) fn is_quiet(&self) -> bool {
        let now = self.env.clock.now();
        self.drained
            && self.member.is_some()
            && self.tasks.iter().all(|task| matches!(task.phase, Phase::Running) && !task.has_work(now))
    }

    fn check_fence(&mut self, now: Duration) -> Result<()> {
        match &self.fence {
            Some((since, reason)) if now.saturating_sub(*since) > FENCE_WAIT => {
                Err(Error::Fenced { who: self.name.clone(), reason: reason.clone() })
            }
            _ => Ok(()),
        }
    }

    fn join(&mut self) -> Result<bool> {
        let config = GroupConfig {
            group: self.env.plan.application.to_string(),
            instance: Some(self.name.clone()),
            topics: self.env.plan.topics(),
            session_timeout: self.env.config.session_timeout,
        };
        let joined = self.env.log.group(config);
        Ok(self.reached(joined)?.map(|consumer| self.consumer = Some(consumer)).is_some())
    }

    /// Sorts out what a call to the log returned: `None` when the log is out of reach for now.
    fn reached<T>(&mut self, returned: log::Result<T>) -> Result<Option<T>> {
        match returned {
            Ok(value) => {
                self.out_of_reach = None;
                Ok(Some(value))
            }
            Err(error) if error.fate() == Fate::Retry => {
                let reason = chain(&error);
                if self.out_of_reach.is_none() {
                    tracing::warn!(thread = self.name, reason, "log is out of reach; trying again");
                }
                self.out_of_reach = Some(reason);
                self.not_before = self.env.clock.elapsed() + BACKOFF;
                Ok(None)
            }
            Err(error @ log::Error::Fenced { .. }) => {
                Err(Error::Fenced { who: self.name.clone(), reason: chain(&error) })
            }
            Err(source) => Err(Error::Log { who: self.name.clone(), source }),
        }
    }

    /// Lets tasks go on whose pause is over.
    fn wake_up(&mut self) -> Result<()> {
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
    fn recover(&mut self, max_wait: Duration) -> Result<usize> {
        for index in 0..self.tasks.len() {
            self.recover_one(index)?;
        }
        let live = self.tasks.iter().any(Task::is_live);
        let wait = if live { Duration::ZERO } else { RESTORE_WAIT.min(max_wait) };
        let mut obstacles = Vec::new();
        let restored = self.restorer.turn(&mut self.tasks, &self.env, wait, &mut obstacles);
        for obstacle in obstacles {
            match obstacle {
                Obstacle::Stop { task, reason } => self.stop(task, reason, true),
                Obstacle::Gone { task: index, reason } => {
                    let Some(task) = self.tasks.get_mut(index) else { continue };
                    let Phase::Recovering(recovery) = &task.phase else { continue };
                    let mut recovery = recovery.clone();
                    let next = recovery::set_aside(task, &mut recovery, &self.env, &reason);
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
            let Phase::Recovering(recovery) = &mut task.phase else { return Ok(()) };
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
        let Some(task) = self.tasks.get_mut(index) else { return Ok(()) };
        let found: log::Result<Vec<Offset>> =
            places.iter().enumerate().map(|(input, start)| recovery::place(task, start, input, &self.env)).collect();
        let Some(found) = self.reached(found)? else { return Ok(()) };
        let Some(task) = self.tasks.get_mut(index) else { return Ok(()) };
        let live = task.live.as_ref().expect("a recovered task has its store open");
        if let Err(error) = task.processor.reset(&live.state) {
            self.stop(index, chain(&error), true);
            return Ok(());
        }
        task.stream_time = live.marker.as_ref().map_or(0, |marker| marker.stream_time);
        for (input, next) in task.inputs.iter_mut().zip(&found) {
            input.next = *next;
        }
        task.moved = write_down;
        hit("runtime.recovery.start");
        self.resume(index)?;
        if let Some(task) = self.tasks.get(index).filter(|task| matches!(task.phase, Phase::Running)) {
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
        let Some(task) = self.tasks.get_mut(index) else { return Ok(()) };
        let consumer = self.consumer.as_mut().expect("tasks exist only while the thread is in the group");
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
            Err(error @ log::Error::OutOfRange { .. }) => self.out_of_range(&error),
            Err(error) => self.reached(Err::<(), _>(error)).map(|_| ()),
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
        let Some(consumer) = &mut self.consumer else { return Ok(()) };
        let mut records = std::mem::take(&mut self.records);
        let event = consumer.poll(&mut records, self.env.config.poll_bytes_max, wait);
        let done = match event {
            Ok(Event::Records) => {
                self.drained = false;
                self.process(&records)
            }
            Ok(Event::Idle) => {
                self.drained = true;
                Ok(())
            }
            Ok(Event::Assigned(partitions)) => self.assigned(&partitions),
            Ok(Event::Revoked(partitions)) => self.revoked(&partitions),
            Ok(Event::Lost(partitions)) => {
                self.lost(&partitions);
                Ok(())
            }
            Err(error @ log::Error::OutOfRange { .. }) => self.out_of_range(&error),
            Err(error) => self.reached(Err::<(), _>(error)).map(|_| ()),
        };
        self.records = records;
        done
    }

    fn out_of_range(&mut self, error: &log::Error) -> Result<()> {
        let log::Error::OutOfRange { at, .. } = error else { return Ok(()) };
        let task = self.tasks.iter().position(|task| task.inputs.iter().any(|input| input.at == *at));
        self.commit(None)?;
        if let Some(task) = task {
            self.stop(task, lost_records(error), true);
        }
        Ok(())
    }

    /// Stops a task and no other; with `look_again` it tries from the beginning after a while.
    fn stop(&mut self, index: usize, reason: String, look_again: bool) {
        let again = look_again.then(|| self.env.clock.elapsed() + LOOK_AGAIN);
        let Some(task) = self.tasks.get_mut(index) else { return };
        tracing::error!(task = %task.id, reason, "task stopped");
        task.roll_back();
        task.phase = Phase::Stopped { reason, again };
        self.published = None;
        self.pause(index);
    }

    fn pause(&mut self, index: usize) {
        let (Some(task), Some(consumer)) = (self.tasks.get_mut(index), &mut self.consumer) else { return };
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
    fn broke(&mut self, cause: Cause) {
        let now = self.env.clock.elapsed();
        let timed_out = self.writer.open_for(now).is_some_and(|age| age >= self.env.config.transaction_timeout);
        self.aborts_in_a_row = self.aborts_in_a_row.saturating_add(1);
        self.env.metrics.aborts.increment(1);
        let mut given_up = None;
        match cause {
            Cause::Fenced(reason) => {
                self.env.metrics.fences.increment(1);
                tracing::warn!(thread = self.name, reason, timed_out, "fenced");
                if !timed_out {
                    self.fence = Some((now, reason));
                }
            }
            Cause::Refused { task: index, reason } => {
                tracing::warn!(thread = self.name, reason, "log refuses a record; looking for the input that it is made of");
                if let Some(task) = self.tasks.get_mut(index) {
                    let refused = task.refused(Some(reason.clone()));
                    task.caution = Caution::after(task.caution.take(), refused);
                    given_up = task.caution.is_none().then_some((index, reason));
                }
            }
            Cause::Failed(reason) => {
                tracing::warn!(thread = self.name, reason, "transaction not committed; going back to the last commit");
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
        if let Some((index, reason)) = given_up {
            self.stop(index, format!("the log refuses even a dead letter of a record: {reason}"), false);
        }
    }

    /// Writes down what stands between this thread and work.
    fn publish(&mut self, now: Duration) {
        if self.published.is_some_and(|last| now.saturating_sub(last) < STATUS_EVERY) {
            return;
        }
        self.published = Some(now);
        let own = match (&self.fence, &self.writer.waits_for, &self.out_of_reach) {
            (Some((_, reason)), _, _) => Some(format!("fenced ({reason}); waiting for a new assignment")),
            (None, Some(reason), _) | (None, None, Some(reason)) => Some(reason.clone()),
            (None, None, None) if self.member.is_none() => Some("waiting for an assignment".to_owned()),
            (None, None, None) => None,
        };
        self.env.status.set(&self.name, own);
        for task in &self.tasks {
            self.env.status.set(&format!("{}, task {}", self.env.plan.application, task.id), task.cause());
        }
    }
}

fn lost_records(error: &log::Error) -> String {
    format!(
        "{}: records that were not yet processed are gone, by retention or by hand; to go on without them: \
         `trunkline offsets accept`",
        chain(error)
    )
}
