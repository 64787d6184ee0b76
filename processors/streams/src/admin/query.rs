//! Queries to an application that runs in this process: the status of its tasks and their committed state.
//!
//! An answer is a consistent snapshot of committed state, together with the input positions up to which it includes the
//! input. Only the process that owns a task can answer; any other process returns the owner.

use crate::admin::members;
use crate::api::application::instance_of_member;
use crate::api::context::TaskId;
use crate::api::error::Error;
use crate::api::state::keys::{RESERVED, after_prefix};
use crate::plan::Sub;
use crate::shared::Shared;
use crate::task::checkpoint::{COMMIT_RECORD_ROW, META, STATE};
use crate::task::commit_record::CommitRecord;
pub use crate::task::report::TaskReport;
use crate::task::task_store::TaskStore;
use event_log::{Offset, TopicPartition};
use serde::Serialize;
use service::chain;
use state_store::{Direction, KeyRange, Snapshot};
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

/// Maximum number of rows in an answer.
pub const SCAN_MAX: usize = 1000;

/// A handle on an application that runs in this process.
#[derive(Clone)]
pub struct Handle {
    application: Arc<str>,
    shared: Arc<OnceLock<Arc<Shared>>>,
}

/// A store of the application and its number of partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreReport {
    /// Name of the store.
    pub store: String,
    /// Number of partitions; each is a task.
    pub partitions: i32,
}

/// A row of state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// Result of a query: a consistent snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryResult {
    /// Rows in key order.
    pub rows: Vec<Row>,
    /// Whether there are more rows. To read them, query again from the last key.
    pub more: bool,
    /// Positions up to which the state includes the inputs: topic, partition, next offset.
    pub positions: Vec<(String, i32, Offset)>,
}

/// Selects the rows of a scan.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// Only keys with this prefix.
    pub prefix: Vec<u8>,
    /// Only keys after this key.
    pub after: Option<Vec<u8>>,
    /// Maximum number of rows, limited to [`SCAN_MAX`].
    pub limit: usize,
}

/// Why a query fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The application has not started yet.
    #[error("processor {0} is still starting; try again in a moment")]
    Starting(Arc<str>),
    /// The application has no such store.
    #[error("processor {application} has no store `{store}`; it has: {known}")]
    UnknownStore {
        /// The processor.
        application: Arc<str>,
        /// Requested store.
        store: String,
        /// Declared stores.
        known: String,
    },
    /// The store has no such partition.
    #[error("store `{store}` has no partition {partition}; its partitions are 0 to {last}")]
    UnknownPartition {
        /// The store.
        store: String,
        /// Requested partition.
        partition: i32,
        /// Last partition.
        last: i32,
    },
    /// Another process owns the task.
    #[error("task {task} is owned by instance {instance}{}", .admin.as_ref().map_or_else(|| ", which has not advertised an admin address".to_owned(), |url| format!(", {url}")))]
    Elsewhere {
        /// The task.
        task: TaskId,
        /// Instance that owns the task.
        instance: String,
        /// URL of its admin listener, if advertised.
        admin: Option<String>,
    },
    /// No process can answer now.
    #[error("cannot query task {task}: {reason}")]
    NotReady {
        /// The task.
        task: TaskId,
        /// Why.
        reason: String,
    },
    /// The store failed.
    #[error("cannot read state")]
    Store(#[from] state_store::Error),
    /// The owner of the task could not be looked up in the log.
    #[error("cannot look up the owner of the task")]
    Log(#[from] event_log::Error),
    /// The commit record of the state cannot be decoded.
    #[error("cannot read state")]
    State(#[from] Error),
}

impl Handle {
    pub(crate) fn new(application: &str) -> Self {
        Handle {
            application: application.into(),
            shared: Arc::default(),
        }
    }

    pub(crate) fn started(&self, shared: Arc<Shared>) {
        drop(self.shared.set(shared));
    }

    /// Name of the application.
    pub fn application(&self) -> &str {
        &self.application
    }

    /// Status of the tasks and standbys of this process, at most one second old, in the order of store and partition.
    pub fn tasks(&self) -> Vec<TaskReport> {
        let Some(shared) = self.shared.get() else {
            return Vec::new();
        };
        let mut all: Vec<TaskReport> = shared.reports().values().cloned().collect();
        let standby = |(task, store): (&TaskId, &TaskStore)| {
            let sub = shared.plan.subs.iter().find(|sub| sub.name == task.subtopology);
            TaskReport {
                task: task.to_string(),
                store: sub.map(|sub| sub.store.clone()).unwrap_or_default(),
                partition: task.partition,
                phase: "standby",
                cause: None,
                inputs: Vec::new(),
                changelog_next: store.next,
                restore_left: None,
                restored: 0,
            }
        };
        all.extend(shared.standbys().iter().map(standby));
        all.sort_by(|a, b| (&a.store, a.partition).cmp(&(&b.store, b.partition)));
        all
    }

    /// Stores of the application; empty until it has started.
    pub fn stores(&self) -> Vec<StoreReport> {
        let subs = self
            .shared
            .get()
            .map(|shared| shared.plan.subs.as_slice())
            .unwrap_or_default();
        let report = |sub: &Arc<Sub>| StoreReport {
            store: sub.store.clone(),
            partitions: sub.partitions,
        };
        subs.iter().map(report).collect()
    }

    /// Partition of a key by the default partitioner.
    ///
    /// # Errors
    /// [`QueryError::UnknownStore`], [`QueryError::Starting`].
    pub fn partition_of(&self, store: &str, key: &[u8]) -> Result<i32, QueryError> {
        let (_, sub) = self.sub(store)?;
        Ok(event_log::partitioner::partition(key, sub.partitions))
    }

    /// Reads one key of a store's partition: zero or one rows. Blocks if the owner has to be looked up in the log.
    ///
    /// # Errors
    /// Any [`QueryError`].
    pub fn get(&self, store: &str, partition: i32, key: &[u8]) -> Result<QueryResult, QueryError> {
        let snapshot = self.snapshot(store, partition)?;
        let value = snapshot.get(STATE, key)?.filter(|_| !key.starts_with(RESERVED));
        let rows = value.map(|value| Row {
            key: key.to_vec(),
            value,
        });
        Ok(QueryResult {
            rows: rows.into_iter().collect(),
            more: false,
            positions: positions(&*snapshot)?,
        })
    }

    /// Reads a range of keys of a store's partition, in byte order.
    ///
    /// # Errors
    /// As [`Handle::get`].
    pub fn scan(&self, store: &str, partition: i32, range: &Range) -> Result<QueryResult, QueryError> {
        let snapshot = self.snapshot(store, partition)?;
        let limit = range.limit.min(SCAN_MAX);
        let from = range.after.as_ref().map_or_else(
            || range.prefix.clone(),
            |after| {
                after
                    .iter()
                    .copied()
                    .chain([0])
                    .collect::<Vec<u8>>()
                    .max(range.prefix.clone())
            },
        );
        let (mut rows, mut more) = (Vec::new(), false);
        let end = after_prefix(&range.prefix);
        let keys = KeyRange::new(&from, end.as_deref());
        snapshot.scan(STATE, keys, Direction::Forward, &mut |key, value| {
            if key.starts_with(RESERVED) {
                return ControlFlow::Continue(());
            }
            if rows.len() == limit {
                more = true;
                return ControlFlow::Break(());
            }
            rows.push(Row {
                key: key.to_vec(),
                value: value.to_vec(),
            });
            ControlFlow::Continue(())
        })?;
        Ok(QueryResult {
            rows,
            more,
            positions: positions(&*snapshot)?,
        })
    }

    fn sub(&self, store: &str) -> Result<(&Arc<Shared>, &Arc<Sub>), QueryError> {
        let shared = self
            .shared
            .get()
            .ok_or_else(|| QueryError::Starting(self.application.clone()))?;
        let found = shared.plan.subs.iter().find(|sub| sub.store == store);
        let known = || {
            shared
                .plan
                .subs
                .iter()
                .map(|sub| sub.store.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        let sub = found.ok_or_else(|| QueryError::UnknownStore {
            application: self.application.clone(),
            store: store.to_owned(),
            known: known(),
        })?;
        Ok((shared, sub))
    }

    /// Snapshot of the committed state of a task, if this process owns it.
    fn snapshot(&self, store: &str, partition: i32) -> Result<Box<dyn Snapshot>, QueryError> {
        let (shared, sub) = self.sub(store)?;
        if !(0..sub.partitions).contains(&partition) {
            return Err(QueryError::UnknownPartition {
                store: store.to_owned(),
                partition,
                last: sub.partitions - 1,
            });
        }
        let task = TaskId {
            subtopology: sub.name.clone(),
            partition,
        };
        let own = shared.serving().get(&task).cloned();
        match own {
            Some(store) => Ok(store.snapshot()?),
            None => Err(other_owner(shared, sub, task)?),
        }
    }
}

/// The owner of a task that this process does not serve, as an error.
fn other_owner(shared: &Shared, sub: &Sub, task: TaskId) -> event_log::Result<QueryError> {
    let input = sub
        .inputs
        .first()
        .map(|input| TopicPartition::new(input.name.clone(), task.partition));
    let group = shared.log.group_info(&shared.plan.application)?;
    let owner = group.and_then(|group| {
        let has = |partitions: &[TopicPartition]| input.as_ref().is_some_and(|input| partitions.contains(input));
        let member = group.members.into_iter().find(|member| has(&member.partitions))?;
        instance_of_member(&shared.plan.application, &member.instance?).map(str::to_owned)
    });
    Ok(match owner {
        None => QueryError::NotReady {
            task,
            reason: "no live process owns it; it may be moving to another process".to_owned(),
        },
        Some(instance) if instance == shared.config.instance => {
            let report = shared.reports().get(&task).and_then(|report| report.cause.clone());
            let reason = report.unwrap_or_else(|| "it was just assigned".to_owned());
            QueryError::NotReady { task, reason }
        }
        Some(instance) => {
            let application = shared.plan.application.to_string();
            let topic = shared.config.members_topic.as_deref();
            let addresses = topic.map(|topic| members::addresses(&*shared.log, topic, Some(&application)));
            let admin = match addresses.transpose() {
                Ok(addresses) => addresses.and_then(|mut all| all.remove(&(application, instance.clone()))),
                Err(error) => {
                    tracing::warn!(reason = chain(&error), "cannot read member addresses");
                    None
                }
            };
            QueryError::Elsewhere { task, instance, admin }
        }
    })
}

/// Positions up to which a state includes the inputs.
fn positions(snapshot: &dyn Snapshot) -> Result<Vec<(String, i32, Offset)>, QueryError> {
    let Some(value) = snapshot.get(META, COMMIT_RECORD_ROW)? else {
        return Ok(Vec::new());
    };
    let commit_record = CommitRecord::read(&value).map_err(|source| Error::Format {
        who: "a task's commit record".to_owned(),
        source,
    })?;
    Ok(commit_record.offsets)
}
