//! Creates the topics of the topology before any role starts.

use crate::backends::Backends;
use anyhow::{Context, Result, bail};
use event_log::{TimestampPolicy, TopicConfig, TopicSpec};
use topology::wiring::{Cleanup, Topic, Wiring};

/// Creates the topics that do not exist. Fails if an existing topic has another number of partitions than the topology
/// declares.
pub fn create(backends: &Backends, wiring: &Wiring) -> Result<()> {
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
