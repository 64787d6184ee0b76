//! Partitions that cannot be read for a while: damaged or deleted records, a missing topic, or denied access.

use super::Rng;
use super::broker::Broker;
use event_log::{Error, Offset, TopicPartition};

/// Why a partition cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadFault {
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
    pub(super) fn error(self, at: &TopicPartition, offset: Offset) -> Error {
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

impl Broker {
    /// Makes a random input or changelog unreadable, or all readable again.
    pub(super) fn toggle_read_fault(&mut self, rng: &mut Rng) {
        if !self.unreadable.is_empty() {
            return self.end_read_faults();
        }
        let tasks = self.layout.tasks.iter();
        let all: Vec<TopicPartition> = tasks
            .flat_map(|(changelog, inputs)| inputs.iter().chain([changelog]))
            .cloned()
            .collect();
        if let Some(at) = all.get(rng.below(all.len().max(1))) {
            self.unreadable.insert(at.clone(), rng.pick(&ALL));
            self.note("unreadable");
        }
    }

    /// Makes all partitions readable.
    pub(super) fn end_read_faults(&mut self) {
        if !self.unreadable.is_empty() {
            self.unreadable.clear();
            self.note("readable again");
        }
    }

    /// The error of a read of a partition, if it cannot be read.
    pub(super) fn read_error(&self, at: &TopicPartition, offset: Offset) -> Option<Error> {
        self.unreadable.get(at).map(|fault| fault.error(at, offset))
    }

    /// Whether any topic is missing.
    pub(super) fn lacks_topic(&self) -> bool {
        self.unreadable.values().any(|fault| *fault == ReadFault::TopicMissing)
    }

    /// Whether a topic is missing.
    pub(super) fn is_missing(&self, topic: &str) -> bool {
        let missing =
            |(at, fault): (&TopicPartition, &ReadFault)| *at.topic == *topic && *fault == ReadFault::TopicMissing;
        self.unreadable.iter().any(missing)
    }
}
