//! Several blocks, one behind the other, as one.
//!
//! Guarantees: every record keeps its offset, its time, its key, value and headers, and the new block covers the offsets of
//! the old ones. Commit markers are only covered: nobody asks for them once everything before them is decided. Never: a
//! record of a transaction that was aborted or is open, which would be read as a committed one; that is for the caller.

use super::{Block, HEAD_BYTES, HORIZON_BYTES, Head, put_varint, zigzag};
use crate::{Millis, Offset, Result};
use bytes::Bytes;

/// Blocks that become one.
pub(in crate::embedded) struct Merge {
    base: Offset,
    next: Offset,
    /// Blocks so far, and what they count for in sizes.
    pub blocks: Vec<Offset>,
    pub size: u64,
    bytes: Vec<u8>,
    count: u32,
    log_append: Option<bool>,
    base_timestamp: Millis,
    max_timestamp: Millis,
    /// Time of the last marker, for a block without a record.
    marked: Millis,
}

impl Merge {
    /// Begins with nothing, at an offset.
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

    /// Whether a block may be added: its records are stamped as the others are, by the log or by who wrote them, and all
    /// offsets together still fit a head.
    pub fn takes(&self, block: &Block) -> bool {
        let is_alike = self.log_append.is_none_or(|known| known == block.head.log_append) || block.head.count == 0;
        is_alike && u32::try_from(block.next() - self.base).is_ok()
    }

    /// Time of the first record.
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

    /// The one block.
    pub fn finish(mut self) -> Block {
        if self.count == 0 {
            (self.base_timestamp, self.max_timestamp) = (self.marked, self.marked);
        }
        let head = Head {
            control: None,
            log_append: self.log_append.unwrap_or_default(),
            transaction: 0,
            count: self.count,
            span: u32::try_from(self.next - self.base).expect("it was looked at before a block was added"),
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
