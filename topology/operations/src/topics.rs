//! Lists and describes topics, and reads their records without affecting any consumer group.

use crate::{Decoded, Decoder, Error, Result, failed};
use event_log::{EventLog, Isolation, Millis, Offset, OffsetSpec, RecordBatch, StartFrom, TopicInfo, TopicPartition};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use topology::Names;

/// Summary of a topic.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Name.
    pub name: String,
    /// Partition count.
    pub partitions: i32,
    /// Sum of end offset minus earliest offset over all partitions, including control records and gaps.
    pub offsets: i64,
    /// `cleanup.policy`.
    pub cleanup: String,
    /// Id.
    pub id: String,
}

/// Details of a topic.
#[derive(Debug, Serialize)]
pub struct Detail {
    /// Its summary.
    #[serde(flatten)]
    pub summary: Summary,
    /// Kafka configuration of the topic.
    pub settings: BTreeMap<String, String>,
    /// Partitions.
    pub parts: Vec<Part>,
}

/// Offsets of a partition.
#[derive(Debug, Serialize)]
pub struct Part {
    /// Number.
    pub partition: i32,
    /// Earliest offset.
    pub start: Offset,
    /// Last stable offset.
    pub stable: Offset,
    /// Log end offset.
    pub end: Offset,
}

/// Describes a topic; the error suggests a similar name.
pub fn describe(log: &dyn EventLog, topic: &str) -> Result<TopicInfo> {
    let found = log.describe(topic).map_err(failed(format!("describe topic {topic}")))?;
    match found {
        Some(info) => Ok(info),
        None => {
            let all = log.topics().unwrap_or_default();
            // The most likely mistake is a name without the topology's prefix.
            let unprefixed = all.iter().find(|t| lacks_prefix(topic, t));
            let near = unprefixed.or_else(|| all.iter().find(|t| t.contains(topic) || topic.contains(t.as_str())));
            let near = near.map(|t| format!("; did you mean `{t}`?")).unwrap_or_default();
            Err(Error::UnknownTopic {
                topic: topic.to_owned(),
                near,
            })
        }
    }
}

/// Whether `full` equals `given` with the prefix of a topology added.
pub(crate) fn lacks_prefix(given: &str, full: &str) -> bool {
    Names::owning(full).is_some_and(|names| names.local(full) == given)
}

/// Lists all topics.
pub fn list(log: &dyn EventLog) -> Result<Vec<Summary>> {
    let names = log.topics().map_err(failed("list topics"))?;
    names.iter().map(|name| Ok(show(log, name)?.summary)).collect()
}

/// Shows one topic.
pub fn show(log: &dyn EventLog, topic: &str) -> Result<Detail> {
    let info = describe(log, topic)?;
    let mut parts = Vec::new();
    for partition in 0..info.partitions {
        let at = TopicPartition::new(topic, partition);
        let offset = |which| {
            log.offset(&at, which)
                .map_err(failed(format!("look up offsets of {at}")))
        };
        parts.push(Part {
            partition,
            start: offset(OffsetSpec::Earliest)?,
            stable: offset(OffsetSpec::LastStable)?,
            end: offset(OffsetSpec::LogEnd)?,
        });
    }
    let summary = Summary {
        name: info.name.clone(),
        partitions: info.partitions,
        offsets: parts.iter().map(|p| p.end - p.start).sum(),
        cleanup: info.settings.get("cleanup.policy").cloned().unwrap_or_default(),
        id: info.id.to_string(),
    };
    Ok(Detail {
        summary,
        settings: info.settings,
        parts,
    })
}

/// Position at which reading starts.
#[derive(Debug, Clone, Copy)]
pub enum TailStart {
    /// At the earliest offset.
    Earliest,
    /// This number of offsets before the end of each partition.
    Last(i64),
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
    let isolation = if request.uncommitted {
        Isolation::ReadUncommitted
    } else {
        Isolation::ReadCommitted
    };
    let mut reader = log.reader(isolation).map_err(failed("open a reader"))?;
    let mut ends = Vec::new();
    let mut assigned = Vec::new();
    for partition in (0..info.partitions).filter(|p| request.partition.is_none_or(|only| only == *p)) {
        let at = TopicPartition::new(request.topic.as_str(), partition);
        let stable = if request.uncommitted {
            OffsetSpec::LogEnd
        } else {
            OffsetSpec::LastStable
        };
        let end = log
            .offset(&at, stable)
            .map_err(failed(format!("look up the end offset of {at}")))?;
        assigned.push((at.clone(), start_of(log, &at, request.from, end)?));
        ends.push((at, end));
    }
    if assigned.is_empty() {
        let wanted = request.partition.unwrap_or_default();
        return Err(Error::Rejected(format!(
            "topic {} has {} partitions, numbered from 0; there is no partition {wanted}",
            info.name, info.partitions
        )));
    }
    reader.assign(&assigned).map_err(failed("start reading"))?;
    let mut batch = RecordBatch::default();
    let mut count = 0;
    while !stop() {
        let got = reader
            .poll(&mut batch, 1 << 20, Duration::from_millis(100))
            .map_err(failed("read"))?;
        for record in batch.iter() {
            let wanted = request
                .key
                .as_deref()
                .is_none_or(|k| record.key().is_some_and(|key| key == k.as_bytes()));
            if wanted {
                count += 1;
                if !visit(decoder.decode(&record)) || request.limit.is_some_and(|limit| count >= limit) {
                    return Ok(count);
                }
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

fn start_of(log: &dyn EventLog, at: &TopicPartition, from: TailStart, end: Offset) -> Result<StartFrom> {
    let lookup = |which| {
        log.offset(at, which)
            .map_err(failed(format!("look up an offset of {at}")))
    };
    Ok(match from {
        TailStart::Earliest => StartFrom::Earliest,
        TailStart::End => StartFrom::Offset(end),
        TailStart::Offset(offset) => StartFrom::Offset(offset.clamp(lookup(OffsetSpec::Earliest)?, end)),
        TailStart::Last(count) => StartFrom::Offset((end - count).max(lookup(OffsetSpec::Earliest)?)),
        TailStart::Time(time) => StartFrom::Offset(lookup(OffsetSpec::Timestamp(time))?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::embedded::{Config, EmbeddedLog};
    use event_log::{Cleanup, TopicConfig, TopicSpec};
    use std::sync::Arc;

    #[test]
    fn missing_prefix_is_suggested() {
        let log = EmbeddedLog::open(Config::new(None, Arc::new(|| 0))).unwrap();
        let topic = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: 1,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        log.create_topics(&["app.shop.change.db.copy", "shop.change.db", "shop.change.db.dlq"].map(topic))
            .unwrap();
        let error = describe(log.as_ref(), "change.db").unwrap_err().to_string();
        assert!(error.contains("did you mean `shop.change.db`?"), "{error}");
    }
}
