//! Errors, timeouts and limits of the simulated broker.

use event_log::{Millis, TopicPartition};
use std::collections::BTreeMap;

/// `transaction.timeout.ms` of every simulated process.
pub(super) const TXN_TIMEOUT: Millis = 600;
/// `session.timeout.ms` of every simulated process.
pub(super) const SESSION_TIMEOUT: Millis = 800;
/// `delete.retention.ms` of changelogs.
pub(super) const DELETE_RETENTION: Millis = 20_000;
/// How long an empty group keeps its offsets.
pub(super) const OFFSET_RETENTION: Millis = 25_000;
/// Maximum size of a value, except in dead-letter topics.
pub(super) const VALUE_BYTES_MAX: usize = 4096;

/// Error response of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BrokerError {
    /// The request cannot be handled now; the client retries it.
    Retry,
    /// The offsets are part of an undecided transaction.
    Undecided,
    /// The producer epoch, generation or member id is outdated.
    Fenced(&'static str),
    /// No response: the outcome is unknown.
    Timeout,
}

pub(super) type BrokerResult<T> = Result<T, BrokerError>;

/// Tasks by changelog, with their inputs.
pub type Tasks = BTreeMap<TopicPartition, Vec<TopicPartition>>;
