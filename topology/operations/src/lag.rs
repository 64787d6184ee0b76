//! Lag of consumer groups.
//!
//! Lag is measured to the last stable offset. A group that has read everything has lag 0, whether it committed the
//! offset after the last record or a position after the control records that follow it. Measuring does not join a
//! group.

use crate::topics::lacks_prefix;
use crate::{Error, Result, failed};
use event_log::{EventLog, Isolation, Millis, Offset, OffsetSpec, RecordBatch, StartFrom, TopicPartition};
use serde::Serialize;
use std::time::{Duration, Instant};

/// A group's lag in one partition.
#[derive(Debug, Serialize)]
pub struct Lag {
    /// Group.
    pub group: String,
    /// State of the group, named as in Kafka.
    pub state: String,
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Next offset that the group will read.
    pub committed: Offset,
    /// Last stable offset.
    pub stable: Offset,
    /// Number of records that the group has not read yet: counted if they are few, else the difference of the offsets.
    pub lag_records: i64,
    /// Age of the oldest unread record in ms; `None` if all records were read.
    pub lag_ms: Option<Millis>,
    /// Member to which the partition is assigned.
    pub member: Option<String>,
}

/// Offset difference above which records are not counted.
const COUNTED_MAX: i64 = 10_000;
/// Longest time to count the records of a partition. After that, the difference of the offsets is the result.
const COUNTING_MAX: Duration = Duration::from_secs(2);

/// Measures one group, or all groups.
///
/// # Errors
/// A call to the log failed, or the group does not exist.
pub fn measure(log: &dyn EventLog, group: Option<&str>, now: Millis) -> Result<Vec<Lag>> {
    let groups = log.groups().map_err(failed("list groups"))?;
    if let Some(given) = group.filter(|given| groups.iter().all(|info| info.group != **given)) {
        let full = groups.iter().find(|info| lacks_prefix(given, &info.group));
        let near = full.map(|info| format!("; did you mean `{}`?", info.group));
        return Err(Error::Rejected(format!(
            "consumer group `{given}` does not exist{}; `trunkline lag` lists all groups, and a processor creates its group \
             when it starts for the first time",
            near.unwrap_or_default()
        )));
    }
    let mut lags = Vec::new();
    for info in groups.iter().filter(|g| group.is_none_or(|only| only == g.group)) {
        for (at, committed) in &info.committed {
            let Ok(stable) = log.offset(at, OffsetSpec::LastStable) else {
                continue;
            };
            let member = info
                .members
                .iter()
                .find(|m| m.partitions.contains(at))
                .map(|m| m.name.clone());
            let (lag_records, oldest) = unread(log, at, *committed, stable)?;
            lags.push(Lag {
                group: info.group.clone(),
                state: info.state.clone(),
                topic: at.topic.to_string(),
                partition: at.partition,
                committed: *committed,
                stable,
                lag_records,
                lag_ms: oldest.map(|oldest| (now - oldest).max(0)),
                member,
            });
        }
    }
    Ok(lags)
}

/// The number of records between two offsets, and the timestamp of the first one.
fn unread(log: &dyn EventLog, at: &TopicPartition, from: Offset, to: Offset) -> Result<(i64, Option<Millis>)> {
    if from >= to {
        return Ok((0, None));
    }
    let mut reader = log.reader(Isolation::ReadCommitted).map_err(failed("open a reader"))?;
    let start = log
        .offset(at, OffsetSpec::Earliest)
        .map_err(failed(format!("look up the earliest offset of {at}")))?;
    let begin = [(at.clone(), StartFrom::Offset(from.max(start)))];
    reader.assign(&begin).map_err(failed(format!("read {at}")))?;
    let mut batch = RecordBatch::default();
    let (mut count, mut oldest) = (0, None);
    let began = Instant::now();
    while began.elapsed() < COUNTING_MAX {
        reader
            .poll(&mut batch, 1 << 20, Duration::from_millis(50))
            .map_err(failed(format!("read {at}")))?;
        oldest = oldest.or_else(|| batch.get(0).map(|r| r.timestamp()));
        if to - from > COUNTED_MAX && oldest.is_some() {
            return Ok((to - from, oldest));
        }
        count += i64::try_from(batch.iter().filter(|r| r.offset() < to).count()).unwrap_or(i64::MAX);
        if reader.position(at).is_some_and(|p| p >= to) {
            return Ok((count, oldest));
        }
    }
    Ok((to - from, oldest))
}
