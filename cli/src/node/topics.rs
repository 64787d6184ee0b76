//! Creates the topics of the topology before any role starts.

use crate::backends::Backends;
use anyhow::{Context, Result, bail};
use event_log::{TimestampPolicy, TopicConfig, TopicSpec};
use topology::Names;
use topology::wiring::{Cleanup, Topic, Wiring};

/// Creates the topics that do not exist. Fails if an existing topic has another number of partitions than the topology
/// declares, or if an older version created topics of the topology with other names.
pub fn create(backends: &Backends, names: &Names, wiring: &Wiring) -> Result<()> {
    check_versions(backends, names)?;
    let specs: Vec<TopicSpec> = wiring
        .topics_at_start()
        .map(|topic| spec(topic, backends.replication))
        .collect();
    let created = backends
        .log
        .create_topics(&specs)
        .context("cannot create the topics of the topology")?;
    for (spec, _) in specs.iter().zip(created).filter(|(_, created)| !created) {
        let existing = backends.log.describe(&spec.name)?;
        if let Some(info) = existing.filter(|info| info.partitions != spec.partitions) {
            bail!(
                "topic {} has {} partitions but the topology declares {}; partition counts cannot change, so set \
                 `partitions` in the topology to {}",
                spec.name,
                info.partitions,
                spec.partitions,
                info.partitions
            );
        }
    }
    Ok(())
}

/// Fails if topics of this topology were created by an older version with other names: its state would be ignored, and
/// all records would be processed again.
fn check_versions(backends: &Backends, names: &Names) -> Result<()> {
    let topics = backends.log.topics().context("cannot list the topics")?;
    let prefix = names.prefix();
    let own = topics
        .iter()
        .map(String::as_str)
        .filter(|topic| topic.starts_with(&prefix));
    let Some(topic) = Names::outdated(own) else {
        return Ok(());
    };
    bail!(
        "topic {topic} was created by an older version, and this version cannot continue with its state; to start over, stop \
         all processes of the topology and delete its topics: `kafka-topics.sh --delete --topic '{}\\..*'`",
        prefix.trim_end_matches('.')
    )
}

fn spec(topic: &Topic, replication: Option<i32>) -> TopicSpec {
    let cleanup = match topic.cleanup {
        Cleanup::Delete => event_log::Cleanup::Delete,
        Cleanup::Compact => event_log::Cleanup::Compact,
    };
    let mut config = TopicConfig::new(cleanup);
    if topic.log_append_time {
        config.timestamps = TimestampPolicy::LogAppendTime;
    }
    config.retention_ms = topic.retention_ms;
    config.retention_bytes = topic.retention_bytes;
    config.min_compaction_lag_ms = topic.min_compaction_lag_ms;
    config.delete_retention_ms = topic.delete_retention_ms;
    config.max_message_bytes = topic.max_message_bytes;
    TopicSpec {
        name: topic.name.clone(),
        partitions: topic.partitions,
        replication,
        config,
    }
}
