//! Names, settings and descriptions of topics and consumer groups. Setting names and their meaning are Kafka's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Creates a partition's name.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        TopicPartition {
            topic: topic.into(),
            partition,
        }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A topic's id. Unlike the name, it is never reused after the topic was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub uuid::Uuid);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

/// Cleanup policy (`cleanup.policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// Old records are deleted by age and size.
    Delete,
    /// Log compaction: only the newest record of each key is kept.
    Compact,
    /// Log compaction, and deletion by age and size.
    CompactDelete,
}

/// Which clock sets the timestamps of records (`message.timestamp.type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampPolicy {
    /// The producer's clock.
    CreateTime,
    /// The broker's clock, when it appends the record.
    LogAppendTime,
}

/// Settings of a topic. `None` means the broker's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicConfig {
    /// `cleanup.policy`.
    pub cleanup: Cleanup,
    /// `message.timestamp.type`.
    pub timestamps: TimestampPolicy,
    /// `retention.ms`.
    pub retention_ms: Option<i64>,
    /// `retention.bytes`, per partition.
    pub retention_bytes: Option<i64>,
    /// `min.compaction.lag.ms`.
    pub min_compaction_lag_ms: Option<i64>,
    /// `delete.retention.ms`: how long compaction keeps a tombstone after the first pass that visits it.
    pub delete_retention_ms: Option<i64>,
    /// `max.message.bytes`.
    pub max_message_bytes: Option<i64>,
    /// Other settings by their Kafka names (`segment.ms`, …).
    pub other: BTreeMap<String, String>,
}

impl TopicConfig {
    /// Creates settings with this cleanup policy, `CreateTime` timestamps and the broker's defaults.
    pub fn new(cleanup: Cleanup) -> Self {
        TopicConfig {
            cleanup,
            timestamps: TimestampPolicy::CreateTime,
            retention_ms: None,
            retention_bytes: None,
            min_compaction_lag_ms: None,
            delete_retention_ms: None,
            max_message_bytes: None,
            other: BTreeMap::new(),
        }
    }
}

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Name: up to 249 characters of `[a-zA-Z0-9._-]`.
    pub name: String,
    /// Partition count, at least 1.
    pub partitions: i32,
    /// Replication factor; `None` means the broker's default. Ignored by the embedded log.
    pub replication: Option<i32>,
    /// Settings.
    pub config: TopicConfig,
}

/// Description of an existing topic.
#[derive(Debug, Clone)]
pub struct TopicInfo {
    /// Name.
    pub name: String,
    /// Id.
    pub id: TopicId,
    /// Partition count.
    pub partitions: i32,
    /// All settings by their Kafka names, including defaults.
    pub settings: BTreeMap<String, String>,
}

impl TopicInfo {
    /// Returns a numeric setting such as `delete.retention.ms`.
    pub fn number(&self, setting: &str) -> Option<i64> {
        self.settings.get(setting)?.parse().ok()
    }
}

/// Description of a group member.
#[derive(Debug, Clone)]
pub struct MemberInfo {
    /// Client id, followed by `/` and the group instance id of a static member.
    pub name: String,
    /// Group instance id of a static member.
    pub instance: Option<String>,
    /// Assigned partitions.
    pub partitions: Vec<TopicPartition>,
}

/// Description of a consumer group.
#[derive(Debug, Clone)]
pub struct GroupInfo {
    /// Group id.
    pub group: String,
    /// State of the group as Kafka names it: `Stable`, `Empty`, …
    pub state: String,
    /// Active members.
    pub members: Vec<MemberInfo>,
    /// Committed offsets.
    pub committed: BTreeMap<TopicPartition, i64>,
}
