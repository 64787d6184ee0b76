//! Storage in memory, for tests and simulations.

use super::{Backing, Persist, Space, Visit, Writes};
use crate::Result;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock};

type Map = BTreeMap<Vec<u8>, Bytes>;

/// One ordered map for each keyspace.
#[derive(Default)]
pub(in crate::embedded) struct MemoryBacking(RwLock<(Map, Map)>);

fn map(maps: &(Map, Map), space: Space) -> &Map {
    match space {
        Space::Records => &maps.0,
        Space::Meta => &maps.1,
    }
}

impl Backing for MemoryBacking {
    fn commit(&self, writes: &Writes, _: Persist) -> Result<()> {
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for write in &writes.all {
            let map = match write.space {
                Space::Records => &mut maps.0,
                Space::Meta => &mut maps.1,
            };
            match &write.value {
                Some(value) => map.insert(write.key.clone(), value.clone()),
                None => map.remove(&write.key),
            };
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        let maps = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Ok(map(&maps, space).get(key).cloned())
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        let maps = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if from >= to {
            return Ok(());
        }
        let range = (Bound::Included(from), Bound::Excluded(to));
        for (key, value) in map(&maps, space).range::<[u8], _>(range) {
            if visit(key, value.clone()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn last(&self, space: Space, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>> {
        let maps = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let range = (Bound::Included(from), Bound::Included(to));
        let found = map(&maps, space).range::<[u8], _>(range).next_back();
        Ok(found.map(|(key, value)| (key.clone(), value.clone())))
    }
}
