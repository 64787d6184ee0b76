//! Rows that are held back until their writer closes them: in memory up to a limit, beyond it in the store only.
//!
//! Guarantees: a writer's rows come back in the order of their offsets; a row that the store lacks is staged with the
//! next batch. Never: what is shown; a row is decoded here, and shown or not by whoever takes it.

use super::bytes::{self, RowValue, space};
use super::{Error, Result};
use crate::record::ViewRecord;
use event_log::{Millis, Offset};
use state_store::{Batch, Direction, KeyRange, Store};
use std::collections::HashMap;
use std::ops::{ControlFlow, Range};

/// Rows that are held back, by writer.
#[derive(Debug, Default)]
pub struct PendingRows {
    writers: HashMap<u64, PendingWriter>,
    bytes: usize,
}

/// What is held back of one writer.
#[derive(Debug)]
struct PendingWriter {
    first: Offset,
    time: Millis,
    /// Rows in memory, in offset order.
    rows: Vec<PendingRow>,
    /// Rows from this offset up to the first one in memory are in the store only.
    spilled: Option<Offset>,
}

/// A row that is held back.
#[derive(Debug)]
pub struct PendingRow {
    /// Offset of its record.
    pub offset: Offset,
    /// Whether the store has it.
    pub stored: bool,
    /// Its bytes, for [`decode`].
    pub value: Vec<u8>,
}

impl PendingWriter {
    fn bytes(&self) -> usize {
        self.rows.iter().map(|r| r.value.len()).sum()
    }
}

impl PendingRows {
    /// Reads back what the store holds of a partition, at most `bytes_max` of it into memory.
    pub fn load(store: &dyn Store, partition: i32, bytes_max: usize) -> Result<Self> {
        let mut held = PendingRows::default();
        let (from, to) = bytes::part_range(partition);
        let keys = KeyRange::new(&from, Some(&to));
        store.scan(space::HELD, keys, Direction::Forward, &mut |key, value| {
            if let Some((writer, offset)) = bytes::held_place(key) {
                held.add(writer, offset, value.to_vec(), true);
                held.spill(bytes_max);
            }
            ControlFlow::Continue(())
        })?;
        Ok(held)
    }

    /// The smallest held-back offset and time.
    pub fn smallest(&self) -> Option<(Offset, Millis)> {
        let offset = self.writers.values().map(|w| w.first).min()?;
        let time = self.writers.values().map(|w| w.time).min()?;
        Some((offset, time))
    }

    /// Holds a record of a writer back.
    pub fn push(&mut self, writer: u64, offset: Offset, time: Millis, record: &ViewRecord<'_>) {
        self.add(writer, offset, encode(record, time), false);
    }

    fn add(&mut self, writer: u64, offset: Offset, value: Vec<u8>, stored: bool) {
        let time = time_of(&value);
        self.bytes += value.len();
        let held = self.writers.entry(writer).or_insert_with(|| PendingWriter {
            first: offset,
            time,
            rows: Vec::new(),
            spilled: None,
        });
        held.time = held.time.min(time);
        held.rows.push(PendingRow { offset, stored, value });
    }

    /// Bytes of a writer's rows in memory.
    pub fn bytes_of(&self, writer: u64) -> usize {
        self.writers.get(&writer).map_or(0, PendingWriter::bytes)
    }

    /// Whether rows of a writer are held back, in memory or in the store.
    pub fn holds(&self, writer: u64) -> bool {
        self.writers.contains_key(&writer)
    }

    /// Removes and returns the next rows of a writer in offset order, slightly more than `bytes_max` bytes at a time;
    /// empty when none are left. The rows that remain are still covered by [`PendingRows::stage`].
    pub fn take_piece(
        &mut self,
        store: &dyn Store,
        partition: i32,
        writer: u64,
        bytes_max: usize,
    ) -> Result<Vec<PendingRow>> {
        let Some(held) = self.writers.get_mut(&writer) else {
            return Ok(Vec::new());
        };
        if let Some(from) = held.spilled {
            let below = held.rows.first().map_or(Offset::MAX, |row| row.offset);
            let piece = read_spilled(store, partition, writer, from..below, bytes_max)?;
            if let Some(last) = piece.last() {
                held.spilled = Some(last.offset + 1);
                return Ok(piece);
            }
            held.spilled = None;
        }
        let mut bytes = 0;
        let full = |row: &PendingRow| {
            let full = bytes > bytes_max;
            bytes += row.value.len();
            full
        };
        let count = held.rows.iter().position(full).unwrap_or(held.rows.len());
        let piece: Vec<PendingRow> = held.rows.drain(..count).collect();
        self.bytes -= piece.iter().map(|row| row.value.len()).sum::<usize>();
        if held.rows.is_empty() {
            self.writers.remove(&writer);
        }
        Ok(piece)
    }

    /// Puts the rows that the store lacks into a batch that is about to be committed.
    pub fn stage(&mut self, partition: i32, batch: &mut Batch) {
        for (writer, held) in &mut self.writers {
            for row in held.rows.iter_mut().rev().take_while(|r| !r.stored) {
                row.stored = true;
                batch.put(
                    space::HELD,
                    bytes::held_key(partition, *writer, row.offset),
                    row.value.clone(),
                );
            }
        }
    }

    /// Lets go of rows, the largest writers first, until at most `max` bytes are in memory. The store must have all.
    pub fn spill(&mut self, max: usize) {
        while self.bytes > max {
            let largest = self.writers.values_mut().max_by_key(|w| w.rows.len());
            let Some(writer) = largest.filter(|w| !w.rows.is_empty()) else {
                return;
            };
            self.bytes -= writer.bytes();
            writer.rows = Vec::new();
            writer.spilled.get_or_insert(writer.first);
        }
    }
}

/// Reads the next rows of a writer within a range of offsets from the store, slightly more than `bytes_max` bytes.
fn read_spilled(
    store: &dyn Store,
    partition: i32,
    writer: u64,
    range: Range<Offset>,
    bytes_max: usize,
) -> Result<Vec<PendingRow>> {
    let (from, to) = bytes::held_range(partition, writer, range.start);
    let keys = KeyRange::new(&from, Some(&to));
    let mut piece = Vec::new();
    let mut piece_bytes = 0;
    store.scan(space::HELD, keys, Direction::Forward, &mut |key, value| {
        let Some((_, offset)) = bytes::held_place(key) else {
            return ControlFlow::Continue(());
        };
        if offset >= range.end {
            return ControlFlow::Break(());
        }
        piece_bytes += value.len();
        piece.push(PendingRow {
            offset,
            stored: true,
            value: value.to_vec(),
        });
        if piece_bytes > bytes_max {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok(piece)
}

/// A held-back record, read back from its bytes: time, kind, then the kind's own.
pub enum Held<'a> {
    /// A row of a bucket.
    Row {
        /// The bucket's name.
        bucket: &'a str,
        /// The row.
        row: RowValue<'a>,
    },
    /// Whether a view is stale from here on.
    Stale {
        /// The view.
        view: &'a str,
        /// Whether it is.
        stale: bool,
    },
    /// A record that shows nothing.
    Mark,
}

const ROW: u8 = 0;
const STALE: u8 = 1;
const MARK: u8 = 2;

fn time_of(value: &[u8]) -> Millis {
    value.first_chunk::<8>().map_or(0, |t| Millis::from_be_bytes(*t))
}

fn encode(record: &ViewRecord<'_>, time: Millis) -> Vec<u8> {
    let mut out = time.to_be_bytes().to_vec();
    match record {
        ViewRecord::Row(row) => {
            out.push(ROW);
            bytes::push_text(&mut out, &row.bucket);
            let (version, view, key, json) = (row.version, row.view.as_ref(), row.key, row.json);
            out.extend_from_slice(&bytes::put_row(&RowValue {
                closed: -1,
                time,
                version,
                view,
                key,
                json,
            }));
        }
        ViewRecord::Stale { view, stale, .. } => {
            out.extend_from_slice(&[STALE, u8::from(*stale)]);
            bytes::push_text(&mut out, view);
        }
        ViewRecord::Open { .. } | ViewRecord::Grant { .. } | ViewRecord::TransactionEnd { .. } => out.push(MARK),
    }
    out
}

/// Reads the bytes of a held-back row.
pub fn decode(value: &[u8]) -> Result<Held<'_>> {
    let parsed = || {
        let (kind, rest) = value.get(8..)?.split_first()?;
        Some(match *kind {
            ROW => {
                let (bucket, rest) = bytes::take_text(rest)?;
                Held::Row {
                    bucket,
                    row: bytes::row_value(rest)?,
                }
            }
            STALE => {
                let (stale, rest) = rest.split_first()?;
                Held::Stale {
                    view: bytes::take_text(rest)?.0,
                    stale: *stale == 1,
                }
            }
            _ => Held::Mark,
        })
    };
    parsed().ok_or_else(|| Error::Foreign("a held-back row is damaged".into()))
}
