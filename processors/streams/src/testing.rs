//! Items that the test kit `trunkline-streams-test` needs in addition to the public API: the steps of the runtime,
//! which the caller runs one at a time.
//!
//! The kit must run production code, or its results would not apply to production. These items provide a stream thread
//! without an OS thread, and a task without a transaction. Applications must not depend on them: they start with
//! [`crate::run`] and test with the drivers of the kit.

use crate::admin::lag::note_recreated;
use crate::admin::status::Status;
use crate::api::application::{Application, Config};
use crate::api::context::Context;
use crate::api::error::Result;
use crate::api::output::Output;
use crate::api::state::State;
use crate::api::state::keys::RESERVED;
use crate::api::timer::{Timer, TimerClock};
use crate::plan::Plan;
use crate::shared::Shared;
use crate::task::checkpoint::{SPACES, STATE};
use crate::task::timers;
use crate::thread::turn::StreamThread;
use event_log::OutBatch;
use state_store::{Batch, SharedStore, Visit};
use std::sync::Arc;
use std::time::Duration;

pub use crate::shared::Environment;

/// Number of keyspaces in the store of a task.
pub const STORE_SPACES: usize = SPACES.len();

/// Whether a state key is reserved for the runtime, such as that of a timer.
pub fn is_reserved_key(key: &[u8]) -> bool {
    key.starts_with(RESERVED)
}

/// Returns the timer that is stored under a state key; `None` if the key is not that of a timer.
pub fn timer_of_key(key: &[u8]) -> Option<Timer> {
    let clock = TimerClock::ALL
        .into_iter()
        .find(|clock| key.starts_with(&clock.prefix()))?;
    Timer::of_row(clock, key)
}

/// As [`State::scan`] of all keys, including reserved keys.
///
/// # Errors
/// An error of the store.
pub fn scan_all(state: &State, visit: Visit<'_>) -> Result<()> {
    state.scan_any(b"", visit)
}

/// A stream thread that the caller runs turn by turn in its own thread. Dropping it simulates a crash: it neither
/// commits nor leaves the group.
pub struct ThreadDriver {
    thread: StreamThread,
    shared: Arc<Shared>,
    status: Arc<Status>,
    orphaned_state: Vec<String>,
}

impl ThreadDriver {
    /// Creates a thread of an application. It connects in its first turn.
    ///
    /// # Errors
    /// The application cannot run on this log, or a call of the log failed.
    pub fn new(application: &Application, config: Config, environment: Environment, index: usize) -> Result<Self> {
        let status = Arc::new(Status::default());
        let plan = Plan::resolve(&*environment.log, application, &config)?;
        let orphaned_state = plan.orphaned_state(&*environment.stores);
        let shared = Arc::new(Shared::new(plan, config, environment, status.clone()));
        Ok(ThreadDriver {
            thread: StreamThread::new(shared.clone(), index),
            shared,
            status,
            orphaned_state,
        })
    }

    /// Runs one turn, without waiting.
    ///
    /// # Errors
    /// An error that would end the process.
    pub fn turn(&mut self) -> Result<()> {
        self.thread.turn(Duration::ZERO).map(|_| ())
    }

    /// Looks up the ids of the inputs, as a process does at intervals.
    pub fn check_inputs(&self) {
        note_recreated(&self.shared);
    }

    /// Whether all input that was readable in the last turn is processed and committed.
    pub fn is_quiet(&self) -> bool {
        self.thread.is_quiet()
    }

    /// Why the thread is not ready.
    pub fn causes(&self) -> Vec<String> {
        self.status.causes()
    }

    /// State that belongs to no declared store. A process logs a warning about it when it starts.
    pub fn orphaned_state(&self) -> &[String] {
        &self.orphaned_state
    }

    /// Commits and leaves the group, as draining does.
    ///
    /// # Errors
    /// A call of the store or the log failed.
    pub fn finish(self) -> Result<()> {
        self.thread.finish()
    }
}

/// State and output of a task without a log. The caller commits them.
pub struct ManualTask {
    state: State,
    output: Output,
}

impl ManualTask {
    /// Creates a task of the processor with this name, over a store with [`STORE_SPACES`] keyspaces.
    pub fn new(processor: &str, store: SharedStore) -> Self {
        ManualTask {
            state: State::new(store, STATE),
            output: Output::new(processor),
        }
    }

    /// The state, including uncommitted writes.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The state, for writes.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// Calls the processor with the state and output. Afterwards returns an error if a state write of the call is
    /// rejected.
    ///
    /// # Errors
    /// The error of the call, or a state write that every store rejects.
    pub fn step(&mut self, call: impl FnOnce(&mut State, &mut Output) -> Result<()>) -> Result<()> {
        call(&mut self.state, &mut self.output)?;
        self.output.clear_cause();
        self.state.rejection().map_or(Ok(()), |rejection| Err(rejection.into()))
    }

    /// Fires all due timers.
    ///
    /// # Errors
    /// An error of a call or the store, or a state write that every store rejects.
    pub fn fire_timers(
        &mut self,
        context: Context,
        call: &mut dyn FnMut(&Timer, &mut State, &mut Output) -> Result<()>,
    ) -> Result<()> {
        self.step(|state, output| timers::fire(context, state, output, usize::MAX, call).map(drop))
    }

    /// Writes the state to the store, and returns the output since the last commit.
    ///
    /// # Errors
    /// An error of the store.
    pub fn commit(&mut self) -> Result<OutBatch> {
        let mut batch = Batch::default();
        for (key, value) in std::mem::take(&mut self.state.uncommitted) {
            match value {
                Some(value) => batch.put(STATE, key, value),
                None => batch.delete(STATE, key),
            }
        }
        self.state.uncommitted_bytes = 0;
        self.state.store.commit(batch)?;
        let sent = self.output.records().clone();
        self.output.clear();
        Ok(sent)
    }

    /// Discards everything since the last commit, as an aborted transaction does.
    pub fn abort(&mut self) {
        self.state.roll_back();
        self.output.clear();
    }
}
