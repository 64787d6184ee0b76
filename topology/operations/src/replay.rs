//! Replay: copies a range of a topic to another topic, without changing keys, values, headers or timestamps.
//!
//! The end of the range is fixed when the job starts. The header `replayed` is added, so that a reader with state
//! recognizes repeated records. Each batch is a transaction, so after a cancelled replay the target contains complete
//! batches. A range that retention has partly deleted is rejected, not shortened. Source and target must differ.

use crate::topics::describe;
use crate::{Error, Result, failed};
use event_log::{
    Cleanup, EventLog, Isolation, Millis, Offset, OffsetSpec, OutBatch, OutRecord, Outcome, Reader, RecordBatch,
    RecordRef, StartFrom, TopicConfig, TopicPartition, TopicSpec, TransactionalProducerConfig, origin_of_dead_letters,
};
use schemas::headers;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use topology::Names;

/// A bound of the range.
#[derive(Debug, Clone, Copy)]
pub enum RangeBound {
    /// The earliest offset, or the current last stable offset.
    Unbounded,
    /// This offset, in every partition.
    Offset(Offset),
    /// A time in ms.
    Time(Millis),
}

/// A replay request.
#[derive(Debug, Clone)]
pub struct Job {
    /// Topic to read.
    pub from_topic: String,
    /// Topic to which the records are written.
    pub to_topic: String,
    /// Create it with the partition count of the source if it does not exist.
    pub create: bool,
    /// The only partition to replay; `None` for all.
    pub partition: Option<i32>,
    /// Start of the range, inclusive.
    pub from: RangeBound,
    /// End of the range, exclusive.
    pub to: RangeBound,
    /// Replay only records with this key, given as JSON text.
    pub key: Option<String>,
    /// Rate limit in records per second.
    pub rate_per_s: Option<u32>,
    /// Count only, without writing.
    pub dry_run: bool,
}

/// Progress of a replay.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Progress {
    /// Offsets processed.
    pub offsets_done: i64,
    /// Offsets in the whole range.
    pub offsets_total: i64,
    /// Records read.
    pub records_read: u64,
    /// Number of records that were written, or that matched in a dry run.
    pub records_replayed: u64,
    /// Size of the keys and values of these records.
    pub bytes: u64,
}

struct PartitionRange {
    at: TopicPartition,
    from: Offset,
    to: Offset,
}

/// Runs a replay. `report` is called after each batch and cancels the replay by returning `false`.
pub fn run(log: &dyn EventLog, job: &Job, report: &mut dyn FnMut(&Progress) -> bool) -> Result<Progress> {
    if job.from_topic == job.to_topic {
        return Err(Error::Rejected(format!(
            "cannot replay topic {} to itself; choose another topic with --to",
            job.from_topic
        )));
    }
    if let Some(kind) = internal_topic(&job.to_topic) {
        return Err(Error::Rejected(format!(
            "cannot replay to {}, which is {kind} and must be written by Trunkline only; choose another topic with --to{}",
            job.to_topic,
            if origin_of_dead_letters(&job.from_topic).is_some() {
                ", or use `trunkline dlq redrive`"
            } else {
                ""
            }
        )));
    }
    let source = describe(log, &job.from_topic)?;
    let target_partitions = target_partitions(log, job, source.partitions)?;
    let ranges = ranges(log, job, source.partitions)?;
    let mut progress = Progress {
        offsets_total: ranges.iter().map(|s| s.to - s.from).sum(),
        ..Progress::default()
    };
    let mut reader = log.reader(Isolation::ReadCommitted).map_err(failed("open a reader"))?;
    let begin: Vec<_> = ranges
        .iter()
        .map(|s| (s.at.clone(), StartFrom::Offset(s.from)))
        .collect();
    reader.assign(&begin).map_err(failed("start reading"))?;
    let mut writer = Writer::open(log, job, source.partitions == target_partitions)?;
    let mut batch = RecordBatch::default();
    while !done(reader.as_ref(), &ranges) {
        reader
            .poll(&mut batch, 1 << 20, Duration::from_millis(200))
            .map_err(failed("read"))?;
        for record in batch.iter().filter(|r| within(r, &ranges)) {
            progress.records_read += 1;
            let wanted = job
                .key
                .as_deref()
                .is_none_or(|k| record.key().is_some_and(|key| key == k.as_bytes()));
            if wanted {
                let size = record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len);
                progress.bytes += u64::try_from(size).unwrap_or_default();
                progress.records_replayed += 1;
                writer.push(&record);
            }
        }
        writer.commit(progress.records_replayed)?;
        progress.offsets_done = ranges
            .iter()
            .map(|s| reader.position(&s.at).unwrap_or(s.from).clamp(s.from, s.to) - s.from)
            .sum();
        if !report(&progress) {
            return Err(Error::Rejected(
                "the replay was cancelled; batches that were committed before remain".into(),
            ));
        }
    }
    Ok(progress)
}

/// The partition count of the target, which is created if this is requested and the job is not a dry run.
fn target_partitions(log: &dyn EventLog, job: &Job, source_partitions: i32) -> Result<i32> {
    let topic = &job.to_topic;
    let found = log.describe(topic).map_err(failed(format!("describe topic {topic}")))?;
    match found {
        Some(target) => Ok(target.partitions),
        None if !job.create => Err(Error::UnknownTopic {
            topic: topic.clone(),
            fix: String::from("choose an existing one with --to, or create it with --create"),
        }),
        None if job.dry_run => Ok(source_partitions),
        None => {
            let spec = TopicSpec {
                name: topic.clone(),
                partitions: source_partitions,
                replication: None,
                config: TopicConfig::new(Cleanup::Delete),
            };
            let created = log.create_topics(&[spec]);
            created.map_err(failed(format!("create topic {topic}")))?;
            Ok(source_partitions)
        }
    }
}

/// What a topic is that only Trunkline or Kafka may write.
fn internal_topic(topic: &str) -> Option<&'static str> {
    if topic.starts_with('_') {
        return Some("an internal topic");
    }
    let names = Names::owning(topic)?;
    let local = names.local(topic);
    if topic == names.view_log() {
        Some("the topic of all views")
    } else if local.starts_with("_trunkline") {
        Some("an internal topic")
    } else if local.contains(".changelog.") {
        Some("the state of a processor")
    } else if local.ends_with(".repartition") || local.contains(".repartition.") {
        Some("the input of a processor's next step")
    } else if origin_of_dead_letters(topic).is_some() {
        Some("a dead-letter topic")
    } else {
        None
    }
}

fn done(reader: &dyn Reader, ranges: &[PartitionRange]) -> bool {
    ranges
        .iter()
        .all(|s| s.from >= s.to || reader.position(&s.at).is_some_and(|p| p >= s.to))
}

fn within(record: &RecordRef<'_>, ranges: &[PartitionRange]) -> bool {
    ranges
        .iter()
        .any(|s| s.at == *record.partition() && (s.from..s.to).contains(&record.offset()))
}

fn ranges(log: &dyn EventLog, job: &Job, partitions: i32) -> Result<Vec<PartitionRange>> {
    let mut ranges = Vec::new();
    for partition in (0..partitions).filter(|p| job.partition.is_none_or(|only| only == *p)) {
        let at = TopicPartition::new(job.from_topic.as_str(), partition);
        let lookup = |which| {
            log.offset(&at, which)
                .map_err(failed(format!("look up an offset of {at}")))
        };
        let (start, end) = (lookup(OffsetSpec::Earliest)?, lookup(OffsetSpec::LastStable)?);
        let from = match job.from {
            RangeBound::Unbounded => start,
            RangeBound::Offset(offset) if offset < start => {
                return Err(Error::Rejected(format!(
                    "offset {offset} of {at} has been removed by retention, the earliest offset is {start}; use \
                     --from-offset {start}"
                )));
            }
            RangeBound::Offset(offset) => offset.min(end),
            RangeBound::Time(time) => {
                let from = lookup(OffsetSpec::Timestamp(time))?.min(end);
                if from == start && start > 0 && start < end {
                    return Err(Error::Rejected(format!(
                        "retention has removed records of {at} before offset {start}, which is the first one at or after the \
                         given time, so records of that time may be missing; choose a later time, or omit --from-time to begin \
                         at the earliest records"
                    )));
                }
                from
            }
        };
        let to = match job.to {
            RangeBound::Unbounded => end,
            RangeBound::Offset(offset) => offset.min(end),
            RangeBound::Time(time) => lookup(OffsetSpec::Timestamp(time))?.min(end),
        };
        ranges.push(PartitionRange {
            at,
            from,
            to: to.max(from),
        });
    }
    if ranges.is_empty() {
        return Err(Error::Rejected(format!(
            "topic {} has {partitions} partitions, numbered from 0; there is no partition {}",
            job.from_topic,
            job.partition.unwrap_or_default()
        )));
    }
    Ok(ranges)
}

struct Writer<'a> {
    producer: Option<Box<dyn event_log::TransactionalProducer>>,
    topic: Arc<str>,
    same_partitions: bool,
    out: OutBatch,
    rate_per_s: Option<u32>,
    started: Instant,
    job: &'a Job,
}

impl<'a> Writer<'a> {
    fn open(log: &dyn EventLog, job: &'a Job, same_partitions: bool) -> Result<Self> {
        let producer = if job.dry_run {
            None
        } else {
            let config = TransactionalProducerConfig {
                transactional_id: Names::replay(&job.from_topic, &job.to_topic),
                transaction_timeout: Duration::from_secs(10),
            };
            Some(
                log.transactional_producer(config)
                    .map_err(failed("open the transactional producer of the replay"))?,
            )
        };
        let topic = job.to_topic.as_str().into();
        let (rate_per_s, started) = (job.rate_per_s, Instant::now());
        Ok(Writer {
            producer,
            topic,
            same_partitions,
            out: OutBatch::default(),
            rate_per_s,
            started,
            job,
        })
    }

    fn push(&mut self, record: &RecordRef<'_>) {
        let partition = self.same_partitions.then(|| record.partition().partition);
        let replayed = (headers::REPLAYED, Some(headers::REPLAY.as_bytes()));
        let all = record
            .headers()
            .iter()
            .filter(|(n, _)| *n != headers::REPLAYED)
            .chain([replayed]);
        let out = OutRecord {
            topic: &self.topic,
            partition,
            timestamp: Some(record.timestamp()),
            key: record.key(),
            value: record.value(),
        };
        self.out.push(out, all);
    }

    /// Commits the collected records, then waits to keep the rate limit.
    fn commit(&mut self, total: u64) -> Result<()> {
        let Some(producer) = self.producer.as_mut().filter(|_| !self.out.is_empty()) else {
            self.out.clear();
            return Ok(());
        };
        let attempted = || format!("write to {}", self.job.to_topic);
        producer.begin().map_err(failed(attempted()))?;
        producer.send(&self.out).map_err(failed(attempted()))?;
        self.out.clear();
        match producer.commit(None) {
            Outcome::Committed(_) => {}
            Outcome::Aborted { reason, .. } | Outcome::Unknown { reason } => {
                let text = format!(
                    "the replay stopped because a transaction was not committed: {reason}; batches that were \
                     committed before remain"
                );
                return Err(Error::Rejected(text));
            }
        }
        if let Some(rate) = self.rate_per_s {
            let due = Duration::from_secs_f64(total_f64(total) / f64::from(rate.max(1)));
            std::thread::sleep(due.saturating_sub(self.started.elapsed()));
        }
        Ok(())
    }
}

#[expect(
    clippy::as_conversions,
    reason = "exact below 2^53, and used for the rate limit only"
)]
#[expect(clippy::cast_precision_loss, reason = "as above")]
fn total_f64(total: u64) -> f64 {
    total as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::SharedEventLog;
    use event_log::embedded::{Config, EmbeddedLog};
    use std::sync::atomic::{AtomicI64, Ordering};

    /// A log with four records in topic `shop.change.shop`, and an empty topic `copy`.
    fn log(now: &Arc<AtomicI64>) -> SharedEventLog {
        let clock = now.clone();
        let mut config = Config::new(None, Arc::new(move || clock.load(Ordering::SeqCst)));
        config.clean_every = Some(Duration::from_millis(10));
        let log = EmbeddedLog::open(config).unwrap();
        let topic = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: 1,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        log.create_topics(&["shop.change.shop", "copy"].map(topic)).unwrap();
        for at in [1_000, 2_000, 3_000, 4_000] {
            now.store(at, Ordering::SeqCst);
            let (topic, mut batch) = ("shop.change.shop".into(), OutBatch::default());
            let record = OutRecord {
                topic: &topic,
                partition: Some(0),
                timestamp: Some(at),
                key: Some(b"[1]"),
                value: None,
            };
            batch.push(record, []);
            log.append(&batch).unwrap();
        }
        log
    }

    #[test]
    fn target_is_created_on_request_only() {
        let log = log(&Arc::new(AtomicI64::new(0)));
        let run = |create, dry_run| {
            let job = Job {
                create,
                dry_run,
                ..job("debug.orders", RangeBound::Unbounded)
            };
            let done = run(&*log, &job, &mut |_| true);
            done.map(|done| done.records_replayed)
                .map_err(|error| error.to_string())
        };
        let error = run(false, false).unwrap_err();
        let expected =
            "topic `debug.orders` does not exist; choose an existing one with --to, or create it with --create";
        assert_eq!(error, expected);
        assert_eq!(run(true, true), Ok(4));
        assert!(
            log.describe("debug.orders").unwrap().is_none(),
            "a dry run creates nothing"
        );
        assert_eq!(run(true, false), Ok(4));
        assert_eq!(log.describe("debug.orders").unwrap().unwrap().partitions, 1);
    }

    fn job(to: &str, from: RangeBound) -> Job {
        Job {
            from_topic: "shop.change.shop".to_owned(),
            to_topic: to.to_owned(),
            create: false,
            partition: None,
            from,
            to: RangeBound::Unbounded,
            key: None,
            rate_per_s: None,
            dry_run: false,
        }
    }

    #[test]
    fn internal_topics_are_no_targets() {
        let log = log(&Arc::default());
        for topic in [
            "_schemas",
            "shop._trunkline.positions",
            "shop.view.log",
            "shop.sync-views.changelog.change.shop",
            "shop.sums.repartition",
            "shop.change.shop.dlq",
        ] {
            let error = run(&*log, &job(topic, RangeBound::Unbounded), &mut |_| true).unwrap_err();
            assert!(error.to_string().contains("by Trunkline only"), "{topic}: {error}");
        }
        let done = run(&*log, &job("copy", RangeBound::Unbounded), &mut |_| true).unwrap();
        assert_eq!(done.records_replayed, 4);
    }

    #[test]
    fn start_before_the_earliest_record_is_rejected_only_after_retention() {
        let now = Arc::default();
        let log = log(&now);
        let done = run(&*log, &job("copy", RangeBound::Time(0)), &mut |_| true).unwrap();
        assert_eq!(done.records_replayed, 4, "nothing was removed");
        let settings = [("retention.ms", "2500"), ("segment.ms", "1")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        log.alter_topic("shop.change.shop", &settings).unwrap();
        now.store(5_000, Ordering::SeqCst);
        let at = TopicPartition::new("shop.change.shop", 0);
        let until = Instant::now() + Duration::from_secs(20);
        while log.offset(&at, OffsetSpec::Earliest).unwrap() == 0 {
            assert!(Instant::now() < until, "retention removed nothing");
            std::thread::yield_now();
        }
        let error = run(&*log, &job("copy", RangeBound::Time(1_500)), &mut |_| true).unwrap_err();
        assert!(error.to_string().contains("retention has removed records"), "{error}");
        assert!(run(&*log, &job("copy", RangeBound::Time(3_500)), &mut |_| true).is_ok());
    }
}
