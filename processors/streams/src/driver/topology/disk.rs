//! The disk of one instance: stores in memory that outlive the threads that use them.
//!
//! Guarantees: one user of a store at a time, as with a directory; what was committed to a store stays until the disk
//! is lost. Never: a file.

use crate::task::checkpoint::SPACES;
use crate::{StoreName, Stores};
use state_store::{MemoryStore, SharedStore};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Kept = BTreeMap<StoreName, Arc<MemoryStore>>;

/// The stores of one instance.
#[derive(Default)]
pub(super) struct Disk {
    stores: Mutex<Kept>,
}

impl Disk {
    /// Loses every store.
    pub(super) fn lose(&self) {
        self.kept().clear();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stores for Disk {
    fn open(&self, name: &StoreName) -> state_store::Result<SharedStore> {
        let mut kept = self.kept();
        let store = kept
            .entry(name.clone())
            .or_insert_with(|| Arc::new(MemoryStore::new(SPACES.len())));
        if Arc::strong_count(store) > 1 {
            let dir = PathBuf::from(format!("{}/{}/{}", name.application, name.store, name.partition));
            return Err(state_store::Error::Locked { dir });
        }
        Ok(store.clone())
    }

    fn quarantine(&self, name: &StoreName) -> state_store::Result<Option<PathBuf>> {
        self.kept().remove(name);
        Ok(None)
    }
}
