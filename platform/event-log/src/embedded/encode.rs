//! Encodes a batch of records into blocks: selects the partition of each record and checks the limits of its topic.
//!
//! Either all records of the batch are accepted or none, with one exception as in Kafka: if a record in a compacted
//! topic has no key, only the block that contains it is rejected. Blocks get their offsets when they are written.

use super::block::Builder;
use super::broker::Broker;
use super::format::PartId;
use super::state::{Topic, unknown};
use super::write::Draft;
use crate::{Error, Header, Millis, OutBatch, OutRecord, Result, TopicPartition, partitioner};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A block is complete when it has this size.
const BLOCK_BYTES: usize = 256 * 1024;
/// Overhead of a record in Kafka's format, counted against `max.message.bytes`.
const RECORD_BYTES: usize = 70;

struct Encoder<'b> {
    broker: &'b Broker,
    now: Millis,
    /// The topics of the batch; most batches have few.
    topics: Vec<Arc<Topic>>,
    drafts: Vec<Draft>,
    /// Index of the draft that receives a partition's next record.
    current: HashMap<PartId, usize>,
    /// Drafts with a rejected record, and the first error.
    rejected: (BTreeSet<usize>, Option<Error>),
    /// Partition number for records without a key and partition: the same for the whole batch, like Kafka's sticky
    /// partitioner.
    sticky: Option<u64>,
}

/// An encoded batch.
pub(super) struct Encoded {
    pub drafts: Vec<Draft>,
    /// Why some records were rejected.
    pub rejected: Option<Error>,
}

/// Encodes a batch.
///
/// # Errors
/// [`Error::UnknownTopic`], [`Error::TooLarge`], and [`Error::Rejected`] for an invalid timestamp.
pub(super) fn encode(broker: &Broker, records: &OutBatch) -> Result<Encoded> {
    let mut encoder = Encoder {
        broker,
        now: broker.now(),
        topics: Vec::new(),
        drafts: Vec::new(),
        current: HashMap::new(),
        rejected: (BTreeSet::new(), None),
        sticky: None,
    };
    for (record, headers) in records.iter() {
        encoder.push(record, headers)?;
    }
    let (rejected, error) = encoder.rejected;
    let drafts = encoder.drafts.into_iter().enumerate();
    let taken = drafts.filter(|(index, _)| !rejected.contains(index));
    Ok(Encoded {
        drafts: taken.map(|(_, draft)| draft).collect(),
        rejected: error,
    })
}

impl Encoder<'_> {
    fn push<'h>(&mut self, record: OutRecord<'_>, headers: impl Iterator<Item = Header<'h>>) -> Result<()> {
        let topic = self.topic(record.topic)?;
        let partition = match (record.partition, record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partitioner::partition(key, count(&topic)),
            (None, None) => self.sticky(&topic),
        };
        let part = topic
            .part(partition)
            .ok_or_else(|| unknown(&TopicPartition::new(topic.name.clone(), partition).to_string()))?;
        let timestamp = record.timestamp.unwrap_or(self.now);
        let rules = &topic.rules;
        let too_new = timestamp.saturating_sub(self.now) > rules.timestamp_ahead_max;
        let too_old = self.now.saturating_sub(timestamp) > rules.timestamp_behind_max;
        if !rules.log_append && (too_new || too_old) {
            let setting = if too_new {
                "message.timestamp.after.max.ms"
            } else {
                "message.timestamp.before.max.ms"
            };
            return Err(Error::Rejected {
                attempted: format!("write a record to topic {}", topic.name),
                reason: format!("its timestamp {timestamp} violates {setting} of the topic"),
            });
        }
        let bytes_max = rules.message_bytes_max;
        let index = self.draft(&topic, part);
        if rules.compacts && record.key.is_none() {
            self.rejected.0.insert(index);
            self.rejected.1.get_or_insert_with(|| Error::Rejected {
                attempted: format!("write a record to topic {}", topic.name),
                reason: "the topic is compacted and the record has no key; set a key".to_owned(),
            });
        }
        let block = &mut self.drafts.get_mut(index).expect("drafts are only added").block;
        let before = block.byte_len();
        block.push(timestamp, record.key, record.value, headers);
        let bytes = block.byte_len() - before + RECORD_BYTES;
        if bytes > bytes_max {
            return Err(Error::TooLarge {
                topic: topic.name.to_string(),
                bytes,
                limit: bytes_max,
            });
        }
        Ok(())
    }

    fn topic(&mut self, name: &Arc<str>) -> Result<Arc<Topic>> {
        let same = |topic: &&Arc<Topic>| Arc::ptr_eq(&topic.name, name) || topic.name == *name;
        if let Some(topic) = self.topics.iter().find(same) {
            return Ok(topic.clone());
        }
        let topic = self.broker.state().topic(name)?.clone();
        self.topics.push(topic.clone());
        Ok(topic)
    }

    fn sticky(&mut self, topic: &Topic) -> i32 {
        let broker = self.broker;
        let turn = *self.sticky.get_or_insert_with(|| broker.state().number());
        let partition = turn % u64::from(topic.partitions.max(1));
        i32::try_from(partition).expect("partition counts are i32")
    }

    /// Returns the index of the draft for a partition's next record.
    fn draft(&mut self, topic: &Arc<Topic>, part: PartId) -> usize {
        if let Some(index) = self.current.get(&part)
            && self
                .drafts
                .get(*index)
                .is_some_and(|draft| draft.block.byte_len() < BLOCK_BYTES)
        {
            return *index;
        }
        self.drafts.push(Draft {
            topic: topic.clone(),
            part,
            block: Builder::new(),
        });
        let index = self.drafts.len() - 1;
        self.current.insert(part, index);
        index
    }
}

fn count(topic: &Topic) -> i32 {
    i32::try_from(topic.partitions).expect("partition counts are i32")
}
