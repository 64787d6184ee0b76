//! Snapshots of single tables while the stream continues: which table is read, and which step is next.
//!
//! One table is read at a time, in chunks ([ADR 15](../../../../docs/adr/0015-snapshots-in-chunks.md)). The
//! [reader](super::chunk_reader) reads a chunk between two watermarks; the chunk is published when the stream reaches
//! the high watermark. Errors of the reader are retried and never fail the stream.

use super::changes::{Changes, Outcome};
use super::chunk_query::Range;
use super::chunk_reader::{self, Command, Prepared, Reader, Unsuitable, Work};
use super::drift;
use super::static_record::{NeedsSnapshot, StaticRecord, TableRecord, TableSnapshot};
use super::watermark::{Level, Watermark};
use super::{changes, declaration::Declaration};
use crate::consumers::{Behind, Consumers};
use crate::error::{Error, Result};
use crate::status::TableProgress;
use event_log::OutBatch;
use schemas::ids::TableName;
use schemas::version::Lsn;
use service::backoff::Backoff;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Delays after a failed attempt.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Limits of the time between a low watermark and the rows of its chunk. With synchronous replication, a transaction is
/// not visible until the standby has answered, so under load a chunk that is read immediately is always too early. Each
/// such chunk doubles the time, so a transaction that becomes visible within the limit delays a snapshot only briefly.
const SETTLE_FIRST: Duration = Duration::from_millis(5);
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// By how much the time decreases at least with each chunk that is published.
const SETTLE_STEP: Duration = Duration::from_micros(100);
/// How long to wait before asking again whether the consumers are behind.
const CONSUMERS_WAIT: Duration = Duration::from_millis(50);
/// Number of consecutive rejected attempts after which the snapshot of the table fails.
const REJECTED_MAX: u32 = 5;
/// Maximum number of rows that are read by key at once.
const KEYS_MAX: usize = 100;
/// Maximum number of snapshots of a table that no operator requested, within a period. Without it, frequent changes of a
/// schema would cause one snapshot after another.
const AUTOMATIC_MAX: usize = 3;
const AUTOMATIC_WITHIN: Duration = Duration::from_mins(10);

/// What is being done for the table whose snapshot is next or running.
#[derive(Debug)]
enum Step {
    Idle,
    /// The reader sorts the tables.
    Sorting,
    /// The reader prepares the table.
    Preparing {
        table: String,
    },
    /// The snapshot begins when the stream has reached the LSN of the preparation.
    Prepared {
        table: String,
        prepared: Box<Prepared>,
    },
    /// The next chunk can be read.
    Ready {
        table: String,
    },
    /// The reader reads a chunk, or the stream has not reached its high watermark yet.
    Reading {
        table: String,
        rows: Option<changes::ChunkRows>,
    },
}

impl Step {
    fn table(&self) -> Option<&str> {
        match self {
            Step::Idle | Step::Sorting => None,
            Step::Preparing { table }
            | Step::Prepared { table, .. }
            | Step::Ready { table }
            | Step::Reading { table, .. } => Some(table),
        }
    }
}

/// The snapshots of one open stream.
pub(super) struct Snapshots {
    declaration: Arc<Declaration>,
    reader: Reader,
    /// Session of the watermarks of `reader`.
    session: String,
    step: Step,
    /// Number of the last command.
    number: u64,
    /// Whether the last chunk contained rows that were requested by key.
    read_by_key: bool,
    /// How long the reader waits between the low watermark of a chunk and its rows.
    settle: Duration,
    retry_at: Option<Instant>,
    backoff: Backoff,
    rejected: u32,
    /// Estimated number of rows of the table that is read.
    estimate: Option<u64>,
    /// When snapshots of a table were taken without a request.
    automatic: BTreeMap<TableName, Vec<Instant>>,
    /// The OIDs of the tables, smallest table first, as of the last time that a table was added; empty if unknown.
    sorted: Vec<u32>,
    consumers: Consumers,
    /// The consumer that the next chunk waits for.
    waits_for: Option<Behind>,
}

impl Snapshots {
    pub(super) fn new(reader: chunk_reader::Context) -> Self {
        Snapshots {
            declaration: Arc::clone(&reader.declaration),
            session: reader.session.clone(),
            reader: Reader::start(reader),
            step: Step::Idle,
            number: 0,
            read_by_key: false,
            settle: Duration::ZERO,
            retry_at: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MAX),
            rejected: 0,
            estimate: None,
            automatic: BTreeMap::new(),
            sorted: Vec::new(),
            consumers: Consumers::default(),
            waits_for: None,
        }
    }

    /// Chunks are read only while these consumers are not far behind.
    pub(super) fn with_consumers(self, consumers: Consumers) -> Self {
        Snapshots { consumers, ..self }
    }

    /// Whether something is awaited that no frame of the stream announces.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.step, Step::Sorting | Step::Preparing { .. } | Step::Ready { .. })
    }

    /// Requests snapshots of tables that need one and may be read without a request.
    pub(super) fn request_automatic(&mut self, changes: &mut Changes, tables: Vec<&TableName>) {
        for table in tables {
            let taken = self.automatic.entry(table.clone()).or_default();
            taken.retain(|at| at.elapsed() < AUTOMATIC_WITHIN);
            if taken.len() < AUTOMATIC_MAX && changes.want_snapshot(table.as_str()) {
                tracing::info!(connector = %self.declaration.connector, %table, "snapshot of the table requested automatically");
                taken.push(Instant::now());
            }
        }
    }

    /// Performs the steps that are possible. Returns whether the position changed so that it must be stored.
    pub(super) fn advance(&mut self, changes: &mut Changes) -> bool {
        self.receive(changes);
        self.abandon_if_stopped(changes);
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        self.retry_at = None;
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Idle => self.choose(changes),
            Step::Prepared { table, prepared } if is_reached(changes, prepared.at) => {
                tracing::info!(connector = %self.declaration.connector, table, "snapshot of the table begins");
                changes.begin_snapshot(prepared.encoder, prepared.record);
                self.read_next(table, changes);
                return true;
            }
            Step::Ready { table } => self.read_next(table, changes),
            other => self.step = other,
        }
        false
    }

    /// Chooses the next table and lets the reader prepare it: the smallest one, because the changes of a table are published
    /// only from the beginning of its snapshot on.
    fn choose(&mut self, changes: &Changes) {
        let source = &changes.position().source;
        let running = source.running_snapshot().map(|(table, ..)| table);
        let is_next = |table: &&str| {
            let Some(record) = source.table(table) else {
                return false;
            };
            is_known(record) && record.snapshot == Some(TableSnapshot::Wanted)
        };
        let declared = self.declaration.tables.iter().map(|table| table.name.as_str());
        let mut wanted: Vec<&str> = declared.filter(is_next).collect();
        let oid = |table: &str| source.table(table).map_or(0, |record| record.oid);
        let is_sorted = |table: &&str| self.sorted.contains(&oid(table));
        if running.is_none() && wanted.len() > 1 && !wanted.iter().all(is_sorted) {
            let oids = wanted.iter().map(|table| oid(table)).collect();
            if self.send(Work::Sort { oids }) {
                self.step = Step::Sorting;
            }
            return;
        }
        wanted.sort_by_key(|table| self.sorted.iter().position(|sorted| *sorted == oid(table)));
        let Some(table) = running.or_else(|| wanted.first().copied()) else {
            return;
        };
        let record = source.table(table);
        let published = record.filter(|record| record.needs_snapshot.is_none());
        let table = table.to_owned();
        let work = Work::Prepare {
            table: table.clone(),
            published: published.map(|record| record.oid),
            known: record.map(|record| record.columns.clone()).unwrap_or_default(),
        };
        if self.send(work) {
            self.step = Step::Preparing { table };
        }
    }

    fn read_next(&mut self, table: String, changes: &mut Changes) {
        self.waits_for = self.consumers.behind();
        if self.waits_for.is_some() {
            self.step = Step::Ready { table };
            self.retry_at = Some(Instant::now() + CONSUMERS_WAIT);
            return;
        }
        // Rows that wait to be read by key alternate with the others, so that neither waits for long.
        let keys = if self.read_by_key {
            Vec::new()
        } else {
            changes.moved_keys(KEYS_MAX)
        };
        self.read_by_key = !keys.is_empty();
        let range = if keys.is_empty() {
            let chunks = changes.position().chunks.as_ref();
            Range::After(chunks.and_then(|chunks| chunks.after.clone()))
        } else {
            Range::Keys(keys)
        };
        self.step = if self.send(Work::Read {
            range,
            settle: self.settle,
        }) {
            Step::Reading { table, rows: None }
        } else {
            Step::Ready { table }
        };
    }

    fn send(&mut self, work: Work) -> bool {
        let number = self.number + 1;
        let sent = self.reader.send(Command { number, work });
        if sent {
            self.number = number;
        } else {
            self.retry_at = Some(Instant::now() + RETRY_FIRST);
        }
        sent
    }

    /// Processes the replies of the reader.
    fn receive(&mut self, changes: &mut Changes) {
        while let Some(reply) = self.reader.poll() {
            if reply.number != self.number {
                continue;
            }
            match (reply.result, std::mem::replace(&mut self.step, Step::Idle)) {
                (chunk_reader::Outcome::Prepared(prepared), Step::Preparing { table }) => {
                    self.estimate = prepared.rows;
                    let record = changes.position().source.table(&table);
                    let resumes =
                        record.is_some_and(|record| matches!(record.snapshot, Some(TableSnapshot::Running { .. })));
                    self.step = if resumes {
                        Step::Ready { table }
                    } else {
                        Step::Prepared { table, prepared }
                    };
                }
                (chunk_reader::Outcome::Sorted(oids), Step::Sorting) => {
                    self.sorted_as(&oids, changes);
                }
                (chunk_reader::Outcome::Chunk(rows), Step::Reading { table, .. }) => {
                    self.step = Step::Reading {
                        table,
                        rows: Some(rows),
                    };
                }
                (chunk_reader::Outcome::Unsuitable(unsuitable), Step::Preparing { table }) => {
                    self.fail(&table, unsuitable, changes);
                }
                (chunk_reader::Outcome::Failed(error), step) => self.failed(error, step, changes),
                (_, step) => self.step = step,
            }
        }
    }

    /// Notes the order of the tables. Those of which the database knows nothing come last, in the order of their
    /// declarations.
    fn sorted_as(&mut self, oids: &[u32], changes: &Changes) {
        let source = &changes.position().source;
        let declared = self.declaration.tables.iter();
        let all = declared.filter_map(|table| Some(source.table(table.name.as_str())?.oid));
        let unknown = all.filter(|oid| !oids.contains(oid));
        self.sorted = oids.iter().copied().chain(unknown).collect();
    }

    /// Retries after a failed command. If the server rejects it again and again, the snapshot fails.
    fn failed(&mut self, error: Error, step: Step, changes: &mut Changes) {
        if matches!(step, Step::Sorting) {
            let connector = &self.declaration.connector;
            tracing::warn!(%connector, error = service::chain(&error), "tables not sorted by size, the declared order is used");
            return self.sorted_as(&[], changes);
        }
        let Some(table) = step.table().map(str::to_owned) else {
            return;
        };
        tracing::warn!(connector = %self.declaration.connector, table, error = service::chain(&error),
            "snapshot of the table interrupted");
        self.rejected = match &error {
            Error::Unavailable { .. } => 0,
            _ => self.rejected + 1,
        };
        if self.rejected >= REJECTED_MAX {
            self.rejected = 0;
            let unsuitable = Unsuitable {
                cause: service::chain(&error),
                fix: Some(error.fix(&self.declaration.connector)),
                schema_rejected: false,
            };
            return self.fail(&table, unsuitable, changes);
        }
        self.again(match step {
            Step::Reading { table, .. } => Step::Ready { table },
            _ => Step::Idle,
        });
    }

    fn again(&mut self, step: Step) {
        self.step = step;
        self.read_by_key = false;
        self.retry_at = Some(Instant::now() + self.backoff.next_delay());
    }

    fn fail(&mut self, table: &str, unsuitable: Unsuitable, changes: &mut Changes) {
        let Unsuitable {
            cause,
            fix,
            schema_rejected,
        } = unsuitable;
        let state = NeedsSnapshot {
            schema_rejected,
            ..drift::needs_snapshot(&self.declaration.connector, table, cause, fix.as_deref())
        };
        changes.snapshot_failed(table, state);
        self.step = Step::Idle;
    }

    /// Abandons the current step if the table was stopped meanwhile. A reply that is still to come is ignored.
    fn abandon_if_stopped(&mut self, changes: &Changes) {
        let Some(table) = self.step.table() else { return };
        let record = changes.position().source.table(table);
        let is_valid = record.is_some_and(|record| match self.step {
            Step::Ready { .. } | Step::Reading { .. } => {
                matches!(record.snapshot, Some(TableSnapshot::Running { .. }))
            }
            _ => record.snapshot.is_some() && is_known(record),
        });
        if !is_valid {
            self.step = Step::Idle;
            self.number += 1;
            self.read_by_key = false;
        }
    }

    /// Called when the stream has reached a watermark. Returns whether a chunk was published.
    pub(super) fn watermark(
        &mut self,
        mark: &Watermark,
        at: Lsn,
        changes: &mut Changes,
        out: &mut OutBatch,
    ) -> Result<bool> {
        self.receive(changes);
        self.abandon_if_stopped(changes);
        if mark.session != self.session || mark.number != self.number {
            return Ok(false);
        }
        if mark.level == Level::Low {
            changes.open_window();
            return Ok(false);
        }
        let Step::Reading { table, rows } = std::mem::replace(&mut self.step, Step::Idle) else {
            return Ok(false);
        };
        let outcome = match rows {
            Some(rows) => changes.publish_chunk(at, &rows, out)?,
            None => Outcome::Again("the rows of the chunk are missing"),
        };
        match outcome {
            Outcome::Published => {
                self.report(&table, changes);
                self.succeeded();
                self.read_next(table, changes);
            }
            Outcome::Ended => {
                tracing::info!(connector = %self.declaration.connector, table, "snapshot of the table finished");
                self.succeeded();
                self.estimate = None;
                self.read_by_key = false;
            }
            Outcome::TooEarly => {
                self.settle = (2 * self.settle).clamp(SETTLE_FIRST, SETTLE_MAX);
                tracing::debug!(connector = %self.declaration.connector, table, settle = ?self.settle,
                    "chunk is read again, because a transaction was not visible yet");
                metrics::counter!("trunkline_connector_chunks_read_again_total",
                    "connector" => self.declaration.connector.to_string())
                .increment(1);
                self.read_by_key = false;
                self.step = Step::Ready { table };
                return Ok(false);
            }
            Outcome::Again(reason) => {
                tracing::info!(connector = %self.declaration.connector, table, reason, "chunk is read again");
                self.again(Step::Ready { table });
                return Ok(false);
            }
        }
        failpoint::hit(if outcome == Outcome::Ended {
            "connector.postgres.snapshot_end"
        } else {
            "connector.postgres.chunk"
        });
        Ok(true)
    }

    fn succeeded(&mut self) {
        // Slowly, so that few chunks are read twice while commits take long.
        self.settle = self.settle.saturating_sub((self.settle / 16).max(SETTLE_STEP));
        self.backoff.reset();
        self.rejected = 0;
    }

    #[expect(
        clippy::as_conversions,
        clippy::cast_precision_loss,
        reason = "gauges are floats, which are exact up to 2^53 rows"
    )]
    fn report(&self, table: &str, changes: &Changes) {
        let connector = self.declaration.connector.to_string();
        let labels = [("connector", connector), ("table", table.to_owned())];
        if let Some(chunks) = &changes.position().chunks {
            metrics::gauge!("trunkline_connector_snapshot_rows", &labels).set(chunks.rows as f64);
        }
        if let Some(rows) = self.estimate {
            metrics::gauge!("trunkline_connector_snapshot_rows_estimated", &labels).set(rows as f64);
        }
    }

    /// Progress of the running snapshot, with its table.
    pub(super) fn progress(&self, changes: &Changes) -> Option<(String, TableProgress)> {
        let chunks = changes.position().chunks.as_ref()?;
        let progress = TableProgress {
            rows: chunks.rows,
            rows_estimated: self.estimate,
        };
        Some((chunks.table.clone(), progress))
    }

    /// Description of the progress; `None` if no snapshot is requested.
    pub(super) fn describe(&self, changes: &Changes) -> Option<String> {
        let Some(table) = self.step.table() else {
            return describe_waiting(&changes.position().source);
        };
        let waits_for = self.waits_for.as_ref().map_or(String::new(), |Behind { group, lag }| {
            format!(", waiting for the consumer group {group}, which is {lag} records behind")
        });
        Some(match (changes.position().chunks.as_ref(), self.estimate) {
            (None, _) => format!("table {table}: waiting for the open transactions that write to it"),
            (Some(chunks), Some(estimate)) => {
                format!("table {table}: {} of about {estimate} rows{waits_for}", chunks.rows)
            }
            (Some(chunks), None) => format!("table {table}: {} rows{waits_for}", chunks.rows),
        })
    }
}

/// Description of the snapshots that wait or run; `None` if there is none.
pub(super) fn describe_waiting(source: &StaticRecord) -> Option<String> {
    let tables = source.content().tables.values();
    match tables.filter(|table| table.snapshot.is_some()).count() {
        0 => None,
        count => Some(format!("{count} tables to read")),
    }
}

/// Whether readers know that the table needs a snapshot, if it does. They must know it before the snapshot begins,
/// because the end of the snapshot removes the missing entry.
fn is_known(record: &TableRecord) -> bool {
    record.needs_snapshot.as_ref().is_none_or(|state| state.published)
}

/// Whether the stream has reached an LSN, between two source transactions.
fn is_reached(changes: &Changes, at: Lsn) -> bool {
    !changes.is_inside() && changes.position().complete_lsn >= at
}
