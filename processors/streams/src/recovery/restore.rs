//! Restores stores from their changelogs, in bulk and for all recovering tasks of a thread at once.
//!
//! Restored rows are collected in the committed buffer and written to the store in large sorted batches. The checkpoint
//! includes only rows that are in the store, so that a restore continues from it after a crash. `as_of` does not change
//! during a restore (C10), because the first restored rows are as old as the start of the restore.

use crate::api::context::TaskId;
use crate::shared::Shared;
use crate::task::changelog::read_record;
use crate::task::{Phase, Task};
use event_log::{ErrorAction, Isolation, Offset, Reader, RecordBatch, StartFrom, TopicPartition};
use failpoint::hit;
use service::chain;
use std::time::Duration;

/// Bytes read by one poll.
const READ_BYTES: usize = 4 << 20;
/// Fraction of the store's memory that a batch for the store may have: the larger the batch, the less the store has to
/// merge.
const BATCH_SHARE: u64 = 4;
/// Interval between log lines of a long restore.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Maximum wait for changelog records while no task runs.
pub(crate) const RESTORE_WAIT: Duration = Duration::from_millis(5);
/// Pause after the log was unavailable.
const BACKOFF: Duration = Duration::from_millis(200);

/// Reads the changelogs of a thread's recovering tasks.
#[derive(Default)]
pub(crate) struct Restorer {
    reader: Option<Box<dyn Reader>>,
    assigned: Vec<TopicPartition>,
    records: RecordBatch,
    /// Index of the task of each partition of the last batch.
    routes: Vec<Option<usize>>,
    not_before: Duration,
    reported: Duration,
}

/// Result of one call of [`Restorer::turn`].
#[derive(Default)]
pub(crate) struct Restored {
    /// Number of records read.
    pub records: usize,
    /// Tasks that cannot continue their restore.
    pub obstacles: Vec<Obstacle>,
}

/// Why a task cannot continue its restore.
pub(crate) struct Obstacle {
    pub task: TaskId,
    pub kind: ObstacleKind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObstacleKind {
    /// The changelog no longer contains the offset of the store's checkpoint: the store must be quarantined.
    OutOfRange,
    /// An operator must act.
    Stop,
}

impl Restorer {
    /// Reads changelog records for the tasks that restore, waiting at most `wait` for the first record.
    pub(crate) fn turn(&mut self, tasks: &mut [Task], shared: &Shared, wait: Duration) -> Restored {
        let mut restored = Restored::default();
        let now = shared.clock.elapsed();
        if now < self.not_before {
            return restored;
        }
        match self.read(tasks, shared, wait) {
            Ok(true) => {}
            Ok(false) => return restored,
            Err(error) => {
                restored.obstacles = self.failed(tasks, shared, &error);
                return restored;
            }
        }
        self.collect(tasks, shared, &mut restored.obstacles);
        self.store(tasks, shared, &mut restored.obstacles);
        if !restored.obstacles.is_empty() {
            self.assigned.clear();
        }
        let metrics = &shared.metrics.recovery;
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        metrics.restored.increment(count(self.records.len()));
        metrics.restored_bytes.increment(count(self.records.byte_len()));
        if now.saturating_sub(self.reported) >= REPORT_EVERY {
            self.reported = now;
            report(tasks);
        }
        restored.records = self.records.len();
        restored
    }

    /// Fills the batch and returns whether any task is restoring.
    fn read(&mut self, tasks: &[Task], shared: &Shared, wait: Duration) -> event_log::Result<bool> {
        let wanted: Vec<(TopicPartition, StartFrom)> = tasks
            .iter()
            .filter_map(|task| {
                let range = RestoreRange::of(task)?;
                Some((task.changelog.clone(), StartFrom::Offset(range.next)))
            })
            .collect();
        if wanted.is_empty() {
            if !self.assigned.is_empty() {
                self.assigned.clear();
                if let Some(reader) = &mut self.reader {
                    reader.assign(&[])?;
                }
            }
            return Ok(false);
        }
        let reader = match &mut self.reader {
            Some(reader) => reader,
            // Rows of aborted transactions must not become state (C2).
            empty => empty.insert(shared.log.reader(Isolation::ReadCommitted)?),
        };
        // A task may have started its recovery again, or committed since. The reader continues only if its positions
        // are exactly those of the stores.
        let in_position = |(at, from): &(TopicPartition, StartFrom)| {
            reader
                .position(at)
                .is_some_and(|position| *from == StartFrom::Offset(position))
        };
        let same = wanted.iter().map(|(at, _)| at).eq(self.assigned.iter());
        if !(same && wanted.iter().all(in_position)) {
            self.assigned.clear();
            reader.assign(&wanted)?;
            self.assigned.extend(wanted.into_iter().map(|(at, _)| at));
        }
        reader.poll(&mut self.records, READ_BYTES, wait)?;
        Ok(true)
    }

    fn failed(&mut self, tasks: &[Task], shared: &Shared, error: &event_log::Error) -> Vec<Obstacle> {
        self.assigned.clear();
        let reason = chain(error);
        let obstacle = |task: &Task, kind| Obstacle {
            task: task.id.clone(),
            kind,
            reason: reason.clone(),
        };
        let restoring = || tasks.iter().filter(|task| RestoreRange::of(task).is_some());
        let kind = match error {
            event_log::Error::OutOfRange { .. } => ObstacleKind::OutOfRange,
            _ => ObstacleKind::Stop,
        };
        // One changelog that cannot be read does not affect the others.
        let affected = |task: &&Task| error.scope().is_some_and(|scope| scope.contains(&task.changelog));
        let obstacles: Vec<_> = restoring().filter(affected).map(|task| obstacle(task, kind)).collect();
        if !obstacles.is_empty() {
            obstacles
        } else if error.action() == ErrorAction::Retry {
            tracing::warn!(reason, "restore delayed");
            self.not_before = shared.clock.elapsed() + BACKOFF;
            self.reader = None;
            Vec::new()
        } else {
            self.reader = None;
            restoring().map(|task| obstacle(task, ObstacleKind::Stop)).collect()
        }
    }

    /// Adds the records that were read to the committed buffers of their tasks.
    fn collect(&mut self, tasks: &mut [Task], shared: &Shared, obstacles: &mut Vec<Obstacle>) {
        let restoring = |at: &TopicPartition| {
            let mut tasks = tasks.iter();
            tasks.position(|task| task.changelog == *at && RestoreRange::of(task).is_some())
        };
        self.routes.clear();
        self.routes.extend(self.records.partitions().iter().map(restoring));
        let now = shared.clock.elapsed();
        for record in self.records.iter() {
            let Some(index) = self.routes.get(record.partition_index()).copied().flatten() else {
                continue;
            };
            let task = tasks.get_mut(index).expect("routes are indexes of tasks");
            let store = task.store.as_mut().expect("a restoring task has its store open");
            if store.next.is_none_or(|next| record.offset() < next) {
                continue;
            }
            let (committed, commit_record) = (&mut store.state.committed, &mut store.commit_record);
            let put = |key: &[u8], value: Option<&[u8]>| {
                committed.add_row(key.to_vec(), value.map(<[u8]>::to_vec), now);
            };
            if let Err(reason) = read_record(record.key(), record.value(), commit_record, put) {
                obstacles.push(Obstacle {
                    task: task.id.clone(),
                    kind: ObstacleKind::Stop,
                    reason: format!("{}@{}: {reason}", task.changelog, record.offset()),
                });
                self.routes
                    .iter_mut()
                    .filter(|route| **route == Some(index))
                    .for_each(|route| *route = None);
            }
            if let Phase::Recovering(recovery) = &mut task.phase {
                recovery.restored += 1;
            }
        }
    }

    /// Advances each task to the position of the reader and writes large batches to its store.
    fn store(&mut self, tasks: &mut [Task], shared: &Shared, obstacles: &mut Vec<Obstacle>) {
        let Some(reader) = &self.reader else { return };
        let batch_bytes = usize::try_from(shared.config.stores.memory_bytes / BATCH_SHARE).unwrap_or(usize::MAX);
        for task in tasks.iter_mut() {
            let failed = obstacles.iter().any(|obstacle| obstacle.task == task.id);
            let Some(range) = RestoreRange::of(task).filter(|_| !failed) else {
                continue;
            };
            let Some(position) = reader
                .position(&task.changelog)
                .filter(|position| *position > range.next)
            else {
                continue;
            };
            let origin = task.sub.origin(task.id.partition);
            let store = task.store.as_mut().expect("a restoring task has its store open");
            store.next = Some(position);
            if position >= range.end || store.state.committed.bytes() >= batch_bytes {
                if let Err(error) = store.load(&origin) {
                    obstacles.push(Obstacle {
                        task: task.id.clone(),
                        kind: ObstacleKind::Stop,
                        reason: chain(&error),
                    });
                    continue;
                }
                hit("streams.restore.batch");
            }
            let left = range.end.saturating_sub(position).max(0);
            shared.metrics.restore_left(&task.id, left);
        }
    }
}

/// Changelog offsets that a task has to read.
struct RestoreRange {
    next: Offset,
    end: Offset,
    /// Records read so far.
    records: u64,
}

impl RestoreRange {
    /// The range of a task; `None` if the task is not restoring.
    fn of(task: &Task) -> Option<RestoreRange> {
        let Phase::Recovering(recovery) = &task.phase else {
            return None;
        };
        let end = recovery.restoring_until()?;
        let next = task.store.as_ref()?.next?;
        (next < end).then_some(RestoreRange {
            next,
            end,
            records: recovery.restored,
        })
    }
}

fn report(tasks: &[Task]) {
    for task in tasks {
        if let Some(RestoreRange { next, end, records }) = RestoreRange::of(task) {
            tracing::info!(task = %task.id, next_offset = next, end, records, "restoring");
        }
    }
}
