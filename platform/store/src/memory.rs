//! Memory engine (being built).
/// Store over memory.
pub struct MemoryStore;
