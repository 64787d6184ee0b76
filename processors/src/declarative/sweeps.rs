//! Sweeps of a table: a TRUNCATE or the end of a snapshot chunk removes any number of rows, in steps that fit a
//! transaction.
//!
//! A job is a row of the state with the key at which its next step continues, and a timer. Each step commits the removals
//! together with the new cursor. Other records are processed between the steps. Before a record reads a row, the job that
//! removes the row is applied to it, so a record never notices that a job has not reached its row yet.

use super::stored_row::{Row, StateError};
use crate::input::{ChangeRecord, KeySpan, StepLimits, Sweep, find, keys};
use event_log::Millis;
use schemas::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use streams::{Result, State, Timer, TimerClock};

/// Format of a stored job.
const FORMAT: u8 = 1;

/// The removal of the rows that one record shows to be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Which rows are removed.
    pub sweep: Sweep,
    /// Timestamp of the record in ms.
    pub timestamp: Millis,
    /// State key at which the next step continues; empty at the start.
    cursor: String,
}

impl Job {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        serde_json::to_writer(&mut out, self).expect("strings and numbers always have a JSON form");
        out
    }

    fn decode(bytes: &[u8]) -> Result<Job, StateError> {
        match bytes.split_first() {
            Some((&FORMAT, rest)) => serde_json::from_slice(rest).map_err(|_| StateError::Damaged("a sweep")),
            Some((&found, _)) => Err(StateError::Newer(found)),
            None => Err(StateError::Damaged("a sweep")),
        }
    }
}

/// A job as JSON; `None` if the bytes are not a job.
pub fn readable(bytes: &[u8]) -> Option<serde_json::Value> {
    serde_json::to_value(Job::decode(bytes).ok()?).ok()
}

/// A job with its place in the queue.
#[derive(Debug)]
struct Queued {
    number: u64,
    job: Job,
    /// Whether the state has the job, and whether it must be written.
    is_stored: bool,
    is_dirty: bool,
}

/// Rows that one step of a job removes.
#[derive(Debug)]
pub struct Part {
    /// The job.
    pub job: Job,
    /// State keys and values of the rows.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The jobs of one table in one task, in the order of their records.
#[derive(Debug)]
pub struct Sweeps {
    /// Name of the table in state keys.
    table: &'static str,
    queue: VecDeque<Queued>,
    next_number: u64,
    /// Limits of a step.
    limits: StepLimits,
    /// What the current call of the processor may still do.
    budget: StepLimits,
    /// Whether the timer of the next step is set.
    has_timer: bool,
}

impl Sweeps {
    /// The jobs of a table without state.
    pub fn new(table: &'static str, limits: StepLimits) -> Self {
        Sweeps {
            table,
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

    /// Allows the current call of the processor one step.
    pub fn begin_step(&mut self) {
        self.budget = self.limits;
    }

    /// Whether a timer that has fired is the timer of these jobs.
    pub fn fired(&mut self, timer: &Timer) -> bool {
        let is_ours = timer.key == timer_key(self.table);
        if is_ours {
            self.has_timer = false;
            self.begin_step();
        }
        is_ours
    }

    /// Adds the job of a TRUNCATE or of the end of a chunk.
    pub fn push(&mut self, input: &ChangeRecord<'_>, timestamp: Millis) {
        let Some(sweep) = Sweep::of(input) else { return };
        let job = Job {
            // In state keys, a table has the name of the processor's input.
            sweep: Sweep {
                table: self.table.to_owned(),
                ..sweep
            },
            timestamp,
            cursor: String::new(),
        };
        self.queue.push_back(Queued {
            number: self.next_number,
            job,
            is_stored: false,
            is_dirty: true,
        });
        self.next_number += 1;
    }

    /// The job that removes a live row with this version, because it has not reached the row yet.
    pub fn removing(&self, row_key: &str, version: Version) -> Option<&Job> {
        let mut jobs = self.queue.iter().map(|queued| &queued.job);
        jobs.find(|job| job.sweep.removes(row_key, version))
    }

    /// The rows that the next step removes; `None` if there is no job, or the current call of the processor has done the
    /// work of a step.
    pub fn next_part(&mut self, state: &mut State) -> Result<Result<Option<Part>, StateError>> {
        if self.budget.is_reached() {
            return Ok(Ok(None));
        }
        let Some(mut queued) = self.queue.pop_front() else {
            return Ok(Ok(None));
        };
        let (job, prefix) = (&queued.job, keys::table_prefix(self.table).len());
        let spans: Vec<KeySpan> = job.sweep.spans();
        let mut failed = None;
        let found = find(
            state,
            &spans,
            job.cursor.as_bytes(),
            &mut self.budget,
            &mut |key, value| match Row::header(value) {
                Ok(header) => !header.is_deleted && job.sweep.removes(keys::row_key_of(key, prefix), header.version),
                Err(error) => {
                    failed = Some(error);
                    false
                }
            },
        )?;
        if let Some(error) = failed {
            return Ok(Err(error));
        }
        let part = Part {
            job: queued.job.clone(),
            rows: found.rows,
        };
        match found.next.map(String::from_utf8) {
            Some(Ok(cursor)) => {
                (queued.job.cursor, queued.is_dirty) = (cursor, true);
                self.queue.push_front(queued);
            }
            Some(Err(_)) => return Ok(Err(StateError::Damaged("the key of a row"))),
            None if queued.is_stored => state.delete(&self.state_key(queued.number)),
            None => {}
        }
        Ok(Ok(Some(part)))
    }

    /// Stores the jobs, and sets the timer of the next step, so that a stored job is never without a timer.
    pub fn before_commit(&mut self, now: Millis, state: &mut State) {
        let table = self.table;
        for queued in self.queue.iter_mut().filter(|queued| queued.is_dirty) {
            state.put(&state_key(table, queued.number), queued.job.encode());
            (queued.is_stored, queued.is_dirty) = (true, false);
        }
        if !self.queue.is_empty() && !self.has_timer {
            // A timer that is already due would fire in the same turn, before a commit.
            state.set_timer(Timer::new(TimerClock::Wall, now + 1, timer_key(table)));
            self.has_timer = true;
        }
    }

    /// Reads the jobs of the last commit.
    pub fn restore(&mut self, state: &State) -> Result<Result<(), StateError>> {
        self.queue.clear();
        // A timer may be set in the state. A second one does no harm, because the timers of one transaction set one.
        self.has_timer = false;
        let (mut failed, queue) = (None, &mut self.queue);
        state.scan(&state_prefix(self.table), &mut |key, value| {
            let number = serde_json::from_slice::<(String, String, String)>(key).ok();
            let number = number.and_then(|(_, _, number)| number.parse().ok());
            match (number, Job::decode(value)) {
                (Some(number), Ok(job)) => queue.push_back(Queued {
                    number,
                    job,
                    is_stored: true,
                    is_dirty: false,
                }),
                (None, _) => failed = Some(StateError::Damaged("the key of a sweep")),
                (_, Err(error)) => failed = Some(error),
            }
            ControlFlow::Continue(())
        })?;
        self.next_number = self.queue.back().map_or(0, |queued| queued.number + 1);
        Ok(failed.map_or(Ok(()), Err))
    }

    fn state_key(&self, number: u64) -> Vec<u8> {
        state_key(self.table, number)
    }
}

fn state_prefix(table: &str) -> Vec<u8> {
    format!("[\"sweep\",\"{table}\",").into_bytes()
}

fn state_key(table: &str, number: u64) -> Vec<u8> {
    [&state_prefix(table), format!("\"{number:020}\"]").as_bytes()].concat()
}

fn timer_key(table: &str) -> String {
    format!("sweep:{table}")
}
