//! The PostgreSQL source: a snapshot of the declared tables, then every transaction from logical replication.
//!
//! The topic contains the database's transactions in commit order, complete, and each record once (C14). The slot is
//! acknowledged only up to positions that are committed. If the slot, timeline, cluster or publication does not match
//! the stored position, the connector reports `NEEDS_RESYNC` instead of publishing a gap. If a table no longer matches,
//! it becomes `NEEDS_SNAPSHOT`: its changes are skipped, its views are marked stale, and the other tables continue. The
//! source writes to no table and changes only its own slot and publication.

mod arrays;
pub mod catalog;
mod changes;
pub mod check;
mod copy;
mod declaration;
mod drift;
mod emitter;
mod monitor;
mod opening;
mod pgoutput;
mod position;
mod relations;
mod replication;
mod rows;
pub mod server;
mod slot;
mod snapshot;
mod static_record;
mod stream;
mod text;
mod tuples;

pub use check::Declared;
pub use position::Position;

use crate::error::{Error, Result};
use crate::source::{self, Batch, Boundary, Budget, OnMismatch, Progress};
use crate::status::{TableReport, TableState};
use changes::{Changes, Setup};
use declaration::Declaration;
use emitter::Emitter;
use monitor::{Monitor, Watched};
use opening::Opener;
use position::Snapshot as SnapshotState;
use replication::Replication;
use rows::Table;
use schemas::events::{ChunkEnd, Event as _};
use schemas::ids::{SchemaId, SourceName};
use schemas::version::Lsn;
use serde::Deserialize;
use server::Server;
use service::Secret;
use slot::StartMode;
use snapshot::{Origin, Snapshot};
use static_record::StaticRecord;
use std::sync::Arc;
use std::time::Duration;
use stream::Stream;

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

/// A PostgreSQL source.
pub struct Source {
    name: SourceName,
    declaration: Arc<Declaration>,
    slot: String,
    registry: Arc<dyn registry::Registry>,
    topic: Arc<str>,
    record_bytes_max: usize,
    heartbeat_every: Duration,
    tables: Arc<[Table]>,
    chunk_end: SchemaId,
    phase: Phase,
    reports: Reports,
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

impl Phase {
    /// The static record, and whether the source is streaming.
    fn source(&self) -> Option<(&StaticRecord, bool)> {
        Some(match self {
            Phase::Closed => return None,
            Phase::Announce(position) | Phase::Create(position) => (&position.source, false),
            Phase::Copy(snapshot) => (&snapshot.position().source, false),
            Phase::Begin(position) => (&position.source, true),
            Phase::Stream(stream) => (&stream.position().source, true),
        })
    }
}

/// The states of the tables according to a static record.
struct Reports {
    tables: Arc<[TableReport]>,
    of: Option<(StaticRecord, bool)>,
}

impl Reports {
    fn update(&mut self, source: &StaticRecord, is_streaming: bool) {
        if self
            .of
            .as_ref()
            .is_some_and(|of| of.0 == *source && of.1 == is_streaming)
        {
            return;
        }
        let report = |(name, table): (&String, &static_record::TableRecord)| {
            let stopped = table.needs_snapshot.as_ref();
            TableReport {
                table: name.clone(),
                state: match stopped {
                    Some(_) => TableState::NeedsSnapshot,
                    None if is_streaming => TableState::Running,
                    None => TableState::Snapshotting,
                },
                cause: stopped.map(|s| s.cause.clone()),
                fix: stopped.map(|s| s.fix.clone()),
            }
        };
        self.tables = source.content().tables.iter().map(report).collect();
        self.of = Some((source.clone(), is_streaming));
    }
}

impl Source {
    /// Creates a source that publishes the declared tables to a topic.
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
        let default_name = || object_name(name.as_str());
        Ok(Source {
            name: name.clone(),
            declaration: Arc::new(Declaration {
                connector: Arc::from(name.as_str()),
                server,
                publication: config.publication.clone().unwrap_or_else(default_name),
                tables: declared,
                on_mismatch: config.on_mismatch,
            }),
            slot: config.slot.clone().unwrap_or_else(default_name),
            registry,
            topic: Arc::from(topic),
            record_bytes_max: 0,
            heartbeat_every: Duration::from_secs(config.heartbeat_seconds.max(1)),
            tables: Arc::new([]),
            chunk_end: SchemaId(0),
            phase: Phase::Closed,
            reports: Reports {
                tables: Arc::new([]),
                of: None,
            },
        })
    }

    fn server(&self) -> &Server {
        &self.declaration.server
    }

    fn emitter(&self) -> Emitter {
        let connector = Arc::clone(&self.declaration.connector);
        Emitter::new(connector, Arc::clone(&self.topic), self.record_bytes_max)
    }

    /// Starts streaming after a position.
    async fn stream(&self, position: Position) -> Result<Phase> {
        let mut replication = self.replication(&position).await?;
        slot::start(
            &mut replication,
            self.server(),
            &self.slot,
            &self.declaration.publication,
            position.complete_lsn,
        )
        .await?;
        let names = self.declaration.names();
        let monitor = Monitor::start(Watched {
            server: self.server().clone(),
            slot: self.slot.clone(),
            publication: self.declaration.publication.clone(),
            tables: names.clone(),
            every: self.heartbeat_every,
        });
        let setup = Setup {
            connector: Arc::clone(&self.declaration.connector),
            declared: names.into(),
            tables: Arc::clone(&self.tables),
            emitter: self.emitter(),
        };
        let (declaration, changes) = (Arc::clone(&self.declaration), Changes::new(setup, position));
        Ok(Phase::Stream(Box::new(Stream::new(
            declaration,
            replication,
            changes,
            monitor,
        ))))
    }

    async fn replication(&self, position: &Position) -> Result<Replication> {
        let publication = &self.declaration.publication;
        Replication::connect(self.server(), &self.slot, publication, position.complete_lsn).await
    }

    /// The position that announces a source epoch.
    fn announced(&self, source_epoch: u32, source: StaticRecord) -> Position {
        Position {
            source_epoch,
            lsn: Lsn(0),
            ordinal: None,
            complete_lsn: Lsn(0),
            snapshot: SnapshotState::Begun {
                id: format!("{}-{source_epoch}", self.name),
            },
            source,
        }
    }

    /// Creates the slot, imports its snapshot and starts copying.
    async fn create(&self, position: &Position) -> Result<Phase> {
        let sql = self.server().connect("trunkline snapshot").await?;
        slot::drop(&sql, &self.slot, self.server().database()).await?;
        let mut replication = self.replication(position).await?;
        failpoint::hit("connector.postgres.before_slot");
        let created = replication.create_slot(&self.slot).await?;
        failpoint::hit("connector.postgres.after_slot");
        slot::import_snapshot(&sql, &created.snapshot).await?;
        // The transaction that imported the snapshot keeps the snapshot alive, and the slot does not depend on this
        // connection.
        replication.close();
        tracing::info!(connector = %self.name, slot = %self.slot, point = %created.consistent_point, "snapshot started");
        let origin = Origin {
            sql,
            position: position.clone(),
            point: created.consistent_point,
        };
        let snapshot = Snapshot::new(origin, Arc::clone(&self.tables), self.emitter(), self.chunk_end).await?;
        Ok(Phase::Copy(Box::new(snapshot)))
    }

    /// Performs the next step of the current phase.
    async fn advance(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
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
}

impl source::Source for Source {
    type Position = Position;

    fn topic(&self) -> Option<&str> {
        Some(&self.topic)
    }

    async fn open(&mut self, stored: Option<Position>, record_bytes_max: usize) -> Result<()> {
        self.record_bytes_max = record_bytes_max;
        let (server, publication) = (self.server(), &self.declaration.publication);
        let sql = server.connect("trunkline").await?;
        let identity = {
            let mut probe = Replication::connect(server, &self.slot, publication, Lsn(0)).await?;
            let identity = probe.identify().await;
            probe.close();
            identity?
        };
        check::check_server(&sql, server).await?;
        let expected = slot::Expected {
            slot: &self.slot,
            database: server.database(),
            identity: &identity,
        };
        let mode = slot::start_mode(&sql, stored.as_ref(), &expected).await?;
        let subject = ChunkEnd::subject(&self.topic);
        self.chunk_end = source::register(&self.registry, subject, ChunkEnd::AVSC.to_owned()).await?;
        let opener = Opener {
            name: &self.name,
            declaration: &self.declaration,
            registry: &self.registry,
            topic: &self.topic,
        };
        self.phase = match (mode, stored) {
            (StartMode::Stream, Some(mut position)) => {
                let opened = opener.for_stream(&sql, &position.source).await?;
                position.source = StaticRecord::new(opened.content);
                self.tables = opened.tables;
                self.stream(position).await?
            }
            (_, stored) => {
                let slot = opening::Slot {
                    name: &self.slot,
                    identity: &identity,
                };
                let opened = opener.for_snapshot(&sql, &slot, stored.is_none()).await?;
                self.tables = opened.tables;
                let epoch = stored.map_or(0, |p| p.source_epoch).saturating_add(1);
                Phase::Announce(self.announced(epoch, StaticRecord::new(opened.content)))
            }
        };
        Ok(())
    }

    async fn next(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let boundary = self.advance(batch, budget).await?;
        if let Some((source, is_streaming)) = self.phase.source() {
            self.reports.update(source, is_streaming);
        }
        Ok(boundary)
    }

    fn committed(&mut self, position: &Position) {
        if let (Phase::Stream(stream), true) = (&mut self.phase, position.is_streaming()) {
            stream.committed(position.complete_lsn);
        }
    }

    fn close(&mut self) {
        if let Phase::Stream(stream) = std::mem::replace(&mut self.phase, Phase::Closed) {
            stream.close();
        }
    }

    fn restart_position(&self, _: Option<&Position>, epoch: u32) -> Option<Position> {
        Some(Position {
            snapshot: SnapshotState::Wanted,
            ..self.announced(epoch, StaticRecord::default())
        })
    }

    fn progress(&self) -> Progress {
        let (snapshot, lag_bytes) = match &self.phase {
            Phase::Announce(_) | Phase::Create(_) => {
                let waiting = "creating the slot, for which PostgreSQL waits until the open transactions have ended";
                (Some(String::from(waiting)), None)
            }
            Phase::Copy(snapshot) => (Some(snapshot.describe()), None),
            Phase::Stream(stream) => (None, stream.lag_bytes()),
            Phase::Begin(_) | Phase::Closed => (None, None),
        };
        Progress {
            snapshot,
            lag_bytes,
            tables: Arc::clone(&self.reports.tables),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_are_valid_in_postgresql() {
        assert_eq!(object_name("Shop-EU"), "trunkline_shop_eu");
        assert_eq!(object_name(&"x".repeat(63)).len(), 63);
    }
}
