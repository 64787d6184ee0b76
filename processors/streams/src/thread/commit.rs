//! The commit, exactly once (at least once is in `alone`): outputs, changed state, markers and consumed offsets in one transaction, then the stores.
//!
//! Guarantees: every task that wrote or moved is in the transaction with both its commit_record and the offsets of all its
//! inputs; a store is written only after the transaction is known to be committed, in one batch.
//! Never: a commit whose outcome is not known taken as one.

use super::{Broken, Place, StreamThread};
use crate::{ProcessingGuarantee, Result, metrics};
use event_log::{Outcome, Produced};
use failpoint::hit;
use service::chain;
use std::sync::PoisonError;
use std::time::Duration;

impl StreamThread {
    /// Commits what the tasks have done since the last commit, of one task or of all; says whether all of it is
    /// committed now. If not, every task is on its way back to the last commit.
    ///
    /// # Errors
    /// A store that fails after the commit: it is behind, and a new start brings it up.
    pub(super) fn commit(&mut self, only: Option<usize>) -> Result<bool> {
        let now = self.env.clock.now();
        let mut who = std::mem::take(&mut self.who);
        who.clear();
        let working = self
            .tasks
            .iter()
            .enumerate()
            .filter(|(_, task)| task.has_work(now))
            .map(|(index, _)| index);
        who.extend(working.filter(|index| only.is_none_or(|only| only == *index)));
        let done = if who.is_empty() {
            Ok(true)
        } else {
            self.commit_tasks(&who)
        };
        self.who = who;
        if matches!(done, Ok(true)) {
            self.pace.settled(self.env.clock.elapsed());
        }
        done
    }

    fn commit_tasks(&mut self, who: &[usize]) -> Result<bool> {
        if self.env.config.guarantee == ProcessingGuarantee::AtLeastOnce {
            return self.commit_alone(who);
        }
        let began = self.env.clock.elapsed();
        hit("runtime.commit.begin");
        for &index in who {
            if !self.write_down(index) {
                return Ok(false);
            }
        }
        hit("runtime.commit.sent");
        self.collect_offsets(who);
        self.refresh_member()?;
        let Some(member) = &self.member else {
            self.broke(Broken::Failed("not a member of the group".to_owned()));
            return Ok(false);
        };
        match self.writer.commit(member, &self.offsets) {
            Outcome::Committed(produced) => {
                hit("runtime.commit.committed");
                self.count(who);
                for &index in who {
                    self.apply(index, &produced)?;
                    hit("runtime.commit.applied");
                }
                self.note_commit(who, began);
                return Ok(true);
            }
            Outcome::Aborted { fenced: true, reason } => self.broke(Broken::Fenced(reason)),
            Outcome::Aborted { fenced: false, reason } => self.broke(Broken::Failed(reason)),
            Outcome::Unknown { reason } => self.broke(Broken::Failed(format!("outcome unknown: {reason}"))),
        }
        Ok(false)
    }

    /// Counts a transaction that was committed, before its tasks forget what was in it. The first record of each task is
    /// the one that waited longest.
    pub(super) fn count(&mut self, who: &[usize]) {
        let (now, metrics) = (self.env.clock.now(), &self.env.metrics);
        let mut records = 0;
        for task in who.iter().filter_map(|&index| self.tasks.get(index)) {
            records += task.uncommitted;
            if let Some(first_ms) = task.first_ms() {
                let waited = now.saturating_sub(first_ms).max(0);
                metrics.latency_seconds.record(metrics::float(waited) / 1_000.0);
            }
        }
        metrics.commit_records.record(metrics::size(records));
        metrics.commit_bytes.record(metrics::size(self.writer.take_bytes()));
    }

    /// The places of these tasks, as they are to be committed.
    pub(super) fn collect_offsets(&mut self, who: &[usize]) {
        self.offsets.clear();
        for task in who.iter().filter_map(|&index| self.tasks.get(index)) {
            self.offsets
                .extend(task.inputs.iter().map(|input| (input.at.clone(), input.next)));
        }
    }

    /// Writes down that these tasks are committed.
    pub(super) fn note_commit(&mut self, who: &[usize], began: Duration) {
        self.aborts_in_a_row = 0;
        self.last_failure = None;
        let took = self.env.clock.elapsed().saturating_sub(began);
        self.env.metrics.commits.increment(1);
        self.env.metrics.commit_seconds.record(took.as_secs_f64());
        self.note_places(who);
    }

    /// Writes the committed places down for the lag.
    fn note_places(&self, who: &[usize]) {
        let mut places = self.env.places.lock().unwrap_or_else(PoisonError::into_inner);
        for task in who.iter().filter_map(|&index| self.tasks.get(index)) {
            for input in &task.inputs {
                let place = Place {
                    next: input.next,
                    drained: places.get(&input.at).and_then(|place| place.drained),
                    stream_time: task.stream_time,
                };
                match places.get_mut(&input.at) {
                    Some(known) => *known = place,
                    None => drop(places.insert(input.at.clone(), place)),
                }
            }
        }
    }

    /// Sends a task's last words; says whether the commit can go on.
    pub(super) fn send_last_words(&mut self, index: usize) -> bool {
        let Some(task) = self.tasks.get_mut(index) else {
            return true;
        };
        if let Err(error) = task.before_commit(self.env.clock.now()) {
            let reason = chain(&error);
            self.broke(Broken::Failed(format!("a task stops: {reason}")));
            self.stop(index, reason, false);
            return false;
        }
        let now = self.env.clock.elapsed();
        self.send_effects(index, now).is_some()
    }

    /// Sends a task's last words, changed keys and commit_record; says whether the transaction can go on.
    fn write_down(&mut self, index: usize) -> bool {
        if !self.send_last_words(index) {
            return false;
        }
        let Some(task) = self.tasks.get_mut(index) else {
            return true;
        };
        self.out.clear();
        task.drain_rows(&mut self.out, &mut self.scratch);
        task.drain_marker(&mut self.out, false);
        let now = self.env.clock.elapsed();
        let sent = self.writer.send(now, &self.out);
        self.sent(index, sent)
    }

    pub(super) fn apply(&mut self, index: usize, produced: &[Produced]) -> Result<()> {
        let Some(task) = self.tasks.get_mut(index) else {
            return Ok(());
        };
        let place = produced.iter().find(|produced| produced.at == task.changelog);
        let place = place.ok_or_else(|| crate::Error::EventLog {
            who: task.id.to_string(),
            source: event_log::Error::Corrupt {
                place: task.changelog.to_string(),
                reason: "a commit was acknowledged, and the log does not say where its records are".to_owned(),
            },
        })?;
        let records = task.uncommitted;
        task.apply(place, self.env.clock.elapsed());
        let letters = std::mem::take(&mut task.output.dead_letters);
        self.env.metrics.dead_letters.increment(letters);
        if records > 0 {
            let caution = task.caution.take();
            let next = task.inputs.iter().map(|input| (&input.at, input.next));
            task.caution = caution.and_then(|caution| caution.committed(next));
        }
        Ok(())
    }
}
