//! A reader of explicitly assigned partitions of the embedded log.

use super::broker::Broker;
use super::fetch::Fetcher;
use super::signal::until;
use crate::{Isolation, Millis, Offset, Reader, RecordBatch, Result, StartFrom, TopicPartition};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct EmbeddedReader(Fetcher);

impl EmbeddedReader {
    pub fn open(broker: Arc<Broker>, isolation: Isolation) -> Self {
        EmbeddedReader(Fetcher::new(broker, isolation))
    }
}

impl Reader for EmbeddedReader {
    fn assign(&mut self, partitions: &[(TopicPartition, StartFrom)]) -> Result<()> {
        self.0.stop_all();
        partitions.iter().try_for_each(|(at, from)| self.0.start(at, *from))
    }

    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<usize> {
        batch.clear();
        let until = until(timeout);
        loop {
            self.0.fill(batch, max_bytes)?;
            if !batch.is_empty() || !self.0.wait(until, |_| None, |_| false) {
                return Ok(batch.len());
            }
        }
    }

    fn position(&self, at: &TopicPartition) -> Option<Offset> {
        self.0.cursor(at).map(|cursor| cursor.position)
    }

    fn at_end(&self, at: &TopicPartition) -> Option<Millis> {
        self.0.cursor(at)?.at_end
    }
}
