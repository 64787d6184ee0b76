//! librdkafka's partition lists, with an offset and an error code for each partition.

use super::{ClientError, Code, c, count, owned, text};
use crate::{Offset, TopicPartition};
use std::ptr::NonNull;

/// A partition list.
#[derive(Debug)]
pub struct List {
    raw: NonNull<c::rd_kafka_topic_partition_list_t>,
}

// SAFETY: the list is plain memory with one owner.
unsafe impl Send for List {}

/// An entry of a list.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The partition.
    pub at: TopicPartition,
    /// An offset or one of librdkafka's negative special offsets.
    pub offset: Offset,
    /// Result of the call for this partition.
    pub code: Code,
}

impl List {
    /// Creates an empty list with room for `size` entries.
    pub fn new(size: usize) -> List {
        // SAFETY: the call has no preconditions; we own the list that is returned.
        let raw = unsafe { c::rd_kafka_topic_partition_list_new(count(size)) };
        List {
            raw: NonNull::new(raw).expect("a new list is never null"),
        }
    }

    /// Creates a list of partitions with offsets.
    pub fn of<'a>(entries: impl ExactSizeIterator<Item = (&'a TopicPartition, Offset)>) -> List {
        let list = List::new(entries.len());
        for (at, offset) in entries {
            let name = owned(&at.topic);
            // SAFETY: the list is valid and copies the name. The entry is written before another `add` can reallocate it.
            unsafe {
                let entry = c::rd_kafka_topic_partition_list_add(list.raw.as_ptr(), name.as_ptr(), at.partition);
                (*entry).offset = offset;
            }
        }
        list
    }

    /// Creates a list of topics for a subscription.
    pub fn of_topics<'a>(topics: impl ExactSizeIterator<Item = &'a str>) -> List {
        let list = List::new(topics.len());
        for topic in topics {
            let name = owned(topic);
            // SAFETY: the list is valid and copies the name. A subscription uses partition −1 (unassigned).
            unsafe { c::rd_kafka_topic_partition_list_add(list.raw.as_ptr(), name.as_ptr(), -1) };
        }
        list
    }

    pub(super) fn raw(&self) -> *mut c::rd_kafka_topic_partition_list_t {
        self.raw.as_ptr()
    }

    /// Copies the entries.
    pub fn entries(&self) -> Vec<Entry> {
        // SAFETY: `self` owns the list.
        unsafe { entries(self.raw.as_ptr()) }
    }

    /// Returns the error of the first entry that has one.
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
        // SAFETY: `self` owns the list and frees it once.
        unsafe { c::rd_kafka_topic_partition_list_destroy(self.raw.as_ptr()) };
    }
}

/// Copies the entries of a list. Null is an empty list.
///
/// # Safety
/// `list` is null or a valid list.
pub unsafe fn entries(list: *const c::rd_kafka_topic_partition_list_t) -> Vec<Entry> {
    // SAFETY: the caller guarantees a valid list; `elems` points to `cnt` entries.
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

/// Copies an entry.
pub fn entry(from: &c::rd_kafka_topic_partition_t) -> Entry {
    Entry {
        at: TopicPartition::new(text(from.topic), from.partition),
        offset: from.offset,
        code: from.err,
    }
}
