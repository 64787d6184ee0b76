//! The transactional producer on Kafka.
//!
//! Rules of the commit protocol (`docs/protocol/commit.md`) that are implemented here:
//!
//! - A commit request is sent once. Unless the transaction is known to have failed, the outcome is `Unknown` (C5).
//! - After a call that timed out the librdkafka client is destroyed: its request may still be in flight and would end
//!   the next transaction of the same producer epoch.
//! - A client whose last transaction failed is never used for another one; `init_transactions` creates a new client.

use super::client::admin::Admin;
use super::client::list::List;
use super::client::{ClientError, Code, Handle};
use super::config::Config;
use super::producer_client::ProducerClient;
use super::{errors, settings};
use crate::consumer::MemberToken;
use crate::{
    Error, GroupMetadata, Offset, OutBatch, Outcome, Result, TopicPartition, TransactionalProducer,
    TransactionalProducerConfig,
};
use std::time::{Duration, Instant};

/// How long `init_transactions` waits for a connected broker before it requests the coordinator anyway.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Message of calls that need `init_transactions` first.
const NEEDS_INIT: &str = "the producer must call init_transactions first";

/// A transactional producer.
#[derive(Debug)]
pub struct KafkaTransactionalProducer {
    config: Config,
    options: TransactionalProducerConfig,
    producer: Option<ProducerClient>,
    state: State,
    /// Number of the transaction, from 1. Tags the delivery reports of its records.
    transaction: usize,
    /// Set if the open transaction can only be aborted.
    abort_reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Open,
    NeedsInit,
}

impl KafkaTransactionalProducer {
    /// Creates a producer and calls `init_transactions`.
    pub fn open(config: &Config, options: TransactionalProducerConfig) -> Result<KafkaTransactionalProducer> {
        let mut opened = KafkaTransactionalProducer {
            config: config.clone(),
            options,
            producer: None,
            state: State::NeedsInit,
            transaction: 0,
            abort_reason: None,
        };
        opened.init_transactions()?;
        Ok(opened)
    }

    fn producer(&self, attempted: &str) -> Result<&ProducerClient> {
        self.producer
            .as_ref()
            .ok_or_else(|| self.rejected(attempted, NEEDS_INIT))
    }

    fn rejected(&self, attempted: &str, reason: &str) -> Error {
        let attempted = format!(
            "{attempted} of transactional producer {}",
            self.options.transactional_id
        );
        Error::Rejected {
            attempted,
            reason: reason.to_owned(),
        }
    }

    fn error(&self, attempted: &'static str, found: &ClientError) -> Error {
        if errors::is_fenced(found.code) {
            return Error::Fenced {
                attempted,
                who: self.options.transactional_id.clone(),
            };
        }
        let mut found = found.clone();
        if let Some(producer) = &self.producer {
            found.text = producer.handle().connectivity().explain(&found.text);
        }
        errors::request_error(
            format!(
                "{attempted} of transactional producer {}",
                self.options.transactional_id
            ),
            &found,
        )
    }

    /// Returns the time limit for committing or aborting a transaction now. After that, the broker may have aborted it.
    fn deadline(&self) -> Instant {
        Instant::now() + self.options.transaction_timeout
    }

    /// Repeats a call while librdkafka reports it as retriable, but not after a timeout. `call` receives the remaining
    /// time.
    fn retry(
        producer: &ProducerClient,
        until: Instant,
        call: impl Fn(&Handle, Duration) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        loop {
            match call(producer.handle(), left(until)) {
                Err(found) if may_retry(&found) && Instant::now() < until => {
                    // librdkafka itself waits where a retry needs time. This pause only prevents a busy loop.
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }

    /// Aborts a transaction that is known not to be committed.
    fn abort_failed(&mut self, found: &ClientError) -> Outcome {
        let reason = self.reason(found);
        let aborts = !found.fatal && !errors::is_timeout(found.code);
        if let Some(producer) = self.producer.as_ref().filter(|_| aborts) {
            // Without the abort, readers would wait for the transaction timeout. If it fails, `init_transactions` aborts.
            if let Err(then) = producer.handle().abort_transaction(self.options.transaction_timeout) {
                tracing::debug!(target: "event_log::kafka", error = then.text, "abort after a failed commit failed");
            }
        }
        self.discard_producer();
        Outcome::Aborted {
            fenced: errors::is_fenced(found.code),
            reason,
        }
    }

    /// Returns the error's text and the error of the first record that was not written, which is often the cause.
    fn reason(&self, found: &ClientError) -> String {
        let Some(producer) = &self.producer else {
            return found.text.clone();
        };
        let words = producer.handle().connectivity().explain(&found.text);
        match producer.collect(self.transaction) {
            Err(record) if !words.contains(&record.to_string()) => format!("{words}; {record}"),
            _ => words,
        }
    }

    fn discard_producer(&mut self) {
        self.abort_reason = None;
        self.state = State::NeedsInit;
        self.producer = None;
    }

    /// Waits until every record is known to be written. This must precede `EndTxn`, after which it is too late to abort.
    fn flush_verified(&self, producer: &ProducerClient, until: Instant) -> Result<(), ClientError> {
        producer.handle().flush(left(until))?;
        if producer.has_unproven(self.transaction) {
            let mut found = ClientError::new(Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER);
            found.abort = true;
            return Err(found);
        }
        Ok(())
    }

    fn end_transaction(&mut self, until: Instant) -> Outcome {
        let Some(producer) = self.producer.as_ref() else {
            return Outcome::Aborted {
                fenced: false,
                reason: NEEDS_INIT.to_owned(),
            };
        };
        if let Err(found) = self.flush_verified(producer, until) {
            return self.abort_failed(&found);
        }
        failpoint::hit("log.commit.before");
        let connection_errors = producer.connection_errors();
        let ended = Self::retry(producer, until, Handle::commit_transaction);
        failpoint::hit("log.commit.after");
        let Err(found) = ended else {
            self.state = State::Ready;
            return match producer.collect(self.transaction) {
                Ok(produced) => Outcome::Committed(produced),
                // librdkafka does not commit a transaction that lost a record, so the two results contradict each other.
                Err(record) => Outcome::Unknown {
                    reason: record.to_string(),
                },
            };
        };
        // The transaction is certainly not committed if librdkafka refused to send `EndTxn` because a record was not
        // written, or if the only response was that the producer is fenced or must abort. After a connection failure
        // during the call the response may belong to a repeated request whose first copy was executed:
        // `init_transactions` bumps the epoch, so a committed transaction would then look like a fenced one.
        let unwritten = found.abort && found.code == Code::RD_KAFKA_RESP_ERR__INCONSISTENT;
        let first = (found.abort || errors::is_fenced(found.code)) && producer.connection_errors() == connection_errors;
        let certain = unwritten || first;
        if certain {
            return self.abort_failed(&found);
        }
        let reason = self.reason(&found);
        self.discard_producer();
        Outcome::Unknown { reason }
    }
}

/// Clears `fenced`. With KIP-848 a rejected generation does not mean that the member lost its partitions: its
/// generation rises without an event, and it may not know the new generation yet. If the member was removed, its next
/// events show that.
fn without_fencing(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Aborted { reason, .. } => Outcome::Aborted { fenced: false, reason },
        other => other,
    }
}

/// Returns the remaining time, at least 1 ms, because zero would mean "do not wait".
fn left(until: Instant) -> Duration {
    until
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

/// Returns whether librdkafka allows a repetition of the call, and no request of the failed call is in flight.
fn may_retry(found: &ClientError) -> bool {
    found.retriable && !found.fatal && !found.abort && !errors::is_timeout(found.code)
}

/// Waits for a connection to a broker whose id is known. Until then librdkafka uses a bootstrap connection, which it
/// closes when it learns the brokers. A request in flight on it is lost and repeated only after 500 ms.
fn await_named_broker(producer: &ProducerClient) {
    let admin = Admin::new(producer.handle(), CONNECT_TIMEOUT);
    // The first response contains the ids of the brokers, and the second request is sent to one of them. The next call
    // reports errors.
    drop(admin.await_any_broker().and_then(|()| admin.await_any_broker()));
}

impl TransactionalProducer for KafkaTransactionalProducer {
    fn begin(&mut self) -> Result<()> {
        if self.state != State::Ready {
            let why = if self.state == State::Open {
                "a transaction is open"
            } else {
                NEEDS_INIT
            };
            return Err(self.rejected("begin a transaction", why));
        }
        let producer = self.producer("begin a transaction")?;
        if let Err(found) = producer.handle().begin_transaction() {
            let found = producer.handle().fatal().unwrap_or(found);
            let error = self.error("begin a transaction", &found);
            self.discard_producer();
            return Err(error);
        }
        producer.watch(self.transaction + 1);
        self.transaction += 1;
        self.state = State::Open;
        Ok(())
    }

    fn send(&mut self, records: &OutBatch) -> Result<()> {
        if self.state != State::Open {
            return Err(self.rejected("send", "no transaction is open"));
        }
        failpoint::hit("log.send.before");
        let producer = self.producer("send")?;
        let sent = producer.send(records, self.transaction, self.options.transaction_timeout);
        if sent.is_err()
            && let Some(fatal) = producer.handle().fatal()
        {
            return Err(self.error("send", &fatal));
        }
        if let Err(error) = &sent {
            self.abort_reason.get_or_insert(error.to_string());
        }
        sent?;
        failpoint::hit("log.send.after");
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let producer = self.producer("flush")?;
        let written = self.flush_verified(producer, self.deadline());
        written.map_err(|found| self.error("flush", &found))
    }

    fn commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome {
        if self.state != State::Open {
            return Outcome::Aborted {
                fenced: false,
                reason: "no transaction is open".to_owned(),
            };
        }
        let Some(producer) = self.producer.as_ref() else {
            return Outcome::Aborted {
                fenced: false,
                reason: NEEDS_INIT.to_owned(),
            };
        };
        if let Some(reason) = self.abort_reason.take() {
            let mut found = ClientError::new(Code::RD_KAFKA_RESP_ERR__STATE);
            found.text = format!("a record was rejected: {reason}");
            return self.abort_failed(&found);
        }
        let until = self.deadline();
        // Queued records are sent from now on, in parallel with the offsets. A zero timeout does not wait.
        drop(producer.handle().flush(Duration::ZERO));
        if let Some((member, offsets)) = consumed {
            failpoint::hit("log.offsets.before");
            let MemberToken::Kafka(metadata) = &member.token else {
                let mut found = ClientError::new(Code::RD_KAFKA_RESP_ERR__INVALID_ARG);
                found.text = "the group metadata belongs to another event log".to_owned();
                return self.abort_failed(&found);
            };
            let list = List::of(offsets.iter().map(|(at, offset)| (at, *offset)));
            let send = |handle: &Handle, _| handle.send_offsets(&list, &metadata.metadata);
            let added = Self::retry(producer, until, send);
            if let Err(found) = added {
                let outdated = metadata.generation_rises && errors::is_stale_member(found.code);
                let outcome = self.abort_failed(&found);
                return if outdated { without_fencing(outcome) } else { outcome };
            }
        }
        self.end_transaction(until)
    }

    fn abort(&mut self) -> Result<()> {
        if self.state != State::Open {
            return Ok(());
        }
        let producer = self.producer("abort a transaction")?;
        let aborted = Self::retry(producer, self.deadline(), Handle::abort_transaction);
        drop(producer.collect(self.transaction));
        match aborted {
            Ok(()) => {
                self.abort_reason = None;
                self.state = State::Ready;
                Ok(())
            }
            Err(found) => {
                let error = self.error("abort a transaction", &found);
                self.discard_producer();
                Err(error)
            }
        }
    }

    fn init_transactions(&mut self) -> Result<()> {
        self.discard_producer();
        let producer = ProducerClient::new(
            &settings::transactional_producer(&self.config, &self.options),
            self.config.request_timeout,
        )?;
        await_named_broker(&producer);
        let end = Instant::now() + self.options.transaction_timeout.max(self.config.request_timeout);
        let taken = loop {
            let left = end.saturating_duration_since(Instant::now());
            match producer.handle().init_transactions(left) {
                // Unlike a commit, `init_transactions` may be repeated after a timeout, because it only fences.
                Err(found) if found.retriable && !found.fatal && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => break result,
            }
        };
        self.producer = Some(producer);
        match taken {
            Ok(()) => {
                self.state = State::Ready;
                Ok(())
            }
            Err(found) => {
                let error = self.error("initialize the transactional producer", &found);
                self.discard_producer();
                Err(error)
            }
        }
    }

    fn transactional_id(&self) -> &str {
        &self.options.transactional_id
    }
}
