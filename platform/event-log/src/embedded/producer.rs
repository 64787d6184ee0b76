//! The producer without transactions of the embedded log. Records are durable when `send` returns.

use super::broker::Broker;
use super::encode::encode;
use crate::{OutBatch, Produced, Producer, Result, TopicPartition};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

pub(super) struct EmbeddedProducer {
    broker: Arc<Broker>,
    produced: BTreeMap<TopicPartition, Produced>,
}

impl EmbeddedProducer {
    pub fn open(broker: Arc<Broker>) -> Self {
        EmbeddedProducer {
            broker,
            produced: BTreeMap::new(),
        }
    }
}

impl Producer for EmbeddedProducer {
    fn send(&mut self, records: &OutBatch) -> Result<()> {
        failpoint::hit("log.append.before");
        let encoded = encode(&self.broker, records)?;
        let produced = self.broker.append(encoded.drafts, None)?;
        failpoint::hit("log.append.after");
        for here in produced {
            match self.produced.entry(here.at.clone()) {
                Entry::Vacant(vacant) => drop(vacant.insert(here)),
                Entry::Occupied(mut known) => {
                    let first_offset = known.get().first_offset;
                    known.insert(Produced { first_offset, ..here });
                }
            }
        }
        encoded.rejected.map_or(Ok(()), Err)
    }

    fn flush(&mut self) -> Result<Vec<Produced>> {
        Ok(std::mem::take(&mut self.produced).into_values().collect())
    }
}
