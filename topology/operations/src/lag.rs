//! Lag of consumer groups.
//!
//! Lag is measured to the last stable offset. A group that has read everything has lag 0, whether it committed the
//! offset after the last record or a position after the control records that follow it. A group that has never committed
//! an offset has to read everything. Measuring does not join a group.

use crate::topics::lacks_prefix;
use crate::{Error, Result, failed};
use event_log::{
    EventLog, GroupInfo, Isolation, Millis, Offset, OffsetSpec, RecordBatch, StartFrom, TopicPartition, in_parallel,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Next offset that the group will read; `None` if it has never committed one.
    pub committed: Option<Offset>,
    /// Last stable offset.
    pub stable: Offset,
    /// Number of records that the group has not read yet: counted if they are few, else the difference of the offsets.
    pub lag_records: i64,
    /// Age of the oldest unread record in ms; `None` if all records were read.
    pub lag_ms: Option<Millis>,
    /// Member to which the partition is assigned.
    pub member: Option<String>,
}

/// An input of a consumer group that a topology declares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeclaredInput {
    /// Group.
    pub group: String,
    /// Topic.
    pub topic: String,
}

/// State of a declared group that does not exist.
const NEVER_RAN: &str = "never ran";

/// A partition of a group.
struct GroupPartition {
    group: String,
    state: String,
    at: TopicPartition,
    committed: Option<Offset>,
    member: Option<String>,
}

/// Offset difference above which records are not counted.
const COUNTED_MAX: i64 = 10_000;
/// Longest time to count the records of a partition. After that, the difference of the offsets is the result.
const COUNTING_MAX: Duration = Duration::from_secs(2);

/// Measures one group, or all groups. Partitions of `declared` inputs without a committed offset are included.
///
/// # Errors
/// A call to the log failed, or the group does not exist.
pub fn measure(log: &dyn EventLog, group: Option<&str>, declared: &[DeclaredInput], now: Millis) -> Result<Vec<Lag>> {
    let groups = log.groups().map_err(failed("list groups"))?;
    let is_known = |given: &str| {
        groups.iter().any(|info| info.group == given) || declared.iter().any(|input| input.group == given)
    };
    if let Some(given) = group.filter(|given| !is_known(given)) {
        let full = groups.iter().find(|info| lacks_prefix(given, &info.group));
        let near = full.map(|info| format!("; did you mean `{}`?", info.group));
        return Err(Error::Rejected(format!(
            "consumer group `{given}` does not exist{}; `trunkline lag` lists all groups, and a processor creates its group \
             when it starts for the first time",
            near.unwrap_or_default()
        )));
    }
    let is_wanted = |name: &str| group.is_none_or(|only| only == name);
    let mut partitions: Vec<GroupPartition> = groups
        .iter()
        .filter(|info| is_wanted(&info.group))
        .flat_map(of_group)
        .collect();
    let declared: Vec<_> = declared.iter().filter(|input| is_wanted(&input.group)).collect();
    let counts = in_parallel(&declared, |input| {
        let info = log.describe(&input.topic);
        let info = info.map_err(failed(format!("describe topic {}", input.topic)))?;
        Ok(info.map_or(0, |info| info.partitions))
    });
    for (input, count) in declared.into_iter().zip(counts) {
        let state = groups.iter().find(|group| group.group == input.group);
        let state = state.map_or(NEVER_RAN, |group| &group.state);
        add_declared(input, count?, state, &mut partitions);
    }
    let stable = offsets(
        log,
        partitions.iter().map(|partition| &partition.at),
        OffsetSpec::LastStable,
    );
    // The topics of other partitions were deleted.
    let ranges = partitions
        .iter()
        .filter_map(|partition| Some((partition, *stable.get(&partition.at)?)));
    let ranges: Vec<_> = ranges.collect();
    let behind = ranges
        .iter()
        .filter(|(partition, stable)| is_behind(partition.committed, *stable));
    let starts = offsets(log, behind.map(|(partition, _)| &partition.at), OffsetSpec::Earliest);
    let lags = in_parallel(&ranges, |(partition, stable)| {
        let (at, stable) = (&partition.at, *stable);
        let (lag_records, oldest) = match starts.get(at) {
            Some(start) if is_behind(partition.committed, stable) => {
                let from = partition.committed.unwrap_or(*start).max(*start);
                unread(log, at, from, stable)?
            }
            _ => (0, None),
        };
        Ok(Lag {
            topic: at.topic.to_string(),
            partition: at.partition,
            group: partition.group.clone(),
            state: partition.state.clone(),
            committed: partition.committed,
            stable,
            lag_records,
            lag_ms: oldest.map(|oldest| (now - oldest).max(0)),
            member: partition.member.clone(),
        })
    });
    lags.into_iter().collect()
}

/// Whether a group has to read records before `stable`.
fn is_behind(committed: Option<Offset>, stable: Offset) -> bool {
    committed.is_none_or(|committed| committed < stable)
}

/// Looks up the same offset of partitions, which may occur several times. Partitions of deleted topics are missing in the
/// result.
fn offsets<'p>(
    log: &dyn EventLog,
    partitions: impl Iterator<Item = &'p TopicPartition>,
    which: OffsetSpec,
) -> BTreeMap<&'p TopicPartition, Offset> {
    let unique: BTreeSet<&TopicPartition> = partitions.collect();
    let wanted: Vec<TopicPartition> = unique.iter().map(|at| (*at).clone()).collect();
    match log.offsets(&wanted, which) {
        Ok(found) => unique.into_iter().zip(found).collect(),
        Err(_) => {
            let found = in_parallel(&wanted, |at| log.offset(at, which));
            let found = unique.into_iter().zip(found);
            found.filter_map(|(at, offset)| Some((at, offset.ok()?))).collect()
        }
    }
}

/// The partitions of a group: those with a committed offset, and those that members have.
fn of_group(info: &GroupInfo) -> Vec<GroupPartition> {
    let member = |at: &TopicPartition| info.members.iter().find(|member| member.partitions.contains(at));
    let assigned = info.members.iter().flat_map(|member| &member.partitions);
    let all: BTreeSet<&TopicPartition> = info.committed.keys().chain(assigned).collect();
    all.into_iter()
        .map(|at| GroupPartition {
            group: info.group.clone(),
            state: info.state.clone(),
            at: at.clone(),
            committed: info.committed.get(at).copied(),
            member: member(at).map(|member| member.name.clone()),
        })
        .collect()
}

/// Adds the partitions of a declared input that the group has never read; `count` is the topic's partition count.
fn add_declared(input: &DeclaredInput, count: i32, state: &str, partitions: &mut Vec<GroupPartition>) {
    for partition in 0..count {
        let at = TopicPartition::new(input.topic.as_str(), partition);
        if partitions
            .iter()
            .any(|known| known.group == input.group && known.at == at)
        {
            continue;
        }
        partitions.push(GroupPartition {
            group: input.group.clone(),
            state: state.to_owned(),
            at,
            committed: None,
            member: None,
        });
    }
}

/// The number of records between two offsets, and the timestamp of the first one.
fn unread(log: &dyn EventLog, at: &TopicPartition, from: Offset, to: Offset) -> Result<(i64, Option<Millis>)> {
    if from >= to {
        return Ok((0, None));
    }
    let mut reader = log.reader(Isolation::ReadCommitted).map_err(failed("open a reader"))?;
    let begin = [(at.clone(), StartFrom::Offset(from))];
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

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::embedded::{Config, EmbeddedLog};
    use event_log::{Cleanup, OutBatch, OutRecord, TopicConfig, TopicSpec};
    use std::sync::Arc;

    #[test]
    fn group_that_never_ran_has_to_read_everything() {
        let log = EmbeddedLog::open(Config::new(None, Arc::new(|| 1_000))).unwrap();
        let spec = TopicSpec {
            name: "shop.event.placed".to_owned(),
            partitions: 2,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        log.create_topics(&[spec]).unwrap();
        let (topic, mut batch) = (Arc::from("shop.event.placed"), OutBatch::default());
        for _ in 0..3 {
            let record = OutRecord {
                topic: &topic,
                partition: Some(1),
                timestamp: None,
                key: None,
                value: Some(b"x"),
            };
            batch.push(record, []);
        }
        log.append(&batch).unwrap();
        let declared = ["shop.ran", "shop.new"].map(|group| DeclaredInput {
            group: group.to_owned(),
            topic: "shop.event.placed".to_owned(),
        });
        let at = TopicPartition::new("shop.event.placed", 1);
        log.set_committed("shop.ran", &[(at, 2)]).unwrap();
        let found = measure(&*log, None, &declared, 1_500).unwrap();
        let rows: Vec<_> = found
            .iter()
            .map(|lag| {
                (
                    &*lag.group,
                    &*lag.state,
                    lag.partition,
                    lag.committed,
                    lag.lag_records,
                    lag.lag_ms,
                )
            })
            .collect();
        let ran = rows
            .iter()
            .filter(|row| row.0 == "shop.ran")
            .map(|row| (row.2, row.3, row.4));
        assert_eq!(ran.collect::<Vec<_>>(), [(1, Some(2), 1), (0, None, 0)]);
        let new: Vec<_> = rows.iter().filter(|row| row.0 == "shop.new").collect();
        assert_eq!(
            new,
            [
                &("shop.new", NEVER_RAN, 0, None, 0, None),
                &("shop.new", NEVER_RAN, 1, None, 3, Some(500))
            ]
        );
        assert_eq!(measure(&*log, Some("shop.new"), &declared, 0).unwrap().len(), 2);
        assert!(measure(&*log, Some("shop.new"), &[], 0).is_err());
        assert_eq!(measure(&*log, None, &[], 0).unwrap().len(), 1);
    }
}
