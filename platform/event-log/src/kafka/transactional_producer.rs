//! A transactional session on Kafka.
//!
//! Guarantees: a commit is sent once; what is not known to have failed before it was sent is `Unknown`. After a call
//! that ended in time-out the producer is destroyed, since a request of it may still be under way.
//! Never: a second transaction on a producer whose last one went wrong.

use super::client::admin::Admin;
use super::client::list::List;
use super::client::{Code, Fault, Handle};
use super::producer_client::ProducerClient;
use super::{Config, fault, settings};
use crate::consumer::MemberToken;
use crate::{
    Error, GroupMetadata, Offset, OutBatch, Outcome, Result, TopicPartition, TransactionalProducer,
    TransactionalProducerConfig,
};
use std::time::{Duration, Instant};

/// How long a new producer may take to be connected before it asks for its coordinator all the same.
const SETTLE: Duration = Duration::from_secs(1);

/// A session.
#[derive(Debug)]
pub struct KafkaTransactionalProducer {
    config: Config,
    session: TransactionalProducerConfig,
    producer: Option<ProducerClient>,
    state: State,
    /// Number of the transaction, from 1; the mark of its records.
    transaction: usize,
    /// Why the open transaction may only be aborted.
    refused: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Open,
    Spent,
}

impl KafkaTransactionalProducer {
    /// Takes over the transactional id.
    pub fn open(config: &Config, session: TransactionalProducerConfig) -> Result<KafkaTransactionalProducer> {
        let mut opened = KafkaTransactionalProducer {
            config: config.clone(),
            session,
            producer: None,
            state: State::Spent,
            transaction: 0,
            refused: None,
        };
        opened.init_transactions()?;
        Ok(opened)
    }

    fn producer(&self, attempted: &str) -> Result<&ProducerClient> {
        self.producer
            .as_ref()
            .ok_or_else(|| self.refuse(attempted, "the session needs init_transactions first"))
    }

    fn refuse(&self, attempted: &str, reason: &str) -> Error {
        let attempted = format!("{attempted} of session {}", self.session.transactional_id);
        Error::Refused {
            attempted,
            reason: reason.to_owned(),
        }
    }

    fn error(&self, attempted: &'static str, found: &Fault) -> Error {
        if fault::fenced(found.code) {
            return Error::Fenced {
                attempted,
                who: self.session.transactional_id.clone(),
            };
        }
        let mut found = found.clone();
        if let Some(producer) = &self.producer {
            found.text = producer.handle().reach().explain(&found.text);
        }
        fault::error(
            format!("{attempted} of session {}", self.session.transactional_id),
            &found,
        )
    }

    /// When the transaction has lasted for as long as it may.
    fn deadline(&self) -> Instant {
        Instant::now() + self.session.transaction_timeout
    }

    /// Makes a call again for as long as the library says that it may be, but not after a time-out. The call is told
    /// what is left of the time.
    fn insist(
        producer: &ProducerClient,
        until: Instant,
        call: impl Fn(&Handle, Duration) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
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
    fn failed(&mut self, found: &Fault) -> Outcome {
        let reason = self.reason(found);
        let aborts = !found.fatal && !fault::timed_out(found.code);
        if let Some(producer) = self.producer.as_ref().filter(|_| aborts) {
            // Readers need not wait for the time limit of the transaction. If this fails, `init_transactions` aborts it.
            if let Err(then) = producer.handle().abort_transaction(self.session.transaction_timeout) {
                tracing::debug!(target: "log::kafka", "abort after a failed commit: {}", then.text);
            }
        }
        self.spend();
        Outcome::Aborted {
            fenced: fault::fenced(found.code),
            reason,
        }
    }

    /// The library's words, and what became of the first record that was not written, which is often the cause.
    fn reason(&self, found: &Fault) -> String {
        let Some(producer) = &self.producer else {
            return found.text.clone();
        };
        let words = producer.handle().reach().explain(&found.text);
        match producer.collect(self.transaction) {
            Err(record) if !words.contains(&record.to_string()) => format!("{words}; {record}"),
            _ => words,
        }
    }

    fn spend(&mut self) {
        self.refused = None;
        self.state = State::Spent;
        self.producer = None;
    }

    /// Waits until every record is written, and provably so: once the end is sent it is too late to ask.
    fn written(&self, producer: &ProducerClient, until: Instant) -> Result<(), Fault> {
        producer.handle().flush(left(until))?;
        if producer.unproven(self.transaction) {
            let mut found = Fault::of(Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER);
            found.abort = true;
            return Err(found);
        }
        Ok(())
    }

    fn end(&mut self, until: Instant) -> Outcome {
        let Some(producer) = self.producer.as_ref() else {
            return Outcome::Aborted {
                fenced: false,
                reason: "the session needs init_transactions first".to_owned(),
            };
        };
        if let Err(found) = self.written(producer, until) {
            return self.failed(&found);
        }
        failpoint::hit("log.commit.before");
        let troubles = producer.troubles();
        let ended = Self::insist(producer, until, Handle::commit_transaction);
        failpoint::hit("log.commit.after");
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
        let first = (found.abort || fault::fenced(found.code)) && producer.troubles() == troubles;
        let certain = unwritten || first;
        if certain {
            return self.failed(&found);
        }
        let reason = self.reason(&found);
        self.spend();
        Outcome::Unknown { reason }
    }
}

/// A member of the protocol whose generation rises by itself has not lost anything when its generation is refused: it
/// may only not have heard of the new one yet, and its next events say so if it was removed.
fn unfenced(outcome: Outcome) -> Outcome {
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
fn may_retry(found: &Fault) -> bool {
    found.retriable && !found.fatal && !found.abort && !fault::timed_out(found.code)
}

/// Waits until a broker is connected that the cluster has named. Until then the library still speaks with a bootstrap
/// server, which it lets go as soon as it knows the brokers: a question that is on its way then is lost, and asked again
/// only after half a second.
fn settle(producer: &ProducerClient) {
    let admin = Admin::new(producer.handle(), SETTLE);
    // The answer to the first names the brokers, the second is asked of one of them. What is wrong is said to who asks next.
    drop(admin.meet().and_then(|()| admin.meet()));
}

impl TransactionalProducer for KafkaTransactionalProducer {
    fn begin(&mut self) -> Result<()> {
        if self.state != State::Ready {
            let why = if self.state == State::Open {
                "a transaction is open"
            } else {
                "the session needs init_transactions first"
            };
            return Err(self.refuse("begin a transaction", why));
        }
        let producer = self.producer("begin a transaction")?;
        if let Err(found) = producer.handle().begin_transaction() {
            let found = producer.handle().fatal().unwrap_or(found);
            let error = self.error("begin a transaction", &found);
            self.spend();
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
        failpoint::hit("log.send.before");
        let producer = self.producer("send")?;
        let sent = producer.send(records, self.transaction, self.session.transaction_timeout);
        if sent.is_err()
            && let Some(fatal) = producer.handle().fatal()
        {
            return Err(self.error("send", &fatal));
        }
        if let Err(error) = &sent {
            self.refused.get_or_insert(error.to_string());
        }
        sent?;
        failpoint::hit("log.send.after");
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let producer = self.producer("flush")?;
        let written = self.written(producer, self.deadline());
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
                reason: "the session needs init_transactions first".to_owned(),
            };
        };
        if let Some(reason) = self.refused.take() {
            let mut found = Fault::of(Code::RD_KAFKA_RESP_ERR__STATE);
            found.text = format!("a record was refused: {reason}");
            return self.failed(&found);
        }
        let until = self.deadline();
        // What waits in the queue goes out now, beside the offsets; a limit of nothing starts that and does not wait.
        drop(producer.handle().flush(Duration::ZERO));
        if let Some((member, offsets)) = consumed {
            failpoint::hit("log.offsets.before");
            let MemberToken::Kafka(metadata) = &member.token else {
                let mut found = Fault::of(Code::RD_KAFKA_RESP_ERR__INVALID_ARG);
                found.text = "the membership is of another log".to_owned();
                return self.failed(&found);
            };
            let list = List::of(offsets.iter().map(|(at, offset)| (at, *offset)));
            let send = |handle: &Handle, _| handle.send_offsets(&list, &metadata.membership);
            let added = Self::insist(producer, until, send);
            if let Err(found) = added {
                let outdated = metadata.rises && fault::outdated(found.code);
                let outcome = self.failed(&found);
                return if outdated { unfenced(outcome) } else { outcome };
            }
        }
        self.end(until)
    }

    fn abort(&mut self) -> Result<()> {
        if self.state != State::Open {
            return Ok(());
        }
        let producer = self.producer("abort a transaction")?;
        let aborted = Self::insist(producer, self.deadline(), Handle::abort_transaction);
        drop(producer.collect(self.transaction));
        match aborted {
            Ok(()) => {
                self.refused = None;
                self.state = State::Ready;
                Ok(())
            }
            Err(found) => {
                let error = self.error("abort a transaction", &found);
                self.spend();
                Err(error)
            }
        }
    }

    fn init_transactions(&mut self) -> Result<()> {
        self.spend();
        let producer = ProducerClient::new(
            &settings::transactional_producer(&self.config, &self.session),
            self.config.request_timeout,
        )?;
        settle(&producer);
        let end = Instant::now() + self.session.transaction_timeout.max(self.config.request_timeout);
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
                let error = self.error("take the session over", &found);
                self.spend();
                Err(error)
            }
        }
    }

    fn transactional_id(&self) -> &str {
        &self.session.transactional_id
    }
}
