//! The dead-letter queue of a source: its topic, and the largest record that the topic of the source accepts.

use crate::error::{Error, Result};
use event_log::{Cleanup, ErrorAction, EventLog, TimestampPolicy, TopicConfig, TopicSpec};
use topology::Names;

/// The broker's default of `max.message.bytes`.
const MESSAGE_BYTES_MAX: i64 = 1_048_588;
/// Bytes reserved for the headers of a dead letter.
const HEADER_BYTES: i64 = 64 << 10;
/// Retention of dead letters: 30 days.
const RETENTION_MS: i64 = 30 * 24 * 3_600_000;

/// Creates the dead-letter topic of a source's topic if it does not exist; returns `max.message.bytes` of the topic.
///
/// The settings must equal those of the stream runtime, which creates the same topic for the processors that read
/// `topic`.
pub(super) fn prepare(log: &dyn EventLog, topic: &str) -> Result<usize> {
    let described = match log.describe(topic) {
        Ok(described) => described,
        // With a limit that is too low, rows that fit would become dead letters until the source is opened again.
        Err(error) if error.action() == ErrorAction::Retry => return Err(Error::log("describe the topic")(error)),
        // Writing a topic does not imply the permission to read its settings. The broker still enforces the limit.
        Err(_) => None,
    };
    let limit = described
        .and_then(|info| info.number("max.message.bytes"))
        .unwrap_or(MESSAGE_BYTES_MAX);
    let mut config = TopicConfig::new(Cleanup::Delete);
    config.retention_ms = Some(RETENTION_MS);
    // With CreateTime, dead letters of a process whose clock is wrong would expire immediately or never.
    config.timestamps = TimestampPolicy::LogAppendTime;
    config.max_message_bytes = Some(limit.saturating_add(HEADER_BYTES).min(i64::from(i32::MAX)));
    let spec = TopicSpec {
        name: Names::dead_letters(topic),
        partitions: 1,
        replication: None,
        config,
    };
    log.create_topics(&[spec])
        .map_err(Error::log("create the dead-letter topic"))?;
    Ok(usize::try_from(limit).unwrap_or(usize::MAX))
}
