//! The thread that reads `view.log` into the replica (docs/protocol/view-sync.md, "The replica").
//!
//! It opens the store and quarantines it if it belongs to another log, is corrupt or is too old. It then reads
//! committed records, applies them in offset order, wakes long polls, and looks up the end offsets of the log to prove
//! that the replica is current. Errors of the log are retried forever with a backoff of up to a few seconds; meanwhile
//! readiness reports the cause, and the proofs expire, so that polls answer 503 instead of possibly revoked data (I5).

use super::backlog::Backlog;
use super::handle::{ReadinessIssue, ReplicaHandle};
use super::position::ReplicaPosition;
use crate::config::{Engine, StoreConfig};
use aws_lc_rs::digest;
use event_log::{
    Isolation, Offset, OffsetSpec, Reader, RecordBatch, SharedEventLog, StartFrom, TopicInfo, TopicPartition,
};
use service::backoff::Backoff;
use service::{Component, Drain, SharedClock, chain};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use views::Replica;
use views::replica::{Applied, Error as ViewsError, FLUSH_BYTES, Options, SPACES, Times};

/// Maximum bytes of one poll of the reader.
const READ_BYTES: usize = 2 * 1024 * 1024;
/// How long one poll of the reader waits for records. Also bounds the reaction to a stop.
const READ_WAIT: Duration = Duration::from_millis(100);
/// Interval of the lookups that prove the replica current, while every partition is complete: a sixth of
/// `Times::proof_ms`, after which polls answer 503.
const PROVE_INTERVAL: Duration = Duration::from_secs(5);
/// Interval of these lookups while a partition is incomplete.
const PROVE_INTERVAL_INCOMPLETE: Duration = Duration::from_millis(200);
/// Interval of pruning tombstones and of checking the age of the store and the topic id.
const MAINTAIN_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum tombstones that one pruning removes per partition. Bounds how long the apply thread is blocked.
const PRUNE_MAX: usize = 10_000;
/// First and longest pause after an error.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// How long to wait for polls that still use a replica that is being closed.
const RELEASE_WAIT: Duration = Duration::from_secs(5);

/// Cause of a quarantine: cluster or topic id changed.
const RECREATED: &str = "the cluster or the topology's name changed, or topic view.log was deleted and created again";
/// Cause of a quarantine: see [`Replica::expired`].
const TOMBSTONES_MISSED: &str =
    "the replica was not current for nearly delete.retention.ms, so the log may have removed tombstones that it lacks";
/// Fix for errors of the store.
const CHECK_DISK: &str = "check free space and health of the disk of edge.data_dir; the edge retries";

/// What to follow and where to store it.
#[derive(Debug, Clone)]
pub struct FollowConfig {
    /// Name of the topic `view.log`.
    pub topic: String,
    /// Partition count that the topology declares for it.
    pub partitions: i32,
    /// Data directory of the edge.
    pub data_dir: PathBuf,
    /// Store of the replica.
    pub store: StoreConfig,
}

/// An error that stops the thread, because retrying cannot resolve it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// Another process has locked the store.
    #[error(
        "cannot open the store of the view replica, because another process has locked it; stop the process that uses the same edge.data_dir"
    )]
    Locked(#[source] state_store::Error),
}

/// Why a subscription ended.
enum SubscriptionError {
    /// A request to the log failed; the replica is unaffected.
    Log(&'static str, event_log::Error),
    /// The topic does not exist or does not match the topology.
    Topic(ReadinessIssue),
    /// The replica failed; its store is intact unless the error is `Unusable`.
    Replica(ViewsError),
    /// The store is unusable; quarantine it and read `view.log` from its start.
    StoreUnusable(String),
    /// The store cannot be opened.
    OpenStore(state_store::Error),
}

struct Subscription {
    identity: u64,
    replica: Arc<Replica>,
    reader: Box<dyn Reader>,
    partitions: Vec<TopicPartition>,
    backlog: Backlog,
    proved: Option<Instant>,
    maintained: Instant,
}

impl Subscription {
    /// Offset of the next record of a partition to apply.
    fn position(&self, at: &TopicPartition) -> Option<Offset> {
        if !self.backlog.contains(at) {
            return self.reader.position(at);
        }
        let positions = self.replica.positions();
        let own = positions.iter().find(|(partition, _)| *partition == at.partition);
        own.map(|(_, position)| *position)
    }
}

/// A replica that is open.
struct OpenReplica {
    identity: u64,
    replica: Arc<Replica>,
    store: state_store::SharedStore,
}

/// Follows `view.log`.
pub struct Follower {
    log: SharedEventLog,
    handle: Arc<ReplicaHandle>,
    config: FollowConfig,
    clock: SharedClock,
    readiness: Component,
    position: ReplicaPosition,
    stop: Drain,
    open: Option<OpenReplica>,
}

/// What a [`Follower`] uses to publish the replica, to wake polls, and to report and observe the state of the process.
pub struct FollowerContext {
    /// Handle through which polls get the open replica.
    pub handle: Arc<ReplicaHandle>,
    /// Clock for `as_of` and for proofs that the replica is current.
    pub clock: SharedClock,
    /// Readiness of the replica.
    pub readiness: Component,
    /// Where the position of the applied records is published.
    pub position: ReplicaPosition,
    /// Stops the thread.
    pub stop: Drain,
}

impl Follower {
    /// Creates a follower of `log`; [`Follower::run`] runs it.
    pub fn new(log: SharedEventLog, config: FollowConfig, context: FollowerContext) -> Self {
        let FollowerContext {
            handle,
            clock,
            readiness,
            position,
            stop,
        } = context;
        Follower {
            log,
            handle,
            config,
            clock,
            readiness,
            position,
            stop,
            open: None,
        }
    }

    /// Follows `view.log` until it is stopped. Blocks, so run it on a dedicated thread.
    ///
    /// # Errors
    /// An error that retrying cannot resolve.
    pub fn run(mut self) -> Result<(), FollowError> {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        while !self.stop.is_draining() {
            let began = Instant::now();
            let Err(error) = self.subscribe().and_then(|subscription| self.follow(subscription)) else {
                break;
            };
            if began.elapsed() > BACKOFF_MAX {
                backoff.reset();
            }
            self.handle_error(error)?;
            backoff.pause_blocking(&self.stop);
        }
        let persisted = self.open.as_ref().map(|open| open.store.persist());
        if let Some(Err(error)) = persisted {
            // Logged as a warning only: after a restart the records that are not in the store are read from the log
            // again.
            tracing::warn!(error = chain(&error), "replica store not persisted");
        }
        self.handle.withdraw();
        Ok(())
    }

    /// Reports why a subscription ended, and closes or quarantines the store if that is necessary before a retry.
    fn handle_error(&mut self, error: SubscriptionError) -> Result<(), FollowError> {
        let issue = match error {
            SubscriptionError::Topic(issue) => issue,
            // The log no longer has the position, because of retention or because the topic was created again. The
            // replica can no longer read the records after it, so it cannot continue from its store.
            SubscriptionError::Log(attempted, event_log::Error::OutOfRange { at, offset, start, end }) => self
                .quarantine(format!(
                    "cannot {attempted}: position {offset} of {at} is outside of the log's range {start}..{end}"
                )),
            SubscriptionError::Log(attempted, error) => {
                let fix = "the edge retries; if this persists, check the log with `trunkline doctor`";
                ReadinessIssue::new(format!("cannot {attempted}: {}", chain(&error)), fix)
            }
            // A record of a newer format. The store is intact, and a newer release continues from it.
            SubscriptionError::Replica(error @ ViewsError::Record { .. }) => {
                self.close();
                ReadinessIssue::new(chain(&error), "update this edge; it continues from its store")
            }
            SubscriptionError::Replica(ViewsError::Unusable(cause)) | SubscriptionError::StoreUnusable(cause) => {
                self.quarantine(cause)
            }
            // The replica's memory may be ahead of its store, so it must be opened again.
            SubscriptionError::Replica(error) => {
                self.close();
                ReadinessIssue::new(chain(&error), CHECK_DISK)
            }
            SubscriptionError::OpenStore(error @ state_store::Error::Locked { .. }) => {
                return Err(FollowError::Locked(error));
            }
            SubscriptionError::OpenStore(state_store::Error::Corrupt { source, .. }) => {
                self.quarantine(format!("the store of the view replica is corrupt: {source}"))
            }
            SubscriptionError::OpenStore(error) => ReadinessIssue::new(chain(&error), CHECK_DISK),
        };
        self.readiness.not_ready(&*issue.cause, &*issue.fix);
        self.handle.set_issue(Some(issue));
        Ok(())
    }

    /// Makes the replica unavailable to polls and closes its store.
    fn close(&mut self) {
        drop(self.handle.withdraw());
        let Some(mut open) = self.open.take() else {
            return;
        };
        let until = Instant::now() + RELEASE_WAIT;
        // A poll that got the replica before the line above keeps it open while it reads. The store's directory can be
        // renamed or opened again only after the last reference is dropped.
        while Arc::get_mut(&mut open.replica).is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Closes the store and moves it to another directory, so that the next subscription starts with an empty one.
    fn quarantine(&mut self, cause: String) -> ReadinessIssue {
        self.close();
        let dir = self.dir();
        if dir.exists() {
            match state_store::quarantine(&dir) {
                Ok(to) => tracing::warn!(cause, to = %to.display(), "replica store quarantined"),
                Err(error) => tracing::error!(cause, %error, "quarantine of the replica store failed"),
            }
        }
        ReadinessIssue::new(
            cause,
            "wait while the replica reads view.log from its start; the quarantined store may be deleted",
        )
    }

    fn dir(&self) -> PathBuf {
        views::replica::dir(&self.config.data_dir)
    }

    /// Checks the topic, opens the replica unless it is open, and assigns a reader at its positions.
    fn subscribe(&mut self) -> Result<Subscription, SubscriptionError> {
        let topic = &self.config.topic.clone();
        let (identity, info) = self.identify()?;
        let now = self.clock.now_ms();
        let replica = self.replica(identity, &info, now)?;
        if replica.expired(now) {
            return Err(SubscriptionError::StoreUnusable(TOMBSTONES_MISSED.into()));
        }
        let mut reader = self
            .log
            .reader(Isolation::ReadCommitted)
            .map_err(|e| SubscriptionError::Log("open a reader of view.log", e))?;
        let partitions: Vec<TopicPartition> = replica
            .positions()
            .iter()
            .map(|(partition, _)| TopicPartition::new(topic.as_str(), *partition))
            .collect();
        let from = |position| {
            if position == 0 {
                StartFrom::Earliest
            } else {
                StartFrom::Offset(position)
            }
        };
        let starts = replica.positions().into_iter().map(|(_, position)| from(position));
        let assigned: Vec<_> = partitions.iter().cloned().zip(starts).collect();
        reader
            .assign(&assigned)
            .map_err(|e| SubscriptionError::Log("assign the partitions of view.log", e))?;
        Ok(Subscription {
            identity,
            backlog: Backlog::new(replica.clone()),
            replica,
            reader,
            partitions,
            proved: None,
            maintained: Instant::now(),
        })
    }

    /// Describes the topic and hashes the identity of log and topic.
    fn identify(&self) -> Result<(u64, TopicInfo), SubscriptionError> {
        let topic = &self.config.topic;
        let info = self
            .log
            .describe(topic)
            .map_err(|e| SubscriptionError::Log("describe view.log", e))?;
        let info = info.ok_or_else(|| {
            let cause = format!("topic {topic} does not exist");
            SubscriptionError::Topic(ReadinessIssue::new(
                cause,
                "start the sync-views processor, which creates it",
            ))
        })?;
        if info.partitions != self.config.partitions {
            let (actual, declared) = (info.partitions, self.config.partitions);
            let cause = format!("topic {topic} has {actual} partitions but the topology declares {declared}");
            let fix = format!("partition counts cannot change, so set [view_log].partitions = {actual}");
            return Err(SubscriptionError::Topic(ReadinessIssue::new(cause, fix)));
        }
        let log_epoch = self
            .log
            .log_epoch()
            .map_err(|e| SubscriptionError::Log("get the log epoch", e))?;
        Ok((identity(&log_epoch, &info), info))
    }

    /// Returns the open replica. If none is open, opens it and makes it available to polls.
    fn replica(&mut self, identity: u64, info: &TopicInfo, now: i64) -> Result<Arc<Replica>, SubscriptionError> {
        match &self.open {
            Some(open) if open.identity == identity => return Ok(open.replica.clone()),
            Some(_) => return Err(SubscriptionError::StoreUnusable(RECREATED.into())),
            None => {}
        }
        let dir = self.dir();
        let store = open_store(&dir, &self.config.store).map_err(SubscriptionError::OpenStore)?;
        let options = Options {
            partitions: (0..info.partitions).collect(),
            times: times(info),
            log: identity,
            pending_bytes_max: mib(self.config.store.pending_mib)
                / usize::try_from(info.partitions).unwrap_or(1).max(1),
            flush_bytes: FLUSH_BYTES,
            now,
        };
        let replica = Arc::new(Replica::open(store.clone(), options).map_err(SubscriptionError::Replica)?);
        self.open = Some(OpenReplica {
            identity,
            replica: replica.clone(),
            store,
        });
        self.handle.publish(replica.clone());
        Ok(replica)
    }

    /// Reads and applies records until it is stopped or an error occurs.
    fn follow(&self, mut subscription: Subscription) -> Result<(), SubscriptionError> {
        let mut batch = RecordBatch::default();
        // `assign` does not contact the broker: an offset out of range is reported by the first poll. So the readiness
        // issue of the previous attempt is cleared only after that poll.
        let mut read = subscription
            .reader
            .poll(&mut batch, READ_BYTES, Duration::ZERO)
            .map_err(|e| SubscriptionError::Log("read view.log", e))?;
        self.handle.set_issue(None);
        while !self.stop.is_draining() {
            let now = self.clock.now_ms();
            self.apply(&mut subscription, &mut batch, now)?;
            let complete = subscription.replica.health(now).iter().all(|h| h.not_ready.is_none());
            let interval = if complete {
                PROVE_INTERVAL
            } else {
                PROVE_INTERVAL_INCOMPLETE
            };
            if subscription.proved.is_none_or(|at| at.elapsed() >= interval) {
                self.prove_current(&subscription)?;
                subscription.proved = Some(Instant::now());
            } else if read == 0 && subscription.backlog.is_empty() {
                prove_by_reader(&subscription).map_err(SubscriptionError::Replica)?;
            }
            if subscription.maintained.elapsed() >= MAINTAIN_INTERVAL {
                self.maintain(&subscription, now)?;
                subscription.maintained = Instant::now();
            }
            self.publish_position(&subscription);
            match self.handle.issue(now) {
                None => self.readiness.ready(),
                Some(issue) => self.readiness.not_ready(issue.cause, issue.fix),
            }
            read = 0;
            if !subscription.backlog.is_full() {
                let wait = if subscription.backlog.is_empty() {
                    READ_WAIT
                } else {
                    Duration::ZERO
                };
                let polled = subscription.reader.poll(&mut batch, READ_BYTES, wait);
                read = polled.map_err(|e| SubscriptionError::Log("read view.log", e))?;
            }
        }
        Ok(())
    }

    /// Publishes the position of the applied records.
    fn publish_position(&self, subscription: &Subscription) {
        let position = |at: &TopicPartition| Some((at.clone(), subscription.position(at)?));
        self.position
            .set(subscription.partitions.iter().filter_map(position).collect());
    }

    /// Applies a polled batch and one piece of a large transaction.
    fn apply(
        &self,
        subscription: &mut Subscription,
        batch: &mut RecordBatch,
        now: i64,
    ) -> Result<(), SubscriptionError> {
        if batch.is_empty() && subscription.backlog.is_empty() {
            return Ok(());
        }
        failpoint::hit("edge.before_apply");
        let read = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let backlog = &mut subscription.backlog;
        let mut applied = backlog.add(batch, now).map_err(SubscriptionError::Replica)?;
        batch.clear();
        applied.extend(backlog.advance(now).map_err(SubscriptionError::Replica)?);
        for (at, applied) in &applied {
            self.publish(subscription, at, applied, now)?;
        }
        self.handle.notifier().advanced();
        metrics::counter!("trunkline_edge_records_read_total").increment(read);
        failpoint::hit("edge.after_apply");
        Ok(())
    }

    /// Looks up the end of the log if the replica needs it, and wakes the long polls whose buckets changed.
    fn publish(
        &self,
        subscription: &Subscription,
        at: &TopicPartition,
        applied: &Applied,
        now: i64,
    ) -> Result<(), SubscriptionError> {
        if applied.need_end {
            let end = self
                .log
                .offset(at, OffsetSpec::LogEnd)
                .map_err(|e| SubscriptionError::Log("look up the end of view.log", e))?;
            subscription
                .replica
                .set_end(at.partition, end)
                .map_err(SubscriptionError::Replica)?;
        }
        if applied.loaded {
            // Any device may have waited for the first snapshot of this view.
            self.handle.notifier().wake_all();
        } else {
            self.handle.notifier().wake(&applied.buckets);
        }
        if let Some(closed_at_ms) = applied.closed_at_ms {
            let late_ms = u32::try_from((now - closed_at_ms).max(0)).unwrap_or(u32::MAX);
            metrics::histogram!("trunkline_edge_source_to_view_seconds").record(f64::from(late_ms) / 1_000.0);
        }
        if applied.rejected > 0 {
            metrics::counter!("trunkline_edge_records_rejected_total").increment(applied.rejected);
        }
        Ok(())
    }

    /// Looks up the end offsets and records in the replica which partitions are current.
    ///
    /// Must be called when every polled record has been applied or is in the backlog, because it uses the reader's position
    /// as the position of the replica. The time is read *before* the lookup, so that the proof never includes a record that was
    /// appended after it.
    fn prove_current(&self, subscription: &Subscription) -> Result<(), SubscriptionError> {
        let mut lag = 0;
        let asked_ms = self.clock.now_ms();
        let ends = |which| {
            let ends = self.log.offsets(&subscription.partitions, which);
            ends.map_err(|e| SubscriptionError::Log("look up the end offsets of view.log", e))
        };
        // A `read_committed` reader cannot read beyond the last stable offset, so a position at that offset proves that
        // the replica is current. Only a position at the log end proves that no later record, committed or not, was
        // appended before `asked_ms` (`as_of`).
        let (stable, end) = (ends(OffsetSpec::LastStable)?, ends(OffsetSpec::LogEnd)?);
        for ((at, stable), end) in subscription.partitions.iter().zip(stable).zip(end) {
            let position = subscription.position(at).unwrap_or(0);
            if position >= stable {
                subscription
                    .replica
                    .at_end(at.partition, position, end, asked_ms)
                    .map_err(SubscriptionError::Replica)?;
            }
            lag += (stable - position).max(0);
        }
        self.handle.notifier().advanced();
        metrics::gauge!("trunkline_edge_lag_records").set(f64::from(u32::try_from(lag).unwrap_or(u32::MAX)));
        for health in subscription.replica.health(self.clock.now_ms()) {
            let partition = health.partition.to_string();
            let gauge =
                |name: &'static str, value: f64| metrics::gauge!(name, "partition" => partition.clone()).set(value);
            gauge("trunkline_edge_ready", f64::from(u8::from(health.not_ready.is_none())));
            gauge(
                "trunkline_edge_has_pending_rows",
                f64::from(u8::from(health.has_pending_rows)),
            );
            #[expect(
                clippy::as_conversions,
                reason = "a gauge is a float; offsets beyond 2^53 are rounded"
            )]
            gauge("trunkline_edge_end_marker_offset", health.end_marker as f64);
        }
        Ok(())
    }

    /// Checks the identity of the topic and the age of the replica, and removes old tombstones.
    fn maintain(&self, subscription: &Subscription, now: i64) -> Result<(), SubscriptionError> {
        // A Kafka consumer addresses a topic by name and continues when the topic is created again. Its offsets would
        // then be mistaken for those of the old topic.
        if self.identify()?.0 != subscription.identity {
            return Err(SubscriptionError::StoreUnusable(RECREATED.into()));
        }
        if subscription.replica.expired(now) {
            return Err(SubscriptionError::StoreUnusable(TOMBSTONES_MISSED.into()));
        }
        subscription
            .replica
            .prune(now, PRUNE_MAX)
            .map_err(SubscriptionError::Replica)?;
        Ok(())
    }
}

/// Proves partitions current from the reader's end-of-partition notifications, without a request to the log.
fn prove_by_reader(subscription: &Subscription) -> Result<(), ViewsError> {
    for at in &subscription.partitions {
        if let (Some(position), Some(at_ms)) = (subscription.reader.position(at), subscription.reader.at_end(at)) {
            // The notification proves that every stable record below the position was read. The log end is unknown, so
            // `i64::MAX` leaves `as_of` and E unchanged.
            subscription.replica.at_end(at.partition, position, i64::MAX, at_ms)?;
        }
    }
    Ok(())
}

fn open_store(dir: &Path, config: &StoreConfig) -> Result<state_store::SharedStore, state_store::Error> {
    let engine = match config.engine {
        Engine::Fjall => state_store::Engine::Fjall,
        Engine::Sled => state_store::Engine::Sled,
        Engine::Memory => state_store::Engine::Memory,
    };
    let memory_bytes = u64::from(config.memory_mib) * 1024 * 1024;
    state_store::open(&state_store::Options {
        engine,
        dir: dir.to_owned(),
        spaces: SPACES.to_vec(),
        memory_bytes,
    })
}

fn mib(mib: u32) -> usize {
    usize::try_from(mib).unwrap_or(usize::MAX).saturating_mul(1024 * 1024)
}

/// Hash of the log epoch and the topic id. Offsets can be compared only within one log and topic id.
fn identity(log_epoch: &str, info: &TopicInfo) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(log_epoch.as_bytes());
    context.update(&[0]);
    context.update(info.id.to_string().as_bytes());
    let hash = context.finish();
    u64::from_be_bytes(hash.as_ref().first_chunk().copied().expect("SHA-256 has 32 bytes"))
}

/// Time limits of the replica, from the settings of the topic.
fn times(info: &TopicInfo) -> Times {
    let defaults = Times::default();
    let delete_retention_ms = info
        .number("delete.retention.ms")
        .unwrap_or(defaults.delete_retention_ms);
    Times {
        compaction_lag_ms: info
            .number("min.compaction.lag.ms")
            .unwrap_or(defaults.compaction_lag_ms),
        delete_retention_ms,
        // One day for a retention of a week, and the same fraction of a shorter retention.
        margin_ms: defaults.margin_ms.min(delete_retention_ms / 7),
        ..defaults
    }
}
