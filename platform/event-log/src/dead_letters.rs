//! Names and settings of dead-letter topics, which stream tasks and sources create.
//!
//! A source and the processors that read its topic share one dead-letter topic. The first of them that starts creates it,
//! so all of them use the same settings.

use crate::{Cleanup, TimestampPolicy, TopicConfig, TopicSpec};
use std::time::Duration;

/// Kafka's default `max.message.bytes`.
const MESSAGE_BYTES_MAX: i64 = 1_048_588;
/// Size that a dead letter may have in addition to its record: the `__connect.errors.*` headers.
const HEADER_BYTES: i64 = 64 << 10;

/// Name of a topic's dead-letter topic: `<topic>.dlq`.
pub fn dead_letter_topic(topic: &str) -> String {
    format!("{topic}.dlq")
}

/// The topic whose dead letters a dead-letter topic contains; `None` for other topics.
pub fn origin_of_dead_letters(topic: &str) -> Option<&str> {
    topic.strip_suffix(".dlq").filter(|origin| !origin.is_empty())
}

/// Settings that all dead-letter topics of a process have in common.
#[derive(Debug, Clone, Copy)]
pub struct DeadLetterTopics {
    /// `retention.ms`.
    pub retention: Duration,
    /// Replication factor; `None` means the broker's default.
    pub replication: Option<i32>,
}

impl DeadLetterTopics {
    /// Default retention: 30 days.
    pub const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

    /// The dead-letter topic of `topic`, which has this number of partitions and this `max.message.bytes`.
    pub fn spec(&self, topic: &str, partitions: i32, message_bytes_max: Option<i64>) -> TopicSpec {
        let mut config = TopicConfig::new(Cleanup::Delete);
        config.retention_ms = Some(i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX));
        // With CreateTime, a process with a wrong clock would write dead letters that retention deletes immediately or
        // never.
        config.timestamps = TimestampPolicy::LogAppendTime;
        let largest = message_bytes_max
            .unwrap_or(MESSAGE_BYTES_MAX)
            .saturating_add(HEADER_BYTES);
        config.max_message_bytes = Some(largest.min(i64::from(i32::MAX)));
        TopicSpec {
            name: dead_letter_topic(topic),
            partitions,
            replication: self.replication,
            config,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letter_topic_has_room_for_headers_and_the_configured_replication() {
        let topics = DeadLetterTopics {
            retention: Duration::from_secs(60),
            replication: Some(3),
        };
        let spec = topics.spec("shop.change.shop", 4, Some(2_000_000));
        assert_eq!((spec.name.as_str(), spec.partitions), ("shop.change.shop.dlq", 4));
        assert_eq!(spec.replication, Some(3));
        assert_eq!(spec.config.retention_ms, Some(60_000));
        assert_eq!(spec.config.max_message_bytes, Some(2_065_536));
        assert_eq!(spec.config.timestamps, TimestampPolicy::LogAppendTime);
        let largest = topics.spec("t", 1, Some(i64::MAX)).config.max_message_bytes;
        assert_eq!(largest, Some(i64::from(i32::MAX)));
        assert_eq!(origin_of_dead_letters(&spec.name), Some("shop.change.shop"));
        assert_eq!(origin_of_dead_letters("shop.change.shop"), None);
    }
}
