//! Storage in a directory, with fjall.
//!
//! A batch has been passed to the operating system when `commit` returns, so it survives `kill -9` of the process. It
//! is not synced, so a crash of the host can lose it. Only one process can open the directory at a time.

use super::{Backing, Space, Visit, Writes};
use crate::{Error, Result};
use bytes::Bytes;
use fjall::config::{FilterPolicy, PartitioningPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use std::path::Path;

/// Blocks are large, few, and read in order.
const RECORDS_MEMTABLE_BYTES: u64 = 24 * 1024 * 1024;
const META_MEMTABLE_BYTES: u64 = 8 * 1024 * 1024;
/// Maximum size of the journal, which the next start replays: the minimum that fjall accepts.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A fjall database with one fjall keyspace for each keyspace of the log.
pub(in crate::embedded) struct DiskBacking {
    db: Database,
    records: Keyspace,
    meta: Keyspace,
}

fn failed(attempted: &'static str) -> impl FnOnce(fjall::Error) -> Error {
    move |source| Error::Storage {
        attempted,
        source: Box::new(source),
    }
}

impl DiskBacking {
    /// Opens or creates the directory.
    ///
    /// # Errors
    /// [`Error::Refused`] if another process has opened it.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self> {
        let opened = Database::builder(dir)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .journal_compression(CompressionType::None)
            .open();
        let db = match opened {
            Ok(db) => db,
            Err(fjall::Error::Locked) => {
                return Err(Error::Refused {
                    attempted: format!("open the embedded log in {}", dir.display()),
                    reason: "another process has opened it; stop that process or choose another directory".to_owned(),
                });
            }
            Err(other) => return Err(failed("open the directory")(other)),
        };
        // An existing keyspace keeps the options that it was created with.
        //
        // By default fjall stores the index of a table in one block of up to a megabyte. In a log of many small batches
        // the indexes exceed the block cache, and each lookup of a position reads a whole index: 115 kB per fetch from
        // 4 GB of 300-byte batches, against 12 kB with partitioned indexes of about 4 kB. Tables of the first level are
        // small, so their indexes are not partitioned and remain in the cache.
        let options = || {
            KeyspaceCreateOptions::default()
                .filter_policy(FilterPolicy::disabled())
                .index_block_partitioning_policy(PartitioningPolicy::all(true))
        };
        let records = db
            .keyspace("records", || options().max_memtable_size(RECORDS_MEMTABLE_BYTES))
            .map_err(failed("open the records"))?;
        let meta = db
            .keyspace("meta", || options().max_memtable_size(META_MEMTABLE_BYTES))
            .map_err(failed("open the metadata"))?;
        Ok(DiskBacking { db, records, meta })
    }

    fn space(&self, space: Space) -> &Keyspace {
        match space {
            Space::Records => &self.records,
            Space::Meta => &self.meta,
        }
    }
}

impl Backing for DiskBacking {
    fn commit(&self, writes: &Writes) -> Result<()> {
        let mut batch = self.db.batch().durability(Some(PersistMode::Buffer));
        for write in &writes.0 {
            let key = write.key.as_slice();
            match &write.value {
                Some(value) => batch.insert(self.space(write.space), key, value.clone()),
                None => batch.remove(self.space(write.space), key),
            }
        }
        batch.commit().map_err(failed("write a batch"))
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        let found = self.space(space).get(key).map_err(failed("read a key"))?;
        Ok(found.map(Bytes::from))
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        // Without a snapshot, fjall's iterator sees a concurrent batch item by item as it reaches the memtable. It
        // would miss blocks that are merged into a block that it has already passed.
        for guard in self.db.snapshot().range(self.space(space), from..to) {
            let (key, value) = guard.into_inner().map_err(failed("read a range"))?;
            if visit(&key, Bytes::from(value)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn last(&self, space: Space, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>> {
        let Some(guard) = self.db.snapshot().range(self.space(space), from..=to).next_back() else {
            return Ok(None);
        };
        let (key, value) = guard.into_inner().map_err(failed("read the last key of a range"))?;
        Ok(Some((key.to_vec(), Bytes::from(value))))
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::ops::ControlFlow;

    const BLOCKS: u64 = 100_000;

    /// Returns the bytes that this thread has read from files, including the page cache.
    fn bytes_read() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/io").expect("read the counters of the thread");
        let count = text.lines().find_map(|line| line.strip_prefix("rchar:"));
        let count = count.expect("the counters contain rchar");
        count.trim().parse().expect("rchar is a number")
    }

    #[test]
    fn fetch_of_old_records_reads_no_whole_index() {
        const FETCHES: u64 = 200;
        let dir = tempfile::tempdir().unwrap();
        // Smaller than the table's index of 200 kB.
        let backing = DiskBacking::open(dir.path(), 64 * 1024).unwrap();
        let mut table = backing.records.start_ingestion().unwrap();
        for base in 0..BLOCKS {
            let block = base.to_be_bytes().repeat(50);
            table.write(base.to_be_bytes(), block).unwrap();
        }
        table.finish().unwrap();
        let before = bytes_read();
        for fetch in 0..FETCHES {
            let from = (fetch * 7_368_787 % BLOCKS).to_be_bytes();
            let (key, _) = backing.last(Space::Records, &[0; 8], &from).unwrap().unwrap();
            assert_eq!(key, from);
            let mut first = None;
            let mut visit = |key: &[u8], _| {
                first = Some(key.to_vec());
                ControlFlow::Break(())
            };
            backing.scan(Space::Records, &from, &[u8::MAX; 8], &mut visit).unwrap();
            assert_eq!(first.as_deref(), Some(from.as_slice()));
        }
        // Two lookups, each reading one index block and one data block of about 4 kB.
        let bytes = (bytes_read() - before) / FETCHES;
        assert!(bytes < 32 * 1024, "a fetch reads {bytes} bytes");
    }
}
