//! The tasks of a thread, and the routing of records to them.

use crate::api::context::TaskId;
use crate::plan::Sub;
use crate::task::Task;
use event_log::{Millis, RecordBatch, TopicPartition};
use std::ops::Range;
use std::sync::Arc;

/// Maximum number of records in a run, so that the limits of the transaction are checked in between.
const RUN_RECORDS_MAX: usize = 1024;

/// The tasks of a thread.
#[derive(Default)]
pub(super) struct Tasks {
    tasks: Vec<Task>,
    /// Task and input of each partition of the batch in progress.
    routes: Vec<Option<Route>>,
}

#[derive(Debug, Clone, Copy)]
struct Route {
    task: usize,
    input: usize,
}

/// Consecutive records of one task in a batch.
pub(super) struct Run {
    /// Index of the task, valid while the batch is processed.
    pub task: usize,
    pub range: Range<usize>,
    /// Greatest timestamp among the records.
    pub newest: Millis,
}

impl Tasks {
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Task> {
        self.tasks.iter()
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [Task] {
        &mut self.tasks
    }

    /// The task at an index, which is below [`Tasks::len`] or from a run.
    pub(super) fn at(&mut self, index: usize) -> &mut Task {
        self.tasks.get_mut(index).expect("the index is that of a task")
    }

    pub(super) fn find(&mut self, id: &TaskId) -> Option<&mut Task> {
        self.tasks.iter_mut().find(|task| task.id == *id)
    }

    /// Adds an assigned partition to its task, which is created if necessary.
    pub(super) fn assign(&mut self, sub: &Arc<Sub>, at: &TopicPartition) {
        let is_task = |task: &Task| task.id.subtopology == sub.name && task.id.partition == at.partition;
        let index = self.tasks.iter().position(is_task).unwrap_or_else(|| {
            self.tasks.push(Task::new(sub.clone(), at.partition));
            self.tasks.len() - 1
        });
        self.at(index).assign(at);
    }

    pub(super) fn push(&mut self, task: Task) {
        self.tasks.push(task);
    }

    /// Removes the tasks that have one of these partitions.
    pub(super) fn remove(&mut self, partitions: &[TopicPartition]) -> Vec<Task> {
        self.tasks.extract_if(.., |task| task.reads_any(partitions)).collect()
    }

    pub(super) fn clear(&mut self) {
        self.tasks.clear();
    }

    /// Uncommitted state of all tasks in bytes.
    pub(super) fn state_bytes(&self) -> usize {
        self.tasks.iter().map(Task::state_bytes).sum()
    }

    /// Finds the task of each partition of a batch.
    pub(super) fn route(&mut self, records: &RecordBatch) {
        let tasks = &self.tasks;
        let route = |at: &TopicPartition| {
            tasks.iter().enumerate().find_map(|(task, candidate)| {
                let input = candidate.inputs.iter().position(|input| input.at == *at)?;
                Some(Route { task, input })
            })
        };
        self.routes.clear();
        self.routes.extend(records.partitions().iter().map(route));
    }

    fn route_of(&self, partition_index: usize) -> Option<Route> {
        self.routes.get(partition_index).copied().flatten()
    }

    /// The next run at or after an index of the batch. Records of a task that does not run are skipped; the task reads them again
    /// when it starts.
    pub(super) fn next_run(&self, records: &RecordBatch, from: usize) -> Option<Run> {
        let mut run: Option<Run> = None;
        let mut limit = RUN_RECORDS_MAX;
        for index in from..records.len() {
            let record = records.get(index)?;
            let wanted = self.route_of(record.partition_index()).and_then(|route| {
                let task = self.tasks.get(route.task).filter(|task| task.is_running())?;
                let input = task.inputs.get(route.input)?;
                (record.offset() >= input.next).then_some((route.task, task))
            });
            match (&mut run, wanted) {
                (None, None) => {}
                (None, Some((index_of_task, task))) => {
                    let bisection = task.bisection.records.as_ref();
                    limit = bisection.map_or(limit, |bisection| bisection.chunk.min(limit));
                    run = Some(Run {
                        task: index_of_task,
                        range: index..index + 1,
                        newest: record.timestamp(),
                    });
                }
                (Some(run), Some((task, _))) if task == run.task && run.range.len() < limit => {
                    run.range.end = index + 1;
                    run.newest = run.newest.max(record.timestamp());
                }
                (Some(_), _) => break,
            }
        }
        run
    }

    /// Sets the positions of a task to the offsets after a run.
    pub(super) fn advance(&mut self, run: &Run, records: &RecordBatch) {
        for record in records.slice(run.range.clone()).iter() {
            let route = self.route_of(record.partition_index());
            let route = route.expect("a run contains routed records only");
            let input = self.at(run.task).inputs.get_mut(route.input);
            input.expect("the route is that of an input").next = record.offset() + 1;
        }
    }
}
