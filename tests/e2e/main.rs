//! End-to-end tests: real processes, and suites that need several crates.
//!
//! Without the feature `external` everything here needs nothing but the built binary. With it, `tests/run` provides
//! Apache Kafka, PostgreSQL, a schema registry and foreign clients through environment variables ([`support`]); a test
//! whose part is missing fails and is never skipped.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    reason = "a test that meets what it does not expect fails, and its numbers are small"
)]

#[cfg(feature = "external")]
mod cluster;
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
mod reference_docs;
mod stream_processes;
#[path = "../support.rs"]
mod support;
