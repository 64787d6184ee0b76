//! Reads the records of a topic without affecting any consumer group: from a position, or the newest ones.

use crate::topics::describe;
use crate::{Decoded, Decoder, Error, Result, failed};
use event_log::{EventLog, Isolation, Millis, Offset, OffsetSpec, RecordBatch, RecordRef, StartFrom, TopicPartition};
use std::collections::BTreeMap;
use std::time::Duration;

/// Offsets before the end of a partition at which the first step begins, at least. Control records have offsets too.
const STEP_MIN: i64 = 64;
/// Growth of the steps.
const STEP_FACTOR: i64 = 8;

/// Position at which reading starts.
#[derive(Debug, Clone, Copy)]
pub enum TailStart {
    /// At the earliest offset.
    Earliest,
    /// At the newest records of the topic, at most this number of them.
    Newest(usize),
    /// Starts at the last stable offset, or at the log end if uncommitted records are read, so that only new records
    /// are read.
    End,
    /// At this offset, in every partition.
    Offset(Offset),
    /// At the first record with this timestamp (ms) or a later one.
    Time(Millis),
}

/// A request to read records.
#[derive(Debug, Clone)]
pub struct Tail {
    /// Topic.
    pub topic: String,
    /// The only partition to read; `None` for all.
    pub partition: Option<i32>,
    /// Position at which reading starts.
    pub from: TailStart,
    /// Return only records with this key.
    pub key: Option<String>,
    /// Maximum number of records.
    pub limit: Option<usize>,
    /// Wait for new records at the end until `stop` returns true.
    pub follow: bool,
    /// Also return records of open and aborted transactions.
    pub uncommitted: bool,
}

impl Tail {
    /// Whether a record has the requested key.
    fn wants(&self, record: &RecordRef<'_>) -> bool {
        let key = self.key.as_deref();
        key.is_none_or(|k| record.key().is_some_and(|key| key == k.as_bytes()))
    }
}

/// Reads and decodes records and passes each to `visit`, until the end or the limit is reached, `stop` returns true, or
/// `visit` returns false.
pub fn tail(
    log: &dyn EventLog,
    request: &Tail,
    decoder: &mut Decoder,
    stop: &dyn Fn() -> bool,
    visit: &mut dyn FnMut(Decoded) -> bool,
) -> Result<usize> {
    let info = describe(log, &request.topic)?;
    let partitions: Vec<_> = (0..info.partitions)
        .filter(|p| request.partition.is_none_or(|only| only == *p))
        .map(|partition| TopicPartition::new(request.topic.as_str(), partition))
        .collect();
    if partitions.is_empty() {
        let wanted = request.partition.unwrap_or_default();
        return Err(Error::Rejected(format!(
            "topic {} has {} partitions, numbered from 0; there is no partition {wanted}",
            info.name, info.partitions
        )));
    }
    let end = if request.uncommitted {
        OffsetSpec::LogEnd
    } else {
        OffsetSpec::LastStable
    };
    let offsets = |which| {
        let found = log.offsets(&partitions, which);
        found.map_err(failed(format!("look up offsets of {}", info.name)))
    };
    let (starts, ends) = (offsets(OffsetSpec::Earliest)?, offsets(end)?);
    let parts: Vec<Unread> = partitions
        .into_iter()
        .zip(starts.into_iter().zip(ends))
        .map(|(at, (start, end))| Unread { at, start, end })
        .collect();
    if !request.follow && parts.iter().all(|part| part.start >= part.end) {
        return Ok(0);
    }
    let mut visitor = Visitor { decoder, stop, visit };
    if let TailStart::Newest(count) = request.from {
        let ends: Vec<_> = parts.iter().map(|part| (part.at.clone(), part.end)).collect();
        let found = newest(log, request, count, parts, &mut visitor)?;
        let number = found.len();
        let all_visited = found.into_iter().all(|record| (visitor.visit)(record));
        if !all_visited || !request.follow {
            return Ok(number);
        }
        let begin = ends.iter().map(|(at, end)| (at.clone(), StartFrom::Offset(*end)));
        return Ok(number + forward(log, request, begin.collect(), &ends, &mut visitor)?);
    }
    let begin: Result<Vec<_>> = parts
        .iter()
        .map(|part| Ok((part.at.clone(), start_of(log, part, request.from)?)))
        .collect();
    let ends: Vec<_> = parts.into_iter().map(|part| (part.at, part.end)).collect();
    forward(log, request, begin?, &ends, &mut visitor)
}

/// What to do with the records that are read.
struct Visitor<'v> {
    decoder: &'v mut Decoder,
    stop: &'v dyn Fn() -> bool,
    visit: &'v mut dyn FnMut(Decoded) -> bool,
}

/// Reads to the ends, or until the visitor stops if the request follows.
fn forward(
    log: &dyn EventLog,
    request: &Tail,
    begin: Vec<(TopicPartition, StartFrom)>,
    ends: &[(TopicPartition, Offset)],
    visitor: &mut Visitor<'_>,
) -> Result<usize> {
    let mut reader = log.reader(isolation(request)).map_err(failed("open a reader"))?;
    reader.assign(&begin).map_err(failed("start reading"))?;
    let mut batch = RecordBatch::default();
    let mut count = 0;
    while !(visitor.stop)() {
        let got = reader
            .poll(&mut batch, 1 << 20, Duration::from_millis(100))
            .map_err(failed("read"))?;
        for record in batch.iter().filter(|record| request.wants(record)) {
            count += 1;
            let decoded = visitor.decoder.decode(&record);
            if !(visitor.visit)(decoded) || request.limit.is_some_and(|limit| count >= limit) {
                return Ok(count);
            }
        }
        let done = ends
            .iter()
            .all(|(at, end)| reader.position(at).is_some_and(|p| p >= *end));
        if got == 0 && done && !request.follow {
            break;
        }
    }
    Ok(count)
}

fn start_of(log: &dyn EventLog, part: &Unread, from: TailStart) -> Result<StartFrom> {
    Ok(match from {
        TailStart::Earliest => StartFrom::Earliest,
        TailStart::End | TailStart::Newest(_) => StartFrom::Offset(part.end),
        TailStart::Offset(offset) => StartFrom::Offset(offset.clamp(part.start, part.end.max(part.start))),
        TailStart::Time(time) => {
            let found = log.offset(&part.at, OffsetSpec::Timestamp(time));
            StartFrom::Offset(found.map_err(failed(format!("look up an offset of {}", part.at)))?)
        }
    })
}

/// A partition and the part of it that was not read yet.
struct Unread {
    at: TopicPartition,
    /// Earliest offset.
    start: Offset,
    /// End of the unread part.
    end: Offset,
}

/// The newest records that match, by timestamp, partition and offset; at most `count`.
fn newest(
    log: &dyn EventLog,
    request: &Tail,
    count: usize,
    unread: Vec<Unread>,
    visitor: &mut Visitor<'_>,
) -> Result<Vec<Decoded>> {
    let mut found: BTreeMap<(Millis, i32, Offset), Decoded> = BTreeMap::new();
    let mut unread: Vec<Unread> = unread.into_iter().filter(|part| part.start < part.end).collect();
    let mut step = i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(2).max(STEP_MIN);
    // The number of records found in each partition.
    let mut matched: BTreeMap<i32, usize> = BTreeMap::new();
    while !unread.is_empty() && count > 0 {
        let from = |part: &Unread| part.start.max(part.end.saturating_sub(step));
        let mut reader = log.reader(isolation(request)).map_err(failed("open a reader"))?;
        let begin: Vec<_> = unread
            .iter()
            .map(|part| (part.at.clone(), StartFrom::Offset(from(part))))
            .collect();
        reader.assign(&begin).map_err(failed("start reading"))?;
        let mut batch = RecordBatch::default();
        let is_behind = |part: &Unread, position: Option<Offset>| position.is_none_or(|position| position < part.end);
        while unread.iter().any(|part| is_behind(part, reader.position(&part.at))) {
            reader
                .poll(&mut batch, 1 << 20, Duration::from_millis(100))
                .map_err(failed("read"))?;
            if (visitor.stop)() {
                return Ok(Vec::new());
            }
            for record in batch.iter().filter(|record| request.wants(record)) {
                let partition = record.partition().partition;
                let end = unread
                    .iter()
                    .find(|part| part.at.partition == partition)
                    .map(|part| part.end);
                if end.is_none_or(|end| record.offset() >= end) {
                    continue;
                }
                *matched.entry(partition).or_default() += 1;
                let key = (record.timestamp(), partition, record.offset());
                // Decoding is expensive, so records that are older than all found ones are skipped.
                if found.len() < count || found.first_key_value().is_some_and(|(oldest, _)| *oldest < key) {
                    found.insert(key, visitor.decoder.decode(&record));
                }
                if found.len() > count {
                    found.pop_first();
                }
            }
        }
        for part in &mut unread {
            part.end = from(part);
        }
        unread.retain(|part| {
            let enough = matched.get(&part.at.partition).is_some_and(|matched| *matched >= count);
            part.start < part.end && !enough
        });
        step = step.saturating_mul(STEP_FACTOR);
    }
    Ok(found.into_values().collect())
}

fn isolation(request: &Tail) -> Isolation {
    if request.uncommitted {
        Isolation::ReadUncommitted
    } else {
        Isolation::ReadCommitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::embedded::{Config, EmbeddedLog};
    use event_log::{Cleanup, OutBatch, OutRecord, TopicConfig, TopicSpec};
    use std::sync::Arc;

    fn log(topics: &[&str], partitions: i32) -> event_log::SharedEventLog {
        let now = std::sync::atomic::AtomicI64::new(0);
        let tick = move || now.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let log = EmbeddedLog::open(Config::new(None, Arc::new(tick))).unwrap();
        let topic = |name: &&str| TopicSpec {
            name: (*name).to_owned(),
            partitions,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        let topics: Vec<_> = topics.iter().map(topic).collect();
        log.create_topics(&topics).unwrap();
        log
    }

    /// Writes a record in a separate transaction, so that a control record follows it.
    fn write(log: &event_log::SharedEventLog, partition: i32, key: &str) {
        let (topic, mut batch) = ("t".into(), OutBatch::default());
        let record = OutRecord {
            topic: &topic,
            partition: Some(partition),
            timestamp: None,
            key: Some(key.as_bytes()),
            value: None,
        };
        batch.push(record, []);
        let config = event_log::TransactionalProducerConfig {
            transactional_id: "writer".to_owned(),
            transaction_timeout: Duration::from_secs(60),
        };
        let mut producer = log.transactional_producer(config).unwrap();
        producer.begin().unwrap();
        producer.send(&batch).unwrap();
        assert!(matches!(producer.commit(None), event_log::Outcome::Committed(_)));
    }

    fn keys(log: &event_log::SharedEventLog, from: TailStart, key: Option<&str>) -> Vec<String> {
        let request = Tail {
            topic: "t".to_owned(),
            partition: None,
            from,
            key: key.map(str::to_owned),
            limit: Some(100),
            follow: false,
            uncommitted: false,
        };
        let mut decoder = Decoder::new(Arc::new(|_| Err("no registry".to_owned())));
        let mut found = Vec::new();
        let mut visit = |record: Decoded| {
            found.push(record.key.as_str().unwrap_or_default().to_owned());
            true
        };
        tail(&**log, &request, &mut decoder, &|| false, &mut visit).unwrap();
        found
    }

    #[test]
    fn newest_records_of_all_partitions_are_found() {
        let log = log(&["t"], 3);
        write(&log, 2, "k-first");
        for number in 0..120 {
            // Partition 0 has most of the records, but not the newest ones.
            let partition = if number < 100 { 0 } else { number % 3 };
            write(&log, partition, &format!("k-{number}"));
        }
        assert_eq!(
            keys(&log, TailStart::Newest(4), None),
            ["k-116", "k-117", "k-118", "k-119"]
        );
        assert_eq!(
            keys(&log, TailStart::Newest(3), Some("k-5")),
            ["k-5"],
            "far before the end"
        );
        assert_eq!(keys(&log, TailStart::Newest(3), Some("k-none")), Vec::<String>::new());
        assert_eq!(keys(&log, TailStart::Newest(1000), None).len(), 121);
        assert_eq!(keys(&log, TailStart::Newest(1), Some("k-first")), ["k-first"]);
    }
}
