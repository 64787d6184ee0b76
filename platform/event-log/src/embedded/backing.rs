//! The storage of the embedded log: ordered keys in two keyspaces, with atomic batches.
//!
//! A batch is atomic over both keyspaces. Once `commit` has returned, it survives the end of the process, and if it was
//! synced also a crash of the host. A scan sees all batches that were committed before it started and nothing of later
//! ones. Tests inject faults here (`faulty`).

mod disk;
#[cfg(test)]
mod faulty;
mod memory;

pub(super) use disk::DiskBacking;
#[cfg(test)]
pub(super) use faulty::Faulty;
pub(super) use memory::MemoryBacking;

use super::format::PartId;
use crate::{Offset, Result};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

/// A keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// Blocks of records.
    Records,
    /// All other entries.
    Meta,
}

/// A write: the new value of a key, or `None` to remove it.
#[derive(Clone)]
pub(super) struct Write {
    pub space: Space,
    pub key: Vec<u8>,
    pub value: Option<Bytes>,
}

/// Writes of one atomic batch. The last write of a key wins.
#[derive(Default, Clone)]
pub(super) struct Writes {
    all: Vec<Write>,
    /// Whether the batch is accepted while the free space is below the reserve. Set for batches that lead to free
    /// space, or that are needed to open the log.
    uses_reserve: bool,
}

impl Writes {
    pub fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        self.all.push(Write {
            space,
            key: key.into(),
            value: Some(value.into()),
        });
    }

    pub fn remove(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        self.all.push(Write {
            space,
            key: key.into(),
            value: None,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    fn all(&self) -> &[Write] {
        &self.all
    }

    /// Allows the batch to use the reserved space.
    pub fn use_reserve(&mut self) {
        self.uses_reserve = true;
    }

    fn byte_len(&self) -> u64 {
        let bytes = |write: &Write| write.key.len() + write.value.as_ref().map_or(0, Bytes::len);
        u64::try_from(self.all.iter().map(bytes).sum::<usize>()).unwrap_or(u64::MAX)
    }
}

/// Called for each key in order.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[u8], Bytes) -> ControlFlow<()>;

/// Durability of a batch when `commit` has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persist {
    /// The batch survives the end of the process.
    Buffer,
    /// The batch also survives a crash of the host.
    Sync,
}

/// What was cut from a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    pub file: PathBuf,
    /// Length of the journal after the cut.
    pub at: u64,
    /// Bytes after it, without the preallocated zeros.
    pub bytes: u64,
    /// Whether the bytes are the beginning of a batch during whose write the process died. No batch follows, so no
    /// acknowledged batch is missing.
    pub is_unfinished_write: bool,
    /// Copy of the corrupt journal; `None` if no copy was kept.
    pub aside: Option<PathBuf>,
    /// Offsets of the records that could be read in the bytes that were cut.
    pub records: BTreeMap<PartId, Range<Offset>>,
}

/// State of the storage when it was opened.
#[derive(Debug, Clone, Default)]
pub(super) struct Recovered {
    /// Why acknowledged batches may be missing.
    pub lost: Option<&'static str>,
    /// What was cut from a journal.
    pub cut: Option<Cut>,
}

/// Ordered keys with atomic batches.
pub(super) trait Backing: Send + Sync {
    /// Commits all writes or none. After an error the outcome is unknown, except after
    /// [`crate::Error::StorageUnavailable`], when nothing was written.
    fn commit(&self, writes: &Writes, persist: Persist) -> Result<()>;

    /// Syncs all committed batches.
    fn sync(&self) -> Result<()>;

    /// Returns the value of a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>>;

    /// Visits the keys in `from..to` in ascending order until the visitor breaks. The scan must see one snapshot: while
    /// a scan runs, a merge may move records into a block that the scan has already passed. The scan must still find
    /// those records in their old blocks.
    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()>;

    /// Returns the greatest key in `from..=to` with its value.
    fn last(&self, space: Space, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>>;

    /// Returns the state of the storage when it was opened.
    fn recovered(&self) -> Recovered {
        Recovered::default()
    }

    /// Begins the session. Called once the log is loaded and, if batches were lost, has a new epoch. The next opening
    /// compares the store with this session.
    fn begin_session(&self) -> Result<()> {
        Ok(())
    }

    /// Fails while batches are not accepted.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl dyn Backing + '_ {
    /// Returns whether the store contains these writes. No other writer may be active.
    pub fn holds(&self, writes: &Writes) -> Result<bool> {
        let mut last: BTreeMap<(bool, &[u8]), &Write> = BTreeMap::new();
        for write in &writes.all {
            last.insert((write.space == Space::Meta, &write.key), write);
        }
        for write in last.into_values() {
            if self.get(write.space, &write.key)? != write.value {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Visits the keys with a prefix.
    pub fn prefix(&self, space: Space, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        self.scan(space, prefix, &after(prefix), visit)
    }
}

/// Returns the first key after all keys with this prefix. No prefix in this store consists only of `0xff` bytes.
pub(super) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}
