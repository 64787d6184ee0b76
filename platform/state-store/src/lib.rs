//! The embedded state store: one key-value trait ([`Store`]) with three engines.
//!
//! A batch is atomic over all keyspaces. After a crash of the process the store holds a prefix of the committed
//! batches; after a crash of the machine the prefix may be shorter, but it has no gap. Keys are ordered as bytes. A
//! commit does not fsync: everything in a store can be restored from the log. `tests/conformance/state_store.rs` runs
//! the same tests with every engine.

mod batch;
mod directory;
mod error;
mod fjall;
mod key;
mod memory;
mod open;
mod options;
mod quarantine;
mod sled;
mod store;

pub use self::batch::{Batch, Space};
pub use self::error::{Error, Result};
pub use self::fjall::FjallStore;
pub use self::key::{KEY_BYTES_MAX, KeyRange, takes_key};
pub use self::memory::MemoryStore;
pub use self::open::open;
pub use self::options::{Engine, Options};
pub use self::quarantine::quarantine;
pub use self::sled::SledStore;
pub use self::store::{Direction, SharedStore, Snapshot, Stats, Store, Visit};
