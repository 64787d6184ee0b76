//! Appends records with the headers of source records, and replaces records that cannot be published.
//!
//! A record that is too large for the topic, or a row that cannot be encoded, is replaced by a dead letter and a
//! *missing* record. The missing record informs readers that a change is missing in this row, or in an unknown row of
//! the table.

use event_log::{Header, OutBatch, OutRecord};
use schemas::headers::{self, Tx, errors};
use schemas::key::KeyWriter;
use std::sync::Arc;
use topology::Names;

/// Bytes reserved for headers and for the overhead of a record and its batch.
const OVERHEAD_BYTES: usize = 1_024;
/// Maximum length of a reason in a header, in bytes.
const REASON_BYTES_MAX: usize = 2_000;
/// Maximum size of a key in a missing record. For a larger key, the missing record applies to the whole table.
const KEY_BYTES_MAX: usize = 32 << 10;
/// First element of the key of a missing record.
const MISSING: &str = "~missing";

/// The content of a record.
#[derive(Debug)]
pub(super) struct Published<'a> {
    pub(super) table: &'a str,
    pub(super) key: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
    /// An additional header.
    pub(super) header: Option<(&'static str, &'a [u8])>,
}

/// A change that is not published.
#[derive(Debug, Clone, Copy)]
pub(super) struct Missing<'a> {
    pub(super) table: &'a str,
    /// The key of the row; empty if any row of the table may lack changes.
    pub(super) key: &'a [u8],
    pub(super) reason: &'a str,
    stage: &'static str,
    class: &'static str,
}

impl<'a> Missing<'a> {
    /// A missing change for which the row is unknown: any row of the table may lack changes.
    pub(super) fn of_table(table: &'a str, reason: &'a str) -> Self {
        Missing {
            table,
            key: &[],
            reason,
            stage: "VALUE_CONVERTER",
            class: "Unpublishable",
        }
    }

    /// A missing change of the row with this key; with an empty key, of the table.
    pub(super) fn of_row(table: &'a str, key: &'a [u8], reason: &'a str) -> Self {
        Missing {
            key,
            ..Missing::of_table(table, reason)
        }
    }
}

/// Appends records with the headers that every source record has.
#[derive(Debug)]
pub(super) struct Emitter {
    connector: Arc<str>,
    topic: Arc<str>,
    dead_letter_topic: Arc<str>,
    /// `max.message.bytes` of the topic.
    limit_bytes: usize,
    header: Vec<u8>,
    key: Vec<u8>,
    dead_letters: u64,
}

impl Emitter {
    pub(super) fn new(connector: Arc<str>, topic: Arc<str>, limit_bytes: usize) -> Self {
        Emitter {
            connector,
            dead_letter_topic: Names::dead_letters(&topic).into(),
            topic,
            limit_bytes,
            header: Vec::new(),
            key: Vec::new(),
            dead_letters: 0,
        }
    }

    /// Number of dead letters since the last call.
    pub(super) fn take_dead_letters(&mut self) -> u64 {
        std::mem::take(&mut self.dead_letters)
    }

    /// Appends one record, or a dead letter if it is too large.
    pub(super) fn emit(&mut self, tx: &Tx, row: &Published<'_>, out: &mut OutBatch) {
        let header_bytes = row.header.map_or(0, |(name, value)| name.len() + value.len());
        let bytes = row.key.len() + row.value.map_or(0, <[u8]>::len) + header_bytes + row.table.len() + OVERHEAD_BYTES;
        if bytes > self.limit_bytes {
            let reason = format!(
                "the record has {bytes} bytes with its headers, but topic {} has max.message.bytes = {}",
                self.topic, self.limit_bytes
            );
            let missing = Missing {
                key: row.key,
                stage: "KAFKA_PRODUCE",
                class: "TooLarge",
                ..Missing::of_table(row.table, &reason)
            };
            return self.dead_letter(tx, &missing, out);
        }
        self.write_tx(tx);
        let record = OutRecord {
            topic: &self.topic,
            partition: Some(0),
            timestamp: Some(tx.at_ms),
            key: Some(row.key),
            value: row.value,
        };
        let names = [
            (headers::TABLE, Some(row.table.as_bytes())),
            (headers::TX, Some(self.header.as_slice())),
        ];
        let extra = row.header.map(|(name, value)| (name, Some(value)));
        out.push(record, names.into_iter().chain(extra));
    }

    /// Appends a missing record.
    pub(super) fn missing(&mut self, tx: &Tx, missing: &Missing<'_>, out: &mut OutBatch) {
        self.write_tx(tx);
        self.write_key(missing);
        let reason = cut(missing.reason);
        let record = OutRecord {
            topic: &self.topic,
            partition: Some(0),
            timestamp: Some(tx.at_ms).filter(|at_ms| *at_ms > 0),
            key: Some(&self.key),
            value: None,
        };
        out.push(record, self.headers(missing, reason));
    }

    /// Appends a missing record, and writes a copy of it with the error to the dead-letter topic. The row itself cannot
    /// be copied, because it cannot be encoded or is too large.
    pub(super) fn dead_letter(&mut self, tx: &Tx, missing: &Missing<'_>, out: &mut OutBatch) {
        self.missing(tx, missing, out);
        self.dead_letters += 1;
        let reason = cut(missing.reason);
        tracing::warn!(connector = %self.connector, table = missing.table, topic = %self.dead_letter_topic, "row is a dead letter");
        let record = OutRecord {
            topic: &self.dead_letter_topic,
            partition: Some(0),
            timestamp: None,
            key: Some(&self.key),
            value: None,
        };
        let error: [Header<'_>; 8] = [
            (errors::TOPIC, Some(self.topic.as_bytes())),
            (errors::PARTITION, Some(b"0")),
            (errors::CONNECTOR_NAME, Some(self.connector.as_bytes())),
            (errors::TASK_ID, Some(b"0")),
            (errors::STAGE, Some(missing.stage.as_bytes())),
            (errors::CLASS_NAME, Some(b"postgres")),
            (errors::EXCEPTION_CLASS_NAME, Some(missing.class.as_bytes())),
            (errors::EXCEPTION_MESSAGE, Some(reason.as_bytes())),
        ];
        out.push(record, self.headers(missing, reason).into_iter().chain(error));
    }

    fn headers<'h>(&'h self, missing: &Missing<'h>, reason: &'h str) -> [Header<'h>; 3] {
        [
            (headers::TABLE, Some(missing.table.as_bytes())),
            (headers::TX, Some(self.header.as_slice())),
            (headers::MISSING, Some(reason.as_bytes())),
        ]
    }

    fn write_tx(&mut self, tx: &Tx) {
        self.header.clear();
        tx.write(&mut self.header);
    }

    /// Writes `["~missing","orders","17"]`, or `["~missing","orders"]` for the table.
    fn write_key(&mut self, missing: &Missing<'_>) {
        self.key.clear();
        match missing.key.strip_prefix(b"[") {
            Some(rest) if missing.key.len() <= KEY_BYTES_MAX => {
                self.key.extend_from_slice(b"[\"");
                self.key.extend_from_slice(MISSING.as_bytes());
                self.key.extend_from_slice(b"\",");
                self.key.extend_from_slice(rest);
            }
            _ => KeyWriter::new(&mut self.key).str(MISSING).str(missing.table).finish(),
        }
    }
}

/// Returns a prefix of a reason, at most [`REASON_BYTES_MAX`] long.
fn cut(reason: &str) -> &str {
    match reason
        .char_indices()
        .find(|(at, c)| at + c.len_utf8() > REASON_BYTES_MAX)
    {
        Some((at, _)) => reason.get(..at).unwrap_or_default(),
        None => reason,
    }
}
