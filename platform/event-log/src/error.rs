//! What can go wrong with a log, and what to do about it.
//!
//! Guarantees: a variant says what was attempted; its [`ErrorAction`] says the one way a stream goes on from it.
//! Never: a panic on input from outside.

use crate::TopicPartition;

/// Result of a log call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The one way to go on after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorAction {
    /// Try the same again after a while: the log is out of reach or busy.
    Retry,
    /// The record itself is refused (too large, corrupt): it belongs in a dead letter.
    DeadLetter,
    /// Nothing the caller can do: stop with the message.
    Stop,
}

/// Why a call to the log failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The topic, or that partition of it, does not exist.
    #[error("topic {topic} does not exist; create it, or see `trunkline topics list`")]
    UnknownTopic {
        /// The topic asked for.
        topic: String,
    },
    /// The broker refuses the topic's name, partition count or a setting.
    #[error("topic {topic} is refused: {reason}")]
    InvalidTopic {
        /// The topic asked for.
        topic: String,
        /// The broker's reason.
        reason: String,
    },
    /// An offset below the start or above the end was asked for.
    #[error("offset {offset} of {at} is out of range: {start}..{end} is kept")]
    OutOfRange {
        /// The partition.
        at: TopicPartition,
        /// The offset asked for.
        offset: i64,
        /// First offset kept.
        start: i64,
        /// End offset.
        end: i64,
    },
    /// A record is larger than the log takes.
    #[error("record of {bytes} bytes for {topic} is larger than the {limit} bytes that the log takes")]
    TooLarge {
        /// The topic.
        topic: String,
        /// Size of the record.
        bytes: usize,
        /// The limit that refused it.
        limit: usize,
    },
    /// Another session of the same transactional id, or another member of the same name, has taken over.
    #[error("fenced while trying to {attempted}: another process runs as {who}; stop one of the two")]
    Fenced {
        /// What was attempted.
        attempted: &'static str,
        /// The transactional id or group instance.
        who: String,
    },
    /// Another member that counts as alive has the instance name. Only with [`crate::GroupProtocol::Consumer`].
    #[error(
        "instance {instance} of group {group} is taken by a member that counts as alive; it is free when that one \
         leaves, or when its session is over (the brokers' group.consumer.session.timeout.ms)"
    )]
    Occupied {
        /// The group.
        group: String,
        /// The instance name.
        instance: String,
    },
    /// The log could not be reached in time.
    #[error("log is out of reach while trying to {attempted}: {reason}")]
    Unavailable {
        /// What was attempted.
        attempted: String,
        /// The client's own words.
        reason: String,
    },
    /// A group's offsets are part of a transaction that is not decided.
    #[error("offsets of group {group} are part of a transaction that is not decided")]
    Undecided {
        /// The group.
        group: String,
    },
    /// A group id, transactional id or setting is not usable.
    #[error("cannot {attempted}: {reason}")]
    Refused {
        /// What was attempted.
        attempted: String,
        /// Why, with the fix.
        reason: String,
    },
    /// A stored record or the embedded log's own files cannot be read.
    #[error("corrupt log at {place}: {reason}")]
    Corrupt {
        /// Where.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The embedded log's own store failed.
    #[error("store of the embedded log failed while trying to {attempted}")]
    Storage {
        /// What was attempted.
        attempted: &'static str,
        /// The store's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Says the one way to go on.
    pub fn action(&self) -> ErrorAction {
        match self {
            Error::Unavailable { .. } | Error::Undecided { .. } | Error::Occupied { .. } => ErrorAction::Retry,
            Error::TooLarge { .. } => ErrorAction::DeadLetter,
            _ => ErrorAction::Stop,
        }
    }
}
