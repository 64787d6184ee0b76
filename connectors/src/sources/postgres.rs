//! The PostgreSQL source: a snapshot of the declared tables, then every transaction from logical replication.
//!
//! The topic contains the database's transactions completely, in commit order, and each record once (invariant C14).
//! The slot is acknowledged only up to positions that are committed. If the slot, timeline, cluster or set of tables is
//! incompatible with the stored position, the state is `NEEDS_RESYNC`, so that there is never a gap. The source writes
//! to no table, and changes only its own slot and publication.

pub mod catalog;
mod changes;
pub mod check;
mod copy;
mod heartbeat;
mod pgoutput;
mod position;
mod replication;
mod rows;
pub mod server;
mod slot;
mod snapshot;
mod text;

pub use check::Declared;
pub use position::Position;

use crate::error::{Error, Result};
use crate::source::{self, Batch, Boundary, Budget, OnMismatch, Progress};
use changes::{Changes, Emitter};
use heartbeat::Heartbeat;
use position::Snapshot as SnapshotState;
use replication::{Frame, Replication};
use rows::Table;
use schemas::events::{ChunkEnd, Event as _};
use schemas::ids::{SchemaId, SourceName};
use schemas::schema::Schema;
use schemas::version::Lsn;
use schemas::{pg_types, wire};
use serde::Deserialize;
use server::Server;
use service::Secret;
use slot::StartMode;
use snapshot::{Origin, Snapshot};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connection of a PostgreSQL source (process configuration).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `postgres://user:password@host:port/database`. The user needs `LOGIN REPLICATION`, `SELECT` on the tables, and
    /// ownership of the tables if the connector is to create the publication.
    pub url: Secret,
    /// The replication slot. Default: `trunkline_<connector>`.
    #[serde(default)]
    pub slot: Option<String>,
    /// The publication. Default: `trunkline_<connector>`.
    #[serde(default)]
    pub publication: Option<String>,
    /// Interval of the heartbeat, a logical message that lets the slot of an idle database advance. Default: 10 s.
    #[serde(default = "heartbeat_seconds")]
    pub heartbeat_seconds: u64,
    /// What to do if the stored position is incompatible with the database: `stop` (default) or `resync`.
    #[serde(default)]
    pub on_mismatch: OnMismatch,
}

fn heartbeat_seconds() -> u64 {
    10
}

/// Default name of the slot and the publication: the connector's name, reduced to the characters and the length that
/// PostgreSQL allows for slot names.
fn object_name(connector: &str) -> String {
    let legal = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c.to_ascii_lowercase()
        } else {
            '_'
        }
    };
    let name: String = connector.chars().map(legal).collect();
    format!("trunkline_{name}").chars().take(63).collect()
}

/// Minimum delay between the commit of a position and its acknowledgement to the slot.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_secs(2);
/// How long to wait for the rest of a source transaction before an incomplete transaction is returned.
const REST_OF_TRANSACTION: Duration = Duration::from_millis(20);

/// A PostgreSQL source.
pub struct Source {
    name: SourceName,
    server: Server,
    slot: String,
    publication: String,
    declared: Vec<Declared>,
    registry: Arc<dyn registry::Registry>,
    topic: Arc<str>,
    heartbeat_every: Duration,
    tables: Arc<[Table]>,
    chunk_end: SchemaId,
    phase: Phase,
    heartbeat: Option<Heartbeat>,
}

/// What the next call of `next` does.
enum Phase {
    Closed,
    /// Store a position that announces the snapshot, so that after a crash the slot is recognized as belonging to this
    /// connector.
    Announce(Position),
    /// Create the slot and import its exported snapshot.
    Create(Position),
    Copy(Box<Snapshot>),
    /// Start streaming after this position, which the previous call returned to be stored.
    Begin(Position),
    Stream(Box<Stream>),
}

struct Stream {
    replication: Replication,
    changes: Changes,
    acknowledgement: DelayedAcknowledgement,
}
/// An LSN that was committed but is not yet acknowledged.
///
/// An acknowledgement is irreversible, because the server then removes the WAL. A single broker without replicas can
/// lose a committed transaction if it stops under load (ADR 5). A position is therefore acknowledged only with a later
/// commit that follows after at least [`ACKNOWLEDGE_AFTER`], so that records that the broker loses within this time can
/// be read again.
#[derive(Debug, Default)]
struct DelayedAcknowledgement {
    pending: Option<(Instant, Lsn)>,
}

impl DelayedAcknowledgement {
    /// Records that `lsn` was committed at `now`; returns the LSN that may be acknowledged, if any.
    fn committed(&mut self, now: Instant, lsn: Lsn) -> Option<Lsn> {
        let Some((at, earlier)) = self.pending else {
            self.pending = Some((now, lsn));
            return None;
        };
        if now.saturating_duration_since(at) < ACKNOWLEDGE_AFTER {
            return None;
        }
        self.pending = Some((now, lsn));
        Some(earlier)
    }
}

impl Source {
    /// A source that publishes the declared tables to a topic.
    ///
    /// # Errors
    /// [`Error::Rejected`] if the URL is not valid or no table is declared.
    pub fn new(
        name: &SourceName,
        topic: &str,
        config: &Config,
        declared: Vec<Declared>,
        registry: Arc<dyn registry::Registry>,
    ) -> Result<Self> {
        let server = Server::parse(config.url.expose()).map_err(|e| Error::Rejected {
            reason: format!("connector {name}: {e}"),
            fix: String::from("correct its url in the process configuration"),
        })?;
        if declared.is_empty() {
            return Err(Error::Rejected {
                reason: format!("connector {name} has no tables"),
                fix: format!(
                    "declare [[table]] with source = \"{name}\" in the topology, or generate it with `trunkline init`"
                ),
            });
        }
        Ok(Source {
            name: name.clone(),
            server,
            slot: config.slot.clone().unwrap_or_else(|| object_name(name.as_str())),
            publication: config.publication.clone().unwrap_or_else(|| object_name(name.as_str())),
            declared,
            registry,
            topic: Arc::from(topic),
            heartbeat_every: Duration::from_secs(config.heartbeat_seconds.max(1)),
            tables: Arc::new([]),
            chunk_end: SchemaId(0),
            phase: Phase::Closed,
            heartbeat: None,
        })
    }

    /// Registers the tables' schemas and compiles their encoders.
    async fn compile(&self, checked: Vec<check::Checked>) -> Result<Arc<[Table]>> {
        let mut tables = Vec::with_capacity(checked.len());
        for table in checked {
            let name = table.declared.name;
            let rejected = |reason: String| Error::Rejected {
                reason,
                fix: format!("correct the columns of [[table]] {name} in the topology"),
            };
            let text = pg_types::table_schema(&self.name, &name, &table.declared.columns);
            let text = text.map_err(|e| rejected(e.to_string()))?;
            let subject = wire::subject(&self.topic, &pg_types::record_name(&self.name, &name));
            let id = source::register(&self.registry, subject, text.clone()).await?;
            let schema = Schema::parse(&text).map_err(|e| rejected(e.to_string()))?;
            tables.push(Table::new(name, Arc::new(schema), id, table.key)?);
        }
        Ok(tables.into())
    }

    /// Starts streaming after a position.
    async fn stream(&self, position: Position) -> Result<Phase> {
        let mut replication = self.replication(&position).await?;
        slot::start(
            &mut replication,
            &self.server,
            &self.slot,
            &self.publication,
            position.complete_lsn,
        )
        .await?;
        let changes = Changes::new(Arc::clone(&self.topic), Arc::clone(&self.tables), position);
        let acknowledgement = DelayedAcknowledgement::default();
        Ok(Phase::Stream(Box::new(Stream {
            replication,
            changes,
            acknowledgement,
        })))
    }

    async fn replication(&self, position: &Position) -> Result<Replication> {
        Replication::connect(&self.server, &self.slot, &self.publication, position.complete_lsn).await
    }

    /// The position that announces a new source epoch.
    fn announced(
        &self,
        stored: Option<&Position>,
        identity: replication::Identity,
        tables: position::Tables,
    ) -> Position {
        let source_epoch = stored.map_or(0, |p| p.source_epoch).saturating_add(1);
        Position {
            source_epoch,
            system: identity.system,
            timeline: identity.timeline,
            database: self.server.database().to_owned(),
            slot: self.slot.clone(),
            lsn: Lsn(0),
            ordinal: None,
            complete_lsn: Lsn(0),
            snapshot: SnapshotState::Begun {
                id: format!("{}-{source_epoch}", self.name),
            },
            tables,
        }
    }

    /// Creates the slot, imports its snapshot and starts copying.
    async fn create(&self, position: &Position) -> Result<Phase> {
        let sql = self.server.connect("trunkline snapshot").await?;
        slot::drop(&sql, &self.slot).await?;
        let mut replication = self.replication(position).await?;
        failpoint::hit("connector.postgres.before_slot");
        let created = replication.create_slot(&self.slot).await?;
        failpoint::hit("connector.postgres.after_slot");
        slot::import_snapshot(&sql, &created.snapshot).await?;
        // The transaction that imported the snapshot keeps the snapshot alive, and the slot does not depend on this
        // connection.
        replication.close();
        let emitter = Emitter::new(Arc::clone(&self.topic));
        tracing::info!(connector = %self.name, slot = %self.slot, point = %created.consistent_point, "snapshot started");
        let origin = Origin {
            sql,
            position: position.clone(),
            point: created.consistent_point,
        };
        let snapshot = Snapshot::new(origin, Arc::clone(&self.tables), emitter, self.chunk_end).await?;
        Ok(Phase::Copy(Box::new(snapshot)))
    }
}

impl source::Source for Source {
    type Position = Position;

    async fn open(&mut self, stored: Option<Position>) -> Result<()> {
        let sql = self.server.connect("trunkline").await?;
        let identity = {
            let start = Lsn(0);
            let mut probe = Replication::connect(&self.server, &self.slot, &self.publication, start).await?;
            let identity = probe.identify().await;
            probe.close();
            identity?
        };
        let checked = check::check(&sql, &self.server, &self.declared).await?;
        check::publish(&sql, &self.server, &self.publication, &checked).await?;
        let tables: position::Tables = Arc::new(check::snapshot_columns(&checked));
        let expected = slot::Expected {
            slot: &self.slot,
            database: self.server.database(),
            identity: &identity,
            tables: &tables,
        };
        let mode = slot::start_mode(&sql, stored.as_ref(), &expected).await?;
        self.tables = self.compile(checked).await?;
        let subject = ChunkEnd::subject(&self.topic);
        self.chunk_end = source::register(&self.registry, subject, ChunkEnd::AVSC.to_owned()).await?;
        self.phase = match (mode, stored) {
            (StartMode::Stream, Some(position)) => self.stream(position).await?,
            (_, stored) => Phase::Announce(self.announced(stored.as_ref(), identity, tables)),
        };
        self.heartbeat = Some(Heartbeat::new(sql, &self.server, &self.slot, self.heartbeat_every));
        Ok(())
    }

    async fn next(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        if let Some(heartbeat) = &mut self.heartbeat {
            let streaming = matches!(self.phase, Phase::Stream(_));
            heartbeat.beat(streaming).await;
        }
        match &mut self.phase {
            Phase::Announce(position) => {
                batch.position = Some(position.clone());
                batch.store_now = true;
                self.phase = Phase::Create(position.clone());
                Ok(Boundary::Drained)
            }
            Phase::Create(position) => {
                let position = position.clone();
                self.phase = self.create(&position).await?;
                Ok(Boundary::Idle)
            }
            Phase::Copy(snapshot) => {
                let boundary = snapshot.next(batch, budget).await?;
                if let Some(position) = snapshot.ended() {
                    batch.position = Some(position.clone());
                    batch.store_now = true;
                    tracing::info!(connector = %self.name, lsn = %position.complete_lsn, "snapshot finished");
                    self.phase = Phase::Begin(position);
                }
                Ok(boundary)
            }
            Phase::Begin(position) => {
                let position = position.clone();
                self.phase = self.stream(position).await?;
                Ok(Boundary::Idle)
            }
            Phase::Stream(stream) => stream.next(batch, budget).await,
            Phase::Closed => Err(Error::Unpublishable {
                what: format!("connector {}", self.name),
                reason: String::from("the source is not open"),
                fix: String::from("report this as a bug"),
            }),
        }
    }

    fn committed(&mut self, position: &Position) {
        if let (Phase::Stream(stream), SnapshotState::Done { .. }) = (&mut self.phase, &position.snapshot) {
            stream.committed(position.complete_lsn);
        }
    }

    fn close(&mut self) {
        if let Phase::Stream(stream) = std::mem::replace(&mut self.phase, Phase::Closed) {
            stream.replication.close();
        }
        self.heartbeat = None;
    }

    fn restart_position(&self, stored: Option<&Position>) -> Option<Position> {
        let mut position = stored.cloned().unwrap_or_else(|| {
            let unknown = replication::Identity {
                system: String::new(),
                timeline: 0,
            };
            let mut position = self.announced(None, unknown, position::Tables::default());
            position.source_epoch = 0;
            position
        });
        position.snapshot = SnapshotState::Wanted;
        Some(position)
    }

    fn progress(&self) -> Progress {
        let snapshot = match &self.phase {
            Phase::Copy(snapshot) => Some(snapshot.describe()),
            Phase::Announce(_) | Phase::Create(_) => Some(String::from(
                "creating the slot, for which PostgreSQL waits until the open transactions have ended",
            )),
            Phase::Begin(_) | Phase::Stream(_) | Phase::Closed => None,
        };
        Progress {
            snapshot,
            lag_bytes: self.heartbeat.as_ref().and_then(Heartbeat::lag_bytes),
        }
    }
}

impl Stream {
    /// Acknowledges the previously committed LSN if it is old enough.
    fn committed(&mut self, lsn: Lsn) {
        if let Some(lsn) = self.acknowledgement.committed(Instant::now(), lsn) {
            self.replication.acknowledge(lsn);
        }
    }

    /// Appends what is ready. Within a source transaction, waits briefly for the rest of it.
    async fn next(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let result = self.fill(batch, budget).await;
        // Set after an error too: the loop publishes the records before the error together with their position.
        batch.position = Some(self.changes.position().clone());
        result
    }

    async fn fill(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let until = Instant::now() + budget.wait;
        let mut received = false;
        loop {
            let full = batch.records.len() >= budget.records_max || batch.records.byte_len() >= budget.bytes_max;
            if full {
                return Ok(Boundary::Full);
            }
            let wait = match (received, self.changes.is_inside()) {
                (false, _) => until.saturating_duration_since(Instant::now()),
                (true, true) => REST_OF_TRANSACTION,
                (true, false) => Duration::ZERO,
            };
            let mut frame = self.replication.next(Duration::ZERO).await?;
            if frame.is_none() && !wait.is_zero() {
                frame = self.replication.next(wait).await?;
            }
            match frame {
                Some(frame) => {
                    self.apply(frame, batch)?;
                    received = true;
                }
                None if received => return Ok(Boundary::Drained),
                None => return Ok(Boundary::Idle),
            }
        }
    }

    fn apply(&mut self, frame: Frame, batch: &mut Batch<Position>) -> Result<()> {
        match frame {
            Frame::Change(bytes) => {
                let message = pgoutput::decode(&bytes).map_err(changes::decode_error)?;
                self.changes.change(&message, &mut batch.records)
            }
            Frame::Begin {
                commit_lsn,
                commit_time_micros,
            } => {
                self.changes.begin(commit_lsn, commit_time_micros);
                Ok(())
            }
            Frame::Commit { end_lsn } => {
                self.changes.commit(end_lsn, &mut batch.records);
                Ok(())
            }
            Frame::KeepAlive { end: lsn } | Frame::Heartbeat { lsn } => {
                self.changes.advance(lsn);
                Ok(())
            }
            Frame::Ignored => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_is_acknowledged_by_a_commit_two_seconds_later() {
        let (mut acknowledgement, start) = (DelayedAcknowledgement::default(), Instant::now());
        let mut at = |ms, lsn| acknowledgement.committed(start + Duration::from_millis(ms), Lsn(lsn));
        assert_eq!([at(0, 1), at(900, 2), at(1_999, 3)], [None; 3]);
        assert_eq!(
            [at(2_000, 4), at(3_000, 5), at(4_100, 6)],
            [Some(Lsn(1)), None, Some(Lsn(4))]
        );
    }

    #[test]
    fn slot_names_are_valid_in_postgresql() {
        assert_eq!(object_name("Shop-EU"), "trunkline_shop_eu");
        assert_eq!(object_name(&"x".repeat(63)).len(), 63);
    }
}
