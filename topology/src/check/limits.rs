//! Limits and defaults of partition counts.

/// Maximum number of partitions of `view.log`. A cursor contains one position per partition.
pub const VIEW_LOG_PARTITIONS_MAX: i64 = 128;
/// Default number of partitions of `view.log`.
pub const VIEW_LOG_PARTITIONS: i32 = 16;
/// Default number of partitions of an event topic or a processor's topic.
pub const EVENT_PARTITIONS: i32 = 12;
/// Maximum number of partitions of an event topic or a processor's topic.
pub const EVENT_PARTITIONS_MAX: i64 = 1024;
