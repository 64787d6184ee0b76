//! Pending rows of a partition, by writer: in memory up to a limit, and beyond the limit in the store only.
//!
//! The rows of a writer are returned in offset order. Each commit also stores the rows that are not in the store yet
//! ([`PendingRows::stage`]), because the committed position is beyond them (invariant I8, no gap). Begin markers and
//! grants are pending too: they are never visible, but keep the partition incomplete while their source transaction is
//! open (I6).

use super::bytes::{self, RowValue, space};
use super::error::{Error, Result};
use crate::record::ViewRecord;
use event_log::{Millis, Offset};
use state_store::{Batch, Direction, Store};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

/// Pending rows of a partition.
#[derive(Debug, Default)]
pub struct PendingRows {
    /// Ordered, so that the choice among equally large writers is the same in each run of a seed.
    writers: BTreeMap<u64, PendingWriter>,
    /// Memory of the rows in memory.
    memory: usize,
}

/// Pending rows of one writer.
#[derive(Debug)]
struct PendingWriter {
    /// Offset of the first pending row, whether it is in memory or not.
    first: Offset,
    /// Smallest append time.
    time: Millis,
    /// Rows in memory, in offset order.
    rows: Vec<PendingRow>,
    /// First offset of the rows that are in the store only; they end at the first row in memory.
    spilled: Option<Offset>,
}

/// A pending row.
#[derive(Debug)]
pub struct PendingRow {
    /// Offset of the row's record.
    pub offset: Offset,
    /// Whether the row is in the store, or in a batch that is about to be committed.
    pub stored: bool,
    /// Encoded row; see [`decode`].
    pub value: Vec<u8>,
}

/// Memory of a pending row in addition to its value: the row itself, and the rounding of allocations.
const ROW_MEMORY: usize = size_of::<PendingRow>() + 16;

impl PendingRow {
    fn memory(&self) -> usize {
        self.value.capacity() + ROW_MEMORY
    }
}

impl PendingWriter {
    fn bytes(&self) -> usize {
        self.rows.iter().map(|r| r.value.len()).sum()
    }

    fn memory(&self) -> usize {
        self.rows.iter().map(PendingRow::memory).sum()
    }
}

impl PendingRows {
    /// Loads the pending rows of a partition, at most `memory_max` of them into memory.
    pub fn load(store: &dyn Store, partition: i32, memory_max: usize) -> Result<Self> {
        let mut pending = PendingRows::default();
        let (from, to) = bytes::partition_range(partition);
        store.scan(
            space::PENDING,
            state_store::KeyRange::new(&from, Some(&to)),
            Direction::Forward,
            &mut |key, value| {
                if let Some((writer, offset)) = bytes::decode_pending_key(key) {
                    pending.add(writer, offset, value.to_vec(), true);
                    pending.spill(memory_max);
                }
                ControlFlow::Continue(())
            },
        )?;
        Ok(pending)
    }

    /// Smallest offset and smallest append time of all pending rows.
    pub fn oldest(&self) -> Option<(Offset, Millis)> {
        let offset = self.writers.values().map(|w| w.first).min()?;
        let time = self.writers.values().map(|w| w.time).min()?;
        Some((offset, time))
    }

    /// Adds a record of a writer.
    pub fn push(&mut self, writer: u64, offset: Offset, time: Millis, record: &ViewRecord<'_>) {
        self.add(writer, offset, encode(record, time), false);
    }

    fn add(&mut self, writer: u64, offset: Offset, value: Vec<u8>, stored: bool) {
        let time = time_of(&value);
        let row = PendingRow { offset, stored, value };
        self.memory += row.memory();
        let pending = self.writers.entry(writer).or_insert_with(|| PendingWriter {
            first: offset,
            time,
            rows: Vec::new(),
            spilled: None,
        });
        pending.time = pending.time.min(time);
        pending.rows.push(row);
    }

    /// Bytes of a writer's pending rows in memory.
    pub fn bytes_of(&self, writer: u64) -> usize {
        self.writers.get(&writer).map_or(0, PendingWriter::bytes)
    }

    /// Whether a writer has pending rows, in memory or in the store.
    pub fn contains(&self, writer: u64) -> bool {
        self.writers.contains_key(&writer)
    }

    /// Removes and returns the next rows of a writer in offset order, with slightly more than `bytes_max` bytes; empty
    /// if none are left. [`PendingRows::stage`] still stores the rows that remain.
    pub fn take_piece(
        &mut self,
        store: &dyn Store,
        partition: i32,
        writer: u64,
        bytes_max: usize,
    ) -> Result<Vec<PendingRow>> {
        let Some(pending) = self.writers.get_mut(&writer) else {
            return Ok(Vec::new());
        };
        if let Some(from) = pending.spilled {
            let below = pending.rows.first().map_or(Offset::MAX, |row| row.offset);
            let piece = read_spilled(store, partition, writer, from..below, bytes_max)?;
            if let Some(last) = piece.last() {
                pending.spilled = Some(last.offset + 1);
                return Ok(piece);
            }
            pending.spilled = None;
        }
        let mut bytes = 0;
        let full = |row: &PendingRow| {
            let full = bytes > bytes_max;
            bytes += row.value.len();
            full
        };
        let count = pending.rows.iter().position(full).unwrap_or(pending.rows.len());
        let piece: Vec<PendingRow> = pending.rows.drain(..count).collect();
        self.memory -= piece.iter().map(PendingRow::memory).sum::<usize>();
        if pending.rows.is_empty() {
            self.writers.remove(&writer);
        }
        Ok(piece)
    }

    /// Adds the rows that are not in the store yet to a batch that is about to be committed. The rows are marked as
    /// stored immediately, so if that commit fails, the replica must be opened again.
    pub fn stage(&mut self, partition: i32, batch: &mut Batch) {
        for (writer, pending) in &mut self.writers {
            // Rows are stored in offset order, so those that are not in the store yet are the last ones.
            for row in pending.rows.iter_mut().rev().take_while(|r| !r.stored) {
                row.stored = true;
                batch.put(
                    space::PENDING,
                    bytes::pending_key(partition, *writer, row.offset),
                    row.value.clone(),
                );
            }
        }
    }

    /// Removes rows from memory, largest writers first, until they take at most `memory_max` bytes. All rows must be in the
    /// store.
    pub fn spill(&mut self, memory_max: usize) {
        while self.memory > memory_max {
            let largest = self.writers.values_mut().max_by_key(|w| w.rows.len());
            let Some(writer) = largest.filter(|w| !w.rows.is_empty()) else {
                return;
            };
            self.memory -= writer.memory();
            writer.rows = Vec::new();
            writer.spilled.get_or_insert(writer.first);
        }
    }
}

/// Reads the next rows of a writer in an offset range from the store, with slightly more than `bytes_max` bytes.
fn read_spilled(
    store: &dyn Store,
    partition: i32,
    writer: u64,
    range: Range<Offset>,
    bytes_max: usize,
) -> Result<Vec<PendingRow>> {
    let (from, to) = bytes::pending_range(partition, writer, range.start);
    let mut piece = Vec::new();
    let mut piece_bytes = 0;
    store.scan(
        space::PENDING,
        state_store::KeyRange::new(&from, Some(&to)),
        Direction::Forward,
        &mut |key, value| {
            let Some((_, offset)) = bytes::decode_pending_key(key) else {
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
        },
    )?;
    Ok(piece)
}

/// A decoded pending record. Encoding: time, kind, then fields of the kind.
pub enum Pending<'a> {
    /// Row of a bucket.
    Row {
        /// Name of the bucket.
        bucket: &'a str,
        /// Row.
        row: RowValue<'a>,
    },
    /// Stale mark.
    Stale {
        /// View.
        view: &'a str,
        /// Whether the mark is set or cleared.
        stale: bool,
    },
    /// Loaded mark.
    Loaded {
        /// View.
        view: &'a str,
        /// Whether the mark is set or cleared.
        loaded: bool,
    },
    /// A begin marker or a grant, which is never visible.
    Invisible,
}

const ROW: u8 = 0;
const STALE: u8 = 1;
const INVISIBLE: u8 = 2;
const LOADED: u8 = 3;

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
            out.extend_from_slice(&bytes::encode_row(&RowValue {
                end_marker: -1,
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
        ViewRecord::Loaded { view, loaded, .. } => {
            out.extend_from_slice(&[LOADED, u8::from(*loaded)]);
            bytes::push_text(&mut out, view);
        }
        ViewRecord::TransactionBegin { .. } | ViewRecord::Grant { .. } | ViewRecord::TransactionEnd { .. } => {
            out.push(INVISIBLE)
        }
    }
    out
}

/// Decodes a pending record.
pub fn decode(value: &[u8]) -> Result<Pending<'_>> {
    let parsed = || {
        let (kind, rest) = value.get(8..)?.split_first()?;
        Some(match *kind {
            ROW => {
                let (bucket, rest) = bytes::take_text(rest)?;
                Pending::Row {
                    bucket,
                    row: bytes::decode_row(rest)?,
                }
            }
            STALE => {
                let (stale, rest) = rest.split_first()?;
                Pending::Stale {
                    view: bytes::take_text(rest)?.0,
                    stale: *stale == 1,
                }
            }
            LOADED => {
                let (loaded, rest) = rest.split_first()?;
                Pending::Loaded {
                    view: bytes::take_text(rest)?.0,
                    loaded: *loaded == 1,
                }
            }
            _ => Pending::Invisible,
        })
    };
    parsed().ok_or_else(|| Error::Unusable("a pending row is corrupt".into()))
}
