//! Questions to an application that runs in this process: what its tasks do, and what their committed state holds.
//!
//! Guarantees: an answer is of one moment, a committed one, with the place in the inputs that it contains; only the
//! process that has the task answers, any other says which one does. Never: a write; uncommitted state.

use crate::checkpoint::{MARKER, META, STATE};
use crate::commit_record::CommitRecord;
use crate::members;
use crate::plan::Sub;
use crate::standby::process_of;
use crate::state::{RESERVED, after_prefix};
use crate::task::TaskStore;
use crate::thread::Shared;
use crate::{Error, TaskId};
use event_log::{Offset, TopicPartition};
use serde::Serialize;
use service::chain;
use state_store::{Direction, KeyRange, Snapshot};
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

/// Rows of one answer, at most.
pub const SCAN_MAX: usize = 1000;

/// A handle on an application that runs in this process.
#[derive(Clone)]
pub struct Handle {
    application: Arc<str>,
    env: Arc<OnceLock<Arc<Shared>>>,
}

/// What a task of this process does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskReport {
    /// `sub-topology/partition`.
    pub task: String,
    /// Its store.
    pub store: String,
    /// Its partition.
    pub partition: i32,
    /// `running`, `restoring`, `recovering`, `paused`, `stopped`, `waiting`, or `standby` for another process's task.
    pub phase: &'static str,
    /// Why it does not run, for people.
    pub cause: Option<String>,
    /// Its inputs, each with the next offset to process.
    pub inputs: Vec<(String, i32, Offset)>,
    /// The next changelog offset that its store has not.
    pub changelog_next: Option<Offset>,
    /// Changelog offsets still to be read until it runs.
    pub restore_left: Option<Offset>,
    /// Changelog records that its last recovery read.
    pub restored: u64,
}

/// A store of the application and its number of partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreReport {
    /// The store.
    pub store: String,
    /// Its partitions, each a task.
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

/// An answer, of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Rows in the order of their keys.
    pub rows: Vec<Row>,
    /// Whether more follow; ask again after the last key.
    pub more: bool,
    /// The place in the inputs that the state contains: topic, partition, next offset.
    pub place: Vec<(String, i32, Offset)>,
}

/// Which rows are asked for.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// Only keys that begin so.
    pub prefix: Vec<u8>,
    /// Only keys after this one.
    pub after: Option<Vec<u8>>,
    /// At most so many rows, and never more than [`SCAN_MAX`].
    pub limit: usize,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The application has not been resolved against the log yet.
    #[error("processor {0} is still starting; try again in a moment")]
    Starting(Arc<str>),
    /// It has no such store.
    #[error("processor {application} has no store `{store}`; it has: {known}")]
    UnknownStore {
        /// The processor.
        application: Arc<str>,
        /// The store asked for.
        store: String,
        /// Those that it has.
        known: String,
    },
    /// The store has no such partition.
    #[error("store `{store}` has partitions 0 to {last}, and no partition {partition}")]
    UnknownPartition {
        /// The store.
        store: String,
        /// The partition asked for.
        partition: i32,
        /// Its last one.
        last: i32,
    },
    /// Another process has the task.
    #[error("task {task} is at instance {instance}{}", .admin.as_ref().map_or_else(|| ", which has told no address".to_owned(), |url| format!(", {url}")))]
    Elsewhere {
        /// The task.
        task: TaskId,
        /// The instance that has it.
        instance: String,
        /// URL of its operators' listener, if it has told it.
        admin: Option<String>,
    },
    /// Nobody can answer now.
    #[error("task {task} cannot be asked: {reason}")]
    NotReady {
        /// The task.
        task: TaskId,
        /// Why.
        reason: String,
    },
    /// The store failed.
    #[error("state cannot be read")]
    Store(#[from] state_store::Error),
    /// The log failed.
    #[error("the owner of the task is not known")]
    Log(#[from] event_log::Error),
    /// The state is damaged.
    #[error("state cannot be read")]
    State(#[from] Error),
}

impl Handle {
    pub(crate) fn new(application: &str) -> Self {
        Handle {
            application: application.into(),
            env: Arc::default(),
        }
    }

    pub(crate) fn started(&self, env: Arc<Shared>) {
        drop(self.env.set(env));
    }

    /// The application's name.
    pub fn application(&self) -> &str {
        &self.application
    }

    /// What the tasks and standbys of this process do, as of a second ago at most, in the order of their names.
    pub fn tasks(&self) -> Vec<TaskReport> {
        let Some(env) = self.env.get() else { return Vec::new() };
        let mut all: Vec<TaskReport> = env.reports().values().cloned().collect();
        let standby = |(task, live): (&TaskId, &TaskStore)| {
            let sub = env.plan.subs.iter().find(|sub| sub.name == task.subtopology);
            TaskReport {
                task: task.to_string(),
                store: sub.map(|sub| sub.store.clone()).unwrap_or_default(),
                partition: task.partition,
                phase: "standby",
                cause: None,
                inputs: Vec::new(),
                changelog_next: live.next,
                restore_left: None,
                restored: 0,
            }
        };
        all.extend(env.warm().iter().map(standby));
        all.sort_by(|a, b| (&a.store, a.partition).cmp(&(&b.store, b.partition)));
        all
    }

    /// The application's stores; empty while it starts.
    pub fn stores(&self) -> Vec<StoreReport> {
        let subs = self.env.get().map(|env| env.plan.subs.as_slice()).unwrap_or_default();
        let report = |sub: &Arc<Sub>| StoreReport {
            store: sub.store.clone(),
            partitions: sub.partitions,
        };
        subs.iter().map(report).collect()
    }

    /// The partition in which the default partitioner puts a key.
    ///
    /// # Errors
    /// [`QueryError::UnknownStore`], [`QueryError::Starting`].
    pub fn partition_of(&self, store: &str, key: &[u8]) -> Result<i32, QueryError> {
        let (_, sub) = self.sub(store)?;
        Ok(event_log::partitioner::partition(key, sub.partitions))
    }

    /// Reads one key of a store's partition: an answer with one row or none.
    ///
    /// # Errors
    /// Each variant of [`QueryError`]; blocks while it asks the log for the owner.
    pub fn get(&self, store: &str, partition: i32, key: &[u8]) -> Result<Answer, QueryError> {
        let moment = self.moment(store, partition)?;
        let value = moment.get(STATE, key)?.filter(|_| !key.starts_with(RESERVED));
        let rows = value.map(|value| Row {
            key: key.to_vec(),
            value,
        });
        Ok(Answer {
            rows: rows.into_iter().collect(),
            more: false,
            place: place(&*moment)?,
        })
    }

    /// Reads a range of keys of a store's partition, in the order of their bytes.
    ///
    /// # Errors
    /// As [`Handle::get`].
    pub fn scan(&self, store: &str, partition: i32, range: &Range) -> Result<Answer, QueryError> {
        let moment = self.moment(store, partition)?;
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
        moment.scan(STATE, keys, Direction::Forward, &mut |key, value| {
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
        Ok(Answer {
            rows,
            more,
            place: place(&*moment)?,
        })
    }

    fn sub(&self, store: &str) -> Result<(&Arc<Shared>, &Arc<Sub>), QueryError> {
        let env = self
            .env
            .get()
            .ok_or_else(|| QueryError::Starting(self.application.clone()))?;
        let found = env.plan.subs.iter().find(|sub| sub.store == store);
        let known = || {
            env.plan
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
        Ok((env, sub))
    }

    /// The committed state of a task as it is now, if the task is here.
    fn moment(&self, store: &str, partition: i32) -> Result<Box<dyn Snapshot>, QueryError> {
        let (env, sub) = self.sub(store)?;
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
        let here = env.serving().get(&task).cloned();
        match here {
            Some(store) => Ok(store.snapshot()?),
            None => Err(elsewhere(env, sub, task)?),
        }
    }
}

/// Who has a task that is not served here.
fn elsewhere(env: &Shared, sub: &Sub, task: TaskId) -> event_log::Result<QueryError> {
    let input = sub
        .inputs
        .first()
        .map(|input| TopicPartition::new(input.name.clone(), task.partition));
    let group = env.log.group_info(&env.plan.application)?;
    let owner = group.and_then(|group| {
        let has = |partitions: &[TopicPartition]| input.as_ref().is_some_and(|input| partitions.contains(input));
        let member = group.members.into_iter().find(|member| has(&member.partitions))?;
        process_of(&env.plan.application, &member.instance?).map(str::to_owned)
    });
    Ok(match owner {
        None => QueryError::NotReady {
            task,
            reason: "no live process has it; it may be on its way from one to another".to_owned(),
        },
        Some(instance) if instance == env.config.instance => {
            let report = env.reports().get(&task).and_then(|report| report.cause.clone());
            let reason = report.unwrap_or_else(|| "it has just been assigned".to_owned());
            QueryError::NotReady { task, reason }
        }
        Some(instance) => {
            let application = env.plan.application.to_string();
            let admin = match members::addresses(&*env.log, Some(&application)) {
                Ok(mut addresses) => addresses.remove(&(application, instance.clone())),
                Err(error) => {
                    tracing::warn!(reason = chain(&error), "addresses of the members are not known");
                    None
                }
            };
            QueryError::Elsewhere { task, instance, admin }
        }
    })
}

/// The place in the inputs that a state contains.
fn place(moment: &dyn Snapshot) -> Result<Vec<(String, i32, Offset)>, QueryError> {
    let Some(value) = moment.get(META, MARKER)? else {
        return Ok(Vec::new());
    };
    let commit_record = CommitRecord::read(&value).map_err(|source| Error::Format {
        who: "a task's commit_record".to_owned(),
        source,
    })?;
    Ok(commit_record.offsets)
}
