//! The storage of the embedded log: ordered keys in two keyspaces, with atomic batches.
//!
//! A batch is atomic over both keyspaces and survives the end of the process once `commit` has returned. A scan sees
//! all batches that were committed before it started and none that was committed later. Tests inject faults here
//! (`faulty`).

mod disk;
#[cfg(test)]
mod faulty;
mod memory;

pub(super) use disk::DiskBacking;
#[cfg(test)]
pub(super) use faulty::Faulty;
pub(super) use memory::MemoryBacking;

use crate::Result;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

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
pub(super) struct Writes(Vec<Write>);

impl Writes {
    pub fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Bytes>) {
        self.0.push(Write {
            space,
            key: key.into(),
            value: Some(value.into()),
        });
    }

    pub fn remove(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        self.0.push(Write {
            space,
            key: key.into(),
            value: None,
        });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Called for each key in order.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[u8], Bytes) -> ControlFlow<()>;

/// Ordered keys with atomic batches.
pub(super) trait Backing: Send + Sync {
    /// Commits all writes or none. After an error, the writes may or may not have been committed.
    fn commit(&self, writes: &Writes) -> Result<()>;

    /// Returns the value of a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>>;

    /// Visits the keys in `from..to` in ascending order until the visitor breaks. The scan must see one snapshot: while
    /// a scan runs, a merge may move records into a block that the scan has already passed. The scan must still find
    /// those records in their old blocks.
    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()>;

    /// Returns the greatest key in `from..=to` with its value.
    fn last(&self, space: Space, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>>;
}

impl dyn Backing + '_ {
    /// Returns whether the store contains these writes. No other writer may be active.
    pub fn holds(&self, writes: &Writes) -> Result<bool> {
        let mut last: BTreeMap<(bool, &[u8]), &Write> = BTreeMap::new();
        for write in &writes.0 {
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
