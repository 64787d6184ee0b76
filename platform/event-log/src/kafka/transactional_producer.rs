//! A transactional session on Kafka.
//!
//! Guarantees: a commit is sent once; what is not known to have failed before it was sent is `Unknown`. After a call
//! that ended in time-out the producer is destroyed, since a request of it may still be under way.
//! Never: a second transaction on a producer whose last one went wrong.

use super::client::admin::Admin;
use super::client::list::List;
use super::client::{Code, ClientError, Handle};
use super::producer_client::ProducerClient;
use super::{Config, errors, settings};
use crate::consumer::MemberToken;
use crate::{
    Error, GroupMetadata, Offset, OutBatch, Outcome, Result, TopicPartition, TransactionalProducer,
    TransactionalProducerConfig, probe,
};
use std::time::{Duration, Instant};

/// How long a new producer may take to be connected before it asks for its coordinator all the same.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A session.
#[derive(Debug)]
pub struct KafkaTransactionalProducer {
    config: Config,
    options: TransactionalProducerConfig,
    producer: Option<ProducerClient>,
    state: State,
    /// Number of the transaction, from 1; the mark of its records.
    transaction: usize,
    /// Why the open transaction may only be aborted.
    abort_reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Open,
    NeedsInit,
}

impl KafkaTransactionalProducer {
    /// Takes over the transactional id.
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
            .ok_or_else(|| self.refuse(attempted, NEEDS_INIT))
    }

    fn refuse(&self, attempted: &str, reason: &str) -> Error {
        let attempted = format!("{attempted} of transactional producer {}", self.options.transactional_id);
        Error::Refused {
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
            found.text = producer.handle().reach().explain(&found.text);
        }
        errors::request_error(
            format!("{attempted} of transactional producer {}", self.options.transactional_id),
            &found,
        )
    }

    /// When the transaction has lasted for as long as it may.
    fn deadline(&self) -> Instant {
        Instant::now() + self.options.transaction_timeout
    }

    /// Makes a call again for as long as the library says that it may be, but not after a time-out. The call is told
    /// what is left of the time.
    fn retry(
        producer: &ProducerClient,
        until: Instant,
        call: impl Fn(&Handle, Duration) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        loop {
            match call(producer.handle(), left(until)) {
                Err(found) if may_retry(&found) && Instant::now() < until => {
                    // The library waits by itself where waiting helps; this only keeps a tight loop from forming.
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }

    /// Ends a transaction that is known not to have been committed.
    fn abort_failed(&mut self, found: &ClientError) -> Outcome {
        let reason = self.reason(found);
        let aborts = !found.fatal && !errors::is_timeout(found.code);
        if let Some(producer) = self.producer.as_ref().filter(|_| aborts) {
            // Readers need not wait for the time limit of the transaction. If this fails, `init_transactions` aborts it.
            if let Err(then) = producer.handle().abort_transaction(self.options.transaction_timeout) {
                tracing::debug!(target: "event_log::kafka", "abort after a failed commit: {}", then.text);
            }
        }
        self.discard_producer();
        Outcome::Aborted {
            fenced: errors::is_fenced(found.code),
            reason,
        }
    }

    /// The library's words, and what became of the first record that was not written, which is often the cause.
    fn reason(&self, found: &ClientError) -> String {
        let Some(producer) = &self.producer else {
            return found.text.clone();
        };
        let words = producer.handle().reach().explain(&found.text);
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

    /// Waits until every record is written, and provably so: once the end is sent it is too late to ask.
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
        probe::hit("log.commit.before");
        let connection_errors = producer.connection_errors();
        let ended = Self::retry(producer, until, Handle::commit_transaction);
        probe::hit("log.commit.after");
        let Err(found) = ended else {
            self.state = State::Ready;
            return match producer.collect(self.transaction) {
                Ok(produced) => Outcome::Committed(produced),
                // The library does not commit a transaction that lost a record.
                Err(record) => Outcome::Unknown {
                    reason: record.to_string(),
                },
            };
        };
        // A first answer of "fenced" or "abort" is certain, and so is a record that was not written. An answer that
        // came after a broken connection may be to a repeated request whose first copy was heard: another session
        // would then find the transaction committed.
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

/// A member of the protocol whose generation rises by itself has not lost anything when its generation is refused: it
/// may only not have heard of the new one yet, and its next events say so if it was removed.
fn without_fencing(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Aborted { reason, .. } => Outcome::Aborted { fenced: false, reason },
        other => other,
    }
}

/// What is left of a time, and 1 ms at least: nothing would mean "do not wait".
fn left(until: Instant) -> Duration {
    until
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

/// The library asks for the same call again, and no request of it is left behind.
fn may_retry(found: &ClientError) -> bool {
    found.retriable && !found.fatal && !found.abort && !errors::is_timeout(found.code)
}

/// Waits until a broker is connected that the cluster has named. Until then the library still speaks with a bootstrap
/// server, which it lets go as soon as it knows the brokers: a question that is on its way then is lost, and asked again
/// only after half a second.
fn await_named_broker(producer: &ProducerClient) {
    let admin = Admin::new(producer.handle(), CONNECT_TIMEOUT);
    // The answer to the first names the brokers, the second is asked of one of them. What is wrong is said to who asks next.
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
            return Err(self.refuse("begin a transaction", why));
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
            return Err(self.refuse("send", "no transaction is open"));
        }
        probe::hit("log.send.before");
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
        probe::hit("log.send.after");
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
            found.text = format!("a record was refused: {reason}");
            return self.abort_failed(&found);
        }
        let until = self.deadline();
        // What waits in the queue goes out now, beside the offsets; a limit of nothing starts that and does not wait.
        drop(producer.handle().flush(Duration::ZERO));
        if let Some((member, offsets)) = consumed {
            probe::hit("log.offsets.before");
            let MemberToken::Kafka(metadata) = &member.token else {
                let mut found = ClientError::new(Code::RD_KAFKA_RESP_ERR__INVALID_ARG);
                found.text = "the membership is of another log".to_owned();
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
                // Unlike a commit, taking over may be repeated after a time-out: it only ever fences.
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
