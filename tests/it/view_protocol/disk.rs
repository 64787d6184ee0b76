//! A store in memory that can be copied: a replica that crashes goes back to a copy. It counts how often it is read.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use store::{Batch, Direction, Result, Snapshot, Space, Stats, Store};

type Rows = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

#[derive(Default)]
pub struct Disk {
    rows: Mutex<Rows>,
    reads: AtomicUsize,
}

impl Disk {
    pub fn copy(&self) -> Disk {
        Disk {
            rows: Mutex::new(self.rows.lock().unwrap().clone()),
            reads: AtomicUsize::default(),
        }
    }

    /// How often it was read so far.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Store for Disk {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        Ok(self.rows.lock().unwrap().get(&(space.0, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        space: Space,
        from: &[u8],
        to: Option<&[u8]>,
        direction: Direction,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let from = (space.0, from.to_vec());
        let to = to.map_or((space.0 + 1, vec![]), |to| (space.0, to.to_vec()));
        if from >= to {
            return Ok(());
        }
        let rows = self.rows.lock().unwrap();
        let mut range = rows.range((Bound::Included(from), Bound::Excluded(to)));
        loop {
            let next = if direction == Direction::Forward {
                range.next()
            } else {
                range.next_back()
            };
            let Some(((_, key), value)) = next else { return Ok(()) };
            if visit(key, value).is_break() {
                return Ok(());
            }
        }
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        let mut rows = self.rows.lock().unwrap();
        for (space, key, value) in batch.into_writes() {
            match value {
                Some(value) => drop(rows.insert((space.0, key), value)),
                None => drop(rows.remove(&(space.0, key))),
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        unreachable!("a replica reads under its own lock")
    }

    fn persist(&self) -> Result<()> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }
}
