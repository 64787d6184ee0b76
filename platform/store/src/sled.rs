//! Sled engine (being built).
/// Store over sled.
pub struct SledStore;
