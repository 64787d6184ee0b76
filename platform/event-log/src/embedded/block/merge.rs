//! Merging of consecutive blocks.
//!
//! Records keep offset, timestamp, key, value and headers. The offsets of the merged block are those of all its parts.
//! Commit markers are removed: they are not needed once all transactions before them are decided. The caller must not
//! add records of aborted or open transactions, because the merged block belongs to no transaction.

use super::{Block, HEAD_BYTES, HORIZON_BYTES, Head, put_varint, zigzag};
use crate::{Millis, Offset, Result};
use bytes::Bytes;

/// Collects the blocks to merge.
pub(in crate::embedded) struct Merge {
    base: Offset,
    next: Offset,
    /// Base offsets of the collected blocks, and their total size.
    pub blocks: Vec<Offset>,
    pub size: u64,
    bytes: Vec<u8>,
    count: u32,
    log_append: Option<bool>,
    base_timestamp: Millis,
    max_timestamp: Millis,
    /// Timestamp of the last control record, used if the merged block has no record.
    marked: Millis,
}

impl Merge {
    /// Creates an empty merge that starts at an offset.
    pub fn at(base: Offset) -> Merge {
        Merge {
            base,
            next: base,
            blocks: Vec::new(),
            size: 0,
            bytes: vec![0; HEAD_BYTES + HORIZON_BYTES],
            count: 0,
            log_append: None,
            base_timestamp: 0,
            max_timestamp: Millis::MIN,
            marked: 0,
        }
    }

    /// Returns whether a block can be added: its timestamps must have the same type, and the number of offsets must not
    /// exceed the maximum of a block's head.
    pub fn takes(&self, block: &Block) -> bool {
        let is_alike = self.log_append.is_none_or(|known| known == block.head.log_append) || block.head.count == 0;
        is_alike && u32::try_from(block.next() - self.base).is_ok()
    }

    /// Returns the timestamp of the first record.
    pub fn begins(&self) -> Option<Millis> {
        self.log_append.map(|_| self.base_timestamp)
    }

    /// Adds the next block.
    pub fn add(&mut self, block: &Block) -> Result<()> {
        for item in block.items() {
            let item = item?;
            if self.log_append.is_none() {
                (self.log_append, self.base_timestamp) = (Some(block.head.log_append), item.timestamp);
            }
            let delta = u64::try_from(item.offset - self.base).unwrap_or_default();
            put_varint(&mut self.bytes, delta);
            put_varint(
                &mut self.bytes,
                zigzag(item.timestamp.wrapping_sub(self.base_timestamp)),
            );
            self.bytes.extend_from_slice(item.body()?);
            self.count += 1;
            self.max_timestamp = self.max_timestamp.max(item.timestamp);
        }
        if block.head.control.is_some() {
            self.marked = block.head.max_timestamp;
        }
        self.next = block.next();
        self.size += block.size();
        self.blocks.push(block.base);
        Ok(())
    }

    /// Completes the merged block.
    pub fn finish(mut self) -> Block {
        if self.count == 0 {
            (self.base_timestamp, self.max_timestamp) = (self.marked, self.marked);
        }
        let head = Head {
            control: None,
            log_append: self.log_append.unwrap_or_default(),
            transaction: 0,
            count: self.count,
            span: u32::try_from(self.next - self.base).expect("`takes` checked the span"),
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            horizon: None,
            merged: true,
        };
        head.write(&mut self.bytes);
        Block {
            base: self.base,
            head,
            bytes: Bytes::from(self.bytes),
        }
    }
}
