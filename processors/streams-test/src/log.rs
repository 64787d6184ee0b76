//! The log of the drivers: embedded, in memory, with a clock that only the test moves.

use event_log::embedded::{self, EmbeddedLog};
use event_log::{
    Cleanup, Isolation, Millis, Offset, OffsetSpec, RecordBatch, Result, SharedEventLog, StartFrom, TopicConfig,
    TopicPartition, TopicSpec,
};
use service::clock::Manual;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Bytes per poll.
const READ_BYTES: usize = 1 << 20;

/// A log in memory, without automatic compaction and retention.
pub(crate) fn in_memory(clock: &Manual) -> Result<SharedEventLog> {
    let clock = clock.clone();
    let mut config = embedded::Config::new(None, Arc::new(move || service::Clock::now_ms(&clock)));
    config.clean_every = None;
    EmbeddedLog::open(config)
}

/// A topic without compaction and retention limits.
pub(crate) fn topic(name: &str, partitions: i32) -> TopicSpec {
    TopicSpec {
        name: name.to_owned(),
        partitions,
        replication: None,
        config: TopicConfig::new(Cleanup::Delete),
    }
}

/// A committed record of an output topic. Its text is `PARTITION KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputRecord {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: Offset,
    /// Timestamp in ms.
    pub timestamp: Millis,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl OutputRecord {
    /// The last header of this name, as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().rev().find(|(known, _)| known == name)?;
        Some(text(found.1.as_deref()))
    }
}

impl fmt::Display for OutputRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = (text(self.key.as_deref()), text(self.value.as_deref()));
        write!(f, "{} {key}={value}", self.partition)
    }
}

pub(crate) fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or(b"null")).into_owned()
}

/// The committed records of a partition, as a `read_committed` reader sees them. Never waits.
pub(crate) fn committed(log: &SharedEventLog, at: &TopicPartition) -> Result<Vec<OutputRecord>> {
    let mut found = Vec::new();
    let end = log.offset(at, OffsetSpec::LastStable)?;
    let mut reader = log.reader(Isolation::ReadCommitted)?;
    reader.assign(&[(at.clone(), StartFrom::Earliest)])?;
    let mut batch = RecordBatch::default();
    while reader.position(at).is_some_and(|next| next < end) {
        reader.poll(&mut batch, READ_BYTES, Duration::ZERO)?;
        found.extend(batch.iter().map(|record| {
            OutputRecord {
                partition: at.partition,
                offset: record.offset(),
                timestamp: record.timestamp(),
                key: record.key().map(<[u8]>::to_vec),
                value: record.value().map(<[u8]>::to_vec),
                headers: record
                    .headers()
                    .iter()
                    .map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)))
                    .collect(),
            }
        }));
    }
    Ok(found)
}
