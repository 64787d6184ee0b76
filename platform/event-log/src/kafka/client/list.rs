//! Lists of partitions with offsets, as the library takes and gives them.
//!
//! Guarantees: freed once; names are copied. Never: an order of its own.

use super::{Code, ClientError, c, count, owned, text};
use crate::{Offset, TopicPartition};
use std::ptr::NonNull;

/// A list of partitions that this value owns.
#[derive(Debug)]
pub struct List {
    raw: NonNull<c::rd_kafka_topic_partition_list_t>,
}

// SAFETY: the list is plain memory with one owner.
unsafe impl Send for List {}

/// One entry of a list.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The partition.
    pub at: TopicPartition,
    /// An offset, or one of the library's negative marks.
    pub offset: Offset,
    /// How it went with this partition.
    pub code: Code,
}

impl List {
    /// An empty list with room for `size` entries.
    pub fn new(size: usize) -> List {
        // SAFETY: returns a new list, which is ours.
        let raw = unsafe { c::rd_kafka_topic_partition_list_new(count(size)) };
        List {
            raw: NonNull::new(raw).expect("a new list is never null"),
        }
    }

    /// A list of partitions, each with an offset.
    pub fn of<'a>(entries: impl ExactSizeIterator<Item = (&'a TopicPartition, Offset)>) -> List {
        let list = List::new(entries.len());
        for (at, offset) in entries {
            let name = owned(&at.topic);
            // SAFETY: the list is ours; the name is copied; the entry is written before the list can move it.
            unsafe {
                let entry = c::rd_kafka_topic_partition_list_add(list.raw.as_ptr(), name.as_ptr(), at.partition);
                (*entry).offset = offset;
            }
        }
        list
    }

    /// A list of topics to subscribe to.
    pub fn of_topics<'a>(topics: impl ExactSizeIterator<Item = &'a str>) -> List {
        let list = List::new(topics.len());
        for topic in topics {
            let name = owned(topic);
            // SAFETY: the list is ours; the name is copied. A subscription has no partition: −1.
            unsafe { c::rd_kafka_topic_partition_list_add(list.raw.as_ptr(), name.as_ptr(), -1) };
        }
        list
    }

    pub(super) fn raw(&self) -> *mut c::rd_kafka_topic_partition_list_t {
        self.raw.as_ptr()
    }

    /// Copies the entries.
    pub fn entries(&self) -> Vec<Entry> {
        // SAFETY: the list is ours and valid.
        unsafe { entries(self.raw.as_ptr()) }
    }

    /// Fails with the first entry's error, if there is one.
    pub fn check(&self) -> Result<(), (TopicPartition, ClientError)> {
        let failed = self
            .entries()
            .into_iter()
            .find(|e| e.code != Code::RD_KAFKA_RESP_ERR_NO_ERROR);
        failed.map_or(Ok(()), |e| Err((e.at, ClientError::new(e.code))))
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { c::rd_kafka_topic_partition_list_destroy(self.raw.as_ptr()) };
    }
}

/// Copies the entries of a list that somebody else owns; null is an empty one.
///
/// # Safety
/// `list` is null or valid.
pub unsafe fn entries(list: *const c::rd_kafka_topic_partition_list_t) -> Vec<Entry> {
    // SAFETY: by the caller's promise; `elems` has `cnt` entries.
    let all = unsafe {
        match list.as_ref() {
            Some(list) if list.cnt > 0 => {
                std::slice::from_raw_parts(list.elems, usize::try_from(list.cnt).unwrap_or_default())
            }
            _ => &[],
        }
    };
    all.iter().map(entry).collect()
}

/// Copies one entry.
pub fn entry(from: &c::rd_kafka_topic_partition_t) -> Entry {
    Entry {
        at: TopicPartition::new(text(from.topic), from.partition),
        offset: from.offset,
        code: from.err,
    }
}
