//! A transactional session of the embedded log.
//!
//! Guarantees: those of [`TransactionalProducer`]. A session that is dropped in a transaction leaves it open, as a dead producer
//! does, until its timeout or the next session of its id. Never: a retry.

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
    /// A batch was refused: the transaction can only be aborted.
    Refused(String),
    /// A commit was aborted or is unknown: only [`TransactionalProducer::init_transactions`] helps.
    Spent,
}

pub(super) struct EmbeddedTransactionalProducer {
    broker: Arc<Broker>,
    transactional_id: String,
    timeout_ms: Millis,
    epoch: u64,
    phase: Phase,
    /// Whether something was sent in the open transaction.
    sent: bool,
}

impl EmbeddedTransactionalProducer {
    pub fn open(broker: Arc<Broker>, config: TransactionalProducerConfig) -> Result<Self> {
        let TransactionalProducerConfig {
            transactional_id,
            transaction_timeout,
        } = config;
        let timeout_ms = Millis::try_from(transaction_timeout.as_millis()).unwrap_or(Millis::MAX);
        let refused = |reason: String| Error::Refused {
            attempted: format!("open session `{transactional_id}`"),
            reason,
        };
        if transactional_id.is_empty() {
            return Err(refused("a transactional id cannot be empty".to_owned()));
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&timeout_ms) {
            return Err(refused(format!(
                "its transaction timeout must be from 1 to {TIMEOUT_MS_MAX} ms"
            )));
        }
        let epoch = broker.take_over(&transactional_id)?;
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

    fn refused(&self, attempted: &str, reason: &str) -> Error {
        Error::Refused {
            attempted: format!("{attempted} of session `{}`", self.transactional_id),
            reason: reason.to_owned(),
        }
    }
}

impl TransactionalProducer for EmbeddedTransactionalProducer {
    fn begin(&mut self) -> Result<()> {
        // As in Kafka nobody is asked: a session that is fenced learns it when it sends or commits.
        match self.phase {
            Phase::Ready => {
                (self.phase, self.sent) = (Phase::Open, false);
                Ok(())
            }
            Phase::Open | Phase::Refused(_) => {
                Err(self.refused("begin a transaction", "one is open; commit or abort it first"))
            }
            Phase::Spent => Err(self.refused(
                "begin a transaction",
                "its last commit failed; init_transactions the session first",
            )),
        }
    }

    fn send(&mut self, records: &OutBatch) -> Result<()> {
        match &self.phase {
            Phase::Open => {}
            Phase::Refused(reason) => {
                let reason = format!("a batch was refused before ({reason}); abort the transaction");
                return Err(self.refused("send in a transaction", &reason));
            }
            Phase::Ready | Phase::Spent => return Err(self.refused("send", "no transaction is open; begin one first")),
        }
        failpoint::hit("log.send.before");
        // Also what a fence keeps out was meant to be there: no commit may say that it is.
        self.sent = true;
        self.broker.check(self.by(), "send")?;
        let sent = encode(&self.broker, records).and_then(|encoded| {
            self.broker.append(encoded.drafts, Some(self.by()))?;
            encoded.refused.map_or(Ok(()), Err)
        });
        if let Err(error) = &sent {
            self.phase = Phase::Refused(error.to_string());
        }
        failpoint::hit("log.send.after");
        sent
    }

    fn commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome {
        let outcome = match std::mem::replace(&mut self.phase, Phase::Spent) {
            // Nothing was begun at the log, so that there is nothing to end there.
            Phase::Open if !self.sent && consumed.is_none() => Outcome::Committed(Vec::new()),
            Phase::Open => self.broker.commit(self.by(), consumed),
            Phase::Refused(reason) => match self.broker.abort(self.by()) {
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
                    reason: "no transaction was begun".to_owned(),
                };
            }
            Phase::Spent => Outcome::Aborted {
                fenced: false,
                reason: "the session was not renewed".to_owned(),
            },
        };
        if matches!(outcome, Outcome::Committed(_)) {
            self.phase = Phase::Ready;
        }
        outcome
    }

    fn abort(&mut self) -> Result<()> {
        match self.phase {
            Phase::Ready | Phase::Spent => Ok(()),
            // Nothing was begun at the log here, either.
            Phase::Open if !self.sent => {
                self.phase = Phase::Ready;
                Ok(())
            }
            Phase::Open | Phase::Refused(_) => {
                self.broker.abort(self.by())?;
                self.phase = Phase::Ready;
                Ok(())
            }
        }
    }

    fn init_transactions(&mut self) -> Result<()> {
        self.epoch = self.broker.take_over(&self.transactional_id)?;
        self.phase = Phase::Ready;
        Ok(())
    }

    fn transactional_id(&self) -> &str {
        &self.transactional_id
    }
}
