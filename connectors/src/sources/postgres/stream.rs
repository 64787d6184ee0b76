//! The streaming phase: converts frames of the replication connection to records, and reviews observations of the
//! catalog when the stream has reached their LSN.

use super::changes::{self, Changes};
use super::declaration::Declaration;
use super::drift::{self, Verdict};
use super::monitor::{Monitor, Observation};
use super::pgoutput;
use super::position::Position;
use super::replication::{Frame, Replication};
use super::snapshots::Snapshots;
use crate::error::Result;
use crate::source::{Batch, Boundary, Budget};
use schemas::version::Lsn;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Minimum delay between the commit of a position and its acknowledgement to the slot.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_secs(2);
/// How long to wait for the rest of a source transaction before an incomplete one is returned.
const REST_OF_TRANSACTION: Duration = Duration::from_millis(20);
/// How long to wait for a frame while the reader of snapshots is about to reply.
const SNAPSHOT_WAIT: Duration = Duration::from_millis(20);

/// An open stream.
pub(super) struct Stream {
    declaration: Arc<Declaration>,
    replication: Replication,
    changes: Changes,
    acknowledgement: DelayedAcknowledgement,
    monitor: Monitor,
    /// An observation of the catalog whose LSN the stream has not reached yet.
    observation: Option<Observation>,
    lag_bytes: Option<u64>,
    snapshots: Snapshots,
    /// Whether snapshots were requested and the position is not returned yet.
    is_requested: bool,
}

/// The committed LSN that is not acknowledged yet.
///
/// An acknowledgement is irreversible: the server removes the WAL. A single broker without replicas can lose a
/// committed transaction if it stops under load (ADR 5). A position is therefore acknowledged only when another commit
/// succeeds at least [`ACKNOWLEDGE_AFTER`] later, so that records that the broker loses within that time can be read
/// again.
#[derive(Debug, Default)]
struct DelayedAcknowledgement {
    pending: Option<(Instant, Lsn)>,
}

impl DelayedAcknowledgement {
    /// Records that `lsn` was committed at `now`; returns the LSN that may be acknowledged, if any.
    fn committed(&mut self, now: Instant, lsn: Lsn) -> Option<Lsn> {
        let Some((at, earlier)) = self.pending else {
            self.pending = Some((now, lsn));
            return None;
        };
        if now.saturating_duration_since(at) < ACKNOWLEDGE_AFTER {
            return None;
        }
        self.pending = Some((now, lsn));
        Some(earlier)
    }
}

impl Stream {
    pub(super) fn new(
        declaration: Arc<Declaration>,
        replication: Replication,
        changes: Changes,
        monitor: Monitor,
        snapshots: Snapshots,
    ) -> Self {
        Stream {
            declaration,
            replication,
            changes,
            acknowledgement: DelayedAcknowledgement::default(),
            monitor,
            observation: None,
            lag_bytes: None,
            snapshots,
            is_requested: false,
        }
    }

    /// The position after the last record.
    pub(super) fn position(&self) -> &Position {
        self.changes.position()
    }

    /// Bytes of WAL that the slot has not acknowledged, as of the last heartbeat.
    pub(super) fn lag_bytes(&self) -> Option<u64> {
        self.lag_bytes
    }

    /// Requests snapshots of tables; returns the first one that is not declared.
    pub(super) fn request_snapshots<'t>(&mut self, tables: &'t [String]) -> std::result::Result<(), &'t str> {
        let known = &self.changes.position().source;
        if let Some(unknown) = tables.iter().find(|table| known.table(table).is_none()) {
            return Err(unknown);
        }
        for table in tables {
            self.changes.want_snapshot(table);
        }
        self.is_requested = true;
        Ok(())
    }

    /// The snapshots of single tables.
    pub(super) fn snapshots(&self) -> (&Snapshots, &Changes) {
        (&self.snapshots, &self.changes)
    }

    /// Everything up to this LSN is committed.
    pub(super) fn committed(&mut self, lsn: Lsn) {
        if let Some(lsn) = self.acknowledgement.committed(Instant::now(), lsn) {
            self.replication.acknowledge(lsn);
        }
    }

    /// Closes the connection without another acknowledgement.
    pub(super) fn close(self) {
        self.replication.close();
    }

    /// Appends the changes that have arrived. Inside a source transaction, waits briefly for the rest of it.
    pub(super) async fn next(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        if let Some(observation) = self.monitor.poll() {
            self.lag_bytes = observation.lag_bytes;
            // Keep the older observation, because the stream reaches it first.
            self.observation.get_or_insert(observation);
        }
        batch.store_now |= std::mem::take(&mut self.is_requested);
        batch.store_now |= self.snapshots.advance(&mut self.changes);
        let result = self.fill(batch, budget).await.and_then(|boundary| {
            let reached = self.changes.position().complete_lsn;
            if let Some(observation) = self.observation.take_if(|observation| observation.at <= reached) {
                self.review(&observation)?;
                // Publish immediately which tables were stopped, unless a source transaction is open.
                self.changes.advance(reached, &mut batch.records);
            }
            Ok(boundary)
        });
        batch.dead_letters += self.changes.take_dead_letters();
        // Set the position after an error too: the records before the error can be committed.
        batch.position = Some(self.changes.position().clone());
        result
    }

    /// Compares the declared tables with an observation of the catalog. Stops each table that no longer matches.
    fn review(&mut self, observation: &Observation) -> Result<()> {
        let declaration = Arc::clone(&self.declaration);
        let catalog = &observation.catalog;
        let source = self.changes.position().source.clone();
        declaration.check_publication(&source.content().publication, catalog)?;
        for table in &declaration.tables {
            let name = table.name.as_str();
            let Some(record) = source.table(name).filter(|r| r.needs_snapshot.is_none()) else {
                continue;
            };
            let record = observation.rewrites.follow(record);
            let cause = match drift::compare(table, &record, catalog, &declaration.publication) {
                Verdict::NeedsSnapshot(cause) => cause,
                Verdict::Fits(mut now) => match drift::truncated_partition(&table.name, &record, catalog) {
                    Some(cause) => cause,
                    None => {
                        if self.changes.truncated_at(name).is_none_or(|at| at <= observation.at) {
                            drift::record_file_nodes(&mut now, &table.name, catalog);
                        }
                        self.changes.set_record(name, *now);
                        continue;
                    }
                },
            };
            let first = declaration.first_fix(table, catalog, &record.columns);
            self.changes.stop(name, cause, first.as_deref());
        }
        let source = self.changes.position().source.clone();
        let tables = declaration.repairable(source.content(), catalog);
        self.snapshots.request_automatic(&mut self.changes, tables);
        Ok(())
    }

    async fn fill(&mut self, batch: &mut Batch<Position>, budget: Budget) -> Result<Boundary> {
        let until = Instant::now() + budget.wait;
        let mut received = false;
        loop {
            let full = batch.records.len() >= budget.records_max || batch.records.byte_len() >= budget.bytes_max;
            if full {
                return Ok(Boundary::Full);
            }
            let wait = match (received, self.changes.is_inside()) {
                (false, _) => until.saturating_duration_since(Instant::now()),
                (true, true) => REST_OF_TRANSACTION,
                (true, false) => Duration::ZERO,
            };
            let wait = if self.snapshots.is_waiting() {
                wait.min(SNAPSHOT_WAIT)
            } else {
                wait
            };
            let mut frame = self.replication.next(Duration::ZERO).await?;
            if frame.is_none() && !wait.is_zero() {
                frame = self.replication.next(wait).await?;
            }
            match frame {
                Some(frame) => {
                    self.apply(frame, batch)?;
                    received = true;
                }
                None if received => return Ok(Boundary::Drained),
                None => return Ok(Boundary::Idle),
            }
        }
    }

    fn apply(&mut self, frame: Frame, batch: &mut Batch<Position>) -> Result<()> {
        match frame {
            Frame::Change(bytes) => {
                let message = pgoutput::decode(&bytes).map_err(changes::decode_error)?;
                self.changes.change(&message, &mut batch.records)
            }
            Frame::Begin {
                commit_lsn,
                commit_time_micros,
                xid,
            } => {
                self.changes.begin(commit_lsn, commit_time_micros, xid);
                Ok(())
            }
            Frame::Commit { end_lsn } => {
                self.changes.commit(end_lsn, &mut batch.records);
                Ok(())
            }
            Frame::KeepAlive { end: lsn } => {
                self.changes.advance(lsn, &mut batch.records);
                Ok(())
            }
            Frame::Message { lsn, watermark } => {
                self.changes.advance(lsn, &mut batch.records);
                if let Some(mark) = watermark {
                    let (snapshots, changes) = (&mut self.snapshots, &mut self.changes);
                    batch.store_now |= snapshots.watermark(&mark, lsn, changes, &mut batch.records)?;
                }
                Ok(())
            }
            Frame::Ignored => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_is_acknowledged_by_a_commit_two_seconds_later() {
        let (mut acknowledgement, start) = (DelayedAcknowledgement::default(), Instant::now());
        let mut at = |ms, lsn| acknowledgement.committed(start + Duration::from_millis(ms), Lsn(lsn));
        assert_eq!([at(0, 1), at(900, 2), at(1_999, 3)], [None; 3]);
        assert_eq!(
            [at(2_000, 4), at(3_000, 5), at(4_100, 6)],
            [Some(Lsn(1)), None, Some(Lsn(4))]
        );
    }
}
