//! The snapshot at the start of a source epoch: copies every declared table, one chunk per table.
//!
//! All tables are read in the database snapshot that the slot exported, and together they are one source transaction
//! (ADR 6), so readers never see the rows of one table without those of the others. Each chunk ends with a `ChunkEnd`
//! record, after which readers remove rows that no longer exist (ADR 3). Every version is below that of the first
//! streamed change. The snapshot is streamed and never completely in memory. It cannot be resumed: after an
//! interruption it starts from the beginning.

use super::copy::CopyLine;
use super::emitter::{Emitter, Missing, Published};
use super::pgoutput::Value;
use super::position::{Position, Snapshot as State};
use super::rows::{Buffers, Table};
use super::server::{Sql, identifier};
use super::tuples::recycle;
use crate::error::{Error, Result};
use crate::source::{Batch, Boundary, Budget};
use event_log::OutBatch;
use schemas::events::{ChunkEnd, Event as _};
use schemas::headers::{self, Tx};
use schemas::ids::SchemaId;
use schemas::key::KeyWriter;
use schemas::version::Lsn;
use std::pin::Pin;
use std::sync::Arc;
use tokio_postgres::CopyOutStream;

const ATTEMPTED: &str = "copy a table";

/// The connection and the position with which a snapshot is read.
pub(super) struct Origin {
    /// A connection inside a transaction that uses the slot's exported snapshot.
    pub(super) sql: Sql,
    /// The stored position, which announced the snapshot.
    pub(super) position: Position,
    /// The slot's consistent point.
    pub(super) point: Lsn,
}

/// Copies the tables one after the other.
pub(super) struct Snapshot {
    sql: Sql,
    tables: Arc<[Table]>,
    emitter: Emitter,
    chunk_end: SchemaId,
    position: Position,
    id: String,
    point: Lsn,
    at_ms: i64,
    /// Index of the table that is being read.
    current: usize,
    copy: Option<Pin<Box<CopyOutStream>>>,
    next_ordinal: u32,
    rows: u64,
    line: CopyLine,
    buffers: Buffers,
    values: Vec<Value<'static>>,
    key: Vec<u8>,
    value: Vec<u8>,
    ended: bool,
}

impl Snapshot {
    /// Starts the snapshot.
    pub(super) async fn new(
        origin: Origin,
        tables: Arc<[Table]>,
        emitter: Emitter,
        chunk_end: SchemaId,
    ) -> Result<Self> {
        let Origin { sql, position, point } = origin;
        let now = sql
            .value("read the time", "SELECT (extract(epoch FROM now()) * 1000)::int8::text")
            .await?;
        let id = match &position.snapshot {
            State::Begun { id } | State::Done { id } => id.clone(),
            State::Wanted => String::new(),
        };
        Ok(Snapshot {
            sql,
            tables,
            emitter,
            chunk_end,
            position,
            id,
            point,
            at_ms: now.and_then(|text| text.parse().ok()).unwrap_or_default(),
            current: 0,
            copy: None,
            next_ordinal: 0,
            rows: 0,
            line: CopyLine::default(),
            buffers: Buffers::default(),
            values: Vec::new(),
            key: Vec::new(),
            value: Vec::new(),
            ended: false,
        })
    }

    /// Human-readable progress.
    pub(super) fn describe(&self) -> String {
        let table = self.tables.get(self.current).map_or("-", |t| t.name.as_str());
        format!(
            "table {table} ({} of {}), {} rows so far",
            self.current + 1,
            self.tables.len(),
            self.rows
        )
    }

    /// The position from which to stream when all tables have been copied.
    pub(super) fn ended(&self) -> Option<Position> {
        self.ended.then(|| Position {
            lsn: self.point,
            ordinal: None,
            complete_lsn: self.point,
            snapshot: State::Done { id: self.id.clone() },
            ..self.position.clone()
        })
    }

    /// The stored position, which announced the snapshot.
    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// Appends the next rows.
    pub(super) async fn next(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let boundary = self.fill(batch, budget).await;
        batch.dead_letters += self.emitter.take_dead_letters();
        boundary
    }

    async fn fill(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let tables = Arc::clone(&self.tables);
        batch.position = Some(self.position.clone());
        let Some(table) = tables.get(self.current) else {
            return Ok(self.end());
        };
        let mut copy = match self.copy.take() {
            Some(copy) => copy,
            None => Box::pin(self.sql.copy(ATTEMPTED, &statement(table)).await?),
        };
        while batch.records.len() < budget.records_max && batch.records.byte_len() < budget.bytes_max {
            match self.sql.next_line(ATTEMPTED, &mut copy).await? {
                Some(line) => self.row(table, &line, &mut batch.records)?,
                None => {
                    self.end_chunk(table, &mut batch.records)?;
                    failpoint::hit("connector.postgres.chunk_end");
                    self.current += 1;
                    return Ok(if self.current < tables.len() {
                        Boundary::Full
                    } else {
                        self.end()
                    });
                }
            }
        }
        self.copy = Some(copy);
        failpoint::hit("connector.postgres.mid_chunk");
        Ok(Boundary::Full)
    }

    fn end(&mut self) -> Boundary {
        self.ended = true;
        failpoint::hit("connector.postgres.snapshot_end");
        Boundary::Drained
    }

    fn row(&mut self, table: &Table, line: &[u8], out: &mut OutBatch) -> Result<()> {
        if !self.line.parse(line, table.columns()) {
            return Err(Error::Unpublishable {
                what: format!("a row of table {}", table.name),
                reason: String::from("COPY returned an unexpected number of columns"),
                fix: String::from("report this as a bug"),
            });
        }
        let mut values = recycle(std::mem::take(&mut self.values));
        values.extend(self.line.values());
        let key_written = table.write_key(&values, &mut self.key);
        let has_key = key_written.is_ok();
        let written = key_written.and_then(|()| table.write_value(&values, &mut self.buffers, &mut self.value));
        self.values = recycle(values);
        let tx = self.tx(table, false)?;
        self.rows += 1;
        if let Err(error) = written {
            let reason = service::chain(&error);
            let key = if has_key { self.key.as_slice() } else { &[] };
            let missing = Missing::of_row(table.name.as_str(), key, &reason);
            self.emitter.dead_letter(&tx, &missing, out);
            return Ok(());
        }
        let row = Published {
            table: table.name.as_str(),
            key: &self.key,
            value: Some(&self.value),
            header: Some((headers::SNAPSHOT, self.id.as_bytes())),
        };
        self.emitter.emit(&tx, &row, out);
        Ok(())
    }

    fn end_chunk(&mut self, table: &Table, out: &mut OutBatch) -> Result<()> {
        self.key.clear();
        KeyWriter::new(&mut self.key)
            .str("~chunk")
            .str(table.name.as_str())
            .finish();
        let low = self.point.to_string();
        let end = ChunkEnd {
            table: table.name.as_str(),
            from: None,
            to: None,
            snapshot: &self.id,
            low: &low,
            is_final: true,
        };
        self.value.clear();
        end.write(self.chunk_end, &mut self.value);
        let tx = self.tx(table, self.current + 1 == self.tables.len())?;
        let row = Published {
            table: table.name.as_str(),
            key: &self.key,
            value: Some(&self.value),
            header: Some((headers::SNAPSHOT, self.id.as_bytes())),
        };
        self.emitter.emit(&tx, &row, out);
        Ok(())
    }

    fn tx(&mut self, table: &Table, last: bool) -> Result<Tx> {
        let ordinal = self.next_ordinal;
        self.next_ordinal = ordinal.checked_add(1).ok_or_else(|| Error::Unpublishable {
            what: format!("the snapshot of table {}", table.name),
            reason: String::from("the declared tables have more than 2^32 rows in total"),
            fix: String::from("distribute the tables over several connectors"),
        })?;
        // The first streamed transaction can have a commit LSN equal to the consistent point, and its versions must be
        // higher.
        let position = Lsn(self.point.0.saturating_sub(1));
        Ok(Tx {
            source_epoch: self.position.source_epoch,
            position,
            ordinal,
            last,
            at_ms: self.at_ms,
        })
    }
}

fn statement(table: &Table) -> String {
    let columns: Vec<String> = table.names().map(identifier).collect();
    let (schema, name) = (identifier(table.name.schema()), identifier(table.name.table()));
    // COPY of a query can read partitioned tables; COPY of a table name cannot.
    format!("COPY (SELECT {} FROM {schema}.{name}) TO STDOUT", columns.join(", "))
}
