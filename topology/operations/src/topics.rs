//! Lists and describes topics.

use crate::{Error, Result, failed};
use event_log::{ErrorAction, EventLog, Offset, OffsetSpec, TopicInfo, TopicPartition, in_parallel};
use serde::Serialize;
use std::collections::BTreeMap;
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
    /// Why the topic cannot be described. The other fields are then empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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
            let fix = near.map_or_else(
                || "list the topics with `trunkline topics list`".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            Err(Error::UnknownTopic {
                topic: topic.to_owned(),
                fix,
            })
        }
    }
}

/// Whether `full` equals `given` with the prefix of a topology added.
pub(crate) fn lacks_prefix(given: &str, full: &str) -> bool {
    Names::owning(full).is_some_and(|names| names.local(full) == given)
}

/// Lists the names of topics.
pub fn names(log: &dyn EventLog) -> Result<Vec<String>> {
    log.topics().map_err(failed("list topics"))
}

/// Lists topics: their partitions and offsets. A topic that may not be described is listed with the problem.
pub fn list(log: &dyn EventLog) -> Result<Vec<Summary>> {
    let names = names(log)?;
    let described = in_parallel(&names, |name| describe(log, name));
    let sizes = sizes(log, described.iter().flatten());
    let named: Vec<_> = names.iter().zip(&described).collect();
    in_parallel(&named, |(name, described)| {
        let found = match (described, &sizes) {
            (Ok(info), Some(sizes)) => Ok(summary(
                info,
                sizes.get(info.name.as_str()).copied().unwrap_or_default(),
            )),
            _ => show(log, name).map(|detail| detail.summary),
        };
        summary_or_problem(name, found)
    })
    .into_iter()
    .collect()
}

/// Looks up the number of offsets of all topics with two requests; `None` if this fails, for example because one of the
/// topics was deleted.
fn sizes<'t>(log: &dyn EventLog, topics: impl Iterator<Item = &'t TopicInfo>) -> Option<BTreeMap<&'t str, i64>> {
    let topics: Vec<_> = topics.collect();
    let partitions: Vec<_> = topics.iter().flat_map(|info| partitions_of(info)).collect();
    let bounds = in_parallel(&[OffsetSpec::Earliest, OffsetSpec::LogEnd], |which| {
        log.offsets(&partitions, *which)
    });
    let [Ok(starts), Ok(ends)] = bounds.as_slice() else {
        return None;
    };
    let mut sizes: BTreeMap<&str, i64> = BTreeMap::new();
    let names = topics
        .iter()
        .flat_map(|info| (0..info.partitions).map(|_| info.name.as_str()));
    for (name, (start, end)) in names.zip(starts.iter().zip(ends)) {
        *sizes.entry(name).or_default() += end - start;
    }
    Some(sizes)
}

fn summary_or_problem(name: &str, found: Result<Summary>) -> Result<Summary> {
    match found {
        Ok(summary) => Ok(summary),
        Err(Error::EventLog { source, .. }) if source.action() == ErrorAction::Retry => Err(Error::EventLog {
            attempted: format!("describe topic {name}"),
            source,
        }),
        // Another process has just deleted it, or a permission is missing.
        Err(error) => Ok(Summary {
            name: name.to_owned(),
            partitions: 0,
            offsets: 0,
            cleanup: String::new(),
            id: String::new(),
            problem: Some(service::chain(&error)),
        }),
    }
}

fn partitions_of(info: &TopicInfo) -> impl Iterator<Item = TopicPartition> {
    (0..info.partitions).map(|partition| TopicPartition::new(info.name.as_str(), partition))
}

fn summary(info: &TopicInfo, offsets: i64) -> Summary {
    Summary {
        name: info.name.clone(),
        partitions: info.partitions,
        offsets,
        cleanup: info.settings.get("cleanup.policy").cloned().unwrap_or_default(),
        id: info.id.to_string(),
        problem: None,
    }
}

/// Shows one topic.
pub fn show(log: &dyn EventLog, topic: &str) -> Result<Detail> {
    let info = describe(log, topic)?;
    let partitions: Vec<_> = partitions_of(&info).collect();
    let offsets = |which| {
        let found = log.offsets(&partitions, which);
        found.map_err(failed(format!("look up offsets of {topic}")))
    };
    let (starts, stables, ends) = (
        offsets(OffsetSpec::Earliest)?,
        offsets(OffsetSpec::LastStable)?,
        offsets(OffsetSpec::LogEnd)?,
    );
    let offsets = starts.into_iter().zip(stables).zip(ends);
    let parts: Vec<Part> = partitions
        .iter()
        .zip(offsets)
        .map(|(at, ((start, stable), end))| Part {
            partition: at.partition,
            start,
            stable,
            end,
        })
        .collect();
    Ok(Detail {
        summary: summary(&info, parts.iter().map(|p| p.end - p.start).sum()),
        settings: info.settings,
        parts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::embedded::{Config, EmbeddedLog};
    use event_log::{Cleanup, OutBatch, OutRecord, TopicConfig, TopicSpec};
    use std::sync::Arc;

    #[test]
    fn every_topic_is_listed_with_its_own_offsets() {
        let log = EmbeddedLog::open(Config::new(None, Arc::new(|| 0))).unwrap();
        let names: Vec<String> = (0..40).map(|number| format!("shop.event.{number:02}")).collect();
        let topic = |name: &String| TopicSpec {
            name: name.clone(),
            partitions: 2,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        log.create_topics(&names.iter().map(topic).collect::<Vec<_>>()).unwrap();
        let mut batch = OutBatch::default();
        for (records, name) in names.iter().enumerate() {
            for record in 0..records {
                let record = OutRecord {
                    topic: &name.as_str().into(),
                    partition: Some(i32::from(record % 2 == 1)),
                    timestamp: None,
                    key: None,
                    value: Some(b"x"),
                };
                batch.push(record, []);
            }
        }
        log.append(&batch).unwrap();
        let listed = list(log.as_ref()).unwrap();
        assert!(listed.iter().map(|topic| &topic.name).eq(&names));
        for (records, topic) in (0..).zip(&listed) {
            assert_eq!((topic.partitions, topic.offsets), (2, records), "{}", topic.name);
            assert_eq!(topic.offsets, show(log.as_ref(), &topic.name).unwrap().summary.offsets);
        }
    }

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
