//! What a topic is: its name, partitions and settings, and what can be seen of topics and groups.
//!
//! Guarantees: setting names and meanings are Kafka's. Never: IO.

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
    /// Names a partition.
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

/// A topic's id: unlike its name it is never used again after the topic was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub uuid::Uuid);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

/// What happens to old records (`cleanup.policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// Removed by age and size.
    Delete,
    /// Only the newest record of each key is kept.
    Compact,
    /// Both.
    CompactDelete,
}

/// Whose clock a record's timestamp is from (`message.timestamp.type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampPolicy {
    /// The producer's.
    CreateTime,
    /// The broker's, at the append.
    LogAppendTime,
}

/// Settings of a topic; `None` leaves the broker's default.
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
    /// `delete.retention.ms`: how long a tombstone stays after it was first cleaned.
    pub delete_retention_ms: Option<i64>,
    /// `max.message.bytes`.
    pub max_message_bytes: Option<i64>,
    /// Any other setting by Kafka's name (`segment.ms`, …), passed on as it is.
    pub other: BTreeMap<String, String>,
}

impl TopicConfig {
    /// A topic with this clean-up policy, the producer's timestamps and the broker's defaults.
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
    /// Name: `[a-zA-Z0-9._-]`, at most 249 characters.
    pub name: String,
    /// Partition count, at least 1.
    pub partitions: i32,
    /// Replicas; `None` leaves the broker's default. The embedded log ignores it.
    pub replication: Option<i32>,
    /// Settings.
    pub config: TopicConfig,
}

/// A topic as it is.
#[derive(Debug, Clone)]
pub struct TopicInfo {
    /// Name.
    pub name: String,
    /// Id.
    pub id: TopicId,
    /// Partition count.
    pub partitions: i32,
    /// Settings, defaults included, by Kafka's names.
    pub settings: BTreeMap<String, String>,
}

impl TopicInfo {
    /// A setting that is a whole number, such as `delete.retention.ms`.
    pub fn number(&self, setting: &str) -> Option<i64> {
        self.settings.get(setting)?.parse().ok()
    }
}

/// A member of a group.
#[derive(Debug, Clone)]
pub struct MemberInfo {
    /// Client id, and group instance id when the membership is static.
    pub name: String,
    /// Group instance id, when the membership is static.
    pub instance: Option<String>,
    /// Partitions assigned to it.
    pub partitions: Vec<TopicPartition>,
}

/// A group as it is.
#[derive(Debug, Clone)]
pub struct GroupInfo {
    /// Group id.
    pub group: String,
    /// `Stable`, `Empty`, …, as Kafka names it.
    pub state: String,
    /// Live members.
    pub members: Vec<MemberInfo>,
    /// Committed offsets.
    pub committed: BTreeMap<TopicPartition, i64>,
}
