//! Simulated stores. They survive a crash of their process, but may lose their newest batches; they never lose a batch
//! and keep a later one.

use state_store::{Batch, Direction, KeyRange, SharedStore, Snapshot, Space, Stats, Store, Visit};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use streams::{StoreName, Stores};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    space: Space,
    key: Vec<u8>,
}

impl RowKey {
    fn new(space: Space, key: &[u8]) -> Self {
        let key = key.to_vec();
        RowKey { space, key }
    }
}

type Rows = BTreeMap<RowKey, Vec<u8>>;
/// The values that a batch overwrote.
type Before = Vec<(RowKey, Option<Vec<u8>>)>;

/// Number of newest batches that a crash can lose.
const BATCHES: usize = 8;

/// A store, with the values that its newest batches overwrote.
#[derive(Debug, Default)]
struct File {
    rows: Arc<Rows>,
    newest: Vec<Before>,
    reads: AtomicUsize,
}

type Files = BTreeMap<StoreName, Arc<Mutex<File>>>;

/// The disk of one process.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    files: Arc<Mutex<Files>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// Loses up to `n` of the newest batches of every store, as in a power failure.
    pub fn lose(&self, n: usize) {
        for file in lock(&self.files).values() {
            let mut file = lock(file);
            for _ in 0..n {
                let Some(before) = file.newest.pop() else { break };
                let rows = Arc::make_mut(&mut file.rows);
                for (key, value) in before.into_iter().rev() {
                    put(rows, key, value);
                }
            }
        }
    }

    /// Loses all stores.
    pub fn wipe(&self) {
        lock(&self.files).clear();
    }

    /// Number of reads of the stores on this disk.
    pub fn reads(&self) -> usize {
        let reads = |file: &Arc<Mutex<File>>| lock(file).reads.load(Ordering::Relaxed);
        lock(&self.files).values().map(reads).sum()
    }
}

fn put(rows: &mut Rows, key: RowKey, value: Option<Vec<u8>>) -> Option<Vec<u8>> {
    match value {
        Some(value) => rows.insert(key, value),
        None => rows.remove(&key),
    }
}

impl Stores for Disk {
    fn open(&self, name: &StoreName) -> state_store::Result<SharedStore> {
        let file = lock(&self.files).entry(name.clone()).or_default().clone();
        Ok(Arc::new(Handle { file }))
    }

    fn quarantine(&self, name: &StoreName) -> state_store::Result<Option<PathBuf>> {
        lock(&self.files).remove(name);
        Ok(None)
    }
}

struct Handle {
    file: Arc<Mutex<File>>,
}

impl Handle {
    fn rows(&self) -> Arc<Rows> {
        let file = lock(&self.file);
        file.reads.fetch_add(1, Ordering::Relaxed);
        file.rows.clone()
    }
}

fn scan(rows: &Rows, space: Space, keys: KeyRange<'_>, direction: Direction, visit: Visit<'_>) {
    let lower = RowKey::new(space, keys.from);
    let upper = keys.to.map_or_else(
        || RowKey::new(Space(space.0.saturating_add(1)), b""),
        |to| RowKey::new(space, to),
    );
    if lower >= upper {
        return;
    }
    let mut range = rows.range((Bound::Included(lower), Bound::Excluded(upper)));
    loop {
        let next = match direction {
            Direction::Forward => range.next(),
            Direction::Backward => range.next_back(),
        };
        match next {
            Some((row, value)) if visit(&row.key, value).is_continue() => {}
            _ => return,
        }
    }
}

impl Store for Handle {
    fn get(&self, space: Space, key: &[u8]) -> state_store::Result<Option<Vec<u8>>> {
        Ok(self.rows().get(&RowKey::new(space, key)).cloned())
    }

    fn scan(
        &self,
        space: Space,
        keys: KeyRange<'_>,
        direction: Direction,
        visit: Visit<'_>,
    ) -> state_store::Result<()> {
        scan(&self.rows(), space, keys, direction, visit);
        Ok(())
    }

    fn commit(&self, batch: Batch) -> state_store::Result<()> {
        let mut file = lock(&self.file);
        let (rows, mut before) = (Arc::make_mut(&mut file.rows), Before::new());
        for (space, key, value) in batch.into_writes() {
            let key = RowKey { space, key };
            let old = put(rows, key.clone(), value);
            before.push((key, old));
        }
        file.newest.push(before);
        if file.newest.len() > BATCHES {
            file.newest.remove(0);
        }
        Ok(())
    }

    fn snapshot(&self) -> state_store::Result<Box<dyn Snapshot>> {
        Ok(Box::new(DiskSnapshot(self.rows())))
    }

    fn persist(&self) -> state_store::Result<()> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

struct DiskSnapshot(Arc<Rows>);

impl Snapshot for DiskSnapshot {
    fn get(&self, space: Space, key: &[u8]) -> state_store::Result<Option<Vec<u8>>> {
        Ok(self.0.get(&RowKey::new(space, key)).cloned())
    }

    fn scan(
        &self,
        space: Space,
        keys: KeyRange<'_>,
        direction: Direction,
        visit: Visit<'_>,
    ) -> state_store::Result<()> {
        scan(&self.0, space, keys, direction, visit);
        Ok(())
    }
}
