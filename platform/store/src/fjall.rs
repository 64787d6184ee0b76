//! Fjall engine (being built).
/// Store over fjall.
pub struct FjallStore;
