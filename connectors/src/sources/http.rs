//! The HTTP source: transactions that backends post as JSON.
//!
//! Each request is one source transaction. Requests that wait at the same time share a commit, but are separate source
//! transactions for readers. A request is answered only after its records and the position are committed.
//!
//! A request with one of the last [`RECENT_MAX`] idempotency keys is not stored again. The keys are part of the
//! position, which is committed with the records (invariant C14). So they survive a crash, and the key of an aborted
//! transaction is not kept. A retry of a request whose commit is in progress is answered after that commit.
//!
//! A source without tables does the same for the events that an ingest listener receives with an idempotency key.

mod recent;
mod table;

pub(crate) use table::KeyParts;

pub use recent::{Fingerprint, RECENT_MAX, Receipt};
pub use table::{Change, DeclaredTable, JsonMismatch, Table};

use crate::error::{Error, Result};
use crate::source::{self, Batch, Boundary, Budget, StaticPart, Unreadable};
use event_log::{Header, OutBatch, OutRecord};
use recent::{Recent, Remembered};
use registry::SharedRegistry;
use schemas::headers::{self, Tx};
use schemas::ids::SourceName;
use schemas::version::Lsn;
use schemas::{pg_types, wire};
use serde::{Deserialize, Serialize};
use service::SharedClock;
use service::trace::PARENT;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, RwLock};
use tokio::sync::{mpsc, oneshot};

/// Version of the stored position.
const FORMAT: u32 = 2;
/// Number of requests that may wait for the loop. Further requests are rejected with 503.
const QUEUE_MAX: usize = 1_024;

/// Result of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostOutcome {
    /// The transaction is stored.
    Stored(Receipt),
    /// The same request with the same idempotency key was stored before.
    Replayed(Receipt),
    /// The idempotency key was used with another body before. Nothing is stored.
    KeyReused,
}

struct PostRequest {
    content: Content,
    fingerprint: Option<Fingerprint>,
    respond_to: oneshot::Sender<PostOutcome>,
}

/// What a request stores.
enum Content {
    /// A source transaction, with the `traceparent` of its records.
    Transaction(Vec<Change>, Option<String>),
    /// Complete records of event topics.
    Events(OutBatch),
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Content::Transaction(changes, _) => changes.len(),
            Content::Events(records) => records.len(),
        }
    }
}

/// A response that is sent when a position has been committed.
struct PendingResponse {
    position: u64,
    outcome: PostOutcome,
    respond_to: oneshot::Sender<PostOutcome>,
}

/// Handle with which request handlers submit transactions to the source.
#[derive(Clone)]
pub struct HttpSourceHandle {
    posts: mpsc::Sender<PostRequest>,
    tables: Arc<RwLock<Option<Arc<[Table]>>>>,
}

/// Why a request was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The source is not running, or its queue is full. Retry later.
    #[error("the source is busy or not running")]
    Busy,
    /// The outcome of the commit is unknown. Retry with the same idempotency key.
    #[error("the outcome of the commit is unknown")]
    UnknownOutcome,
}

impl HttpSourceHandle {
    /// The tables; `None` while the source is not running.
    pub fn tables(&self) -> Option<Arc<[Table]>> {
        self.tables
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Submits a transaction and waits until it is committed. `fingerprint` is set if the request has an idempotency
    /// key. `trace` is a valid `traceparent`, which becomes a header of the records.
    ///
    /// # Errors
    /// [`PostError`].
    pub async fn post(
        &self,
        changes: Vec<Change>,
        fingerprint: Option<Fingerprint>,
        trace: Option<String>,
    ) -> Result<PostOutcome, PostError> {
        self.submit(Content::Transaction(changes, trace), fingerprint).await
    }

    /// Submits records of event topics of a request with an idempotency key, and waits until they are committed.
    ///
    /// # Errors
    /// [`PostError`].
    pub async fn post_events(&self, records: OutBatch, fingerprint: Fingerprint) -> Result<PostOutcome, PostError> {
        self.submit(Content::Events(records), Some(fingerprint)).await
    }

    async fn submit(&self, content: Content, fingerprint: Option<Fingerprint>) -> Result<PostOutcome, PostError> {
        if self.tables().is_none() {
            return Err(PostError::Busy);
        }
        let (respond_to, response) = oneshot::channel();
        self.posts
            .try_send(PostRequest {
                content,
                fingerprint,
                respond_to,
            })
            .map_err(|_| PostError::Busy)?;
        response.await.map_err(|_| PostError::UnknownOutcome)
    }
}

/// Position of the source: the number of stored requests, and the most recent idempotency keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Position {
    v: u32,
    #[serde(rename = "epoch")]
    source_epoch: u32,
    pos: u64,
    recent: Recent,
    /// Revision of the static record, which contains older keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rev: Option<String>,
}

impl Position {
    /// The start of a source epoch.
    fn start(source_epoch: u32, recent: Recent) -> Self {
        Position {
            v: FORMAT,
            source_epoch,
            pos: 0,
            rev: recent.static_part().map(|part| part.revision.to_owned()),
            recent,
        }
    }

    /// Adds the key of a request that is stored at this position.
    fn remember(&mut self, request: Fingerprint, receipt: Receipt) {
        self.recent.push(request, receipt);
        self.rev = self.recent.static_part().map(|part| part.revision.to_owned());
    }
}

/// The format version of a stored position.
#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// The usable part of a position in format 1. Its idempotency keys were stored without the credential and the hash of
/// the body, so they cannot be compared with those of a repeated request.
#[derive(Deserialize)]
struct Version1 {
    #[serde(rename = "epoch")]
    source_epoch: u32,
    pos: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.pos)
    }
}

impl source::Position for Position {
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings always serialize")
    }

    fn static_part(&self) -> Option<StaticPart<'_>> {
        self.recent.static_part()
    }

    fn complete(&self) -> String {
        self.pos.to_string()
    }

    fn from_json(json: &str, static_json: Option<&str>) -> std::result::Result<Self, Unreadable> {
        let damaged = |error: serde_json::Error| Unreadable::StartOver(error.to_string());
        match serde_json::from_str(json).map_err(damaged)? {
            Version { v: 1 } => {
                let Version1 { source_epoch, pos } = serde_json::from_str(json).map_err(damaged)?;
                Ok(Position {
                    pos,
                    ..Position::start(source_epoch, Recent::default())
                })
            }
            Version { v: FORMAT } => {
                let position: Position = serde_json::from_str(json).map_err(damaged)?;
                let recent = position.recent.with_static(static_json, position.rev.as_deref());
                let recent = recent.map_err(Unreadable::StartOver)?;
                Ok(Position { recent, ..position })
            }
            Version { v } => Err(Unreadable::Newer(format!(
                "it has format {v}, this version reads up to {FORMAT}; upgrade trunkline"
            ))),
        }
    }

    fn is_beyond(&self, other: &Self) -> bool {
        (self.source_epoch, self.pos) > (other.source_epoch, other.pos)
    }
}

/// A source that publishes the transactions that backends post.
pub struct Source {
    name: SourceName,
    topic: Arc<str>,
    declared: Vec<DeclaredTable>,
    registry: SharedRegistry,
    clock: SharedClock,
    posts: mpsc::Receiver<PostRequest>,
    tables: Arc<RwLock<Option<Arc<[Table]>>>>,
    position: Position,
    pending: VecDeque<PendingResponse>,
}

impl Source {
    /// Creates a source that publishes requests for these tables to a topic, and the handle to submit them.
    pub fn new(
        name: &SourceName,
        topic: &str,
        declared: Vec<DeclaredTable>,
        registry: SharedRegistry,
        clock: SharedClock,
    ) -> (Self, HttpSourceHandle) {
        let (send, posts) = mpsc::channel(QUEUE_MAX);
        let tables = Arc::new(RwLock::new(None));
        let handle = HttpSourceHandle {
            posts: send,
            tables: tables.clone(),
        };
        let source = Source {
            name: name.clone(),
            topic: topic.into(),
            declared,
            registry,
            clock,
            posts,
            tables,
            position: Position::start(1, Recent::default()),
            pending: VecDeque::new(),
        };
        (source, handle)
    }

    fn publish(&mut self, post: PostRequest, batch: &mut Batch<Position>) {
        if let Some(known) = post.fingerprint.and_then(|f| self.position.recent.find(&f)) {
            let outcome = match known {
                Remembered::SameBody(receipt) => PostOutcome::Replayed(receipt),
                Remembered::OtherBody => PostOutcome::KeyReused,
            };
            self.respond_after_pending(outcome, post.respond_to);
            return;
        }
        self.position.pos += 1;
        let receipt = Receipt {
            position: self.position.pos,
            changes: u32::try_from(post.content.len()).unwrap_or(u32::MAX),
        };
        if let Some(fingerprint) = post.fingerprint {
            self.position.remember(fingerprint, receipt);
        }
        match &post.content {
            Content::Transaction(changes, trace) => self.write_transaction(changes, trace.as_deref(), batch),
            Content::Events(records) => {
                for (record, headers) in records.iter() {
                    batch.records.push(record, headers);
                }
            }
        }
        self.pending.push_back(PendingResponse {
            position: receipt.position,
            outcome: PostOutcome::Stored(receipt),
            respond_to: post.respond_to,
        });
        batch.position = Some(self.position.clone());
        // A position without records would otherwise be stored seconds later, and the response sent then.
        batch.store_now |= post.content.len() == 0;
    }

    fn write_transaction(&self, changes: &[Change], trace: Option<&str>, batch: &mut Batch<Position>) {
        let count = changes.len();
        let mut tx = Vec::new();
        for (n, change) in changes.iter().enumerate() {
            tx.clear();
            Tx {
                source_epoch: self.position.source_epoch,
                position: Lsn(self.position.pos),
                ordinal: u32::try_from(n).unwrap_or(u32::MAX),
                last: n + 1 == count,
                at_ms: self.clock.now_ms(),
            }
            .write(&mut tx);
            let headers: [Header<'_>; 2] = [
                (headers::TABLE, Some(change.table.as_bytes())),
                (headers::TX, Some(&tx)),
            ];
            let record = OutRecord {
                topic: &self.topic,
                partition: Some(0),
                timestamp: None,
                key: Some(&change.key),
                value: change.value.as_deref(),
            };
            let trace = trace.map(|trace| (PARENT, Some(trace.as_bytes())));
            batch.records.push(record, headers.into_iter().chain(trace));
        }
    }

    /// Responds to a request whose idempotency key is known. While a commit is in progress, the key may belong to that
    /// commit, which may still fail, so the response is sent after it.
    fn respond_after_pending(&mut self, outcome: PostOutcome, respond_to: oneshot::Sender<PostOutcome>) {
        if self.pending.is_empty() {
            // A failed send means that the backend disconnected; its retry gets the response.
            let _ = respond_to.send(outcome);
        } else {
            let position = self.position.pos;
            self.pending.push_back(PendingResponse {
                position,
                outcome,
                respond_to,
            });
        }
    }
}

impl source::Source for Source {
    type Position = Position;

    async fn open(&mut self, position: Option<Position>, _: usize) -> Result<()> {
        self.position = position.unwrap_or_else(|| Position::start(1, Recent::default()));
        let mut tables = Vec::new();
        for DeclaredTable { name, schema, key } in &self.declared {
            let table = schemas::ids::TableName::new(name).map_err(|e| Error::Rejected {
                reason: e.to_string(),
                fix: format!("rename the table {name} in the topology"),
            })?;
            let subject = wire::subject(&self.topic, &pg_types::record_name(&self.name, &table));
            let id = source::register(&self.registry, subject, schema.text().to_owned()).await?;
            tables.push(Table {
                name: name.clone(),
                schema: schema.clone(),
                key: key.clone(),
                id,
            });
        }
        *self.tables.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(tables.into());
        Ok(())
    }

    async fn next(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let first = match tokio::time::timeout(budget.wait, self.posts.recv()).await {
            Ok(Some(post)) => post,
            Ok(None) => {
                // All handles have been dropped, so no further request can arrive. The loop ends when the drain starts.
                tokio::time::sleep(budget.wait).await;
                return Ok(Boundary::Idle);
            }
            Err(_) => return Ok(Boundary::Idle),
        };
        self.publish(first, batch);
        while batch.records.len() < budget.records_max && batch.records.byte_len() < budget.bytes_max {
            match self.posts.try_recv() {
                Ok(post) => self.publish(post, batch),
                Err(_) => return Ok(Boundary::Drained),
            }
        }
        Ok(Boundary::Full)
    }

    fn committed(&mut self, position: &Position) {
        while self.pending.front().is_some_and(|w| w.position <= position.pos) {
            if let Some(PendingResponse {
                outcome, respond_to, ..
            }) = self.pending.pop_front()
            {
                // A failed send means that the backend disconnected; its retry gets the response.
                let _ = respond_to.send(outcome);
            }
        }
    }

    fn close(&mut self) {
        // If the senders are dropped, `HttpSourceHandle::post` returns `UnknownOutcome`.
        self.pending.clear();
        *self.tables.write().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    fn restart_position(&self, stored: Option<&Position>, epoch: u32) -> Option<Position> {
        let recent = stored.map_or_else(Recent::default, |p| p.recent.clone());
        Some(Position::start(epoch.saturating_add(1), recent))
    }
}

#[cfg(test)]
mod tests;
