//! Records of a changelog: a store's rows, and the commit_record that says up to where its inputs are in them.
//!
//! Guarantees: a value begins with a format version, and a newer one is refused with both numbers.
//! Never: IO.

use crate::TaskId;
use event_log::{Millis, Offset, TopicPartition};
use serde::{Deserialize, Serialize};

/// The commit_record's key.
pub const COMMIT_RECORD_KEY: &[u8] = b"[\"~commit_record\"]";

/// Version of a changelog value that this program writes, and the newest that it reads.
pub const CHANGELOG_VERSION: u8 = 1;

/// How far a task's inputs are contained in its state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CommitRecord {
    /// Rises by one with each commit of the task.
    pub seq: u64,
    /// Topic, partition and offset of the next record to read, for each input.
    pub offsets: Vec<(String, i32, Offset)>,
    /// The greatest record timestamp that the task has seen, in ms.
    pub stream_time: Millis,
    /// Whether it was written without a transaction: the committed offsets may then be behind it, never ahead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
}

impl CommitRecord {
    /// Next offset of an input, when the commit_record knows it.
    pub fn next_offset(&self, at: &TopicPartition) -> Option<Offset> {
        let found = self
            .offsets
            .iter()
            .find(|(topic, partition, _)| *partition == at.partition && **topic == *at.topic);
        found.map(|(_, _, offset)| *offset)
    }

    /// The inputs that it knows.
    pub fn inputs(&self) -> Vec<TopicPartition> {
        let known = self.offsets.iter();
        known
            .map(|(topic, partition, _)| TopicPartition::new(topic.as_str(), *partition))
            .collect()
    }

    /// Its value on the changelog, appended to `into`.
    pub fn write(&self, into: &mut Vec<u8>) {
        into.push(CHANGELOG_VERSION);
        serde_json::to_writer(into, self).expect("writing JSON of plain numbers and strings into memory cannot fail");
    }

    /// Its value on the changelog.
    pub fn written(&self) -> Vec<u8> {
        let mut value = Vec::new();
        self.write(&mut value);
        value
    }

    /// Reads a commit_record's value from the changelog.
    ///
    /// # Errors
    /// As [`body`], and when the JSON is not a commit_record's.
    pub fn read(value: &[u8]) -> Result<CommitRecord, FormatError> {
        serde_json::from_slice(body(value)?).map_err(|source| FormatError::CommitRecord { source })
    }
}

/// A changelog value without its version.
///
/// # Errors
/// [`FormatError::Newer`] when a newer program wrote it, [`FormatError::Empty`] when there is no version at all.
pub fn body(value: &[u8]) -> Result<&[u8], FormatError> {
    match value.split_first() {
        Some((&CHANGELOG_VERSION, body)) => Ok(body),
        Some((&found, _)) => Err(FormatError::Newer {
            what: "changelog value",
            found,
            known: CHANGELOG_VERSION,
        }),
        None => Err(FormatError::Empty {
            what: "changelog value",
        }),
    }
}

/// Why stored bytes of the runtime's own are refused.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Written by a newer program.
    #[error("{what} has format {found}, and this program reads up to {known}; run the newer version again")]
    Newer {
        /// What was read.
        what: &'static str,
        /// Its version.
        found: u8,
        /// The newest version that is known here.
        known: u8,
    },
    /// No version byte.
    #[error("{what} is empty where a format version is expected")]
    Empty {
        /// What was read.
        what: &'static str,
    },
    /// Not a commit_record.
    #[error("commit_record cannot be read")]
    CommitRecord {
        /// The JSON error.
        #[source]
        source: serde_json::Error,
    },
    /// Not what a process tells of itself.
    #[error("member cannot be read")]
    GroupMetadata {
        /// The JSON error.
        #[source]
        source: serde_json::Error,
    },
    /// Not a checkpoint.
    #[error("checkpoint cannot be read")]
    Checkpoint {
        /// The JSON error.
        #[source]
        source: serde_json::Error,
    },
}

/// The ways out of a commit_record that differs from the committed offsets, for people.
pub(crate) fn ways_out(application: &str, store: &str, task: &TaskId) -> String {
    let task = format!("{store}/{}", task.partition);
    format!(
        "to go on from the committed offsets with the state as it is: `trunkline offsets accept {application} {task}`; \
         to put the offsets back to what the state contains: `trunkline offsets restore {application} {task}`"
    )
}

/// The ways out of committed offsets beside an empty changelog, for people.
pub(crate) fn ways_to_begin(application: &str, store: &str, task: &TaskId, inputs: &[TopicPartition]) -> String {
    let (task, inputs) = (format!("{store}/{}", task.partition), named(inputs));
    format!(
        "if the store had another name, declare its former name; to process the inputs again from their beginning: \
         `trunkline offsets reset --to-earliest {application} {task}{inputs}`; to go on from the committed offsets without any state: \
         `trunkline offsets accept {application} {task}{inputs}`"
    )
}

/// The ways out of a state that was made from other inputs, for people.
pub(crate) fn ways_to_exchange(application: &str, store: &str, task: &TaskId, inputs: &[TopicPartition]) -> String {
    let (task, inputs) = (format!("{store}/{}", task.partition), named(inputs));
    format!(
        "declare the inputs that it had, or give the store another name to begin with none; to go on with this state: \
         `trunkline offsets accept {application} {task}{inputs}`"
    )
}

/// Inputs as the commands take them.
fn named(inputs: &[TopicPartition]) -> String {
    let named: Vec<String> = inputs.iter().map(|input| format!(" --input {}", input.topic)).collect();
    named.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_as_it_was_written() {
        let commit_record = CommitRecord {
            seq: 7,
            offsets: vec![("change.shop".to_owned(), 0, 1234)],
            stream_time: 99,
            alone: false,
        };
        let mut bytes = Vec::new();
        commit_record.write(&mut bytes);
        assert_eq!(
            bytes,
            b"\x01{\"seq\":7,\"offsets\":[[\"change.shop\",0,1234]],\"stream_time\":99}"
        );
        let read = CommitRecord::read(&bytes).unwrap();
        assert_eq!(read, commit_record);
        assert_eq!(read.next_offset(&TopicPartition::new("change.shop", 0)), Some(1234));
        assert_eq!(read.next_offset(&TopicPartition::new("change.shop", 1)), None);
    }

    #[test]
    fn a_marker_without_a_transaction_says_so() {
        let commit_record = CommitRecord {
            alone: true,
            ..CommitRecord::default()
        };
        let mut bytes = Vec::new();
        commit_record.write(&mut bytes);
        assert_eq!(
            bytes,
            b"\x01{\"seq\":0,\"offsets\":[],\"stream_time\":0,\"alone\":true}"
        );
        assert_eq!(CommitRecord::read(&bytes).unwrap(), commit_record);
    }

    #[test]
    fn a_newer_marker_is_refused_with_both_numbers() {
        let text = CommitRecord::read(b"\x02{}").unwrap_err().to_string();
        assert!(text.contains("format 2") && text.contains("up to 1"), "{text}");
    }
}
