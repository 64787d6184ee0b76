//! Transactions that backends post as JSON: a source without a database.
//!
//! One post is one source transaction. Posts that wait together are committed together, each still a transaction of
//! its own for every reader. A post is answered only once its records and the position are stored.
//!
//! A post with one of the last [`RECENT_MAX`] idempotency keys is not stored again. The keys are part of the position,
//! which commits together with the records, so they survive a crash, and a key whose transaction was aborted is
//! forgotten with it. A repeat of a post whose commit is still under way is answered after that commit.

mod recent;

pub use recent::{Fingerprint, RECENT_MAX};

use crate::error::{Error, Result};
use crate::source::{self, Batch, Boundary, Budget};
use event_log::{Header, OutRecord};
use recent::{Recent, Remembered};
use registry::SharedRegistry;
use schemas::codec::Datum;
use schemas::headers::{self, Tx};
use schemas::ids::{SchemaId, SourceName};
use schemas::key::KeyWriter;
use schemas::schema::Schema;
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
/// Posts that may wait for their commit; more are refused with 503.
const WAITING_MAX: usize = 1_024;

/// A table of the source, ready to encode.
#[derive(Debug, Clone)]
pub struct Table {
    /// Name, as in keys.
    pub name: Arc<str>,
    /// The schema of its records.
    pub schema: Arc<Schema>,
    /// Indexes of the key's columns.
    pub key: Vec<usize>,
    id: SchemaId,
}

/// One change of a post, encoded.
#[derive(Debug)]
pub struct Change {
    table: Arc<str>,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// What was stored of a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its position.
    pub position: u64,
    /// How many changes it has.
    pub changes: u32,
}

/// What became of a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is stored.
    Stored(Receipt),
    /// The same post with the same idempotency key was stored before.
    Replayed(Receipt),
    /// Its idempotency key came with another body before. Nothing is stored.
    KeyReused,
}

struct Post {
    changes: Vec<Change>,
    fingerprint: Option<Fingerprint>,
    trace: Option<String>,
    answer: oneshot::Sender<Answer>,
}

/// An answer that is due when a position is committed.
struct Waiting {
    position: u64,
    answer: Answer,
    to: oneshot::Sender<Answer>,
}

/// Where handlers hand their posts in.
#[derive(Clone)]
pub struct Inlet {
    posts: mpsc::Sender<Post>,
    tables: Arc<RwLock<Arc<[Table]>>>,
}

/// Why a post was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The source is not running, or too many posts wait: try again.
    #[error("the source cannot take it now")]
    Busy,
    /// The commit's outcome is not known: post again with the same idempotency key.
    #[error("whether it was stored is not known")]
    Unknown,
}

impl Inlet {
    /// The tables, once the source has registered their schemas; empty before.
    pub fn tables(&self) -> Arc<[Table]> {
        self.tables
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Hands a post in and waits until it is stored. The fingerprint is that of a post with an idempotency key; `trace`
    /// is a valid `traceparent`, which the records carry.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub async fn post(
        &self,
        changes: Vec<Change>,
        fingerprint: Option<Fingerprint>,
        trace: Option<String>,
    ) -> Result<Answer, NotTaken> {
        let (answer, answered) = oneshot::channel();
        self.posts
            .try_send(Post {
                changes,
                fingerprint,
                trace,
                answer,
            })
            .map_err(|_| NotTaken::Busy)?;
        answered.await.map_err(|_| NotTaken::Unknown)
    }
}

impl Table {
    /// Encodes a row that is put.
    ///
    /// # Errors
    /// The JSON path of what does not fit, and why.
    pub fn put(&self, row: &serde_json::Value) -> Result<Change, (String, String)> {
        let mut body = Vec::new();
        self.schema
            .encode_json(row, &mut body)
            .map_err(|e| (e.path(), e.reason))?;
        let mut datums = Vec::new();
        self.schema
            .decode(&body, &mut datums)
            .map_err(|e| ("$".into(), e.to_string()))?;
        let key = self.key_of(|at| datums.get(at).cloned());
        let mut value = Vec::with_capacity(body.len() + wire::FRAME_LENGTH);
        wire::frame(self.id, &mut value);
        value.extend_from_slice(&body);
        Ok(Change {
            table: self.name.clone(),
            key,
            value: Some(value),
        })
    }

    /// Encodes a delete by the key's columns.
    ///
    /// # Errors
    /// The JSON path of what does not fit, and why.
    pub fn delete(&self, key: &serde_json::Value) -> Result<Change, (String, String)> {
        let mut bodies = Vec::new();
        for at in &self.key {
            let Some(field) = self.schema.fields().get(*at) else {
                continue;
            };
            let given = key.get(field.column());
            let given =
                given.ok_or_else(|| (format!("$.{}", field.column()), "a column of the key is missing".into()))?;
            let mut body = Vec::new();
            let misfit = |e: schemas::codec::JsonError| (format!("$.{}", field.column()), e.reason);
            self.schema
                .encode_json_value(field.ty, given, &mut body)
                .map_err(misfit)?;
            bodies.push((*at, field.ty, body));
        }
        let value = |at: usize| {
            let (_, ty, body) = bodies.iter().find(|(of, ..)| *of == at)?;
            self.schema.decode_value(*ty, body).ok()
        };
        Ok(Change {
            table: self.name.clone(),
            key: self.key_of(value),
            value: None,
        })
    }

    fn key_of<'a>(&self, value: impl Fn(usize) -> Option<Datum<'a>>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut key = KeyWriter::new(&mut out).str(&self.name);
        for at in &self.key {
            if let Some(field) = self.schema.fields().get(*at) {
                key = key.datum(&self.schema, field.ty, &value(*at).unwrap_or(Datum::Null));
            }
        }
        key.finish();
        out
    }
}

/// Where the source stands: how many posts it has stored, and the last idempotency keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Position {
    v: u32,
    inc: u32,
    pos: u64,
    recent: Recent,
}

impl Position {
    /// The start of an incarnation.
    fn start(inc: u32, recent: Recent) -> Self {
        Position {
            v: FORMAT,
            inc,
            pos: 0,
            recent,
        }
    }
}

/// The version of a stored position, whatever else it holds.
#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// What is still of use in a position of version 1: it kept keys without credential and body, so there is nothing to
/// compare a repeated post with.
#[derive(Deserialize)]
struct Version1 {
    inc: u32,
    pos: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "post {}", self.pos)
    }
}

impl source::Position for Position {
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and texts always have a JSON form")
    }

    fn complete(&self) -> String {
        self.pos.to_string()
    }

    fn from_json(json: &str) -> std::result::Result<Self, String> {
        let text = |error: serde_json::Error| error.to_string();
        match serde_json::from_str(json).map_err(text)? {
            Version { v: 1 } => {
                let Version1 { inc, pos } = serde_json::from_str(json).map_err(text)?;
                Ok(Position {
                    pos,
                    ..Position::start(inc, Recent::default())
                })
            }
            Version { v: FORMAT } => serde_json::from_str(json).map_err(text),
            Version { v } => Err(format!("its format is {v}, this release reads up to {FORMAT}")),
        }
    }
}

/// A source of posted transactions.
pub struct Source {
    name: SourceName,
    topic: Arc<str>,
    declared: Vec<(Arc<str>, Arc<Schema>, Vec<usize>)>,
    registry: SharedRegistry,
    clock: SharedClock,
    posts: mpsc::Receiver<Post>,
    tables: Arc<RwLock<Arc<[Table]>>>,
    position: Position,
    waiting: VecDeque<Waiting>,
}

impl Source {
    /// A source that publishes posts over these tables (name, schema, indexes of the key) to `change.<name>`.
    pub fn new(
        name: &SourceName,
        declared: Vec<(Arc<str>, Arc<Schema>, Vec<usize>)>,
        registry: SharedRegistry,
        clock: SharedClock,
    ) -> (Self, Inlet) {
        let (send, posts) = mpsc::channel(WAITING_MAX);
        let tables: Arc<RwLock<Arc<[Table]>>> = Arc::new(RwLock::new(Arc::new([])));
        let inlet = Inlet {
            posts: send,
            tables: tables.clone(),
        };
        let source = Source {
            name: name.clone(),
            topic: format!("change.{name}").into(),
            declared,
            registry,
            clock,
            posts,
            tables,
            position: Position::start(1, Recent::default()),
            waiting: VecDeque::new(),
        };
        (source, inlet)
    }

    fn take(&mut self, post: Post, batch: &mut Batch<Position>) {
        if let Some(known) = post.fingerprint.and_then(|f| self.position.recent.find(&f)) {
            let answer = match known {
                Remembered::SameBody(receipt) => Answer::Replayed(receipt),
                Remembered::OtherBody => Answer::KeyReused,
            };
            self.answer_known(answer, post.answer);
            return;
        }
        self.position.pos += 1;
        let receipt = Receipt {
            position: self.position.pos,
            changes: u32::try_from(post.changes.len()).unwrap_or(u32::MAX),
        };
        if let Some(fingerprint) = post.fingerprint {
            self.position.recent.push(fingerprint, receipt);
        }
        let count = post.changes.len();
        let mut tx = Vec::new();
        for (n, change) in post.changes.iter().enumerate() {
            tx.clear();
            Tx {
                incarnation: self.position.inc,
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
            let trace = post.trace.as_ref().map(|trace| (PARENT, Some(trace.as_bytes())));
            batch.records.push(record, headers.into_iter().chain(trace));
        }
        self.waiting.push_back(Waiting {
            position: receipt.position,
            answer: Answer::Stored(receipt),
            to: post.answer,
        });
        batch.position = Some(self.position.clone());
    }

    /// Answers a post whose key is known. If a commit is under way the key may belong to it, and the commit may fail,
    /// so the answer waits for it.
    fn answer_known(&mut self, answer: Answer, to: oneshot::Sender<Answer>) {
        if self.waiting.is_empty() {
            // A backend that went away retries and gets its answer then.
            let _ = to.send(answer);
        } else {
            let position = self.position.pos;
            self.waiting.push_back(Waiting { position, answer, to });
        }
    }
}

impl source::Source for Source {
    type Position = Position;

    async fn open(&mut self, position: Option<Position>) -> Result<()> {
        self.position = position.unwrap_or_else(|| Position::start(1, Recent::default()));
        let mut tables = Vec::new();
        for (name, schema, key) in &self.declared {
            let table = schemas::ids::TableName::new(name).map_err(|e| Error::Refused {
                reason: e.to_string(),
                next: format!("rename the table {name} in the topology"),
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
        *self.tables.write().unwrap_or_else(std::sync::PoisonError::into_inner) = tables.into();
        Ok(())
    }

    async fn next(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let first = match tokio::time::timeout(budget.wait, self.posts.recv()).await {
            Ok(Some(post)) => post,
            Ok(None) => {
                // Every inlet is gone: nothing will come any more, and the drain ends the loop.
                tokio::time::sleep(budget.wait).await;
                return Ok(Boundary::Idle);
            }
            Err(_) => return Ok(Boundary::Idle),
        };
        self.take(first, batch);
        while batch.records.len() < budget.records_max && batch.records.byte_len() < budget.bytes_max {
            match self.posts.try_recv() {
                Ok(post) => self.take(post, batch),
                Err(_) => return Ok(Boundary::Drained),
            }
        }
        Ok(Boundary::Full)
    }

    fn committed(&mut self, position: &Position) {
        while self.waiting.front().is_some_and(|w| w.position <= position.pos) {
            if let Some(Waiting { answer, to, .. }) = self.waiting.pop_front() {
                // A backend that went away retries and gets its answer then.
                let _ = to.send(answer);
            }
        }
    }

    fn close(&mut self) {
        // Dropped answers tell the backends that the outcome is not known.
        self.waiting.clear();
        *self.tables.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new([]);
    }

    fn restarted(&self, stored: Option<&Position>) -> Option<Position> {
        let (inc, recent) = stored.map_or_else(|| (1, Recent::default()), |p| (p.inc + 1, p.recent.clone()));
        Some(Position::start(inc, recent))
    }
}

#[cfg(test)]
mod tests;
