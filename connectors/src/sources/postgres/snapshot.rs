//! The snapshot of an incarnation: every declared table as it was at the slot's first place, a chunk each.
//!
//! Guarantees: all tables are read in one database snapshot, the slot's own, and all of it is one source transaction:
//! nobody is shown one table without the others. Each chunk ends with its `ChunkEnd`, so that readers can drop what is
//! gone; every version is below that of the first streamed change.
//! Never: a table in memory; a place to go on from: an interrupted snapshot starts over.

use super::changes::{Emitter, Published};
use super::copy::Line;
use super::pgoutput::Value;
use super::position::{Position, Snapshot as State};
use super::rows::{Memory, Table};
use super::server::{Sql, identifier};
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

/// Reads the tables one after the other.
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
    line: Line,
    memory: Memory,
    values: Vec<Value<'static>>,
    key: Vec<u8>,
    value: Vec<u8>,
    ended: bool,
}

impl Snapshot {
    /// Begins. `sql` is in a transaction that has the slot's snapshot; `point` is the slot's first place.
    pub(super) async fn new(
        sql: Sql,
        tables: Arc<[Table]>,
        emitter: Emitter,
        chunk_end: SchemaId,
        position: Position,
        point: Lsn,
    ) -> Result<Self> {
        let now = sql
            .value(
                "ask for the time",
                "SELECT (extract(epoch FROM now()) * 1000)::int8::text",
            )
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
            line: Line::default(),
            memory: Memory::default(),
            values: Vec::new(),
            key: Vec::new(),
            value: Vec::new(),
            ended: false,
        })
    }

    /// What is being read, for people.
    pub(super) fn describe(&self) -> String {
        let table = self.tables.get(self.current).map_or("-", |t| t.name.as_str());
        format!(
            "table {table} ({} of {}), {} rows so far",
            self.current + 1,
            self.tables.len(),
            self.rows
        )
    }

    /// The position from which to stream, once all tables were read.
    pub(super) fn ended(&self) -> Option<Position> {
        self.ended.then(|| Position {
            lsn: self.point,
            ordinal: None,
            whole: self.point,
            snapshot: State::Done { id: self.id.clone() },
            ..self.position.clone()
        })
    }

    /// Appends the next rows.
    pub(super) async fn next(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
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
            match self.sql.copied(ATTEMPTED, &mut copy).await? {
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
        if !self.line.read(line, table.columns()) {
            return Err(Error::Unpublishable {
                what: format!("a row of table {}", table.name),
                reason: String::from("COPY gave another number of columns than were asked for"),
                next: String::from("report this as a defect"),
            });
        }
        let mut values = super::changes::recycle(std::mem::take(&mut self.values));
        values.extend(self.line.values());
        let written = table
            .write_key(&values, &mut self.key)
            .and_then(|()| table.write_value(&values, &mut self.memory, &mut self.value));
        self.values = super::changes::recycle(values);
        written?;
        let tx = self.tx(table, false)?;
        let row = Published {
            table: table.name.as_str(),
            key: &self.key,
            value: Some(&self.value),
            header: Some((headers::SNAPSHOT, self.id.as_bytes())),
        };
        self.emitter.emit(&tx, &row, out);
        self.rows += 1;
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
            reason: String::from("the declared tables have more than four thousand million rows together"),
            next: String::from("split the tables over several connectors"),
        })?;
        // The first streamed transaction may commit exactly at the slot's first place.
        let position = Lsn(self.point.0.saturating_sub(1));
        Ok(Tx {
            incarnation: self.position.incarnation,
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
    // A query also reads partitioned tables, which COPY by name does not.
    format!("COPY (SELECT {} FROM {schema}.{name}) TO STDOUT", columns.join(", "))
}
