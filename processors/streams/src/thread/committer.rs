//! Commits of a thread: sends the output of all its tasks and commits it with their state and offsets.
//!
//! A commit contains the output, changed rows, commit record and input offsets of every task that takes part
//! (invariants C2, atomic, and C3, complete). Rows reach the committed buffers, and later the stores, only after a
//! known commit (C4). An unknown outcome is treated as an abort: recovery determines whether the transaction was
//! committed (C5). The commit without transactions is in [`super::at_least_once`].

use super::abort::{Abort, Interrupt};
use super::membership::Membership;
use super::pacing::{Advice, Limits, Pace};
use super::producer::ThreadProducer;
use crate::admin::metrics;
use crate::api::application::ProcessingGuarantee;
use crate::api::context::TaskId;
use crate::api::error::{Error, Result};
use crate::shared::{CommittedPosition, Shared};
use crate::task::Task;
use event_log::{Offset, OutBatch, Outcome, Produced, TopicPartition};
use failpoint::hit;
use service::chain;
use std::sync::Arc;
use std::time::Duration;

/// Sends and commits the output of a thread's tasks.
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) producer: ThreadProducer,
    pace: Pace,
    /// Changelog records, reused between commits.
    pub(super) out: OutBatch,
    pub(super) scratch: Vec<u8>,
    /// Offsets of the commit in progress.
    pub(super) offsets: Vec<(TopicPartition, Offset)>,
    aborts_in_a_row: u32,
    last_failure: Option<String>,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, name: String) -> Self {
        let config = &shared.config;
        let limits = Limits::new(
            config.commit.interval,
            config.commit.bytes_max,
            config.commit.touches_view_log,
        );
        Committer {
            producer: ThreadProducer::new(name),
            pace: Pace::new(limits),
            out: OutBatch::default(),
            scratch: Vec::new(),
            offsets: Vec::new(),
            aborts_in_a_row: 0,
            last_failure: None,
            shared,
        }
    }

    /// Creates or replaces the producer if necessary and returns whether it is ready.
    ///
    /// # Errors
    /// Fencing, and any failure that a retry cannot resolve.
    pub(super) fn ensure_ready(&mut self) -> Result<bool> {
        self.producer.ensure_ready(&self.shared)
    }

    /// Decides when to commit. `state_bytes` is the size of the uncommitted state of all tasks.
    pub(super) fn advise(&mut self, state_bytes: usize, drained: bool) -> Advice {
        self.pace.advise(self.shared.clock.elapsed(), state_bytes, drained)
    }

    /// Records that input was processed and bytes of output were sent.
    pub(super) fn note_processed(&mut self, records: usize, bytes: usize) {
        self.pace.processed(self.shared.clock.elapsed(), records, bytes);
    }

    /// Records that nothing is uncommitted.
    pub(super) fn note_clean(&mut self) {
        self.pace.reset(self.shared.clock.elapsed());
    }

    /// Age of the open transaction.
    pub(super) fn open_for(&self) -> Option<Duration> {
        self.producer.open_for(self.shared.clock.elapsed())
    }

    /// Why transactions are not committed, after several aborts in a row.
    pub(super) fn failure(&self) -> Option<&String> {
        self.last_failure.as_ref().filter(|_| self.aborts_in_a_row >= 2)
    }

    /// Abandons the transaction and returns the number of aborts in a row. `failure` is the reason that is shown to
    /// operators.
    pub(super) fn discard(&mut self, failure: Option<String>) -> u32 {
        let now = self.shared.clock.elapsed();
        self.aborts_in_a_row = self.aborts_in_a_row.saturating_add(1);
        if failure.is_some() {
            self.last_failure = failure;
        }
        self.producer.discard(now);
        self.pace.reset(now);
        self.aborts_in_a_row
    }

    /// Sends the output of a task and returns its size in bytes.
    pub(super) fn send_output(&mut self, task: &mut Task) -> Result<usize, Abort> {
        if let Some(reason) = task.state_rejection() {
            return Err(Abort::Rejected {
                task: task.id.clone(),
                reason,
            });
        }
        let output = &mut task.uncommitted.output;
        if output.records.is_empty() {
            return Ok(0);
        }
        let (count, bytes) = (output.records.len(), output.records.byte_len());
        let now = self.shared.clock.elapsed();
        let sent = self.producer.send(now, &output.records);
        output.records.clear();
        let flow = &self.shared.metrics.flow;
        flow.records_out.increment(u64::try_from(count).unwrap_or(u64::MAX));
        flow.bytes_out.increment(u64::try_from(bytes).unwrap_or(u64::MAX));
        sent.map_err(|error| send_failed(&task.id, &error))?;
        Ok(bytes)
    }

    /// Commits what all tasks have done since the last commit, or only what one task has done.
    ///
    /// # Errors
    /// An abort, after which every task must roll back; a failure that ends the thread.
    pub(super) fn commit(
        &mut self,
        tasks: &mut [Task],
        only: Option<&TaskId>,
        membership: &mut Membership,
    ) -> Result<(), Interrupt> {
        let now = self.shared.clock.now();
        let selected = |task: &&mut Task| task.has_work(now) && only.is_none_or(|only| *only == task.id);
        let mut participants: Vec<&mut Task> = tasks.iter_mut().filter(selected).collect();
        if !participants.is_empty() {
            match self.shared.config.commit.guarantee {
                ProcessingGuarantee::ExactlyOnce => self.commit_exactly_once(&mut participants, membership)?,
                ProcessingGuarantee::AtLeastOnce => self.commit_at_least_once(&mut participants, membership)?,
            }
        }
        self.note_clean();
        Ok(())
    }

    fn commit_exactly_once(&mut self, tasks: &mut [&mut Task], membership: &mut Membership) -> Result<(), Interrupt> {
        let began = self.shared.clock.elapsed();
        hit("streams.commit.begin");
        for task in tasks.iter_mut() {
            self.prepare_commit(task)?;
            self.send_changelog(task)?;
        }
        hit("streams.commit.sent");
        self.collect_offsets(tasks);
        let Some(metadata) = membership.current_metadata()? else {
            return Err(Abort::Failed("not a member of the group".to_owned()).into());
        };
        match self.producer.commit(metadata, &self.offsets) {
            Outcome::Committed(produced) => {
                hit("streams.commit.committed");
                self.measure(tasks);
                self.apply(tasks, &produced)?;
                self.note_commit(tasks, began);
                Ok(())
            }
            Outcome::Aborted { fenced: true, reason } => Err(Abort::Fenced(reason).into()),
            Outcome::Aborted { fenced: false, reason } => Err(Abort::Failed(reason).into()),
            // Treated as not committed (C5): the recovery determines whether it was.
            Outcome::Unknown { reason } => {
                Err(Abort::Failed(format!("outcome of the transaction commit is unknown: {reason}")).into())
            }
        }
    }

    /// Calls the processor of a task before a commit and sends what it wrote.
    pub(super) fn prepare_commit(&mut self, task: &mut Task) -> Result<(), Abort> {
        let now = self.shared.clock.now();
        task.before_commit(now).map_err(|error| Abort::TaskFailed {
            task: task.id.clone(),
            reason: chain(&error),
            retry: false,
        })?;
        self.send_output(task).map(drop)
    }

    /// Sends the changed rows and the commit record of a task.
    fn send_changelog(&mut self, task: &mut Task) -> Result<(), Abort> {
        self.out.clear();
        task.push_rows(&mut self.out, &mut self.scratch);
        task.push_commit_record(&mut self.out, &mut self.scratch, true);
        self.send_out(task)
    }

    /// Sends the collected changelog records of a task.
    pub(super) fn send_out(&mut self, task: &Task) -> Result<(), Abort> {
        let now = self.shared.clock.elapsed();
        let sent = self.producer.send(now, &self.out);
        sent.map_err(|error| send_failed(&task.id, &error))
    }

    /// Collects the offsets of all inputs of these tasks, including inputs whose position did not change. With them,
    /// the group checks the generation even if a transaction only fired a timer (C3, C6).
    pub(super) fn collect_offsets(&mut self, tasks: &[&mut Task]) {
        self.offsets.clear();
        for task in tasks.iter() {
            let offsets = task.inputs.iter().map(|input| (input.at.clone(), input.next));
            self.offsets.extend(offsets);
        }
    }

    /// Updates the metrics of a committed transaction. The first record of each task is the one that waited longest.
    pub(super) fn measure(&mut self, tasks: &[&mut Task]) {
        let (now, metrics) = (self.shared.clock.now(), &self.shared.metrics.transactions);
        let mut records = 0;
        for task in tasks {
            records += task.uncommitted.records;
            if let Some(first) = task.uncommitted.first_timestamp() {
                let waited = now.saturating_sub(first).max(0);
                metrics.latency_seconds.record(metrics::float(waited) / 1_000.0);
            }
        }
        metrics.commit_records.record(metrics::size(records));
        metrics.commit_bytes.record(metrics::size(self.producer.take_bytes()));
    }

    /// Applies a known commit to the tasks. The offset after a task's last changelog record is the task's new
    /// checkpoint.
    pub(super) fn apply(&mut self, tasks: &mut [&mut Task], produced: &[Produced]) -> Result<()> {
        for task in tasks.iter_mut() {
            let end = produced.iter().find(|produced| produced.at == task.changelog);
            let end = end.ok_or_else(|| Error::EventLog {
                who: task.id.to_string(),
                source: event_log::Error::Corrupt {
                    place: task.changelog.to_string(),
                    reason: "a commit was acknowledged without the offsets of its records".to_owned(),
                },
            })?;
            let dead_letters = task.committed(end, self.shared.clock.elapsed());
            self.shared.metrics.flow.dead_letters.increment(dead_letters);
            hit("streams.commit.applied");
        }
        Ok(())
    }

    /// Records a commit in the metrics, and its positions for the lag.
    pub(super) fn note_commit(&mut self, tasks: &[&mut Task], began: Duration) {
        self.aborts_in_a_row = 0;
        self.last_failure = None;
        let took = self.shared.clock.elapsed().saturating_sub(began);
        let metrics = &self.shared.metrics.transactions;
        metrics.commits.increment(1);
        metrics.commit_seconds.record(took.as_secs_f64());
        let mut positions = self.shared.positions();
        for task in tasks {
            for input in &task.inputs {
                let position = CommittedPosition {
                    next: input.next,
                    drained: positions.get(&input.at).and_then(|position| position.drained),
                    stream_time: task.stream_time,
                };
                match positions.get_mut(&input.at) {
                    Some(known) => *known = position,
                    None => drop(positions.insert(input.at.clone(), position)),
                }
            }
        }
    }
}

/// Why records of a task were not sent.
fn send_failed(task: &TaskId, error: &event_log::Error) -> Abort {
    let reason = chain(error);
    match error {
        event_log::Error::TooLarge { .. } => Abort::Rejected {
            task: task.clone(),
            reason,
        },
        event_log::Error::Fenced { .. } => Abort::Fenced(reason),
        // Only this task waits until an operator has created the topic or granted access to it.
        event_log::Error::UnknownTopic { .. }
        | event_log::Error::InvalidTopic { .. }
        | event_log::Error::AccessDenied { .. } => Abort::TaskFailed {
            task: task.clone(),
            reason: format!("cannot write to output topic: {reason}"),
            retry: true,
        },
        _ => Abort::Failed(reason),
    }
}
