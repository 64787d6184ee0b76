//! Operator commands that resolve a difference between a task's state and its committed offsets.
//!
//! Each command makes commit record and offsets equal (invariant C9, agreement) and leaves the state unchanged. A
//! stopped task notices the result when it retries. `docs/protocol/commit.md` describes when to use each command.

use crate::api::error::{Error, Result};
use crate::task::commit_record::{COMMIT_RECORD_KEY, CommitRecord};
use event_log::{
    EventLog, Isolation, Offset, OffsetSpec, OutBatch, OutRecord, RecordBatch, StartFrom, TopicId, TopicPartition,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Positions of a task according to its state and to its consumer group.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TaskPositions {
    /// Sequence number of the newest commit record; 0 without one.
    pub seq: u64,
    /// Inputs of the task.
    pub inputs: Vec<InputPositions>,
}

/// One input of a task.
#[derive(Debug, Clone, serde::Serialize)]
pub struct InputPositions {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Next offset in the commit record; `None` if the record does not contain this input.
    pub state: Option<Offset>,
    /// Committed offset of the group; `None` if there is none or it has expired.
    pub committed: Option<Offset>,
    /// Whether the topic has another id than the one of the commit record, so that `state` is not a position in it.
    pub recreated: bool,
}

impl InputPositions {
    /// Topic and partition.
    pub fn at(&self) -> TopicPartition {
        TopicPartition::new(self.topic.as_str(), self.partition)
    }
}

const READ_BYTES: usize = 4 << 20;
const READ_WAIT: Duration = Duration::from_millis(100);

/// Positions of a task according to its changelog and to its consumer group. If the changelog has no commit record, the
/// inputs are the partitions with the task's number for which the group has offsets.
///
/// # Errors
/// The log fails, the changelog cannot be read, or there is neither a commit record nor an offset.
pub fn positions(log: &dyn EventLog, application: &str, changelog: &TopicPartition) -> Result<TaskPositions> {
    let commit_record = commit_record(log, application, changelog)?;
    let inputs = match &commit_record {
        Some(commit_record) => commit_record.inputs(),
        None => {
            let groups = log.groups().map_err(|source| log_error(application, source))?;
            let group = groups.into_iter().find(|group| group.group == application);
            let inputs = group.into_iter().flat_map(|group| group.committed.into_keys());
            inputs.filter(|input| input.partition == changelog.partition).collect()
        }
    };
    if inputs.is_empty() {
        return Err(empty(application, changelog));
    }
    let committed = log
        .committed(application, &inputs)
        .map_err(|source| log_error(application, source))?;
    let ids = topic_ids(log, application, &inputs)?;
    let input = |input: &TopicPartition| InputPositions {
        topic: input.topic.to_string(),
        partition: input.partition,
        state: commit_record
            .as_ref()
            .and_then(|commit_record| commit_record.next_offset(input)),
        committed: committed.get(input).copied().flatten(),
        recreated: commit_record
            .as_ref()
            .is_some_and(|commit_record| is_recreated(commit_record, input, &ids)),
    };
    Ok(TaskPositions {
        seq: commit_record.as_ref().map_or(0, |commit_record| commit_record.seq),
        inputs: inputs.iter().map(input).collect(),
    })
}

/// Increases positions that are below the first retained record of their input to that record, so that the task skips
/// the deleted records. The group must have no active member.
///
/// # Errors
/// As [`positions`] and [`accept`].
pub fn skip(log: &dyn EventLog, application: &str, changelog: &TopicPartition) -> Result<CommitRecord> {
    let (mut inputs, mut moved) = (Vec::new(), Vec::new());
    for input in positions(log, application, changelog)?.inputs {
        let at = input.at();
        let start = log
            .offset(&at, OffsetSpec::Earliest)
            .map_err(|source| log_error(application, source))?;
        if !input.recreated && input.state.or(input.committed).is_some_and(|next| next < start) {
            moved.push((at.clone(), start));
        }
        inputs.push(at);
    }
    if !moved.is_empty() {
        log.set_committed(application, &moved)
            .map_err(|source| log_error(application, source))?;
    }
    accept(log, application, changelog, &inputs)
}

/// Moves the position of one input of a task to an offset, so that the task skips records that cannot be read. `topic` may
/// be omitted if the task has one input. Positions move back only from outside the log. No thread may read the input.
///
/// # Errors
/// As [`positions`] and [`accept`]; the offset is not in the log, or not after the position.
pub fn skip_to(
    log: &dyn EventLog,
    application: &str,
    changelog: &TopicPartition,
    topic: Option<&str>,
    offset: Offset,
) -> Result<CommitRecord> {
    let rejected = |reason: String| Error::Application {
        name: application.to_owned(),
        reason,
    };
    let inputs = positions(log, application, changelog)?.inputs;
    let named = |input: &&InputPositions| topic.is_none_or(|topic| topic == input.topic);
    let (input, more) = (inputs.iter().find(named), inputs.iter().filter(named).count() > 1);
    let Some(input) = input.filter(|_| !more) else {
        let topics: Vec<&str> = inputs.iter().map(|input| input.topic.as_str()).collect();
        return Err(rejected(format!(
            "name one input of the task with --input: {}",
            topics.join(", ")
        )));
    };
    let at = input.at();
    let edge = |which| log.offset(&at, which).map_err(|source| log_error(application, source));
    let (start, end) = (edge(OffsetSpec::Earliest)?, edge(OffsetSpec::LogEnd)?);
    if !(start..=end).contains(&offset) {
        return Err(rejected(format!(
            "offset {offset} of {at} is not in the log, which has offsets {start}..{end}"
        )));
    }
    // The positions before a topic was created again are not offsets of its records.
    let position = input.state.or(input.committed).filter(|_| !input.recreated);
    if position.is_some_and(|next| (start..=end).contains(&next) && offset <= next) {
        return Err(rejected(format!(
            "the task has already processed {at} up to offset {}; records can only be skipped",
            position.unwrap_or_default()
        )));
    }
    log.set_committed(application, &[(at, offset)])
        .map_err(|source| log_error(application, source))?;
    let inputs: Vec<TopicPartition> = inputs.iter().map(InputPositions::at).collect();
    accept(log, application, changelog, &inputs)
}

/// Sets the offsets of a task without state to the first retained records of its inputs, so that it processes them
/// again. The group must have no active member.
///
/// # Errors
/// As [`accept`]; the changelog contains state.
pub fn reset_to_earliest(
    log: &dyn EventLog,
    application: &str,
    changelog: &TopicPartition,
    inputs: &[TopicPartition],
) -> Result<CommitRecord> {
    if commit_record(log, application, changelog)?.is_some() {
        return Err(Error::Application {
            name: application.to_owned(),
            reason: format!("{changelog} contains state; processing the inputs again would apply their records twice"),
        });
    }
    let starts = log
        .offsets(inputs, OffsetSpec::Earliest)
        .map_err(|source| log_error(application, source))?;
    let starts: Vec<_> = inputs.iter().cloned().zip(starts).collect();
    log.set_committed(application, &starts)
        .map_err(|source| log_error(application, source))?;
    accept(log, application, changelog, inputs)
}

/// The ids of the topics of these inputs that exist, by topic.
fn topic_ids(log: &dyn EventLog, application: &str, inputs: &[TopicPartition]) -> Result<BTreeMap<Arc<str>, TopicId>> {
    let mut ids = BTreeMap::new();
    for input in inputs {
        let info = log.describe(&input.topic);
        if let Some(info) = info.map_err(|source| log_error(application, source))? {
            ids.insert(input.topic.clone(), info.id);
        }
    }
    Ok(ids)
}

fn is_recreated(commit_record: &CommitRecord, input: &TopicPartition, ids: &BTreeMap<Arc<str>, TopicId>) -> bool {
    let id = ids.get(&input.topic);
    id.is_some_and(|id| commit_record.is_of_other_topic(&input.topic, *id))
}

fn log_error(application: &str, source: event_log::Error) -> Error {
    Error::EventLog {
        who: application.to_owned(),
        source,
    }
}

fn empty(application: &str, changelog: &TopicPartition) -> Error {
    Error::Application {
        name: application.to_owned(),
        reason: format!("{changelog} contains no state, so there is no position to compare or restore"),
    }
}

/// Makes the task continue with its state at the committed offsets: writes a commit record that contains exactly these
/// inputs. An input without a committed offset keeps its position in the previous commit record. If it has no position
/// there either, it starts at the `first_start` of its sub-topology.
///
/// # Errors
/// The log fails, or the changelog cannot be read.
pub fn accept(
    log: &dyn EventLog,
    application: &str,
    changelog: &TopicPartition,
    inputs: &[TopicPartition],
) -> Result<CommitRecord> {
    let before = commit_record(log, application, changelog)?.unwrap_or_default();
    let committed = log
        .committed(application, inputs)
        .map_err(|source| log_error(application, source))?;
    let ids = topic_ids(log, application, inputs)?;
    let input = |input: &TopicPartition| {
        let committed = committed.get(input).copied().flatten();
        committed.or_else(|| {
            before
                .next_offset(input)
                .filter(|_| !is_recreated(&before, input, &ids))
        })
    };
    let offsets = inputs
        .iter()
        .filter_map(|i| input(i).map(|next| (i.topic.to_string(), i.partition, next)));
    let after = CommitRecord {
        seq: before.seq + 1,
        offsets: offsets.collect(),
        topic_ids: ids
            .iter()
            .map(|(topic, id)| (topic.to_string(), id.to_string()))
            .collect(),
        stream_time: before.stream_time,
        at_least_once: false,
    };
    let (mut value, mut batch) = (Vec::new(), OutBatch::default());
    after.write(&mut value);
    let (topic, partition) = (&changelog.topic, Some(changelog.partition));
    let record = OutRecord {
        topic,
        partition,
        timestamp: None,
        key: Some(COMMIT_RECORD_KEY),
        value: Some(&value),
    };
    batch.push(record, []);
    log.append(&batch).map_err(|source| log_error(application, source))?;
    Ok(after)
}

/// Sets the committed offsets to the positions of the commit record. The group must have no active member.
///
/// # Errors
/// The log fails or rejects the offsets; the changelog cannot be read or has no commit record.
pub fn restore(log: &dyn EventLog, application: &str, changelog: &TopicPartition) -> Result<CommitRecord> {
    let commit_record = commit_record(log, application, changelog)?.ok_or_else(|| empty(application, changelog))?;
    let at =
        |(topic, partition, next): &(String, i32, Offset)| (TopicPartition::new(topic.as_str(), *partition), *next);
    let offsets: Vec<_> = commit_record.offsets.iter().map(at).collect();
    log.set_committed(application, &offsets)
        .map_err(|source| log_error(application, source))?;
    Ok(commit_record)
}

/// The newest committed commit record of a changelog partition.
fn commit_record(log: &dyn EventLog, application: &str, changelog: &TopicPartition) -> Result<Option<CommitRecord>> {
    let end = log
        .offset(changelog, OffsetSpec::LastStable)
        .map_err(|source| log_error(application, source))?;
    let mut reader = log
        .reader(Isolation::ReadCommitted)
        .map_err(|source| log_error(application, source))?;
    reader
        .assign(&[(changelog.clone(), StartFrom::Earliest)])
        .map_err(|source| log_error(application, source))?;
    let (mut batch, mut found) = (RecordBatch::default(), None);
    while reader.position(changelog).is_none_or(|next| next < end) {
        reader
            .poll(&mut batch, READ_BYTES, READ_WAIT)
            .map_err(|source| log_error(application, source))?;
        let records = batch.iter().filter(|record| record.key() == Some(COMMIT_RECORD_KEY));
        if let Some(value) = records.filter_map(|record| record.value()).last() {
            let read = CommitRecord::read(value);
            found = Some(read.map_err(|source| Error::Format {
                who: changelog.to_string(),
                source,
            })?);
        }
    }
    Ok(found)
}
