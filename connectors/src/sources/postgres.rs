//! PostgreSQL by logical replication: a snapshot of the declared tables, then every transaction as it commits.
//!
//! Guarantees: what the topic holds is the database's line of transactions, whole and in order, each record once; only
//! what is stored with its position is acknowledged to the slot; a slot, timeline, cluster or set of tables that does
//! not fit the stored position is `NEEDS_RESYNC`, never a gap.
//! Never: a write to a table; a slot or publication of another connector.

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
use slot::Verdict;
use snapshot::Snapshot;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How to reach a PostgreSQL source: process configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `postgres://user:password@host:port/database`. The user needs `LOGIN REPLICATION`, `SELECT` on the tables, and
    /// their ownership if the publication is to be made by the connector.
    pub url: Secret,
    /// The replication slot. Default: `trunkline_<connector>`.
    #[serde(default)]
    pub slot: Option<String>,
    /// The publication. Default: `trunkline_<connector>`.
    #[serde(default)]
    pub publication: Option<String>,
    /// A logical message is written this often, so that the slot of an idle database moves. Default: 10 s.
    #[serde(default = "heartbeat_seconds")]
    pub heartbeat_seconds: u64,
    /// What to do when the stored position does not fit the database: `stop` (default) or `resync`.
    #[serde(default)]
    pub on_mismatch: OnMismatch,
}

fn heartbeat_seconds() -> u64 {
    10
}

/// PostgreSQL's rule for a slot's name, on a connector's name.
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

/// How long a stored place waits for its acknowledgement, at least.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_secs(2);
/// How long to wait within a source transaction for the rest of it before a batch is given out.
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

/// What the source does next.
enum Phase {
    Closed,
    /// Store a position that says a snapshot begins, so that its slot is known as our own after a crash.
    Announce(Position),
    /// Create the slot and pin its snapshot.
    Create(Position),
    Copy(Box<Snapshot>),
    /// Start the stream after a position that is being stored.
    Begin(Position),
    Stream(Box<Stream>),
}

struct Stream {
    replication: Replication,
    changes: Changes,
    stored: Stored,
}

/// What was stored and is not acknowledged yet.
///
/// An acknowledgement cannot be taken back, and a lone broker may take a transaction back (docs/adr/0005-restart-of-a-single-broker.md): one that
/// it was in the middle of when it stopped. So a place is acknowledged by a later commit, two seconds on.
#[derive(Debug, Default)]
struct Stored {
    since: Option<(Instant, Lsn)>,
}

impl Stored {
    /// A place is stored now; says which one can be acknowledged.
    fn now(&mut self, now: Instant, lsn: Lsn) -> Option<Lsn> {
        let Some((at, older)) = self.since else {
            self.since = Some((now, lsn));
            return None;
        };
        if now.saturating_duration_since(at) < ACKNOWLEDGE_AFTER {
            return None;
        }
        self.since = Some((now, lsn));
        Some(older)
    }
}

impl Source {
    /// A source that publishes the declared tables to `change.<name>`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the URL cannot be used, or no table is declared.
    pub fn new(
        name: &SourceName,
        config: &Config,
        declared: Vec<Declared>,
        registry: Arc<dyn registry::Registry>,
    ) -> Result<Self> {
        let server = Server::parse(config.url.expose()).map_err(|e| Error::Refused {
            reason: format!("connector {name}: {e}"),
            next: String::from("mend its url in the process configuration"),
        })?;
        if declared.is_empty() {
            return Err(Error::Refused {
                reason: format!("connector {name} has no table"),
                next: format!("declare [[table]] source = \"{name}\" in the topology, or see `trunkline init`"),
            });
        }
        Ok(Source {
            name: name.clone(),
            server,
            slot: config.slot.clone().unwrap_or_else(|| object_name(name.as_str())),
            publication: config.publication.clone().unwrap_or_else(|| object_name(name.as_str())),
            declared,
            registry,
            topic: Arc::from(format!("change.{name}")),
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
            let refuse = |reason: String| Error::Refused {
                reason,
                next: format!("mend the columns of [[table]] {name} in the topology"),
            };
            let text = pg_types::table_schema(&self.name, &name, &table.declared.columns);
            let text = text.map_err(|e| refuse(e.to_string()))?;
            let subject = wire::subject(&self.topic, &pg_types::record_name(&self.name, &name));
            let id = source::register(&self.registry, subject, text.clone()).await?;
            let schema = Schema::parse(&text).map_err(|e| refuse(e.to_string()))?;
            tables.push(Table::new(name, Arc::new(schema), id, table.key)?);
        }
        Ok(tables.into())
    }

    /// Starts to stream after a position.
    async fn stream(&self, position: Position) -> Result<Phase> {
        let mut replication = self.replication(&position).await?;
        slot::start(
            &mut replication,
            &self.server,
            &self.slot,
            &self.publication,
            position.whole,
        )
        .await?;
        let changes = Changes::new(Arc::clone(&self.topic), Arc::clone(&self.tables), position);
        let stored = Stored::default();
        Ok(Phase::Stream(Box::new(Stream {
            replication,
            changes,
            stored,
        })))
    }

    async fn replication(&self, position: &Position) -> Result<Replication> {
        Replication::connect(&self.server, &self.slot, &self.publication, position.whole).await
    }

    /// The position that announces a new incarnation.
    fn announced(
        &self,
        stored: Option<&Position>,
        identity: replication::Identity,
        tables: position::Tables,
    ) -> Position {
        let incarnation = stored.map_or(0, |p| p.incarnation).saturating_add(1);
        Position {
            incarnation,
            system: identity.system,
            timeline: identity.timeline,
            database: self.server.database().to_owned(),
            slot: self.slot.clone(),
            lsn: Lsn(0),
            ordinal: None,
            whole: Lsn(0),
            snapshot: SnapshotState::Begun {
                id: format!("{}-{incarnation}", self.name),
            },
            tables,
        }
    }

    /// Creates the slot, pins its snapshot and begins to copy.
    async fn create(&self, position: &Position) -> Result<Phase> {
        let sql = self.server.connect("trunkline snapshot").await?;
        slot::drop(&sql, &self.slot).await?;
        let mut replication = self.replication(position).await?;
        failpoint::hit("connector.postgres.before_slot");
        let created = replication.create_slot(&self.slot).await?;
        failpoint::hit("connector.postgres.after_slot");
        slot::pin(&sql, &created.snapshot).await?;
        // The snapshot lives on in the transaction that has taken it; the slot needs nobody.
        replication.close();
        let emitter = Emitter::new(Arc::clone(&self.topic));
        tracing::info!(connector = %self.name, slot = %self.slot, point = %created.consistent_point, "snapshot begins");
        let (tables, point) = (Arc::clone(&self.tables), created.consistent_point);
        let snapshot = Snapshot::new(sql, tables, emitter, self.chunk_end, position.clone(), point).await?;
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
        let tables: position::Tables = Arc::new(check::read_by_snapshot(&checked));
        let expected = slot::Expected {
            slot: &self.slot,
            database: self.server.database(),
            identity: &identity,
            tables: &tables,
        };
        let verdict = slot::judge(&sql, stored.as_ref(), &expected).await?;
        self.tables = self.compile(checked).await?;
        let subject = ChunkEnd::subject(&self.topic);
        self.chunk_end = source::register(&self.registry, subject, ChunkEnd::AVSC.to_owned()).await?;
        self.phase = match (verdict, stored) {
            (Verdict::GoOn, Some(position)) => self.stream(position).await?,
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
                    tracing::info!(connector = %self.name, at = %position.whole, "snapshot ended");
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
                reason: String::from("it is not open"),
                next: String::from("report this as a defect"),
            }),
        }
    }

    fn committed(&mut self, position: &Position) {
        if let (Phase::Stream(stream), SnapshotState::Done { .. }) = (&mut self.phase, &position.snapshot) {
            stream.stored(position.whole);
        }
    }

    fn close(&mut self) {
        if let Phase::Stream(stream) = std::mem::replace(&mut self.phase, Phase::Closed) {
            stream.replication.close();
        }
        self.heartbeat = None;
    }

    fn restarted(&self, stored: Option<&Position>) -> Option<Position> {
        let mut position = stored.cloned().unwrap_or_else(|| {
            let nobody = replication::Identity {
                system: String::new(),
                timeline: 0,
            };
            let mut position = self.announced(None, nobody, position::Tables::default());
            position.incarnation = 0;
            position
        });
        position.snapshot = SnapshotState::Wanted;
        Some(position)
    }

    fn progress(&self) -> Progress {
        let snapshot = match &self.phase {
            Phase::Copy(snapshot) => Some(snapshot.describe()),
            Phase::Announce(_) | Phase::Create(_) => Some(String::from(
                "creating the slot; PostgreSQL waits for open transactions to end",
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
    /// A place is stored; the slot is told of it in time.
    fn stored(&mut self, lsn: Lsn) {
        if let Some(lsn) = self.stored.now(Instant::now(), lsn) {
            self.replication.acknowledge(lsn);
        }
    }

    /// Gathers what is ready; within a source transaction it waits a little for the rest.
    async fn next(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let gathered = self.gather(batch, budget).await;
        // The position is right after an error, too: what came before it is published.
        batch.position = Some(self.changes.position().clone());
        gathered
    }

    async fn gather(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let until = Instant::now() + budget.wait;
        let mut came = false;
        loop {
            let full = batch.records.len() >= budget.records_max || batch.records.byte_len() >= budget.bytes_max;
            if full {
                return Ok(Boundary::Full);
            }
            let wait = match (came, self.changes.is_inside()) {
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
                    self.take(frame, batch)?;
                    came = true;
                }
                None if came => return Ok(Boundary::Drained),
                None => return Ok(Boundary::Idle),
            }
        }
    }

    fn take(&mut self, frame: Frame, batch: &mut Batch<Position>) -> Result<()> {
        match frame {
            Frame::Change(bytes) => {
                let message = pgoutput::decode(&bytes).map_err(changes::malformed)?;
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
            Frame::KeepAlive { end: lsn } | Frame::Mark { lsn } => {
                self.changes.mark(lsn);
                Ok(())
            }
            Frame::Nothing => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_acknowledged_by_a_commit_two_seconds_later() {
        let (mut stored, start) = (Stored::default(), Instant::now());
        let mut at = |ms, lsn| stored.now(start + Duration::from_millis(ms), Lsn(lsn));
        assert_eq!([at(0, 1), at(900, 2), at(1_999, 3)], [None; 3]);
        assert_eq!(
            [at(2_000, 4), at(3_000, 5), at(4_100, 6)],
            [Some(Lsn(1)), None, Some(Lsn(4))]
        );
    }

    #[test]
    fn a_slot_gets_a_name_that_postgresql_takes() {
        assert_eq!(object_name("Shop-EU"), "trunkline_shop_eu");
        assert_eq!(object_name(&"x".repeat(63)).len(), 63);
    }
}
