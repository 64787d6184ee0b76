//! The one test binary: suites that need several crates, processes, or real parts.
//!
//! Guarantees: each suite is a module; what it needs from outside comes through `world`.
//! Never: a test that is skipped because a part is missing; it fails and says to use `tests/run`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    reason = "a test that meets what it does not expect fails, and its numbers are small"
)]

mod cluster;
mod data_dir;
mod deployment;
mod edge;
mod ingest;
mod interop;
mod kafka;
mod links;
mod log;
mod metrics;
mod mutations;
mod postgres;
mod process;
mod reference_docs;
mod registry;
mod runtime;
mod store;
mod straight_line;
mod streams;
mod world;
