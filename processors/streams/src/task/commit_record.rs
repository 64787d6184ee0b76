//! The commit record: the changelog record that states the positions of a task's inputs, and the format of changelog values.
//!
//! A changelog value begins with a format version. A value of a newer format is rejected, never skipped.

use crate::api::error::FormatError;
use event_log::{Millis, Offset, TopicId, TopicPartition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Key of the commit record in the changelog. Part of the stored format, so it keeps its former name.
pub const COMMIT_RECORD_KEY: &[u8] = b"[\"~marker\"]";

/// Format version of changelog values: the one that this program writes, and the newest that it reads.
pub const CHANGELOG_VERSION: u8 = 1;

/// The position of each input up to which a task's state includes the input's records.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CommitRecord {
    /// Increases by one with each commit of the task.
    pub seq: u64,
    /// Topic, partition and next offset of each input.
    pub offsets: Vec<(String, i32, Offset)>,
    /// Topic id of each input, by its name. An offset is a position in the topic with this id only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topic_ids: BTreeMap<String, String>,
    /// Greatest record timestamp that the task has seen, in ms.
    pub stream_time: Millis,
    /// Whether the record was written outside a transaction. The committed offsets may then be behind it, but not ahead
    /// of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least_once: bool,
}

impl CommitRecord {
    /// Next offset of an input; `None` if the record does not contain the input.
    pub fn next_offset(&self, at: &TopicPartition) -> Option<Offset> {
        let found = self
            .offsets
            .iter()
            .find(|(topic, partition, _)| *partition == at.partition && **topic == *at.topic);
        found.map(|(_, _, offset)| *offset)
    }

    /// Whether the record contains a topic of this name with another id, so that its offset is not a position in this
    /// topic.
    pub fn is_of_other_topic(&self, topic: &str, id: TopicId) -> bool {
        self.topic_ids.get(topic).is_some_and(|known| *known != id.to_string())
    }

    /// The inputs in the record.
    pub fn inputs(&self) -> Vec<TopicPartition> {
        let known = self.offsets.iter();
        known
            .map(|(topic, partition, _)| TopicPartition::new(topic.as_str(), *partition))
            .collect()
    }

    /// Appends the record as a changelog value to `into`.
    pub fn write(&self, into: &mut Vec<u8>) {
        into.push(CHANGELOG_VERSION);
        serde_json::to_writer(into, self).expect("writing JSON of plain numbers and strings into memory cannot fail");
    }

    /// The record as a changelog value.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = Vec::new();
        self.write(&mut value);
        value
    }

    /// Decodes the changelog value of a commit record.
    ///
    /// # Errors
    /// As `body`; [`FormatError::CommitRecord`] if the JSON is not valid.
    pub fn read(value: &[u8]) -> Result<CommitRecord, FormatError> {
        serde_json::from_slice(body(value)?).map_err(|source| FormatError::CommitRecord { source })
    }
}

/// A changelog value without its format version.
///
/// # Errors
/// [`FormatError::Newer`] if a newer program wrote it, [`FormatError::Empty`] if the version is missing.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_record_round_trips() {
        let commit_record = CommitRecord {
            seq: 7,
            offsets: vec![("change.shop".to_owned(), 0, 1234)],
            topic_ids: BTreeMap::new(),
            stream_time: 99,
            at_least_once: false,
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
    fn topic_of_the_same_name_with_another_id_is_another_topic() {
        let id = |n: u8| TopicId(format!("00000000-0000-4000-8000-{n:012}").parse().unwrap());
        let commit_record = CommitRecord {
            topic_ids: BTreeMap::from([("in".to_owned(), id(1).to_string())]),
            ..CommitRecord::default()
        };
        let read = CommitRecord::read(&commit_record.encode()).unwrap();
        assert!(!read.is_of_other_topic("in", id(1)));
        assert!(read.is_of_other_topic("in", id(2)));
        assert!(
            !read.is_of_other_topic("new", id(2)),
            "the state contains nothing of it"
        );
    }

    #[test]
    fn non_transactional_commit_record_is_flagged() {
        let commit_record = CommitRecord {
            at_least_once: true,
            ..CommitRecord::default()
        };
        let mut bytes = Vec::new();
        commit_record.write(&mut bytes);
        assert_eq!(
            bytes,
            b"\x01{\"seq\":0,\"offsets\":[],\"stream_time\":0,\"at_least_once\":true}"
        );
        assert_eq!(CommitRecord::read(&bytes).unwrap(), commit_record);
    }

    #[test]
    fn newer_commit_record_is_rejected_with_both_versions() {
        let text = CommitRecord::read(b"\x02{}").unwrap_err().to_string();
        assert!(text.contains("format 2") && text.contains("up to 1"), "{text}");
    }
}
