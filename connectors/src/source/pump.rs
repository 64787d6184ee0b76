//! Moves the records of an open source into transactions.

use super::lifecycle::Lifecycle;
use super::positions::Positions;
use super::retry::Retry;
use super::{Batch, Boundary, Budget, Request, Source};
use crate::commands::{CommandError, DesiredState, Waiting, confirm};
use crate::error::{Error, Result};
use crate::pace::Pace;
use crate::status::State;
use event_log::{Outcome, TransactionalProducer};
use service::chain;
use std::time::{Duration, Instant};

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

/// How often, and for how long after the source was opened, a pending snapshot is requested that the source rejects.
const PENDING_EVERY: Duration = Duration::from_millis(500);
const PENDING_MAX: Duration = Duration::from_mins(1);

/// Why one attempt of the loop ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The process is draining.
    Drain,
    /// An operator has sent a command for which the source must be closed.
    Command,
    /// An operator has paused the connector.
    Paused,
    /// A transaction was not committed: the next attempt starts at the stored position.
    Uncommitted,
}

/// Moves batches from an open source into transactions.
///
/// The records of a batch and the position after them are always sent in the same transaction (C14). After a crash at
/// any point, the stored position is therefore directly after the last published record.
pub(super) struct Pump<'r, 'c, S: Source> {
    lifecycle: &'r mut Lifecycle<'c>,
    source: &'r mut S,
    producer: &'r mut dyn TransactionalProducer,
    positions: &'r mut Positions,
    requests: Requests,
}

/// Requests that the source has accepted. They are durable once the next position is committed.
struct Requests {
    /// Commands to answer then.
    unconfirmed: Vec<Waiting>,
    /// The desired state without the requests, to be stored with that position.
    desired: Option<DesiredState>,
    /// When the source was opened, and when pending snapshots were requested last.
    opened_at: Instant,
    tried_at: Option<Instant>,
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

impl<'r, 'c, S: Source> Pump<'r, 'c, S> {
    pub(super) fn new(
        lifecycle: &'r mut Lifecycle<'c>,
        source: &'r mut S,
        producer: &'r mut dyn TransactionalProducer,
        positions: &'r mut Positions,
    ) -> Self {
        Pump {
            lifecycle,
            source,
            producer,
            positions,
            requests: Requests {
                unconfirmed: Vec::new(),
                desired: None,
                opened_at: Instant::now(),
                tried_at: None,
            },
        }
    }

    pub(super) fn run(&mut self, retry: &mut Retry<S::Position>) -> Result<End> {
        let mut batch = Batch::default();
        let mut open = OpenTransaction::default();
        let mut pace = Pace::default();
        let mut stored_at = Instant::now();
        loop {
            let idle = open.records == 0 && batch.records.is_empty();
            // A request becomes durable with the next position that the source returns, so a position that it returned
            // before is committed first.
            let has_request = !self.lifecycle.inbox.is_empty();
            if has_request && idle && batch.position.is_none() {
                self.request_received();
            }
            if idle && batch.position.is_none() && self.has_pending() {
                self.request_pending();
            }
            let wait = if idle { IDLE_WAIT } else { pace.left() };
            let read = self.read(&mut batch, wait);
            let failed = match read {
                Ok(None) => return Ok(self.abort(&open)),
                Ok(Some(Boundary::Full)) if !has_request && !self.is_due(&open, &batch) => {
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
            let position_due =
                batch.position.is_some() && (batch.store_now || has_request || stored_at.elapsed() >= POSITION_EVERY);
            let paced = records > 0 && !has_request && !self.is_due(&open, &batch) && !pace.left().is_zero();
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
                retry.committed(&position);
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
    }

    /// Lets the source fill the batch; `None` if the drain has started or a command requires that the source is closed.
    fn read(&mut self, batch: &mut Batch<S::Position>, wait: Duration) -> Result<Option<Boundary>> {
        let budget = Budget {
            wait,
            bytes_max: BATCH_BYTES_MAX,
            records_max: BATCH_RECORDS_MAX,
        };
        let Lifecycle {
            context, drain, inbox, ..
        } = &mut *self.lifecycle;
        inbox.receive();
        if drain.is_draining() || inbox.closes_source() {
            return Ok(None);
        }
        // Unconstrained: a source polls many ready messages in one call, and tokio's cooperative budget would make it
        // yield after 128 of them.
        let next = tokio::task::unconstrained(self.source.next(batch, budget));
        context.runtime.block_on(async {
            tokio::pin!(next);
            loop {
                tokio::select! {
                    biased;
                    boundary = &mut next => return boundary.map(Some),
                    () = drain.started() => return Ok(None),
                    // The creation of a slot can take hours, so a command may not wait for the source.
                    () = inbox.wait() => if inbox.closes_source() {
                        return Ok(None);
                    },
                }
            }
        })
    }

    /// Passes the received snapshot commands to the source.
    fn request_received(&mut self) {
        let (source, name) = (&mut *self.source, &self.lifecycle.context.name);
        let accepted = self.lifecycle.inbox.take_snapshots(|tables| {
            let request = Request::Snapshot {
                tables: tables.to_vec(),
            };
            source.request(&request).map_err(|error| CommandError::Rejected {
                reason: chain(&error),
                fix: error.fix(name),
            })
        });
        self.requests.unconfirmed.extend(accepted);
    }

    /// Whether snapshots that were requested while the source was closed are requested now.
    fn has_pending(&self) -> bool {
        let tried = self.requests.tried_at;
        !self.lifecycle.desired.snapshot.is_empty()
            && self.requests.desired.is_none()
            && tried.is_none_or(|tried| tried.elapsed() >= PENDING_EVERY)
    }

    /// Passes the snapshots to the source that were requested while it was closed. A table that the source rejects does
    /// not affect the others. It stays pending for a while, because a source may accept requests only once it streams.
    fn request_pending(&mut self) {
        self.requests.tried_at = Some(Instant::now());
        let desired = &self.lifecycle.desired;
        let mut rejected = desired.snapshot.clone();
        let tables: Vec<String> = rejected.iter().cloned().collect();
        if self
            .source
            .request(&Request::Snapshot { tables: tables.clone() })
            .is_ok()
        {
            rejected.clear();
        } else if tables.len() > 1 {
            let source = &mut *self.source;
            rejected.retain(|table| {
                let tables = vec![table.clone()];
                source.request(&Request::Snapshot { tables }).is_err()
            });
        }
        if self.requests.opened_at.elapsed() > PENDING_MAX {
            for table in std::mem::take(&mut rejected) {
                let connector = &self.lifecycle.context.name;
                tracing::error!(%connector, table, "pending snapshot discarded, the source rejects it");
            }
        }
        if rejected != desired.snapshot {
            self.requests.desired = Some(DesiredState {
                target: desired.target,
                snapshot: rejected,
            });
        }
    }

    /// Aborts the open transaction, if any. Its records are read again from the stored position.
    fn abort(&mut self, open: &OpenTransaction) -> End {
        if open.since.is_some()
            && let Err(error) = self.producer.abort()
        {
            // This failure has no effect: the next `init_transactions`, or the transaction timeout, ends the
            // transaction.
            tracing::debug!(connector = %self.lifecycle.context.name, %error, "abort failed");
        }
        if self.lifecycle.drain.is_draining() {
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
        match error {
            event_log::Error::Fenced { .. } if !self.may_have_expired(open) => Error::Fenced {
                connector: self.lifecycle.context.name.clone(),
            },
            source => Error::EventLog { attempted, source },
        }
    }

    /// Whether the log may have aborted the open transaction because of its timeout. Call it after the failed request:
    /// a commit waits for brokers that are down, and the transaction may expire while it waits.
    fn may_have_expired(&self, open: &OpenTransaction) -> bool {
        let timeout = self.lifecycle.context.transaction_timeout;
        open.since.is_some_and(|since| since.elapsed() >= timeout)
    }

    /// Adds the position to the open transaction and commits it. Returns whether the commit is known to have succeeded.
    fn commit(&mut self, position: &S::Position, open: &mut OpenTransaction) -> Result<bool> {
        let context = self.lifecycle.context;
        let name = &context.name;
        let started = Instant::now();
        // The position is written in the transaction of its records (C14). If it were committed separately, a crash
        // between the two commits would publish the records twice, or lose them if the source has already discarded
        // them.
        if let Err(error) = self
            .producer
            .send(self.positions.records(Some(position), self.requests.desired.as_ref()))
        {
            return Err(self.producer_error("store the position", error, open));
        }
        failpoint::hit("connector.before_commit");
        match self.producer.commit(None) {
            Outcome::Committed(_) => {}
            Outcome::Aborted { fenced: true, .. } if !self.may_have_expired(open) => {
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
        context.handle.update(|report| {
            report.records_total += records;
            report.position = position.to_string();
        });
        // Last, so that a client that then reads the report sees the effect of its command.
        if let Some(desired) = self.requests.desired.take() {
            self.lifecycle.set_desired(desired);
        }
        confirm(std::mem::take(&mut self.requests.unconfirmed));
        Ok(true)
    }

    /// Updates state, report and metrics while the source works.
    fn report_healthy(&mut self) {
        let progress = self.source.progress();
        let context = self.lifecycle.context;
        let (name, handle) = (&context.name, &context.handle);
        let state = if progress.snapshot.is_some() {
            State::Snapshotting
        } else {
            State::Running
        };
        handle.set_tables(&progress.tables);
        let report = handle.report();
        if report.state != state || report.cause.is_some() {
            handle.set(state, None, None);
            if self.lifecycle.last_error.take().is_some() {
                tracing::info!(connector = %name, state = state.name(), "connector recovered");
            }
        }
        if report.progress != progress.snapshot {
            handle.update(|report| report.progress.clone_from(&progress.snapshot));
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
