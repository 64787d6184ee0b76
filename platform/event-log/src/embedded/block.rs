//! A block: records of one partition that were written together, or one control record.
//!
//! ```text
//! version 1 · flags 1 · transaction 8 · count 4 · span 4 · base timestamp 8 · greatest timestamp 8 · [horizon 8] · records
//! (the horizon exists from version 2 on; in version 3, the minimum i64 means that there is none)
//! record: offset delta, timestamp delta (zigzag), key, value, headers; all integers as varints; a length is stored
//! plus one, and 0 is null
//! ```
//!
//! `span` is the number of offsets of the block; after compaction the block may contain fewer records. The horizon is
//! the time after which compaction may remove the block's tombstones or control record. Compaction writes version 2 to
//! store it; version 1 has no horizon. Version 3 is a merged block, in which each record has its own timestamp even if
//! the log assigned it.
//!
//! A block belongs to one transaction or to none. It is encoded once and has the same bytes in the cache, in the store
//! and for every reader until compaction replaces it. The replacement always has a different head.

mod merge;
mod rewrite;

pub(super) use merge::Merge;
pub(super) use rewrite::Item;

use super::format::{corrupt, versioned};
use crate::{Header, Millis, NewRecord, Offset, RecordBatch, Result, TimestampType};
use bytes::Bytes;

/// Version of a block without horizon.
const PLAIN: u8 = 1;
/// Version of a block with a horizon.
const WITH_HORIZON: u8 = 2;
/// Version of a merged block, the newest version.
pub(super) const MERGED: u8 = 3;
/// Represents "no horizon" in a version that has the field.
const NO_HORIZON: Millis = Millis::MIN;
const HEAD_BYTES: usize = 34;
const HORIZON_BYTES: usize = 8;
const CONTROL: u8 = 1;
const COMMIT: u8 = 2;
const LOG_APPEND: u8 = 4;

/// Type of a control record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Commit,
    Abort,
}

/// Collects the records of a block.
pub(super) struct Builder {
    bytes: Vec<u8>,
    count: u32,
    base_timestamp: Millis,
    max_timestamp: Millis,
    last_timestamp: Millis,
}

impl Builder {
    pub fn new() -> Self {
        let bytes = vec![0; HEAD_BYTES];
        Builder {
            bytes,
            count: 0,
            base_timestamp: 0,
            max_timestamp: Millis::MIN,
            last_timestamp: 0,
        }
    }

    /// Appends a record.
    pub fn push<'h>(
        &mut self,
        timestamp: Millis,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = Header<'h>>,
    ) {
        if self.count == 0 {
            self.base_timestamp = timestamp;
        }
        put_varint(&mut self.bytes, u64::from(self.count));
        put_varint(&mut self.bytes, zigzag(timestamp.wrapping_sub(self.base_timestamp)));
        put_bytes(&mut self.bytes, key);
        put_bytes(&mut self.bytes, value);
        for (name, value) in headers {
            put_bytes(&mut self.bytes, Some(name.as_bytes()));
            put_bytes(&mut self.bytes, value);
        }
        // A null header name terminates the headers.
        put_bytes(&mut self.bytes, None);
        self.count += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.last_timestamp = timestamp;
    }

    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Completes the block. If an append time is given, all records have that timestamp.
    pub fn finish(mut self, base: Offset, transaction: u64, append_time: Option<Millis>) -> Block {
        let mut head = Head {
            control: None,
            log_append: false,
            transaction,
            count: self.count,
            span: self.count,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            horizon: None,
            merged: false,
        };
        if let Some(now) = append_time {
            (head.log_append, head.base_timestamp, head.max_timestamp) = (true, now, now);
        }
        head.write(&mut self.bytes);
        Block {
            base,
            head,
            bytes: Bytes::from(self.bytes),
        }
    }

    /// Returns the timestamp of the last record.
    pub fn last_timestamp(&self) -> Millis {
        self.last_timestamp
    }
}

/// The decoded head of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub control: Option<Marker>,
    pub log_append: bool,
    /// Transaction of the records; 0 for records outside transactions.
    pub transaction: u64,
    pub count: u32,
    pub span: u32,
    pub base_timestamp: Millis,
    pub max_timestamp: Millis,
    /// Time after which compaction removes the block's tombstones or control record. Set by the first compaction pass
    /// that visits the block.
    pub horizon: Option<Millis>,
    /// Whether several blocks were merged into this one.
    pub merged: bool,
}

impl Head {
    fn version(&self) -> u8 {
        match (self.merged, self.horizon) {
            (true, _) => MERGED,
            (false, Some(_)) => WITH_HORIZON,
            (false, None) => PLAIN,
        }
    }

    fn byte_len(&self) -> usize {
        HEAD_BYTES + if self.version() == PLAIN { 0 } else { HORIZON_BYTES }
    }

    fn write(&self, bytes: &mut [u8]) {
        let flags = match self.control {
            None => 0,
            Some(Marker::Abort) => CONTROL,
            Some(Marker::Commit) => CONTROL | COMMIT,
        } | if self.log_append { LOG_APPEND } else { 0 };
        let mut at = 0;
        let mut put = |field: &[u8]| {
            let end = at + field.len();
            bytes
                .get_mut(at..end)
                .expect("the buffer has room for the head")
                .copy_from_slice(field);
            at = end;
        };
        put(&[self.version(), flags]);
        put(&self.transaction.to_be_bytes());
        put(&self.count.to_be_bytes());
        put(&self.span.to_be_bytes());
        put(&self.base_timestamp.to_be_bytes());
        put(&self.max_timestamp.to_be_bytes());
        if self.version() != PLAIN {
            put(&self.horizon.unwrap_or(NO_HORIZON).to_be_bytes());
        }
    }

    fn read(bytes: &[u8]) -> Result<Head> {
        let (version, mut rest) = versioned(bytes, MERGED, PLACE)?;
        let [flags] = take(&mut rest)?;
        let marker = if flags & COMMIT == 0 {
            Marker::Abort
        } else {
            Marker::Commit
        };
        Ok(Head {
            control: (flags & CONTROL != 0).then_some(marker),
            log_append: flags & LOG_APPEND != 0,
            transaction: u64::from_be_bytes(take(&mut rest)?),
            count: u32::from_be_bytes(take(&mut rest)?),
            span: u32::from_be_bytes(take(&mut rest)?),
            base_timestamp: i64::from_be_bytes(take(&mut rest)?),
            max_timestamp: i64::from_be_bytes(take(&mut rest)?),
            horizon: match version {
                PLAIN => None,
                _ => Some(i64::from_be_bytes(take(&mut rest)?)).filter(|horizon| *horizon != NO_HORIZON),
            },
            merged: version == MERGED,
        })
    }
}

const PLACE: &str = "a block of records";

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or_else(|| corrupt(PLACE))?;
    *rest = tail;
    Ok(*head)
}

/// A complete block. Clones share its bytes.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub base: Offset,
    pub head: Head,
    pub bytes: Bytes,
}

/// A position within a block, so that a reader can continue without parsing the block from the start. Rewriting a block
/// always changes its head, so a place in the old block is not valid in the new block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    base: Offset,
    head: Head,
    at: usize,
}

impl Block {
    /// Creates a control record.
    pub fn control(base: Offset, transaction: u64, marker: Marker, now: Millis) -> Block {
        let head = Head {
            control: Some(marker),
            log_append: false,
            transaction,
            count: 0,
            span: 1,
            base_timestamp: now,
            max_timestamp: now,
            horizon: None,
            merged: false,
        };
        let mut bytes = vec![0; HEAD_BYTES];
        head.write(&mut bytes);
        Block {
            base,
            head,
            bytes: Bytes::from(bytes),
        }
    }

    /// Parses the head of a stored block.
    pub fn parse(base: Offset, bytes: Bytes) -> Result<Block> {
        let head = Head::read(&bytes)?;
        Ok(Block { base, head, bytes })
    }

    /// Returns the offset after the block.
    pub fn next(&self) -> Offset {
        self.base + Offset::from(self.head.span)
    }

    /// Returns the size that counts for retention: the size of the stored key and value. The horizon does not count, so
    /// that rewriting a block never increases its size.
    pub fn size(&self) -> u64 {
        let horizon = self.head.byte_len() - HEAD_BYTES;
        u64::try_from(self.bytes.len() - horizon + 16).expect("a block is small")
    }

    fn place(&self, at: usize) -> Place {
        Place {
            base: self.base,
            head: self.head,
            at,
        }
    }

    /// Returns the position of the first record that a reader at this place has not parsed.
    fn at(&self, place: Option<Place>) -> usize {
        match place {
            Some(place) if place == self.place(place.at) => place.at,
            _ => self.head.byte_len(),
        }
    }

    /// Returns whether the block has no record at or after an offset.
    pub fn is_over(&self, from: Offset, place: Option<Place>) -> Result<bool> {
        // In a block without gaps the last offset has a record, and a place is always before a record.
        let whole = self.head.count == self.head.span || self.at(place) > self.head.byte_len();
        Ok(!whole && self.first_at(from, Millis::MIN)?.is_none())
    }

    /// Adds records from an offset on to a batch until the batch is full, but at least one record. Returns the next
    /// offset, and its place if the block has further records. A corrupt record is an error only if it is the first
    /// record, so that the records before it are returned first.
    pub fn read(&self, from: Offset, place: Option<Place>, sink: Sink<'_>) -> Result<(Offset, Option<Place>)> {
        let Sink {
            batch,
            partition,
            max_bytes,
        } = sink;
        let mut rest = self.bytes.get(self.at(place)..).ok_or_else(|| corrupt(PLACE))?;
        let kind = if self.head.log_append {
            TimestampType::LogAppend
        } else {
            TimestampType::Create
        };
        let mut last = None;
        while !rest.is_empty() {
            if is_full(batch, max_bytes) {
                let at = self.bytes.len() - rest.len();
                let mut peek = rest;
                let next = self.base + Offset::try_from(varint(&mut peek)?).map_err(|_| corrupt(PLACE))?;
                return Ok((next.max(from), Some(self.place(at))));
            }
            let (record, tail) = match (self.record(rest), last) {
                (Ok(parsed), _) => parsed,
                (Err(_), Some(last)) => {
                    let at = self.bytes.len() - rest.len();
                    return Ok((last + 1, Some(self.place(at))));
                }
                (Err(error), None) => return Err(error),
            };
            rest = tail;
            if record.offset >= from {
                last = Some(record.offset);
                let headers = HeaderIter(record.headers);
                batch.push(
                    partition,
                    NewRecord {
                        offset: record.offset,
                        timestamp: record.timestamp,
                        timestamp_type: kind,
                        key: record.key,
                        value: record.value,
                    },
                    headers,
                );
            }
        }
        Ok((self.next(), None))
    }

    /// Returns the first offset at or after `from` whose timestamp is at or after `time`.
    pub fn first_at(&self, from: Offset, time: Millis) -> Result<Option<Offset>> {
        let mut rest = self.records()?;
        while !rest.is_empty() {
            let (record, tail) = self.record(rest)?;
            if record.offset >= from && record.timestamp >= time {
                return Ok(Some(record.offset));
            }
            rest = tail;
        }
        Ok(None)
    }

    /// Returns the encoded records.
    fn records(&self) -> Result<&[u8]> {
        self.bytes.get(self.head.byte_len()..).ok_or_else(|| corrupt(PLACE))
    }

    fn record<'a>(&self, mut rest: &'a [u8]) -> Result<(Record<'a>, &'a [u8])> {
        let rest = &mut rest;
        let delta = Offset::try_from(varint(rest)?).map_err(|_| corrupt(PLACE))?;
        let age = unzigzag(varint(rest)?);
        let key = bytes(rest)?;
        let value = bytes(rest)?;
        let headers = *rest;
        let mut checked = *rest;
        while let Some(name) = bytes(&mut checked)? {
            std::str::from_utf8(name).map_err(|_| corrupt(PLACE))?;
            bytes(&mut checked)?;
        }
        let timestamp = match self.head.log_append && !self.head.merged {
            true => self.head.max_timestamp,
            false => self.head.base_timestamp.wrapping_add(age),
        };
        Ok((
            Record {
                offset: self.base + delta,
                timestamp,
                key,
                value,
                headers,
            },
            checked,
        ))
    }
}

/// The batch that records are read into.
pub(super) struct Sink<'b> {
    pub batch: &'b mut RecordBatch,
    /// Index of the partition in the batch.
    pub partition: u16,
    /// Size at which the batch is full.
    pub max_bytes: usize,
}

/// Returns whether a batch is full. Each record counts for 8 bytes in addition to its contents.
pub(super) fn is_full(batch: &RecordBatch, max_bytes: usize) -> bool {
    !batch.is_empty() && batch.byte_len() + 8 * batch.len() >= max_bytes
}

struct Record<'a> {
    offset: Offset,
    timestamp: Millis,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: &'a [u8],
}

/// Iterates over encoded headers, which were validated earlier.
struct HeaderIter<'a>(&'a [u8]);

impl<'a> Iterator for HeaderIter<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        let name = bytes(&mut self.0).ok()??;
        let value = bytes(&mut self.0).ok()?;
        Some((std::str::from_utf8(name).ok()?, value))
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        let [low, ..] = value.to_le_bytes();
        out.push(low | 0x80);
        value >>= 7;
    }
    let [low, ..] = value.to_le_bytes();
    out.push(low);
}

fn varint(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first().ok_or_else(|| corrupt(PLACE))?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(value);
        }
    }
    Err(corrupt(PLACE))
}

fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.push(0),
        Some(bytes) => {
            put_varint(out, u64::try_from(bytes.len()).expect("usize fits u64") + 1);
            out.extend_from_slice(bytes);
        }
    }
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>> {
    let Some(length) = varint(rest)?.checked_sub(1) else {
        return Ok(None);
    };
    let length = usize::try_from(length).map_err(|_| corrupt(PLACE))?;
    let (found, tail) = rest.split_at_checked(length).ok_or_else(|| corrupt(PLACE))?;
    *rest = tail;
    Ok(Some(found))
}

#[cfg(test)]
mod tests;
