//! Keys and small values of the embedded log's store. Blocks of records are described in `block.rs`.
//!
//! | keyspace | key | value, after the version byte |
//! | --- | --- | --- |
//! | records | topic number, partition, base offset | a block |
//! | meta | `h` | log epoch, number of openings, next topic number |
//! | meta | `t` topic number | JSON: name, id, partitions, settings |
//! | meta | `d` topic number | empty: the topic is deleted, its blocks not completely |
//! | meta | `p` partition | start offset, bytes removed below it; from version 2: progress of compaction; version 3: progress of merging |
//! | meta | `i` partition, offset | greatest timestamp and number of bytes ever written below that offset |
//! | meta | `a` partition, transaction | offset of its abort marker |
//! | meta | `x` transaction, partition | its first offset there; the transaction is open |
//! | meta | `c` group, partition | committed offset |
//! | meta | `s` | ids of the last session that wrote to the directory and of the one before |
//! | meta | `e` group | time since when it has no member |
//!
//! Integers are big endian, so that keys sort numerically. Every value starts with a version; a newer version is
//! rejected. The last index entry may be at the partition's end, without a block after it: compaction writes the entry
//! before it removes the blocks from which the end could otherwise be determined.

use crate::{Error, Millis, Offset, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Version of every value except the record of a partition.
pub(super) const VERSION: u8 = 1;
/// Versions of a partition's record with the progress of compaction and of merging. Version 1 ends after the bytes.
#[cfg(test)]
const WITH_CLEANED: u8 = 2;
const WITH_MERGED: u8 = 3;

/// A partition, identified by the number of its topic, which is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PartId {
    pub topic: u32,
    pub partition: u32,
}

/// Record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub log_epoch: Uuid,
    pub openings: u32,
    pub next_topic: u32,
}

/// Stored description of a topic. Contains the settings that differ from the defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TopicRecord {
    pub name: String,
    pub id: Uuid,
    pub partitions: u32,
    pub settings: BTreeMap<String, String>,
}

/// Stored record of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PartRecord {
    /// Earliest offset.
    pub start: Offset,
    /// Bytes that retention has removed, all below `start`.
    pub start_bytes: u64,
    pub cleaned: Cleaned,
}

/// Progress of compaction and merging in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cleaned {
    /// First offset that no finished pass has visited.
    pub next: Offset,
    /// Bytes ever written below `next`.
    pub next_bytes: u64,
    /// Bytes that compaction has removed.
    pub removed_bytes: u64,
    /// Time when the first of the tombstones and control records below `next` expires.
    pub due: Millis,
    /// Small blocks below this offset are merged.
    pub merged: Offset,
}

impl Default for Cleaned {
    fn default() -> Self {
        Cleaned {
            next: 0,
            next_bytes: 0,
            removed_bytes: 0,
            due: Millis::MAX,
            merged: 0,
        }
    }
}

/// Entry of a partition's sparse index: totals of everything ever written below an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub offset: Offset,
    pub max_timestamp: Millis,
    pub bytes: u64,
}

impl PartId {
    /// Returns the partition number as used by the public API.
    pub fn number(self) -> i32 {
        i32::try_from(self.partition).expect("partition counts are i32")
    }

    fn put(self, key: &mut Vec<u8>) {
        key.extend_from_slice(&self.topic.to_be_bytes());
        key.extend_from_slice(&self.partition.to_be_bytes());
    }
}

/// Checks the version and returns the bytes after it.
pub(super) fn body<'a>(bytes: &'a [u8], place: &str) -> Result<&'a [u8]> {
    versioned(bytes, VERSION, place).map(|(_, body)| body)
}

/// Returns the version, which must not exceed `newest`, and the bytes after it.
pub(super) fn versioned<'a>(bytes: &'a [u8], newest: u8, place: &str) -> Result<(u8, &'a [u8])> {
    match bytes.split_first() {
        Some((&version, body)) if (VERSION..=newest).contains(&version) => Ok((version, body)),
        Some((&version, _)) if version > newest => Err(Error::Corrupt {
            place: place.to_owned(),
            reason: format!(
                "format version {version} is newer than {newest}, the newest that this program reads; upgrade the program"
            ),
        }),
        _ => Err(corrupt(place)),
    }
}

pub(super) fn corrupt(place: &str) -> Error {
    Error::Corrupt {
        place: place.to_owned(),
        reason: "the bytes have an unknown structure; restore the directory from a backup".to_owned(),
    }
}

/// Reads integers from the front of a byte slice.
struct Fields<'a> {
    bytes: &'a [u8],
    place: &'a str,
}

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or_else(|| corrupt(self.place))?;
        self.bytes = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.take()?))
    }

    fn part(&mut self) -> Result<PartId> {
        Ok(PartId {
            topic: self.u32()?,
            partition: self.u32()?,
        })
    }
}

fn key(tag: u8, capacity: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + capacity);
    key.push(tag);
    key
}

/// Returns the key of a block. Offsets are never negative here.
pub(super) fn block_key(part: PartId, base: Offset) -> Vec<u8> {
    let mut key = Vec::with_capacity(16);
    part.put(&mut key);
    key.extend_from_slice(&base.to_be_bytes());
    key
}

/// Returns the base offset from the key of a block.
pub(super) fn block_base(key: &[u8]) -> Result<Offset> {
    let mut fields = Fields {
        bytes: key,
        place: "key of a block",
    };
    fields.part()?;
    fields.i64()
}

/// Returns the key prefix of a topic's blocks.
pub(super) fn topic_prefix(topic: u32) -> Vec<u8> {
    topic.to_be_bytes().to_vec()
}

/// Returns partition and base offset if this is the key of a block. Keys of other entries begin with a letter.
pub(super) fn decode_block_key(key: &[u8]) -> Option<(PartId, Offset)> {
    let place = "key of a block";
    if key.len() != 16 || key.first() != Some(&0) {
        return None;
    }
    let mut fields = Fields { bytes: key, place };
    Some((fields.part().ok()?, fields.i64().ok()?))
}

pub(super) const HEAD: &[u8] = b"h";
pub(super) const SESSION: &[u8] = b"s";

pub(super) fn encode_session(ids: &[Uuid]) -> Vec<u8> {
    let mut value = vec![VERSION];
    ids.iter().for_each(|id| value.extend_from_slice(id.as_bytes()));
    value
}

/// Decodes the ids of the last sessions.
pub(super) fn decode_session(bytes: &[u8]) -> Result<Vec<Uuid>> {
    let ids = body(bytes, "the last session")?.chunks(16);
    ids.map(|id| Uuid::from_slice(id).map_err(|_| corrupt("the last session")))
        .collect()
}

impl Head {
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend_from_slice(self.log_epoch.as_bytes());
        value.extend_from_slice(&self.openings.to_be_bytes());
        value.extend_from_slice(&self.next_topic.to_be_bytes());
        value
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let place = "head of the embedded log";
        let mut fields = Fields {
            bytes: body(bytes, place)?,
            place,
        };
        let log_epoch = Uuid::from_bytes(fields.take()?);
        Ok(Head {
            log_epoch,
            openings: fields.u32()?,
            next_topic: fields.u32()?,
        })
    }
}

pub(super) const TOPICS: u8 = b't';
pub(super) const DELETED: u8 = b'd';
pub(super) const PARTITIONS: u8 = b'p';
pub(super) const INDEX: u8 = b'i';
pub(super) const ABORTED: u8 = b'a';
pub(super) const OPEN: u8 = b'x';
pub(super) const COMMITTED: u8 = b'c';
pub(super) const IDLE: u8 = b'e';

pub(super) fn topic_key(tag: u8, topic: u32) -> Vec<u8> {
    let mut key = key(tag, 4);
    key.extend_from_slice(&topic.to_be_bytes());
    key
}

pub(super) fn decode_topic_key(key: &[u8]) -> Result<u32> {
    Fields {
        bytes: key.get(1..).unwrap_or_default(),
        place: "key of a topic",
    }
    .u32()
}

impl TopicRecord {
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![VERSION];
        serde_json::to_writer(&mut value, self).expect("a topic is plain JSON");
        value
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let place = "a topic's record";
        serde_json::from_slice(body(bytes, place)?).map_err(|_| corrupt(place))
    }
}

/// Returns the key of a partition's record, or the prefix of its index (`INDEX`) and aborted transactions (`ABORTED`).
pub(super) fn part_key(tag: u8, part: PartId) -> Vec<u8> {
    let mut key = key(tag, 16);
    part.put(&mut key);
    key
}

impl PartRecord {
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![WITH_MERGED];
        value.extend_from_slice(&self.start.to_be_bytes());
        value.extend_from_slice(&self.start_bytes.to_be_bytes());
        value.extend_from_slice(&self.cleaned.next.to_be_bytes());
        value.extend_from_slice(&self.cleaned.next_bytes.to_be_bytes());
        value.extend_from_slice(&self.cleaned.removed_bytes.to_be_bytes());
        value.extend_from_slice(&self.cleaned.due.to_be_bytes());
        value.extend_from_slice(&self.cleaned.merged.to_be_bytes());
        value
    }

    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let place = "a partition's record";
        let (version, bytes) = versioned(bytes, WITH_MERGED, place)?;
        let mut fields = Fields { bytes, place };
        Ok(PartRecord {
            start: fields.i64()?,
            start_bytes: fields.u64()?,
            cleaned: match version {
                VERSION => Cleaned::default(),
                _ => Cleaned {
                    next: fields.i64()?,
                    next_bytes: fields.u64()?,
                    removed_bytes: fields.u64()?,
                    due: fields.i64()?,
                    merged: if version == WITH_MERGED { fields.i64()? } else { 0 },
                },
            },
        })
    }
}

pub(super) fn index_key(part: PartId, offset: Offset) -> Vec<u8> {
    let mut key = part_key(INDEX, part);
    key.extend_from_slice(&offset.to_be_bytes());
    key
}

impl IndexEntry {
    pub fn encode(&self) -> Vec<u8> {
        let mut value = vec![VERSION];
        value.extend_from_slice(&self.max_timestamp.to_be_bytes());
        value.extend_from_slice(&self.bytes.to_be_bytes());
        value
    }

    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self> {
        let place = "an index entry";
        let mut from_key = Fields {
            bytes: key.get(9..).unwrap_or_default(),
            place,
        };
        let mut fields = Fields {
            bytes: body(value, place)?,
            place,
        };
        Ok(IndexEntry {
            offset: from_key.i64()?,
            max_timestamp: fields.i64()?,
            bytes: fields.u64()?,
        })
    }
}

pub(super) fn aborted_key(part: PartId, transaction: u64) -> Vec<u8> {
    let mut key = part_key(ABORTED, part);
    key.extend_from_slice(&transaction.to_be_bytes());
    key
}

/// Decodes the entry of an aborted transaction: transaction and offset of its abort marker.
pub(super) fn decode_aborted(key: &[u8], value: &[u8]) -> Result<(u64, Offset)> {
    let place = "an aborted transaction's entry";
    let transaction = Fields {
        bytes: key.get(9..).unwrap_or_default(),
        place,
    }
    .u64()?;
    Ok((transaction, decode_offset(value, place)?))
}

pub(super) fn encode_offset(offset: Offset) -> Vec<u8> {
    let mut value = vec![VERSION];
    value.extend_from_slice(&offset.to_be_bytes());
    value
}

fn decode_offset(bytes: &[u8], place: &str) -> Result<Offset> {
    Fields {
        bytes: body(bytes, place)?,
        place,
    }
    .i64()
}

pub(super) fn open_key(transaction: u64, part: PartId) -> Vec<u8> {
    let mut key = key(OPEN, 16);
    key.extend_from_slice(&transaction.to_be_bytes());
    part.put(&mut key);
    key
}

/// Decodes the entry of an open transaction: transaction, partition and first offset.
pub(super) fn decode_open(key: &[u8], value: &[u8]) -> Result<(u64, PartId, Offset)> {
    let place = "an open transaction's entry";
    let mut fields = Fields {
        bytes: key.get(1..).unwrap_or_default(),
        place,
    };
    Ok((fields.u64()?, fields.part()?, decode_offset(value, place)?))
}

pub(super) fn committed_key(group: &str, part: PartId) -> Vec<u8> {
    let mut key = key(COMMITTED, 10 + group.len());
    let length = u16::try_from(group.len()).expect("group names are checked before");
    key.extend_from_slice(&length.to_be_bytes());
    key.extend_from_slice(group.as_bytes());
    part.put(&mut key);
    key
}

pub(super) fn idle_key(group: &str) -> Vec<u8> {
    let mut key = key(IDLE, group.len());
    key.extend_from_slice(group.as_bytes());
    key
}

/// Decodes the entry of an idle group: the group, and since when it has had no member.
pub(super) fn decode_idle(key: &[u8], value: &[u8]) -> Result<(String, Millis)> {
    let place = "a group's entry";
    let group = std::str::from_utf8(key.get(1..).unwrap_or_default()).map_err(|_| corrupt(place))?;
    Ok((group.to_owned(), decode_offset(value, place)?))
}

/// Decodes a committed offset: group, partition and offset.
pub(super) fn decode_committed(key: &[u8], value: &[u8]) -> Result<(String, PartId, Offset)> {
    let place = "a committed offset's entry";
    let mut fields = Fields {
        bytes: key.get(1..).unwrap_or_default(),
        place,
    };
    let length = usize::from(u16::from_be_bytes(fields.take()?));
    let (group, rest) = fields.bytes.split_at_checked(length).ok_or_else(|| corrupt(place))?;
    let group = std::str::from_utf8(group).map_err(|_| corrupt(place))?.to_owned();
    fields.bytes = rest;
    Ok((group, fields.part()?, decode_offset(value, place)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: PartId = PartId { topic: 7, partition: 3 };

    fn sample() -> PartRecord {
        let cleaned = Cleaned {
            next: 8,
            next_bytes: 9,
            removed_bytes: 2,
            due: 77,
            merged: 6,
        };
        PartRecord {
            start: 4,
            start_bytes: 5,
            cleaned,
        }
    }

    #[test]
    fn partition_record_version_1_is_never_cleaned() {
        let mut old = sample().encode();
        old.truncate(17);
        old[0] = VERSION;
        let cleaned = Cleaned::default();
        assert_eq!(
            PartRecord::decode(&old).expect("version 1"),
            PartRecord { cleaned, ..sample() }
        );
    }

    #[test]
    fn partition_record_version_2_is_never_merged() {
        let mut old = sample().encode();
        old.truncate(49);
        old[0] = WITH_CLEANED;
        let cleaned = Cleaned {
            merged: 0,
            ..sample().cleaned
        };
        assert_eq!(
            PartRecord::decode(&old).expect("version 2"),
            PartRecord { cleaned, ..sample() }
        );
    }

    #[test]
    fn entries_roundtrip() {
        let head = Head {
            log_epoch: Uuid::from_u128(5),
            openings: 2,
            next_topic: 9,
        };
        assert_eq!(Head::decode(&head.encode()).expect("head"), head);
        assert_eq!(block_base(&block_key(PART, 12)).expect("block key"), 12);
        assert_eq!(decode_topic_key(&topic_key(TOPICS, 8)).expect("topic key"), 8);
        assert_eq!(PartRecord::decode(&sample().encode()).expect("partition"), sample());
        let entry = IndexEntry {
            offset: 6,
            max_timestamp: -1,
            bytes: 8,
        };
        assert_eq!(
            IndexEntry::decode(&index_key(PART, 6), &entry.encode()).expect("index"),
            entry
        );
        assert_eq!(
            decode_aborted(&aborted_key(PART, 9), &encode_offset(3)).expect("aborted"),
            (9, 3)
        );
        assert_eq!(
            decode_open(&open_key(9, PART), &encode_offset(3)).expect("open"),
            (9, PART, 3)
        );
        let committed = decode_committed(&committed_key("g\u{e9}", PART), &encode_offset(3)).expect("committed");
        assert_eq!(committed, ("g\u{e9}".to_owned(), PART, 3));
        let idle = decode_idle(&idle_key("g"), &encode_offset(4)).expect("a group");
        assert_eq!(idle, ("g".to_owned(), 4));
    }

    #[test]
    fn newer_version_is_rejected_with_both_numbers() {
        let error = PartRecord::decode(&[4, 0]).expect_err("newer");
        assert!(
            error.to_string().contains("version 4") && error.to_string().contains("than 3"),
            "{error}"
        );
    }

    #[test]
    fn truncated_entries_are_corrupt() {
        let full = sample().encode();
        for cut in 0..full.len() {
            assert!(matches!(PartRecord::decode(&full[..cut]), Err(Error::Corrupt { .. })));
        }
        assert!(decode_committed(&[b'c', 0xff, 0xff], &encode_offset(1)).is_err());
    }
}
