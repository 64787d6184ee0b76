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

use super::dlq;
use super::positions::{Positions, Stored};
use super::retry::{self, Next, Retry};
use super::{Batch, Boundary, Budget, Source, Unreadable};
use crate::error::{Error, Result};
use crate::pace::Pace;
use crate::status::{DesiredState, Handle, State};
use event_log::{Outcome, SharedEventLog, TransactionalProducer, TransactionalProducerConfig};
use registry::Registry;
use service::{Drain, SharedClock, chain};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle as Runtime;
use tokio::sync::watch;

/// Transaction timeout. The open transaction of a killed connector blocks `read_committed` readers for this time, plus
/// the coordinator's scan interval.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Age at which an open transaction is committed even if more records are ready.
const OPEN_MAX: Duration = Duration::from_millis(40);
/// Size at which a transaction is committed.
const TRANSACTION_BYTES_MAX: usize = 8 << 20;
/// Limits of one batch of the source. Batches are smaller than transactions so that the producer sends one while the next
/// is encoded.
const BATCH_BYTES_MAX: usize = 256 << 10;
const BATCH_RECORDS_MAX: usize = 1_000;
/// How long to wait for the source if there is nothing to commit.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// How often a position that changed without records is stored.
const POSITION_EVERY: Duration = Duration::from_secs(5);

/// What to do if the stored position is incompatible with the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMismatch {
    /// Stay in `NEEDS_RESYNC` until an operator requests a resync.
    #[default]
    Stop,
    /// Start a new source epoch with a snapshot.
    Resync,
}

/// Environment of the loop.
#[derive(Clone)]
pub struct Context {
    /// Name of the connector.
    pub name: String,
    /// Transactional id. A process that opens it fences an older process of the same connector.
    pub transactional_id: String,
    /// The positions topic. It is created if it does not exist.
    pub positions_topic: String,
    /// The log.
    pub log: SharedEventLog,
    /// The schema registry, for the schema of position records.
    pub registry: Arc<dyn Registry>,
    /// The clock, for the time in position records.
    pub clock: SharedClock,
    /// Runtime of the source's async code.
    pub runtime: Runtime,
    /// State and commands of the connector.
    pub handle: Handle,
    /// What to do if the stored position is incompatible with the source.
    pub on_mismatch: OnMismatch,
}

/// Runs a source until the drain starts. Blocks; call it on a dedicated thread.
///
/// # Errors
/// [`Error::Fenced`] if another process has taken over. Every other error changes the state and is retried.
pub fn run<S: Source>(mut source: S, context: &Context, drain: &Drain) -> Result<()> {
    let desired = context.handle.desired();
    {
        let _inside = context.runtime.enter();
        source.start(&context.handle);
    }
    let mut connector = Connector {
        context,
        drain,
        desired,
        producer: None,
        last_error: None,
    };
    let result = connector.run(&mut source);
    source.close();
    match &result {
        Ok(()) => context.handle.set(State::Stopped, None, None),
        Err(error) => {
            let (text, fix) = (chain(error), error.fix(&context.name));
            tracing::error!(connector = %context.name, error = text, fix, "connector stopped");
            context.handle.set(State::Stopped, Some(text), Some(fix));
        }
    }
    result
}

/// Why one attempt of the loop ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The process is draining.
    Drain,
    /// An operator has paused or resynced the connector.
    Command,
    /// A transaction was not committed: the next attempt starts at the stored position.
    Uncommitted,
}

struct Connector<'c> {
    context: &'c Context,
    drain: &'c Drain,
    desired: watch::Receiver<DesiredState>,
    producer: Option<Box<dyn TransactionalProducer>>,
    /// The last error that was logged, so that a persistent error is logged only once.
    last_error: Option<String>,
}

impl Connector<'_> {
    fn run<S: Source>(&mut self, source: &mut S) -> Result<()> {
        let mut retry = Retry::new();
        while !self.drain.is_draining() {
            let paused = self.desired.borrow_and_update().paused;
            if paused {
                self.context.handle.set(State::Paused, None, None);
                self.sleep(None);
                continue;
            }
            let result = self.attempt(source, &mut retry);
            // Release the slot before anything else: after fencing or an unknown outcome, nothing more may be
            // acknowledged (C14).
            source.close();
            match result {
                Ok(End::Drain | End::Command) => {}
                Ok(End::Uncommitted) => match retry.failed() {
                    Next::After(delay) => self.wait(Some(delay)),
                    Next::Operator => self.give_up_snapshot("its transactions do not commit"),
                },
                Err(error @ Error::Fenced { .. }) => return Err(error),
                Err(error) => self.handle_error(&error, retry.failed()),
            }
        }
        Ok(())
    }

    /// Publishes an error as the connector's state and waits before the next attempt.
    fn handle_error(&mut self, error: &Error, next: Next) {
        let name = &self.context.name;
        let (state, text, fix) = (error.state(), chain(error), error.fix(name));
        if state == State::NeedsResync && self.context.on_mismatch == OnMismatch::Resync {
            tracing::warn!(connector = %name, reason = text, "starting a new source epoch with a snapshot");
            // If the new source epoch is rejected too, wait before the next one is started.
            match next {
                Next::After(delay) => {
                    self.wait(Some(delay));
                    self.context.handle.resync();
                }
                Next::Operator => self.give_up_snapshot(&text),
            }
            return;
        }
        if self.last_error.as_ref() != Some(&text) {
            tracing::error!(connector = %name, state = state.name(), error = text, fix, "connector failed");
            self.last_error = Some(text.clone());
        }
        metrics::counter!("trunkline_connector_errors_total", "connector" => name.clone()).increment(1);
        self.context.handle.set(state, Some(text.clone()), Some(fix));
        match next {
            // After a mismatch, the source is also opened again: the right database may be available later, for example
            // after a failed restore.
            Next::After(_) if state == State::NeedsResync => self.wait(Some(retry::MAX)),
            Next::After(delay) => self.wait(Some(delay)),
            Next::Operator => self.give_up_snapshot(&text),
        }
    }

    /// Stops retrying, because each attempt publishes the whole snapshot again and would fill the disks of the log.
    fn give_up_snapshot(&mut self, reason: &str) {
        let name = &self.context.name;
        let cause = format!(
            "the snapshot failed {} times in sequence and is not retried: {reason}",
            retry::SNAPSHOTS_MAX
        );
        let fix = String::from("fix the cause, then restart the process");
        tracing::error!(connector = %name, error = cause, fix, "snapshot abandoned");
        self.context.handle.set(State::Failed, Some(cause), Some(fix));
        self.wait(None);
    }

    /// Waits until the drain starts, a command arrives or `limit` has elapsed. Returns immediately if a command is
    /// pending.
    fn wait(&mut self, limit: Option<Duration>) {
        let DesiredState { paused, resync } = *self.desired.borrow_and_update();
        if !paused && !resync {
            self.sleep(limit);
        }
    }

    fn sleep(&mut self, limit: Option<Duration>) {
        let desired = &mut self.desired;
        self.context.runtime.block_on(async {
            tokio::select! {
                () = self.drain.started() => {}
                _ = desired.changed() => {}
                () = async { match limit {
                    Some(limit) => tokio::time::sleep(limit).await,
                    None => std::future::pending().await,
                }} => {}
            }
        });
    }

    /// Initializes the producer, reads the position, opens the source and publishes until something ends it.
    fn attempt<S: Source>(&mut self, source: &mut S, retry: &mut Retry<S::Position>) -> Result<End> {
        let context = self.context;
        if self.last_error.is_none() {
            context.handle.set(State::Starting, None, None);
        }
        let mut positions = Positions::open(context)?;
        // Fencing must precede the read: a position that is read before `init_transactions` may be older than one that
        // a previous process still commits.
        let mut producer = self.init_producer()?;
        failpoint::hit("connector.initialized");
        let stored = positions.read(&mut *producer)?;
        let mut position = self.parse::<S::Position>(stored.as_ref())?;
        if self.desired.borrow().resync {
            let restart = self.restart_position(source, stored.as_ref(), position.as_ref())?;
            if !store_position(&mut *producer, &mut positions, &restart)? {
                return Ok(End::Uncommitted);
            }
            context.handle.resync_started();
            position = Some(restart);
        }
        retry.begin(position.as_ref());
        if let Some(position) = &position {
            context.handle.update(|report| report.position = position.to_string());
        }
        let record_bytes_max = match source.topic() {
            Some(topic) => dlq::prepare(&*context.log, topic)?,
            None => usize::MAX,
        };
        let opened = context.runtime.block_on(source.open(position, record_bytes_max));
        if opened.is_ok() {
            failpoint::hit("connector.opened");
        }
        let result = opened.and_then(|()| {
            Pump {
                connector: self,
                source,
                producer: &mut *producer,
                positions: &mut positions,
            }
            .run(retry)
        });
        // The producer is kept: `init_transactions` makes it usable again, regardless of its last transaction.
        self.producer = Some(producer);
        result
    }

    /// Parses the stored position; `None` if there is none, or if it cannot be read and a resync replaces it.
    fn parse<P: super::Position>(&self, stored: Option<&Stored>) -> Result<Option<P>> {
        let Some(stored) = stored else { return Ok(None) };
        let name = &self.context.name;
        match P::from_json(&stored.moving, stored.static_part.as_deref()) {
            Ok(position) => Ok(Some(position)),
            Err(Unreadable::StartOver(_)) if self.desired.borrow().resync => Ok(None),
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
        let name = &self.context.name;
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
        let name = &self.context.name;
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
                    transactional_id: self.context.transactional_id.clone(),
                    transaction_timeout: TRANSACTION_TIMEOUT,
                };
                self.context
                    .log
                    .transactional_producer(config)
                    .map_err(Error::log("open the transactional producer"))
            }
        }
    }
}

/// Stores a position in a transaction without other records. Returns whether the commit is known to have succeeded.
fn store_position<P: super::Position>(
    producer: &mut dyn TransactionalProducer,
    positions: &mut Positions,
    position: &P,
) -> Result<bool> {
    producer.begin().map_err(Error::log("begin a transaction"))?;
    producer
        .send(positions.records(position))
        .map_err(Error::log("store the position"))?;
    Ok(matches!(producer.commit(None), Outcome::Committed(_)))
}

/// Moves batches from an open source into transactions.
///
/// The records of a batch and the position after them are always sent in the same transaction (C14). After a crash at
/// any point, the stored position is therefore directly after the last published record.
struct Pump<'r, 'c, S: Source> {
    connector: &'r mut Connector<'c>,
    source: &'r mut S,
    producer: &'r mut dyn TransactionalProducer,
    positions: &'r mut Positions,
}

/// The open transaction.
#[derive(Default)]
struct OpenTransaction {
    /// Start of the transaction; `None` if none is open.
    since: Option<Instant>,
    bytes: usize,
    records: usize,
    dead_letters: u64,
}

impl<S: Source> Pump<'_, '_, S> {
    fn run(&mut self, retry: &mut Retry<S::Position>) -> Result<End> {
        let mut batch = Batch::default();
        let mut open = OpenTransaction::default();
        let mut pace = Pace::default();
        let mut stored_at = Instant::now();
        loop {
            let idle = open.records == 0 && batch.records.is_empty();
            let wait = if idle { IDLE_WAIT } else { pace.left() };
            let read = self.read(&mut batch, wait);
            let failed = match read {
                Ok(None) => return Ok(self.abort(&open)),
                Ok(Some(Boundary::Full)) if !self.is_due(&open, &batch) => {
                    self.send(&mut batch, &mut open)?;
                    continue;
                }
                Ok(Some(_)) => {
                    self.report_healthy();
                    None
                }
                Err(error) => Some(error),
            };
            let records = open.records + batch.records.len();
            let position_due = batch.position.is_some() && (batch.store_now || stored_at.elapsed() >= POSITION_EVERY);
            let paced = records > 0 && !self.is_due(&open, &batch) && !pace.left().is_zero();
            if failed.is_none() && (paced || (records == 0 && !position_due)) {
                continue;
            }
            // What was read before the error is committed first. Otherwise, a record that cannot be published would
            // also block the records before it in every attempt.
            if let Some(position) = batch.position.take().filter(|_| failed.is_none() || records > 0) {
                batch.store_now = false;
                self.send(&mut batch, &mut open)?;
                if !self.commit(&position, &mut open)? {
                    return Ok(End::Uncommitted);
                }
                pace.committed(records);
                stored_at = Instant::now();
                retry.committed(&position, records > 0);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// Lets the source fill the batch; `None` if the drain has started or a command is pending.
    fn read(&mut self, batch: &mut Batch<S::Position>, wait: Duration) -> Result<Option<Boundary>> {
        let budget = Budget {
            wait,
            bytes_max: BATCH_BYTES_MAX,
            records_max: BATCH_RECORDS_MAX,
        };
        let drain = self.connector.drain;
        if drain.is_draining() || self.has_command() {
            return Ok(None);
        }
        // Unconstrained: a source polls many ready messages in one call, and tokio's cooperative budget would make it
        // yield after 128 of them.
        let next = tokio::task::unconstrained(self.source.next(batch, budget));
        let mut desired = self.connector.desired.clone();
        self.connector.context.runtime.block_on(async {
            tokio::select! {
                biased;
                boundary = next => boundary.map(Some),
                () = drain.started() => Ok(None),
                // A source can wait for long, for example until a replication slot is created.
                _ = desired.wait_for(DesiredState::is_command) => Ok(None),
            }
        })
    }

    fn has_command(&self) -> bool {
        self.connector.desired.borrow().is_command()
    }

    /// Aborts the open transaction, if any. Its records are read again from the stored position.
    fn abort(&mut self, open: &OpenTransaction) -> End {
        if open.since.is_some()
            && let Err(error) = self.producer.abort()
        {
            // This failure has no effect: the next `init_transactions`, or the transaction timeout, ends the
            // transaction.
            tracing::debug!(connector = %self.connector.context.name, %error, "abort failed");
        }
        if self.connector.drain.is_draining() {
            End::Drain
        } else {
            End::Command
        }
    }

    fn is_due(&self, open: &OpenTransaction, batch: &Batch<S::Position>) -> bool {
        batch.store_now
            || open.bytes + batch.records.byte_len() >= TRANSACTION_BYTES_MAX
            || open.since.is_some_and(|since| since.elapsed() >= OPEN_MAX)
    }

    /// Sends the batch's records, after beginning a transaction if none is open.
    fn send(&mut self, batch: &mut Batch<S::Position>, open: &mut OpenTransaction) -> Result<()> {
        if open.since.is_none() {
            if let Err(error) = self.producer.begin() {
                return Err(self.producer_error("begin a transaction", error, open));
            }
            open.since = Some(Instant::now());
        }
        if batch.records.is_empty() {
            return Ok(());
        }
        failpoint::hit("connector.before_send");
        if let Err(error) = self.producer.send(&batch.records) {
            return Err(self.producer_error("send records", error, open));
        }
        failpoint::hit("connector.after_send");
        open.bytes += batch.records.byte_len();
        open.records += batch.records.len();
        open.dead_letters += std::mem::take(&mut batch.dead_letters);
        batch.records.clear();
        Ok(())
    }

    /// Classifies a producer error. If the producer was fenced after the transaction timeout, the cause is the log,
    /// which aborted the transaction and raised the producer epoch; this is retried. Otherwise another process fenced
    /// it, which is final.
    fn producer_error(&self, attempted: &'static str, error: event_log::Error, open: &OpenTransaction) -> Error {
        let timed_out = open.since.is_some_and(|since| since.elapsed() >= TRANSACTION_TIMEOUT);
        match error {
            event_log::Error::Fenced { .. } if !timed_out => Error::Fenced {
                connector: self.connector.context.name.clone(),
            },
            source => Error::EventLog { attempted, source },
        }
    }

    /// Adds the position to the open transaction and commits it. Returns whether the commit is known to have succeeded.
    fn commit(&mut self, position: &S::Position, open: &mut OpenTransaction) -> Result<bool> {
        let name = &self.connector.context.name;
        let started = Instant::now();
        let age = open.since.map_or(Duration::ZERO, |since| since.elapsed());
        // The position is written in the transaction of its records (C14). If it were committed separately, a crash
        // between the two commits would publish the records twice, or lose them if the source has already discarded
        // them.
        if let Err(error) = self.producer.send(self.positions.records(position)) {
            return Err(self.producer_error("store the position", error, open));
        }
        failpoint::hit("connector.before_commit");
        match self.producer.commit(None) {
            Outcome::Committed(_) => {}
            Outcome::Aborted { fenced: true, .. } if age < TRANSACTION_TIMEOUT => {
                self.source.close();
                return Err(Error::Fenced {
                    connector: name.clone(),
                });
            }
            // After an unknown outcome the transaction may still be committed. It is not retried and nothing is
            // acknowledged: the position that is read after `init_transactions` shows whether it was committed (C5).
            Outcome::Aborted { reason, .. } | Outcome::Unknown { reason } => {
                self.source.close();
                tracing::warn!(connector = %name, reason, "transaction not committed, restarting from the stored position");
                return Ok(false);
            }
        }
        failpoint::hit("connector.after_commit");
        // Called only here, after a known commit, because the source may discard everything up to the position.
        self.source.committed(position);
        failpoint::hit("connector.after_acknowledge");
        let records = u64::try_from(open.records).unwrap_or(u64::MAX);
        metrics::counter!("trunkline_connector_dead_letters_total", "connector" => name.clone())
            .increment(open.dead_letters);
        *open = OpenTransaction::default();
        metrics::counter!("trunkline_connector_records_total", "connector" => name.clone()).increment(records);
        metrics::histogram!("trunkline_connector_commit_seconds", "connector" => name.clone())
            .record(started.elapsed().as_secs_f64());
        self.connector.context.handle.update(|report| {
            report.records_total += records;
            report.position = position.to_string();
        });
        Ok(true)
    }

    /// Updates state, report and metrics while the source works.
    fn report_healthy(&mut self) {
        let progress = self.source.progress();
        let (name, handle) = (&self.connector.context.name, &self.connector.context.handle);
        let state = if progress.snapshot.is_some() {
            State::Snapshotting
        } else {
            State::Running
        };
        handle.set_tables(&progress.tables);
        let report = handle.report();
        if report.state != state || report.cause.is_some() {
            handle.set(state, None, None);
            if self.connector.last_error.take().is_some() {
                tracing::info!(connector = %name, state = state.name(), "connector recovered");
            }
        }
        if let Some(lag) = progress.lag_bytes
            && report.lag_bytes != Some(lag)
        {
            handle.update(|report| report.lag_bytes = Some(lag));
            #[expect(
                clippy::as_conversions,
                reason = "gauges are floats, which are exact up to 2^53 bytes"
            )]
            metrics::gauge!("trunkline_connector_slot_lag_bytes", "connector" => name.clone()).set(lag as f64);
        }
    }
}

#[cfg(test)]
mod tests;
