//! Errors of the event log and the action that each of them requires.
//!
//! Every error has exactly one [`ErrorAction`], so callers branch on [`Error::action`] and not on variants.

use crate::TopicPartition;
use std::path::PathBuf;

/// Result of an event log call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reaction to an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorAction {
    /// Retry after a pause: the log is unreachable or busy.
    Retry,
    /// The record itself is the cause, for example because it is too large: write it to the dead-letter topic.
    DeadLetter,
    /// Stop and report the error: an operator has to resolve the cause.
    Stop,
}

/// An error of the event log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The topic or partition does not exist.
    #[error("topic {topic} does not exist; create it, or see `trunkline topics list`")]
    UnknownTopic {
        /// The topic.
        topic: String,
    },
    /// The user of this process may not access the topic.
    #[error("access to topic {topic} was denied ({reason}); grant the required ACL to this user")]
    AccessDenied {
        /// The topic.
        topic: String,
        /// The broker's reason.
        reason: String,
    },
    /// One partition cannot be read from this offset on. Other partitions can be read.
    #[error("cannot read {at} at offset {offset}")]
    Unreadable {
        /// The partition.
        at: TopicPartition,
        /// The offset of the next record, which was not read.
        offset: i64,
        /// The cause.
        #[source]
        cause: Box<Error>,
    },
    /// The broker rejected the topic's name, partition count or a setting.
    #[error("invalid topic {topic}: {reason}")]
    InvalidTopic {
        /// The topic.
        topic: String,
        /// The broker's reason.
        reason: String,
    },
    /// The log no longer has the offset, or does not have it yet.
    #[error("offset {offset} of {at} is out of range, the log has offsets {start}..{end}; reset the offset explicitly")]
    OutOfRange {
        /// The partition.
        at: TopicPartition,
        /// The requested offset.
        offset: i64,
        /// Earliest offset.
        start: i64,
        /// Log end.
        end: i64,
    },
    /// A record exceeds the maximum size of its topic or of the client.
    #[error(
        "record of {bytes} bytes for topic {topic} exceeds the limit of {limit} bytes; raise max.message.bytes of the topic"
    )]
    TooLarge {
        /// The topic.
        topic: String,
        /// Size of the record.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Another producer with the same transactional id or another member with the same instance name took over.
    #[error("cannot {attempted}: fenced by another process that runs as {who}; stop one of them")]
    Fenced {
        /// What was attempted.
        attempted: &'static str,
        /// The transactional id or the group instance name.
        who: String,
    },
    /// An active member uses the same instance name. Occurs only with [`crate::GroupProtocol::Consumer`].
    #[error(
        "instance name {instance} of group {group} is used by an active member; it becomes free when that member leaves \
         or after the broker's group.consumer.session.timeout.ms"
    )]
    Occupied {
        /// The group.
        group: String,
        /// The instance name.
        instance: String,
    },
    /// The log did not answer in time or is unreachable.
    #[error("cannot {attempted}: the log is unreachable: {reason}")]
    Unavailable {
        /// What was attempted.
        attempted: String,
        /// The cause, as reported by the client library.
        reason: String,
    },
    /// Committed offsets of the group belong to a transaction that is neither committed nor aborted.
    #[error("committed offsets of group {group} belong to a transaction that is still open; retry after its timeout")]
    Undecided {
        /// The group.
        group: String,
    },
    /// The request is invalid or was rejected, for example because of a setting or a missing permission.
    #[error("cannot {attempted}: {reason}")]
    Rejected {
        /// What was attempted.
        attempted: String,
        /// The cause and the fix.
        reason: String,
    },
    /// A stored record or a file of the embedded log is corrupt.
    #[error("corrupt log at {place}: {reason}")]
    Corrupt {
        /// File, key or partition and offset.
        place: String,
        /// What is corrupt.
        reason: String,
    },
    /// The embedded log cannot currently use its directory, for example because the disk is full. Nothing was written.
    /// Writes succeed again once the cause is fixed, without a restart.
    #[error("cannot {attempted} in {}: {cause}; {fix}", dir.display())]
    StorageUnavailable {
        /// What was attempted.
        attempted: &'static str,
        /// The directory.
        dir: PathBuf,
        /// Why the directory cannot be used.
        cause: String,
        /// The fix.
        fix: &'static str,
    },
    /// A storage operation of the embedded log failed.
    #[error("embedded log cannot {attempted}")]
    Storage {
        /// What was attempted.
        attempted: &'static str,
        /// The storage error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What an error prevents from being read or written, if other partitions are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorScope<'e> {
    /// One partition.
    Partition(&'e TopicPartition),
    /// All partitions of a topic.
    Topic(&'e str),
}

impl ErrorScope<'_> {
    /// Returns whether the partition is affected.
    pub fn contains(&self, at: &TopicPartition) -> bool {
        match self {
            ErrorScope::Partition(partition) => *partition == at,
            // The topic may exist without this partition.
            ErrorScope::Topic(topic) => **topic == *at.topic || **topic == *at.to_string(),
        }
    }
}

impl Error {
    /// Returns the partition or topic that is affected; `None` if the error may affect the whole log.
    pub fn scope(&self) -> Option<ErrorScope<'_>> {
        match self {
            Error::OutOfRange { at, .. } | Error::Unreadable { at, .. } => Some(ErrorScope::Partition(at)),
            Error::UnknownTopic { topic } | Error::AccessDenied { topic, .. } => Some(ErrorScope::Topic(topic)),
            _ => None,
        }
    }

    /// Returns this error as the error of one partition, unless it is one. An error that a retry resolves concerns the
    /// whole log.
    pub(crate) fn in_partition(self, at: &TopicPartition, offset: i64) -> Error {
        match self {
            Error::OutOfRange { .. } | Error::Unreadable { .. } | Error::Storage { .. } => self,
            error if error.action() == ErrorAction::Retry => error,
            cause => Error::Unreadable {
                at: at.clone(),
                offset,
                cause: Box::new(cause),
            },
        }
    }

    /// Returns the reaction that this error needs.
    pub fn action(&self) -> ErrorAction {
        match self {
            Error::Unavailable { .. }
            | Error::Undecided { .. }
            | Error::Occupied { .. }
            | Error::StorageUnavailable { .. } => ErrorAction::Retry,
            Error::TooLarge { .. } => ErrorAction::DeadLetter,
            _ => ErrorAction::Stop,
        }
    }
}
