//! The connection of one simulated process to the broker. Each request first yields to the scheduler.

use super::broker::Broker;
use super::partition::Row;
use super::protocol::{BrokerError, BrokerResult};
use super::scheduler::Scheduler;
use event_log::{Error, OutBatch, Result, TopicPartition};
use std::sync::{Arc, MutexGuard};

/// The connection of one process.
#[derive(Clone)]
pub(super) struct Connection {
    pub scheduler: Arc<Scheduler>,
    pub process: usize,
}

impl Connection {
    /// Accesses the broker directly, without a simulated request.
    pub(super) fn broker(&self) -> MutexGuard<'_, Broker> {
        self.scheduler.broker()
    }

    /// Yields to other processes.
    pub(super) fn yield_now(&self) {
        self.scheduler.yield_now(self.process);
    }

    /// Sends a request, and retries it on [`BrokerError::Retry`].
    pub(super) fn call<T: 'static>(
        &self,
        request: impl Fn(&mut Broker) -> BrokerResult<T> + Send + Clone + 'static,
    ) -> BrokerResult<T> {
        loop {
            self.yield_now();
            match self.broker().request(request.clone()) {
                Err(BrokerError::Retry) => {}
                answer => return answer,
            }
        }
    }

    pub(super) fn init(&self, id: &str) -> Result<i32> {
        let id = id.to_owned();
        self.call(move |broker| broker.init(&id))
            .map_err(|_| unavailable("init"))
    }
}

pub(super) fn unavailable(what: &str) -> Error {
    Error::Unavailable {
        attempted: what.to_owned(),
        reason: "simulated".to_owned(),
    }
}

/// Rows of a batch by partition, in the order of first use.
pub(super) fn rows_of(records: &OutBatch) -> Vec<(TopicPartition, Row)> {
    let rows = records.iter().map(|(record, headers)| {
        let at = TopicPartition {
            topic: record.topic.clone(),
            partition: record.partition.expect("simulated applications choose partitions"),
        };
        let headers = headers.map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)));
        let row = Row {
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: headers.collect(),
        };
        (at, row)
    });
    rows.collect()
}
