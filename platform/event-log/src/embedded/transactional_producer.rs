//! The transactional producer of the embedded log.
//!
//! A producer that is dropped during a transaction leaves the transaction open, like a producer that crashed. The
//! transaction is aborted after its timeout, or when the next producer of the transactional id starts.

use super::broker::Broker;
use super::encode::encode;
use super::write::By;
use crate::{
    Error, GroupMetadata, Millis, Offset, OutBatch, Outcome, Result, TopicPartition, TransactionalProducer,
    TransactionalProducerConfig,
};
use std::sync::Arc;

/// Kafka's `transaction.max.timeout.ms`.
const TIMEOUT_MS_MAX: Millis = 15 * 60 * 1000;

enum Phase {
    Ready,
    Open,
    /// A batch was rejected: the transaction can only be aborted.
    MustAbort(String),
    /// A commit failed: the producer needs [`TransactionalProducer::init_transactions`].
    NeedsInit,
}

pub(super) struct EmbeddedTransactionalProducer {
    broker: Arc<Broker>,
    transactional_id: String,
    timeout_ms: Millis,
    epoch: u64,
    phase: Phase,
    /// Whether records were sent in the open transaction.
    sent: bool,
}

impl EmbeddedTransactionalProducer {
    pub fn open(broker: Arc<Broker>, config: TransactionalProducerConfig) -> Result<Self> {
        let TransactionalProducerConfig {
            transactional_id,
            transaction_timeout,
        } = config;
        let timeout_ms = Millis::try_from(transaction_timeout.as_millis()).unwrap_or(Millis::MAX);
        let rejected = |reason: String| Error::Rejected {
            attempted: format!("open transactional producer {transactional_id}"),
            reason,
        };
        if transactional_id.is_empty() {
            return Err(rejected("the transactional id is empty; set one".to_owned()));
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&timeout_ms) {
            return Err(rejected(format!(
                "transaction_timeout must be between 1 and {TIMEOUT_MS_MAX} ms"
            )));
        }
        let epoch = broker.init_producer(&transactional_id)?;
        Ok(EmbeddedTransactionalProducer {
            broker,
            transactional_id,
            timeout_ms,
            epoch,
            phase: Phase::Ready,
            sent: false,
        })
    }

    fn by(&self) -> By<'_> {
        By {
            transactional_id: &self.transactional_id,
            epoch: self.epoch,
            timeout_ms: self.timeout_ms,
        }
    }

    fn rejected(&self, attempted: &str, reason: &str) -> Error {
        Error::Rejected {
            attempted: format!("{attempted} of transactional producer {}", self.transactional_id),
            reason: reason.to_owned(),
        }
    }
}

impl Drop for EmbeddedTransactionalProducer {
    fn drop(&mut self) {
        self.broker.state().forget_producer(&self.transactional_id, self.epoch);
    }
}

impl TransactionalProducer for EmbeddedTransactionalProducer {
    fn begin(&mut self) -> Result<()> {
        // A local operation, as in Kafka: a fenced producer gets the error only when it sends or commits.
        match self.phase {
            Phase::Ready => {
                (self.phase, self.sent) = (Phase::Open, false);
                Ok(())
            }
            Phase::Open | Phase::MustAbort(_) => {
                Err(self.rejected("begin a transaction", "a transaction is open; commit or abort it first"))
            }
            Phase::NeedsInit => Err(self.rejected(
                "begin a transaction",
                "the last commit failed; call init_transactions first",
            )),
        }
    }

    fn send(&mut self, records: &OutBatch) -> Result<()> {
        match &self.phase {
            Phase::Open => {}
            Phase::MustAbort(reason) => {
                let reason = format!("an earlier batch was rejected ({reason}); abort the transaction");
                return Err(self.rejected("send in a transaction", &reason));
            }
            Phase::Ready | Phase::NeedsInit => {
                return Err(self.rejected("send", "no transaction is open; begin one first"));
            }
        }
        failpoint::hit("log.send.before");
        // Set before the check, because even if the check fails, a later commit must not succeed without these records.
        self.sent = true;
        self.broker.check(self.by(), "send")?;
        let sent = encode(&self.broker, records).and_then(|encoded| {
            self.broker.append(encoded.drafts, Some(self.by()))?;
            encoded.rejected.map_or(Ok(()), Err)
        });
        if let Err(error) = &sent {
            self.phase = Phase::MustAbort(error.to_string());
        }
        failpoint::hit("log.send.after");
        sent
    }

    fn commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome {
        let outcome = match std::mem::replace(&mut self.phase, Phase::NeedsInit) {
            // The log does not know this transaction, so there is nothing to commit.
            Phase::Open if !self.sent && consumed.is_none() => Outcome::Committed(Vec::new()),
            Phase::Open => self.broker.commit(self.by(), consumed),
            Phase::MustAbort(reason) => match self.broker.abort(self.by()) {
                Ok(()) => Outcome::Aborted { fenced: false, reason },
                Err(error @ Error::Fenced { .. }) => Outcome::Aborted {
                    fenced: true,
                    reason: error.to_string(),
                },
                Err(error) => Outcome::Unknown {
                    reason: error.to_string(),
                },
            },
            Phase::Ready => {
                self.phase = Phase::Ready;
                return Outcome::Aborted {
                    fenced: false,
                    reason: "no transaction is open".to_owned(),
                };
            }
            Phase::NeedsInit => Outcome::Aborted {
                fenced: false,
                reason: "the producer must call init_transactions first".to_owned(),
            },
        };
        if matches!(outcome, Outcome::Committed(_)) {
            self.phase = Phase::Ready;
        }
        outcome
    }

    fn abort(&mut self) -> Result<()> {
        match self.phase {
            Phase::Ready | Phase::NeedsInit => Ok(()),
            // The log does not know this transaction, so there is nothing to abort.
            Phase::Open if !self.sent => {
                self.phase = Phase::Ready;
                Ok(())
            }
            Phase::Open | Phase::MustAbort(_) => {
                self.broker.abort(self.by())?;
                self.phase = Phase::Ready;
                Ok(())
            }
        }
    }

    fn init_transactions(&mut self) -> Result<()> {
        self.epoch = self.broker.init_producer(&self.transactional_id)?;
        self.phase = Phase::Ready;
        Ok(())
    }

    fn transactional_id(&self) -> &str {
        &self.transactional_id
    }
}
