//! Conformance suites: every backend of the event log, the registry and the state store passes the same cases.
//!
//! A case that passes on one backend and fails on another is a defect of the backend, never a special case in a caller.
//! The feature `external` adds Apache Kafka and a registry with Confluent's API, which `tests/run` provides.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    reason = "a test that meets what it does not expect fails, and its numbers are small"
)]

mod event_log;
mod registry;
mod state_store;
#[path = "../support.rs"]
mod support;
