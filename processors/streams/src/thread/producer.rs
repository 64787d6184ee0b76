//! The producer of a thread and the state of its transaction.
//!
//! Unless a commit is known to have succeeded, nothing is written before the producer is replaced (invariant C5, no
//! second attempt). librdkafka does not implement KIP-890 version 2 (issue 5423): a late `EndTxn` of the old producer
//! could otherwise commit the next transaction of the same producer epoch. `init_transactions` increases the epoch, and
//! commits or aborts the old transaction. A commit is never attempted twice.

use crate::admin::status::Cause;
use crate::api::application::ProcessingGuarantee;
use crate::api::error::{Error, Result};
use crate::shared::Shared;
use event_log::{
    ErrorAction, GroupMetadata, Offset, OutBatch, Outcome, Produced, Producer, TopicPartition, TransactionalProducer,
    TransactionalProducerConfig,
};
use failpoint::hit;
use service::backoff::Backoff;
use service::chain;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

enum ProducerState {
    /// The producer must be created or replaced before anything is written.
    NotReady,
    /// No transaction is open.
    Idle,
    /// A transaction has been open since this time, on the monotonic clock.
    Open(Duration),
}

/// The producer of a thread. Without transactions it writes with a plain producer instead.
pub(super) struct ThreadProducer {
    /// Transactional id.
    name: String,
    transactional: Option<Box<dyn TransactionalProducer>>,
    plain: Option<Box<dyn Producer>>,
    state: ProducerState,
    /// Delays after failures. Reset by a commit.
    backoff: Backoff,
    not_before: Duration,
    /// Why the producer is not ready.
    waits_for: Option<Cause>,
    /// Bytes sent in the current or last transaction.
    bytes: usize,
}

impl ThreadProducer {
    pub(super) fn new(name: String) -> Self {
        // The seed is derived from the name, so that threads that failed together do not retry together, and a
        // simulation depends only on its own seed.
        let mut seed = DefaultHasher::new();
        name.hash(&mut seed);
        let backoff = Backoff::seeded(BACKOFF_MIN, BACKOFF_MAX, seed.finish());
        ThreadProducer {
            name,
            transactional: None,
            plain: None,
            state: ProducerState::NotReady,
            backoff,
            not_before: Duration::ZERO,
            waits_for: None,
            bytes: 0,
        }
    }

    /// Whether records can be sent.
    pub(super) fn is_ready(&self) -> bool {
        !matches!(self.state, ProducerState::NotReady)
    }

    /// Why the producer is not ready.
    pub(super) fn waits_for(&self) -> Option<&Cause> {
        self.waits_for.as_ref()
    }

    /// Age of the open transaction.
    pub(super) fn open_for(&self, now: Duration) -> Option<Duration> {
        match self.state {
            ProducerState::Open(since) => Some(now.saturating_sub(since)),
            _ => None,
        }
    }

    /// Creates or replaces the producer if necessary and returns whether it is ready; if not, the caller retries later.
    ///
    /// # Errors
    /// Fencing, and a failure of the embedded log's storage, after which only a restart helps.
    pub(super) fn ensure_ready(&mut self, shared: &Shared) -> Result<bool> {
        if self.is_ready() {
            return Ok(true);
        }
        if shared.clock.elapsed() < self.not_before {
            return Ok(false);
        }
        hit("streams.producer.init_transactions");
        match self.initialize(shared) {
            Ok(()) => {
                self.state = ProducerState::Idle;
                self.waits_for = None;
                Ok(true)
            }
            Err(error @ event_log::Error::Fenced { .. }) => Err(Error::Fenced {
                who: self.name.clone(),
                reason: chain(&error),
            }),
            Err(source @ event_log::Error::Storage { .. }) => Err(Error::EventLog {
                who: self.name.clone(),
                source,
            }),
            Err(error) => {
                self.back_off(shared.clock.elapsed());
                let reason = chain(&error);
                tracing::warn!(thread = self.name, reason, "producer not ready, retrying");
                self.waits_for = Some(if error.action() == ErrorAction::Retry {
                    Cause::unavailable(reason)
                } else {
                    // The client may be unusable after such an error.
                    self.transactional = None;
                    Cause::operator(reason)
                });
                Ok(false)
            }
        }
    }

    fn initialize(&mut self, shared: &Shared) -> event_log::Result<()> {
        let at_least_once = shared.config.commit.guarantee == ProcessingGuarantee::AtLeastOnce;
        match &mut self.transactional {
            Some(_) if at_least_once => {}
            Some(producer) => producer.init_transactions()?,
            None => {
                // Used without transactions too, because it aborts the open transaction of an earlier process that ran
                // exactly once.
                let config = TransactionalProducerConfig {
                    transactional_id: self.name.clone(),
                    transaction_timeout: shared.config.commit.transaction_timeout,
                };
                self.transactional = Some(shared.log.transactional_producer(config)?);
            }
        }
        if at_least_once {
            self.plain = Some(shared.log.producer()?);
        }
        Ok(())
    }

    /// Earliest time of the next attempt, on the monotonic clock.
    pub(super) fn not_before(&self) -> Duration {
        self.not_before
    }

    /// Queues records; begins a transaction if none is open.
    pub(super) fn send(&mut self, now: Duration, records: &OutBatch) -> event_log::Result<()> {
        if let Some(producer) = &mut self.plain {
            self.state = ProducerState::Open(now);
            return producer.send(records);
        }
        let producer = self.transactional.as_mut();
        let producer = producer.expect("tasks run only while the producer is ready");
        if !matches!(self.state, ProducerState::Open(_)) {
            producer.begin()?;
            self.state = ProducerState::Open(now);
            self.bytes = 0;
        }
        self.bytes += records.byte_len();
        producer.send(records)
    }

    /// Returns and clears the number of bytes of keys, values and headers sent in the last transaction.
    pub(super) fn take_bytes(&mut self) -> usize {
        std::mem::take(&mut self.bytes)
    }

    /// Commits the open transaction with the offsets of the inputs. The group metadata is that under which the records were
    /// read, so that the group rejects the offsets of a member that lost its partitions (C6, KIP-447).
    pub(super) fn commit(&mut self, metadata: &GroupMetadata, offsets: &[(TopicPartition, Offset)]) -> Outcome {
        let producer = self.transactional.as_mut();
        let producer = producer.expect("tasks commit only while the producer is ready");
        let outcome = producer.commit(Some((metadata, offsets)));
        if matches!(outcome, Outcome::Committed(_)) {
            self.mark_committed();
        }
        outcome
    }

    /// Waits until everything that was sent is durable. Used only without transactions.
    pub(super) fn flush(&mut self) -> event_log::Result<Vec<Produced>> {
        let producer = self.plain.as_mut();
        producer.expect("tasks commit only while the producer is ready").flush()
    }

    /// Records that everything that was sent is committed.
    pub(super) fn mark_committed(&mut self) {
        self.state = ProducerState::Idle;
        self.backoff.reset();
    }

    /// Abandons the open transaction. The producer is replaced before anything else is written (C5).
    pub(super) fn discard(&mut self, now: Duration) {
        self.state = ProducerState::NotReady;
        self.plain = None;
        let is_first = self.backoff.attempts() == 0;
        let delay = self.backoff.next_delay();
        // No delay is needed after a single abort.
        self.not_before = if is_first { now } else { now + delay };
    }

    fn back_off(&mut self, now: Duration) {
        self.not_before = now + self.backoff.next_delay();
    }
}
