//! The positions topic: a moving record per connector, keyed by its name, a static record, keyed by its name and
//! `static`, which is written only when it changes, and the desired state, keyed by its name and `desired`.
//!
//! [`Positions::read`] returns the newest position that was committed before the producer was initialized: it reads up
//! to the log end at the time of the call, which includes waiting for the open transaction of a previous process that
//! was killed (C8, C14). Position records are written only in the transactions of the connector's producer.

use super::context::Context;
use super::{Position, register};
use crate::commands::DesiredState;
use crate::error::{Error, Result};
use event_log::{
    Cleanup, Isolation, OffsetSpec, OutBatch, OutRecord, RecordBatch, StartFrom, TopicConfig, TopicPartition,
    TopicSpec, TransactionalProducer,
};
use schemas::events::{ConnectorPosition, Event as _};
use schemas::ids::SchemaId;
use schemas::key::Key;
use service::SharedClock;
use std::sync::Arc;
use std::time::{Duration, Instant};
use topology::wiring::POSITION_BYTES_MAX;

/// Longer than a connector's transaction can stay open: its timeout of 10 s plus the coordinator's scan interval of 10 s.
/// A transaction that is still open after this time was forgotten by its broker.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(25);
/// How long to wait for the transactions of other connectors before the read fails with an error that describes the
/// cause.
const READ_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 1 << 20;

/// Specification of the topic: one partition, compacted.
pub fn positions_spec(topic: &str) -> TopicSpec {
    let mut config = TopicConfig::new(Cleanup::Compact);
    config.max_message_bytes = Some(POSITION_BYTES_MAX);
    TopicSpec {
        name: topic.to_owned(),
        partitions: 1,
        replication: None,
        config,
    }
}

/// Reads and encodes the position records of one connector.
pub(super) struct Positions {
    log: event_log::SharedEventLog,
    clock: SharedClock,
    partition: TopicPartition,
    key: Key,
    static_key: Key,
    desired_key: Key,
    schema: SchemaId,
    /// Revision of the static record that was last read or sent. If a transaction does not commit, the attempt ends,
    /// and the next attempt reads the topic again.
    static_revision: Option<String>,
    value: Vec<u8>,
    batch: OutBatch,
}

/// The stored records of a connector.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// The moving record.
    pub(super) moving: String,
    /// The static record.
    pub(super) static_part: Option<String>,
}

/// What the topic contains about a connector.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The position; `None` if none was ever stored.
    pub(super) stored: Option<Stored>,
    desired: Option<String>,
}

impl Found {
    /// The desired state.
    pub(super) fn desired(&self, connector: &str) -> Result<DesiredState> {
        let Some(json) = &self.desired else {
            return Ok(DesiredState::default());
        };
        DesiredState::from_json(json).map_err(|reason| Error::Rejected {
            reason: format!("cannot read the stored desired state of connector {connector}: {reason}"),
            fix: String::from("run the trunkline version that wrote it, or a later one"),
        })
    }
}

impl Stored {
    /// The source epoch, which all formats of all kinds of connectors contain; `None` if the record is corrupt.
    pub(super) fn source_epoch(&self) -> Option<u32> {
        #[derive(serde::Deserialize)]
        struct AnyFormat {
            epoch: u32,
        }
        serde_json::from_str(&self.moving).ok().map(|AnyFormat { epoch }| epoch)
    }

    fn static_revision(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct AnyFormat {
            rev: String,
        }
        let json = self.static_part.as_deref()?;
        serde_json::from_str(json).ok().map(|AnyFormat { rev }| rev)
    }
}

impl Positions {
    /// Creates the topic if needed and registers the record's schema.
    pub(super) fn open(context: &Context) -> Result<Self> {
        context
            .log
            .create_topics(&[positions_spec(&context.positions_topic)])
            .map_err(Error::log("create the positions topic"))?;
        let subject = ConnectorPosition::subject(&context.positions_topic);
        let registering = register(&context.registry, subject, ConnectorPosition::AVSC.to_owned());
        let schema = context.runtime.block_on(registering)?;
        Ok(Positions {
            log: Arc::clone(&context.log),
            clock: Arc::clone(&context.clock),
            partition: TopicPartition::new(context.positions_topic.as_str(), 0),
            key: Key::of(&[&context.name]),
            static_key: Key::of(&[context.name.as_str(), "static"]),
            desired_key: Key::of(&[context.name.as_str(), "desired"]),
            schema,
            static_revision: None,
            value: Vec::new(),
            batch: OutBatch::default(),
        })
    }

    /// Reads the stored records; `None` if there are none.
    ///
    /// A single broker that stops under load can forget an open transaction, which then blocks the last stable offset
    /// permanently (ADR 5). If the transaction belongs to this connector, it ends with the next transaction of the same
    /// producer, which is begun and aborted here. No record is lost, because the records of the transaction are read
    /// from the source and published again.
    pub(super) fn read(&mut self, producer: &mut dyn TransactionalProducer) -> Result<Found> {
        let attempted = "read the stored position";
        let end = self
            .log
            .offset(&self.partition, OffsetSpec::LogEnd)
            .map_err(Error::log(attempted))?;
        let mut reader = self
            .log
            .reader(Isolation::ReadCommitted)
            .map_err(Error::log(attempted))?;
        reader
            .assign(&[(self.partition.clone(), StartFrom::Earliest)])
            .map_err(Error::log(attempted))?;
        let (started, mut aborted) = (Instant::now(), false);
        let mut batch = RecordBatch::default();
        let (mut moving, mut static_part, mut desired) = (None, None, None);
        // Control records take offsets, both in the log end and in the reader's position.
        while end > 0 && reader.position(&self.partition).is_none_or(|position| position < end) {
            reader
                .poll(&mut batch, READ_BYTES, POLL)
                .map_err(Error::log(attempted))?;
            for record in batch.iter() {
                if record.key() == Some(self.key.as_bytes()) {
                    moving = record.value().map(|value| self.json_of(value)).transpose()?;
                } else if record.key() == Some(self.static_key.as_bytes()) {
                    static_part = record.value().map(|value| self.json_of(value)).transpose()?;
                } else if record.key() == Some(self.desired_key.as_bytes()) {
                    desired = record.value().map(|value| self.json_of(value)).transpose()?;
                }
            }
            if started.elapsed() > FORGOTTEN_AFTER && !aborted {
                aborted = true;
                tracing::warn!(key = %self.key, topic = %self.partition.topic, "open transaction blocks the positions topic, aborting it");
                self.abort_forgotten(producer).map_err(Error::log(attempted))?;
            }
            if started.elapsed() > READ_LIMIT {
                let reason = format!(
                    "an open transaction of a connector has blocked topic {} for {} s; stop that connector or wait for its transaction timeout",
                    self.partition.topic,
                    READ_LIMIT.as_secs()
                );
                return Err(Error::log(attempted)(event_log::Error::Unavailable {
                    attempted: attempted.to_owned(),
                    reason,
                }));
            }
        }
        let stored = moving.map(|moving| Stored { moving, static_part });
        self.static_revision = stored.as_ref().and_then(Stored::static_revision);
        Ok(Found { stored, desired })
    }

    /// Begins a transaction in the positions partition and aborts it.
    fn abort_forgotten(&mut self, producer: &mut dyn TransactionalProducer) -> event_log::Result<()> {
        self.value.clear();
        self.batch.clear();
        self.push_record(RecordKind::Moving);
        producer.begin()?;
        producer.send(&self.batch)?;
        // Without a record in the partition, the abort would write no control record there.
        producer.flush()?;
        producer.abort()
    }

    fn json_of(&self, value: &[u8]) -> Result<String> {
        let stored = ConnectorPosition::read(value).map_err(|error| Error::Rejected {
            reason: format!("cannot read the stored position with key {}: {error}", self.key),
            fix: String::from("run the trunkline version that wrote it, or resync the connector"),
        })?;
        Ok(stored.position.to_owned())
    }

    /// Returns a batch with the records of a position and of the desired state, if given: the static record if it has
    /// changed, the moving record, the desired state.
    pub(super) fn records<P: Position>(&mut self, position: Option<&P>, desired: Option<&DesiredState>) -> &OutBatch {
        self.batch.clear();
        if let Some(position) = position {
            let complete = position.complete();
            if let Some(part) = position.static_part()
                && self.static_revision.as_deref() != Some(part.revision)
            {
                self.encode(part.json, &complete);
                self.push_record(RecordKind::Static);
                self.static_revision = Some(part.revision.to_owned());
            }
            self.encode(&position.to_json(), &complete);
            self.push_record(RecordKind::Moving);
        }
        if let Some(desired) = desired {
            self.encode(&desired.to_json(), "");
            self.push_record(RecordKind::Desired);
        }
        &self.batch
    }

    fn encode(&mut self, json: &str, complete: &str) {
        let record = ConnectorPosition {
            position: json,
            complete,
            updated_at: self.clock.now_ms(),
        };
        self.value.clear();
        record.write(self.schema, &mut self.value);
    }

    /// Appends a record with the encoded value to the batch.
    fn push_record(&mut self, kind: RecordKind) {
        let key = match kind {
            RecordKind::Moving => &self.key,
            RecordKind::Static => &self.static_key,
            RecordKind::Desired => &self.desired_key,
        };
        self.batch.push(
            OutRecord {
                topic: &self.partition.topic,
                partition: Some(0),
                timestamp: None,
                key: Some(key.as_bytes()),
                value: Some(self.value.as_slice()),
            },
            std::iter::empty(),
        );
    }
}

/// Kind of record of a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordKind {
    Moving,
    Static,
    Desired,
}
