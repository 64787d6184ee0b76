//! Reads the committed records of the tested application, as a `read_committed` reader does. It never waits.

use event_log::{Isolation, Millis, Offset, OffsetSpec, RecordBatch, SharedEventLog, StartFrom, TopicPartition};
use std::fmt;
use std::time::Duration;

/// Bytes per poll.
const READ_BYTES: usize = 1 << 20;

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

pub(super) fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or(b"null")).into_owned()
}

/// Appends the committed records of a partition.
pub(super) fn read(log: &SharedEventLog, at: &TopicPartition, found: &mut Vec<OutputRecord>) -> event_log::Result<()> {
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
    Ok(())
}
