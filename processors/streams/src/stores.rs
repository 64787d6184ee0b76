//! Where the stores of tasks are.
//!
//! Guarantees: one store a task, in a directory of its own, held by one thread at a time.
//! Never: deleting one. What cannot be used is set aside.

use crate::checkpoint::SPACES;
use state_store::{Engine, Options, SharedStore};
use std::path::PathBuf;

/// Names a task's store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreName {
    /// Application.
    pub application: String,
    /// The store's declared name.
    pub store: String,
    /// The task's partition.
    pub partition: i32,
}

/// Opens tasks' stores. Tests put stores in memory behind it that lose their newest batches.
pub trait Stores: Send + Sync {
    /// Opens a task's store with the spaces `meta` and `state`; a store that was never written is empty.
    ///
    /// # Errors
    /// [`state_store::Error::Locked`] while another thread or process holds it, [`state_store::Error::Corrupt`] when it cannot be
    /// read.
    fn open(&self, name: &StoreName) -> state_store::Result<SharedStore>;

    /// Moves a store, closed by its last user, out of the way, and says where to.
    fn quarantine(&self, name: &StoreName) -> state_store::Result<Option<PathBuf>>;

    /// The stores that an application has here, with their places; an unreadable root has none.
    fn of_application(&self, _application: &str) -> Vec<(String, PathBuf)> {
        Vec::new()
    }
}

/// Stores in `<dir>/<application>/<store>/<partition>`.
#[derive(Debug, Clone)]
pub struct Directory {
    /// The root.
    pub dir: PathBuf,
    /// Engine of every store.
    pub engine: Engine,
    /// Upper limit for caches and write buffers of each store, in bytes.
    pub memory_bytes: u64,
}

impl Directory {
    fn path(&self, name: &StoreName) -> PathBuf {
        self.dir
            .join(&name.application)
            .join(&name.store)
            .join(name.partition.to_string())
    }
}

impl Stores for Directory {
    fn open(&self, name: &StoreName) -> state_store::Result<SharedStore> {
        state_store::open(&Options {
            engine: self.engine,
            dir: self.path(name),
            spaces: SPACES.to_vec(),
            memory_bytes: self.memory_bytes,
        })
    }

    fn quarantine(&self, name: &StoreName) -> state_store::Result<Option<PathBuf>> {
        let path = self.path(name);
        if path.exists() {
            state_store::quarantine(&path).map(Some)
        } else {
            Ok(None)
        }
    }

    fn of_application(&self, application: &str) -> Vec<(String, PathBuf)> {
        let entries = std::fs::read_dir(self.dir.join(application))
            .into_iter()
            .flatten()
            .flatten();
        let named = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
        let mut found: Vec<_> = named.filter(|(_, place)| place.is_dir()).collect();
        found.sort();
        found
    }
}
