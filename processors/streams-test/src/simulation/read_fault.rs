//! Partitions that cannot be read for a while: damaged or deleted records, a missing topic, or denied access.

use super::Rng;
use event_log::{Error, Offset, TopicPartition};
use std::collections::BTreeMap;

/// Why a partition cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadFault {
    Corrupt,
    OutOfRange,
    AccessDenied,
    TopicMissing,
}

const ALL: [ReadFault; 4] = [
    ReadFault::Corrupt,
    ReadFault::OutOfRange,
    ReadFault::AccessDenied,
    ReadFault::TopicMissing,
];

impl ReadFault {
    /// The error of a read at an offset.
    fn error(self, at: &TopicPartition, offset: Offset) -> Error {
        let cause = match self {
            ReadFault::Corrupt => Error::Corrupt {
                place: at.to_string(),
                reason: "simulated".to_owned(),
            },
            ReadFault::OutOfRange => {
                return Error::OutOfRange {
                    at: at.clone(),
                    offset,
                    start: offset + 1,
                    end: offset + 1,
                };
            }
            ReadFault::AccessDenied => Error::AccessDenied {
                topic: at.topic.to_string(),
                reason: "simulated".to_owned(),
            },
            ReadFault::TopicMissing => {
                return Error::UnknownTopic {
                    topic: at.topic.to_string(),
                };
            }
        };
        Error::Unreadable {
            at: at.clone(),
            offset,
            cause: Box::new(cause),
        }
    }
}

/// The partitions that cannot be read.
#[derive(Debug, Default)]
pub(super) struct ReadFaults(BTreeMap<TopicPartition, ReadFault>);

impl ReadFaults {
    /// Makes one of these partitions unreadable, or all readable again if one is unreadable. Returns the event.
    pub(super) fn toggle(&mut self, partitions: &[TopicPartition], rng: &mut Rng) -> &'static str {
        if self.0.is_empty()
            && let Some(at) = partitions.get(rng.below(partitions.len().max(1)))
        {
            self.0.insert(at.clone(), rng.pick(&ALL));
            return "unreadable";
        }
        self.clear();
        "readable again"
    }

    /// Makes all partitions readable.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The error of a read of a partition, if it cannot be read.
    pub(super) fn error(&self, at: &TopicPartition, offset: Offset) -> Option<Error> {
        self.0.get(at).map(|fault| fault.error(at, offset))
    }

    /// Whether any topic is missing.
    pub(super) fn lack_topic(&self) -> bool {
        self.0.values().any(|fault| *fault == ReadFault::TopicMissing)
    }

    /// Whether a topic is missing.
    pub(super) fn is_missing(&self, topic: &str) -> bool {
        let missing =
            |(at, fault): (&TopicPartition, &ReadFault)| *at.topic == *topic && *fault == ReadFault::TopicMissing;
        self.0.iter().any(missing)
    }
}
