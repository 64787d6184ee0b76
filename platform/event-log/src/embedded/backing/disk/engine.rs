//! Opens a fjall database with one fjall keyspace for each keyspace of the log, and limits the waiting for its
//! background work.
//!
//! A commit of fjall waits for flushes and compactions without a time limit and does not notice a failed worker (fjall
//! issue 257: after a kill, writes may block forever). Therefore this module rotates the write buffers, and a commit
//! first waits here, with a time limit and only while the worker runs, until fjall itself would not wait. fjall has one
//! worker thread: with two, the first sends compactions to the second in a loop and uses a whole core.

use super::super::{Space, Write, Writes};
use super::space::WriteLimits;
use bytes::Bytes;
use fjall::config::{FilterPolicy, PartitioningPolicy};
use fjall::{AbstractTree, CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Upper limit of the journal that the next start replays: the minimum that fjall accepts.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A commit waits while this many write buffers wait to be flushed. fjall waits at 4. One commit may add two, because
/// in a directory of an older version fjall also rotates by itself.
const SEALED_BUFFERS_MAX: usize = 2;
/// fjall delays writers at this number of overlapping tables in a tree, and blocks them at a slightly greater number.
const OVERLAPPING_TABLES_MAX: usize = 20;
/// A commit fails if no flush or compaction makes progress for this time.
const PROGRESS_LIMIT: Duration = Duration::from_secs(30);
/// After this time without progress, flushes are requested again, because fjall may have lost the request (issue 257).
const FLUSH_RETRY: Duration = Duration::from_secs(2);

/// An open database.
pub(super) struct Engine {
    pub records: Keyspace,
    pub meta: Keyspace,
    pub db: Database,
    limits: WriteLimits,
}

/// Why a directory was not opened.
pub(super) enum OpenError {
    Fjall(fjall::Error),
    /// fjall panics on some corrupt files.
    Panic(String),
}

/// Why a batch was not written.
pub(super) enum WriteError {
    Fjall(fjall::Error),
    NoProgress(String),
}

impl From<fjall::Error> for OpenError {
    fn from(error: fjall::Error) -> Self {
        OpenError::Fjall(error)
    }
}

impl From<fjall::Error> for WriteError {
    fn from(error: fjall::Error) -> Self {
        WriteError::Fjall(error)
    }
}

/// Counters that change while the worker makes progress.
#[derive(Debug, PartialEq, Eq)]
struct Backlog {
    sealed_buffers: usize,
    overlapping_tables: usize,
    compactions: usize,
}

impl Engine {
    /// Opens or creates a database.
    pub fn open(dir: &Path, cache_bytes: u64, limits: WriteLimits) -> Result<Engine, OpenError> {
        let opened = catch_unwind(AssertUnwindSafe(|| Engine::open_or_panic(dir, cache_bytes, limits)));
        opened.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(OpenError::Panic(text.unwrap_or_else(|| "no message".to_owned())))
        })
    }

    fn open_or_panic(dir: &Path, cache_bytes: u64, limits: WriteLimits) -> Result<Engine, OpenError> {
        let db = Database::builder(dir)
            .cache_size(cache_bytes)
            .worker_threads(1)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .journal_compression(CompressionType::None)
            .open()?;
        // An existing keyspace keeps the options that it was created with.
        //
        // By default fjall stores the index of a table in one block of up to a megabyte. In a log of many small batches
        // the indexes exceed the block cache, and each lookup of a position reads a whole index: 115 kB per fetch from
        // 4 GB of 300-byte batches, against 12 kB with partitioned indexes of about 4 kB. Tables of the first level are
        // small; their indexes are neither partitioned nor evicted.
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(u64::MAX)
                .filter_policy(FilterPolicy::disabled())
                .index_block_partitioning_policy(PartitioningPolicy::all(true))
        };
        let records = db.keyspace("records", options)?;
        let meta = db.keyspace("meta", options)?;
        Ok(Engine {
            records,
            meta,
            db,
            limits,
        })
    }

    pub fn space(&self, space: Space) -> &Keyspace {
        match space {
            Space::Records => &self.records,
            Space::Meta => &self.meta,
        }
    }

    /// Writes a batch. If this fails, the database accepts no further writes. The batch is then not visible, but the
    /// journal may contain it.
    pub fn write(&self, writes: &Writes, mode: PersistMode) -> Result<(), WriteError> {
        self.make_room()?;
        let mut batch = self.db.batch().durability(Some(mode));
        for Write { space, key, value } in writes.all() {
            match value {
                Some(value) => batch.insert(self.space(*space), key.as_slice(), value.clone()),
                None => batch.remove(self.space(*space), key.as_slice()),
            }
        }
        batch.commit()?;
        Ok(())
    }

    /// Fails if the worker has failed or a write was lost. In these cases fjall accepts no further writes.
    pub fn check(&self) -> fjall::Result<()> {
        self.db.persist(PersistMode::Buffer)
    }

    pub fn get(&self, space: Space, key: &[u8]) -> fjall::Result<Option<Bytes>> {
        Ok(self.space(space).get(key)?.map(Bytes::from))
    }

    /// Waits until all counts are below those at which fjall waits, and starts the flush of large write buffers.
    fn make_room(&self) -> Result<(), WriteError> {
        for (space, limit) in self.buffers() {
            self.wait_while(|| {
                space.sealed_memtable_count() >= SEALED_BUFFERS_MAX
                    || space.tree.l0_run_count() >= OVERLAPPING_TABLES_MAX
            })?;
            if space.tree.active_memtable().size() >= limit {
                space.rotate_memtable()?;
            }
        }
        Ok(())
    }

    /// The keyspaces with the sizes at which their write buffers are flushed.
    fn buffers(&self) -> [(&Keyspace, u64); 2] {
        [
            (&self.records, self.limits.records_buffer_bytes),
            (&self.meta, self.limits.meta_buffer_bytes),
        ]
    }

    /// Upper estimate of the bytes in write buffers, which flushes will write to tables.
    pub fn unflushed_bytes(&self) -> u64 {
        let of = |(space, limit): (&Keyspace, u64)| {
            let sealed = u64::try_from(space.sealed_memtable_count()).unwrap_or(u64::MAX);
            sealed
                .saturating_mul(limit)
                .saturating_add(space.tree.active_memtable().size())
        };
        self.buffers().into_iter().map(of).sum()
    }

    fn wait_while(&self, busy: impl Fn() -> bool) -> Result<(), WriteError> {
        if !busy() {
            return Ok(());
        }
        let (mut since, mut retried, mut before) = (Instant::now(), false, self.backlog());
        while busy() {
            self.check()?;
            let backlog = self.backlog();
            if backlog != before {
                (since, retried, before) = (Instant::now(), false, backlog);
            }
            if since.elapsed() > PROGRESS_LIMIT {
                let seconds = PROGRESS_LIMIT.as_secs();
                return Err(WriteError::NoProgress(format!(
                    "no flush or compaction made progress for {seconds} s: {before:?}"
                )));
            }
            if since.elapsed() > FLUSH_RETRY && !retried {
                retried = true;
                tracing::warn!(backlog = ?before, "flush made no progress, requesting it again");
                for space in [&self.records, &self.meta] {
                    if space.sealed_memtable_count() > 0 {
                        space.rotate_memtable()?;
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn backlog(&self) -> Backlog {
        let spaces = || [&self.records, &self.meta].into_iter();
        Backlog {
            sealed_buffers: spaces().map(Keyspace::sealed_memtable_count).sum(),
            overlapping_tables: spaces().map(|space| space.tree.l0_run_count()).sum(),
            compactions: self.db.compactions_completed(),
        }
    }
}
