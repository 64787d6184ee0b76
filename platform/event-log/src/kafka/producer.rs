//! The idempotent producer without transactions on Kafka.
//!
//! A flush succeeds only if every record is known to be written. Records of one partition are written in order and
//! without gaps: after the first record that fails, no further record is written. After a failed flush the producer is
//! unusable.

use super::client::{ClientError, Code};
use super::config::Config;
use super::producer_client::ProducerClient;
use super::{errors, settings};
use crate::{Error, OutBatch, Produced, Producer, Result};
use std::time::Duration;

/// An idempotent producer.
#[derive(Debug)]
pub struct KafkaProducer {
    producer: ProducerClient,
    limit: Duration,
    /// Number of the flush, from 1. Tags the delivery reports of its records.
    round: usize,
}

impl KafkaProducer {
    /// Starts a producer.
    pub fn open(config: &Config) -> Result<KafkaProducer> {
        let producer = ProducerClient::new(&settings::producer(config), config.request_timeout)?;
        producer.watch(1);
        Ok(KafkaProducer {
            producer,
            limit: config.request_timeout,
            round: 1,
        })
    }

    fn error(&self, attempted: &str, found: &ClientError) -> Error {
        let mut found = found.clone();
        found.text = self.producer.handle().connectivity().explain(&found.text);
        errors::request_error(attempted, &found)
    }
}

impl Producer for KafkaProducer {
    fn send(&mut self, records: &OutBatch) -> Result<()> {
        failpoint::hit("log.append.before");
        let sent = self.producer.send(records, self.round, self.limit);
        if sent.is_err()
            && let Some(fatal) = self.producer.handle().fatal()
        {
            return Err(self.error("append", &fatal));
        }
        sent?;
        failpoint::hit("log.append.after");
        Ok(())
    }

    fn flush(&mut self) -> Result<Vec<Produced>> {
        let flushed = self.producer.handle().flush(self.limit);
        let unproven = self.producer.has_unproven(self.round);
        let produced = self.producer.collect(self.round);
        if let Some(fatal) = self.producer.handle().fatal() {
            // The error of the first failed record explains more than the fatal error that it caused.
            return produced.and(Err(self.error("append", &fatal)));
        }
        flushed.map_err(|found| self.error("append", &found))?;
        if unproven {
            let found = ClientError::new(Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER);
            return produced.and(Err(self.error("append", &found)));
        }
        self.round += 1;
        self.producer.watch(self.round);
        produced
    }
}
