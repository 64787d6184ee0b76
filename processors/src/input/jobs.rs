//! Durable jobs: work on any number of rows, in steps that fit a transaction.
//!
//! A job is a row of the state with the key at which its next step continues, and a timer. The row is stored in the
//! transaction of what the last step wrote, so a crash repeats nothing and skips nothing. Jobs run one after the other.

use super::sweep::StepLimits;
use event_log::Millis;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use streams::{Result, State, Timer, TimerClock};

/// Format of a stored job.
const FORMAT: u8 = 1;

/// A job in the state that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// A newer release wrote it.
    #[error("a job in the state has format {0}, but this release reads up to format {FORMAT}; update Trunkline")]
    Newer(u8),
    /// The bytes are corrupt.
    #[error("its state is corrupt: {0} cannot be decoded")]
    Damaged(&'static str),
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job<W> {
    /// What it does.
    #[serde(flatten)]
    pub work: W,
    /// State key at which the next step continues; empty at the start.
    pub cursor: String,
    /// Maximum number of rows of the next step. Set while the row is searched whose effects the log or the store rejects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rows_max: Option<usize>,
}

impl<W: Serialize + DeserializeOwned> Job<W> {
    fn new(work: W) -> Job<W> {
        Job {
            work,
            cursor: String::new(),
            rows_max: None,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        serde_json::to_writer(&mut out, self).expect("strings and numbers always have a JSON form");
        out
    }

    /// Decodes a stored job.
    ///
    /// # Errors
    /// The bytes are corrupt or of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Job<W>, JobError> {
        match bytes.split_first() {
            Some((&FORMAT, rest)) => serde_json::from_slice(rest).map_err(|_| JobError::Damaged("a job")),
            Some((&found, _)) => Err(JobError::Newer(found)),
            None => Err(JobError::Damaged("the format byte of a job")),
        }
    }

    /// Moves to the key at which the next step continues; `false` if there is none, because the step visited everything.
    ///
    /// # Errors
    /// The key is not text.
    pub fn moves_on(&mut self, next: Option<Vec<u8>>) -> Result<bool, JobError> {
        let Some(next) = next else { return Ok(false) };
        self.cursor = String::from_utf8(next).map_err(|_| JobError::Damaged("the key of a row"))?;
        Ok(true)
    }
}

/// Whether the state has a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    No,
    /// As it was before its last step.
    Outdated,
    Current,
}

/// A job with its place in the queue.
#[derive(Debug)]
pub struct Queued<W> {
    number: u64,
    /// The job.
    pub job: Job<W>,
    stored: Stored,
}

/// What the next step does after the log or the store has rejected the effects of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterRejection {
    /// Half as many rows.
    FewerRows,
    /// The step had one row, which must be skipped.
    SkipsRow,
    /// There is no job.
    Nothing,
}

/// The jobs of one table or source stream, in the order of their records.
#[derive(Debug)]
pub struct JobQueue<W> {
    /// Prefix of the state keys of its jobs.
    prefix: String,
    /// Key of the timer of the next step.
    timer: String,
    queue: VecDeque<Queued<W>>,
    next_number: u64,
    /// Limits of a step.
    limits: StepLimits,
    /// What the current call of the processor may still do.
    pub budget: StepLimits,
    /// Whether the timer of the next step is set.
    has_timer: bool,
}

impl<W: Serialize + DeserializeOwned> JobQueue<W> {
    /// A queue without jobs. `prefix` begins the JSON arrays that are the state keys of its jobs, and `timer` is the key of
    /// its timer.
    pub fn new(prefix: String, timer: String, limits: StepLimits) -> Self {
        JobQueue {
            prefix,
            timer,
            queue: VecDeque::new(),
            next_number: 0,
            limits,
            budget: limits,
            has_timer: false,
        }
    }

    /// Whether there is no job.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The jobs' work, in order.
    pub fn works(&self) -> impl Iterator<Item = &W> {
        self.queue.iter().map(|queued| &queued.job.work)
    }

    /// Allows the current call of the processor one step.
    pub fn begin_step(&mut self) {
        self.budget = self.limits;
    }

    /// Whether a timer that has fired is that of these jobs. If so, the current call of the processor may do one step.
    pub fn fired(&mut self, timer: &Timer) -> bool {
        let is_ours = timer.key == self.timer;
        if is_ours {
            self.has_timer = false;
            self.begin_step();
        }
        is_ours
    }

    /// Adds a job.
    pub fn push(&mut self, work: W) {
        self.queue.push_back(Queued {
            number: self.next_number,
            job: Job::new(work),
            stored: Stored::No,
        });
        self.next_number += 1;
    }

    /// Takes the first job, unless the current call has done a step's work.
    pub fn take(&mut self) -> Option<Queued<W>> {
        if self.budget.is_reached() {
            return None;
        }
        let queued = self.queue.pop_front()?;
        if let Some(rows_max) = queued.job.rows_max {
            self.budget.found = self.budget.found.min(rows_max);
        }
        Some(queued)
    }

    /// Called after a step that stopped at the key `next`, or visited everything. Returns the work of a job that has ended.
    ///
    /// # Errors
    /// The key is not text.
    pub fn advance(
        &mut self,
        mut queued: Queued<W>,
        next: Option<Vec<u8>>,
        state: &mut State,
    ) -> Result<Option<W>, JobError> {
        let has_ended = !queued.job.moves_on(next)?;
        Ok(self.put_back_or_end(queued, has_ended, state))
    }

    /// Called after a step: returns the job to the queue, or removes it from the state and returns its work.
    pub fn put_back_or_end(&mut self, queued: Queued<W>, has_ended: bool, state: &mut State) -> Option<W> {
        if !has_ended {
            self.put_back(queued);
            return None;
        }
        if queued.stored != Stored::No {
            state.delete(&self.state_key(queued.number));
        }
        Some(queued.job.work)
    }

    fn put_back(&mut self, mut queued: Queued<W>) {
        let (rows_max, most) = (&mut queued.job.rows_max, self.limits.found);
        *rows_max = rows_max.map(|rows| rows.saturating_mul(2)).filter(|rows| *rows < most);
        self.return_changed(queued);
    }

    fn return_changed(&mut self, mut queued: Queued<W>) {
        if queued.stored == Stored::Current {
            queued.stored = Stored::Outdated;
        }
        self.queue.push_front(queued);
    }

    /// Called when the log or the store has rejected the effects of the step of a timer.
    pub fn rejected(&mut self) -> AfterRejection {
        let Some(mut queued) = self.queue.pop_front() else {
            return AfterRejection::Nothing;
        };
        let rows = queued.job.rows_max.unwrap_or(self.limits.found);
        let after = if rows > 1 {
            queued.job.rows_max = Some(rows / 2);
            AfterRejection::FewerRows
        } else {
            queued.job.rows_max = Some(1);
            AfterRejection::SkipsRow
        };
        self.return_changed(queued);
        after
    }

    /// Whether the state lacks a job or its last step.
    pub fn is_dirty(&self) -> bool {
        self.queue.iter().any(|queued| queued.stored != Stored::Current)
    }

    /// Stores the jobs, and sets the timer of the next step. Called before each commit, so that each transaction contains
    /// at most the steps of the timers that it fired, and a job is never without a timer.
    pub fn store(&mut self, now: Millis, state: &mut State) {
        for at in 0..self.queue.len() {
            let Some(queued) = self.queue.get(at).filter(|queued| queued.stored != Stored::Current) else {
                continue;
            };
            state.put(&self.state_key(queued.number), queued.job.encode());
            if let Some(queued) = self.queue.get_mut(at) {
                queued.stored = Stored::Current;
            }
        }
        if !self.queue.is_empty() && !self.has_timer {
            // A timer that is already due would fire in the same turn, before a commit.
            state.set_timer(Timer::new(TimerClock::Wall, now + 1, self.timer.clone()));
            self.has_timer = true;
        }
    }

    /// Reads the jobs of the last commit.
    ///
    /// # Errors
    /// The outer error is the store's, the inner one that of a job that cannot be read.
    pub fn restore(&mut self, state: &State) -> Result<Result<(), JobError>> {
        self.queue.clear();
        // A timer may be set in the state. A second one does no harm, because the timers of one transaction set one.
        self.has_timer = false;
        let (mut failed, queue, prefix) = (None, &mut self.queue, self.prefix.as_bytes());
        state.scan(prefix, &mut |key, value| {
            match (number_of(key, prefix), Job::decode(value)) {
                (Some(number), Ok(job)) => queue.push_back(Queued {
                    number,
                    job,
                    stored: Stored::Current,
                }),
                (None, _) => failed = Some(JobError::Damaged("the key of a job")),
                (_, Err(error)) => failed = Some(error),
            }
            ControlFlow::Continue(())
        })?;
        self.next_number = self.queue.back().map_or(0, |queued| queued.number + 1);
        Ok(failed.map_or(Ok(()), Err))
    }

    fn state_key(&self, number: u64) -> Vec<u8> {
        format!("{}\"{number:020}\"]", self.prefix).into_bytes()
    }
}

fn number_of(key: &[u8], prefix: &[u8]) -> Option<u64> {
    let digits = key.strip_prefix(prefix)?.strip_prefix(b"\"")?.strip_suffix(b"\"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}
