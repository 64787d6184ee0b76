//! The open store of a task, with its buffers and checkpoint.

use crate::api::state::State;
use crate::task::checkpoint::{self, Origin, STATE};
use crate::task::commit_record::CommitRecord;
use event_log::{Millis, Offset};
use failpoint::hit;
use state_store::{Batch, SharedStore};

/// An open store, and up to which offset it contains the changelog.
pub(crate) struct TaskStore {
    pub state: State,
    /// Next offset of the changelog; `None` while the store is empty and no record was read.
    pub next: Option<Offset>,
    /// See [`checkpoint::Checkpoint::as_of`].
    pub as_of: Millis,
    /// Commit record of the last known commit.
    pub commit_record: Option<CommitRecord>,
}

impl TaskStore {
    /// The store on disk.
    pub(crate) fn disk(&self) -> &SharedStore {
        &self.state.store
    }

    /// Writes the committed buffer to the store: rows, commit record and checkpoint in one atomic batch, so that a crash
    /// leaves either the old or the new checkpoint with exactly its rows (C4).
    pub(crate) fn flush(&mut self, origin: &Origin) -> state_store::Result<()> {
        let Some(next) = self.next.filter(|_| self.state.committed.is_dirty()) else {
            return Ok(());
        };
        let mut batch = Batch::default();
        self.state.committed.write_into(&mut batch, STATE);
        self.put_meta(&mut batch, origin, next);
        self.disk().commit(batch)?;
        hit("streams.flush");
        self.state.committed.mark_flushed();
        Ok(())
    }

    /// Writes restored rows to the store in bulk, then commit record and checkpoint. After a crash in between, the
    /// store has rows that the checkpoint does not include; the restore writes them again.
    pub(crate) fn load(&mut self, origin: &Origin) -> state_store::Result<()> {
        let Some(next) = self.next else { return Ok(()) };
        let rows = self.state.committed.take_rows();
        self.disk().load(STATE, rows)?;
        let mut batch = Batch::default();
        self.put_meta(&mut batch, origin, next);
        self.disk().commit(batch)
    }

    fn put_meta(&self, batch: &mut Batch, origin: &Origin, next: Offset) {
        if let Some(commit_record) = &self.commit_record {
            checkpoint::put_commit_record(batch, &commit_record.encode());
        }
        checkpoint::put_checkpoint(batch, &origin.checkpoint(next, self.as_of));
    }
}
