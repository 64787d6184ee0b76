//! Replay: copies a range of a topic to another topic, without changing keys, values, headers or timestamps.
//!
//! The end of the range is fixed when the job starts. The header `replayed` is added, so that a reader with state
//! recognizes repeated records. Each batch is a transaction, so after a cancelled replay the target contains complete
//! batches. A range that retention has partly deleted is rejected, not shortened. Source and target must differ.

use crate::topics::describe;
use crate::{Error, Result, failed};
use event_log::{
    EventLog, Isolation, Millis, Offset, OffsetSpec, OutBatch, OutRecord, Outcome, Reader, RecordBatch, RecordRef,
    StartFrom, TopicPartition, TransactionalProducerConfig,
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
    /// Topic to which the records are written; it must exist.
    pub to_topic: String,
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
    let source = describe(log, &job.from_topic)?;
    let target = describe(log, &job.to_topic)?;
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
    let mut writer = Writer::open(log, job, source.partitions == target.partitions)?;
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
            RangeBound::Time(time) => lookup(OffsetSpec::Timestamp(time))?.min(end),
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
