//! The lag of the consumers of a source, so that its snapshots wait for them.
//!
//! A connector reads a table faster than processors and edges apply the rows. A change that is committed meanwhile comes
//! after these rows in the topic, so without a limit devices would get it minutes late. A snapshot therefore reads its
//! next chunk only when every consumer is less than a number of records behind. A consumer that makes no progress is not
//! waited for: it may have been stopped for days.

use event_log::{Offset, OffsetSpec, SharedEventLog, TopicPartition};
use service::Drain;
use service::backoff::Backoff;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Interval of the lookups.
const LOOK_UP_EVERY: Duration = Duration::from_millis(200);
/// Longest pause after a lookup that failed.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A consumer that has committed nothing for this time is not waited for.
const PROGRESS_WITHIN: Duration = Duration::from_secs(10);
/// The lookups end when nobody has asked for this time.
const ASKED_WITHIN: Duration = Duration::from_secs(2);

/// A consumer group and the topic that it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Name of the group.
    pub group: String,
    /// The topic.
    pub topic: String,
}

/// A consumer that is too far behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Name of the consumer group.
    pub group: String,
    /// Number of records.
    pub lag: i64,
}

/// The consumers of a source. The default has none.
#[derive(Debug, Clone, Default)]
pub struct Consumers(Option<Arc<Mutex<Shared>>>);

#[derive(Debug, Default)]
struct Shared {
    asked_at: Option<Instant>,
    behind: Option<Behind>,
}

impl Consumers {
    /// Returns the consumers and the watcher, which must run so that their lag is known.
    pub fn watch(log: SharedEventLog, consumers: Vec<Consumer>, lag_max: u64) -> (Self, Watcher) {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let watcher = Watcher {
            log,
            lag_max: i64::try_from(lag_max).unwrap_or(i64::MAX),
            watched: consumers.into_iter().map(Watched::new).collect(),
            shared: Arc::clone(&shared),
        };
        (Consumers(Some(shared)), watcher)
    }

    /// A consumer for which a snapshot has to wait. Never blocks: the answer is that of the last lookup.
    pub fn behind(&self) -> Option<Behind> {
        let mut shared = lock(self.0.as_ref()?);
        shared.asked_at = Some(Instant::now());
        shared.behind.clone()
    }
}

/// Looks up the lag of consumers while somebody asks for it.
pub struct Watcher {
    log: SharedEventLog,
    lag_max: i64,
    watched: Vec<Watched>,
    shared: Arc<Mutex<Shared>>,
}

impl Watcher {
    /// Looks up the lag until the drain starts. Blocks.
    pub fn run(mut self, drain: &Drain) {
        let mut backoff = Backoff::new(LOOK_UP_EVERY, BACKOFF_MAX);
        let mut pause = LOOK_UP_EVERY;
        while drain.sleep_blocking(pause) {
            let asked = lock(&self.shared).asked_at;
            let is_asked = asked.is_some_and(|at| at.elapsed() < ASKED_WITHIN);
            let (behind, has_failed) = if is_asked { self.look_up() } else { (None, false) };
            lock(&self.shared).behind = behind;
            pause = pause_after(&mut backoff, has_failed);
        }
    }

    /// The consumer with the greatest lag, if it is too far behind, and whether a lookup has failed.
    fn look_up(&mut self) -> (Option<Behind>, bool) {
        let (mut most, mut has_failed, now) = (None::<Behind>, false, Instant::now());
        for watched in &mut self.watched {
            match watched.look_up(&self.log, now) {
                Ok(lag) if lag > self.lag_max && lag > most.as_ref().map_or(0, |most| most.lag) => {
                    let group = watched.consumer.group.clone();
                    most = Some(Behind { group, lag });
                }
                Ok(_) => {}
                // The snapshot does not wait for a consumer whose lag is unknown. An unreachable log stops it anyway.
                Err(error) => {
                    has_failed = true;
                    tracing::debug!(
                        group = watched.consumer.group,
                        error = service::chain(&error),
                        "lag unknown"
                    );
                }
            }
        }
        (most, has_failed)
    }
}

/// The pause after a lookup. It becomes longer with each lookup that fails.
fn pause_after(backoff: &mut Backoff, has_failed: bool) -> Duration {
    if has_failed {
        return LOOK_UP_EVERY + backoff.next_delay();
    }
    backoff.reset();
    LOOK_UP_EVERY
}

/// A consumer with what is known of its progress.
struct Watched {
    consumer: Consumer,
    /// The partitions of its topic; empty until the topic exists.
    partitions: Vec<TopicPartition>,
    /// Sum of its committed offsets, and when it last changed.
    committed: Option<(Offset, Instant)>,
}

impl Watched {
    fn new(consumer: Consumer) -> Self {
        Watched {
            consumer,
            partitions: Vec::new(),
            committed: None,
        }
    }

    /// Number of records that the consumer is behind; zero if it makes no progress.
    fn look_up(&mut self, log: &SharedEventLog, now: Instant) -> event_log::Result<i64> {
        if self.partitions.is_empty() {
            let info = log.describe(&self.consumer.topic)?;
            let numbers = 0..info.map_or(0, |info| info.partitions);
            self.partitions = numbers
                .map(|number| TopicPartition::new(self.consumer.topic.as_str(), number))
                .collect();
        }
        let committed = log.committed(&self.consumer.group, &self.partitions)?;
        let ends = log.offsets(&self.partitions, OffsetSpec::LogEnd)?;
        let (mut sum, mut lag) = (0, 0);
        for (at, end) in self.partitions.iter().zip(ends) {
            // A partition of which nothing was committed has not been read yet, or has no records.
            if let Some(offset) = committed.get(at).copied().flatten() {
                sum += offset;
                lag += (end - offset).max(0);
            }
        }
        Ok(if self.progresses(sum, now) { lag } else { 0 })
    }

    /// Notes the sum of the committed offsets; returns whether it has changed recently.
    fn progresses(&mut self, sum: Offset, now: Instant) -> bool {
        let changed_at = match self.committed {
            Some((before, at)) if before == sum => at,
            _ => now,
        };
        self.committed = Some((sum, changed_at));
        now.saturating_duration_since(changed_at) < PROGRESS_WITHIN
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::{Cleanup, OutBatch, OutRecord, TopicConfig, TopicSpec};

    const TOPIC: &str = "shop.change.shop";

    fn consumer() -> Consumer {
        Consumer {
            group: "shop.sync-views.change.shop".to_owned(),
            topic: TOPIC.to_owned(),
        }
    }

    #[test]
    fn consumer_without_progress_is_not_waited_for() {
        let (mut watched, start) = (Watched::new(consumer()), Instant::now());
        let mut at = |ms, sum| watched.progresses(sum, start + Duration::from_millis(ms));
        assert_eq!([at(0, 5), at(9_000, 5), at(10_000, 5)], [true, true, false]);
        assert_eq!([at(11_000, 6), at(20_999, 6), at(21_000, 6)], [true, true, false]);
    }

    fn log() -> SharedEventLog {
        let clock = service::clock::system();
        let config = event_log::embedded::Config::new(None, Arc::new(move || clock.now_ms()));
        event_log::embedded::EmbeddedLog::open(config).unwrap()
    }

    #[test]
    fn failed_lookups_are_repeated_less_and_less_often() {
        let (_, mut watcher) = Consumers::watch(log(), vec![consumer()], 5);
        watcher.watched[0].partitions = vec![TopicPartition::new("a topic that does not exist", 0)];
        let mut backoff = Backoff::seeded(LOOK_UP_EVERY, BACKOFF_MAX, 7);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let (behind, has_failed) = watcher.look_up();
            assert_eq!((behind, has_failed), (None, true));
            pauses.push(pause_after(&mut backoff, has_failed));
        }
        // The jitter of a delay is at most half of it.
        let longest = [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000].map(Duration::from_millis);
        for (pause, longest) in pauses.iter().zip(longest) {
            let backoff = *pause - LOOK_UP_EVERY;
            assert!(backoff >= longest / 2 && backoff <= longest, "{pauses:?}");
        }
        assert_eq!(pause_after(&mut backoff, false), LOOK_UP_EVERY);
        assert!(pause_after(&mut backoff, true) <= 2 * LOOK_UP_EVERY, "it begins again");
    }

    #[test]
    fn snapshot_waits_for_a_consumer_that_is_behind() {
        let log = log();
        let (consumers, mut watcher) = Consumers::watch(log.clone(), vec![consumer()], 5);
        let mut look_up = || {
            let (behind, _) = watcher.look_up();
            lock(&watcher.shared).behind.clone_from(&behind);
            assert_eq!(consumers.behind(), behind);
            behind.map(|behind| behind.lag)
        };
        assert_eq!(look_up(), None, "the topic does not exist");
        log.create_topics(&[TopicSpec {
            name: TOPIC.to_owned(),
            partitions: 1,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        }])
        .unwrap();
        let (topic, mut records) = (Arc::from(TOPIC), OutBatch::default());
        for _ in 0..10 {
            let record = OutRecord {
                topic: &topic,
                partition: None,
                timestamp: None,
                key: None,
                value: Some(b"a row"),
            };
            records.push(record, []);
        }
        log.append(&records).unwrap();
        assert_eq!(look_up(), None, "the consumer has never run");
        let at = TopicPartition::new(TOPIC, 0);
        for (offset, expected) in [(4, Some(6)), (5, None), (10, None)] {
            log.set_committed(&consumer().group, &[(at.clone(), offset)]).unwrap();
            assert_eq!(look_up(), expected, "offset {offset}");
        }
    }
}
