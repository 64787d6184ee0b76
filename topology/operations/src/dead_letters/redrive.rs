//! Redrive: writes the records of dead letters to their original topic and partition again.
//!
//! Key, value and headers are those of the record before it failed. Added are the header `replayed` = `redrive` and the
//! errors headers of the original topic, partition and offset, from which readers take the version of an event. Each
//! batch is a transaction that also contains the redrive marks, so a dead letter is marked if, and only if, its record
//! was written.
//!
//! The transactional id belongs to the dead-letter topic. Opening the producer ends the transaction of an earlier redrive
//! of the topic, and the marks are read after that and up to the log end, so two redrives never write the same record.

use super::letter::{Filter, View};
use super::marks::{Marks, Ranges};
use super::{DeadLetterTopic, PartitionRange};
use crate::scan;
use crate::topics::describe;
use crate::{Error, Result, failed};
use event_log::{
    EventLog, Offset, OffsetSpec, OutBatch, OutRecord, RecordRef, TopicInfo, TransactionalProducer,
    TransactionalProducerConfig,
};
use schemas::headers::{REDRIVE, REDRIVEN, REPLAYED, errors};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use topology::Names;

/// Records of a transaction. A mark of this many separate offsets is far below the smallest `max.message.bytes`.
const BATCH_RECORDS: usize = 500;
/// Bytes of a transaction.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes that a record needs in addition to its key, value and headers.
const RECORD_OVERHEAD: usize = 128;
/// Maximum number of different refusals in the outcome. Others are counted only.
const REFUSALS_MAX: usize = 20;

/// Which dead letters to redrive.
#[derive(Debug, Clone)]
pub struct Job {
    /// The dead-letter topic.
    pub topic: String,
    /// The dead letters.
    pub filter: Filter,
    /// Maximum number of dead letters to redrive.
    pub limit: Option<u64>,
    /// Also redrive those that were redriven before.
    pub again: bool,
    /// Count only, without writing.
    pub dry_run: bool,
}

/// Progress and outcome of a redrive.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Offsets processed.
    pub offsets_done: i64,
    /// Offsets to process.
    pub offsets_total: i64,
    /// Dead letters that match.
    pub matched: u64,
    /// Dead letters that were redriven, or would be in a dry run.
    pub redriven: u64,
    /// Dead letters that were skipped because they were redriven before.
    pub redriven_before: u64,
    /// Dead letters that cannot be redriven.
    pub refused: u64,
    /// Why they cannot be redriven.
    pub refusals: Vec<Refusal>,
}

/// Dead letters that cannot be redriven for the same reason.
#[derive(Debug, Clone, Serialize)]
pub struct Refusal {
    /// The reason and the fix.
    pub reason: String,
    /// Number of dead letters.
    pub count: u64,
    /// The first of them, as partition and offset of the dead-letter topic.
    pub first: String,
}

impl Outcome {
    fn refuse(&mut self, reason: String, record: &RecordRef<'_>) {
        self.refused += 1;
        if let Some(known) = self.refusals.iter_mut().find(|refusal| refusal.reason == reason) {
            known.count += 1;
        } else if self.refusals.len() < REFUSALS_MAX {
            let first = format!("{}/{}", record.partition().partition, record.offset());
            let count = 1;
            self.refusals.push(Refusal { reason, count, first });
        }
    }
}

/// Redrives dead letters. `report` is called after each batch and cancels the redrive by returning `false`.
///
/// # Errors
/// The topic is not a dead-letter topic, it or the original topic does not exist, a transaction was not committed, or the
/// redrive was cancelled. Batches that were committed before remain, and their dead letters are marked.
pub fn redrive(log: &dyn EventLog, job: &Job, report: &mut dyn FnMut(&Outcome) -> bool) -> Result<Outcome> {
    let DeadLetterTopic { info, origin } = DeadLetterTopic::find(log, &job.topic)?;
    let target = Target::find(log, origin)?;
    // Each record of a repartition topic changes the aggregate, also if it was processed before.
    if job.again && is_repartition(&target.info.name) {
        return Err(Error::Rejected(format!(
            "records of repartition topic {} cannot be redriven again, because each of them would count again",
            target.info.name
        )));
    }
    let mut writer = Writer::open(log, job)?;
    let end = if job.dry_run {
        OffsetSpec::LastStable
    } else {
        OffsetSpec::LogEnd
    };
    let ranges = scan::whole(log, &job.topic, job.filter.partitions(&info)?, end)?;
    let marks = Marks::read(log, &ranges)?;
    let ranges = job.filter.narrow(ranges);
    let total = ranges.iter().map(|range| (range.to - range.from).max(0)).sum();
    let mut run = Run {
        job,
        topic: target.info.name.as_str().into(),
        target,
        marks,
        outcome: Outcome {
            offsets_total: total,
            ..Outcome::default()
        },
    };
    let ranges: Vec<PartitionRange> = ranges.into_iter().filter(|range| range.from < range.to).collect();
    // Both callbacks need the run and the writer, and are never called at the same time.
    let state = std::cell::RefCell::new((&mut run, &mut writer));
    let mut visit = |record: &RecordRef<'_>| {
        let mut state = state.borrow_mut();
        let (run, writer) = &mut *state;
        run.visit(record, writer)
    };
    let mut pause = |done: i64| {
        let mut state = state.borrow_mut();
        let (run, writer) = &mut *state;
        writer.commit()?;
        run.outcome.offsets_done = done;
        if !report(&run.outcome) {
            let text = "the redrive was cancelled; dead letters that were redriven before are marked";
            return Err(Error::Rejected(text.into()));
        }
        Ok(!run.is_limit_reached())
    };
    scan::read(log, &ranges, &mut visit, &mut pause)?;
    Ok(run.outcome)
}

fn is_repartition(topic: &str) -> bool {
    topic.ends_with(".repartition") || topic.contains(".repartition.")
}

/// The original topic.
struct Target {
    info: TopicInfo,
    /// Log end of each partition.
    ends: Vec<Offset>,
    /// `max.message.bytes`.
    message_bytes_max: Option<usize>,
}

impl Target {
    fn find(log: &dyn EventLog, topic: String) -> Result<Self> {
        let info = describe(log, &topic)?;
        let ranges = scan::whole(log, &topic, 0..info.partitions, OffsetSpec::LogEnd)?;
        let limit = info.number("max.message.bytes");
        Ok(Target {
            ends: ranges.iter().map(|range| range.to).collect(),
            message_bytes_max: limit.and_then(|limit| usize::try_from(limit).ok()),
            info,
        })
    }

    /// Why a record cannot be written to the topic.
    fn refusal(&self, letter: &View<'_, '_>) -> Option<String> {
        let topic = &self.info.name;
        let (partition, offset) = (letter.record.partition().partition, letter.original_offset()?);
        let end = usize::try_from(partition).ok().and_then(|at| self.ends.get(at));
        let Some(end) = end else {
            let count = self.info.partitions;
            return Some(format!(
                "topic {topic} has only {count} partitions, none with the number {partition}"
            ));
        };
        if offset >= *end {
            return Some(format!(
                "its original offset is not in topic {topic}, so the topic was created again after the dead letter was \
                 written, and the record belongs to the previous topic"
            ));
        }
        let record = letter.record;
        let headers: usize = letter
            .own_headers()
            .map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len) + 10)
            .sum();
        let bytes = record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len) + headers;
        let limit = self.message_bytes_max?;
        (bytes + RECORD_OVERHEAD > limit).then(|| {
            format!(
                "the record is larger than topic {topic} accepts ({limit} bytes); raise max.message.bytes of the topic and \
                 run the command again"
            )
        })
    }
}

/// Decides about each dead letter.
struct Run<'a> {
    job: &'a Job,
    /// The original topic.
    topic: Arc<str>,
    target: Target,
    marks: Marks,
    outcome: Outcome,
}

impl Run<'_> {
    fn is_limit_reached(&self) -> bool {
        self.job.limit.is_some_and(|limit| self.outcome.redriven >= limit)
    }

    fn visit(&mut self, record: &RecordRef<'_>, writer: &mut Writer) -> Result<()> {
        let topic = self.topic.clone();
        let Some(letter) = View::of(record, &topic) else {
            return Ok(());
        };
        let is_redriven = self.redrives(&letter);
        writer.saw(record, is_redriven);
        if is_redriven {
            self.outcome.redriven += 1;
            writer.push(&letter, &topic)?;
        }
        Ok(())
    }

    fn redrives(&mut self, letter: &View<'_, '_>) -> bool {
        if self.is_limit_reached() || !self.job.filter.matches(letter) {
            return false;
        }
        self.outcome.matched += 1;
        if let Some(reason) = letter.refusal().or_else(|| self.target.refusal(letter)) {
            self.outcome.refuse(reason, letter.record);
            return false;
        }
        let (partition, offset) = (letter.record.partition().partition, letter.record.offset());
        if !self.job.again && self.marks.contains(partition, offset) {
            self.outcome.redriven_before += 1;
            return false;
        }
        true
    }
}

/// Writes records and redrive marks in transactions. A dry run has no producer.
struct Writer {
    producer: Option<Box<dyn TransactionalProducer>>,
    dead_letters: Arc<str>,
    records: OutBatch,
    /// The redriven offsets of the batch, by partition.
    marked: BTreeMap<i32, Marked>,
}

#[derive(Default)]
struct Marked {
    offsets: Ranges,
    /// Whether the last dead letter of the partition was redriven in this batch.
    follows: bool,
}

impl Writer {
    fn open(log: &dyn EventLog, job: &Job) -> Result<Self> {
        let config = TransactionalProducerConfig {
            transactional_id: Names::redrive(&job.topic),
            transaction_timeout: Duration::from_secs(10),
        };
        let producer = (!job.dry_run).then(|| log.transactional_producer(config)).transpose();
        Ok(Writer {
            producer: producer.map_err(failed("open the transactional producer of the redrive"))?,
            dead_letters: job.topic.as_str().into(),
            records: OutBatch::default(),
            marked: BTreeMap::new(),
        })
    }

    /// Adds a dead letter to the marks, or ends the range of the dead letters before it.
    fn saw(&mut self, record: &RecordRef<'_>, is_redriven: bool) {
        let marked = self.marked.entry(record.partition().partition).or_default();
        if is_redriven {
            marked.offsets.add(record.offset(), marked.follows);
        }
        marked.follows = is_redriven;
    }

    fn push(&mut self, letter: &View<'_, '_>, topic: &Arc<str>) -> Result<()> {
        let (record, origin) = (letter.record, letter.origin());
        let (partition, offset) = (origin.partition.to_string(), origin.offset.map(|at| at.to_string()));
        let added = [
            (errors::TOPIC, Some(topic.as_bytes())),
            (errors::PARTITION, Some(partition.as_bytes())),
            (errors::OFFSET, offset.as_deref().map(str::as_bytes)),
            (REPLAYED, Some(REDRIVE.as_bytes())),
        ];
        let out = OutRecord {
            topic,
            partition: Some(origin.partition),
            timestamp: None,
            key: record.key(),
            value: record.value(),
        };
        let own = letter.own_headers().filter(|(name, _)| *name != REPLAYED);
        // Other applications that read the topic have processed the record, and ignore it.
        let application = letter.record.header(errors::CONNECTOR_NAME);
        let application = application.map(|name| (errors::CONNECTOR_NAME, Some(name)));
        self.records.push(out, own.chain(added).chain(application));
        if self.records.len() >= BATCH_RECORDS || self.records.byte_len() >= BATCH_BYTES {
            self.commit()?;
        }
        Ok(())
    }

    /// Commits the collected records together with their marks.
    fn commit(&mut self) -> Result<()> {
        for (partition, marked) in &mut self.marked {
            marked.follows = false;
            if marked.offsets.is_empty() {
                continue;
            }
            let value = marked.offsets.write();
            marked.offsets.clear();
            let mark = OutRecord {
                topic: &self.dead_letters,
                partition: Some(*partition),
                timestamp: None,
                key: None,
                value: None,
            };
            self.records.push(mark, [(REDRIVEN, Some(value.as_bytes()))]);
        }
        let Some(producer) = self.producer.as_mut().filter(|_| !self.records.is_empty()) else {
            self.records.clear();
            return Ok(());
        };
        let attempted = || format!("redrive dead letters of {}", self.dead_letters);
        producer.begin().map_err(failed(attempted()))?;
        producer.send(&self.records).map_err(failed(attempted()))?;
        self.records.clear();
        match producer.commit(None) {
            event_log::Outcome::Committed(_) => Ok(()),
            event_log::Outcome::Aborted { reason, .. } | event_log::Outcome::Unknown { reason } => {
                Err(Error::Rejected(format!(
                    "the redrive stopped because a transaction was not committed: {reason}; dead letters that were \
                     redriven before are marked, so run the command again"
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests;
