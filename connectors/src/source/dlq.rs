//! The dead-letter queue of a source: its topic, and the largest record that the topic of the source accepts.

use crate::error::{Error, Result};
use event_log::{DeadLetterTopics, ErrorAction, EventLog};

/// The broker's default of `max.message.bytes`.
const MESSAGE_BYTES_MAX: i64 = 1_048_588;

/// Creates the dead-letter topic of a source's topic if it does not exist; returns `max.message.bytes` of the topic.
pub(super) fn prepare(log: &dyn EventLog, topic: &str, replication: Option<i32>) -> Result<usize> {
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
    let topics = DeadLetterTopics {
        retention: DeadLetterTopics::RETENTION,
        replication,
    };
    log.create_topics(&[topics.spec(topic, 1, Some(limit))])
        .map_err(Error::log("create the dead-letter topic"))?;
    Ok(usize::try_from(limit).unwrap_or(usize::MAX))
}
