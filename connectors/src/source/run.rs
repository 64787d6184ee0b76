//! The one loop of every source.
//!
//! Protocol (design, sections 3 and 6): open the session, which fences a zombie of the same name → read the stored
//! position, up to the topic's raw end as it then was → open the source there → records and the new position in one
//! transaction → acknowledge to the source what is stored. Any outcome but `Committed` closes the source at once and
//! begins anew.
//!
//! Guarantees: each record is published once; a position is acknowledged only after it was stored; a failure of this
//! connector is a state of it, and it goes on by itself once the cause is gone.
//! Never: a commit of an unknown outcome tried again; a transaction held open for longer than the source has
//! something ready.

use super::positions::Positions;
use super::{Batch, Boundary, Budget, Position as _, Source};
use crate::error::{Error, Result};
use crate::pace::Pace;
use crate::status::{DesiredState, Handle, State};
use event_log::{Outcome, SharedEventLog, TransactionalProducer, TransactionalProducerConfig};
use registry::Registry;
use service::backoff::Backoff;
use service::{Drain, SharedClock, chain};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle as Runtime;
use tokio::sync::watch;

/// A dead connector's transaction holds readers back for this long at most.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// A transaction is committed after this long even if more is ready.
const OPEN_MAX: Duration = Duration::from_millis(40);
/// Bytes and records of a transaction.
const TRANSACTION_BYTES_MAX: usize = 8 << 20;
/// Bytes and records that are handed to the log at a time, so that it sends while the next are encoded.
const PIECE_BYTES_MAX: usize = 256 << 10;
const PIECE_RECORDS_MAX: usize = 1_000;
/// Waits before another try.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How long to wait for the source when there is nothing to commit.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// A position that moved without records is stored this often.
const POSITION_EVERY: Duration = Duration::from_secs(5);

/// What to do when the stored position does not fit the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMismatch {
    /// Stay in `NEEDS_RESYNC` until somebody asks for a resync.
    #[default]
    Stop,
    /// Start a new incarnation with a snapshot at once.
    Resync,
}

/// What the loop needs beside its source.
#[derive(Clone)]
pub struct Context {
    /// The connector's name; the transactional id is `connector.<name>`.
    pub name: String,
    /// The log.
    pub log: SharedEventLog,
    /// The registry, for the schema of the stored position.
    pub registry: Arc<dyn Registry>,
    /// The clock, for the stored position's own time.
    pub clock: SharedClock,
    /// Where async source code runs.
    pub runtime: Runtime,
    /// What readiness, metrics and operators see and ask.
    pub handle: Handle,
    /// What to do about a position that does not fit.
    pub on_mismatch: OnMismatch,
}

/// Runs a source until the drain. Blocks its thread; call it on one of its own.
///
/// # Errors
/// [`Error::Fenced`] when another process has taken over; every other error is a state, and is tried again.
pub fn run<S: Source>(mut source: S, context: &Context, drain: &Drain) -> Result<()> {
    let desired = context.handle.desired();
    let mut running = Running {
        context,
        drain,
        desired,
        session: None,
        said: None,
    };
    let ended = running.run(&mut source);
    source.close();
    match &ended {
        Ok(()) => context.handle.set(State::Stopped, None, None),
        Err(error) => {
            context
                .handle
                .set(State::Stopped, Some(chain(error)), Some(error.next(&context.name)));
            tracing::error!(connector = %context.name, next = %error.next(&context.name), "{}", chain(error));
        }
    }
    ended
}

/// Why a run of the source ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The process stops.
    Stop,
    /// An operator wants something else.
    DesiredState,
    /// A transaction did not commit: begin anew.
    Uncommitted,
}

struct Running<'c> {
    context: &'c Context,
    drain: &'c Drain,
    desired: watch::Receiver<DesiredState>,
    session: Option<Box<dyn TransactionalProducer>>,
    /// The last trouble that was logged; the same one is not logged again.
    said: Option<String>,
}

impl Running<'_> {
    fn run<S: Source>(&mut self, source: &mut S) -> Result<()> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        while !self.drain.is_draining() {
            if self.desired.borrow().paused {
                self.context.handle.set(State::Paused, None, None);
                self.wait(None);
                continue;
            }
            let ended = self.once(source, &mut backoff);
            // The slot is let go of before anything else, so that a loser acknowledges nothing.
            source.close();
            match ended {
                Ok(End::Stop | End::DesiredState) => {}
                Ok(End::Uncommitted) => self.wait(Some(backoff.next_delay())),
                Err(error @ Error::Fenced { .. }) => return Err(error),
                Err(error) => self.troubled(error, &mut backoff),
            }
        }
        Ok(())
    }

    /// Shows an error as the connector's state and waits before the next try.
    fn troubled(&mut self, error: Error, backoff: &mut Backoff) {
        let name = &self.context.name;
        let (state, text, next) = (error.state(), chain(&error), error.next(name));
        if state == State::NeedsResync && self.context.on_mismatch == OnMismatch::Resync {
            tracing::warn!(connector = %name, "{text}: starting a new incarnation with a snapshot");
            self.context.handle.resync();
            return;
        }
        if self.said.as_ref() != Some(&text) {
            tracing::error!(connector = %name, state = state.name(), %next, "{text}");
            self.said = Some(text.clone());
        }
        metrics::counter!("trunkline_connector_errors_total", "connector" => name.clone()).increment(1);
        self.context.handle.set(state, Some(text), Some(next));
        // A mismatch is looked at again, too: the right database may come back.
        let wait = if state == State::NeedsResync {
            RETRY_MAX
        } else {
            backoff.next_delay()
        };
        self.wait(Some(wait));
    }

    /// Waits for a stop, a new wish, or the time.
    fn wait(&mut self, limit: Option<Duration>) {
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

    /// One life of the session and the source.
    fn once<S: Source>(&mut self, source: &mut S, backoff: &mut Backoff) -> Result<End> {
        let context = self.context;
        if self.said.is_none() {
            context.handle.set(State::Starting, None, None);
        }
        let mut positions = Positions::open(context)?;
        let mut session = self.transactional_producer()?;
        failpoint::hit("connector.session");
        let stored = positions.read(&mut *session)?;
        let mut position = stored
            .as_deref()
            .map(S::Position::from_json)
            .transpose()
            .map_err(|reason| Error::Refused {
                reason: format!(
                    "the stored position of connector {} cannot be read: {reason}",
                    context.name
                ),
                next: String::from("run the version of trunkline that wrote it, or resync the connector"),
            })?;
        if self.desired.borrow().resync {
            let anew = source.restarted(position.as_ref()).ok_or_else(|| Error::Refused {
                reason: format!("connector {} has nothing to read anew", context.name),
                next: String::from("post the rows again"),
            })?;
            if !store(&mut *session, &mut positions, &anew)? {
                return Ok(End::Uncommitted);
            }
            context.handle.resync_begun();
            position = Some(anew);
        }
        if let Some(position) = &position {
            context.handle.update(|report| report.position = position.to_string());
        }
        // A source that does not open leaves a session behind that can be used again.
        let opened = context.runtime.block_on(source.open(position));
        if opened.is_ok() {
            failpoint::hit("connector.opened");
        }
        let ended = opened.and_then(|()| {
            Pump {
                running: self,
                source,
                session: &mut *session,
                positions: &mut positions,
            }
            .run(backoff)
        });
        self.session = Some(session);
        ended
    }

    /// The session, new inside: an earlier one of the same id is fenced and its open transaction ended.
    fn transactional_producer(&mut self) -> Result<Box<dyn TransactionalProducer>> {
        let name = &self.context.name;
        match self.session.take() {
            Some(mut session) => match session.init_transactions() {
                Ok(()) => Ok(session),
                Err(event_log::Error::Fenced { .. }) => Err(Error::Fenced {
                    connector: name.clone(),
                }),
                Err(source) => Err(Error::EventLog {
                    attempted: "init_transactions the transactional session",
                    source,
                }),
            },
            None => {
                let transactional_id = format!("connector.{name}");
                let config = TransactionalProducerConfig {
                    transactional_id,
                    transaction_timeout: TRANSACTION_TIMEOUT,
                };
                self.context
                    .log
                    .transactional_producer(config)
                    .map_err(Error::log("open a transactional session"))
            }
        }
    }
}

/// Stores a position alone; says whether it was committed.
fn store<P: super::Position>(
    session: &mut dyn TransactionalProducer,
    positions: &mut Positions,
    position: &P,
) -> Result<bool> {
    session.begin().map_err(Error::log("begin a transaction"))?;
    session
        .send(positions.record(position))
        .map_err(Error::log("store the position"))?;
    Ok(matches!(session.commit(None), Outcome::Committed(_)))
}

/// Moves batches from an open source into transactions.
struct Pump<'r, 'c, S: Source> {
    running: &'r mut Running<'c>,
    source: &'r mut S,
    session: &'r mut dyn TransactionalProducer,
    positions: &'r mut Positions,
}

/// The transaction that is open.
#[derive(Default)]
struct Open {
    since: Option<Instant>,
    bytes: usize,
    records: usize,
}

impl<S: Source> Pump<'_, '_, S> {
    fn run(&mut self, backoff: &mut Backoff) -> Result<End> {
        let mut batch = Batch::default();
        let mut open = Open::default();
        let mut pace = Pace::default();
        let mut stored_at = Instant::now();
        loop {
            let waiting = open.records == 0 && batch.records.is_empty();
            let wait = if waiting { IDLE_WAIT } else { pace.left() };
            let gathered = self.gather(&mut batch, wait);
            let failed = match gathered {
                Ok(None) => return Ok(self.leave(&open)),
                Ok(Some(Boundary::Full)) if !self.is_due(&open, &batch) => {
                    self.send(&mut batch, &mut open)?;
                    continue;
                }
                Ok(Some(_)) => {
                    self.healthy();
                    None
                }
                Err(error) => Some(error),
            };
            let records = open.records + batch.records.len();
            let moved = batch.position.is_some() && (batch.store_now || stored_at.elapsed() >= POSITION_EVERY);
            let early = records > 0 && !self.is_due(&open, &batch) && !pace.left().is_zero();
            if failed.is_none() && (early || (records == 0 && !moved)) {
                continue;
            }
            // What came before the trouble is published, or a record that cannot be would hold others back.
            if let Some(position) = batch.position.take().filter(|_| failed.is_none() || records > 0) {
                batch.store_now = false;
                self.send(&mut batch, &mut open)?;
                if !self.commit(&position, &mut open)? {
                    return Ok(End::Uncommitted);
                }
                pace.committed(records);
                stored_at = Instant::now();
                backoff.reset();
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// Lets the source fill the batch; `None` when the loop is asked to leave.
    fn gather(&mut self, batch: &mut Batch<S::Position>, wait: Duration) -> Result<Option<Boundary>> {
        let budget = Budget {
            wait,
            bytes_max: PIECE_BYTES_MAX,
            records_max: PIECE_RECORDS_MAX,
        };
        let drain = self.running.drain;
        if drain.is_draining() || self.is_wanted_elsewhere() {
            return Ok(None);
        }
        // Unconstrained: a source polls many ready messages in one call, which tokio's budget would break off.
        let next = tokio::task::unconstrained(self.source.next(batch, budget));
        self.running.context.runtime.block_on(async {
            tokio::select! {
                biased;
                boundary = next => boundary.map(Some),
                () = drain.started() => Ok(None),
            }
        })
    }

    /// Whether an operator wants something else than this run.
    fn is_wanted_elsewhere(&self) -> bool {
        let wish = self.running.desired.borrow();
        wish.paused || wish.resync
    }

    /// Ends the run between two transactions; what is in an open one will be read again.
    fn leave(&mut self, open: &Open) -> End {
        if open.since.is_some()
            && let Err(error) = self.session.abort()
        {
            tracing::debug!(connector = %self.running.context.name, %error, "abort on leaving");
        }
        if self.running.drain.is_draining() {
            End::Stop
        } else {
            End::DesiredState
        }
    }

    fn is_due(&self, open: &Open, batch: &Batch<S::Position>) -> bool {
        batch.store_now
            || open.bytes + batch.records.byte_len() >= TRANSACTION_BYTES_MAX
            || open.since.is_some_and(|since| since.elapsed() >= OPEN_MAX)
    }

    /// Hands the batch's records to the transaction, which begins with the first.
    fn send(&mut self, batch: &mut Batch<S::Position>, open: &mut Open) -> Result<()> {
        if open.since.is_none() {
            if let Err(error) = self.session.begin() {
                return Err(self.refused("begin a transaction", error, open));
            }
            open.since = Some(Instant::now());
        }
        if batch.records.is_empty() {
            return Ok(());
        }
        failpoint::hit("connector.before_send");
        if let Err(error) = self.session.send(&batch.records) {
            return Err(self.refused("send records", error, open));
        }
        failpoint::hit("connector.after_send");
        open.bytes += batch.records.byte_len();
        open.records += batch.records.len();
        batch.records.clear();
        Ok(())
    }

    /// What it means that the session refuses. A transaction that was open for too long was ended by the log itself;
    /// any other fencing is by another process.
    fn refused(&self, attempted: &'static str, error: event_log::Error, open: &Open) -> Error {
        let timed_out = open.since.is_some_and(|since| since.elapsed() >= TRANSACTION_TIMEOUT);
        match error {
            event_log::Error::Fenced { .. } if !timed_out => Error::Fenced {
                connector: self.running.context.name.clone(),
            },
            source => Error::EventLog { attempted, source },
        }
    }

    /// Commits the open transaction with the position; says whether it was committed.
    fn commit(&mut self, position: &S::Position, open: &mut Open) -> Result<bool> {
        let name = &self.running.context.name;
        let begun = Instant::now();
        let age = open.since.map_or(Duration::ZERO, |since| since.elapsed());
        if let Err(error) = self.session.send(self.positions.record(position)) {
            return Err(self.refused("store the position", error, open));
        }
        failpoint::hit("connector.before_commit");
        match self.session.commit(None) {
            Outcome::Committed(_) => {}
            Outcome::Aborted { fenced: true, .. } if age < TRANSACTION_TIMEOUT => {
                self.source.close();
                return Err(Error::Fenced {
                    connector: name.clone(),
                });
            }
            Outcome::Aborted { reason, .. } | Outcome::Unknown { reason } => {
                self.source.close();
                tracing::warn!(connector = %name, reason, "the transaction did not commit; reading the position anew");
                return Ok(false);
            }
        }
        failpoint::hit("connector.after_commit");
        self.source.committed(position);
        failpoint::hit("connector.after_acknowledge");
        let records = u64::try_from(open.records).unwrap_or(u64::MAX);
        *open = Open::default();
        metrics::counter!("trunkline_connector_records_total", "connector" => name.clone()).increment(records);
        metrics::histogram!("trunkline_connector_commit_seconds", "connector" => name.clone())
            .record(begun.elapsed().as_secs_f64());
        self.running.context.handle.update(|report| {
            report.records_total += records;
            report.position = position.to_string();
        });
        Ok(true)
    }

    /// Shows that all is well, and how far the source is.
    fn healthy(&mut self) {
        let progress = self.source.progress();
        let (name, handle) = (&self.running.context.name, &self.running.context.handle);
        let state = if progress.snapshot.is_some() {
            State::Snapshotting
        } else {
            State::Running
        };
        let report = handle.report();
        if report.state != state || report.cause.is_some() {
            handle.set(state, None, None);
            if self.running.said.take().is_some() {
                tracing::info!(connector = %name, "going on");
            }
        }
        if let Some(lag) = progress.lag_bytes
            && report.lag_bytes != Some(lag)
        {
            handle.update(|report| report.lag_bytes = Some(lag));
            #[expect(clippy::as_conversions, reason = "a gauge is a float; 2^53 bytes are enough")]
            metrics::gauge!("trunkline_connector_slot_lag_bytes", "connector" => name.clone()).set(lag as f64);
        }
    }
}
