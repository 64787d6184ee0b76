//! Replay: copies a stretch of a topic to another topic, as it was, bytes untouched.
//!
//! The end is frozen when the job starts. Records keep key, value, headers and timestamp; the header `replayed` is
//! added, so that a stateful reader knows that it sees them again at their original position.
//! Guarantees: batches are transactions: a cancelled replay leaves whole batches; a stretch that retention no longer
//! holds is refused, not shortened.
//! Never: writes into the topic that it reads.

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

/// A border of the stretch.
#[derive(Debug, Clone, Copy)]
pub enum Border {
    /// The first record kept, or the end as it is now.
    Open,
    /// An offset, the same in each partition.
    Offset(Offset),
    /// A time in ms.
    Time(Millis),
}

/// What to replay.
#[derive(Debug, Clone)]
pub struct Job {
    /// Topic to read.
    pub from_topic: String,
    /// Topic to write; it must exist.
    pub to_topic: String,
    /// Only this partition.
    pub partition: Option<i32>,
    /// First record.
    pub from: Border,
    /// First record that is not replayed.
    pub to: Border,
    /// Only records with this key, as its JSON text.
    pub key: Option<String>,
    /// At most so many records a second.
    pub rate_per_s: Option<u32>,
    /// Counts, and writes nothing.
    pub dry_run: bool,
}

/// How far a replay has come.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Progress {
    /// Offsets passed.
    pub offsets_done: i64,
    /// Offsets of the whole stretch.
    pub offsets_total: i64,
    /// Records read.
    pub records_read: u64,
    /// Records written, or that would be.
    pub records_replayed: u64,
    /// Bytes of keys and values of those.
    pub bytes: u64,
}

struct Stretch {
    at: TopicPartition,
    from: Offset,
    to: Offset,
}

/// Runs a job; `report` is called after each batch and cancels it with `false`.
pub fn run(log: &dyn EventLog, job: &Job, report: &mut dyn FnMut(&Progress) -> bool) -> Result<Progress> {
    if job.from_topic == job.to_topic {
        return Err(Error::Refused(format!(
            "a replay of {} into itself would never end; name another topic with --to",
            job.from_topic
        )));
    }
    let source = describe(log, &job.from_topic)?;
    let target = describe(log, &job.to_topic)?;
    let stretches = stretches(log, job, source.partitions)?;
    let mut progress = Progress {
        offsets_total: stretches.iter().map(|s| s.to - s.from).sum(),
        ..Progress::default()
    };
    let mut reader = log.reader(Isolation::ReadCommitted).map_err(failed("open a reader"))?;
    let begin: Vec<_> = stretches
        .iter()
        .map(|s| (s.at.clone(), StartFrom::Offset(s.from)))
        .collect();
    reader.assign(&begin).map_err(failed("begin to read"))?;
    let mut writer = Writer::open(log, job, source.partitions == target.partitions)?;
    let mut batch = RecordBatch::default();
    while !done(reader.as_ref(), &stretches) {
        reader
            .poll(&mut batch, 1 << 20, Duration::from_millis(200))
            .map_err(failed("read"))?;
        for record in batch.iter().filter(|r| within(r, &stretches)) {
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
        progress.offsets_done = stretches
            .iter()
            .map(|s| reader.position(&s.at).unwrap_or(s.from).clamp(s.from, s.to) - s.from)
            .sum();
        if !report(&progress) {
            return Err(Error::Refused(
                "the replay was cancelled; what was committed before stays".into(),
            ));
        }
    }
    Ok(progress)
}

fn done(reader: &dyn Reader, stretches: &[Stretch]) -> bool {
    stretches
        .iter()
        .all(|s| s.from >= s.to || reader.position(&s.at).is_some_and(|p| p >= s.to))
}

fn within(record: &RecordRef<'_>, stretches: &[Stretch]) -> bool {
    stretches
        .iter()
        .any(|s| s.at == *record.partition() && (s.from..s.to).contains(&record.offset()))
}

fn stretches(log: &dyn EventLog, job: &Job, partitions: i32) -> Result<Vec<Stretch>> {
    let mut stretches = Vec::new();
    for partition in (0..partitions).filter(|p| job.partition.is_none_or(|only| only == *p)) {
        let at = TopicPartition::new(job.from_topic.as_str(), partition);
        let lookup = |which| {
            log.offset(&at, which)
                .map_err(failed(format!("look up an offset of {at}")))
        };
        let (start, end) = (lookup(OffsetSpec::Earliest)?, lookup(OffsetSpec::LastStable)?);
        let from = match job.from {
            Border::Open => start,
            Border::Offset(offset) if offset < start => {
                return Err(Error::Refused(format!(
                    "offset {offset} of {at} is no longer kept, the first one is {start}; begin there with --from-offset {start}"
                )));
            }
            Border::Offset(offset) => offset.min(end),
            Border::Time(time) => lookup(OffsetSpec::Timestamp(time))?.min(end),
        };
        let to = match job.to {
            Border::Open => end,
            Border::Offset(offset) => offset.min(end),
            Border::Time(time) => lookup(OffsetSpec::Timestamp(time))?.min(end),
        };
        stretches.push(Stretch {
            at,
            from,
            to: to.max(from),
        });
    }
    if stretches.is_empty() {
        return Err(Error::Refused(format!(
            "topic {} has {partitions} partitions",
            job.from_topic
        )));
    }
    Ok(stretches)
}

struct Writer<'a> {
    session: Option<Box<dyn event_log::TransactionalProducer>>,
    topic: Arc<str>,
    same_partitions: bool,
    out: OutBatch,
    rate_per_s: Option<u32>,
    began: Instant,
    job: &'a Job,
}

impl<'a> Writer<'a> {
    fn open(log: &dyn EventLog, job: &'a Job, same_partitions: bool) -> Result<Self> {
        let session = if job.dry_run {
            None
        } else {
            let config = TransactionalProducerConfig {
                transactional_id: format!("replay.{}.{}", job.from_topic, job.to_topic),
                transaction_timeout: Duration::from_secs(10),
            };
            Some(
                log.transactional_producer(config)
                    .map_err(failed("open a session for the replay"))?,
            )
        };
        let topic = job.to_topic.as_str().into();
        let (rate_per_s, began) = (job.rate_per_s, Instant::now());
        Ok(Writer {
            session,
            topic,
            same_partitions,
            out: OutBatch::default(),
            rate_per_s,
            began,
            job,
        })
    }

    fn push(&mut self, record: &RecordRef<'_>) {
        let partition = self.same_partitions.then(|| record.partition().partition);
        let again = (headers::REPLAYED, Some(headers::REPLAY.as_bytes()));
        let all = record
            .headers()
            .iter()
            .filter(|(n, _)| *n != headers::REPLAYED)
            .chain([again]);
        let out = OutRecord {
            topic: &self.topic,
            partition,
            timestamp: Some(record.timestamp()),
            key: record.key(),
            value: record.value(),
        };
        self.out.push(out, all);
    }

    /// Commits what was pushed, and waits as the rate asks.
    fn commit(&mut self, total: u64) -> Result<()> {
        let Some(session) = self.session.as_mut().filter(|_| !self.out.is_empty()) else {
            self.out.clear();
            return Ok(());
        };
        let attempted = || format!("write to {}", self.job.to_topic);
        session.begin().map_err(failed(attempted()))?;
        session.send(&self.out).map_err(failed(attempted()))?;
        self.out.clear();
        match session.commit(None) {
            Outcome::Committed(_) => {}
            Outcome::Aborted { reason, .. } | Outcome::Unknown { reason } => {
                let text = format!(
                    "the replay stopped: a transaction did not commit ({reason}); what was committed before stays"
                );
                return Err(Error::Refused(text));
            }
        }
        if let Some(rate) = self.rate_per_s {
            let due = Duration::from_secs_f64(total_f64(total) / f64::from(rate.max(1)));
            std::thread::sleep(due.saturating_sub(self.began.elapsed()));
        }
        Ok(())
    }
}

#[expect(
    clippy::as_conversions,
    reason = "a count as a float: exact below 2^53, and it only paces"
)]
#[expect(clippy::cast_precision_loss, reason = "as above")]
fn total_f64(total: u64) -> f64 {
    total as f64
}
