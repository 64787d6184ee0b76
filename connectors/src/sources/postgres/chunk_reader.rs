//! The reader of snapshots: a task with its own connection that prepares tables and reads their chunks.
//!
//! It writes a watermark before and after each chunk. The rows of a chunk are sent before its high watermark is written,
//! so that the rows are present when the stream reaches the watermark. The task never blocks the stream.

use super::catalog::Catalog;
use super::changes::ChunkRows;
use super::check;
use super::chunk_query::{self, ChunkQuery, KeyColumn, Range};
use super::declaration::Declaration;
use super::drift;
use super::opening::{Opener, is_of_table};
use super::publication;
use super::rows::Table;
use super::server::{Sql, literal};
use super::static_record::{ColumnRecord, TableRecord};
use super::watermark::{self, Level, Watermark};
use crate::error::{Error, Result};
use schemas::ids::SourceName;
use schemas::version::Lsn;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Size at which a chunk ends.
const CHUNK_BYTES: usize = 1 << 20;
/// Limits of the number of rows of a chunk. Within them it follows from the size of the rows.
const CHUNK_ROWS_MIN: usize = 8;
const CHUNK_ROWS_MAX: usize = 10_000;
/// Number of rows of the first chunk if the size of the table is unknown.
const CHUNK_ROWS_FIRST: usize = 500;
/// Maximum number of commands that wait. All but the last are obsolete, because their table was stopped.
const COMMANDS_MAX: usize = 4;
/// How often to check whether the transactions that write to a table have ended.
const WRITERS_EVERY: Duration = Duration::from_millis(100);

const ATTEMPTED: &str = "read a chunk of a table";

/// A command with its number, which is unique in the session.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) number: u64,
    pub(super) work: Work,
}

/// What the reader is to do.
#[derive(Debug)]
pub(super) enum Work {
    /// Check a table and compile its encoder.
    Prepare {
        /// The declared name of the table.
        table: String,
        /// OID under which the table's changes are published, if they are. Otherwise the transactions that have written
        /// to the table must end first, because their changes may be missing in the stream.
        published: Option<u32>,
        /// The columns with which the table was read before.
        known: Vec<ColumnRecord>,
    },
    /// Sort these tables by size.
    Sort { oids: Vec<u32> },
    /// Read a chunk of the prepared table, this time after the low watermark.
    Read { range: Range, settle: Duration },
}

/// A reply to the command of this number.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) number: u64,
    pub(super) result: Outcome,
}

/// The result of a command.
#[derive(Debug)]
pub(super) enum Outcome {
    Prepared(Box<Prepared>),
    /// The OIDs of the tables, smallest table first.
    Sorted(Vec<u32>),
    /// The table cannot be read.
    Unsuitable(Unsuitable),
    Chunk(ChunkRows),
    /// The command failed and can be tried again.
    Failed(Error),
}

/// Why a table cannot be read.
#[derive(Debug)]
pub(super) struct Unsuitable {
    pub(super) cause: String,
    pub(super) fix: Option<String>,
    pub(super) schema_rejected: bool,
}

/// A table whose chunks can be read.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) record: TableRecord,
    pub(super) encoder: Arc<Table>,
    /// The record describes the table as of this LSN.
    pub(super) at: Lsn,
    /// Estimated number of rows.
    pub(super) rows: Option<u64>,
}

/// Parameters of the reader.
pub(super) struct Context {
    pub(super) name: SourceName,
    pub(super) declaration: Arc<Declaration>,
    pub(super) registry: Arc<dyn registry::Registry>,
    pub(super) topic: Arc<str>,
    /// Identifies the watermarks of this reader.
    pub(super) session: String,
}

/// A running reader. Dropping it stops the task.
pub(super) struct Reader {
    commands: mpsc::Sender<Command>,
    replies: mpsc::Receiver<Reply>,
    _task: AbortOnDropHandle<()>,
}

impl Reader {
    /// Starts a reader on the current runtime.
    pub(super) fn start(context: Context) -> Self {
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let (send, replies) = mpsc::channel(2 * COMMANDS_MAX);
        let reading = Reading {
            context,
            replies: send,
            sql: None,
            prepared: None,
        };
        let task = tokio::runtime::Handle::current().spawn(reading.run(received));
        Reader {
            commands,
            replies,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Sends a command; returns `false` if too many are waiting.
    pub(super) fn send(&self, command: Command) -> bool {
        self.commands.try_send(command).is_ok()
    }

    /// The next reply, if any. Never waits.
    pub(super) fn poll(&mut self) -> Option<Reply> {
        self.replies.try_recv().ok()
    }
}

/// The table that was prepared last.
struct PreparedTable {
    query: ChunkQuery,
    /// Number of rows of the next chunk.
    limit: usize,
}

struct Reading {
    context: Context,
    replies: mpsc::Sender<Reply>,
    sql: Option<Sql>,
    prepared: Option<PreparedTable>,
}

/// An error of a command: of the table, or any other.
enum Failure {
    Unsuitable(Unsuitable),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Other(error)
    }
}

impl Reading {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(Command { number, work }) = commands.recv().await {
            let result = match work {
                Work::Prepare {
                    table,
                    published,
                    known,
                } => {
                    let prepared = self.prepare(&table, published, &known).await;
                    prepared.map(|prepared| prepared.map(|prepared| Outcome::Prepared(Box::new(prepared))))
                }
                Work::Sort { oids } => self.sort(&oids).await.map(|oids| Some(Outcome::Sorted(oids))),
                Work::Read { range, settle } => {
                    let read = self.read(number, &range, settle).await;
                    read.map(|()| None).map_err(Failure::Other)
                }
            };
            // After an error, the connection was dropped: a transaction may be open.
            let result = match result {
                Ok(Some(outcome)) => outcome,
                Ok(None) => continue,
                Err(Failure::Unsuitable(unsuitable)) => Outcome::Unsuitable(unsuitable),
                Err(Failure::Other(error)) => Outcome::Failed(error),
            };
            self.reply(number, result).await;
        }
    }

    async fn reply(&self, number: u64, result: Outcome) {
        // If the receiver is gone, the task is about to be stopped.
        let _ = self.replies.send(Reply { number, result }).await;
    }

    async fn connect(&mut self) -> Result<Sql> {
        match self.sql.take().filter(|sql| !sql.is_closed()) {
            Some(sql) => Ok(sql),
            None => {
                let sql = self.context.declaration.server.connect("trunkline snapshot").await?;
                // A locked table must not hold the snapshot of the chunk back. The watermarks are flushed at once, but
                // without waiting for a standby.
                let settings = "SET lock_timeout = '5s'; SET synchronous_commit = local";
                sql.run("set the session", settings).await?;
                Ok(sql)
            }
        }
    }

    async fn sort(&mut self, oids: &[u32]) -> Result<Vec<u32>, Failure> {
        let sql = self.connect().await?;
        let rows = sql
            .rows("read the sizes of the tables", &chunk_query::by_size(oids))
            .await?;
        self.sql = Some(sql);
        let oids = rows.iter().filter_map(|row| row.try_get(0).ok().flatten());
        Ok(oids.filter_map(|text: &str| text.parse().ok()).collect())
    }

    async fn prepare(
        &mut self,
        table: &str,
        published: Option<u32>,
        known: &[ColumnRecord],
    ) -> Result<Option<Prepared>, Failure> {
        let sql = self.connect().await?;
        let declaration = Arc::clone(&self.context.declaration);
        let Some(declared) = declaration.table(table) else {
            return Err(Failure::Other(bug("the table is not declared")));
        };
        let publication = declaration.publication.as_str();
        let names = [declared.name.clone()];
        let reading = check::Reading {
            known: Some(known),
            ..declaration.reading(false)
        };
        let check = |catalog: &Catalog| {
            check::check(declared, catalog, reading).map_err(|unsuitable| {
                Failure::Unsuitable(Unsuitable {
                    cause: unsuitable.cause(),
                    fix: Some(unsuitable.fix()),
                    schema_rejected: false,
                })
            })
        };
        let mut catalog = Catalog::read(&sql, &names, publication).await?;
        let mut checked = check(&catalog)?;
        let oid = catalog.table(&declared.name).map_or(0, |table| table.oid);
        if published != Some(oid) || catalog.published(&declared.name).is_none() {
            if catalog.publication.is_none() {
                // The next comparison with the catalog reports it for the whole source.
                return Err(Failure::Other(bug("the publication does not exist")));
            }
            let added = publication::publish(&sql, &declaration, &catalog, &[checked]).await;
            added.map_err(|error| self.of_table(error))?;
            catalog = Catalog::read(&sql, &names, publication).await?;
            publication::maintain(&sql, &declaration, &catalog).await?;
            wait_for_writers(&sql, oid).await?;
            catalog = Catalog::read(&sql, &names, publication).await?;
            checked = check(&catalog)?;
        }
        let at = sql
            .value("read the WAL position", "SELECT pg_current_wal_insert_lsn()::text")
            .await?;
        let record = drift::record(&checked, &catalog);
        let context = &self.context;
        let opener = Opener {
            name: &context.name,
            declaration: &context.declaration,
            registry: &context.registry,
            topic: &context.topic,
        };
        let encoder = opener.compile(declared, &record.key).await;
        let encoder = encoder.map_err(|error| self.of_table(error))?;
        let (query, estimate) = describe(&sql, &encoder, &record, &catalog).await?;
        self.prepared = Some(PreparedTable {
            query,
            limit: estimate.first_limit(),
        });
        // The stream of an idle database reaches `at` with this message.
        let statement = format!("SELECT pg_logical_emit_message(true, '{}', '')", watermark::PREFIX);
        sql.run("write a logical message", &statement).await?;
        self.sql = Some(sql);
        Ok(Some(Prepared {
            record,
            encoder: Arc::new(encoder),
            at: at.and_then(|text| text.parse().ok()).unwrap_or(Lsn(u64::MAX)),
            rows: estimate.rows,
        }))
    }

    fn of_table(&self, error: Error) -> Failure {
        if !is_of_table(&error) {
            return Failure::Other(error);
        }
        Failure::Unsuitable(Unsuitable {
            cause: service::chain(&error),
            fix: Some(error.fix(&self.context.declaration.connector)),
            schema_rejected: matches!(error, Error::Registry { .. }),
        })
    }

    async fn read(&mut self, number: u64, range: &Range, settle: Duration) -> Result<()> {
        let sql = self.connect().await?;
        let Some(prepared) = self.prepared.as_mut() else {
            return Err(bug("no table is prepared"));
        };
        let mark = |level| Watermark {
            session: self.context.session.clone(),
            number,
            level,
        };
        sql.run("write a watermark", &emit(&mark(Level::Low))).await?;
        failpoint::hit("connector.postgres.low_watermark");
        if !settle.is_zero() {
            tokio::time::sleep(settle).await;
        }
        let rows = read_rows(&sql, prepared, range).await?;
        self.reply(number, Outcome::Chunk(rows)).await;
        // The transactional message makes the server flush the WAL up to the watermark, which is otherwise sent only
        // after the next flush.
        let statement = format!(
            "COMMIT; {}; SELECT pg_logical_emit_message(true, '{}', '')",
            emit(&mark(Level::High)),
            watermark::PREFIX
        );
        sql.run("write a watermark", &statement).await?;
        self.sql = Some(sql);
        Ok(())
    }
}

fn bug(reason: &'static str) -> Error {
    Error::Unpublishable {
        what: String::from("a snapshot of a table"),
        reason: reason.to_owned(),
        fix: String::from("report this as a bug"),
    }
}

fn emit(mark: &Watermark) -> String {
    format!(
        "SELECT pg_logical_emit_message(false, '{}', {})",
        watermark::PREFIX,
        literal(&mark.content())
    )
}

/// Reads the rows of a chunk in a transaction, which remains open.
async fn read_rows(sql: &Sql, prepared: &mut PreparedTable, range: &Range) -> Result<ChunkRows> {
    let began = sql.rows(ATTEMPTED, &prepared.query.begin()).await?;
    let text = |at: usize| began.first().and_then(|row| row.try_get(at).ok().flatten());
    let Some(in_progress) = text(0).and_then(chunk_query::in_progress) else {
        return Err(bug("pg_current_snapshot() has an unexpected form"));
    };
    let at_ms = text(1).and_then(|text| text.parse().ok()).unwrap_or_default();
    let (limit, by_key) = match range {
        Range::After(_) => (prepared.limit, 0),
        Range::Keys(keys) => (keys.len(), keys.len()),
    };
    let mut copy = Box::pin(sql.copy(ATTEMPTED, &prepared.query.rows(range, limit)).await?);
    let (mut lines, mut bytes, mut is_last) = (Vec::new(), 0, true);
    while let Some(line) = sql.next_line(ATTEMPTED, &mut copy).await? {
        bytes += line.len();
        lines.push(line);
        // The rows after these follow in the next chunk. Rows that were requested by key have no order, and are few.
        if by_key == 0 && bytes >= CHUNK_BYTES {
            is_last = false;
            break;
        }
    }
    // The driver reads and discards the rest.
    drop(copy);
    is_last &= by_key == 0 && lines.len() < limit;
    if by_key == 0 {
        prepared.limit = next_limit(lines.len(), bytes, limit);
    }
    if is_last && let Some(statement) = prepared.query.null_key() {
        let mut copy = Box::pin(sql.copy(ATTEMPTED, &statement).await?);
        while let Some(line) = sql.next_line(ATTEMPTED, &mut copy).await? {
            lines.push(line);
        }
    }
    Ok(ChunkRows {
        lines,
        is_last,
        by_key,
        in_progress,
        at_ms,
    })
}

/// The number of rows of the next chunk.
fn next_limit(rows: usize, bytes: usize, limit: usize) -> usize {
    let fitting = rows.saturating_mul(CHUNK_BYTES) / bytes.max(1);
    fitting
        .min(limit.saturating_mul(2))
        .clamp(CHUNK_ROWS_MIN, CHUNK_ROWS_MAX)
}

/// The size of a table.
#[derive(Debug, Clone, Copy, Default)]
struct Estimate {
    rows: Option<u64>,
    bytes: u64,
}

impl Estimate {
    fn first_limit(self) -> usize {
        match self.rows.filter(|rows| *rows > 0) {
            Some(rows) => {
                let row_bytes = usize::try_from(self.bytes / rows).unwrap_or(usize::MAX).max(1);
                (CHUNK_BYTES / row_bytes).clamp(CHUNK_ROWS_MIN, CHUNK_ROWS_FIRST)
            }
            None => CHUNK_ROWS_FIRST,
        }
    }
}

/// Reads what is needed to read a table in chunks.
async fn describe(
    sql: &Sql,
    encoder: &Table,
    record: &TableRecord,
    catalog: &Catalog,
) -> Result<(ChunkQuery, Estimate)> {
    let attempted = "read the catalog";
    let rows = sql.rows(attempted, &chunk_query::built_in_columns(record.oid)).await?;
    let built_in: BTreeSet<&str> = rows.iter().filter_map(|row| row.try_get(0).ok().flatten()).collect();
    let found = catalog.table(&encoder.name);
    let key = encoder.key_names().map(|name| KeyColumn {
        name: name.to_owned(),
        is_built_in: built_in.contains(name),
        nullable: found
            .and_then(|table| table.column(name))
            .is_none_or(|column| column.nullable),
    });
    let dropped = record.columns.iter().filter(|column| column.is_dropped());
    let dropped = dropped.map(|column| column.name.as_str()).collect();
    let query = ChunkQuery::new(encoder, key.collect(), &dropped);
    let rows = sql.rows(attempted, &chunk_query::estimate(record.oid)).await?;
    let number = |at: usize| -> Option<u64> {
        let text = rows.first().and_then(|row| row.try_get(at).ok().flatten())?;
        text.parse().ok()
    };
    let estimate = Estimate {
        rows: number(0).filter(|rows| *rows > 0),
        bytes: number(1).unwrap_or_default(),
    };
    Ok((query, estimate))
}

/// Waits until the transactions that have written to a table have ended. Their changes from before the table was
/// published are not in the stream, and a chunk that is read before they commit does not contain them.
async fn wait_for_writers(sql: &Sql, oid: u32) -> Result<()> {
    let statement = chunk_query::writers(oid);
    let mut before: Option<BTreeSet<String>> = None;
    loop {
        let rows = sql.rows("read the locks", &statement).await?;
        let now = rows.iter().filter_map(|row| row.try_get(0).ok().flatten());
        let now: BTreeSet<String> = now.map(str::to_owned).collect();
        let remaining = match &before {
            Some(before) => before.intersection(&now).cloned().collect(),
            None => now,
        };
        if remaining.is_empty() {
            return Ok(());
        }
        before = Some(remaining);
        tokio::time::sleep(WRITERS_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_size_follows_the_size_of_the_rows() {
        assert_eq!(next_limit(500, 50_000, 500), 1_000);
        assert_eq!(next_limit(10_000, 100_000, 10_000), CHUNK_ROWS_MAX);
        assert_eq!(next_limit(3, CHUNK_BYTES * 2, 500), CHUNK_ROWS_MIN);
        assert_eq!(next_limit(0, 0, 500), CHUNK_ROWS_MIN);
        let estimate = |rows, bytes| Estimate { rows, bytes }.first_limit();
        assert_eq!(estimate(None, 1 << 40), CHUNK_ROWS_FIRST);
        assert_eq!(estimate(Some(10), 10 << 20), CHUNK_ROWS_MIN);
        assert_eq!(estimate(Some(1_000_000), 100_000_000), CHUNK_ROWS_FIRST);
    }
}
