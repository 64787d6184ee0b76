//! Batches of records: [`RecordBatch`] for reading, [`OutBatch`] for writing.
//!
//! A batch stores the bytes of all its records in one buffer, so that reading and writing allocate nothing per record.
//! Records of one partition are in offset order.

use crate::{Millis, Offset, TopicPartition};
use std::ops::Range;
use std::sync::Arc;

/// Which clock set a record's timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's clock.
    Create,
    /// The broker's clock, when it appended the record.
    LogAppend,
}

/// A header: name and value. `None` is a null value.
pub type Header<'a> = (&'a str, Option<&'a [u8]>);

type Span = Range<u32>;

#[derive(Debug, Clone)]
struct Entry {
    partition: u16,
    offset: Offset,
    timestamp: Millis,
    timestamp_type: TimestampType,
    key: Option<Span>,
    value: Option<Span>,
    headers: Range<u32>,
}

/// A batch of consumed records. Limited to 4 GiB and 65,536 partitions; the batches that readers return are much
/// smaller.
#[derive(Debug, Clone, Default)]
pub struct RecordBatch {
    partitions: Vec<TopicPartition>,
    entries: Vec<Entry>,
    headers: Vec<(Span, Option<Span>)>,
    bytes: Vec<u8>,
}

/// A record to append to a [`RecordBatch`], without its headers.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// Offset.
    pub offset: Offset,
    /// Timestamp in ms.
    pub timestamp: Millis,
    /// Which clock set the timestamp.
    pub timestamp_type: TimestampType,
    /// Key; `None` is a null key.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
}

/// Consecutive records of a batch.
#[derive(Debug, Clone, Copy)]
pub struct RecordSlice<'a> {
    batch: &'a RecordBatch,
    entries: &'a [Entry],
}

/// A record of a batch.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    batch: &'a RecordBatch,
    entry: &'a Entry,
}

/// The headers of a record, in order. A name may occur more than once.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a> {
    batch: &'a RecordBatch,
    range: &'a Range<u32>,
}

impl RecordBatch {
    /// Removes all records and keeps the allocated memory.
    pub fn clear(&mut self) {
        self.partitions.clear();
        self.entries.clear();
        self.headers.clear();
        self.bytes.clear();
    }

    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the batch has no records.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the total size of keys, values and headers in bytes.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the record at an index. Indices are stable until [`RecordBatch::clear`].
    pub fn get(&self, index: usize) -> Option<RecordRef<'_>> {
        self.entries.get(index).map(|entry| RecordRef { batch: self, entry })
    }

    /// Iterates over the records. Those of one partition are in offset order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordRef<'_>> + Clone {
        self.entries.iter().map(|entry| RecordRef { batch: self, entry })
    }

    /// Returns the records at these indices; an empty slice if the range is not within the batch.
    pub fn slice(&self, range: Range<usize>) -> RecordSlice<'_> {
        RecordSlice {
            batch: self,
            entries: self.entries.get(range).unwrap_or_default(),
        }
    }

    /// Returns the partitions that occur in the batch.
    pub fn partitions(&self) -> &[TopicPartition] {
        &self.partitions
    }

    /// Returns the index of a partition for [`RecordBatch::push`], adding it if necessary.
    pub fn intern(&mut self, at: &TopicPartition) -> u16 {
        let found = self
            .partitions
            .iter()
            .position(|p| p.partition == at.partition && p.topic == at.topic);
        let index = found.unwrap_or_else(|| {
            self.partitions.push(at.clone());
            self.partitions.len() - 1
        });
        u16::try_from(index).expect("a batch holds at most 65,536 partitions")
    }

    /// Appends a record. `partition` is an index returned by [`RecordBatch::intern`].
    pub fn push<'h>(&mut self, partition: u16, record: NewRecord<'_>, headers: impl IntoIterator<Item = Header<'h>>) {
        let key = record.key.map(|b| self.store(b));
        let value = record.value.map(|b| self.store(b));
        let first = span_index(self.headers.len());
        for (name, bytes) in headers {
            let name = self.store(name.as_bytes());
            let bytes = bytes.map(|b| self.store(b));
            self.headers.push((name, bytes));
        }
        let headers = first..span_index(self.headers.len());
        self.entries.push(Entry {
            partition,
            offset: record.offset,
            timestamp: record.timestamp,
            timestamp_type: record.timestamp_type,
            key,
            value,
            headers,
        });
    }

    fn store(&mut self, bytes: &[u8]) -> Span {
        let from = span_index(self.bytes.len());
        self.bytes.extend_from_slice(bytes);
        from..span_index(self.bytes.len())
    }

    fn bytes(&self, span: &Span) -> &[u8] {
        let Range { start, end } = *span;
        self.bytes.get(index(start)..index(end)).unwrap_or_default()
    }
}

fn span_index(at: usize) -> u32 {
    u32::try_from(at).expect("a batch is smaller than 4 GiB")
}

fn index(at: u32) -> usize {
    usize::try_from(at).expect("usize has at least 32 bits")
}

impl<'a> RecordSlice<'a> {
    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the slice is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the first record.
    pub fn first(&self) -> Option<RecordRef<'a>> {
        self.iter().next()
    }

    /// Iterates over the records. Those of one partition are in offset order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordRef<'a>> + use<'a> {
        let batch = self.batch;
        self.entries.iter().map(move |entry| RecordRef { batch, entry })
    }
}

impl<'a> RecordRef<'a> {
    /// Returns the partition.
    pub fn partition(&self) -> &'a TopicPartition {
        self.batch
            .partitions
            .get(usize::from(self.entry.partition))
            .expect("a record's partition is interned")
    }

    /// Returns the index of the partition in [`RecordBatch::partitions`].
    pub fn partition_index(&self) -> usize {
        usize::from(self.entry.partition)
    }

    /// Returns the topic.
    pub fn topic(&self) -> &'a Arc<str> {
        &self.partition().topic
    }

    /// Returns the offset.
    pub fn offset(&self) -> Offset {
        self.entry.offset
    }

    /// Returns the timestamp in ms; see [`RecordRef::timestamp_type`].
    pub fn timestamp(&self) -> Millis {
        self.entry.timestamp
    }

    /// Returns which clock set the timestamp.
    pub fn timestamp_type(&self) -> TimestampType {
        self.entry.timestamp_type
    }

    /// Returns the key; `None` is a null key.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.entry.key.as_ref().map(|s| self.batch.bytes(s))
    }

    /// Returns the value; `None` is a tombstone.
    pub fn value(&self) -> Option<&'a [u8]> {
        self.entry.value.as_ref().map(|s| self.batch.bytes(s))
    }

    /// Returns the headers.
    pub fn headers(&self) -> Headers<'a> {
        Headers {
            batch: self.batch,
            range: &self.entry.headers,
        }
    }

    /// Returns the value of the last header with this name, ignoring null values.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers()
            .iter()
            .filter(|(n, _)| *n == name)
            .last()
            .and_then(|(_, v)| v)
    }
}

impl<'a> Headers<'a> {
    /// Iterates over the headers in order.
    pub fn iter(&self) -> impl Iterator<Item = Header<'a>> + use<'a> {
        let batch = self.batch;
        let all = batch
            .headers
            .get(index(self.range.start)..index(self.range.end))
            .unwrap_or_default();
        all.iter().map(move |(name, value)| {
            (
                std::str::from_utf8(batch.bytes(name)).unwrap_or("\u{fffd}"),
                value.as_ref().map(|v| batch.bytes(v)),
            )
        })
    }
}

/// A record to write.
#[derive(Debug, Clone, Copy)]
pub struct OutRecord<'a> {
    /// Topic.
    pub topic: &'a Arc<str>,
    /// Partition; `None` selects it by key as Kafka does (murmur2), or at random without a key.
    pub partition: Option<i32>,
    /// Timestamp in ms; `None` means now. Ignored by topics with `LogAppendTime`.
    pub timestamp: Option<Millis>,
    /// Key; `None` is a null key.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
}

#[derive(Debug, Clone)]
struct OutEntry {
    topic: Arc<str>,
    partition: Option<i32>,
    timestamp: Option<Millis>,
    key: Option<Span>,
    value: Option<Span>,
    headers: Range<u32>,
}

/// A batch of records to write. Records of one partition are written in this order.
#[derive(Debug, Clone, Default)]
pub struct OutBatch {
    entries: Vec<OutEntry>,
    headers: Vec<(Span, Option<Span>)>,
    bytes: Vec<u8>,
}

impl OutBatch {
    /// Appends a record.
    pub fn push<'h>(&mut self, record: OutRecord<'_>, headers: impl IntoIterator<Item = Header<'h>>) {
        let key = record.key.map(|b| self.store(b));
        let value = record.value.map(|b| self.store(b));
        let first = span_index(self.headers.len());
        for (name, bytes) in headers {
            let name = self.store(name.as_bytes());
            let bytes = bytes.map(|b| self.store(b));
            self.headers.push((name, bytes));
        }
        self.entries.push(OutEntry {
            topic: record.topic.clone(),
            partition: record.partition,
            timestamp: record.timestamp,
            key,
            value,
            headers: first..span_index(self.headers.len()),
        });
    }

    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the batch has no records.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the total size of keys, values and headers in bytes.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Removes all records and keeps the allocated memory.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.headers.clear();
        self.bytes.clear();
    }

    /// Iterates over the records with their headers, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (OutRecord<'_>, impl Iterator<Item = Header<'_>>)> {
        self.entries.iter().map(|e| {
            let record = OutRecord {
                topic: &e.topic,
                partition: e.partition,
                timestamp: e.timestamp,
                key: e.key.as_ref().map(|s| self.slice(s)),
                value: e.value.as_ref().map(|s| self.slice(s)),
            };
            let headers = self
                .headers
                .get(index(e.headers.start)..index(e.headers.end))
                .unwrap_or_default();
            let headers = headers.iter().map(|(name, value)| {
                (
                    std::str::from_utf8(self.slice(name)).unwrap_or("\u{fffd}"),
                    value.as_ref().map(|v| self.slice(v)),
                )
            });
            (record, headers)
        })
    }

    fn store(&mut self, bytes: &[u8]) -> Span {
        let from = span_index(self.bytes.len());
        self.bytes.extend_from_slice(bytes);
        from..span_index(self.bytes.len())
    }

    fn slice(&self, span: &Span) -> &[u8] {
        self.bytes.get(index(span.start)..index(span.end)).unwrap_or_default()
    }
}
