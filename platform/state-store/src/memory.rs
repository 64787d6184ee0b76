//! The memory engine: ordered maps behind a lock, for tests and simulation.
//!
//! A snapshot shares the maps; a write copies a map that a snapshot shares.

use crate::batch::{Batch, Space};
use crate::error::Result;
use crate::key::KeyRange;
use crate::store::{Direction, Snapshot, Stats, Store, Visit};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

type Rows = BTreeMap<Arc<[u8]>, Arc<[u8]>>;

/// A store in memory.
pub struct MemoryStore {
    spaces: RwLock<Spaces>,
}

/// The rows of all keyspaces. A clone shares the maps; a write to a shared map copies it.
#[derive(Clone)]
struct Spaces(Vec<Arc<Rows>>);

impl MemoryStore {
    /// Creates an empty store with `spaces` keyspaces.
    pub fn new(spaces: usize) -> Self {
        Self {
            spaces: RwLock::new(Spaces((0..spaces).map(|_| Arc::default()).collect())),
        }
    }

    fn current(&self) -> Spaces {
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

    fn scan(&self, space: Space, keys: KeyRange<'_>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        self.current().scan(space, keys, direction, visit)
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        batch.check_keys()?;
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        for (space, key, value) in batch.into_writes() {
            let rows = spaces
                .0
                .get_mut(usize::from(space.0))
                .expect("a keyspace is declared when the store is opened");
            let rows = Arc::make_mut(rows);
            match value {
                Some(value) => rows.insert(key.into(), value.into()),
                None => rows.remove(key.as_slice()),
            };
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(self.current()))
    }

    fn persist(&self) -> Result<()> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        let bytes: usize = self
            .current()
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
            .expect("a keyspace is declared when the store is opened")
    }
}

impl Snapshot for Spaces {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.rows(space).get(key).map(|value| value.to_vec()))
    }

    fn scan(&self, space: Space, keys: KeyRange<'_>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let bounds = (
            Bound::Included(keys.from),
            keys.to.map_or(Bound::Unbounded, Bound::Excluded),
        );
        let mut rows = self.rows(space).range::<[u8], _>(bounds);
        let mut each = |(key, value): (&Arc<[u8]>, &Arc<[u8]>)| visit(key, value).is_continue();
        match direction {
            Direction::Forward => rows.all(&mut each),
            Direction::Backward => rows.rev().all(&mut each),
        };
        Ok(())
    }
}
