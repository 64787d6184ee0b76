//! Connectors between external systems and topics.
//!
//! [`source::run`] is the loop of every source: it owns the transactional producer, the stored position, retries and
//! states. The kinds of sources are in [`sources`]. [`ingest`] is the HTTP listener for backends, [`discover`] reads a
//! database's catalog for the command line.
//!
//! Each source record is published exactly once (invariant C14 in `docs/protocol/commit.md`). Each connector runs on its
//! own thread: a failure changes its state and does not affect other connectors.

pub mod commands;
pub mod consumers;
pub mod discover;
mod error;
pub mod ingest;
mod pace;
pub mod source;
pub mod sources;
pub mod status;

pub use error::{Cause, Error, Result};
