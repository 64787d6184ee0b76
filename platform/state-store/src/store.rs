//! The traits that the engines implement.

use crate::batch::{Batch, Space};
use crate::error::Result;
use crate::key::KeyRange;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Direction of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys.
    Backward,
}

/// Visitor of a scan: receives each key and its value until it breaks.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Size of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes of caches and write buffers, as far as the engine reports them.
    pub memory_bytes: u64,
}

/// An open store. One thread writes while any number of threads read. A read never sees a part of a batch, but two
/// reads may see different states. Use a [`Store::snapshot`] for several reads of one state.
pub trait Store: Send + Sync {
    /// Reads a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Calls `visit` for each key of the range in order until it breaks. All rows belong to one state.
    fn scan(&self, space: Space, keys: KeyRange<'_>, direction: Direction, visit: Visit<'_>) -> Result<()>;

    /// Commits a batch. The batch is atomic over all keyspaces.
    fn commit(&self, batch: Batch) -> Result<()>;

    /// Writes many rows of one keyspace, each key once, in any order. Atomic like a batch, and cheaper for thousands of
    /// rows. It is ordered after earlier batches, but after a crash of the machine it may exist while earlier batches
    /// are lost.
    fn load(&self, space: Space, rows: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<()> {
        self.commit(Batch::of_rows(space, rows))
    }

    /// The current state, for long reads.
    fn snapshot(&self) -> Result<Box<dyn Snapshot>>;

    /// Makes all committed batches survive a crash of the machine. Correctness must not depend on it.
    fn persist(&self) -> Result<()>;

    /// Memory and disk usage of the store.
    fn stats(&self) -> Stats;
}

/// The state of a store at one moment. It keeps the store open.
pub trait Snapshot: Send {
    /// Reads a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// See [`Store::scan`].
    fn scan(&self, space: Space, keys: KeyRange<'_>, direction: Direction, visit: Visit<'_>) -> Result<()>;
}

/// A store that several threads share.
pub type SharedStore = Arc<dyn Store>;
