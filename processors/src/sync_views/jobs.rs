//! The jobs of a source stream: rows of the state, and the timer of their next step.
//!
//! A job is stored with the key at which its next step continues, in the transaction of what the last step wrote. So a
//! crash repeats nothing and skips nothing. While a job exists, a timer is set.

use super::state::{StateError, damaged};
use crate::input::{KeySpan, StepLimits, Sweep};
use event_log::Millis;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use streams::{Result, State, Timer, TimerClock};

/// Format of a stored job.
const FORMAT: u8 = 1;
/// Prefix of the keys of jobs.
const JOB: &[u8] = b"[\"job\",";
/// Key of the timer of the next step.
const TIMER: &str = "job";

/// What a job visits next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Rows.
    Rows,
    /// Missing entries.
    Missing,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Work {
    /// Removes rows that a record shows to be gone, and missing entries whose rows it proves.
    Sweep(TableSweep),
    /// Writes the rows of a table as changed rules require.
    Rebuild(Rebuild),
}

/// The removal of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableSweep {
    pub(super) sweep: Sweep,
    /// Whether missing entries are removed.
    pub(super) covers: bool,
}

/// The rebuild of the views of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rebuild {
    pub(super) table: String,
    /// Views that do not exist any more.
    pub(super) removed: Vec<String>,
    /// Whether no view read the table before, so that the state does not contain its rows.
    pub(super) is_new: bool,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) phase: Phase,
    /// Key at which the next step of the phase continues; empty at its start.
    pub(super) cursor: String,
}

impl Job {
    pub(super) fn new(work: Work) -> Job {
        Job {
            work,
            phase: Phase::Rows,
            cursor: String::new(),
        }
    }

    /// Ranges of state keys that contain all rows that the job visits.
    pub(super) fn spans(&self) -> Vec<KeySpan> {
        match &self.work {
            Work::Sweep(of) => of.sweep.spans(),
            Work::Rebuild(rebuild) => vec![KeySpan::of_table(&rebuild.table)],
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        serde_json::to_writer(&mut out, self).expect("strings and numbers always have a JSON form");
        out
    }

    fn decode(bytes: &[u8]) -> Result<Job, StateError> {
        match bytes.split_first() {
            Some((&FORMAT, rest)) => serde_json::from_slice(rest).map_err(|_| StateError::Damaged("a job")),
            Some((&found, _)) => Err(StateError::Newer { found }),
            None => Err(StateError::Damaged("the format byte of a job")),
        }
    }

    /// Moves to where a step has stopped.
    pub(super) fn continue_at(&mut self, next: Vec<u8>) -> Result<(), StateError> {
        self.cursor = String::from_utf8(next).map_err(|_| StateError::Damaged("the key of a row"))?;
        Ok(())
    }
}

/// A job with its place in the queue.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    number: u64,
    pub(super) job: Job,
    /// Whether the state has the job, and whether what it has is not up to date.
    is_stored: bool,
    is_dirty: bool,
}

fn job_key(number: u64) -> Vec<u8> {
    [JOB, format!("\"{number:020}\"]").as_bytes()].concat()
}

/// The jobs of a source stream, in the order of their records.
#[derive(Debug)]
pub(super) struct Jobs {
    queue: VecDeque<Queued>,
    next_number: u64,
    /// Limits of a step.
    limits: StepLimits,
    /// What the current call of the processor may still do.
    pub(super) budget: StepLimits,
    /// Whether the timer of the next step is set.
    has_timer: bool,
}

impl Jobs {
    pub(super) fn new(limits: StepLimits) -> Jobs {
        Jobs {
            queue: VecDeque::new(),
            next_number: 0,
            limits,
            budget: limits,
            has_timer: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Allows the current call of the processor one step.
    pub(super) fn begin_step(&mut self) {
        self.budget = self.limits;
    }

    /// Called when the timer has fired.
    pub(super) fn timer_fired(&mut self) {
        self.has_timer = false;
        self.begin_step();
    }

    pub(super) fn push(&mut self, job: Job) {
        self.queue.push_back(Queued {
            number: self.next_number,
            job,
            is_stored: false,
            is_dirty: true,
        });
        self.next_number += 1;
    }

    /// Takes the first job, unless the current call has done a step's work.
    pub(super) fn take(&mut self) -> Option<Queued> {
        if self.budget.is_reached() {
            return None;
        }
        self.queue.pop_front()
    }

    /// Returns a job that has not ended to the queue.
    pub(super) fn put_back(&mut self, mut queued: Queued) {
        queued.is_dirty = true;
        self.queue.push_front(queued);
    }

    /// Removes a job that has ended from the state.
    pub(super) fn end(queued: &Queued, state: &mut State) {
        if queued.is_stored {
            state.delete(&job_key(queued.number));
        }
    }

    /// The sweeps of a table, in order.
    pub(super) fn sweeps_of(&self, table: &str) -> Vec<TableSweep> {
        let sweep = |queued: &Queued| match &queued.job.work {
            Work::Sweep(of) if of.sweep.table == table => Some(of.clone()),
            Work::Sweep(_) | Work::Rebuild(_) => None,
        };
        self.queue.iter().filter_map(sweep).collect()
    }

    /// Whether a job is not stored yet.
    pub(super) fn is_dirty(&self) -> bool {
        self.queue.iter().any(|queued| queued.is_dirty)
    }

    /// Stores the jobs, and sets the timer of the next step. Called before each commit, so that each transaction contains
    /// at most the steps of the timers that it fired, and a job is never without a timer.
    pub(super) fn store(&mut self, now: Millis, state: &mut State) {
        for queued in self.queue.iter_mut().filter(|queued| queued.is_dirty) {
            state.put(&job_key(queued.number), queued.job.encode());
            (queued.is_stored, queued.is_dirty) = (true, false);
        }
        if !self.queue.is_empty() && !self.has_timer {
            // A timer that is already due would fire in the same turn, before a commit.
            state.set_timer(Timer::new(TimerClock::Wall, now + 1, TIMER));
            self.has_timer = true;
        }
    }

    /// Reads the jobs from the state.
    pub(super) fn restore(&mut self, state: &State) -> Result<()> {
        self.queue.clear();
        // A timer may be set in the state. A second one does no harm.
        self.has_timer = false;
        let mut failed = None;
        state.scan(JOB, &mut |key, value| {
            let number = serde_json::from_slice::<(String, String)>(key).ok();
            let number = number.and_then(|(_, number)| number.parse().ok());
            match (number, Job::decode(value)) {
                (Some(number), Ok(job)) => self.queue.push_back(Queued {
                    number,
                    job,
                    is_stored: true,
                    is_dirty: false,
                }),
                (None, _) => failed = Some(StateError::Damaged("the key of a job")),
                (_, Err(error)) => failed = Some(error),
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failed {
            return Err(damaged(&error));
        }
        self.next_number = self.queue.back().map_or(0, |queued| queued.number + 1);
        Ok(())
    }
}
