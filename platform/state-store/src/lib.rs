//! The embedded state store: one narrow trait, three engines.
//!
//! Guarantees (held by one suite for every engine, with a model and kill -9): a batch is atomic over all spaces; after
//! a crash of the process the store holds a prefix of the committed batches (of the machine: perhaps a shorter
//! prefix, never one with a hole); keys are ordered as bytes.
//! Never: fsync on the path of a batch (the log is the write-ahead log of everything kept here); a key or value that
//! means something to it.

mod dir;
mod fjall;
mod memory;
mod sled;

pub use self::fjall::FjallStore;
pub use self::memory::MemoryStore;
pub use self::sled::SledStore;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A named space of keys, declared when the store is opened: an index into that list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space(pub u8);

/// Writes to commit at once, in order: a later write of a key wins.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    writes: Vec<(Space, Vec<u8>, Option<Vec<u8>>)>,
    bytes: usize,
}

impl Batch {
    /// Puts a value.
    pub fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.writes.push((space, key, Some(value)));
    }

    /// Deletes a key; a key that is absent is no error.
    pub fn delete(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        let key = key.into();
        self.bytes += key.len();
        self.writes.push((space, key, None));
    }

    /// Number of writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether it holds no write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Bytes of keys and values.
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// The writes in order.
    pub fn into_writes(self) -> Vec<(Space, Vec<u8>, Option<Vec<u8>>)> {
        self.writes
    }
}

/// Direction of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys.
    Backward,
}

/// What a scan calls for each key and its value, until it breaks.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// What a store occupies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Bytes held in memory on purpose (caches and write buffers), as far as the engine says.
    pub memory_bytes: u64,
}

/// An open store. Shared by threads: one writes, any number read. A read sees whole batches only, but two reads may
/// see different moments: who needs one moment holds off the writer, or takes a [`Store::snapshot`].
pub trait Store: Send + Sync {
    /// Reads a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Calls `visit` for each key in `from..to` (`to` = `None`: to the end of the space) in order until it breaks.
    fn scan(&self, space: Space, from: &[u8], to: Option<&[u8]>, direction: Direction, visit: Visit<'_>) -> Result<()>;

    /// Commits a batch: atomic over all spaces.
    fn commit(&self, batch: Batch) -> Result<()>;

    /// Writes many rows of one space, each key once, in any order; cheaper than a batch for thousands of them. Atomic
    /// as a batch is, and after those before it; but a crash of the machine may keep it and lose those.
    fn load(&self, space: Space, rows: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<()> {
        self.commit(batch_of(space, rows))
    }

    /// A view of this moment, for long reads.
    fn snapshot(&self) -> Result<Box<dyn Snapshot>>;

    /// Makes everything committed so far survive a crash of the machine. Correctness must not depend on it.
    fn persist(&self) -> Result<()>;

    /// What it occupies.
    fn stats(&self) -> Stats;
}

/// A store as it was at one moment.
pub trait Snapshot: Send {
    /// Reads a key.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// As [`Store::scan`].
    fn scan(&self, space: Space, from: &[u8], to: Option<&[u8]>, direction: Direction, visit: Visit<'_>) -> Result<()>;
}

/// A shared store.
pub type SharedStore = Arc<dyn Store>;

/// Which engine keeps the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// An LSM tree: the default; steady under large state.
    #[default]
    Fjall,
    /// sled 0.34: fast reads of small state, memory far beyond its cache for large state.
    Sled,
    /// Nothing on disk: for tests.
    Memory,
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// Engine.
    pub engine: Engine,
    /// Directory, created when absent. One process at a time: a second one gets [`Error::Locked`].
    pub dir: PathBuf,
    /// Names of the spaces; [`Space`] is the index. Never reordered between opens: names are matched.
    pub spaces: Vec<&'static str>,
    /// Upper limit for caches and write buffers together, in bytes.
    pub memory_bytes: u64,
}

/// Opens a store.
///
/// # Errors
/// [`Error::Locked`] when another process holds it, [`Error::Broken`] when its files cannot be read: set the
/// directory aside with [`quarantine`] and restore from the log.
pub fn open(options: &Options) -> Result<SharedStore> {
    Ok(match options.engine {
        Engine::Fjall => Arc::new(FjallStore::open(options)?),
        Engine::Sled => Arc::new(SledStore::open(options)?),
        Engine::Memory => Arc::new(MemoryStore::new(options.spaces.len())),
    })
}

/// Moves a store's directory out of the way, to `DIR.aside-N`, and returns where it went. Nothing is deleted.
pub fn quarantine(dir: &Path) -> Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (1u32..)
        .map(|n| dir.with_file_name(format!("{name}.aside-{n}")))
        .find(|p| !p.exists());
    let to = free.expect("u32 has more numbers than a directory has entries");
    std::fs::rename(dir, &to).map_err(|source| Error::Io {
        attempted: "set a store directory aside",
        source,
    })?;
    Ok(to)
}

/// Greatest length of a key, in bytes. An empty key is refused too.
pub const KEY_BYTES_MAX: usize = 65_535;

/// Whether a store takes a key of this length.
pub fn takes_key(key: &[u8]) -> bool {
    (1..=KEY_BYTES_MAX).contains(&key.len())
}

/// Refuses keys that one of the engines could not hold, in every engine, so that a choice of engine is never a choice
/// of what may be stored.
fn check_keys(batch: &Batch) -> Result<()> {
    check_row_keys(batch.writes.iter().map(|(_, key, _)| key.as_slice()))
}

fn check_row_keys<'k>(mut keys: impl Iterator<Item = &'k [u8]>) -> Result<()> {
    let bad = keys.find(|key| !takes_key(key));
    bad.map_or(Ok(()), |key| Err(Error::Key { bytes: key.len() }))
}

fn batch_of(space: Space, rows: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in rows {
        match value {
            Some(value) => batch.put(space, key, value),
            None => batch.delete(space, key),
        }
    }
    batch
}

/// Whether `from..to` holds no key whatever is stored.
fn is_empty_range(from: &[u8], to: Option<&[u8]>) -> bool {
    to.is_some_and(|to| to <= from)
}

/// Result of a store call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store call failed. None of them loses data: everything in a store can be restored from the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the directory open.
    #[error("store {dir} is in use by another process; stop it, or give this one another data directory")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The files of the store cannot be read.
    #[error("store {dir} cannot be read; it is set aside and restored from the log")]
    Broken {
        /// The directory.
        dir: PathBuf,
        /// The engine's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A key that no engine takes.
    #[error("a store key has 1 to {KEY_BYTES_MAX} bytes, this one has {bytes}; nothing of its batch was written")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// The engine failed while working. The store takes no more writes: drop it and open it again.
    #[error("store engine failed while trying to {attempted}")]
    Engine {
        /// What was attempted.
        attempted: &'static str,
        /// The engine's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A call into sled missed its deadline, or an earlier one did. The store is unusable, and its directory stays locked
    /// until the process ends. A batch whose commit failed so may be written or not, but never in part.
    #[error(
        "store {dir} is stuck: sled did not finish a call within {seconds} s; restart the process, and use the engine \
         fjall if it happens again"
    )]
    Stuck {
        /// The directory.
        dir: PathBuf,
        /// The limit that the call missed.
        seconds: u64,
    },
    /// The file system refused (full disk, read-only directory).
    #[error("file system refused to {attempted}")]
    Io {
        /// What was attempted.
        attempted: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}
