//! The loop of a stream thread, one iteration per call, and its handling of aborted transactions.

use super::abort::{Abort, Interrupt};
use super::committer::Committer;
use super::membership::Membership;
use super::pacing::Advice;
use super::rebalance::Rebalance;
use super::tasks::Tasks;
use crate::admin::metrics;
use crate::admin::status::Cause;
use crate::api::context::TaskId;
use crate::api::error::Result;
use crate::recovery::restore::{RESTORE_WAIT, Restorer};
use crate::shared::Shared;
use crate::task::Task;
use event_log::{ErrorAction, Event, RecordBatch, TopicPartition};
use failpoint::hit;
use std::sync::Arc;
use std::time::Duration;

/// A poll that waits this long without a record means that the input is drained.
const DRAINED_AFTER: Duration = Duration::from_millis(10);
/// Committed rows that are not flushed may use 1/8 of a store's memory; the rows of the last flush may use another 1/8.
const COMMITTED_SHARE: u64 = 8;
/// Interval at which the status is published if nothing changed.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// After this number of consecutive aborts whose reason does not identify a record, transactions get smaller.
const ABORTS_BEFORE_BISECTION: u32 = 3;

/// A stream thread; each call of [`StreamThread::turn`] is one iteration of its loop.
pub(crate) struct StreamThread {
    pub(super) shared: Arc<Shared>,
    name: String,
    pub(super) membership: Membership,
    pub(super) committer: Committer,
    pub(super) tasks: Tasks,
    pub(super) restorer: Restorer,
    records: RecordBatch,
    /// Whether the last poll found no records.
    drained: bool,
    /// When the status was last published; `None` if it has changed since then.
    pub(super) published: Option<Duration>,
    uncommitted_bytes: ::metrics::Gauge,
    stopped_tasks: ::metrics::Gauge,
}

/// A task to stop after a rollback.
struct StopTask {
    task: TaskId,
    reason: String,
    retry: bool,
}

impl StreamThread {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Self {
        let name = shared.config.thread_name(&shared.plan.application, index);
        StreamThread {
            membership: Membership::new(shared.clone(), name.clone()),
            committer: Committer::new(shared.clone(), name.clone()),
            tasks: Tasks::default(),
            restorer: Restorer::default(),
            records: RecordBatch::default(),
            drained: true,
            published: None,
            uncommitted_bytes: shared.metrics.uncommitted_bytes(&name),
            stopped_tasks: shared.metrics.stopped_tasks(&name),
            name,
            shared,
        }
    }

    /// Performs one iteration: connects, recovers tasks, fires timers, commits, reads and processes records, as
    /// necessary. Waits for input for at most `max_wait`, and returns how long the caller should wait before the next
    /// iteration.
    ///
    /// # Errors
    /// A failure that ends the thread and with it the process: fencing by a process of the same name, a store
    /// failure, or a failure of the log that a retry cannot fix.
    pub(crate) fn turn(&mut self, max_wait: Duration) -> Result<Duration> {
        match self.take_turn(max_wait) {
            Ok(pause) => Ok(pause),
            Err(Interrupt::Abort(abort)) => {
                self.roll_back(abort);
                Ok(Duration::ZERO)
            }
            Err(Interrupt::Fatal(error)) => Err(error),
        }
    }

    fn take_turn(&mut self, max_wait: Duration) -> Result<Duration, Interrupt> {
        let now = self.shared.clock.elapsed();
        self.membership.check_fence(now)?;
        self.publish(now);
        if now < self.membership.not_before() {
            return Ok(max_wait.min(self.membership.not_before() - now));
        }
        let ready = !self.membership.is_fenced() && self.committer.ensure_ready()?;
        let joined = self.membership.has_joined() || (ready && self.membership.join()?);
        if !joined {
            let until = self.membership.not_before().max(self.committer.producer.not_before());
            return Ok(max_wait.min(until.saturating_sub(now)));
        }
        self.membership.check_topics(now);
        self.stop_recreated();
        self.wake_tasks()?;
        // No task recovers before the producer is ready, because `init_transactions` commits or aborts the transaction
        // of the previous producer (C5).
        let restored = if ready { self.recover(max_wait)? } else { 0 };
        let next_timer = if ready && self.membership.has_metadata() {
            self.fire_due()?
        } else {
            None
        };
        let wait = match self.advise() {
            Advice::Commit => {
                self.commit(None)?;
                Duration::ZERO
            }
            Advice::Read(wait) => wait,
            Advice::Nothing => max_wait,
        };
        self.flush_due()?;
        let recovering = ready && self.tasks.iter().any(Task::is_recovering);
        let wait = match (recovering, restored) {
            (false, _) => wait,
            (true, 0) => wait.min(RESTORE_WAIT),
            (true, _) => Duration::ZERO,
        };
        self.read(next_timer.map_or(wait, |timer| timer.min(wait)))?;
        Ok(Duration::ZERO)
    }

    /// Flushes the committed buffers that are due.
    fn flush_due(&mut self) -> state_store::Result<()> {
        let now = self.shared.clock.elapsed();
        let share = self.shared.config.stores.memory_bytes / COMMITTED_SHARE;
        let bytes_max = usize::try_from(share).unwrap_or(usize::MAX);
        let mut tasks = self.tasks.as_mut_slice().iter_mut();
        tasks.try_for_each(|task| task.flush_if_due(now, bytes_max))
    }

    /// Commits what is uncommitted and leaves the group; the static membership remains for a restart.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.try_commit()?;
        self.tasks.iter().for_each(|task| self.shared.forget(&task.id));
        self.tasks.as_mut_slice().iter_mut().try_for_each(Task::flush)?;
        self.tasks.clear();
        self.membership.close()
    }

    /// Whether every task runs, nothing is uncommitted, and the last poll found no records.
    pub(crate) fn is_quiet(&self) -> bool {
        let now = self.shared.clock.now();
        self.drained
            && self.membership.is_member()
            && self.tasks.iter().all(|task| task.is_running() && !task.has_work(now))
    }

    fn advise(&mut self) -> Advice {
        if !self.committer.producer.is_ready() || self.membership.is_fenced() {
            return Advice::Nothing;
        }
        let now = self.shared.clock.now();
        if self
            .tasks
            .iter()
            .any(|task| task.is_live() && task.is_idle_too_long(now))
        {
            return Advice::Commit;
        }
        self.committer.advise(self.tasks.state_bytes(), self.drained)
    }

    fn read(&mut self, wait: Duration) -> Result<(), Interrupt> {
        let mut records = std::mem::take(&mut self.records);
        let done = match self.membership.poll(&mut records, wait) {
            Some(event) => self.on_event(event, &records, wait),
            None => Ok(()),
        };
        self.records = records;
        done
    }

    fn on_event(
        &mut self,
        event: event_log::Result<Event>,
        records: &RecordBatch,
        wait: Duration,
    ) -> Result<(), Interrupt> {
        match event {
            Ok(Event::Records) => {
                self.drained = false;
                let bytes = u64::try_from(records.byte_len()).unwrap_or(u64::MAX);
                self.shared.metrics.flow.bytes_in.increment(bytes);
                self.process(records)
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
            Err(error) if error.scope().is_some() => self.input_failed(&error),
            Err(error) => self.poll_failed(error),
        }
    }

    /// Handles an error of the group or of the whole log. Unless a retry resolves it, the thread joins the group again
    /// with another client, and its tasks recover.
    pub(super) fn poll_failed(&mut self, error: event_log::Error) -> Result<(), Interrupt> {
        let joins_again = error.action() != ErrorAction::Retry;
        self.membership.available(Err::<(), _>(error))?;
        if joins_again {
            let partitions: Vec<_> = self.tasks.iter().flat_map(Task::partitions).collect();
            self.lost(&partitions);
            self.membership.abandon();
        }
        Ok(())
    }

    /// Records for the lag that all inputs have been read completely.
    fn note_drained(&self) {
        let now = self.shared.clock.elapsed();
        let mut positions = self.shared.positions();
        let running = self.tasks.iter().filter(|task| task.is_running());
        for input in running.flat_map(|task| &task.inputs) {
            if let Some(position) = positions.get_mut(&input.at) {
                position.drained = Some(now);
            }
        }
    }

    fn rebalance(&mut self) -> Rebalance<'_> {
        self.published = None;
        Rebalance {
            thread: &self.name,
            shared: &self.shared,
            tasks: &mut self.tasks,
            membership: &mut self.membership,
        }
    }

    /// Handles assigned partitions.
    fn assigned(&mut self, partitions: &[TopicPartition]) -> Result<(), Interrupt> {
        if self.rebalance().was_not_revoked(partitions)? {
            // Another member may have owned the partitions in between, so uncommitted work for them must not be
            // committed (C6).
            self.roll_back(Abort::Failed(
                "partitions were assigned without a revocation".to_owned(),
            ));
        }
        self.rebalance().assign(partitions);
        Ok(())
    }

    /// Handles partitions that are about to be revoked. A commit is still possible.
    fn revoked(&mut self, partitions: &[TopicPartition]) -> Result<(), Interrupt> {
        hit("streams.revoked");
        tracing::info!(thread = self.name, partitions = partitions.len(), "partitions revoked");
        self.try_commit()?;
        self.rebalance().revoke(partitions)?;
        Ok(())
    }

    /// Partitions may already belong to another member, so nothing that was processed for them may be committed (C6,
    /// C7).
    fn lost(&mut self, partitions: &[TopicPartition]) {
        self.rebalance().lose(partitions);
        if self.committer.open_for().is_some() {
            self.roll_back(Abort::Failed("partitions were lost".to_owned()));
        }
        let now = self.shared.clock.now();
        if !self.tasks.iter().any(|task| task.has_work(now)) {
            self.committer.note_clean();
        }
    }

    /// Commits if possible. An abort is handled here, because the caller continues in either case.
    pub(super) fn try_commit(&mut self) -> Result<()> {
        if !self.committer.producer.is_ready() || self.membership.is_fenced() {
            return Ok(());
        }
        match self.commit(None) {
            Ok(()) => Ok(()),
            Err(Interrupt::Abort(abort)) => {
                self.roll_back(abort);
                Ok(())
            }
            Err(Interrupt::Fatal(error)) => Err(error),
        }
    }

    /// Handles an abort: discards everything since the last commit in all tasks, because they share the transaction
    /// (C7), and replaces the producer (C5). All live tasks recover.
    pub(super) fn roll_back(&mut self, abort: Abort) {
        self.shared.metrics.transactions.aborts.increment(1);
        let (mut failure, mut stop) = (None, None);
        match abort {
            Abort::Fenced(reason) => failure = self.note_fence(reason),
            Abort::Rejected { task, reason } => {
                tracing::warn!(thread = self.name, %task, reason, "output rejected, bisecting the transaction");
                let bisected = self.tasks.find(&task).expect("an abort names a task of this thread");
                if !bisected.bisect(reason.clone()) {
                    let reason = format!("the dead letter was rejected as well: {reason}");
                    let retry = false;
                    stop = Some(StopTask { task, reason, retry });
                }
            }
            Abort::TaskFailed { task, reason, retry } => {
                failure = Some(format!("task {task} failed: {reason}"));
                stop = Some(StopTask { task, reason, retry });
            }
            Abort::Failed(reason) => failure = Some(reason),
        }
        let aborts = self.committer.discard(failure.clone());
        if let Some(reason) = failure {
            tracing::warn!(thread = self.name, reason, "transaction aborted, rolling back");
            if aborts >= ABORTS_BEFORE_BISECTION {
                self.shrink_transactions();
            }
        }
        for task in self.tasks.as_mut_slice() {
            let live = task.is_live();
            task.roll_back();
            if live && let Some(consumer) = self.membership.consumer() {
                let partitions = task.partitions();
                task.pause_reading(consumer, &partitions);
            }
        }
        self.published = None;
        if let Some(StopTask { task, reason, retry }) = stop {
            self.stop_task(&task, reason, retry);
        }
    }

    /// Handles fencing. After a transaction timeout, the coordinator's abort caused it, and the thread recovers; the
    /// result is the reason to show if that happens repeatedly. Otherwise only an assignment event can explain it;
    /// without such an event, another thread with the same name is running.
    fn note_fence(&mut self, reason: String) -> Option<String> {
        self.shared.metrics.transactions.fences.increment(1);
        let timeout = self.shared.config.commit.transaction_timeout;
        let timed_out = self.committer.open_for().is_some_and(|age| age >= timeout);
        tracing::warn!(thread = self.name, reason, timed_out, "fenced");
        if timed_out {
            return Some(format!(
                "the transaction was open for more than {} s and the broker aborted it ({reason})",
                timeout.as_secs()
            ));
        }
        self.membership.note_fence(reason);
        None
    }

    /// Makes transactions smaller without treating a record as poison, because they may be too large to commit.
    fn shrink_transactions(&mut self) {
        let tasks = self.tasks.as_mut_slice().iter_mut();
        for task in tasks.filter(|task| task.uncommitted.records > 0) {
            task.bisect_records(None);
        }
    }

    /// Why the thread does not work; `None` if it does.
    fn cause(&self) -> Option<Cause> {
        if let Some(reason) = self.membership.fence_reason() {
            let text = format!("fenced ({reason}); waiting for a new assignment");
            return Some(Cause::transient(text));
        }
        let waits_for = self.committer.producer.waits_for();
        if let Some(cause) = waits_for.or(self.membership.unavailable()) {
            return Some(cause.clone());
        }
        if let Some(reason) = self.committer.failure() {
            return Some(Cause::unavailable(format!("transactions are not committed: {reason}")));
        }
        if !self.membership.is_member() {
            return Some(Cause::transient("waiting for an assignment"));
        }
        if let Some(reason) = self.membership.topic_issue() {
            return Some(Cause::operator(reason));
        }
        // If no member reads a topic, no task can report it.
        let unassigned = self.membership.unassigned_topics();
        (!unassigned.is_empty()).then(|| {
            let text = format!("waiting for topics to be assigned: {}", unassigned.join(", "));
            Cause::transient(text)
        })
    }

    /// Publishes the status of the thread and its tasks if it is due.
    fn publish(&mut self, now: Duration) {
        let recent = |last: Duration| now.saturating_sub(last) < STATUS_EVERY;
        if self.published.is_some_and(recent) {
            return;
        }
        self.published = Some(now);
        self.uncommitted_bytes.set(metrics::size(self.tasks.state_bytes()));
        let stopped = self.tasks.iter().filter(|task| task.is_stopped()).count();
        self.stopped_tasks.set(metrics::size(stopped));
        self.shared.status.set(&self.name, self.cause());
        for task in self.tasks.iter() {
            self.shared.status.set(&self.shared.status_name(&task.id), task.cause());
        }
        let mut reports = self.shared.reports();
        for task in self.tasks.iter() {
            reports.insert(task.id.clone(), task.report());
        }
    }
}
