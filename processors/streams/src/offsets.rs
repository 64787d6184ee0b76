//! The ways out of a task whose state and committed offsets differ, for operators.
//!
//! Guarantees: each makes commit_record and offsets agree; a stopped task sees it by itself.
//! Never: a change of the state itself; a guess which of the two is right.

use crate::commit_record::{COMMIT_RECORD_KEY, CommitRecord};
use crate::{Error, Result};
use event_log::{EventLog, Isolation, Offset, OffsetSpec, OutBatch, OutRecord, RecordBatch, StartFrom, TopicPartition};
use std::time::Duration;

/// What a task's state contains, and what its group has committed.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Standing {
    /// Sequence of the newest commit_record.
    pub seq: u64,
    /// Each input of the commit_record.
    pub inputs: Vec<Place>,
}

/// One input of a task.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Place {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Next offset by the state; none when the changelog knows nothing of this input.
    pub state: Option<Offset>,
    /// Next offset by the group; none when it has never committed, or its offsets have expired.
    pub committed: Option<Offset>,
}

impl Place {
    /// The input's partition.
    pub fn at(&self) -> TopicPartition {
        TopicPartition::new(self.topic.as_str(), self.partition)
    }
}

const READ_BYTES: usize = 4 << 20;
const READ_WAIT: Duration = Duration::from_millis(100);

/// Where a task stands, by its changelog and by its group. Of a changelog without a commit_record the inputs are those of the
/// group's offsets that have the task's partition.
///
/// # Errors
/// A log that fails, a changelog that cannot be read, a task of which neither knows anything.
pub fn standing(log: &dyn EventLog, application: &str, changelog: &TopicPartition) -> Result<Standing> {
    let wrap = |source| Error::EventLog {
        who: application.to_owned(),
        source,
    };
    let commit_record = commit_record(log, application, changelog)?;
    let inputs = match &commit_record {
        Some(commit_record) => commit_record.inputs(),
        None => {
            let groups = log.groups().map_err(wrap)?;
            let group = groups.into_iter().find(|group| group.group == application);
            let inputs = group.into_iter().flat_map(|group| group.committed.into_keys());
            inputs.filter(|input| input.partition == changelog.partition).collect()
        }
    };
    if inputs.is_empty() {
        return Err(empty(application, changelog));
    }
    let committed = log.committed(application, &inputs).map_err(wrap)?;
    let place = |input: &TopicPartition| Place {
        topic: input.topic.to_string(),
        partition: input.partition,
        state: commit_record
            .as_ref()
            .and_then(|commit_record| commit_record.next_offset(input)),
        committed: committed.get(input).copied().flatten(),
    };
    Ok(Standing {
        seq: commit_record.as_ref().map_or(0, |commit_record| commit_record.seq),
        inputs: inputs.iter().map(place).collect(),
    })
}

/// Moves a task's offsets and commit_record to the start of what its inputs still hold, where they are below it: records that
/// are gone are not processed. The group must have no live member.
///
/// # Errors
/// As [`standing`] and [`accept`].
pub fn skip(log: &dyn EventLog, application: &str, changelog: &TopicPartition) -> Result<CommitRecord> {
    let wrap = |source| Error::EventLog {
        who: application.to_owned(),
        source,
    };
    let (mut inputs, mut moved) = (Vec::new(), Vec::new());
    for place in standing(log, application, changelog)?.inputs {
        let at = place.at();
        let start = log.offset(&at, OffsetSpec::Earliest).map_err(wrap)?;
        if place.state.or(place.committed).is_some_and(|next| next < start) {
            moved.push((at.clone(), start));
        }
        inputs.push(at);
    }
    if !moved.is_empty() {
        log.set_committed(application, &moved).map_err(wrap)?;
    }
    accept(log, application, changelog, &inputs)
}

/// Lets a task that has no state, but offsets, process these inputs, which are its own, again from the first records that
/// they hold. The group must have no live member.
///
/// # Errors
/// As [`accept`]; a changelog that does hold state.
pub fn again(
    log: &dyn EventLog,
    application: &str,
    changelog: &TopicPartition,
    inputs: &[TopicPartition],
) -> Result<CommitRecord> {
    let wrap = |source| Error::EventLog {
        who: application.to_owned(),
        source,
    };
    if commit_record(log, application, changelog)?.is_some() {
        return Err(Error::Application {
            name: application.to_owned(),
            reason: format!("{changelog} holds state, to which the same records would be added once more"),
        });
    }
    let starts = log.offsets(inputs, OffsetSpec::Earliest).map_err(wrap)?;
    let starts: Vec<_> = inputs.iter().cloned().zip(starts).collect();
    log.set_committed(application, &starts).map_err(wrap)?;
    accept(log, application, changelog, inputs)
}

fn empty(application: &str, changelog: &TopicPartition) -> Error {
    Error::Application {
        name: application.to_owned(),
        reason: format!("{changelog} holds no state, so there is nothing to compare or to go back to"),
    }
}

/// Goes on from the committed offsets with the state as it is: writes a commit_record that says so, of these inputs and no
/// others. An input without a committed offset keeps its place in the commit_record; one that has neither starts where it is
/// declared to.
///
/// # Errors
/// A log that fails, a changelog that cannot be read.
pub fn accept(
    log: &dyn EventLog,
    application: &str,
    changelog: &TopicPartition,
    inputs: &[TopicPartition],
) -> Result<CommitRecord> {
    let wrap = |source| Error::EventLog {
        who: application.to_owned(),
        source,
    };
    let before = commit_record(log, application, changelog)?.unwrap_or_default();
    let committed = log.committed(application, inputs).map_err(wrap)?;
    let place = |input: &TopicPartition| {
        committed
            .get(input)
            .copied()
            .flatten()
            .or_else(|| before.next_offset(input))
    };
    let offsets = inputs
        .iter()
        .filter_map(|i| place(i).map(|next| (i.topic.to_string(), i.partition, next)));
    let after = CommitRecord {
        seq: before.seq + 1,
        offsets: offsets.collect(),
        stream_time: before.stream_time,
        alone: false,
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
    log.append(&batch).map_err(wrap)?;
    Ok(after)
}

/// Puts the committed offsets back to what the state contains. The group must have no live member.
///
/// # Errors
/// A log that fails or refuses, a changelog that cannot be read or holds no commit_record.
pub fn restore(log: &dyn EventLog, application: &str, changelog: &TopicPartition) -> Result<CommitRecord> {
    let commit_record = commit_record(log, application, changelog)?.ok_or_else(|| empty(application, changelog))?;
    let at =
        |(topic, partition, next): &(String, i32, Offset)| (TopicPartition::new(topic.as_str(), *partition), *next);
    let offsets: Vec<_> = commit_record.offsets.iter().map(at).collect();
    let wrap = |source| Error::EventLog {
        who: application.to_owned(),
        source,
    };
    log.set_committed(application, &offsets).map_err(wrap)?;
    Ok(commit_record)
}

/// The newest committed commit_record of a changelog partition.
fn commit_record(log: &dyn EventLog, application: &str, changelog: &TopicPartition) -> Result<Option<CommitRecord>> {
    let wrap = |source| Error::EventLog {
        who: application.to_owned(),
        source,
    };
    let end = log.offset(changelog, OffsetSpec::LastStable).map_err(wrap)?;
    let mut reader = log.reader(Isolation::ReadCommitted).map_err(wrap)?;
    reader
        .assign(&[(changelog.clone(), StartFrom::Earliest)])
        .map_err(wrap)?;
    let (mut batch, mut found) = (RecordBatch::default(), None);
    while reader.position(changelog).is_none_or(|next| next < end) {
        reader.poll(&mut batch, READ_BYTES, READ_WAIT).map_err(wrap)?;
        let markers = batch.iter().filter(|record| record.key() == Some(COMMIT_RECORD_KEY));
        if let Some(value) = markers.filter_map(|record| record.value()).last() {
            let read = CommitRecord::read(value);
            found = Some(read.map_err(|source| Error::Format {
                who: changelog.to_string(),
                source,
            })?);
        }
    }
    Ok(found)
}
