//! Lists and describes topics.

use crate::{Error, Result, failed};
use event_log::{ErrorAction, EventLog, Offset, OffsetSpec, TopicInfo, TopicPartition};
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

/// Lists topics: their partitions and offsets. A topic that may not be described is listed with the problem.
pub fn list(log: &dyn EventLog) -> Result<Vec<Summary>> {
    let names = log.topics().map_err(failed("list topics"))?;
    names.iter().map(|name| summary_or_problem(log, name)).collect()
}

fn summary_or_problem(log: &dyn EventLog, name: &str) -> Result<Summary> {
    match show(log, name) {
        Ok(detail) => Ok(detail.summary),
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

/// Shows one topic.
pub fn show(log: &dyn EventLog, topic: &str) -> Result<Detail> {
    let info = describe(log, topic)?;
    let partitions: Vec<_> = (0..info.partitions)
        .map(|partition| TopicPartition::new(topic, partition))
        .collect();
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
    let summary = Summary {
        name: info.name.clone(),
        partitions: info.partitions,
        offsets: parts.iter().map(|p| p.end - p.start).sum(),
        cleanup: info.settings.get("cleanup.policy").cloned().unwrap_or_default(),
        id: info.id.to_string(),
        problem: None,
    };
    Ok(Detail {
        summary,
        settings: info.settings,
        parts,
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
