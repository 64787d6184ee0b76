//! A thread's session with the log, and what state it is in.
//!
//! Guarantees: after anything but a commit that is known to have happened, nothing is written before the inner
//! producer was replaced, which settles what became of the old one's transaction.
//! Never: a second attempt at a commit.

use crate::thread::Shared;
use crate::{Error, ProcessingGuarantee, Result};
use event_log::{
    ErrorAction, GroupMetadata, Offset, OutBatch, Outcome, Produced, Producer, TopicPartition, TransactionalProducer,
    TransactionalProducerConfig,
};
use failpoint::hit;
use service::chain;
use std::time::Duration;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

enum Line {
    /// The session must be opened or renewed first.
    Broken,
    /// No transaction is open.
    Idle,
    /// A transaction is open since then, on the monotonic clock.
    Open(Duration),
}

/// The writing side of a thread.
pub(crate) struct Writer {
    name: String,
    session: Option<Box<dyn TransactionalProducer>>,
    /// What writes instead of the session, where there are no transactions.
    producer: Option<Box<dyn Producer>>,
    line: Line,
    failures: u32,
    not_before: Duration,
    /// Why it is not ready, for people.
    pub waits_for: Option<String>,
    /// Bytes sent since the last begin.
    bytes: usize,
}

impl Writer {
    pub(crate) fn new(name: String) -> Self {
        Writer {
            name,
            session: None,
            producer: None,
            line: Line::Broken,
            failures: 0,
            not_before: Duration::ZERO,
            waits_for: None,
            bytes: 0,
        }
    }

    /// Whether something may be written.
    pub(crate) fn is_ready(&self) -> bool {
        !matches!(self.line, Line::Broken)
    }

    /// How long the open transaction is open, if one is.
    pub(crate) fn open_for(&self, now: Duration) -> Option<Duration> {
        match self.line {
            Line::Open(since) => Some(now.saturating_sub(since)),
            _ => None,
        }
    }

    /// Opens or renews the session where it must be, and says whether it is ready; if not, try again later.
    ///
    /// # Errors
    /// What people must mend.
    pub(crate) fn mend(&mut self, env: &Shared) -> Result<bool> {
        if self.is_ready() {
            return Ok(true);
        }
        let now = env.clock.elapsed();
        if now < self.not_before {
            return Ok(false);
        }
        hit("runtime.session.init_transactions");
        let alone = env.config.guarantee == ProcessingGuarantee::AtLeastOnce;
        let done = match &mut self.session {
            // The session was opened once all the same: it has ended the transaction of a process that was exactly once.
            Some(_) if alone => env.log.producer().map(|producer| self.producer = Some(producer)),
            Some(session) => session.init_transactions(),
            None => {
                let config = TransactionalProducerConfig {
                    transactional_id: self.name.clone(),
                    transaction_timeout: env.config.transaction_timeout,
                };
                let session = env
                    .log
                    .transactional_producer(config)
                    .map(|session| self.session = Some(session));
                match alone {
                    true => session
                        .and_then(|()| env.log.producer())
                        .map(|producer| self.producer = Some(producer)),
                    false => session,
                }
            }
        };
        match done {
            Ok(()) => {
                self.line = Line::Idle;
                self.waits_for = None;
                Ok(true)
            }
            Err(error) if error.action() == ErrorAction::Retry => {
                self.back_off(env.clock.elapsed());
                let reason = chain(&error);
                tracing::warn!(thread = self.name, reason, "session cannot be opened yet");
                self.waits_for = Some(reason);
                Ok(false)
            }
            Err(error @ event_log::Error::Fenced { .. }) => Err(Error::Fenced {
                who: self.name.clone(),
                reason: chain(&error),
            }),
            Err(source) => Err(Error::EventLog {
                who: self.name.clone(),
                source,
            }),
        }
    }

    /// The earliest time of the next attempt, on the monotonic clock.
    pub(crate) fn not_before(&self) -> Duration {
        self.not_before
    }

    /// Queues records; begins a transaction when none is open.
    pub(crate) fn send(&mut self, now: Duration, records: &OutBatch) -> event_log::Result<()> {
        if let Some(producer) = &mut self.producer {
            self.line = Line::Open(now);
            return producer.send(records);
        }
        let session = self
            .session
            .as_mut()
            .expect("only a thread whose session is ready processes");
        if !matches!(self.line, Line::Open(_)) {
            session.begin()?;
            self.line = Line::Open(now);
            self.bytes = 0;
        }
        self.bytes += records.byte_len();
        session.send(records)
    }

    /// Bytes of keys, values and headers that were sent in the transaction that was committed last.
    pub(crate) fn take_bytes(&mut self) -> usize {
        std::mem::take(&mut self.bytes)
    }

    /// Commits the open transaction with the consumed offsets.
    pub(crate) fn commit(&mut self, member: &GroupMetadata, offsets: &[(TopicPartition, Offset)]) -> Outcome {
        let session = self
            .session
            .as_mut()
            .expect("only a thread whose session is ready commits");
        let outcome = session.commit(Some((member, offsets)));
        if matches!(outcome, Outcome::Committed(_)) {
            self.line = Line::Idle;
            self.failures = 0;
        }
        outcome
    }

    /// Waits until what was sent is durable, where there are no transactions.
    pub(crate) fn flush(&mut self) -> event_log::Result<Vec<Produced>> {
        let producer = self.producer.as_mut();
        producer.expect("only a thread whose producer is ready commits").flush()
    }

    /// Everything that was sent is committed, where there are no transactions.
    pub(crate) fn settled(&mut self) {
        self.line = Line::Idle;
        self.failures = 0;
    }

    /// Gives up the open transaction; the session is renewed before anything else.
    pub(crate) fn break_off(&mut self, now: Duration) {
        self.line = Line::Broken;
        self.producer = None;
        if self.failures == 0 {
            self.failures = 1;
            self.not_before = now;
        } else {
            self.back_off(now);
        }
    }

    fn back_off(&mut self, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + BACKOFF_MIN.saturating_mul(1 << self.failures.min(10)).min(BACKOFF_MAX);
    }
}
