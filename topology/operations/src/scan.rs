//! Reads the committed records of a topic between two offsets of each partition.

use crate::{Error, Result, failed};
use event_log::{EventLog, Isolation, Offset, OffsetSpec, RecordBatch, RecordRef, StartFrom, TopicPartition};
use std::time::{Duration, Instant};

/// Bytes of a poll.
const POLL_BYTES: usize = 1 << 20;
/// How long to wait for the end of transactions that are open at the end of the range.
const OPEN_MAX: Duration = Duration::from_secs(30);

/// A range of offsets of a partition.
#[derive(Debug, Clone)]
pub(crate) struct PartitionRange {
    pub at: TopicPartition,
    /// First offset.
    pub from: Offset,
    /// End, exclusive.
    pub to: Offset,
}

/// The ranges from the earliest offset of each of a topic's partitions to `end`.
pub(crate) fn whole(
    log: &dyn EventLog,
    topic: &str,
    partitions: impl Iterator<Item = i32>,
    end: OffsetSpec,
) -> Result<Vec<PartitionRange>> {
    let partitions: Vec<_> = partitions
        .map(|partition| TopicPartition::new(topic, partition))
        .collect();
    let lookup = |which| {
        let found = log.offsets(&partitions, which);
        found.map_err(failed(format!("look up offsets of {topic}")))
    };
    let (starts, ends) = (lookup(OffsetSpec::Earliest)?, lookup(end)?);
    let ranges = partitions.iter().zip(starts.into_iter().zip(ends));
    Ok(ranges
        .map(|(at, (from, to))| PartitionRange {
            at: at.clone(),
            from,
            to: to.max(from),
        })
        .collect())
}

/// Passes the committed records of the ranges to `visit`, in the order of the offsets of each partition. After each poll
/// it calls `pause` with the number of offsets that were processed; the scan ends early if it returns `false`.
pub(crate) fn read(
    log: &dyn EventLog,
    ranges: &[PartitionRange],
    visit: &mut dyn FnMut(&RecordRef<'_>) -> Result<()>,
    pause: &mut dyn FnMut(i64) -> Result<bool>,
) -> Result<()> {
    let ranges: Vec<&PartitionRange> = ranges.iter().filter(|range| range.from < range.to).collect();
    if ranges.is_empty() {
        return Ok(());
    }
    let mut reader = log.reader(Isolation::ReadCommitted).map_err(failed("open a reader"))?;
    let begin: Vec<_> = ranges
        .iter()
        .map(|range| (range.at.clone(), StartFrom::Offset(range.from)))
        .collect();
    reader.assign(&begin).map_err(failed("start reading"))?;
    let mut batch = RecordBatch::default();
    let (mut done_before, mut progress_at) = (0, Instant::now());
    loop {
        reader
            .poll(&mut batch, POLL_BYTES, Duration::from_millis(100))
            .map_err(failed("read"))?;
        for record in batch.iter() {
            let mut all = ranges.iter();
            if all.any(|range| range.at == *record.partition() && record.offset() < range.to) {
                visit(&record)?;
            }
        }
        let position = |range: &&PartitionRange| reader.position(&range.at).unwrap_or(range.from);
        let done: i64 = ranges
            .iter()
            .map(|range| position(range).clamp(range.from, range.to) - range.from)
            .sum();
        if !pause(done)? || ranges.iter().all(|range| position(range) >= range.to) {
            return Ok(());
        }
        if done > done_before {
            (done_before, progress_at) = (done, Instant::now());
        } else if progress_at.elapsed() > OPEN_MAX {
            let open = ranges.iter().find(|range| position(range) < range.to);
            let at = open.map(|range| range.at.to_string()).unwrap_or_default();
            return Err(Error::Rejected(format!(
                "a transaction in {at} has been open for more than {} s, and the records behind it cannot be read; repeat \
                 the command, and if this persists, abort the transaction with kafka-transactions.sh",
                OPEN_MAX.as_secs()
            )));
        }
    }
}
