//! Snapshots of single tables: starts them in the stream, publishes their chunks, and ends them.
//!
//! A chunk is published at the position of its high watermark, as one source transaction. Every change that the stream
//! contains before the watermark is older than the rows of the chunk, and every later change is newer. The position
//! after the chunk contains the key of its last row, so a restart reads a chunk again only if it was not committed.

use super::super::copy::CopyLine;
use super::super::emitter::{Missing, Published};
use super::super::position::ChunkProgress;
use super::super::relations::{Mapped, map};
use super::super::rows::Table;
use super::super::static_record::{NeedsSnapshot, TableRecord, TableSnapshot};
use super::super::tuples::recycle;
use super::super::window::{InProgress, KeyTexts};
use super::{Changes, is_mapping_of, protocol_error};
use crate::error::Result;
use event_log::OutBatch;
use schemas::events::{ChunkEnd, Event as _};
use schemas::headers::{self, Tx};
use schemas::key::KeyWriter;
use schemas::version::Lsn;
use std::sync::Arc;

/// The rows of a chunk.
#[derive(Debug)]
pub(in super::super) struct ChunkRows {
    /// Lines of COPY, in key order.
    pub(in super::super) lines: Vec<bytes::Bytes>,
    /// Whether the table has no rows after these.
    pub(in super::super) is_last: bool,
    /// Number of rows that were requested by key; 0 if the rows follow the last key of the chunk before.
    pub(in super::super) by_key: usize,
    /// The transactions that were in progress when the rows were read.
    pub(in super::super) in_progress: InProgress,
    /// Time at which they were read, in ms.
    pub(in super::super) at_ms: i64,
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Outcome {
    /// Published; more rows follow.
    Published,
    /// Published, and the snapshot of the table has ended.
    Ended,
    /// Not published. The same rows must be read again.
    Again(&'static str),
    /// Not published: a transaction that precedes the low watermark was not visible yet when the rows were read. They must
    /// be read again, and later after the watermark.
    TooEarly,
}

/// A row of a chunk, encoded.
struct Line {
    key: Vec<u8>,
    /// The value, or why the row cannot be published.
    value: std::result::Result<Vec<u8>, String>,
}

impl Changes {
    /// Continues the snapshot that the position names. Called once, before the stream begins.
    pub(super) fn resume_snapshot(&mut self) {
        let running = self.position.source.running_snapshot();
        let running = running.map(|(table, ..)| table.to_owned());
        let Some(table) = running else {
            self.position.chunks = None;
            return;
        };
        self.window.follow(&table);
        let stored = self.position.chunks.take().filter(|chunks| chunks.table == table);
        // The rows that were moved are not known any more.
        self.position.chunks = Some(stored.filter(|chunks| !chunks.moved).unwrap_or_else(|| begin(&table)));
    }

    /// Requests a snapshot of a table; returns whether the table exists.
    pub(in super::super) fn want_snapshot(&mut self, table: &str) -> bool {
        let Some(record) = self.position.source.table(table) else {
            return false;
        };
        if record.snapshot.is_none() {
            let snapshot = Some(TableSnapshot::Wanted);
            let record = TableRecord {
                snapshot,
                ..record.clone()
            };
            self.set_record(table, record);
        }
        true
    }

    /// Withdraws the request, because the table cannot be read. A table that needs a snapshot gets the new cause.
    pub(in super::super) fn snapshot_failed(&mut self, table: &str, cause: NeedsSnapshot) {
        let Some(record) = self.position.source.table(table).cloned() else {
            return;
        };
        let connector = &self.setup.connector;
        tracing::error!(%connector, table, cause = cause.cause, fix = cause.fix, "snapshot of the table failed");
        let is_running = matches!(record.snapshot, Some(TableSnapshot::Running { .. }));
        if is_running {
            self.stop_with(table, cause.clone());
        }
        let needs_snapshot = if is_running {
            Some(cause)
        } else {
            record.needs_snapshot.as_ref().map(|before| NeedsSnapshot {
                published: before.published,
                automatic: before.automatic,
                ..cause
            })
        };
        let record = TableRecord {
            needs_snapshot,
            snapshot: None,
            ..record
        };
        self.set_record(table, record);
    }

    /// Begins the snapshot of a table at the current place in the stream: from here on, the table's changes are
    /// published, with this encoder and according to this record.
    pub(in super::super) fn begin_snapshot(&mut self, table: Arc<Table>, record: TableRecord) {
        let name = table.name.clone();
        let name = name.as_str();
        let mut tables = self.setup.tables.to_vec();
        match tables.iter_mut().find(|known| known.name == table.name) {
            Some(known) => *known = table,
            None => tables.push(table),
        }
        self.setup.tables = tables.into();
        let low = self.position.complete_lsn;
        let id = format!("{}-{}-{name}-{low}", self.setup.connector, self.position.source_epoch);
        let record = TableRecord {
            needs_snapshot: None,
            snapshot: Some(TableSnapshot::Running {
                id,
                low: low.to_string(),
            }),
            ..record
        };
        self.set_record(name, record);
        self.position.chunks = Some(begin(name));
        self.window.follow(name);
        self.map_again(name);
    }

    /// Maps the relations of a table again. A relation that does not fit the new record is forgotten: if it is still
    /// valid, a change of it is an error, and after a reconnect the server sends the relation again.
    fn map_again(&mut self, table: &str) {
        let (setup, source) = (&self.setup, &self.position.source);
        for (id, known) in &self.relations {
            let before = self.mappings.get(id);
            if !before.is_some_and(|mapped| is_mapping_of(&setup.tables, mapped, table)) {
                continue;
            }
            match map(&known.relation(), &setup.declared, &setup.tables, source) {
                Ok(mapped @ Mapped::Table(_)) => drop(self.mappings.insert(*id, mapped)),
                _ => drop(self.mappings.remove(id)),
            }
        }
    }

    /// Forgets the progress of a snapshot that was stopped or has ended.
    pub(super) fn end_snapshot(&mut self, table: &str) {
        if self.window.follows(table) {
            self.window.unfollow();
            self.position.chunks = None;
        }
    }

    /// Stores that rows wait to be read by key. The list is in memory only.
    pub(super) fn note_moved_rows(&mut self, table: &Table) {
        if self.window.follows(table.name.as_str())
            && let Some(chunks) = &mut self.position.chunks
        {
            chunks.moved = self.window.has_moved();
        }
    }

    /// Opens the window of a chunk at its low watermark.
    pub(in super::super) fn open_window(&mut self) {
        self.window.open();
    }

    /// The keys of rows to read, up to `max`; empty if no row waits to be read by key. If there were too many of them,
    /// the snapshot starts again at the first row.
    pub(in super::super) fn moved_keys(&mut self, max: usize) -> Vec<KeyTexts> {
        match self.window.moved(max) {
            Some(keys) => keys.to_vec(),
            None => {
                self.window.forget_moved();
                let chunks = self.position.chunks.take();
                self.position.chunks = chunks.map(|chunks| begin(&chunks.table));
                Vec::new()
            }
        }
    }

    /// Publishes a chunk whose high watermark the stream has reached at this LSN.
    pub(in super::super) fn publish_chunk(&mut self, at: Lsn, rows: &ChunkRows, out: &mut OutBatch) -> Result<Outcome> {
        let Some(progress) = self.position.chunks.clone() else {
            return Ok(Outcome::Again("no snapshot is running"));
        };
        if !self.window.is_usable() {
            self.window.close();
            return Ok(Outcome::Again("too many rows changed while the chunk was read"));
        }
        if self.window.hides_streamed_transaction(&rows.in_progress) {
            self.window.close();
            return Ok(Outcome::TooEarly);
        }
        let Some(table) = self
            .setup
            .tables
            .iter()
            .find(|t| t.name.as_str() == progress.table)
            .cloned()
        else {
            return Ok(Outcome::Again("the table has no encoder"));
        };
        let (lines, last_key) = self.encode_chunk(&table, rows)?;
        self.window.remove_moved(rows.by_key);
        let (is_last, has_moved) = (rows.is_last, self.window.has_moved());
        self.window.close();
        let ends = is_last && !has_moved;
        self.emit_chunk(&table, &Emission { at, rows, ends }, &lines, out);
        self.position.complete_lsn = self.position.complete_lsn.max(at);
        if ends {
            self.end_snapshot(&progress.table);
            self.position.source = self.position.source.with(|content| {
                if let Some(record) = content.tables.get_mut(&progress.table) {
                    record.snapshot = None;
                }
            });
            return Ok(Outcome::Ended);
        }
        let is_by_key = rows.by_key > 0;
        self.position.chunks = Some(ChunkProgress {
            chunk: progress.chunk + 1,
            rows: progress.rows + u64::try_from(rows.lines.len()).unwrap_or_default(),
            after: last_key.filter(|_| !is_by_key).or(progress.after),
            moved: has_moved,
            table: progress.table,
        });
        Ok(Outcome::Published)
    }

    /// Encodes the rows of a chunk that the stream does not supersede, and returns them with the key of the last row
    /// that was read.
    fn encode_chunk(&mut self, table: &Table, rows: &ChunkRows) -> Result<(Vec<Line>, Option<KeyTexts>)> {
        let mut lines = Vec::with_capacity(rows.lines.len());
        let (mut copied, mut last_key) = (CopyLine::default(), None);
        for bytes in &rows.lines {
            if !copied.parse(bytes, table.columns()) {
                return Err(protocol_error("a row of COPY with an unexpected number of columns"));
            }
            let mut values = recycle(std::mem::take(&mut self.values));
            values.extend(copied.values());
            let mut line = Line {
                key: Vec::new(),
                value: Ok(Vec::new()),
            };
            let key_written = table.write_key(&values, &mut line.key);
            if let Some(key) = table.key_texts(&values) {
                last_key = Some(key);
            }
            let admitted = match &key_written {
                Ok(()) => self.window.admits(&line.key, &mut values),
                Err(_) => true,
            };
            if admitted {
                if key_written.is_err() {
                    line.key.clear();
                }
                let mut value = Vec::new();
                let written = key_written.and_then(|()| table.write_value(&values, &mut self.buffers, &mut value));
                line.value = match written {
                    Ok(()) => Ok(value),
                    Err(error) => Err(service::chain(&error)),
                };
                lines.push(line);
            }
            self.values = recycle(values);
        }
        Ok((lines, last_key))
    }

    fn emit_chunk(&mut self, table: &Table, emission: &Emission<'_>, lines: &[Line], out: &mut OutBatch) {
        let name = table.name.as_str();
        let running = self.position.source.running_snapshot();
        let (id, low) = running.map_or_else(Default::default, |(_, id, low)| (id.to_owned(), low.to_owned()));
        let mut tx = Tx {
            source_epoch: self.position.source_epoch,
            position: emission.at,
            ordinal: 0,
            last: false,
            at_ms: emission.rows.at_ms,
        };
        let emitter = &mut self.setup.emitter;
        let header = Some((headers::SNAPSHOT, id.as_bytes()));
        for (n, line) in lines.iter().enumerate() {
            tx.last = !emission.ends && n + 1 == lines.len();
            match &line.value {
                Ok(value) => {
                    let row = Published {
                        table: name,
                        key: &line.key,
                        value: Some(value),
                        header,
                    };
                    emitter.emit(&tx, &row, out);
                }
                Err(reason) => emitter.dead_letter(&tx, &Missing::of_row(name, &line.key, reason), out),
            }
            (self.position.lsn, self.position.ordinal) = (emission.at, Some(tx.ordinal));
            tx.ordinal += 1;
        }
        if !emission.ends {
            return;
        }
        tx.last = true;
        let (mut key, mut value) = (Vec::new(), Vec::new());
        KeyWriter::new(&mut key).str("~chunk").str(name).finish();
        // The end applies to the whole table: readers order keys differently from the database (collations), and one
        // removal for the whole snapshot is enough.
        let end = ChunkEnd {
            table: name,
            from: None,
            to: None,
            snapshot: &id,
            low: &low,
            is_final: true,
        };
        end.write(self.setup.chunk_end, &mut value);
        let row = Published {
            table: name,
            key: &key,
            value: Some(&value),
            header,
        };
        emitter.emit(&tx, &row, out);
        (self.position.lsn, self.position.ordinal) = (emission.at, Some(tx.ordinal));
    }
}

/// Where and how a chunk is published.
struct Emission<'r> {
    at: Lsn,
    rows: &'r ChunkRows,
    /// Whether the snapshot of the table ends with this chunk.
    ends: bool,
}

/// The progress of a snapshot that begins.
fn begin(table: &str) -> ChunkProgress {
    ChunkProgress {
        table: table.to_owned(),
        ..ChunkProgress::default()
    }
}
