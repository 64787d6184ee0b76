//! The loop that runs every source connector; it implements `docs/protocol/commit.md`, "Source connectors".
//!
//! 1. Open the transactional producer, which fences an older process with the same connector name.
//! 2. Read the stored position, up to the log end of the positions topic at that time.
//! 3. Open the source at this position.
//! 4. Send records and the position after them in one transaction.
//! 5. After a known commit, let the source acknowledge the position.
//!
//! After any commit outcome except `Committed`, the loop closes the source immediately and starts again at step 1. A
//! transaction whose outcome is unknown is never committed a second time (C5). Records are published once, and nothing
//! is acknowledged before its position is stored (C14). Every error except fencing is retried (C15).
//!
//! Commands of operators are executed between steps 2 and 3. A snapshot is requested from the open source.

use super::context::{Context, OnMismatch};
use super::dlq;
use super::lifecycle::Lifecycle;
use super::positions::{Positions, Stored};
use super::pump::{End, Pump};
use super::retry::{self, Retry};
use super::{Source, Unreadable};
use crate::commands::{Command, DesiredState, Target};
use crate::error::{Error, Result};
use crate::status::State;
use event_log::{OutBatch, Outcome, TransactionalProducer, TransactionalProducerConfig};
use service::{Drain, chain};
use std::time::Duration;

/// Runs a source until the drain starts. Blocks; call it on a dedicated thread. Every error changes the state and is
/// retried, except fencing: then the connector stops until an operator restarts it.
pub fn run<S: Source>(mut source: S, context: &Context, drain: &Drain) {
    {
        let _inside = context.runtime.enter();
        source.start(&context.handle);
    }
    let mut connector = Connector {
        lifecycle: Lifecycle {
            context,
            drain,
            inbox: context.handle.take_inbox(),
            desired: DesiredState::default(),
            last_error: None,
        },
        producer: None,
    };
    connector.run(&mut source);
    source.close();
    context.handle.return_inbox(connector.lifecycle.inbox);
    context.handle.set(State::Stopped, None, None);
}

struct Connector<'c> {
    lifecycle: Lifecycle<'c>,
    producer: Option<Box<dyn TransactionalProducer>>,
}

impl Connector<'_> {
    fn run<S: Source>(&mut self, source: &mut S) {
        let mut retry = Retry::new();
        while !self.lifecycle.drain.is_draining() {
            let result = self.attempt(source, &mut retry);
            // Release the slot before anything else: after fencing or an unknown outcome, nothing more may be
            // acknowledged (C14).
            source.close();
            match result {
                Ok(End::Drain | End::Command) => {}
                Ok(End::Paused) => self.lifecycle.wait(None),
                Ok(End::Uncommitted) => self.lifecycle.wait(Some(retry.failed())),
                Err(error @ Error::Fenced { .. }) => {
                    self.producer = None;
                    self.lifecycle.report_error(&error);
                    self.lifecycle.wait_for_restart();
                }
                Err(error) => self.handle_error(&error, retry.failed()),
            }
        }
    }

    /// Publishes an error as the connector's state and waits before the next attempt.
    fn handle_error(&mut self, error: &Error, delay: Duration) {
        let context = self.lifecycle.context;
        let state = error.state();
        if state == State::NeedsResync && context.on_mismatch == OnMismatch::Resync {
            let reason = chain(error);
            tracing::warn!(connector = %context.name, reason, "starting a new source epoch with a snapshot");
            // If the new source epoch is rejected too, wait before the next one is started.
            self.lifecycle.wait(Some(delay));
            self.lifecycle.inbox.push(Command::Resync);
            return;
        }
        self.lifecycle.report_error(error);
        // After a mismatch, the source is also opened again: the right database may be available later, for example
        // after a failed restore.
        let delay = if state == State::NeedsResync { retry::MAX } else { delay };
        self.lifecycle.wait(Some(delay));
    }

    /// Initializes the producer, reads the position, stores the effect of commands, opens the source and publishes until
    /// something ends it.
    fn attempt<S: Source>(&mut self, source: &mut S, retry: &mut Retry<S::Position>) -> Result<End> {
        let context = self.lifecycle.context;
        self.lifecycle.report_starting();
        let mut positions = Positions::open(context)?;
        // Fencing must precede the read: a position that is read before `init_transactions` may be older than one that
        // a previous process still commits.
        let mut producer = self.init_producer()?;
        failpoint::hit("connector.initialized");
        let found = positions.read(&mut *producer)?;
        self.lifecycle.set_desired(found.desired(&context.name)?);
        let Some(start) = self.execute_commands(source, found.stored, &mut positions, &mut *producer)? else {
            return Ok(End::Uncommitted);
        };
        if start.requested {
            *retry = Retry::new();
        }
        if self.lifecycle.desired.target != Target::Running {
            context.handle.set(State::Paused, None, None);
            self.producer = Some(producer);
            return Ok(End::Paused);
        }
        let position = start.position;
        retry.begin(position.as_ref());
        if let Some(position) = &position {
            context.handle.update(|report| report.position = position.to_string());
        }
        let record_bytes_max = match source.topic() {
            Some(topic) => dlq::prepare(&*context.log, topic, context.replication)?,
            None => usize::MAX,
        };
        let opened = context.runtime.block_on(source.open(position, record_bytes_max));
        if opened.is_ok() {
            failpoint::hit("connector.opened");
        }
        let result =
            opened.and_then(|()| Pump::new(&mut self.lifecycle, source, &mut *producer, &mut positions).run(retry));
        // The producer is kept: `init_transactions` makes it usable again, regardless of its last transaction.
        self.producer = Some(producer);
        result
    }

    /// Stores the effect of the received commands in one transaction and returns the position at which the source
    /// continues; `None` if the transaction is not known to be committed.
    fn execute_commands<S: Source>(
        &mut self,
        source: &S,
        stored: Option<Stored>,
        positions: &mut Positions,
        producer: &mut dyn TransactionalProducer,
    ) -> Result<Option<Start<S::Position>>> {
        self.lifecycle.inbox.receive();
        let mut requested = self.lifecycle.inbox.requested(&self.lifecycle.desired);
        let position = self.parse::<S::Position>(stored.as_ref(), requested.resync)?;
        let mut restart = None;
        if requested.resync {
            match self.restart_position(source, stored.as_ref(), position.as_ref()) {
                Ok(position) => restart = Some(position),
                // The commands are removed. Otherwise, the connector would fail until the process restarts.
                Err(error) => {
                    let is_own = self.lifecycle.reject_resync(&error);
                    if is_own || (position.is_none() && stored.is_some()) {
                        return Err(error);
                    }
                    requested = self.lifecycle.inbox.requested(&self.lifecycle.desired);
                }
            }
        }
        let desired = (requested.desired != self.lifecycle.desired).then_some(&requested.desired);
        if (restart.is_some() || desired.is_some()) && !store(producer, positions.records(restart.as_ref(), desired))? {
            return Ok(None);
        }
        let start = Start {
            position: restart.or(position),
            requested: requested.starts,
        };
        self.lifecycle.commands_stored(requested);
        Ok(Some(start))
    }

    /// Parses the stored position; `None` if there is none, or if it cannot be read and a resync replaces it.
    fn parse<P: super::Position>(&self, stored: Option<&Stored>, resync: bool) -> Result<Option<P>> {
        let Some(stored) = stored else { return Ok(None) };
        let name = &self.lifecycle.context.name;
        match P::from_json(&stored.moving, stored.static_part.as_deref()) {
            Ok(position) => Ok(Some(position)),
            Err(Unreadable::StartOver(_)) if resync => Ok(None),
            Err(Unreadable::StartOver(reason)) => Err(Error::NeedsResync {
                reason: format!("cannot read the stored position of connector {name}: {reason}"),
            }),
            Err(Unreadable::Newer(reason)) => Err(Error::Rejected {
                reason: format!("cannot read the stored position of connector {name}: {reason}"),
                fix: String::from("run the trunkline version that wrote it, or a later one"),
            }),
        }
    }

    /// Returns the first position of a new source epoch. The epoch must be greater than that of the stored position,
    /// even if that position cannot be read, because readers ignore epochs that they have already seen.
    fn restart_position<S: Source>(
        &self,
        source: &S,
        stored: Option<&Stored>,
        position: Option<&S::Position>,
    ) -> Result<S::Position> {
        let name = &self.lifecycle.context.name;
        let epoch = match stored {
            None => 0,
            Some(stored) => stored.source_epoch().ok_or_else(|| Error::Rejected {
                reason: format!("the stored position of connector {name} has no source epoch"),
                fix: String::from("rename the connector in the topology, so that it starts without a position"),
            })?,
        };
        source.restart_position(position, epoch).ok_or_else(|| Error::Rejected {
            reason: format!("cannot resync connector {name}: its source cannot be read again"),
            fix: String::from("post the rows again"),
        })
    }

    /// Returns an initialized producer. Initialization fences older producers with this transactional id and ends their
    /// open transaction.
    fn init_producer(&mut self) -> Result<Box<dyn TransactionalProducer>> {
        let name = &self.lifecycle.context.name;
        match self.producer.take() {
            Some(mut producer) => match producer.init_transactions() {
                Ok(()) => Ok(producer),
                Err(event_log::Error::Fenced { .. }) => Err(Error::Fenced {
                    connector: name.clone(),
                }),
                Err(source) => Err(Error::EventLog {
                    attempted: "initialize the transactional producer",
                    source,
                }),
            },
            None => {
                let config = TransactionalProducerConfig {
                    transactional_id: self.lifecycle.context.transactional_id.clone(),
                    transaction_timeout: self.lifecycle.context.transaction_timeout,
                };
                self.lifecycle
                    .context
                    .log
                    .transactional_producer(config)
                    .map_err(Error::log("open the transactional producer"))
            }
        }
    }
}

/// How a source starts.
struct Start<P> {
    /// The position; `None` if none was ever stored.
    position: Option<P>,
    /// Whether an operator has requested the start.
    requested: bool,
}

/// Stores records of the positions topic in a transaction. Returns whether the commit is known to have succeeded.
fn store(producer: &mut dyn TransactionalProducer, records: &OutBatch) -> Result<bool> {
    producer.begin().map_err(Error::log("begin a transaction"))?;
    producer.send(records).map_err(Error::log("store the position"))?;
    Ok(matches!(producer.commit(None), Outcome::Committed(_)))
}

#[cfg(test)]
mod commands_tests;
#[cfg(test)]
mod expiry_tests;
#[cfg(test)]
mod tests;
