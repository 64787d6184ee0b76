//! Opens the store of a task and checks that it can be used.

use crate::api::error::FormatError;
use crate::api::state::State;
use crate::plan::Sub;
use crate::shared::Shared;
use crate::task::checkpoint::{self, CheckpointError, Origin, StoreContent};
use crate::task::task_store::TaskStore;
use event_log::{Millis, Offset, OffsetSpec, TopicPartition};
use service::chain;
use state_store::Batch;

/// Why the store of a task was not opened.
pub(crate) enum OpenError {
    /// The store must be quarantined.
    Unusable(String),
    /// Another thread or process still has it open.
    Locked(String),
    /// An operator must act.
    Stop(String),
}

/// Opens the store of a task and checks that it was filled from this task's changelog (C11).
pub(crate) fn open_store(sub: &Sub, partition: i32, shared: &Shared) -> Result<TaskStore, OpenError> {
    let opened = shared.stores.open(&sub.store_name(partition));
    let store = opened.map_err(|error| match error {
        state_store::Error::Locked { .. } => OpenError::Locked(chain(&error)),
        state_store::Error::Corrupt { .. } => OpenError::Unusable(chain(&error)),
        _ => OpenError::Stop(chain(&error)),
    })?;
    let (next, as_of, commit_record) = match checkpoint::read(&*store) {
        Ok(StoreContent::Empty) => (None, shared.clock.now(), None),
        Ok(StoreContent::UpTo(checkpoint, commit_record)) => {
            if let Some(reason) = sub.origin(partition).mismatch(&checkpoint) {
                return Err(OpenError::Unusable(reason));
            }
            (Some(checkpoint.changelog.2), checkpoint.as_of, commit_record)
        }
        // A store of a newer format is not corrupt; the newer program can still use it.
        Err(CheckpointError::Format(error @ FormatError::Newer { .. })) => {
            return Err(OpenError::Stop(error.to_string()));
        }
        Err(error) => return Err(OpenError::Unusable(chain(&error))),
    };
    Ok(TaskStore {
        state: State::new(store, checkpoint::STATE),
        next,
        as_of,
        commit_record,
    })
}

/// Offset at which a full restore starts, or why a full restore is impossible. Compaction never changes the first
/// offset of a topic. So a first offset other than 0 means that records were deleted, and a restore would be incomplete
/// (C11).
pub(crate) fn full_restore_start(
    shared: &Shared,
    changelog: &TopicPartition,
) -> event_log::Result<Result<Offset, String>> {
    let start = shared.log.offset(changelog, OffsetSpec::Earliest)?;
    let reason = || {
        format!(
            "{changelog} starts at offset {start}: earlier records were deleted, so only a part of the state can be \
             restored; put back the store's directory if there is a complete copy (a quarantined store is kept beside it), \
             or rename the store to rebuild its state"
        )
    };
    Ok(if start == 0 { Ok(start) } else { Err(reason()) })
}

/// Writes the first checkpoint of a full restore, durably. Restored rows are written before the checkpoint that includes
/// them. Without this first checkpoint, a store whose restore is interrupted would have rows but no checkpoint (C10, C11).
pub(crate) fn begin_full_restore(
    store: &mut TaskStore,
    origin: &Origin,
    start: Offset,
    as_of: Millis,
) -> state_store::Result<()> {
    let mut batch = Batch::default();
    checkpoint::put_checkpoint(&mut batch, &origin.checkpoint(start, as_of));
    (store.as_of, store.next) = (as_of, Some(start));
    store.disk().commit(batch)?;
    store.disk().persist()
}

/// Why a store may have missed tombstones (C10); `None` if it cannot have missed any.
pub(crate) fn missed_tombstones(store: &TaskStore, sub: &Sub, now: Millis) -> Option<String> {
    // An empty store has no rows whose tombstones it could have missed.
    store.next?;
    let retention = sub.delete_retention;
    let age = now.saturating_sub(store.as_of);
    (age > retention - age_margin(retention)).then(|| {
        format!(
            "the store was last up to date {age} ms ago, but topic {} keeps tombstones for only {retention} ms, so the store may contain deleted rows",
            sub.changelog
        )
    })
}

/// A store counts as too old this long before the broker may delete tombstones, to allow for clock differences and slow
/// reads.
fn age_margin(retention: Millis) -> Millis {
    const DAY: Millis = 24 * 60 * 60 * 1000;
    (retention / 4).min(DAY)
}
