//! Stores that survive a crash of their process and may lose their newest batches, never with a hole.
//!
//! Guarantees: atomic batches; what was lost is a suffix. Never: a lock that outlives a process.

use crate::checkpoint::SPACES;
use crate::stores::{StoreName, Stores};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use store::{Batch, Direction, SharedStore, Snapshot, Space, Stats, Store, Visit};

type Rows = BTreeMap<(Space, Vec<u8>), Vec<u8>>;

/// The newest states of one store, the last one current.
#[derive(Debug, Default)]
struct File {
    states: Vec<Arc<Rows>>,
}

/// The disk of one process.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    files: Arc<Mutex<BTreeMap<StoreName, Arc<Mutex<File>>>>>,
}

impl Disk {
    /// Forgets the newest batches of every store, at most `n`.
    pub(super) fn lose(&self, n: usize) {
        for file in self.files.lock().unwrap().values() {
            let states = &mut file.lock().unwrap().states;
            let keep = states.len().saturating_sub(n).max(1);
            states.truncate(keep);
        }
    }

    pub(super) fn wipe(&self) {
        self.files.lock().unwrap().clear();
    }
}

impl Stores for Disk {
    fn open(&self, name: &StoreName) -> store::Result<SharedStore> {
        let file = self.files.lock().unwrap().entry(name.clone()).or_default().clone();
        Ok(Arc::new(Handle { file }))
    }

    fn set_aside(&self, name: &StoreName) -> store::Result<Option<PathBuf>> {
        self.files.lock().unwrap().remove(name);
        Ok(None)
    }
}

struct Handle {
    file: Arc<Mutex<File>>,
}

impl Handle {
    fn rows(&self) -> Arc<Rows> {
        self.file.lock().unwrap().states.last().cloned().unwrap_or_default()
    }
}

fn scan(rows: &Rows, space: Space, from: &[u8], to: Option<&[u8]>, direction: Direction, visit: Visit<'_>) {
    assert_eq!(direction, Direction::Forward, "the runtime scans forward only");
    for ((of, key), value) in rows.range((space, from.to_vec())..) {
        if *of != space || to.is_some_and(|to| key.as_slice() >= to) || visit(key, value).is_break() {
            break;
        }
    }
}

impl Store for Handle {
    fn get(&self, space: Space, key: &[u8]) -> store::Result<Option<Vec<u8>>> {
        Ok(self.rows().get(&(space, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        space: Space,
        from: &[u8],
        to: Option<&[u8]>,
        direction: Direction,
        visit: Visit<'_>,
    ) -> store::Result<()> {
        scan(&self.rows(), space, from, to, direction, visit);
        Ok(())
    }

    fn commit(&self, batch: Batch) -> store::Result<()> {
        let mut rows = Rows::clone(&self.rows());
        for (space, key, value) in batch.into_writes() {
            assert!(usize::from(space.0) < SPACES.len());
            match value {
                Some(value) => rows.insert((space, key), value),
                None => rows.remove(&(space, key)),
            };
        }
        let states = &mut self.file.lock().unwrap().states;
        states.push(Arc::new(rows));
        if states.len() > 8 {
            states.remove(0);
        }
        Ok(())
    }

    fn snapshot(&self) -> store::Result<Box<dyn Snapshot>> {
        Ok(Box::new(Moment(self.rows())))
    }

    fn persist(&self) -> store::Result<()> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}

struct Moment(Arc<Rows>);

impl Snapshot for Moment {
    fn get(&self, space: Space, key: &[u8]) -> store::Result<Option<Vec<u8>>> {
        Ok(self.0.get(&(space, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        space: Space,
        from: &[u8],
        to: Option<&[u8]>,
        direction: Direction,
        visit: Visit<'_>,
    ) -> store::Result<()> {
        scan(&self.0, space, from, to, direction, visit);
        Ok(())
    }
}
