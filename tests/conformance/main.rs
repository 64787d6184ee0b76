//! Conformance suites: every backend of the event log, the registry and the state store passes the same cases.
//!
//! If a case passes with one backend and fails with another, the backend must be corrected; callers have no special
//! cases. The feature `external` adds Apache Kafka and a registry with Confluent's API, which `tests/run` provides.
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
