//! Locates, opens and quarantines the stores of tasks.
//!
//! Each task has one store in its own directory. Only one thread can open it at a time. Stores are never deleted (C11).

use crate::task::checkpoint::SPACES;
use state_store::{Engine, Options, SharedStore};
use std::path::PathBuf;

/// Identifies the store of a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreName {
    /// Name of the application.
    pub application: String,
    /// Declared name of the store.
    pub store: String,
    /// Partition of the task.
    pub partition: i32,
}

/// Opens the stores of tasks. Tests implement it with in-memory stores that lose their newest batches.
pub trait Stores: Send + Sync {
    /// Opens a store with the keyspaces `meta` and `state`. If it does not exist, it is created without rows.
    ///
    /// # Errors
    /// [`state_store::Error::Locked`] while another thread or process has it open, [`state_store::Error::Corrupt`] if it cannot
    /// be read.
    fn open(&self, name: &StoreName) -> state_store::Result<SharedStore>;

    /// Moves a closed store to another directory and returns its path; `None` if there is no such store.
    fn quarantine(&self, name: &StoreName) -> state_store::Result<Option<PathBuf>>;

    /// Names and paths of the stores of an application; empty if the directory cannot be read.
    fn of_application(&self, _application: &str) -> Vec<(String, PathBuf)> {
        Vec::new()
    }
}

/// Stores in `<dir>/<application>/<store>/<partition>`.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Root directory.
    pub dir: PathBuf,
    /// Store engine.
    pub engine: Engine,
    /// Limit for caches and write buffers of each store, in bytes.
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
        let mut found: Vec<_> = named.filter(|(_, path)| path.is_dir()).collect();
        found.sort();
        found
    }
}
