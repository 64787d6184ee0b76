//! The fjall engine: an LSM tree per space, one journal for all of them.
//!
//! Guarantees: a batch is one journal entry, so it is atomic over spaces and survives kill -9 (not a power cut, until
//! [`Store::persist`]); caches and write buffers stay near the given limit; a write waits for flushes for a bounded
//! time and then fails, it never hangs; journals stay small enough to be replayed in under a second.
//! Never: leaves the rotation of write buffers to fjall. Its own trigger knows one space, not the sum, and its wait for
//! a flush has no end (fjall issue 257: after a kill writes may halt for ever).

use crate::dir::{Held, guarded, hold, opening};
use crate::{
    Batch, Direction, Error, Options, Result, Snapshot, Space, Stats, Store, Visit, batch_of, check_keys,
    check_row_keys, is_empty_range,
};
use fjall::config::PartitioningPolicy;
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode, Readable};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a write waits for flushes and compactions that make no progress.
const STUCK: Duration = Duration::from_secs(30);
/// After this long without progress a stuck flush is asked for again.
const NUDGE: Duration = Duration::from_secs(2);
/// Journals beyond twice the write buffers, within these bounds, are emptied by flushing every space: it bounds what an
/// opening replays, at some 100 MB a second; a process opens a store a task.
const JOURNAL_BYTES: std::ops::RangeInclusive<u64> = 8 << 20..=96 << 20;
/// Smallest memory that is worth splitting; less is treated as this.
const MEMORY_BYTES_MIN: u64 = 8 << 20;
/// Larger buffers hold back the journals that are their copies, and an opening replays those.
const BUFFER_BYTES_MAX: u64 = 48 << 20;
/// fjall delays writers when a tree has this many overlapping tables, and stops them without end a little later.
const OVERLAPPING_TABLES_MAX: usize = 20;
/// What a worker may have wanted to write when it failed.
const PROBE_BYTES: usize = 8 << 20;
/// Fewer rows are not worth a table of their own.
const LOADED_MIN: usize = 4096;
/// fjall stops writers without end at four write buffers that wait for their flush.
const SEALED_BUFFERS_MAX: usize = 3;

/// A store over fjall.
pub struct FjallStore {
    shared: Arc<Shared>,
}

/// Dropped in this order: the engine stops before the directory is given up.
struct Shared {
    spaces: Vec<Keyspace>,
    db: Database,
    /// Bytes of all active write buffers at which the largest is flushed.
    buffer_bytes: u64,
    /// Bytes of all journals at which every space is flushed.
    journal_bytes: u64,
    /// Bytes written since the buffers were last measured.
    unmeasured: AtomicU64,
    /// One writer at a time measures and makes room.
    room: Mutex<()>,
    held: Held,
}

impl FjallStore {
    /// Opens or creates a store.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn open(options: &Options) -> Result<Self> {
        let held = hold(&options.dir, "fjall")?;
        let memory = options.memory_bytes.max(MEMORY_BYTES_MIN);
        // Half for the block cache. The other half is for write buffers: one active and up to two on their way to
        // disk, and a buffered entry occupies about a third more than fjall counts for it.
        let (db, spaces) = guarded(&held.dir, || open_spaces(&held, &options.spaces, memory / 2))?;
        let buffer_bytes = (memory / 8).min(BUFFER_BYTES_MAX);
        let shared = Shared {
            spaces,
            db,
            buffer_bytes,
            journal_bytes: (2 * buffer_bytes).clamp(*JOURNAL_BYTES.start(), *JOURNAL_BYTES.end()),
            unmeasured: AtomicU64::new(u64::MAX / 2),
            room: Mutex::new(()),
            held,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

fn open_spaces(held: &Held, names: &[&'static str], cache_bytes: u64) -> Result<(Database, Vec<Keyspace>)> {
    let broken = |source| open_error(&held.dir, source);
    let db = Database::builder(&held.engine)
        .cache_size(cache_bytes)
        // One: with two, the first hands compactions on to the second in a loop without a pause, and a core is gone.
        .worker_threads(1)
        .max_journaling_size(*JOURNAL_BYTES.end())
        .open()
        .map_err(broken)?;
    let spaces = names
        .iter()
        .map(|name| db.keyspace(name, tree_options).map_err(broken))
        .collect::<Result<_>>()?;
    Ok((db, spaces))
}

/// Options of a new tree. fjall stores them with the tree, so a tree that exists keeps those it was created with.
fn tree_options() -> KeyspaceCreateOptions {
    // By default fjall keeps one index block and one filter block per table down to the third level, and pins them only
    // in the first levels. Those of a 64 MiB table have about half a megabyte each, which a small block cache doesn't
    // admit or soon evicts, so that a lookup reads and hashes them whole: with 32 MiB of memory 140 kB at 5 million rows
    // of 200 B, and 320 kB at 20 million. With partitions of about 4 kB below a pinned top level it reads 5 kB and 8 kB.
    // The first level is partitioned too: rows that arrive in key order move to the last level in the tables of their
    // flush, which no compaction rewrites. With whole blocks there the edge read 25 kB per update at 20 million rows.
    //
    // `expect_point_read_hits`, which drops the filters of the last level, would save 2 kB per lookup of an existing key,
    // but each lookup of a new key would then read an index and a data block, 6 kB, instead of a filter.
    let partitioned = || PartitioningPolicy::all(true);
    KeyspaceCreateOptions::default()
        // No limit for a single buffer: `Shared::make_room` watches the sum of all.
        .max_memtable_size(u64::MAX)
        .index_block_partitioning_policy(partitioned())
        .filter_block_partitioning_policy(partitioned())
}

/// Sorts an error of opening: in use, refused by the machine, or unreadable.
fn open_error(dir: &Path, source: fjall::Error) -> Error {
    match source {
        fjall::Error::Locked => Error::Locked { dir: dir.to_owned() },
        fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)) => opening(dir, source),
        source => Error::Broken {
            dir: dir.to_owned(),
            source: Box::new(source),
        },
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
            .expect("a space is declared when the store is opened")
    }

    /// Starts the flush of the largest write buffer when all together have reached the limit, and holds the writer
    /// while the engine has too much to flush or to compact.
    fn make_room(&self, batch_bytes: u64) -> Result<()> {
        if self.unmeasured.fetch_add(batch_bytes, Ordering::Relaxed) < self.buffer_bytes / 16 {
            return Ok(());
        }
        let _one = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        self.unmeasured.store(0, Ordering::Relaxed);
        self.wait_while(|shared| {
            shared.spaces.iter().any(|space| {
                space.sealed_memtable_count() >= SEALED_BUFFERS_MAX
                    || space.tree.l0_run_count() >= OVERLAPPING_TABLES_MAX
            })
        })?;
        let sizes = || {
            self.spaces
                .iter()
                .map(|space| (space.tree.active_memtable().size(), space))
        };
        if sizes().map(|(bytes, _)| bytes).sum::<u64>() < self.buffer_bytes {
            return Ok(());
        }
        self.wait_while(|shared| shared.spaces.iter().map(Keyspace::sealed_memtable_count).sum::<usize>() > 1)?;
        let attempted = "start the flush of a write buffer";
        if let Some((_, largest)) = sizes().max_by_key(|(bytes, _)| *bytes) {
            largest.rotate_memtable().map_err(engine_error(attempted))?;
        }
        // A space with few writes keeps old journals alive. Rare: once in a hundred megabytes.
        if self
            .db
            .journal_disk_space()
            .map_err(engine_error("measure the journals"))?
            > self.journal_bytes
        {
            for (_, space) in sizes().filter(|(bytes, _)| *bytes > 0) {
                space.rotate_memtable().map_err(engine_error(attempted))?;
            }
        }
        Ok(())
    }

    /// What an error of the engine means. One that an earlier failure of a worker has left behind does not say which it
    /// was; mostly the disk was full, and then it still refuses a file.
    fn failed(&self, attempted: &'static str, error: fjall::Error) -> Error {
        if matches!(error, fjall::Error::Poisoned)
            && let Err(source) = probe(&self.held.dir)
        {
            return Error::Io { attempted, source };
        }
        engine_error(attempted)(error)
    }

    /// Waits while the engine is busy; fails when nothing has moved for [`STUCK`].
    fn wait_while(&self, busy: impl Fn(&Self) -> bool) -> Result<()> {
        let (mut since, mut nudged, mut before) = (Instant::now(), false, self.backlog());
        while busy(self) {
            // A worker that failed has poisoned the database: nothing will move any more, and this says why.
            let alive = self.db.persist(PersistMode::Buffer);
            alive.map_err(|error| self.failed("wait for a flush", error))?;
            let backlog = self.backlog();
            if backlog != before {
                (since, nudged, before) = (Instant::now(), false, backlog);
            }
            if since.elapsed() > STUCK {
                let source = format!("no flush or compaction ended for {} s: {backlog:?}", STUCK.as_secs());
                return Err(Error::Engine {
                    attempted: "wait for a flush",
                    source: source.into(),
                });
            }
            if since.elapsed() > NUDGE && !nudged {
                nudged = true;
                tracing::warn!(dir = %self.held.dir.display(), ?backlog, "a flush is stuck, asking for it again");
                for space in self.spaces.iter().filter(|space| space.sealed_memtable_count() > 0) {
                    space.rotate_memtable().map_err(engine_error("ask again for a flush"))?;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// What changes while the engine makes progress: buffers that wait, overlapping tables, compactions done.
    fn backlog(&self) -> (usize, usize, usize) {
        let sealed = self.spaces.iter().map(Keyspace::sealed_memtable_count).sum();
        let overlapping = self.spaces.iter().map(|space| space.tree.l0_run_count()).sum();
        (sealed, overlapping, self.db.compactions_completed())
    }

    fn scan_at(
        &self,
        at: &fjall::Snapshot,
        space: Space,
        range: (&[u8], Option<&[u8]>),
        direction: Direction,
        visit: Visit<'_>,
    ) -> Result<()> {
        let (from, to) = range;
        if is_empty_range(from, to) {
            return Ok(());
        }
        let from = if from.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Included(from)
        };
        let mut rows = at.range::<&[u8], _>(self.space(space), (from, to.map_or(Bound::Unbounded, Bound::Excluded)));
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
}

impl Store for FjallStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.shared.space(space).get(key).map_err(engine_error("read a key"))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, space: Space, from: &[u8], to: Option<&[u8]>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        // A keyspace's own iterator reads past the last whole batch; a snapshot ends there.
        let now = self.shared.db.snapshot();
        self.shared.scan_at(&now, space, (from, to), direction, visit)
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        check_keys(&batch)?;
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
            .map_err(|error| self.shared.failed("commit a batch", error))
    }

    fn load(&self, space: Space, mut rows: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<()> {
        if rows.len() < LOADED_MIN {
            return self.commit(batch_of(space, rows));
        }
        check_row_keys(rows.iter().map(|(key, _)| key.as_slice()))?;
        self.shared
            .wait_while(|shared| shared.space(space).tree.l0_run_count() >= OVERLAPPING_TABLES_MAX)?;
        sort(&mut rows);
        let attempted = "load rows";
        let failed = |error| self.shared.failed(attempted, error);
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
            at: self.shared.db.snapshot(),
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
        Stats {
            disk_bytes: db.disk_space().unwrap_or_default(),
            memory_bytes: db.cache_size() + db.write_buffer_size(),
        }
    }
}

/// Writes a file as large as a small table, and removes it.
fn probe(dir: &Path) -> std::io::Result<()> {
    let file = dir.join("probe");
    let written = std::fs::write(&file, vec![0; PROBE_BYTES]);
    let removed = std::fs::remove_file(&file);
    written.and(removed)
}

/// Sorts rows by key. Keys of one table begin alike, so what follows the common beginning is compared as a number first.
fn sort(rows: &mut [(Vec<u8>, Option<Vec<u8>>)]) {
    let Some((first, rest)) = rows.split_first() else {
        return;
    };
    let common = rest.iter().fold(first.0.len(), |common, (key, _)| {
        let alike = first.0.iter().zip(key).take(common).take_while(|(a, b)| a == b);
        alike.count()
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
    // Keys that the number does not tell apart stand together now.
    for alike in rows.chunk_by_mut(|a, b| number(&a.0) == number(&b.0)) {
        alike.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    }
}

type Write = (Space, Vec<u8>, Option<Vec<u8>>);

/// The batch in key order with the last write of each key only: all writes of a fjall batch have one sequence number,
/// so two of one key would have no order. Free when the batch is in order already.
fn last_writes(batch: Batch) -> Vec<Write> {
    let mut writes = batch.into_writes();
    let place = |(space, key, _): &Write| (*space, key.clone());
    if writes.is_sorted_by(|a, b| (a.0, &a.1) < (b.0, &b.1)) {
        return writes;
    }
    // Stable, and `dedup` keeps the first: the last write comes first after the reversal.
    writes.reverse();
    writes.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    writes.dedup_by(|later, kept| place(later) == place(kept));
    writes
}

/// A moment of a fjall store. Old versions stay on disk while it lives.
struct FjallSnapshot {
    at: fjall::Snapshot,
    shared: Arc<Shared>,
}

impl Snapshot for FjallSnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self
            .at
            .get(self.shared.space(space), key)
            .map_err(engine_error("read a key"))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, space: Space, from: &[u8], to: Option<&[u8]>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        self.shared.scan_at(&self.at, space, (from, to), direction, visit)
    }
}
