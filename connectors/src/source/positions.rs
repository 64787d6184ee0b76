//! `connect.positions`: where each connector stands.
//!
//! Guarantees: the position that is read is the newest that was committed before the session was opened: reading goes
//! up to the topic's raw end as it then was, which waits out a dead peer's open transaction.
//! Never: a write outside the session's transaction.

use super::{Context, Position, register};
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

/// The topic of all connectors' positions: one partition, compacted.
pub const POSITIONS_TOPIC: &str = "connect.positions";

/// Longer than any transaction of a connector lasts (10 s, and the broker looks every 10 s), so that one that still holds
/// the topic back was forgotten.
const HELD_BACK: Duration = Duration::from_secs(25);
/// How long the topic may be held back, by whomever, before the connector says so.
const READ_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 1 << 20;

/// The topic, to be created.
pub fn positions_spec() -> TopicSpec {
    TopicSpec {
        name: String::from(POSITIONS_TOPIC),
        partitions: 1,
        replication: None,
        config: TopicConfig::new(Cleanup::Compact),
    }
}

/// One connector's place in the topic.
pub(super) struct Positions {
    log: event_log::SharedEventLog,
    clock: SharedClock,
    at: TopicPartition,
    key: Key,
    schema: SchemaId,
    value: Vec<u8>,
    batch: OutBatch,
}

impl Positions {
    /// Makes sure of the topic and of the record's schema.
    pub(super) fn open(context: &Context) -> Result<Self> {
        context
            .log
            .create_topics(&[positions_spec()])
            .map_err(Error::log("create connect.positions"))?;
        let subject = ConnectorPosition::subject(POSITIONS_TOPIC);
        let registering = register(&context.registry, subject, ConnectorPosition::AVSC.to_owned());
        let schema = context.runtime.block_on(registering)?;
        Ok(Positions {
            log: Arc::clone(&context.log),
            clock: Arc::clone(&context.clock),
            at: TopicPartition::new(POSITIONS_TOPIC, 0),
            key: Key::of(&[&context.name]),
            schema,
            value: Vec::new(),
            batch: OutBatch::default(),
        })
    }

    /// Reads the stored position: its JSON, or nothing.
    ///
    /// A transaction of this connector that holds the reader back although the session is new was forgotten by its
    /// broker, as a lone one may that stops under load. The next transaction of the same producer ends it, so one that is
    /// aborted does: what was in it is read and published again, and nothing is lost.
    pub(super) fn read(&mut self, session: &mut dyn TransactionalProducer) -> Result<Option<String>> {
        let attempted = "read the stored position";
        let end = self
            .log
            .offset(&self.at, OffsetSpec::LogEnd)
            .map_err(Error::log(attempted))?;
        let mut reader = self
            .log
            .reader(Isolation::ReadCommitted)
            .map_err(Error::log(attempted))?;
        reader
            .assign(&[(self.at.clone(), StartFrom::Earliest)])
            .map_err(Error::log(attempted))?;
        let (began, mut ended_by_us) = (Instant::now(), false);
        let mut batch = RecordBatch::default();
        let mut found = None;
        // The end counts control records, and the reader's position does too once it has passed them.
        while end > 0 && reader.position(&self.at).is_none_or(|position| position < end) {
            reader
                .poll(&mut batch, READ_BYTES, POLL)
                .map_err(Error::log(attempted))?;
            for record in batch.iter().filter(|record| record.key() == Some(self.key.as_bytes())) {
                found = record.value().map(|value| self.json_of(value)).transpose()?;
            }
            if began.elapsed() > HELD_BACK && !ended_by_us {
                ended_by_us = true;
                tracing::warn!(key = %self.key, "a transaction holds {POSITIONS_TOPIC} back; ending it, if it is this connector's own");
                self.end_forgotten(session).map_err(Error::log(attempted))?;
            }
            if began.elapsed() > READ_LIMIT {
                let reason = format!(
                    "a transaction has held {POSITIONS_TOPIC} back for {} s",
                    READ_LIMIT.as_secs()
                );
                return Err(Error::log(attempted)(event_log::Error::Unavailable {
                    attempted: attempted.to_owned(),
                    reason,
                }));
            }
        }
        Ok(found)
    }

    /// Begins a transaction in the positions' partition and aborts it.
    fn end_forgotten(&mut self, session: &mut dyn TransactionalProducer) -> event_log::Result<()> {
        self.value.clear();
        self.put_record();
        session.begin()?;
        session.send(&self.batch)?;
        // Without a written record there would be nothing to abort, and no mark.
        session.flush()?;
        session.abort()
    }

    fn json_of(&self, value: &[u8]) -> Result<String> {
        let stored = ConnectorPosition::read(value).map_err(|error| Error::Refused {
            reason: format!("the stored position of {} cannot be read: {error}", self.key),
            next: String::from("run the version of trunkline that wrote it, or resync the connector"),
        })?;
        Ok(stored.position.to_owned())
    }

    /// The record of a position.
    pub(super) fn record<P: Position>(&mut self, position: &P) -> &OutBatch {
        let (json, complete) = (position.to_json(), position.complete());
        let record = ConnectorPosition {
            position: &json,
            complete: &complete,
            updated_at: self.clock.now_ms(),
        };
        self.value.clear();
        record.write(self.schema, &mut self.value);
        self.put_record();
        &self.batch
    }

    /// Makes the batch the one record of what `value` holds.
    fn put_record(&mut self) {
        self.batch.clear();
        let (key, value) = (Some(self.key.as_bytes()), Some(self.value.as_slice()));
        self.batch.push(
            OutRecord {
                topic: &self.at.topic,
                partition: Some(0),
                timestamp: None,
                key,
                value,
            },
            std::iter::empty(),
        );
    }
}
