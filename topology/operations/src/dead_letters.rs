//! Dead letters: lists dead-letter topics, reads dead letters, and redrives them.
//!
//! A redrive writes the record of a dead letter to its original topic again, and in the same transaction a *redrive mark*
//! to the dead-letter topic: a record without key and value whose header `redriven` contains the offsets of the dead
//! letters. A mark is in the partition of its dead letters and expires after them, and it disappears with the topic.

mod letter;
mod marks;
mod redrive;

pub use letter::{Filter, Letter, Origin};
pub use redrive::{Job, Outcome, Refusal, redrive};

use crate::scan::{self, PartitionRange};
use crate::topics::describe;
use crate::{Decoder, Error, Result, failed};
use event_log::{EventLog, Millis, OffsetSpec, TopicInfo, in_parallel, origin_of_dead_letters};
use letter::View;
use marks::Marks;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Maximum number of groups in the description of a topic. The dead letters of others are counted together.
const GROUPS_MAX: usize = 100;

/// A dead-letter topic and its dead letters.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The dead-letter topic.
    pub topic: String,
    /// The topic of the records.
    pub origin: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Number of dead letters.
    pub dead_letters: u64,
    /// Number of dead letters that were not redriven.
    pub open: u64,
    /// Append time of the newest one in ms.
    pub newest_ms: Option<Millis>,
    /// Dead letters with the same cause.
    pub groups: Vec<Group>,
}

/// Dead letters of one application with the same stage and type of error.
#[derive(Debug, Serialize)]
pub struct Group {
    /// Application or connector that wrote them.
    pub application: String,
    /// Stage in which the processing failed.
    pub stage: String,
    /// Type of the error.
    pub error: String,
    /// Number of dead letters.
    pub dead_letters: u64,
    /// Number of dead letters that were not redriven.
    pub open: u64,
    /// Append time of the newest one in ms.
    pub newest_ms: Millis,
    /// Message of the newest one.
    pub reason: String,
}

/// Describes the dead-letter topics whose names begin with `prefix`.
///
/// # Errors
/// A call to the log failed.
pub fn list(log: &dyn EventLog, prefix: &str) -> Result<Vec<Summary>> {
    let topics = log.topics().map_err(failed("list topics"))?;
    let topics = topics.iter().filter(|topic| topic.starts_with(prefix));
    let all: Vec<_> = topics
        .filter_map(|topic| Some((topic, origin_of_dead_letters(topic)?)))
        .collect();
    let summaries = in_parallel(&all, |(topic, origin)| summary(log, topic, origin));
    summaries.into_iter().collect()
}

fn summary(log: &dyn EventLog, topic: &str, origin: &str) -> Result<Summary> {
    let info = describe(log, topic)?;
    let ranges = scan::whole(log, topic, 0..info.partitions, OffsetSpec::LastStable)?;
    let marks = Marks::read(log, &ranges)?;
    let mut groups: BTreeMap<(String, String, String), Group> = BTreeMap::new();
    let mut summary = Summary {
        topic: topic.to_owned(),
        origin: origin.to_owned(),
        partitions: info.partitions,
        dead_letters: 0,
        open: 0,
        newest_ms: None,
        groups: Vec::new(),
    };
    let mut add = |record: &event_log::RecordRef<'_>| {
        let Some(letter) = View::of(record, origin) else {
            return Ok(());
        };
        let open = u64::from(!marks.contains(record.partition().partition, record.offset()));
        summary.dead_letters += 1;
        summary.open += open;
        summary.newest_ms = summary.newest_ms.max(Some(record.timestamp()));
        let mut key = letter.cause();
        if groups.len() >= GROUPS_MAX && !groups.contains_key(&key) {
            key = (String::from("-"), String::from("-"), String::from("other causes"));
        }
        let group = groups
            .entry(key)
            .or_insert_with_key(|(application, stage, error)| Group {
                application: application.clone(),
                stage: stage.clone(),
                error: error.clone(),
                dead_letters: 0,
                open: 0,
                newest_ms: Millis::MIN,
                reason: String::new(),
            });
        group.dead_letters += 1;
        group.open += open;
        if record.timestamp() >= group.newest_ms {
            group.newest_ms = record.timestamp();
            group.reason = letter.reason().into_owned();
        }
        Ok(())
    };
    scan::read(log, &ranges, &mut add, &mut |_| Ok(true))?;
    summary.groups = groups.into_values().collect();
    summary
        .groups
        .sort_by_key(|group| std::cmp::Reverse(group.dead_letters));
    Ok(summary)
}

/// Reads the newest dead letters that match, at most `limit`, in the order in which they were written.
///
/// # Errors
/// The topic is not a dead-letter topic or does not exist, or a call to the log failed.
pub fn show(
    log: &dyn EventLog,
    topic: &str,
    filter: &Filter,
    limit: usize,
    mut decoder: Decoder,
) -> Result<Vec<Letter>> {
    let DeadLetterTopic { info, origin } = DeadLetterTopic::find(log, topic)?;
    let ranges = scan::whole(log, topic, filter.partitions(&info)?, OffsetSpec::LastStable)?;
    let marks = Marks::read(log, &ranges)?;
    let mut newest: VecDeque<(Millis, Letter)> = VecDeque::new();
    let mut add = |record: &event_log::RecordRef<'_>| {
        let Some(view) = View::of(record, &origin).filter(|view| filter.matches(view)) else {
            return Ok(());
        };
        let redriven = marks.contains(record.partition().partition, record.offset());
        let letter = view.describe(decoder.decode(record), redriven);
        let after = newest.partition_point(|(at, ..)| *at <= record.timestamp());
        newest.insert(after, (record.timestamp(), letter));
        if newest.len() > limit {
            newest.pop_front();
        }
        Ok(())
    };
    scan::read(log, &filter.narrow(ranges), &mut add, &mut |_| Ok(true))?;
    Ok(newest.into_iter().map(|(_, letter)| letter).collect())
}

/// An existing dead-letter topic and the topic of its records.
struct DeadLetterTopic {
    info: TopicInfo,
    origin: String,
}

impl DeadLetterTopic {
    fn find(log: &dyn EventLog, topic: &str) -> Result<Self> {
        let info = describe(log, topic)?;
        let origin = origin_of_dead_letters(topic).ok_or_else(|| {
            Error::Rejected(format!(
                "topic {topic} is not a dead-letter topic; list them with `trunkline dlq list`"
            ))
        })?;
        Ok(DeadLetterTopic {
            origin: origin.to_owned(),
            info,
        })
    }
}
