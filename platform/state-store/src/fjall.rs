//! The fjall engine: one LSM tree per keyspace and one journal for all keyspaces.
//!
//! A batch is one journal entry, so it is atomic over keyspaces. It survives kill -9 immediately, and a power failure
//! after [`Store::persist`]. Caches and write buffers stay near the memory limit.
//!
//! **Write buffers** are rotated here ([`Shared::make_room`]), not by fjall: fjall limits each keyspace separately and
//! not their sum, and its wait for a flush never ends if the flush does not happen (fjall issue 257: after a kill,
//! writes may halt forever). Here a write waits for a limited time and then fails.

use crate::batch::{Batch, Space, check_keys};
use crate::directory::{LockedDirectory, OpenError, catch_panic};
use crate::error::{Error, Result};
use crate::key::KeyRange;
use crate::options::Options;
use crate::store::{Direction, Snapshot, Stats, Store, Visit};
use fjall::config::PartitioningPolicy;
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode, Readable};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A write fails if no flush or compaction makes progress for this long.
const PROGRESS_LIMIT: Duration = Duration::from_secs(30);
/// The same while a compaction runs: flushes wait for it, and on a slow disk a compaction of a gigabyte takes minutes.
const COMPACTION_LIMIT: Duration = Duration::from_secs(300);
/// Flushes are requested again after this time without progress, because fjall may have lost the request (fjall issue
/// 257).
const FLUSH_RETRY: Duration = Duration::from_secs(2);
/// Length of a new journal file, which fjall allocates in advance. fjall starts the next one when it is full.
const JOURNAL_FILE_BYTES: u64 = 64 << 20;
/// Bounds of the size of the journals before the current one: twice the size of the write buffers. It limits the time to
/// open a store, which replays about 100 MB of journal per second; a process opens a store per task.
const JOURNAL_BYTES: std::ops::RangeInclusive<u64> = 8 << 20..=96 << 20;
/// Minimum memory that is divided between cache and buffers.
const MEMORY_BYTES_MIN: u64 = 8 << 20;
/// Larger buffers would require more journals, which are replayed at the next open.
const BUFFER_BYTES_MAX: u64 = 48 << 20;
/// Size of a table. The first level is compacted into tables of four times this size, which are all rewritten by each
/// compaction if the keys are random. With fjall's 64 MiB that is 256 MiB for 32 MiB of flushed buffers.
const TABLE_BYTES: u64 = 16 << 20;
/// fjall delays writers at this number of overlapping tables in a tree. At a slightly greater number it stops them
/// without a time limit.
const OVERLAPPING_TABLES_MAX: usize = 20;
/// Memory of an entry of a write buffer that fjall does not count: node, allocations of key and value.
const ENTRY_BYTES: u64 = 96;
/// Approximate size of a table that the engine failed to write.
const PROBE_BYTES: usize = 8 << 20;
/// Fewer rows are committed as a batch, because each load writes a table.
const LOAD_ROWS_MIN: usize = 4096;
/// fjall stops writers without a time limit when four write buffers wait for their flush.
const SEALED_BUFFERS_MAX: usize = 3;

/// Values that change while the engine makes progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Backlog {
    /// Write buffers that wait for their flush.
    sealed_buffers: usize,
    overlapping_tables: usize,
    /// Compactions completed.
    compactions: usize,
}

/// A store with the engine fjall.
pub struct FjallStore {
    shared: Arc<Shared>,
}

/// The fields are dropped in this order: the directory is unlocked last.
struct Shared {
    spaces: Vec<Keyspace>,
    db: Database,
    /// The largest write buffer is flushed when the active write buffers together have this size.
    buffer_bytes: u64,
    /// Every keyspace is flushed when all journals together have this size.
    journal_bytes: u64,
    /// Bytes written since the size of the buffers was last measured.
    unmeasured: AtomicU64,
    /// Serialises [`Shared::make_room`].
    room: Mutex<()>,
    directory: LockedDirectory,
}

impl FjallStore {
    /// Opens or creates a store.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn open(options: &Options) -> Result<Self> {
        let directory = LockedDirectory::open(&options.dir, "fjall")?;
        let memory = options.memory_bytes.max(MEMORY_BYTES_MIN);
        // Half of the memory is for the block cache. The other half is for write buffers: one that is active and up to
        // two that are being flushed.
        let (db, spaces) = catch_panic(&directory.dir, || open_spaces(&directory, &options.spaces, memory / 2))?;
        let buffer_bytes = (memory / 8).min(BUFFER_BYTES_MAX);
        let shared = Shared {
            spaces,
            db,
            buffer_bytes,
            journal_bytes: JOURNAL_FILE_BYTES + (2 * buffer_bytes).clamp(*JOURNAL_BYTES.start(), *JOURNAL_BYTES.end()),
            unmeasured: AtomicU64::new(u64::MAX / 2),
            room: Mutex::new(()),
            directory,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

fn open_spaces(
    directory: &LockedDirectory,
    names: &[&'static str],
    cache_bytes: u64,
) -> Result<(Database, Vec<Keyspace>)> {
    let opened = Database::builder(&directory.engine)
        .cache_size(cache_bytes)
        // With two workers, the first sends compactions to the second in a loop and uses a whole core.
        .worker_threads(1)
        .max_journaling_size(JOURNAL_FILE_BYTES + *JOURNAL_BYTES.end())
        .open();
    let db = match opened {
        Err(fjall::Error::Locked) => {
            return Err(Error::Locked {
                dir: directory.dir.clone(),
            });
        }
        opened => opened.map_err(|source| directory.open_error(source))?,
    };
    let spaces = names
        .iter()
        .map(|name| {
            db.keyspace(name, tree_options)
                .map_err(|source| directory.open_error(source))
        })
        .collect::<Result<_>>()?;
    Ok((db, spaces))
}

/// Options of a new tree. fjall stores them with the tree, so an existing tree keeps its options.
fn tree_options() -> KeyspaceCreateOptions {
    // By default fjall keeps one index block and one filter block per table down to the third level, and pins them only
    // in the first levels. Each is about half a megabyte in a 64 MiB table; a small block cache rejects or soon evicts
    // it, so that a lookup reads and hashes it whole: with 32 MiB of memory 140 kB at 5 million rows of 200 B, and 320 kB
    // at 20 million. With partitions of about 4 kB below a pinned top level, a lookup reads 5 kB and 8 kB. The first
    // level is partitioned too, since its tables may move to lower levels without being rewritten.
    //
    // `expect_point_read_hits`, which drops the filters of the last level, would save 2 kB per lookup of an existing key,
    // but each lookup of a new key would then read an index and a data block, 6 kB, instead of a filter.
    let partitioned = || PartitioningPolicy::all(true);
    KeyspaceCreateOptions::default()
        .compaction_strategy(Arc::new(
            fjall::compaction::Leveled::default().with_table_target_size(TABLE_BYTES),
        ))
        // No limit per buffer, because `Shared::make_room` limits the sum of all buffers.
        .max_memtable_size(u64::MAX)
        .index_block_partitioning_policy(partitioned())
        .filter_block_partitioning_policy(partitioned())
}

impl From<fjall::Error> for OpenError {
    fn from(source: fjall::Error) -> Self {
        match source {
            fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)) => Self::Io(source),
            source => Self::Other(source.into()),
        }
    }
}

fn engine_error(attempted: &'static str) -> impl FnOnce(fjall::Error) -> Error {
    move |source| match source {
        fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)) => Error::Io { attempted, source },
        source => Error::Engine {
            attempted,
            source: Box::new(source),
        },
    }
}

impl Shared {
    fn space(&self, space: Space) -> &Keyspace {
        self.spaces
            .get(usize::from(space.0))
            .expect("a keyspace is declared when the store is opened")
    }

    /// Blocks the writer while there is too much to flush or to compact. Starts the flush of the largest write buffer
    /// when all write buffers together have reached their limit.
    ///
    /// fjall's own waits have no limit, so this keeps all counts below those at which fjall waits.
    fn make_room(&self, batch_bytes: u64) -> Result<()> {
        if self.unmeasured.fetch_add(batch_bytes, Ordering::Relaxed) < self.buffer_bytes / 16 {
            return Ok(());
        }
        let _serialised = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        self.unmeasured.store(0, Ordering::Relaxed);
        self.wait_while(|shared| {
            shared.spaces.iter().any(|space| {
                space.sealed_memtable_count() >= SEALED_BUFFERS_MAX
                    || space.tree.l0_run_count() >= OVERLAPPING_TABLES_MAX
            })
        })?;
        let sizes = || self.spaces.iter().map(|space| (buffered_bytes(space), space));
        if sizes().map(|(bytes, _)| bytes).sum::<u64>() < self.buffer_bytes {
            return Ok(());
        }
        self.wait_while(|shared| shared.spaces.iter().map(Keyspace::sealed_memtable_count).sum::<usize>() > 1)?;
        let attempted = "start the flush of a write buffer";
        if let Some((_, largest)) = sizes().max_by_key(|(bytes, _)| *bytes) {
            largest.rotate_memtable().map_err(engine_error(attempted))?;
        }
        // A keyspace with few writes keeps old journals until its buffer is flushed. The size includes the current
        // journal with its whole length, so a limit below that would flush all keyspaces each time.
        let journal_bytes = self.db.journal_disk_space();
        if journal_bytes.map_err(engine_error("measure the journals"))? > self.journal_bytes {
            for (_, space) in sizes().filter(|(bytes, _)| *bytes > 0) {
                space.rotate_memtable().map_err(engine_error(attempted))?;
            }
        }
        Ok(())
    }

    /// Finds the cause of an error of the engine. `Poisoned` reports only that fjall's worker failed earlier. The usual
    /// cause is a full disk; in that case, writing a file still fails.
    fn diagnose(&self, attempted: &'static str, error: fjall::Error) -> Error {
        if matches!(error, fjall::Error::Poisoned)
            && let Err(source) = probe(&self.directory.dir)
        {
            return Error::Io { attempted, source };
        }
        engine_error(attempted)(error)
    }

    /// Waits while `busy` is true. Fails when the engine makes no progress for too long, see [`progress_limit`].
    fn wait_while(&self, busy: impl Fn(&Self) -> bool) -> Result<()> {
        let (mut since, mut retried, mut before) = (Instant::now(), false, self.backlog());
        while busy(self) {
            // A failed worker poisons the database and makes no more progress. `persist` returns the error.
            let poisoned = self.db.persist(PersistMode::Buffer);
            poisoned.map_err(|error| self.diagnose("wait for a flush", error))?;
            let backlog = self.backlog();
            if backlog != before {
                (since, retried, before) = (Instant::now(), false, backlog);
            }
            let limit = progress_limit(self.db.active_compactions());
            if since.elapsed() > limit {
                let source = format!(
                    "no flush or compaction made progress for {} s: {backlog:?}",
                    limit.as_secs()
                );
                return Err(Error::Engine {
                    attempted: "wait for a flush",
                    source: source.into(),
                });
            }
            if since.elapsed() > FLUSH_RETRY && !retried {
                retried = true;
                tracing::warn!(dir = %self.directory.dir.display(), ?backlog, "flush made no progress, requesting it again");
                for space in self.spaces.iter().filter(|space| space.sealed_memtable_count() > 0) {
                    space.rotate_memtable().map_err(engine_error("request a flush again"))?;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn backlog(&self) -> Backlog {
        Backlog {
            sealed_buffers: self.spaces.iter().map(Keyspace::sealed_memtable_count).sum(),
            overlapping_tables: self.spaces.iter().map(|space| space.tree.l0_run_count()).sum(),
            compactions: self.db.compactions_completed(),
        }
    }
}

/// Approximate memory of the active write buffer of a keyspace.
fn buffered_bytes(space: &Keyspace) -> u64 {
    let buffer = space.tree.active_memtable();
    buffer.size() + ENTRY_BYTES * u64::try_from(buffer.len()).unwrap_or(u64::MAX)
}

/// How long the engine may make no progress.
fn progress_limit(running_compactions: usize) -> Duration {
    match running_compactions {
        0 => PROGRESS_LIMIT,
        _ => COMPACTION_LIMIT,
    }
}

/// Calls `visit` for each row of a range.
fn scan(
    state: &fjall::Snapshot,
    space: &Keyspace,
    keys: KeyRange<'_>,
    direction: Direction,
    visit: Visit<'_>,
) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let bounds = (
        Bound::Included(keys.from),
        keys.to.map_or(Bound::Unbounded, Bound::Excluded),
    );
    let mut rows = state.range::<&[u8], _>(space, bounds);
    loop {
        let row = match direction {
            Direction::Forward => rows.next(),
            Direction::Backward => rows.next_back(),
        };
        let Some(row) = row else { return Ok(()) };
        let (key, value) = row.into_inner().map_err(engine_error("scan a space"))?;
        if visit(&key, &value).is_break() {
            return Ok(());
        }
    }
}

impl Store for FjallStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.shared.space(space).get(key).map_err(engine_error("read a key"))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, space: Space, keys: KeyRange<'_>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        // An iterator over the keyspace may see a part of a batch that is being committed; a snapshot does not.
        let current = self.shared.db.snapshot();
        scan(&current, self.shared.space(space), keys, direction, visit)
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        batch.check_keys()?;
        if batch.is_empty() {
            return Ok(());
        }
        self.shared
            .make_room(u64::try_from(batch.byte_len()).unwrap_or(u64::MAX))?;
        let writes = last_writes(batch);
        let mut out = fjall::OwnedWriteBatch::with_capacity(self.shared.db.clone(), writes.len())
            .durability(Some(PersistMode::Buffer));
        for (space, key, value) in writes {
            let space = self.shared.space(space);
            match value {
                Some(value) => out.insert(space, key, value),
                None => out.remove(space, key),
            }
        }
        out.commit()
            .map_err(|error| self.shared.diagnose("commit a batch", error))
    }

    fn load(&self, space: Space, mut rows: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<()> {
        if rows.len() < LOAD_ROWS_MIN {
            return self.commit(Batch::of_rows(space, rows));
        }
        check_keys(rows.iter().map(|(key, _)| key.as_slice()))?;
        self.shared
            .wait_while(|shared| shared.space(space).tree.l0_run_count() >= OVERLAPPING_TABLES_MAX)?;
        sort(&mut rows);
        let attempted = "load rows";
        let failed = |error| self.shared.diagnose(attempted, error);
        let mut ingestion = self.shared.space(space).start_ingestion().map_err(failed)?;
        for (key, value) in rows {
            let written = match value {
                Some(value) => ingestion.write(key, value),
                None => ingestion.write_tombstone(key),
            };
            written.map_err(failed)?;
        }
        ingestion.finish().map_err(failed)
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(FjallSnapshot {
            state: self.shared.db.snapshot(),
            shared: Arc::clone(&self.shared),
        }))
    }

    fn persist(&self) -> Result<()> {
        self.shared
            .db
            .persist(PersistMode::SyncAll)
            .map_err(engine_error("flush the journal to disk"))
    }

    fn stats(&self) -> Stats {
        let db = &self.shared.db;
        let tables: u64 = self.shared.spaces.iter().map(Keyspace::disk_space).sum();
        // The part of the current journal that is not written yet uses no disk space.
        let journals = db.journal_disk_space().unwrap_or_default();
        Stats {
            disk_bytes: tables + journals.saturating_sub(JOURNAL_FILE_BYTES),
            memory_bytes: db.cache_size() + db.write_buffer_size(),
        }
    }
}

/// Writes and removes a file, to find out whether the disk is full.
fn probe(dir: &Path) -> std::io::Result<()> {
    let file = dir.join("probe");
    let written = std::fs::write(&file, vec![0; PROBE_BYTES]);
    let removed = std::fs::remove_file(&file);
    written.and(removed)
}

/// Sorts rows by key. The keys have a common prefix, so the eight bytes after the prefix are first compared as a
/// number.
fn sort(rows: &mut [(Vec<u8>, Option<Vec<u8>>)]) {
    let Some((first, rest)) = rows.split_first() else {
        return;
    };
    let common = rest.iter().fold(first.0.len(), |common, (key, _)| {
        let equal = first.0.iter().zip(key).take(common).take_while(|(a, b)| a == b);
        equal.count()
    });
    let number = |key: &[u8]| {
        let mut bytes = [0; 8];
        bytes
            .iter_mut()
            .zip(key.iter().skip(common))
            .for_each(|(to, from)| *to = *from);
        u64::from_be_bytes(bytes)
    };
    rows.sort_by_cached_key(|(key, _)| number(key));
    // Keys with equal numbers are adjacent now.
    for equal in rows.chunk_by_mut(|a, b| number(&a.0) == number(&b.0)) {
        equal.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    }
}

type Write = (Space, Vec<u8>, Option<Vec<u8>>);

/// The last write of each key, in key order. All writes of a fjall batch have one sequence number, so two writes of one
/// key would have no order. Does not sort if the batch is already in order.
fn last_writes(batch: Batch) -> Vec<Write> {
    let mut writes = batch.into_writes();
    if writes.is_sorted_by(|a, b| (a.0, &a.1) < (b.0, &b.1)) {
        return writes;
    }
    // The sort is stable and `dedup` keeps the first of equal keys. Because of the reversal, that is the last write.
    writes.reverse();
    writes.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    writes.dedup_by(|a, b| (a.0, &a.1) == (b.0, &b.1));
    writes
}

/// A snapshot of a fjall store. fjall keeps the old versions of rows while it exists.
struct FjallSnapshot {
    state: fjall::Snapshot,
    shared: Arc<Shared>,
}

impl Snapshot for FjallSnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self
            .state
            .get(self.shared.space(space), key)
            .map_err(engine_error("read a key"))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, space: Space, keys: KeyRange<'_>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        scan(&self.state, self.shared.space(space), keys, direction, visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path) -> FjallStore {
        let options = Options {
            engine: crate::Engine::Fjall,
            dir: dir.to_owned(),
            spaces: vec!["meta", "rows"],
            memory_bytes: 8 << 20,
        };
        FjallStore::open(&options).unwrap()
    }

    #[test]
    fn flush_of_one_keyspace_leaves_the_others_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert!(store.stats().disk_bytes < 1 << 20, "an empty store uses no disk space");
        let mut meta = Batch::default();
        meta.put(Space(0), b"checkpoint".to_vec(), vec![0; 100]);
        store.commit(meta).unwrap();
        let buffered = store.shared.space(Space(0)).tree.active_memtable().size();
        for n in 0..64_u32 {
            let mut rows = Batch::default();
            for m in 0..64_u32 {
                rows.put(Space(1), (n * 64 + m).to_be_bytes().to_vec(), vec![7; 1000]);
            }
            store.commit(rows).unwrap();
        }
        let left = store.shared.space(Space(1)).tree.active_memtable().size();
        assert!(left < 3 << 20, "the write buffer of the rows was flushed");
        assert_eq!(store.shared.space(Space(0)).tree.active_memtable().size(), buffered);
    }

    #[test]
    fn running_compaction_extends_the_limit() {
        assert!(progress_limit(1) > progress_limit(0));
    }
}
