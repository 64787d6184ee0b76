//! The memory engine: ordered maps behind a lock, for tests and simulation.
//!
//! Guarantees: what the trait promises, but for surviving the process; snapshots cost one reference each, and one copy
//! of the maps that are written while a snapshot lives.
//! Never: touches the disk.

use crate::{Batch, Direction, Result, Snapshot, Space, Stats, Store, Visit, check_keys, is_empty_range};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

type Rows = BTreeMap<Arc<[u8]>, Arc<[u8]>>;

/// A store in memory.
pub struct MemoryStore {
    spaces: RwLock<Spaces>,
}

/// All spaces at one moment. A clone shares the maps; writing to a shared map copies it.
#[derive(Clone)]
struct Spaces(Vec<Arc<Rows>>);

impl MemoryStore {
    /// Creates an empty store of `spaces` spaces.
    pub fn new(spaces: usize) -> Self {
        Self {
            spaces: RwLock::new(Spaces((0..spaces).map(|_| Arc::default()).collect())),
        }
    }

    fn now(&self) -> Spaces {
        self.spaces.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Store for MemoryStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.spaces
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(space, key)
    }

    fn scan(&self, space: Space, from: &[u8], to: Option<&[u8]>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        self.now().scan(space, from, to, direction, visit)
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        check_keys(&batch)?;
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        for (space, key, value) in batch.into_writes() {
            let rows = spaces
                .0
                .get_mut(usize::from(space.0))
                .expect("a space is declared when the store is opened");
            let rows = Arc::make_mut(rows);
            match value {
                Some(value) => rows.insert(key.into(), value.into()),
                None => rows.remove(key.as_slice()),
            };
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(self.now()))
    }

    fn persist(&self) -> Result<()> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        let bytes: usize = self
            .now()
            .0
            .iter()
            .flat_map(|rows| rows.iter())
            .map(|(key, value)| key.len() + value.len())
            .sum();
        Stats {
            disk_bytes: 0,
            memory_bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
        }
    }
}

impl Spaces {
    fn rows(&self, space: Space) -> &Rows {
        self.0
            .get(usize::from(space.0))
            .expect("a space is declared when the store is opened")
    }
}

impl Snapshot for Spaces {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.rows(space).get(key).map(|value| value.to_vec()))
    }

    fn scan(&self, space: Space, from: &[u8], to: Option<&[u8]>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        if is_empty_range(from, to) {
            return Ok(());
        }
        let bounds = (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded));
        let mut rows = self.rows(space).range::<[u8], _>(bounds);
        let mut each = |(key, value): (&Arc<[u8]>, &Arc<[u8]>)| visit(key, value).is_continue();
        match direction {
            Direction::Forward => rows.all(&mut each),
            Direction::Backward => rows.rev().all(&mut each),
        };
        Ok(())
    }
}
