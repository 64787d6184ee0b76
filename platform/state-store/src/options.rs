//! Options for opening a store.

use std::path::PathBuf;

/// The engine of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// An LSM tree; the default. Its speed and memory use remain constant as the state grows.
    #[default]
    Fjall,
    /// sled 0.34: for small state. It may get stuck ([`crate::Error::Stuck`]), and large state needs far more memory than
    /// the limit.
    Sled,
    /// In memory, without files: for tests.
    Memory,
}

/// Options of [`crate::open`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Engine.
    pub engine: Engine,
    /// Directory, created when absent. Only one process can open it ([`crate::Error::Locked`]).
    pub dir: PathBuf,
    /// Names of the keyspaces; [`crate::Space`] is the index. Keyspaces are stored by name, so their order may change.
    pub spaces: Vec<&'static str>,
    /// Limit for caches and write buffers together, in bytes.
    pub memory_bytes: u64,
}
