//! Reads changelogs back into stores: all of a thread's restoring tasks at once, in bulk.
//!
//! What is read waits in memory, as committed rows do, and goes to the store in sorted pieces.
//!
//! Guarantees: a checkpoint counts in what the store has; a crash in the middle goes on from there.
//! Never: a change of a checkpoint's `as_of`; that moves only when the end is reached.

use crate::commit_record::{COMMIT_RECORD_KEY, CommitRecord, body};
use crate::state::RESERVED;
use crate::task::{Phase, Task};
use crate::thread::Shared;
use crate::timer::TIMER;
use event_log::{ErrorAction, Isolation, Offset, Reader, RecordBatch, StartFrom, TopicPartition};
use failpoint::hit;
use service::chain;
use std::time::Duration;

/// Bytes read at once.
const READ_BYTES: usize = 4 << 20;
/// Rows go to the store in pieces of this part of its memory: the larger, the less it has to merge.
const PIECE_SHARE: u64 = 4;
/// How often a long restore says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Pause after the log was out of reach.
const BACKOFF: Duration = Duration::from_millis(200);

/// The one changelog reader of a thread.
#[derive(Default)]
pub(crate) struct Restorer {
    reader: Option<Box<dyn Reader>>,
    assigned: Vec<TopicPartition>,
    records: RecordBatch,
    /// The task of each partition of the batch that was read last.
    routes: Vec<Option<usize>>,
    not_before: Duration,
    reported: Duration,
}

/// What a task's restore met that it cannot go on from.
pub(crate) enum Obstacle {
    /// Its checkpoint is no longer kept in the changelog.
    Gone { task: usize, reason: String },
    /// Only people can mend it.
    Stop { task: usize, reason: String },
}

impl Restorer {
    /// Reads on for the tasks that restore, waits at most `wait` for the first record, and returns how many records
    /// it put into stores. What a task cannot go on from is added to `obstacles`.
    pub(crate) fn turn(
        &mut self,
        tasks: &mut [Task],
        env: &Shared,
        wait: Duration,
        obstacles: &mut Vec<Obstacle>,
    ) -> usize {
        let now = env.clock.elapsed();
        if now < self.not_before {
            return 0;
        }
        match self.read(tasks, env, wait) {
            Ok(true) => {}
            Ok(false) => return 0,
            Err(error) => {
                self.failed(tasks, env, &error, obstacles);
                return 0;
            }
        }
        let before = obstacles.len();
        self.collect(tasks, env, obstacles);
        self.store(tasks, env, obstacles);
        if obstacles.len() > before {
            self.assigned.clear();
        }
        env.metrics
            .restored
            .increment(u64::try_from(self.records.len()).unwrap_or(u64::MAX));
        env.metrics
            .restored_bytes
            .increment(u64::try_from(self.records.byte_len()).unwrap_or(u64::MAX));
        if now.saturating_sub(self.reported) >= REPORT_EVERY {
            self.reported = now;
            report(tasks);
        }
        self.records.len()
    }

    /// Fills the batch; says whether there is anything to restore at all.
    fn read(&mut self, tasks: &[Task], env: &Shared, wait: Duration) -> event_log::Result<bool> {
        let wanted: Vec<(TopicPartition, StartFrom)> = tasks
            .iter()
            .filter_map(|task| target(task).map(|(next, _)| (task.changelog.clone(), StartFrom::Offset(next))))
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
            empty => empty.insert(env.log.reader(Isolation::ReadCommitted)?),
        };
        // A task may have begun anew, or committed since; only a reader that stands exactly where the stores do goes on.
        let stands = |(at, from): &(TopicPartition, StartFrom)| {
            reader
                .position(at)
                .is_some_and(|position| *from == StartFrom::Offset(position))
        };
        let same = wanted.iter().map(|(at, _)| at).eq(self.assigned.iter());
        if !(same && wanted.iter().all(stands)) {
            self.assigned.clear();
            reader.assign(&wanted)?;
            self.assigned.extend(wanted.into_iter().map(|(at, _)| at));
        }
        reader.poll(&mut self.records, READ_BYTES, wait)?;
        Ok(true)
    }

    fn failed(&mut self, tasks: &[Task], env: &Shared, error: &event_log::Error, obstacles: &mut Vec<Obstacle>) {
        self.assigned.clear();
        let reason = chain(error);
        if let event_log::Error::OutOfRange { at, .. } = error
            && let Some(task) = tasks.iter().position(|task| task.changelog == *at)
        {
            obstacles.push(Obstacle::Gone { task, reason });
        } else if error.action() == ErrorAction::Retry {
            tracing::warn!(reason, "restore waits");
            self.not_before = env.clock.elapsed() + BACKOFF;
            self.reader = None;
        } else {
            let stuck = tasks.iter().enumerate().filter(|(_, task)| target(task).is_some());
            obstacles.extend(stuck.map(|(task, _)| Obstacle::Stop {
                task,
                reason: reason.clone(),
            }));
        }
    }

    /// Gives the records that were read to their tasks.
    fn collect(&mut self, tasks: &mut [Task], env: &Shared, obstacles: &mut Vec<Obstacle>) {
        let task_of = |at: &TopicPartition| tasks.iter().position(|t| t.changelog == *at && target(t).is_some());
        self.routes.clear();
        self.routes.extend(self.records.partitions().iter().map(task_of));
        let now = env.clock.elapsed();
        for record in self.records.iter() {
            let Some(&Some(index)) = self.routes.get(record.partition_index()) else {
                continue;
            };
            let Some(task) = tasks.get_mut(index) else { continue };
            let Some(live) = task
                .live
                .as_mut()
                .filter(|live| live.next.is_some_and(|next| record.offset() >= next))
            else {
                continue;
            };
            let (settled, commit_record) = (&mut live.state.settled, &mut live.commit_record);
            let put = |key: &[u8], value: Option<&[u8]>| {
                settled.settle_one(key.to_vec(), value.map(<[u8]>::to_vec), now);
            };
            if let Err(reason) = take(record.key(), record.value(), commit_record, put) {
                let reason = format!("{}@{}: {reason}", task.changelog, record.offset());
                obstacles.push(Obstacle::Stop { task: index, reason });
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

    /// Moves each task's place to where the reader stands, and lets its store follow in pieces.
    fn store(&mut self, tasks: &mut [Task], env: &Shared, obstacles: &mut Vec<Obstacle>) {
        let Some(reader) = &self.reader else { return };
        let piece_bytes = usize::try_from(env.config.store_memory_bytes / PIECE_SHARE).unwrap_or(usize::MAX);
        for (index, task) in tasks.iter_mut().enumerate() {
            let stuck = obstacles
                .iter()
                .any(|o| matches!(o, Obstacle::Stop { task, .. } if *task == index));
            let (Some((next, end)), false) = (target(task), stuck) else {
                continue;
            };
            let Some(position) = reader.position(&task.changelog).filter(|position| *position > next) else {
                continue;
            };
            let origin = task.sub.origin(task.id.partition);
            let Some(live) = &mut task.live else { continue };
            live.next = Some(position);
            if position >= end || live.state.settled.bytes() >= piece_bytes {
                if let Err(error) = live.load(&origin) {
                    obstacles.push(Obstacle::Stop {
                        task: index,
                        reason: chain(&error),
                    });
                    continue;
                }
                hit("runtime.restore.batch");
            }
            if let Phase::Recovering(recovery) = &task.phase {
                let left = recovery
                    .restoring_until()
                    .map_or(0, |end| end.saturating_sub(position).max(0));
                env.metrics.restore_left(&task.id, left);
            }
        }
    }
}

/// Where a restoring task is in its changelog, and where it must get to; `None` when it does not restore.
fn target(task: &Task) -> Option<(Offset, Offset)> {
    let Phase::Recovering(recovery) = &task.phase else {
        return None;
    };
    let end = recovery.restoring_until()?;
    let next = task.live.as_ref()?.next?;
    (next < end).then_some((next, end))
}

/// Takes one changelog record: a row is put, a commit_record replaces the one before.
pub(crate) fn take(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    commit_record: &mut Option<CommitRecord>,
    put: impl FnOnce(&[u8], Option<&[u8]>),
) -> Result<(), String> {
    let Some(key) = key else { return Ok(()) };
    match value {
        Some(value) if key == COMMIT_RECORD_KEY => {
            *commit_record = Some(CommitRecord::read(value).map_err(|error| chain(&error))?);
        }
        _ if key.starts_with(RESERVED) && !key.starts_with(TIMER) => {}
        Some(value) => put(key, Some(body(value).map_err(|error| chain(&error))?)),
        None => put(key, None),
    }
    Ok(())
}

fn report(tasks: &[Task]) {
    for task in tasks {
        if let (Some((next, end)), Phase::Recovering(recovery)) = (target(task), &task.phase) {
            tracing::info!(task = %task.id, next_offset = next, end, records = recovery.restored, "restoring");
        }
    }
}
