//! A directory, through fjall.
//!
//! Guarantees: a batch is in the operating system's hands when `commit` returns, so that it survives kill -9 of the
//! process; one process at a time has the directory. Never: an fsync on the path of a batch.

use super::{Backing, Space, Visit, Writes};
use crate::{Error, Result};
use bytes::Bytes;
use fjall::config::{FilterPolicy, PartitioningPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use std::path::Path;

/// Blocks are large, few and read in order.
const RECORDS_MEMTABLE_BYTES: u64 = 24 * 1024 * 1024;
const META_MEMTABLE_BYTES: u64 = 8 * 1024 * 1024;
/// What the next start has to replay at most; the least that fjall takes.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A fjall database with one keyspace for each space.
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
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// [`Error::Refused`] when another process has it open.
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
                    reason: "another process has it open; stop that one, or choose another directory".to_owned(),
                });
            }
            Err(other) => return Err(failed("open the directory")(other)),
        };
        // A keyspace that exists keeps the options that it was created with.
        //
        // By default fjall keeps the index of a table in one block of up to a megabyte. The indexes of a log of many
        // small batches exceed the block cache, and then each position to read from costs whole indexes: 115 kB per fetch
        // from 4 GB of batches of 300 B, 12 kB with an index in partitions of about 4 kB. The first level is
        // partitioned too, since its tables may move to lower levels as they are.
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
            .map_err(failed("open the meta data"))?;
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
        // A keyspace's own iterator has no snapshot: it sees a batch that lands while it runs, item by item as fjall puts
        // them into the memtable. It would miss blocks that are merged into one that it has already passed.
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::ops::ControlFlow;

    const BLOCKS: u64 = 100_000;

    /// Bytes that this thread has read from files, whether they were in the page cache or not.
    fn bytes_read() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("rchar:"));
        line.unwrap().trim().parse().unwrap()
    }

    #[test]
    fn a_fetch_of_old_records_reads_no_whole_index() {
        const FETCHES: u64 = 200;
        let dir = tempfile::tempdir().unwrap();
        // Less than the 200 kB of the table's index.
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
        // Two positions, each a block of the index and one of data, of about 4 kB.
        let bytes = (bytes_read() - before) / FETCHES;
        assert!(bytes < 32 * 1024, "a fetch reads {bytes} bytes");
    }
}
