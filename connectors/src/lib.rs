//! Connectors: outside to topics, and back. One trait and one loop for all sources, one trait for sinks; one room for
//! each kind.
//!
//! Guarantees: each change of a source reaches its topic exactly once, with its place; a connector that fails never
//! stops another, and goes on by itself once the cause is gone.
//! Never: a decision about what a change means.

pub mod discover;
mod error;
pub mod ingest;
mod pace;
pub mod sink;
pub mod source;
pub mod sources;
pub mod status;

pub use error::{Cause, Error, Result};
