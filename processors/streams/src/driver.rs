//! Drivers for tests of processors and applications.
//!
//! - [`StepDriver`] tests what a processor writes for its records.
//! - [`TopologyDriver`] tests that an application's output is the same after crashes, lost disks and rebalances.
//! - [`ThreadDriver`] runs one stream thread with a log, clock and stores of the test.
//! - [`simulation`] runs processes with a log that loses, delays and expires data.
//!
//! All except the first run the production code of the stream threads, including the commit protocol. Nothing sleeps,
//! and only the simulation starts threads.

pub mod simulation;
mod topology;

pub use topology::{DriverError, FIRST, Moment, OutputRecord, START, TopologyDriver};

use crate::admin::status::Status;
use crate::plan::Plan;
use crate::shared::{Environment, Shared};
use crate::task::checkpoint::{SPACES, STATE};
use crate::thread::turn::StreamThread;
use crate::{Application, Clock, Config, Context, Output, Processor, Result, State, Stores, Timer};
use event_log::{Millis, Offset, OutBatch, RecordBatch, SharedEventLog, TimestampType, TopicPartition};
use state_store::{Batch, MemoryStore, SharedStore};
use std::sync::Arc;
use std::time::Duration;

/// A record that a processor sent, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Topic.
    pub topic: String,
    /// Partition, if the processor chose it.
    pub partition: Option<i32>,
    /// Timestamp in ms, if the processor set it.
    pub timestamp: Option<Millis>,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
    /// Headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Runs one processor with a state in memory: records in, records out.
pub struct StepDriver {
    processor: Box<dyn Processor>,
    state: State,
    output: Output,
    stream_time: Millis,
    /// The wall-clock time of the next steps, in ms.
    pub now: Millis,
}

impl StepDriver {
    /// Creates a driver for a processor with an empty state.
    ///
    /// # Errors
    /// An error of its `restore`.
    pub fn new(name: &str, processor: Box<dyn Processor>) -> Result<Self> {
        Self::over(name, processor, Arc::new(MemoryStore::new(SPACES.len())))
    }

    /// Creates a driver for a processor whose state is in a store with the keyspaces of a task store, for benchmarks.
    ///
    /// # Errors
    /// An error of its `restore`.
    pub fn over(name: &str, mut processor: Box<dyn Processor>, store: SharedStore) -> Result<Self> {
        let state = State::new(store, STATE);
        processor.restore(&state)?;
        Ok(StepDriver {
            processor,
            state,
            output: Output::new(name),
            stream_time: 0,
            now: 0,
        })
    }

    /// Processes records of one task, and fires due timers.
    ///
    /// # Errors
    /// An error of `prepare`, `process` or `on_timer`, or a state write that every store rejects.
    pub fn feed(&mut self, records: &RecordBatch) -> Result<()> {
        let newest = records.iter().map(|record| record.timestamp()).max().unwrap_or(0);
        self.stream_time = self.stream_time.max(newest);
        let context = self.context();
        self.processor.prepare(records, 0..records.len())?;
        self.processor
            .process(context, records, 0..records.len(), &mut self.state, &mut self.output)?;
        self.output.clear_cause();
        self.advance(self.now)
    }

    /// Calls `on_dead_letter` for records, as if the log or the store had rejected their effects.
    ///
    /// # Errors
    /// An error of `on_dead_letter`, or a state write that every store rejects.
    pub fn give_up(&mut self, records: &RecordBatch) -> Result<()> {
        let context = self.context();
        for record in records.iter() {
            self.processor
                .on_dead_letter(context, record, &mut self.state, &mut self.output)?;
        }
        self.output.clear_cause();
        self.state.rejection().map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// Sets the wall clock, and fires due timers.
    ///
    /// # Errors
    /// An error of `on_timer` or the store, or a state write that every store rejects.
    pub fn advance(&mut self, now: Millis) -> Result<()> {
        self.now = now;
        let context = self.context();
        let (state, output, processor) = (&mut self.state, &mut self.output, &mut self.processor);
        let mut call =
            |timer: &Timer, state: &mut State, output: &mut Output| processor.on_timer(context, timer, state, output);
        crate::task::timers::fire(context, state, output, usize::MAX, &mut call)?;
        self.state.rejection().map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// Commits, and returns the records that were sent since the last commit.
    ///
    /// # Errors
    /// An error of `before_commit` or the store, or a state write that every store rejects.
    pub fn commit(&mut self) -> Result<Vec<Written>> {
        let context = self.context();
        self.processor
            .before_commit(context, &mut self.state, &mut self.output)?;
        if let Some(refusal) = self.state.rejection() {
            return Err(refusal.into());
        }
        let mut batch = Batch::default();
        for (key, value) in std::mem::take(&mut self.state.uncommitted) {
            match value {
                Some(value) => batch.put(STATE, key, value),
                None => batch.delete(STATE, key),
            }
        }
        self.state.uncommitted_bytes = 0;
        self.state.store.commit(batch)?;
        let out = written(self.output.records());
        self.output.clear();
        Ok(out)
    }

    /// Discards everything since the last commit, as an aborted transaction does.
    ///
    /// # Errors
    /// An error of `restore`.
    pub fn abort(&mut self) -> Result<()> {
        self.state.roll_back();
        self.output.clear();
        self.processor.restore(&self.state)
    }

    fn context(&self) -> Context {
        Context {
            now: self.now,
            stream_time: self.stream_time,
        }
    }

    /// The state, including uncommitted writes.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The state, for preparing a test.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

/// A batch of records of one partition with ascending offsets: keys, values (`None` is a tombstone) and timestamps.
pub fn records(at: &TopicPartition, first: Offset, rows: &[(&str, Option<&str>, Millis)]) -> RecordBatch {
    let mut batch = RecordBatch::default();
    let partition = batch.intern(at);
    for (offset, (key, value, timestamp)) in (first..).zip(rows) {
        let (key, value) = (Some(key.as_bytes()), value.map(str::as_bytes));
        batch.push(partition, offset, *timestamp, TimestampType::Create, key, value, []);
    }
    batch
}

/// The records of a batch, owned.
pub fn written(records: &OutBatch) -> Vec<Written> {
    let owned = records.iter().map(|(record, headers)| Written {
        topic: record.topic.to_string(),
        partition: record.partition,
        timestamp: record.timestamp,
        key: record.key.map(<[u8]>::to_vec),
        value: record.value.map(<[u8]>::to_vec),
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)))
            .collect(),
    });
    owned.collect()
}

/// One stream thread whose loop the test calls step by step. Dropping it is a crash: it neither commits nor leaves the
/// group.
pub struct ThreadDriver {
    thread: StreamThread,
    status: Arc<Status>,
    leftovers: Vec<String>,
}

impl ThreadDriver {
    /// Creates a thread of an application. It connects in its first iteration.
    ///
    /// # Errors
    /// The application cannot run on this log, or a call of the log failed.
    pub fn new(
        application: &Application,
        config: Config,
        log: SharedEventLog,
        clock: Arc<dyn Clock>,
        stores: Arc<dyn Stores>,
        thread: usize,
    ) -> Result<Self> {
        let status = Arc::new(Status::default());
        let plan = Plan::resolve(&*log, application, &config)?;
        let leftovers = plan.orphaned_state(&*stores);
        let environment = Environment { log, clock, stores };
        let shared = Shared::new(plan, config, environment, status.clone());
        Ok(ThreadDriver {
            thread: StreamThread::new(Arc::new(shared), thread),
            status,
            leftovers,
        })
    }

    /// Performs one iteration of the thread's loop, without waiting.
    ///
    /// # Errors
    /// An error that would end the process.
    pub fn turn(&mut self) -> Result<()> {
        self.thread.turn(Duration::ZERO).map(|_| ())
    }

    /// Performs iterations until all input is processed and committed; `false` if that takes more than `turns_max`
    /// iterations.
    ///
    /// # Errors
    /// An error that would end the process.
    pub fn settle(&mut self, turns_max: usize) -> Result<bool> {
        for _ in 0..turns_max {
            self.turn()?;
            if self.thread.is_quiet() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Why the thread is not ready.
    pub fn causes(&self) -> Vec<String> {
        self.status.causes()
    }

    /// State whose store is not declared, about which a process warns when it starts.
    pub fn leftovers(&self) -> &[String] {
        &self.leftovers
    }

    /// Commits and leaves the group, as draining does.
    ///
    /// # Errors
    /// A call of the store or the log failed.
    pub fn finish(self) -> Result<()> {
        self.thread.finish()
    }
}

#[cfg(test)]
mod at_least_once;
#[cfg(test)]
mod scenarios;
