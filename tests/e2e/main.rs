//! End-to-end tests: real processes, and suites that need several crates.
//!
//! Without the feature `external`, the tests need only the trunkline binary. With it, they also need Apache Kafka,
//! PostgreSQL, a schema registry and clients in other languages, which `tests/run` provides through environment variables
//! ([`support`]). A test whose service is missing fails; it is never skipped.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    reason = "tests may panic, and their numbers are small"
)]

#[cfg(feature = "external")]
mod cluster;
mod command_line;
mod connect;
mod data_dir;
mod declarative;
mod deployment;
mod edge;
mod ingest;
#[cfg(feature = "external")]
mod interop;
#[cfg(feature = "external")]
mod kafka;
mod metrics;
mod mutations;
mod pipeline;
#[cfg(feature = "external")]
mod postgres;
mod process;
mod random_runs;
mod reference_docs;
mod stream_processes;
#[path = "../support.rs"]
mod support;
