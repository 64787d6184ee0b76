//! The event topic of the simulation, where each record is a source transaction.

use super::EVENTS;
use super::row::{Rows, Value, any_value, framed, poisoned, replayed, tx_header, unframed};
use event_log::{Offset, RecordBatch, RecordRef, TopicPartition};
use schemas::headers::{self, Tx};
use schemas::version::Lsn;
use streams_test::simulation::{Broker, Rng, Row, batch_of};

/// The event topic.
#[derive(Default)]
pub struct Events {
    dead: Vec<(TopicPartition, Row)>,
}

impl Events {
    /// Number of keys.
    pub const KEYS: usize = 4;

    /// Writes an event with a random key; the event may become a dead letter.
    pub fn emit(&mut self, broker: &mut Broker, rng: &mut Rng) {
        let (at, row) = event(rng.below(Self::KEYS), any_value(rng));
        if !rng.chance(0.05) || row.value.is_none() {
            broker.append(&at, [row]);
            return;
        }
        broker.note("dead event");
        let offset = broker.append(&at, [poisoned(row.clone(), rng)]);
        let tx = Tx {
            source_epoch: 1,
            position: Lsn(u64::try_from(offset).unwrap_or_default()),
            ordinal: 0,
            last: true,
            at_ms: 0,
        };
        // The original offset of a redriven event is in its `tx`, or in the headers of the dead letter.
        let headers = if rng.chance(0.5) {
            vec![tx_header(&tx)]
        } else {
            let headers = [
                (headers::errors::TOPIC, at.topic.to_string()),
                (headers::errors::OFFSET, offset.to_string()),
            ];
            headers
                .map(|(name, value)| (name.to_owned(), Some(value.into_bytes())))
                .to_vec()
        };
        let row = Row { headers, ..row };
        self.dead.push((at, replayed(row, headers::REDRIVE)));
    }

    /// Redrives a dead letter.
    pub fn redrive(&mut self, broker: &mut Broker, rng: &mut Rng) {
        if !self.dead.is_empty() {
            let (at, row) = self.dead.remove(rng.below(self.dead.len()));
            broker.note("redriven event");
            broker.append(&at, [row]);
        }
    }

    /// Writes a new event for every key, which clears all staleness.
    pub fn rewrite_all(broker: &mut Broker) {
        let value = Value {
            bucket: Some('a'),
            number: 1,
            note: 0,
        };
        for key in 0..Self::KEYS {
            let (at, row) = event(key, Some(value));
            broker.append(&at, [row]);
        }
    }
}

/// An event in the partition of its key.
fn event(key: usize, value: Option<Value>) -> (TopicPartition, Row) {
    let at = TopicPartition::new(EVENTS, i32::try_from(key % 2).unwrap());
    (
        at,
        Row::new(format!("[{key}]"), value.map(|value| framed(value, false))),
    )
}

/// The end of a source transaction, as a transaction end marker states it. `at_ms` is the commit time; that of a table's
/// marker contains the place of its source.
pub struct TransactionPlace {
    pub at_ms: i64,
    pub position: u64,
}

/// The newest event of each key of a partition, up to the end of a transaction. A redriven event counts at its original
/// offset, which is also the position of its end marker, but that marker makes everything before the redriven record
/// visible. The redriven record is therefore found by the position and the timestamp.
pub fn rows_at(broker: &mut Broker, partition: i64, end: &TransactionPlace) -> Rows {
    let TransactionPlace { at_ms, position } = *end;
    let at = TopicPartition::new(EVENTS, i32::try_from(partition).unwrap_or_default());
    let records = broker.part(&at).history(0);
    let batch: RecordBatch = batch_of(&at, &records);
    let mut rows = Rows::new();
    let is_end = |record: &RecordRef<'_>| redriven_from(record) == Some(position) && record.timestamp() == at_ms;
    let through = batch.iter().find(is_end).map(|record| record.offset());
    let through = through.unwrap_or(Offset::try_from(position).unwrap_or(Offset::MAX));
    for record in batch
        .iter()
        .filter(|r| r.offset() <= through && r.header(headers::REPLAYED).is_none())
    {
        let key = std::str::from_utf8(record.key().unwrap_or_default()).unwrap_or_default();
        let key: i64 = key.trim_matches(['[', ']']).parse().unwrap_or_default();
        match record.value().map(unframed) {
            Some(value) => drop::<Option<Value>>(rows.insert(key, value)),
            None => drop(rows.remove(&key)),
        }
    }
    rows
}

/// The original offset of a redriven event, which is in its `tx` or in the headers of its dead letter.
fn redriven_from(record: &RecordRef<'_>) -> Option<u64> {
    record.header(headers::REPLAYED)?;
    match record.header(headers::TX) {
        Some(tx) => Some(Tx::parse(tx).ok()?.position.0),
        None => std::str::from_utf8(record.header(headers::errors::OFFSET)?)
            .ok()?
            .parse()
            .ok(),
    }
}
