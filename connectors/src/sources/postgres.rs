//! The PostgreSQL source: every transaction from logical replication, and snapshots of the declared tables in chunks
//! between the transactions.
//!
//! The topic contains the database's transactions in commit order, complete, and each record once (C14). A table's
//! changes are published from the beginning of its snapshot on. The slot is
//! acknowledged only up to positions that are committed. If the slot, timeline, cluster or publication does not match
//! the stored position, the connector reports `NEEDS_RESYNC` instead of publishing a gap. If a table no longer matches,
//! it becomes `NEEDS_SNAPSHOT`: its changes are skipped, its views are marked stale, and the other tables continue. The
//! source writes to no table and changes only its own slot and publication.

mod arrays;
pub mod catalog;
mod changes;
pub mod check;
mod chunk_query;
mod chunk_reader;
mod config;
mod copy;
mod declaration;
mod declared;
mod drift;
mod emitter;
pub(crate) mod inspect;
mod masks;
mod monitor;
mod opening;
mod parts;
mod pgoutput;
mod position;
mod publication;
mod relations;
mod replacements;
mod replication;
mod reports;
mod retention;
mod rewrites;
mod rows;
pub mod server;
mod slot;
mod snapshots;
mod static_record;
mod stream;
mod text;
mod tuples;
mod watermark;
mod window;

pub use config::{ColumnLists, Config, ServerObjects, WalSize};
pub use declared::Declared;
pub use inspect::{Finding, Severity};
pub use position::Position;
pub use retention::OnMaxRetainedWal;

use crate::consumers::Consumers;
use crate::error::{Error, Result};
use crate::source::{self, Batch, Boundary, Budget, Progress, Request};
use crate::status::Handle;
use changes::{Changes, Setup};
use declaration::Declaration;
use emitter::Emitter;
use monitor::{Monitor, Watched};
use opening::Opener;
use position::Snapshot as SnapshotState;
use replication::{Identity, Replication};
use reports::{Reported, Reports};
use retention::{Limit, Owned, Retention};
use rows::Table;
use schemas::events::{ChunkEnd, Event as _};
use schemas::ids::{SchemaId, SourceName};
use schemas::version::Lsn;
use server::Server;
use slot::StartMode;
use snapshots::Snapshots;
use static_record::{Content, PublicationRecord, StaticRecord, TableSnapshot};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;
use stream::Stream;
use topology::Names;

/// A PostgreSQL source.
pub struct Source {
    name: SourceName,
    declaration: Arc<Declaration>,
    objects: Objects,
    /// The slot of the open source.
    slot: String,
    retention: Retention,
    /// Whether an existing slot is replaced at the first start, because it was used with a log that was deleted.
    replaces_slot: bool,
    /// Streams in sequence that ended before anything was committed.
    unproductive_streams: u32,
    registry: Arc<dyn registry::Registry>,
    topic: Arc<str>,
    record_bytes_max: usize,
    heartbeat_every: Duration,
    consumers: Consumers,
    tables: Arc<[Arc<Table>]>,
    chunk_end: SchemaId,
    phase: Phase,
    reports: Reports,
}

/// Minimum limit of the silence of a server.
const SILENCE_MIN: Duration = Duration::from_secs(6);
const SILENCE_DOUBLINGS_MAX: u32 = 6;

/// Names of the slot and the publication.
struct Objects {
    /// The names in the settings. They override those of the stored position.
    configured_slot: Option<String>,
    configured_publication: Option<String>,
    default: String,
}

impl Objects {
    /// The slot and the publication for a stored position. Without names in the settings, a source keeps the objects that
    /// it has, also if the default changes, because the topology was renamed or by a new release. The objects of another
    /// database are not its own.
    fn choose(&self, stored: Option<&Position>, database: &str) -> (String, String) {
        let content = stored.map(|position| position.source.content());
        let content = content.filter(|content| content.database == database);
        let choose = |configured: &Option<String>, stored: Option<&str>| {
            let stored = stored.filter(|name| !name.is_empty());
            configured.as_deref().or(stored).unwrap_or(&self.default).to_owned()
        };
        (
            choose(&self.configured_slot, content.map(|c| c.slot.as_str())),
            choose(
                &self.configured_publication,
                content.map(|c| c.publication.name.as_str()),
            ),
        )
    }
}

/// What the next call of `next` does.
enum Phase {
    Closed,
    /// Store a position that announces the snapshot, so that after a crash the slot is recognized as belonging to this
    /// connector.
    Announce(Position),
    /// Create the slot.
    Create(Position),
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
            Phase::Begin(position) => (&position.source, true),
            Phase::Stream(stream) => (&stream.position().source, true),
        })
    }
}

impl Source {
    /// Creates a source that publishes the declared tables to the topic of its name.
    ///
    /// # Errors
    /// [`Error::Rejected`] if the connection settings are not valid or no table is declared.
    pub fn new(
        names: &Names,
        name: &SourceName,
        config: &Config,
        declared: Vec<Declared>,
        registry: Arc<dyn registry::Registry>,
    ) -> Result<Self> {
        let server = Server::new(config.settings()).map_err(|error| Error::Rejected {
            reason: format!("connector {name}: {error}"),
            fix: error.fix(name.as_str()),
        })?;
        if declared.is_empty() {
            return Err(Error::Rejected {
                reason: format!("connector {name} has no tables"),
                fix: format!(
                    "declare [[table]] with source = \"{name}\" in the topology, or generate it with `trunkline init`"
                ),
            });
        }
        let declared = declared::with_key(name.as_str(), declared, config.mask_key.as_ref())?;
        let objects = Objects {
            configured_slot: config.slot.clone(),
            configured_publication: config.publication.clone(),
            default: config::object_name(names, server.database(), name),
        };
        let (slot, publication) = objects.choose(None, server.database());
        let limit = config.max_retained_wal.map(|size| Limit {
            bytes: size.bytes(),
            action: config.on_max_retained_wal,
        });
        let used = ServerObjects {
            server: server.to_string(),
            slot: slot.clone(),
            publication: publication.clone(),
        };
        Ok(Source {
            name: name.clone(),
            replaces_slot: config.previous_objects.contains(&used),
            retention: Retention::new(server.clone(), &slot, limit),
            declaration: Arc::new(Declaration {
                connector: Arc::from(name.as_str()),
                server,
                publication,
                manages_publication: config.publication.is_none(),
                column_lists: config.column_lists,
                tables: declared,
                on_mismatch: config.on_mismatch,
            }),
            objects,
            slot,
            unproductive_streams: 0,
            registry,
            topic: names.change(name.as_str()).into(),
            record_bytes_max: 0,
            heartbeat_every: Duration::from_secs(config.heartbeat_seconds.max(1)),
            consumers: Consumers::default(),
            tables: Arc::new([]),
            chunk_end: SchemaId(0),
            phase: Phase::Closed,
            reports: Reports::default(),
        })
    }

    /// Snapshots wait for these consumers.
    #[must_use]
    pub fn with_consumers(self, consumers: Consumers) -> Self {
        Source { consumers, ..self }
    }

    fn server(&self) -> &Server {
        &self.declaration.server
    }

    /// Checks the database for an operator. Blocks; call it outside async tasks. It only reads the catalog.
    ///
    /// # Errors
    /// The thread cannot wait for the database.
    pub fn inspect(&self) -> std::io::Result<Vec<Finding>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(inspect::inspect(&self.declaration, &self.slot)))
    }

    /// What the source uses on its server.
    pub fn objects(&self) -> ServerObjects {
        ServerObjects {
            server: self.server().to_string(),
            slot: self.slot.clone(),
            publication: self.declaration.publication.clone(),
        }
    }

    fn emitter(&self) -> Emitter {
        let connector = Arc::clone(&self.declaration.connector);
        Emitter::new(connector, Arc::clone(&self.topic), self.record_bytes_max)
    }

    /// Starts streaming after a position.
    async fn stream(&mut self, position: Position) -> Result<Phase> {
        self.unproductive_streams = self.unproductive_streams.saturating_add(1);
        let mut replication = self.replication(&position).await?;
        replication.limit_silence(self.silence_max());
        slot::start(&mut replication, &self.slot).await?;
        let names = self.declaration.names();
        let monitor = Monitor::start(Watched {
            declaration: Arc::clone(&self.declaration),
            slot: self.slot.clone(),
            source: position.source.clone(),
            every: self.heartbeat_every,
        });
        let setup = Setup {
            connector: Arc::clone(&self.declaration.connector),
            declared: names.into(),
            tables: Arc::clone(&self.tables),
            emitter: self.emitter(),
            chunk_end: self.chunk_end,
        };
        let (declaration, changes) = (Arc::clone(&self.declaration), Changes::new(setup, position));
        let snapshots = Snapshots::new(chunk_reader::Context {
            name: self.name.clone(),
            declaration: Arc::clone(&self.declaration),
            registry: Arc::clone(&self.registry),
            topic: Arc::clone(&self.topic),
            session: format!("{} {:016x}", self.slot, RandomState::new().hash_one(&self.slot)),
        });
        let snapshots = snapshots.with_consumers(self.consumers.clone());
        Ok(Phase::Stream(Box::new(Stream::new(
            declaration,
            replication,
            changes,
            monitor,
            snapshots,
        ))))
    }

    /// How long the server may send nothing: twice the interval of the heartbeats. The server is also silent while it
    /// skips a large transaction of other tables, so the limit doubles with each stream that ended without progress.
    fn silence_max(&self) -> Duration {
        let base = (2 * self.heartbeat_every).max(SILENCE_MIN);
        base * (1 << self.unproductive_streams.saturating_sub(1).min(SILENCE_DOUBLINGS_MAX))
    }

    /// Tells the watch of the retained WAL which slot the stored position names.
    fn watch_slot(&self, stored: Option<&Position>) {
        let content = stored.map(|position| position.source.content());
        let content =
            content.filter(|content| content.slot == self.slot && content.database == self.server().database());
        self.retention.set(Owned {
            slot: self.slot.clone(),
            system: content.map(|content| content.system.clone()),
        });
    }

    /// The error if the slot was given up, because the server retained too much WAL for it.
    fn check_retention(&self) -> Result<()> {
        match self.retention.given_up() {
            Some(reason) => Err(Error::NeedsResync { reason }),
            None => Ok(()),
        }
    }

    async fn replication(&self, position: &Position) -> Result<Replication> {
        let publication = &self.declaration.publication;
        Replication::connect(self.server(), &self.slot, publication, position.complete_lsn).await
    }

    /// Reads the identity of the server and, if its timeline is another one than that of the stored position, where that
    /// one ended.
    async fn identify(&self, stored: Option<&Position>) -> Result<(Identity, Option<Lsn>)> {
        let publication = &self.declaration.publication;
        let mut connection = Replication::connect(self.server(), &self.slot, publication, Lsn(0)).await?;
        let identity = connection.identify().await?;
        let was = stored.filter(|position| position.is_streaming());
        let was = was.map(|position| position.source.content().timeline);
        let end = match was.filter(|was| *was < identity.timeline) {
            Some(was) => slot::timeline_end(&connection.timeline_history(identity.timeline).await?, was),
            None => None,
        };
        connection.close();
        Ok((identity, end))
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
            chunks: None,
            source,
        }
    }

    /// Creates the slot, and returns the position from which to stream. Every table that can be read waits for its
    /// snapshot, and until its end readers know that the rows of the table are not complete.
    async fn create(&self, position: &Position) -> Result<Position> {
        let sql = self.server().connect("trunkline").await?;
        slot::drop(&sql, &self.slot, self.server().database()).await?;
        let mut replication = self.replication(position).await?;
        failpoint::hit("connector.postgres.before_slot");
        let point = replication.create_slot(&self.slot).await?;
        failpoint::hit("connector.postgres.after_slot");
        self.watch_slot(Some(position));
        // The slot does not depend on this connection.
        replication.close();
        tracing::info!(connector = %self.name, slot = %self.slot, %point, "slot created");
        let source = position.source.with(|content| {
            for (name, table) in &mut content.tables {
                if table.needs_snapshot.is_none() {
                    let cause = format!("the first snapshot of table {name} has not ended");
                    table.needs_snapshot = Some(drift::needs_snapshot(self.name.as_str(), name, cause, None));
                    table.snapshot = Some(TableSnapshot::Wanted);
                }
            }
        });
        let id = match &position.snapshot {
            SnapshotState::Begun { id } | SnapshotState::Done { id } => id.clone(),
            SnapshotState::Wanted => String::new(),
        };
        Ok(Position {
            lsn: point,
            ordinal: None,
            complete_lsn: point,
            snapshot: SnapshotState::Done { id },
            source,
            ..position.clone()
        })
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
                let position = self.create(&position).await?;
                batch.position = Some(position.clone());
                batch.store_now = true;
                self.phase = Phase::Begin(position);
                Ok(Boundary::Drained)
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

    fn start(&mut self, handle: &Handle) {
        self.retention.start(handle);
    }

    fn topic(&self) -> Option<&str> {
        Some(&self.topic)
    }

    async fn open(&mut self, stored: Option<Position>, record_bytes_max: usize) -> Result<()> {
        self.record_bytes_max = record_bytes_max;
        let (slot, publication) = self.objects.choose(stored.as_ref(), self.server().database());
        (self.slot, Arc::make_mut(&mut self.declaration).publication) = (slot, publication);
        if matches!(&stored, Some(position) if position.snapshot == SnapshotState::Wanted) {
            self.retention.reset();
        }
        self.watch_slot(
            stored
                .as_ref()
                .filter(|position| position.snapshot != SnapshotState::Wanted),
        );
        self.check_retention()?;
        let server = self.server();
        let sql = server.connect_for_catalog("trunkline").await?;
        check::check_server(&sql, server).await?;
        let (identity, timeline_end) = self.identify(stored.as_ref()).await?;
        let expected = slot::Expected {
            slot: &self.slot,
            database: server.database(),
            identity: &identity,
            timeline_end,
            is_proved: self.replaces_slot,
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
                let mut content = opened.content;
                if content.timeline != identity.timeline {
                    let (from, to) = (content.timeline, identity.timeline);
                    tracing::warn!(connector = %self.name, from, to, "continuing after a failover");
                    content.timeline = to;
                }
                position.source = StaticRecord::new(content);
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
        self.check_retention()?;
        let boundary = self.advance(batch, budget).await?;
        let progress = match &self.phase {
            Phase::Stream(stream) => {
                let (snapshots, changes) = stream.snapshots();
                snapshots.progress(changes)
            }
            _ => None,
        };
        if let Some((source, is_streaming)) = self.phase.source() {
            self.reports.update(Reported {
                source: source.clone(),
                is_streaming,
                progress,
            });
        }
        Ok(boundary)
    }

    fn committed(&mut self, position: &Position) {
        // Until the slot is created, the watch could take the slot that it replaces for the new one.
        if !matches!(self.phase, Phase::Announce(_) | Phase::Create(_)) {
            self.watch_slot(Some(position));
        }
        if let (Phase::Stream(stream), true) = (&mut self.phase, position.is_streaming()) {
            self.unproductive_streams = 0;
            stream.committed(position.complete_lsn);
        }
    }

    fn close(&mut self) {
        if let Phase::Stream(stream) = std::mem::replace(&mut self.phase, Phase::Closed) {
            stream.close();
        }
    }

    /// The new position names the slot of the stored one, which is proof that the slot may be replaced.
    fn restart_position(&self, stored: Option<&Position>, epoch: u32) -> Option<Position> {
        let source = stored.map(|stored| {
            let was = stored.source.content();
            StaticRecord::new(Content {
                system: was.system.clone(),
                timeline: was.timeline,
                database: was.database.clone(),
                slot: was.slot.clone(),
                publication: PublicationRecord {
                    name: was.publication.name.clone(),
                    ..PublicationRecord::default()
                },
                ..Content::default()
            })
        });
        Some(Position {
            snapshot: SnapshotState::Wanted,
            ..self.announced(epoch, source.unwrap_or_default())
        })
    }

    fn request(&mut self, request: &Request) -> Result<()> {
        let Request::Snapshot { tables } = request;
        let Phase::Stream(stream) = &mut self.phase else {
            return Err(Error::Rejected {
                reason: format!(
                    "connector {} is not streaming, so it cannot take a snapshot of single tables",
                    self.name
                ),
                fix: String::from("wait until the connector is RUNNING, then repeat the command"),
            });
        };
        stream.request_snapshots(tables).map_err(|unknown| Error::Rejected {
            reason: format!("connector {} has no table {unknown}", self.name),
            fix: format!("declare [[table]] name = \"{unknown}\" in the topology"),
        })
    }

    fn progress(&self) -> Progress {
        let (snapshot, lag_bytes) = match &self.phase {
            Phase::Announce(_) | Phase::Create(_) => {
                let waiting = "creating the slot, for which PostgreSQL waits until the open transactions have ended";
                (Some(String::from(waiting)), None)
            }
            Phase::Stream(stream) => {
                let (snapshots, changes) = stream.snapshots();
                (snapshots.describe(changes), stream.lag_bytes())
            }
            Phase::Begin(position) => (snapshots::describe_waiting(&position.source), None),
            Phase::Closed => (None, None),
        };
        Progress {
            snapshot,
            lag_bytes,
            tables: self.reports.tables(),
        }
    }
}
