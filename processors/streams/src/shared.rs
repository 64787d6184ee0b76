//! What the threads of an application in this process share.

use crate::admin::metrics::Metrics;
use crate::admin::status::Status;
use crate::api::application::Config;
use crate::api::context::TaskId;
use crate::clock::Clock;
use crate::plan::Plan;
use crate::stores::Stores;
use crate::task::report::TaskReport;
use crate::task::task_store::TaskStore;
use event_log::{Millis, Offset, SharedEventLog, TopicPartition};
use state_store::SharedStore;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The environment of an application: log, clock and stores.
pub struct Environment {
    /// The log.
    pub log: SharedEventLog,
    /// Wall clock and monotonic clock.
    pub clock: Arc<dyn Clock>,
    /// Opens task stores.
    pub stores: Arc<dyn Stores>,
}

pub(crate) struct Shared {
    pub plan: Plan,
    pub config: Config,
    pub log: SharedEventLog,
    pub clock: Arc<dyn Clock>,
    pub stores: Arc<dyn Stores>,
    pub metrics: Metrics,
    pub status: Arc<Status>,
    /// Committed positions, from which the lag is computed.
    positions: Mutex<HashMap<TopicPartition, CommittedPosition>>,
    /// Stores of standbys. A stream thread that is assigned the task removes its store from here, so that a store never
    /// belongs to a standby and to a task at the same time.
    standbys: Mutex<HashMap<TaskId, TaskStore>>,
    /// Stores of the tasks that run here, for queries of committed state.
    serving: Mutex<HashMap<TaskId, SharedStore>>,
    /// Status of the tasks of this process.
    reports: Mutex<BTreeMap<TaskId, TaskReport>>,
    /// Inputs that were deleted and created again since this process started.
    recreated: Mutex<BTreeSet<Arc<str>>>,
}

/// Committed position in an input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommittedPosition {
    pub next: Offset,
    /// When a read of the input last returned no records, on the monotonic clock.
    pub drained: Option<Duration>,
    /// Greatest timestamp of the records that the task has processed, in ms; 0 before the first record.
    pub stream_time: Millis,
}

impl Shared {
    pub(crate) fn new(plan: Plan, config: Config, environment: Environment, status: Arc<Status>) -> Self {
        let Environment { log, clock, stores } = environment;
        let metrics = Metrics::new(&plan.application);
        Shared {
            plan,
            config,
            log,
            clock,
            stores,
            metrics,
            status,
            positions: Mutex::default(),
            standbys: Mutex::default(),
            serving: Mutex::default(),
            reports: Mutex::default(),
            recreated: Mutex::default(),
        }
    }

    pub(crate) fn positions(&self) -> MutexGuard<'_, HashMap<TopicPartition, CommittedPosition>> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn standbys(&self) -> MutexGuard<'_, HashMap<TaskId, TaskStore>> {
        self.standbys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn serving(&self) -> MutexGuard<'_, HashMap<TaskId, SharedStore>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reports(&self) -> MutexGuard<'_, BTreeMap<TaskId, TaskReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn recreated(&self) -> MutexGuard<'_, BTreeSet<Arc<str>>> {
        self.recreated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Name of a task in the status.
    pub(crate) fn status_name(&self, task: &TaskId) -> String {
        format!("{}, task {task}", self.plan.application)
    }

    /// Removes a task that this process no longer owns.
    pub(crate) fn forget(&self, task: &TaskId) {
        self.serving().remove(task);
        self.reports().remove(task);
    }
}
