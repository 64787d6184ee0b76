//! Opens a store with the configured engine.

use crate::error::Result;
use crate::fjall::FjallStore;
use crate::memory::MemoryStore;
use crate::options::{Engine, Options};
use crate::sled::SledStore;
use crate::store::SharedStore;
use std::sync::Arc;

/// Opens or creates a store.
///
/// # Errors
/// [`crate::Error::Locked`] when another process has it open; [`crate::Error::Corrupt`] when its files are
/// corrupt: move the directory away with [`crate::quarantine`] and restore from the log.
pub fn open(options: &Options) -> Result<SharedStore> {
    Ok(match options.engine {
        Engine::Fjall => Arc::new(FjallStore::open(options)?),
        Engine::Sled => Arc::new(SledStore::open(options)?),
        Engine::Memory => Arc::new(MemoryStore::new(options.spaces.len())),
    })
}
