//! Batches of writes, and the check of their keys.

use crate::error::{Error, Result};
use crate::key::takes_key;

/// A keyspace of a store: an index into [`crate::Options::spaces`]. The same key in two keyspaces is two rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space(pub u8);

/// Writes that are committed together, in order: the last write of a key wins.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    writes: Vec<(Space, Vec<u8>, Option<Vec<u8>>)>,
    bytes: usize,
}

impl Batch {
    /// A batch of the rows of one keyspace; a row without a value deletes its key.
    pub(crate) fn of_rows(space: Space, rows: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Self {
        let mut batch = Self::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.put(space, key, value),
                None => batch.delete(space, key),
            }
        }
        batch
    }

    /// Writes a value.
    pub fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.writes.push((space, key, Some(value)));
    }

    /// Deletes a key, which may be absent.
    pub fn delete(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        let key = key.into();
        self.bytes += key.len();
        self.writes.push((space, key, None));
    }

    /// Number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether it contains no write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Bytes of keys and values.
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// The writes in order; a write without a value deletes its key.
    pub fn into_writes(self) -> Vec<(Space, Vec<u8>, Option<Vec<u8>>)> {
        self.writes
    }

    /// Rejects keys that one of the engines cannot store. Every engine rejects them, so that a program behaves the same
    /// with each engine.
    pub(crate) fn check_keys(&self) -> Result<()> {
        check_keys(self.writes.iter().map(|(_, key, _)| key.as_slice()))
    }
}

/// Like [`Batch::check_keys`], for the keys of rows.
pub(crate) fn check_keys<'k>(mut keys: impl Iterator<Item = &'k [u8]>) -> Result<()> {
    let invalid = keys.find(|key| !takes_key(key));
    invalid.map_or(Ok(()), |key| Err(Error::KeyLength { bytes: key.len() }))
}
