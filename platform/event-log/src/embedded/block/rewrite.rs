//! Rewriting of blocks by compaction: a block with fewer records or with a horizon.
//!
//! Kept records have the same bytes, offsets, timestamps and headers. The new block has the same range of offsets, and
//! a different head.

use super::{Block, HEAD_BYTES, HORIZON_BYTES, Head, Record, varint};
use crate::{Millis, Offset, Result};
use bytes::Bytes;

/// A record, as compaction reads it.
pub(in crate::embedded) struct Item<'a> {
    pub offset: Offset,
    pub key: Option<&'a [u8]>,
    /// Whether the record has no value.
    pub tombstone: bool,
    pub(super) timestamp: Millis,
    /// The encoded record.
    raw: &'a [u8],
}

impl<'a> Item<'a> {
    /// Returns the encoded record without offset and timestamp.
    pub(super) fn body(&self) -> Result<&'a [u8]> {
        let mut rest = self.raw;
        varint(&mut rest)?;
        varint(&mut rest)?;
        Ok(rest)
    }
}

impl Block {
    /// Iterates over the records in offset order.
    pub fn items(&self) -> impl Iterator<Item = Result<Item<'_>>> {
        let mut rest = self.records();
        std::iter::from_fn(move || {
            let bytes = match &rest {
                Ok([]) => return None,
                Ok(bytes) => *bytes,
                Err(_) => return std::mem::replace(&mut rest, Ok(&[])).err().map(Err),
            };
            match self.record(bytes) {
                Ok((record, tail)) => {
                    rest = Ok(tail);
                    Some(Ok(item(&record, bytes, tail)))
                }
                Err(error) => {
                    rest = Ok(&[]);
                    Some(Err(error))
                }
            }
        })
    }

    /// Returns the block with these records and this horizon.
    pub fn rewritten(&self, kept: &[Item<'_>], horizon: Option<Millis>) -> Block {
        let newest = kept.iter().map(|item| item.timestamp).max();
        let head = Head {
            count: u32::try_from(kept.len()).expect("no more records than there were"),
            // With an append time, all records have this timestamp, and a marker has no other timestamp.
            max_timestamp: newest.unwrap_or(self.head.max_timestamp),
            horizon,
            ..self.head
        };
        let records: usize = kept.iter().map(|item| item.raw.len()).sum();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + HORIZON_BYTES + records);
        bytes.resize(head.byte_len(), 0);
        head.write(&mut bytes);
        kept.iter().for_each(|item| bytes.extend_from_slice(item.raw));
        Block {
            base: self.base,
            head,
            bytes: Bytes::from(bytes),
        }
    }
}

fn item<'a>(record: &Record<'a>, from: &'a [u8], tail: &[u8]) -> Item<'a> {
    Item {
        offset: record.offset,
        key: record.key,
        tombstone: record.value.is_none(),
        timestamp: record.timestamp,
        raw: from.get(..from.len() - tail.len()).unwrap_or_default(),
    }
}
