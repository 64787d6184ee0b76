//! The sled engine: one tree, whose keys begin with one byte that identifies the keyspace.
//!
//! sled's log recovers `Tree::apply_batch` in whole or not at all. Because there is only one tree, a batch is therefore
//! atomic over keyspaces. sled buffers its log in the process: kill -9 may lose up to half a second of the newest
//! batches, but leaves no gap. sled counts only its page cache against the memory limit and uses several times as much;
//! it is suitable for small state only.
//!
//! **Threads.** sled 0.34 can deadlock: a writer that grows the file holds a lock that a queued truncation needs. So
//! every call runs on one thread per store ([`worker`]), and the caller waits at most [`Limits::call`]. The thread also
//! serialises reads and writes: a job sees whole batches only.
//!
//! **Snapshots.** sled has none. While a snapshot exists, a commit first saves the old value of each key that it writes,
//! and the snapshot reads the saved values before the tree. A snapshot costs nothing until a key is overwritten, and then
//! the memory of the old value.

mod worker;

use self::worker::{Limits, Worker};
use crate::batch::{Batch, Space};
use crate::directory::{LockedDirectory, OpenError, catch_panic};
use crate::error::{Error, Result};
use crate::key::KeyRange;
use crate::options::Options;
use crate::store::{Direction, Snapshot, Stats, Store, Visit};
use sled::IVec;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Rows per job of a scan. A commit waits for at most one such job.
const CHUNK_ROWS: usize = 256;
/// sled releases its file lock shortly after its last handle is dropped.
const RELEASE: Duration = Duration::from_secs(5);
/// Opening reads the whole log if the last snapshot of sled's index is old, so it has a higher limit.
const LIMITS: Limits = Limits {
    open: Duration::from_secs(300),
    call: Duration::from_secs(30),
};

/// A store with the engine sled 0.34.
pub struct SledStore {
    shared: Arc<Shared>,
}

/// Values of the keys that were written after a snapshot, as they were at the snapshot; `None` if the key was absent.
type Undo = BTreeMap<IVec, Option<IVec>>;

/// What the store and its snapshots share. The engine is closed when the last of these references is dropped.
struct Shared {
    worker: Worker<Database>,
    /// The byte that identifies each keyspace.
    prefixes: Vec<u8>,
    memory_bytes: u64,
}

/// The engine, owned by the worker's thread. The fields are dropped in this order: the directory is unlocked last.
struct Database {
    rows: sled::Tree,
    db: sled::Db,
    /// Saved values for each existing snapshot. Only the worker's thread locks them.
    snapshots: Vec<Weak<Mutex<Undo>>>,
    directory: LockedDirectory,
}

impl SledStore {
    /// Opens or creates a store.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn open(options: &Options) -> Result<Self> {
        Self::open_with(options, LIMITS)
    }

    fn open_with(options: &Options, limits: Limits) -> Result<Self> {
        let directory = LockedDirectory::open(&options.dir, "sled")?;
        let (names, memory_bytes) = (options.spaces.clone(), options.memory_bytes);
        let worker = Worker::start(options.dir.clone(), limits, move || {
            let dir = directory.dir.clone();
            catch_panic(&dir, || Database::open(directory, memory_bytes))
        })?;
        let prefixes = worker.call("read the names of the keyspaces", move |database| {
            database.prefixes(&names)
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                worker,
                prefixes,
                memory_bytes,
            }),
        })
    }
}

fn open_db(directory: &LockedDirectory, memory_bytes: u64) -> Result<sled::Db> {
    let config = sled::Config::new().path(&directory.engine).cache_capacity(memory_bytes);
    let since = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            // This process holds the directory's lock, so the holder of sled's lock can only be a handle that is being
            // closed.
            Err(sled::Error::Io(source)) if source.to_string().contains("could not acquire lock") => {
                if since.elapsed() > RELEASE {
                    return Err(Error::Locked {
                        dir: directory.dir.clone(),
                    });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(source) => return Err(directory.open_error(source)),
        }
    }
}

/// The byte that identifies a keyspace, assigned when the keyspace is first used.
fn prefix(names: &sled::Tree, name: &str) -> sled::Result<u8> {
    if let Some(known) = names.get(name)?.and_then(|bytes| bytes.first().copied()) {
        return Ok(known);
    }
    let next = u8::try_from(names.len()).expect("a store has fewer than 256 spaces");
    names.insert(name, &[next])?;
    names.flush()?;
    Ok(next)
}

impl From<sled::Error> for OpenError {
    fn from(source: sled::Error) -> Self {
        match source {
            sled::Error::Io(source) => Self::Io(source),
            source => Self::Other(source.into()),
        }
    }
}

fn engine_error(attempted: &'static str) -> impl Fn(sled::Error) -> Error {
    move |source| match source {
        sled::Error::Io(source) => Error::Io { attempted, source },
        source => Error::Engine {
            attempted,
            source: Box::new(source),
        },
    }
}

/// Bounds of a scan, as keys that begin with the keyspace's byte.
#[derive(Clone)]
struct Range {
    from: Bound<IVec>,
    to: Bound<IVec>,
}

/// Rows of a scan.
struct Chunk {
    rows: Vec<(IVec, IVec)>,
    /// The snapshot from which the scan continues.
    snapshot: Option<Arc<Mutex<Undo>>>,
}

impl Database {
    fn open(directory: LockedDirectory, memory_bytes: u64) -> Result<Self> {
        let db = open_db(&directory, memory_bytes)?;
        let rows = db.open_tree("rows").map_err(|source| directory.open_error(source))?;
        Ok(Self {
            rows,
            db,
            snapshots: Vec::new(),
            directory,
        })
    }

    /// The bytes that identify the keyspaces with these names.
    fn prefixes(&self, names: &[&str]) -> Result<Vec<u8>> {
        let corrupt = |source: sled::Error| self.directory.open_error(source);
        let known = self.db.open_tree("spaces").map_err(corrupt)?;
        names.iter().map(|name| prefix(&known, name).map_err(corrupt)).collect()
    }

    /// Starts to save old values for a new snapshot.
    fn snapshot(&mut self) -> Arc<Mutex<Undo>> {
        let undo = Arc::new(Mutex::new(Undo::new()));
        self.snapshots.push(Arc::downgrade(&undo));
        undo
    }

    /// Commits a batch of prefixed keys. Before that, saves their old values for each snapshot.
    fn commit(&mut self, writes: Vec<(IVec, Option<Vec<u8>>)>) -> Result<()> {
        self.snapshots.retain(|undo| undo.strong_count() > 0);
        let snapshots: Vec<_> = self.snapshots.iter().filter_map(Weak::upgrade).collect();
        if !snapshots.is_empty() {
            for (key, _) in &writes {
                let old = self
                    .rows
                    .get(key)
                    .map_err(engine_error("save a value for a snapshot"))?;
                for undo in &snapshots {
                    lock(undo).entry(key.clone()).or_insert_with(|| old.clone());
                }
            }
        }
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.rows.apply_batch(batch).map_err(engine_error("commit a batch"))
    }

    fn get(&self, key: &IVec, snapshot: Option<&Mutex<Undo>>) -> Result<Option<Vec<u8>>> {
        if let Some(old) = snapshot.and_then(|undo| lock(undo).get(key).cloned()) {
            return Ok(old.map(|value| value.to_vec()));
        }
        let value = self.rows.get(key).map_err(engine_error("read a key"))?;
        Ok(value.map(|value| value.to_vec()))
    }

    /// The next rows of a scan. A scan that needs several chunks continues in a snapshot, so that all its rows belong
    /// to one state of the store.
    fn chunk(&mut self, range: Range, direction: Direction, snapshot: Option<Arc<Mutex<Undo>>>) -> Result<Chunk> {
        let bounds = (range.from, range.to);
        let mut rows = Vec::new();
        let undo = snapshot.as_deref().map(lock);
        let empty = Undo::new();
        let old = undo.as_deref().unwrap_or(&empty).range::<IVec, _>(bounds.clone());
        let live = self
            .rows
            .range::<IVec, _>(bounds)
            .map(|row| row.map_err(engine_error("scan a space")));
        match direction {
            Direction::Forward => merge(live.peekable(), old.peekable(), |a, b| a < b, &mut rows)?,
            Direction::Backward => merge(live.rev().peekable(), old.rev().peekable(), |a, b| a > b, &mut rows)?,
        }
        drop(undo);
        let snapshot = match snapshot {
            None if rows.len() == CHUNK_ROWS => Some(self.snapshot()),
            other => other,
        };
        Ok(Chunk { rows, snapshot })
    }
}

fn lock(undo: &Mutex<Undo>) -> std::sync::MutexGuard<'_, Undo> {
    undo.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn prefix(&self, space: Space) -> u8 {
        *self
            .prefixes
            .get(usize::from(space.0))
            .expect("a keyspace is declared when the store is opened")
    }

    fn key(&self, space: Space, key: &[u8]) -> IVec {
        let mut bytes = Vec::with_capacity(key.len() + 1);
        bytes.push(self.prefix(space));
        bytes.extend_from_slice(key);
        bytes.into()
    }

    fn range(&self, space: Space, keys: KeyRange<'_>) -> Range {
        let end = || {
            self.prefix(space)
                .checked_add(1)
                .map_or(Bound::Unbounded, |p| Bound::Excluded(IVec::from(&[p])))
        };
        Range {
            from: Bound::Included(self.key(space, keys.from)),
            to: keys.to.map_or_else(end, |to| Bound::Excluded(self.key(space, to))),
        }
    }

    fn get(&self, space: Space, key: &[u8], snapshot: Option<Arc<Mutex<Undo>>>) -> Result<Option<Vec<u8>>> {
        let key = self.key(space, key);
        self.worker
            .call("read a key", move |database| database.get(&key, snapshot.as_deref()))
    }

    /// Visits a range chunk by chunk. The visitor runs on the caller's thread.
    fn scan(
        &self,
        mut range: Range,
        direction: Direction,
        mut snapshot: Option<Arc<Mutex<Undo>>>,
        visit: Visit<'_>,
    ) -> Result<()> {
        loop {
            let (next, of) = (range.clone(), snapshot.take());
            let chunk = self
                .worker
                .call("scan a space", move |database| database.chunk(next, direction, of))?;
            snapshot = chunk.snapshot;
            for (key, value) in &chunk.rows {
                let (_, key) = key
                    .split_first()
                    .expect("a stored key begins with the byte of its keyspace");
                if visit(key, value).is_break() {
                    return Ok(());
                }
            }
            match chunk.rows.last() {
                Some((last, _)) if chunk.rows.len() == CHUNK_ROWS => match direction {
                    Direction::Forward => range.from = Bound::Excluded(last.clone()),
                    Direction::Backward => range.to = Bound::Excluded(last.clone()),
                },
                _ => return Ok(()),
            }
            if is_used_up(&range) {
                return Ok(());
            }
        }
    }
}

/// Whether the range is empty. sled and `BTreeMap` panic on such bounds.
fn is_used_up(range: &Range) -> bool {
    match (&range.from, &range.to) {
        (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to)) => from >= to,
        _ => false,
    }
}

/// Merges up to [`CHUNK_ROWS`] rows of the tree and of a snapshot's saved values, which take precedence.
fn merge<'a>(
    mut live: Peekable<impl Iterator<Item = Result<(IVec, IVec)>>>,
    mut old: Peekable<impl Iterator<Item = (&'a IVec, &'a Option<IVec>)>>,
    before: impl Fn(&IVec, &IVec) -> bool,
    rows: &mut Vec<(IVec, IVec)>,
) -> Result<()> {
    while rows.len() < CHUNK_ROWS {
        let live_first = match (live.peek(), old.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(Err(_)), _) => true,
            (Some(Ok((key, _))), Some((old_key, _))) => before(key, old_key),
        };
        if live_first {
            rows.extend(live.next().transpose()?);
            continue;
        }
        let Some((key, value)) = old.next() else { continue };
        if matches!(live.peek(), Some(Ok((live_key, _))) if live_key == key) {
            live.next();
        }
        rows.extend(value.clone().map(|value| (key.clone(), value)));
    }
    Ok(())
}

impl Store for SledStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.shared.get(space, key, None)
    }

    fn scan(&self, space: Space, keys: KeyRange<'_>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        self.shared.scan(self.shared.range(space, keys), direction, None, visit)
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        batch.check_keys()?;
        let writes = batch.into_writes().into_iter();
        let writes = writes.map(|(space, key, value)| (self.shared.key(space, &key), value));
        let writes = writes.collect();
        self.shared
            .worker
            .call("commit a batch", move |database| database.commit(writes))
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        let undo = self
            .shared
            .worker
            .call("take a snapshot", |database| Ok(database.snapshot()))?;
        Ok(Box::new(SledSnapshot {
            undo,
            shared: Arc::clone(&self.shared),
        }))
    }

    fn persist(&self) -> Result<()> {
        let attempted = "flush the log to disk";
        self.shared.worker.call(attempted, move |database| {
            database.db.flush().map(|_| ()).map_err(engine_error(attempted))
        })
    }

    fn stats(&self) -> Stats {
        let attempted = "measure a store";
        let disk_bytes = self.shared.worker.call(attempted, move |database| {
            database.db.size_on_disk().map_err(engine_error(attempted))
        });
        Stats {
            disk_bytes: disk_bytes.unwrap_or_default(),
            memory_bytes: self.shared.memory_bytes,
        }
    }
}

/// A snapshot of a sled store.
struct SledSnapshot {
    undo: Arc<Mutex<Undo>>,
    shared: Arc<Shared>,
}

impl Snapshot for SledSnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.shared.get(space, key, Some(Arc::clone(&self.undo)))
    }

    fn scan(&self, space: Space, keys: KeyRange<'_>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let range = self.shared.range(space, keys);
        self.shared.scan(range, direction, Some(Arc::clone(&self.undo)), visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuck_store_fails_every_call_and_can_be_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            engine: crate::options::Engine::Sled,
            dir: dir.path().join("state"),
            spaces: vec!["rows"],
            memory_bytes: 8 << 20,
        };
        let limits = Limits {
            call: Duration::from_secs(2),
            ..LIMITS
        };
        let store = SledStore::open_with(&options, limits).unwrap();
        let snapshot = store.snapshot().unwrap();
        let (unblock, blocked) = crossbeam_channel::bounded::<()>(0);
        let job = move |_: &mut Database| {
            blocked.recv().ok();
            Ok(())
        };
        let mut batch = Batch::default();
        batch.put(Space(0), b"key", b"value");
        let visit: Visit<'_> = &mut |_, _| std::ops::ControlFlow::Continue(());
        let results = [
            store.shared.worker.call("block", job),
            store.commit(batch),
            store.get(Space(0), b"key").map(drop),
            store.scan(Space(0), KeyRange::ALL, Direction::Forward, visit),
            store.persist(),
            store.snapshot().map(drop),
            snapshot.get(Space(0), b"key").map(drop),
        ];
        for result in results {
            let Err(Error::Stuck { dir, seconds: 2 }) = result else {
                panic!("{result:?}");
            };
            assert_eq!(dir, options.dir);
        }
        drop((store, snapshot));
        drop(unblock);
    }
}
