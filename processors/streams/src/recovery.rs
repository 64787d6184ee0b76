//! The one way back to the last commit: after a start, an assignment, an abort, a fence, an unknown outcome.
//!
//! The store is opened and checked; the *stable* committed offsets are read, then the changelog's raw end; the
//! changelog is read, read_committed, until the position has reached that end, which waits out a dead peer's open
//! transaction; then the commit_record is compared with the offsets. Where they differ, another owner may have committed in
//! between, so both are read once more, and only the same difference twice stops the task.
//!
//! Guarantees: a task that starts has exactly the committed state and the committed place in its inputs; nothing is
//! wiped, what cannot be used is set aside.
//! Never: a task that starts on state whose tombstones may be gone.

mod verdict;

pub(crate) use verdict::{Start, Verdict, decide};

use crate::checkpoint::{self, Found, MetaError};
use crate::commit_record::{FormatError, ways_out, ways_to_begin, ways_to_exchange};
use crate::plan::Sub;
use crate::task::{Task, TaskStore};
use crate::thread::Shared;
use crate::{FirstStart, ProcessingGuarantee, State};
use event_log::{ErrorAction, Millis, Offset, OffsetSpec, TopicPartition};
use failpoint::hit;
use service::chain;
use state_store::Batch;
use std::time::Duration;

/// The longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// How often a difference that stopped the task is looked at again: people may have mended it.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// A store that is set aside this often in one recovery would be so for ever.
const ASIDE_MAX: u32 = 3;

/// Time limits of a transaction after which offsets that are still not decided never will be: the coordinator ends
/// every transaction at its limit, but looks for those only every 10 s, as long as a limit is by default.
const LIMITS_UNTIL_FORGOTTEN: u32 = 4;

/// Committed offsets of the inputs, in their order.
type Offsets = Vec<Option<Offset>>;

#[derive(Debug, Clone, Default)]
enum Step {
    /// The store must be open and this log's.
    #[default]
    Open,
    /// The committed offsets are read first …
    Offsets,
    /// … then the changelog's end …
    End(Offsets),
    /// … and the changelog up to it.
    Restore {
        offsets: Offsets,
        end: Offset,
        seen: Millis,
    },
}

/// How far a task is on its way back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recovery {
    step: Step,
    /// The difference that was found the first time.
    before: Option<(Offsets, Option<crate::CommitRecord>)>,
    asides: u32,
    attempts: u32,
    not_before: Duration,
    /// Since when the offsets have been part of a transaction that is not decided.
    undecided: Option<Duration>,
    /// Whether the transaction's end was given up, so that offsets count as absent.
    forgotten: bool,
    /// Records read so far, for the report.
    pub restored: u64,
    /// Why it waits, for people.
    pub waits_for: Option<String>,
}

/// What follows from one step of a recovery.
pub(crate) enum Next {
    /// Another step can be taken at once.
    Again,
    /// The changelog must be read on, or a pause be over.
    Wait,
    /// The task can start at these places; `write_down` when some of them are not committed offsets yet.
    Start { places: Vec<Start>, write_down: bool },
    /// Only people can mend it.
    Stop(String),
}

impl Recovery {
    /// The changelog's end that must be reached, while the changelog is being read.
    pub(crate) fn restoring_until(&self) -> Option<Offset> {
        match self.step {
            Step::Restore { end, .. } => Some(end),
            _ => None,
        }
    }

    fn back_off(&mut self, now: Duration, reason: String) -> Next {
        let pause = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(10)).min(BACKOFF_MAX);
        self.attempts += 1;
        self.not_before = now + pause;
        if self.waits_for.as_ref() != Some(&reason) {
            tracing::warn!(reason, "recovery waits");
        }
        self.waits_for = Some(reason);
        Next::Wait
    }

    fn log_failed(&mut self, now: Duration, error: &event_log::Error) -> Next {
        match error.action() {
            ErrorAction::Retry => self.back_off(now, chain(error)),
            ErrorAction::DeadLetter | ErrorAction::Stop => Next::Stop(chain(error)),
        }
    }
}

/// Takes one step of a task's recovery.
pub(crate) fn advance(task: &mut Task, recovery: &mut Recovery, env: &Shared) -> Next {
    let now = env.clock.elapsed();
    if now < recovery.not_before {
        return Next::Wait;
    }
    let next = match recovery.step.clone() {
        Step::Open => open(task, recovery, env),
        Step::Offsets => offsets(task, recovery, env),
        Step::End(offsets) => end(task, recovery, env, offsets),
        Step::Restore { offsets, end, seen } => reached(task, recovery, env, offsets, end, seen),
    };
    if matches!(next, Next::Again) {
        recovery.attempts = 0;
        recovery.waits_for = None;
    }
    next
}

fn open(task: &mut Task, recovery: &mut Recovery, env: &Shared) -> Next {
    if task.live.is_none() {
        hit("runtime.recovery.open");
        task.live = env.warm().remove(&task.id);
        if let Some(live) = &task.live {
            tracing::info!(task = %task.id, next_offset = live.next, "goes on from its standby");
        }
    }
    if let Err(error) = task.flush() {
        return Next::Stop(chain(&error));
    }
    if let Some(live) = &mut task.live {
        // From here on the changelog is read into the store.
        live.state.settled.forget_flushed();
    }
    if task.live.is_none() {
        match open_live(&task.sub, task.id.partition, env) {
            Ok(live) => task.live = Some(live),
            Err(Unopened::Unusable(reason)) => return quarantine(task, recovery, env, &reason),
            Err(Unopened::Busy(reason)) => return recovery.back_off(env.clock.elapsed(), reason),
            Err(Unopened::Stop(reason)) => return Next::Stop(reason),
        }
    }
    recovery.step = Step::Offsets;
    Next::Again
}

/// Why a task's store was not opened.
pub(crate) enum Unopened {
    /// It is to be set aside.
    Unusable(String),
    /// Another thread or process still has it.
    Busy(String),
    /// Only people can mend it.
    Stop(String),
}

/// Opens the store of a task, and checks that it is the task's.
pub(crate) fn open_live(sub: &Sub, partition: i32, env: &Shared) -> Result<TaskStore, Unopened> {
    let store = env
        .stores
        .open(&sub.store_name(partition))
        .map_err(|error| match error {
            state_store::Error::Locked { .. } => Unopened::Busy(chain(&error)),
            state_store::Error::Corrupt { .. } => Unopened::Unusable(chain(&error)),
            _ => Unopened::Stop(chain(&error)),
        })?;
    let (next, as_of, commit_record) = match checkpoint::read(&*store) {
        Ok(Found::Fresh) => (None, env.clock.now(), None),
        Ok(Found::Filled(checkpoint, commit_record)) => {
            if let Some(reason) = sub.origin(partition).foreign(&checkpoint) {
                return Err(Unopened::Unusable(reason));
            }
            (Some(checkpoint.changelog.2), checkpoint.as_of, commit_record)
        }
        Err(MetaError::Format(error @ FormatError::Newer { .. })) => return Err(Unopened::Stop(error.to_string())),
        Err(error) => return Err(Unopened::Unusable(chain(&error))),
    };
    Ok(TaskStore {
        state: State::new(store, checkpoint::STATE),
        next,
        as_of,
        commit_record,
    })
}

/// Puts a store that cannot be used out of the way, closed, and begins with an empty one.
pub(crate) fn quarantine(task: &mut Task, recovery: &mut Recovery, env: &Shared, reason: &str) -> Next {
    task.live = None;
    env.serving().remove(&task.id);
    recovery.asides += 1;
    if recovery.asides > ASIDE_MAX {
        return Next::Stop(format!(
            "its store was set aside {ASIDE_MAX} times in one recovery, at last because: {reason}"
        ));
    }
    match env.stores.quarantine(&task.sub.store_name(task.id.partition)) {
        Ok(place) => {
            let place = place.map(|path| path.display().to_string());
            tracing::warn!(task = %task.id, reason, place, "store set aside; it is restored in full from its changelog");
            env.metrics.quarantine.increment(1);
            recovery.step = Step::Open;
            Next::Again
        }
        Err(error) => recovery.back_off(env.clock.elapsed(), chain(&error)),
    }
}

fn offsets(task: &mut Task, recovery: &mut Recovery, env: &Shared) -> Next {
    let committed = env.log.committed(&task.sub.application, &task.partitions());
    if !matches!(committed, Err(event_log::Error::Undecided { .. })) {
        recovery.undecided = None;
        recovery.forgotten = false;
    }
    match committed {
        Ok(committed) => {
            let offsets = task
                .inputs
                .iter()
                .map(|input| committed.get(&input.at).copied().flatten())
                .collect();
            hit("runtime.recovery.offsets");
            recovery.step = Step::End(offsets);
            Next::Again
        }
        Err(error @ event_log::Error::Undecided { .. }) => undecided(task, recovery, env, &error),
        Err(error) => recovery.log_failed(env.clock.elapsed(), &error),
    }
}

/// Offsets that stay undecided for longer than any transaction may last: the broker has lost the transaction's end, as a
/// lone one may that stops under load. They then count as absent, so that the commit_record is the truth; the changelog says
/// how the transaction ended, as it is read only up to where all is decided.
fn undecided(task: &mut Task, recovery: &mut Recovery, env: &Shared, error: &event_log::Error) -> Next {
    let now = env.clock.elapsed();
    let since = *recovery.undecided.get_or_insert(now);
    let limit = env.config.transaction_timeout.saturating_mul(LIMITS_UNTIL_FORGOTTEN);
    if now.saturating_sub(since) < limit {
        return recovery.log_failed(now, error);
    }
    recovery.forgotten = true;
    tracing::warn!(
        task = %task.id,
        group = %task.sub.application,
        "its offsets have been undecided for longer than a transaction lasts; the changelog's commit_record is taken instead"
    );
    recovery.step = Step::End(vec![None; task.inputs.len()]);
    Next::Again
}

fn end(task: &mut Task, recovery: &mut Recovery, env: &Shared, offsets: Offsets) -> Next {
    // The time is taken before the end: at this time nothing at or after the end had been written.
    let seen = env.clock.now();
    let end = match env.log.offset(&task.changelog, OffsetSpec::LogEnd) {
        Ok(end) => end,
        Err(error) => return recovery.log_failed(env.clock.elapsed(), &error),
    };
    hit("runtime.recovery.end");
    if let Some(reason) = too_old(task, env) {
        return quarantine(task, recovery, env, &reason);
    }
    let live = task.live.as_mut().expect("the store was opened in the first step");
    match live.next {
        Some(next) if next > end => {
            let reason = format!("it is at offset {next} of {}, which ends at {end}", task.changelog);
            return quarantine(task, recovery, env, &reason);
        }
        Some(_) => {}
        None => {
            // A full restore knows of everything that was written when it starts.
            live.as_of = env.clock.now();
            let start = match beginning(env, &task.changelog) {
                Ok(Ok(start)) => start,
                Ok(Err(reason)) => return Next::Stop(reason),
                Err(error) => return recovery.log_failed(env.clock.elapsed(), &error),
            };
            live.next = Some(start);
            // Rows go to the store before the checkpoint that counts them in. Without one before them, a store that was
            // left in between would be taken as empty whenever it is found again.
            let mut batch = Batch::default();
            let origin = task.sub.origin(task.id.partition);
            checkpoint::put_checkpoint(&mut batch, &origin.checkpoint(start, live.as_of));
            let begun = live.store().commit(batch).and_then(|()| live.store().persist());
            if let Err(error) = begun {
                return Next::Stop(chain(&error));
            }
        }
    }
    recovery.step = Step::Restore { offsets, end, seen };
    Next::Again
}

/// Where a restore in full begins, or why there can be none. A compacted topic keeps its beginning, whatever was
/// compacted away.
pub(crate) fn beginning(env: &Shared, changelog: &TopicPartition) -> event_log::Result<Result<Offset, String>> {
    let start = env.log.offset(changelog, OffsetSpec::Earliest)?;
    let reason = || {
        format!(
            "{changelog} begins at offset {start}: what was before has been deleted, so that only a part of the state \
             could be restored; put its store's directory back if there is a whole copy of it (one that was set aside is \
             kept beside it), or give the store another name to build its state anew"
        )
    };
    Ok(if start == 0 { Ok(start) } else { Err(reason()) })
}

fn reached(
    task: &mut Task,
    recovery: &mut Recovery,
    env: &Shared,
    offsets: Offsets,
    end: Offset,
    seen: Millis,
) -> Next {
    let next = task.live.as_ref().and_then(|live| live.next).unwrap_or_default();
    if next < end {
        return Next::Wait;
    }
    hit("runtime.recovery.reached");
    // It may have taken too long, or slept in between: then tombstones may be gone that were never read.
    if let Some(reason) = too_old(task, env) {
        return quarantine(task, recovery, env, &reason);
    }
    let live = task.live.as_mut().expect("the store was opened in the first step");
    live.as_of = live.as_of.max(seen);
    let mut batch = Batch::default();
    let origin = task.sub.origin(task.id.partition);
    checkpoint::put_checkpoint(&mut batch, &origin.checkpoint(next, live.as_of));
    if let Err(error) = live.store().commit(batch) {
        return Next::Stop(chain(&error));
    }
    compare(task, recovery, env, offsets)
}

fn compare(task: &Task, recovery: &mut Recovery, env: &Shared, offsets: Offsets) -> Next {
    let commit_record = task.live.as_ref().and_then(|live| live.commit_record.clone());
    if recovery.forgotten && commit_record.is_none() {
        return Next::Stop(format!(
            "its offsets are part of a transaction that is never decided, and {} holds no state to go by; end the \
             transaction with Kafka's kafka-transactions.sh",
            task.changelog
        ));
    }
    let inputs: Vec<_> = task.inputs.iter().map(|input| input.at.clone()).collect();
    let alone = env.config.guarantee == ProcessingGuarantee::AtLeastOnce
        || commit_record.as_ref().is_some_and(|commit_record| commit_record.alone);
    match decide(&inputs, &offsets, commit_record.as_ref(), alone) {
        Verdict::Start { places, warning } => {
            if let Some(warning) = warning {
                tracing::warn!(task = %task.id, warning, "offsets are absent");
            }
            let committed =
                |(place, offset): (&Start, &Option<Offset>)| offset.is_some_and(|offset| *place == Start::At(offset));
            let write_down = !places.iter().zip(&offsets).all(committed);
            Next::Start { places, write_down }
        }
        Verdict::Exchanged { text } => {
            let ways = ways_to_exchange(&task.sub.application, &task.sub.store, &task.id, &inputs);
            Next::Stop(format!("{text}; {ways}"))
        }
        Verdict::Differ { text } => {
            let pair = (offsets, commit_record);
            if recovery.before.as_ref() == Some(&pair) {
                let ways = if pair.1.is_some() {
                    ways_out(&task.sub.application, &task.sub.store, &task.id)
                } else {
                    ways_to_begin(&task.sub.application, &task.sub.store, &task.id, &inputs)
                };
                return Next::Stop(format!("{text}; {ways}"));
            }
            tracing::warn!(task = %task.id, text, "commit_record and offsets differ; both are read again");
            recovery.before = Some(pair);
            recovery.step = Step::Offsets;
            Next::Again
        }
    }
}

/// Why a task's store may have missed tombstones, if it may.
fn too_old(task: &Task, env: &Shared) -> Option<String> {
    missed_tombstones(task.live.as_ref()?, &task.sub, env.clock.now())
}

/// Why a store may have missed tombstones, if it may: they are kept only for so long.
pub(crate) fn missed_tombstones(live: &TaskStore, sub: &Sub, now: Millis) -> Option<String> {
    // Nothing was read into an empty store, so it missed nothing.
    live.next?;
    let keep = sub.delete_retention;
    let age = now.saturating_sub(live.as_of);
    (age > keep - margin(keep)).then(|| {
        format!(
            "it was last complete {age} ms ago, and {} keeps tombstones for {keep} ms only",
            sub.changelog
        )
    })
}

/// How much earlier than the broker may, a store is taken as too old: for clocks that differ and for slow reads.
fn margin(keep: Millis) -> Millis {
    const DAY: Millis = 24 * 60 * 60 * 1000;
    (keep / 4).min(DAY)
}

/// Resolves a place to an offset.
pub(crate) fn place(task: &Task, start: &Start, input: usize, env: &Shared) -> event_log::Result<Offset> {
    let Some(input) = task.inputs.get(input) else {
        return Ok(0);
    };
    match (start, task.sub.first_start) {
        (Start::At(offset), _) => Ok(*offset),
        (Start::First, FirstStart::Earliest) => env.log.offset(&input.at, OffsetSpec::Earliest),
        (Start::First, FirstStart::Latest) => env.log.offset(&input.at, OffsetSpec::LastStable),
    }
}
