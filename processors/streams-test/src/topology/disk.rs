//! The disk of one instance: stores in memory that survive crashes of its threads.
//!
//! A store has one user at a time, as a store in a directory does.

use state_store::{MemoryStore, SharedStore};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use streams::testing::STORE_SPACES;
use streams::{StoreName, Stores};

type OpenStores = BTreeMap<StoreName, Arc<MemoryStore>>;

/// The stores of one instance.
#[derive(Default)]
pub(super) struct Disk {
    stores: Mutex<OpenStores>,
}

impl Disk {
    /// Loses all stores.
    pub(super) fn lose(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, OpenStores> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stores for Disk {
    fn open(&self, name: &StoreName) -> state_store::Result<SharedStore> {
        let mut stores = self.lock();
        let store = stores
            .entry(name.clone())
            .or_insert_with(|| Arc::new(MemoryStore::new(STORE_SPACES)));
        if Arc::strong_count(store) > 1 {
            let dir = PathBuf::from(format!("{}/{}/{}", name.application, name.store, name.partition));
            return Err(state_store::Error::Locked { dir });
        }
        Ok(store.clone())
    }

    fn quarantine(&self, name: &StoreName) -> state_store::Result<Option<PathBuf>> {
        self.lock().remove(name);
        Ok(None)
    }
}
