//! Drivers for tests: a processor over values alone, a whole application over values, one thread by hand, and a simulated
//! log with processes and faults.
//!
//! [`StepDriver`] is for what a processor makes of its records; [`TopologyDriver`] for what is left of that after
//! crashes, lost disks and rebalances; [`ThreadDriver`] for tests that bring their own log, clock and stores.
//! [`simulation`] is for what processes make of a log that loses, delays and forgets.
//! Guarantees: no sleep, and no thread but the simulation's; all but the first run the code that production runs.
//! Never: a short cut around the commit protocol.

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

/// A record that a processor wrote, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Topic.
    pub topic: String,
    /// Partition, when the processor chose it.
    pub partition: Option<i32>,
    /// Timestamp in ms, when the processor set it.
    pub timestamp: Option<Millis>,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
    /// Headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// One processor over values: records in, records out, a state in memory.
pub struct StepDriver {
    processor: Box<dyn Processor>,
    state: State,
    output: Output,
    stream_time: Millis,
    /// What the next steps see as now.
    pub now: Millis,
}

impl StepDriver {
    /// A processor with an empty state.
    ///
    /// # Errors
    /// What its `reset` returns.
    pub fn new(name: &str, processor: Box<dyn Processor>) -> Result<Self> {
        Self::over(name, processor, Arc::new(MemoryStore::new(SPACES.len())))
    }

    /// A processor with the state in a store that has the spaces of a task's store, for benchmarks.
    ///
    /// # Errors
    /// What its `reset` returns.
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

    /// Lets it process records, all of one task.
    ///
    /// # Errors
    /// What `prepare`, `step` or `timer` returns; a write to the state that no store takes.
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

    /// Tells it that these records became dead letters, since the log or the store refuses what it makes of them.
    ///
    /// # Errors
    /// What `on_dead_letter` returns; a write to the state that no store takes.
    pub fn give_up(&mut self, records: &RecordBatch) -> Result<()> {
        let context = self.context();
        for record in records.iter() {
            self.processor
                .on_dead_letter(context, record, &mut self.state, &mut self.output)?;
        }
        self.output.clear_cause();
        self.state.rejection().map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// Moves the wall clock, and lets timers fire that are due.
    ///
    /// # Errors
    /// What `timer` or the store returns; a write to the state that no store takes.
    pub fn advance(&mut self, now: Millis) -> Result<()> {
        self.now = now;
        let context = self.context();
        let (state, output, processor) = (&mut self.state, &mut self.output, &mut self.processor);
        let mut call =
            |timer: &Timer, state: &mut State, output: &mut Output| processor.on_timer(context, timer, state, output);
        crate::task::timers::fire(context, state, output, usize::MAX, &mut call)?;
        self.state.rejection().map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// Commits, and returns what was written since the last commit.
    ///
    /// # Errors
    /// What `before_commit` or the store returns; a write to the state that no store takes.
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

    /// Drops everything since the last commit, as an aborted transaction does.
    ///
    /// # Errors
    /// What `reset` returns.
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

    /// Its state, uncommitted writes included.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Its state, to be prepared for a test.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

/// Records of one partition as they are read, from this offset on: keys, values (`None` is a tombstone) and timestamps.
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

/// One stream thread, driven by hand. Dropping it is a crash: nothing is committed, nothing is said to the group.
pub struct ThreadDriver {
    thread: StreamThread,
    status: Arc<Status>,
    leftovers: Vec<String>,
}

impl ThreadDriver {
    /// Makes a thread of an application; nothing is connected before the first turn.
    ///
    /// # Errors
    /// An application that cannot run on this log; a log that fails.
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

    /// Does the next thing, without a wait.
    ///
    /// # Errors
    /// What would end the process.
    pub fn turn(&mut self) -> Result<()> {
        self.thread.turn(Duration::ZERO).map(|_| ())
    }

    /// Takes turns until everything that there is to read is processed and committed; `false` when it is not so after
    /// `turns_max` turns.
    ///
    /// # Errors
    /// What would end the process.
    pub fn settle(&mut self, turns_max: usize) -> Result<bool> {
        for _ in 0..turns_max {
            self.turn()?;
            if self.thread.is_quiet() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What stands between the thread and work.
    pub fn causes(&self) -> Vec<String> {
        self.status.causes()
    }

    /// What a process warns of at its start: state that belongs to no declared store.
    pub fn leftovers(&self) -> &[String] {
        &self.leftovers
    }

    /// Ends as a drained process does.
    ///
    /// # Errors
    /// A store or log that fails.
    pub fn finish(self) -> Result<()> {
        self.thread.finish()
    }
}

#[cfg(test)]
mod alone;
#[cfg(test)]
mod scenarios;
