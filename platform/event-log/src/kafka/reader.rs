//! A reader of explicitly assigned partitions on Kafka, without a group or coordinator.
//!
//! Positions advance over control records and aborted records because librdkafka reports the end of each fetched range
//! (`enable.partition.eof`). [`StartFrom::LogEnd`] is resolved when partitions are assigned.

use super::client::admin::{Admin, END, PendingOffsets, START};
use super::client::list::List;
use super::client::{ClientKind, Code, Handle, Queue, Waker};
use super::config::Config;
use super::fetcher::{ErrorReports, Fetcher, now};
use super::{errors, settings};
use crate::{Error, Isolation, Millis, Offset, Reader, RecordBatch, Result, StartFrom, TopicPartition};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A reader.
#[derive(Debug)]
pub struct KafkaReader {
    fetcher: Fetcher,
    events: Queue,
    isolation: Isolation,
    request_timeout: Duration,
    /// When the ends were last requested, by the monotonic and by the wall clock, and the pending result.
    proof: (Instant, Millis, Option<PendingOffsets>),
}

/// Interval for refreshing `at_end` while the reader is at an end.
const REFRESH_INTERVAL: Duration = Duration::from_millis(500);

impl KafkaReader {
    /// Creates a reader without partitions.
    pub fn open(config: &Config, isolation: Isolation) -> Result<KafkaReader> {
        let handle =
            Handle::new(ClientKind::Consumer, &settings::reader(config, isolation)).map_err(errors::setting_error)?;
        let fetcher = Fetcher::new(&handle, Arc::new(Waker::default()), ErrorReports::Repeated);
        let events = Queue::main(&handle);
        Ok(KafkaReader {
            fetcher,
            events,
            isolation,
            request_timeout: config.request_timeout,
            proof: (Instant::now(), now(), None),
        })
    }

    fn stop_all(&mut self) -> Result<()> {
        let reading: Vec<_> = self.fetcher.states().iter().map(|state| state.at.clone()).collect();
        // All are stopped even if one fails: a partition that stays started keeps librdkafka's handle in use.
        let stopped = reading.iter().map(|at| {
            let stopped = self.fetcher.topic(&at.topic)?.stop(at.partition);
            stopped.map_err(|found| errors::topic_error(&at.topic, format!("stop reading {at}"), &found))
        });
        let stopped = stopped.fold(Ok(()), Result::and);
        stopped.and(self.fetcher.replace(std::iter::empty()))
    }

    /// Looks up the start offsets of partitions that start at the earliest offset or the end.
    fn resolve(&self, partitions: &[(TopicPartition, StartFrom)]) -> Result<BTreeMap<TopicPartition, Offset>> {
        let special: Vec<_> = partitions
            .iter()
            .filter_map(|(at, from)| Some((at, special_offset(*from)?)))
            .collect();
        if special.is_empty() {
            return Ok(BTreeMap::new());
        }
        let admin = Admin::new(self.fetcher.handle(), self.request_timeout);
        let wanted = List::of(special.into_iter());
        let attempted = "look up where to read";
        let entries = admin.offsets(&wanted, self.isolation).map_err(|mut found| {
            found.text = self.fetcher.handle().connectivity().explain(&found.text);
            errors::request_error(attempted, &found)
        })?;
        let found = entries
            .into_iter()
            .map(|entry| match super::client::ClientError::check(entry.code) {
                Ok(()) => Ok((entry.at, entry.offset)),
                Err(found) => Err(errors::topic_error(&entry.at.topic, attempted, &found)),
            });
        found.collect()
    }

    /// Refreshes [`Reader::at_end`] while no records arrive. librdkafka reports an end only once, so the reader
    /// requests the current end. If its position is not below that end, it had read everything at the time of the
    /// request.
    fn refresh_at_end(&mut self) {
        let (requested_at, millis, request) = &mut self.proof;
        if let Some(answer) = request.as_ref().and_then(|request| request.answer(Duration::ZERO)) {
            *request = None;
            for end in answer.unwrap_or_default() {
                let seen = end.code == Code::RD_KAFKA_RESP_ERR_NO_ERROR;
                if let Some(state) = self
                    .fetcher
                    .state(&end.at)
                    .filter(|state| seen && state.position >= Some(end.offset))
                {
                    state.at_end = state.at_end.max(Some(*millis));
                }
            }
        }
        if request.is_some() || requested_at.elapsed() < REFRESH_INTERVAL {
            return;
        }
        let caught_up: Vec<_> = self
            .fetcher
            .states()
            .iter()
            .filter(|state| state.at_end.is_some())
            .collect();
        (*requested_at, *millis) = (Instant::now(), now());
        if !caught_up.is_empty() {
            let admin = Admin::new(self.fetcher.handle(), Duration::from_secs(5));
            let ends = List::of(caught_up.into_iter().map(|state| (&state.at, END)));
            *request = admin.request_offsets(&ends, self.isolation).ok();
        }
    }

    /// Fails if a topic or partition does not exist.
    fn check_exist(&mut self, partitions: &[(TopicPartition, StartFrom)]) -> Result<()> {
        let timeout = self.request_timeout;
        let mut counts: BTreeMap<Arc<str>, i32> = BTreeMap::new();
        for (at, _) in partitions {
            if !counts.contains_key(&at.topic) {
                let count = self
                    .fetcher
                    .topic(&at.topic)?
                    .partitions(timeout)
                    .map_err(|mut found| {
                        found.text = self.fetcher.handle().connectivity().explain(&found.text);
                        errors::topic_error(&at.topic, format!("look up topic {}", at.topic), &found)
                    })?;
                counts.insert(at.topic.clone(), count);
            }
            if at.partition < 0 || counts.get(&at.topic).is_some_and(|count| at.partition >= *count) {
                return Err(Error::UnknownTopic { topic: at.to_string() });
            }
        }
        Ok(())
    }
}

/// Returns librdkafka's special offset for a start that must be looked up.
fn special_offset(from: StartFrom) -> Option<Offset> {
    match from {
        StartFrom::Offset(_) => None,
        StartFrom::Earliest => Some(START),
        StartFrom::LogEnd => Some(END),
    }
}

impl Reader for KafkaReader {
    fn assign(&mut self, partitions: &[(TopicPartition, StartFrom)]) -> Result<()> {
        self.check_exist(partitions)?;
        let resolved = self.resolve(partitions)?;
        self.stop_all()?;
        self.proof.2 = None;
        let position = |at: &TopicPartition, from: StartFrom| match from {
            StartFrom::Offset(offset) => Some(offset),
            StartFrom::Earliest | StartFrom::LogEnd => resolved.get(at).copied(),
        };
        let states = partitions
            .iter()
            .map(|(at, from)| (at.clone(), true, position(at, *from)));
        self.fetcher.replace(states)?;
        for (at, from) in partitions {
            // librdkafka looks up the earliest offset again if retention increases it in the meantime.
            let offset = if *from == StartFrom::Earliest {
                START
            } else {
                position(at, *from).unwrap_or(END)
            };
            let (topic, queue) = self.fetcher.topic_and_queue(&at.topic)?;
            let started = topic.read(at.partition, offset, queue);
            started.map_err(|found| errors::topic_error(&at.topic, format!("read {at}"), &found))?;
        }
        Ok(())
    }

    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<usize> {
        batch.clear();
        let end = Instant::now() + timeout;
        loop {
            while self.events.poll(Duration::ZERO).is_some() {}
            let taken = self.fetcher.take(batch, max_bytes)?;
            if taken > 0 {
                return Ok(taken);
            }
            self.refresh_at_end();
            if !self.fetcher.wait(end) {
                self.fetcher.check_reachable("read")?;
                return Ok(0);
            }
        }
    }

    fn position(&self, at: &TopicPartition) -> Option<Offset> {
        self.fetcher.states().iter().find(|state| state.at == *at)?.position
    }

    fn at_end(&self, at: &TopicPartition) -> Option<Millis> {
        self.fetcher.states().iter().find(|state| state.at == *at)?.at_end
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        // librdkafka's destructor waits for partitions that are still being read.
        if let Err(error) = self.stop_all() {
            tracing::debug!(target: "event_log::kafka", %error, "stopping the reader's partitions failed");
        }
    }
}
