//! The thread that reads `view.log` into the replica.
//!
//! It opens the store, sets it aside when it is of another log, damaged or too old, reads committed records, applies
//! them, wakes whoever waits, and asks the log often enough where its ends are to prove that the replica is current.
//! Guarantees: an error of the log is tried again for ever with a pause that grows to a few seconds, and is said by
//! the shelf's trouble meanwhile; records are applied in offset order, each at least once.
//! Never: a guess where the log cannot be asked: without an answer the proof grows old and polls are refused.

use super::{ReplicaHandle, Trouble};
use crate::config::{Engine, StoreConfig};
use aws_lc_rs::digest;
use event_log::{Isolation, OffsetSpec, Reader, RecordBatch, SharedEventLog, StartFrom, TopicInfo, TopicPartition};
use service::backoff::Backoff;
use service::{Component, Drain, SharedClock, chain};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use views::Replica;
use views::replica::{Error as ViewsError, FLUSH_BYTES, Options, SPACES, Times};

/// Bytes asked for in one read.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// How long one read waits for records; also how late a stop is noticed.
const READ_WAIT: Duration = Duration::from_millis(100);
/// How often the log is asked for its ends while all is well; a sixth of the time after which data routes refuse.
const PROVE_EVERY: Duration = Duration::from_secs(5);
/// How often, while some partition is not complete.
const PROVE_OFTEN: Duration = Duration::from_millis(200);
/// How often old tombstones are removed, and the age of the store and the topic's id are looked at.
const TEND_EVERY: Duration = Duration::from_secs(5);
/// Tombstones removed at a time, a partition.
const PRUNE_MAX: usize = 10_000;
/// First and longest pause after an error.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(3)];
/// How long a replica that is taken down may still be held by polls under way.
const RELEASE_WAIT: Duration = Duration::from_secs(5);

/// What to follow, and where to keep it.
#[derive(Debug, Clone)]
pub struct FollowConfig {
    /// The topic; `view.log`.
    pub topic: String,
    /// Partitions that the topology declares for it.
    pub partitions: i32,
    /// Data directory of the edge.
    pub data_dir: PathBuf,
    /// Store.
    pub store: StoreConfig,
}

/// Why the thread ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// Another process has the store.
    #[error("the edge's store cannot be opened")]
    Locked(#[source] state_store::Error),
}

/// Why following was interrupted.
enum Broken {
    /// The log failed; the replica is as good as before.
    Log(&'static str, event_log::Error),
    /// The topic is not what it should be.
    Topic(Trouble),
    /// The replica failed; what is in its store is good.
    Replica(ViewsError),
    /// The store is of no use: read everything again.
    Useless(String),
    /// The store cannot be opened.
    Store(state_store::Error),
}

/// What one connection to the log follows.
struct Link {
    identity: u64,
    replica: Arc<Replica>,
    reader: Box<dyn Reader>,
    partitions: Vec<TopicPartition>,
    proved: Option<Instant>,
    tended: Instant,
}

/// Follows `view.log`.
pub struct Follower {
    log: SharedEventLog,
    shelf: Arc<ReplicaHandle>,
    config: FollowConfig,
    clock: SharedClock,
    component: Component,
    stop: Drain,
    /// The replica that is open, and for which log and topic.
    open: Option<(u64, Arc<Replica>, state_store::SharedStore)>,
}

impl Follower {
    /// Follows the log into the shelf's replica until `stop`, and says in `component` how it stands.
    pub fn new(
        log: SharedEventLog,
        shelf: Arc<ReplicaHandle>,
        config: FollowConfig,
        clock: SharedClock,
        component: Component,
        stop: Drain,
    ) -> Self {
        Follower {
            log,
            shelf,
            config,
            clock,
            component,
            stop,
            open: None,
        }
    }

    /// Runs until it is stopped. Blocks: give it a thread of its own.
    ///
    /// # Errors
    /// What no waiting mends.
    pub fn run(mut self) -> Result<(), FollowError> {
        let [first, longest] = PAUSES;
        let mut pauses = Backoff::new(first, longest);
        while !self.stop.is_draining() {
            let began = Instant::now();
            let Err(broken) = self.link().and_then(|link| self.follow(link)) else {
                break;
            };
            if began.elapsed() > longest {
                pauses.reset();
            }
            self.mend(broken)?;
            pauses.pause_blocking(&self.stop);
        }
        let persisted = self.open.as_ref().map(|(_, _, store)| store.persist());
        if let Some(Err(error)) = persisted {
            tracing::warn!(
                error = chain(&error),
                "the replica's store was not written through; the log has it all"
            );
        }
        self.shelf.take();
        Ok(())
    }

    /// Says what is wrong and does what helps before the next try.
    fn mend(&mut self, broken: Broken) -> Result<(), FollowError> {
        let trouble = match broken {
            Broken::Topic(trouble) => trouble,
            Broken::Log(attempted, event_log::Error::OutOfRange { at, offset, start, end }) => {
                let why =
                    format!("cannot {attempted}: the replica stands at {offset} of {at}, the log keeps {start}..{end}");
                self.quarantine(&why);
                Trouble::new(why, "wait: the replica is being read again from the start")
            }
            Broken::Log(attempted, error) => {
                let next = "the edge goes on trying; check the log with `trunkline doctor`";
                Trouble::new(format!("cannot {attempted}: {}", chain(&error)), next)
            }
            Broken::Replica(error @ ViewsError::Record { .. }) => {
                self.close();
                Trouble::new(chain(&error), "update this edge; it goes on where it stopped")
            }
            Broken::Replica(ViewsError::Foreign(why)) | Broken::Useless(why) => {
                self.quarantine(&why);
                Trouble::new(why, "wait: the replica is being read again from the start")
            }
            Broken::Replica(error) => {
                self.close();
                Trouble::new(chain(&error), "check the disk of the edge's data directory")
            }
            Broken::Store(error @ state_store::Error::Locked { .. }) => return Err(FollowError::Locked(error)),
            Broken::Store(state_store::Error::Corrupt { source, .. }) => {
                let why = format!("the replica's store cannot be read: {source}");
                self.quarantine(&why);
                Trouble::new(why, "wait: the replica is being read again from the start")
            }
            Broken::Store(error) => Trouble::new(chain(&error), "check the disk of the edge's data directory"),
        };
        self.component.not_ready(&*trouble.cause, &*trouble.next);
        self.shelf.note(Some(trouble));
        Ok(())
    }

    /// Takes the replica down and closes its store.
    fn close(&mut self) {
        let shelved = self.shelf.take();
        drop(shelved);
        let Some((_, mut replica, store)) = self.open.take() else {
            return;
        };
        let until = Instant::now() + RELEASE_WAIT;
        // Polls under way hold it for moments only; the directory can be opened again once they are done.
        while Arc::get_mut(&mut replica).is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop((replica, store));
    }

    fn quarantine(&mut self, why: &str) {
        self.close();
        let dir = self.dir();
        if !dir.exists() {
            return;
        }
        match state_store::quarantine(&dir) {
            Ok(to) => tracing::warn!(why, to = %to.display(), "set the replica's store aside; it may be deleted"),
            Err(error) => tracing::error!(why, %error, "the replica's store could not be set aside"),
        }
    }

    fn dir(&self) -> PathBuf {
        views::replica::dir(&self.config.data_dir)
    }

    /// Looks at the topic, opens the replica unless it is open, and begins to read where it stands.
    fn link(&mut self) -> Result<Link, Broken> {
        let topic = &self.config.topic.clone();
        let (identity, info) = self.identify()?;
        let now = self.clock.now_ms();
        let replica = self.replica(identity, &info, now)?;
        if replica.expired(now) {
            return Err(Broken::Useless(
                "the replica is so old that deletions may have left the log since".into(),
            ));
        }
        let mut reader = self
            .log
            .reader(Isolation::ReadCommitted)
            .map_err(|e| Broken::Log("open a reader", e))?;
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
        let places = replica.positions().into_iter().map(|(_, position)| from(position));
        let assigned: Vec<_> = partitions.iter().cloned().zip(places).collect();
        reader
            .assign(&assigned)
            .map_err(|e| Broken::Log("begin to read view.log", e))?;
        Ok(Link {
            identity,
            replica,
            reader,
            partitions,
            proved: None,
            tended: Instant::now(),
        })
    }

    /// Which log and topic there is now.
    fn identify(&self) -> Result<(u64, TopicInfo), Broken> {
        let topic = &self.config.topic;
        let info = self
            .log
            .describe(topic)
            .map_err(|e| Broken::Log("describe view.log", e))?;
        let info = info.ok_or_else(|| {
            let cause = format!("topic {topic} does not exist");
            Broken::Topic(Trouble::new(cause, "start the sync-views processor, which makes it"))
        })?;
        if info.partitions != self.config.partitions {
            let (has, says) = (info.partitions, self.config.partitions);
            let cause = format!("topic {topic} has {has} partitions, the topology says {says}");
            let next = "set view_log.partitions to what the topic has: it is fixed for life";
            return Err(Broken::Topic(Trouble::new(cause, next)));
        }
        let log_epoch = self
            .log
            .log_epoch()
            .map_err(|e| Broken::Log("ask which log this is", e))?;
        Ok((identity(&log_epoch, &info), info))
    }

    fn replica(&mut self, identity: u64, info: &TopicInfo, now: i64) -> Result<Arc<Replica>, Broken> {
        match &self.open {
            Some((open, replica, _)) if *open == identity => return Ok(replica.clone()),
            Some(_) => {
                return Err(Broken::Useless("the log or the topic view.log was made anew".into()));
            }
            None => {}
        }
        let dir = self.dir();
        let store = open_store(&dir, &self.config.store).map_err(Broken::Store)?;
        let options = Options {
            partitions: (0..info.partitions).collect(),
            times: times(info),
            log: identity,
            held_bytes_max: mib(self.config.store.held_mib),
            flush_bytes: FLUSH_BYTES,
            now,
        };
        let replica = Arc::new(Replica::open(store.clone(), options).map_err(Broken::Replica)?);
        self.open = Some((identity, replica.clone(), store));
        self.shelf.put(replica.clone());
        Ok(replica)
    }

    /// Reads and applies until it is stopped or something breaks.
    fn follow(&self, mut link: Link) -> Result<(), Broken> {
        let mut batch = RecordBatch::default();
        // A reader may say that a position is out of range only when it is asked for records.
        let mut read = link
            .reader
            .poll(&mut batch, READ_BYTES, Duration::ZERO)
            .map_err(|e| Broken::Log("read view.log", e))?;
        self.shelf.note(None);
        while !self.stop.is_draining() {
            let now = self.clock.now_ms();
            if read > 0 {
                self.apply(&link, &batch, now)?;
            }
            let complete = link.replica.health(now).iter().all(|h| h.not_ready.is_none());
            let every = if complete { PROVE_EVERY } else { PROVE_OFTEN };
            if link.proved.is_none_or(|at| at.elapsed() >= every) {
                self.prove(&link)?;
                link.proved = Some(Instant::now());
            } else if read == 0 {
                prove_by_reader(&link).map_err(Broken::Replica)?;
            }
            if link.tended.elapsed() >= TEND_EVERY {
                self.tend(&link, now)?;
                link.tended = Instant::now();
            }
            match self.shelf.trouble(now) {
                None => self.component.ready(),
                Some(trouble) => self.component.not_ready(trouble.cause, trouble.next),
            }
            let polled = link.reader.poll(&mut batch, READ_BYTES, READ_WAIT);
            read = polled.map_err(|e| Broken::Log("read view.log", e))?;
        }
        Ok(())
    }

    fn apply(&self, link: &Link, batch: &RecordBatch, now: i64) -> Result<(), Broken> {
        failpoint::hit("edge.before_apply");
        let wakes = self.shelf.wakes();
        for (index, at) in batch.partitions().iter().enumerate() {
            let records = batch.iter().filter(|r| r.partition_index() == index);
            let applied = link
                .replica
                .apply(at.partition, records, now)
                .map_err(Broken::Replica)?;
            if applied.need_end {
                let end = self
                    .log
                    .offset(at, OffsetSpec::LogEnd)
                    .map_err(|e| Broken::Log("ask for the end of view.log", e))?;
                link.replica.set_end(at.partition, end).map_err(Broken::Replica)?;
            }
            wakes.wake(&applied.buckets);
            if let Some(closed_at_ms) = applied.closed_at_ms {
                let late_ms = u32::try_from((now - closed_at_ms).max(0)).unwrap_or(u32::MAX);
                metrics::histogram!("trunkline_edge_source_to_view_seconds").record(f64::from(late_ms) / 1_000.0);
            }
            if applied.refused > 0 {
                metrics::counter!("trunkline_edge_records_refused_total").increment(applied.refused);
            }
        }
        wakes.moved();
        metrics::counter!("trunkline_edge_records_read_total")
            .increment(u64::try_from(batch.len()).unwrap_or(u64::MAX));
        failpoint::hit("edge.after_apply");
        Ok(())
    }

    /// Asks the log for its ends and notes where the replica has everything. Everything read so far is applied here.
    fn prove(&self, link: &Link) -> Result<(), Broken> {
        let mut lag = 0;
        let asked_ms = self.clock.now_ms();
        let ends = |which| {
            let ends = self.log.offsets(&link.partitions, which);
            ends.map_err(|e| Broken::Log("ask for the ends of view.log", e))
        };
        let (stable, end) = (ends(OffsetSpec::LastStable)?, ends(OffsetSpec::LogEnd)?);
        for ((at, stable), end) in link.partitions.iter().zip(stable).zip(end) {
            let position = link.reader.position(at).unwrap_or(0);
            if position >= stable {
                link.replica
                    .at_end(at.partition, position, end, asked_ms)
                    .map_err(Broken::Replica)?;
            }
            lag += (stable - position).max(0);
        }
        self.shelf.wakes().moved();
        metrics::gauge!("trunkline_edge_lag_records").set(f64::from(u32::try_from(lag).unwrap_or(u32::MAX)));
        for health in link.replica.health(self.clock.now_ms()) {
            let partition = health.partition.to_string();
            let gauge =
                |name: &'static str, value: f64| metrics::gauge!(name, "partition" => partition.clone()).set(value);
            gauge("trunkline_edge_ready", f64::from(u8::from(health.not_ready.is_none())));
            gauge("trunkline_edge_holds_back", f64::from(u8::from(health.holds_back)));
            #[expect(
                clippy::as_conversions,
                reason = "a gauge is a float; offsets beyond 2^53 lose their last digits there"
            )]
            gauge("trunkline_edge_closed_offset", health.closed as f64);
        }
        Ok(())
    }

    fn tend(&self, link: &Link, now: i64) -> Result<(), Broken> {
        // A reader goes on by name: offsets of a topic that was made anew would be taken for those of the old one.
        if self.identify()?.0 != link.identity {
            return Err(Broken::Useless("the log or the topic view.log was made anew".into()));
        }
        if link.replica.expired(now) {
            let why = "the replica has not been current for so long that deletions may be missing";
            return Err(Broken::Useless(why.into()));
        }
        link.replica.prune(now, PRUNE_MAX).map_err(Broken::Replica)?;
        Ok(())
    }
}

/// Takes the reader's own word for having stood at the end; it knows without asking the log.
fn prove_by_reader(link: &Link) -> Result<(), ViewsError> {
    for at in &link.partitions {
        if let (Some(position), Some(at_ms)) = (link.reader.position(at), link.reader.at_end(at)) {
            // Where the end was is not known here: this proves that nothing stable was missed, and no more.
            link.replica.at_end(at.partition, position, i64::MAX, at_ms)?;
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

/// Hash of the log's log_epoch and the topic's id: offsets mean something within one such pair only.
fn identity(log_epoch: &str, info: &TopicInfo) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(log_epoch.as_bytes());
    context.update(&[0]);
    context.update(info.id.to_string().as_bytes());
    let hash = context.finish();
    u64::from_be_bytes(hash.as_ref().first_chunk().copied().expect("SHA-256 has 32 bytes"))
}

/// The replica's times from the topic's settings.
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
        // A day off a week; of a shorter retention the same share.
        margin_ms: defaults.margin_ms.min(delete_retention_ms / 7),
        ..defaults
    }
}
