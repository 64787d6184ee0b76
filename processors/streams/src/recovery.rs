//! Recovery of a task to its last commit: the only procedure that does this after a start, an assignment, an abort,
//! fencing, or an unknown outcome.
//!
//! [`advance`] opens and checks the store, reads the *stable* committed offsets, looks up the *log end* of the changelog, waits
//! until the changelog is read `read_committed` up to that end, and compares commit record and offsets. Of these steps, only
//! reading the changelog is done elsewhere, in [`restore`], for all tasks of a thread at once.
//!
//! A task starts with exactly the committed state and positions (invariants C8 and C9). A store that may have missed
//! tombstones is never used (C10), and a store that cannot be used is quarantined (C11).

mod open;
pub(crate) mod progress;
mod remedies;
pub(crate) mod restore;
pub(crate) mod standby;
pub(crate) mod verdict;

use crate::api::application::{FirstStart, ProcessingGuarantee};
use crate::shared::Shared;
use crate::task::checkpoint;
use crate::task::{Input, Task};
use event_log::{ErrorAction, Offset, OffsetSpec, TopicId};
use failpoint::hit;
use open::{OpenError, begin_full_restore, full_restore_start, missed_tombstones, open_store};
use progress::{Difference, Next, Offsets, Recovery, RestoreTarget, StartPlan, Step};
pub(crate) use remedies::{CommandTarget, recreated_input};
use service::chain;
use state_store::Batch;
use std::time::Duration;
use verdict::{Start, Verdict, decide};

/// After this number of quarantines in one recovery the task stops, because the store would probably be quarantined
/// forever.
const QUARANTINES_MAX: u32 = 3;

/// Undecided offsets count as absent after this number of transaction timeouts. The coordinator aborts a transaction
/// after its timeout, but looks for expired transactions only every 10 s, which is as long as the default timeout.
const TIMEOUTS_UNTIL_IGNORED: u32 = 4;

/// Performs one step of a task's recovery.
pub(crate) fn advance(task: &mut Task, recovery: &mut Recovery, shared: &Shared) -> Next {
    let now = shared.clock.elapsed();
    if now < recovery.not_before {
        return Next::Wait;
    }
    let next = match recovery.step.clone() {
        Step::Open => open(task, recovery, shared),
        Step::Offsets => offsets(task, recovery, shared),
        Step::End(offsets) => end(task, recovery, shared, offsets),
        Step::Restore(target) => reached(task, recovery, shared, target),
    };
    if matches!(next, Next::Continue) {
        recovery.backoff.reset();
        recovery.waits_for = None;
    }
    next
}

fn back_off(recovery: &mut Recovery, now: Duration, reason: String) -> Next {
    recovery.not_before = now + recovery.backoff.next_delay();
    if recovery.waits_for.as_ref() != Some(&reason) {
        tracing::warn!(reason, "recovery delayed");
    }
    recovery.waits_for = Some(reason);
    Next::BackOff
}

fn log_failed(recovery: &mut Recovery, now: Duration, error: &event_log::Error) -> Next {
    match error.action() {
        ErrorAction::Retry => back_off(recovery, now, chain(error)),
        ErrorAction::DeadLetter | ErrorAction::Stop => Next::Stop(chain(error)),
    }
}

fn open(task: &mut Task, recovery: &mut Recovery, shared: &Shared) -> Next {
    if task.store.is_none() {
        hit("streams.recovery.open");
        task.store = shared.standbys().remove(&task.id);
        if let Some(store) = &task.store {
            tracing::info!(task = %task.id, next_offset = store.next, "continuing from standby");
        }
    }
    if let Err(error) = task.flush() {
        return Next::Stop(chain(&error));
    }
    if let Some(store) = &mut task.store {
        // From here on restored rows are written directly to the store, so rows of the last flush in memory could hide
        // newer rows.
        store.state.committed.forget_flushed();
    } else {
        match open_store(&task.sub, task.id.partition, shared) {
            Ok(store) => task.store = Some(store),
            Err(OpenError::Unusable(reason)) => return quarantine(task, recovery, shared, &reason),
            Err(OpenError::Locked(reason)) => return back_off(recovery, shared.clock.elapsed(), reason),
            Err(OpenError::Stop(reason)) => return Next::Stop(reason),
        }
    }
    recovery.step = Step::Offsets;
    Next::Continue
}

/// Closes a store that cannot be used, moves it to another directory (C11), and starts the recovery again with an empty
/// store.
pub(crate) fn quarantine(task: &mut Task, recovery: &mut Recovery, shared: &Shared, reason: &str) -> Next {
    task.store = None;
    shared.serving().remove(&task.id);
    // Also if the attempt fails, for example because a query still reads a snapshot of the store.
    recovery.step = Step::Open;
    if recovery.quarantines >= QUARANTINES_MAX {
        return Next::Stop(format!(
            "store was quarantined {QUARANTINES_MAX} times in one recovery; check the disk. The last reason: {reason}"
        ));
    }
    match shared.stores.quarantine(&task.sub.store_name(task.id.partition)) {
        Ok(path) => {
            let path = path.map(|path| path.display().to_string());
            tracing::warn!(task = %task.id, reason, path, "store quarantined; restoring in full from the changelog");
            shared.metrics.recovery.quarantines.increment(1);
            recovery.quarantines += 1;
            Next::Continue
        }
        Err(error) => back_off(recovery, shared.clock.elapsed(), chain(&error)),
    }
}

/// Reads the committed offsets of the inputs. They are read *before* the log end of the changelog is looked up: the
/// changelog records of a transaction are in the log before its offsets are visible, so a log end that is looked up
/// later is after every record that belongs to these offsets.
fn offsets(task: &mut Task, recovery: &mut Recovery, shared: &Shared) -> Next {
    if task.has_failed_input()
        && let Err(next) = check_inputs(task, recovery, shared)
    {
        return next;
    }
    let committed = shared.log.committed(&task.sub.application, &task.partitions());
    if !matches!(committed, Err(event_log::Error::Undecided { .. })) {
        recovery.undecided_since = None;
        recovery.offsets_ignored = false;
    }
    match committed {
        Ok(committed) => {
            let offset = |input: &Input| committed.get(&input.at).copied().flatten();
            let offsets = task.inputs.iter().map(offset).collect();
            hit("streams.recovery.offsets");
            recovery.step = Step::End(offsets);
            Next::Continue
        }
        Err(error @ event_log::Error::Undecided { .. }) => undecided(task, recovery, shared, &error),
        Err(error) => log_failed(recovery, shared.clock.elapsed(), &error),
    }
}

/// Checks that the inputs exist and were not created again. The ids of the inputs are fixed when the process starts, because
/// processors derive names from them.
fn check_inputs(task: &Task, recovery: &mut Recovery, shared: &Shared) -> Result<(), Next> {
    for input in &task.sub.inputs {
        let info = shared.log.describe(&input.name);
        match info.map_err(|error| log_failed(recovery, shared.clock.elapsed(), &error))? {
            Some(info) if info.id == input.id => {}
            Some(_) => return Err(Next::Stop(recreated_input(&input.name))),
            None => {
                let topic = input.name.to_string();
                return Err(Next::Stop(chain(&event_log::Error::UnknownTopic { topic })));
            }
        }
    }
    Ok(())
}

/// Handles offsets that are part of an undecided transaction. If they are undecided for several transaction timeouts,
/// the commit or abort marker of that transaction was lost, which can happen on a single broker that stops under load
/// (ADR 5). The offsets then count as absent, and the commit record decides: the changelog is read only up to the first
/// undecided transaction.
fn undecided(task: &mut Task, recovery: &mut Recovery, shared: &Shared, error: &event_log::Error) -> Next {
    let now = shared.clock.elapsed();
    let since = *recovery.undecided_since.get_or_insert(now);
    let limit = shared
        .config
        .commit
        .transaction_timeout
        .saturating_mul(TIMEOUTS_UNTIL_IGNORED);
    if now.saturating_sub(since) < limit {
        return log_failed(recovery, now, error);
    }
    recovery.offsets_ignored = true;
    tracing::warn!(
        task = %task.id,
        group = %task.sub.application,
        "committed offsets undecided for longer than any transaction lasts; using the commit record instead"
    );
    recovery.step = Step::End(vec![None; task.inputs.len()]);
    Next::Continue
}

fn end(task: &mut Task, recovery: &mut Recovery, shared: &Shared, offsets: Offsets) -> Next {
    // The time is read before the log end is looked up, so that nothing at or after the log end had been written at
    // that time (C10).
    let as_of = shared.clock.now();
    // The log end and not the last stable offset is used: an undecided transaction of a previous process holds the last
    // stable offset back, and a reader that stopped there would miss that transaction if it commits later (C8).
    let end = match shared.log.offset(&task.changelog, OffsetSpec::LogEnd) {
        Ok(end) => end,
        Err(error) => return log_failed(recovery, shared.clock.elapsed(), &error),
    };
    hit("streams.recovery.end");
    if let Some(reason) = too_old(task, shared) {
        return quarantine(task, recovery, shared, &reason);
    }
    match task.store_mut().next {
        Some(next) if next > end => {
            let reason = format!(
                "the store is at offset {next} of {}, which ends at {end}",
                task.changelog
            );
            return quarantine(task, recovery, shared, &reason);
        }
        Some(_) => {}
        None => {
            if let Err(next) = start_full_restore(task, recovery, shared) {
                return next;
            }
        }
    }
    recovery.step = Step::Restore(RestoreTarget { offsets, end, as_of });
    Next::Continue
}

/// Writes the first checkpoint of a full restore.
fn start_full_restore(task: &mut Task, recovery: &mut Recovery, shared: &Shared) -> Result<(), Next> {
    // A full restore reads every tombstone that exists when the restore starts.
    let as_of = shared.clock.now();
    let start = match full_restore_start(shared, &task.changelog) {
        Ok(Ok(start)) => start,
        Ok(Err(reason)) => return Err(Next::Stop(reason)),
        Err(error) => return Err(log_failed(recovery, shared.clock.elapsed(), &error)),
    };
    let origin = task.sub.origin(task.id.partition);
    begin_full_restore(task.store_mut(), &origin, start, as_of).map_err(|error| Next::Stop(chain(&error)))
}

fn reached(task: &mut Task, recovery: &mut Recovery, shared: &Shared, target: RestoreTarget) -> Next {
    let next = task.store_mut().next.unwrap_or_default();
    if next < target.end {
        return Next::Wait;
    }
    hit("streams.recovery.reached");
    // The reading may have been slow, or the machine suspended, so that tombstones were deleted before they were read
    // (C10).
    if let Some(reason) = too_old(task, shared) {
        return quarantine(task, recovery, shared, &reason);
    }
    let origin = task.sub.origin(task.id.partition);
    let store = task.store_mut();
    store.as_of = store.as_of.max(target.as_of);
    let mut batch = Batch::default();
    checkpoint::put_checkpoint(&mut batch, &origin.checkpoint(next, store.as_of));
    if let Err(error) = store.disk().commit(batch) {
        return Next::Stop(chain(&error));
    }
    compare(task, recovery, shared, target.offsets)
}

/// Compares commit record and committed offsets (C9).
fn compare(task: &Task, recovery: &mut Recovery, shared: &Shared, offsets: Offsets) -> Next {
    let commit_record = task.store.as_ref().and_then(|store| store.commit_record.clone());
    if recovery.offsets_ignored && commit_record.is_none() {
        return Next::Stop(format!(
            "its committed offsets are part of a transaction that is never decided, and {} contains no state; end the \
             transaction with Kafka's kafka-transactions.sh",
            task.changelog
        ));
    }
    let inputs = task.partitions();
    // The log deletes committed offsets together with a topic, so an input may have been created again since this process
    // looked it up.
    let lacks_offset = commit_record.as_ref().is_some_and(|commit_record| {
        let mut pairs = inputs.iter().zip(&offsets);
        pairs.any(|(input, offset)| offset.is_none() && commit_record.next_offset(input).is_some())
    });
    if lacks_offset && let Err(next) = check_inputs(task, recovery, shared) {
        return next;
    }
    let target = CommandTarget {
        sub: &task.sub,
        partition: task.id.partition,
        inputs: &inputs,
    };
    let transactional = shared.config.commit.guarantee == ProcessingGuarantee::ExactlyOnce
        && !commit_record
            .as_ref()
            .is_some_and(|commit_record| commit_record.at_least_once);
    let ids: Vec<TopicId> = task.sub.inputs.iter().map(|input| input.id).collect();
    match decide(&inputs, &ids, &offsets, commit_record.as_ref(), transactional) {
        Verdict::Start { starts, warning } => {
            if let Some(warning) = warning {
                tracing::warn!(task = %task.id, warning, "task starts without committed offsets");
            }
            let pairs = || starts.iter().zip(&offsets);
            let committed = pairs().all(|(start, offset)| offset.is_some_and(|offset| *start == Start::At(offset)));
            Next::Start(StartPlan {
                starts,
                commit_first: !committed,
            })
        }
        Verdict::InputsReplaced { text } => Next::Stop(format!("{text}; {}", target.resolve_replaced_inputs())),
        Verdict::InputRecreated { text } => Next::Stop(format!("{text}; {}", target.resolve_recreated_input())),
        Verdict::Differ { text } => {
            let difference = Difference { offsets, commit_record };
            if recovery.difference.as_ref() == Some(&difference) {
                let remedy = match &difference.commit_record {
                    Some(_) => target.resolve_difference(),
                    None => target.resolve_missing_state(),
                };
                return Next::Stop(format!("{text}; {remedy}"));
            }
            // Another owner may have committed between the two reads, so only a difference that is found twice counts.
            tracing::warn!(task = %task.id, text, "commit record and offsets differ; reading both again");
            recovery.difference = Some(difference);
            recovery.step = Step::Offsets;
            Next::Continue
        }
    }
}

/// Why a task's store may have missed tombstones; `None` if it cannot have missed any.
fn too_old(task: &Task, shared: &Shared) -> Option<String> {
    missed_tombstones(task.store.as_ref()?, &task.sub, shared.clock.now())
}

/// Returns the offset at which an input starts.
pub(crate) fn start_offset(
    first_start: FirstStart,
    input: &Input,
    start: Start,
    shared: &Shared,
) -> event_log::Result<Offset> {
    match (start, first_start) {
        (Start::At(offset), _) => Ok(offset),
        (Start::Earliest, _) | (Start::Declared, FirstStart::Earliest) => {
            shared.log.offset(&input.at, OffsetSpec::Earliest)
        }
        (Start::Declared, FirstStart::Latest) => shared.log.offset(&input.at, OffsetSpec::LastStable),
    }
}
