//! Announces the admin address of a node in the members topic, so that commands find processes without processors too.

use crate::backends::Backends;
use event_log::{Cleanup, EventLog, OutBatch, OutRecord, TopicConfig, TopicSpec};
use service::{AttemptError, RetryPolicy, Tasks, chain, retry_blocking};

/// Format version of the record.
const VERSION: u8 = 1;

/// The process that announces its address.
pub struct Announcement<'a> {
    /// The node of the topology.
    pub node: &'a str,
    /// Processes of one node have different instance names.
    pub instance: &'a str,
    /// The members topic.
    pub topic: String,
}

/// Writes the address of this process on a dedicated thread, because no role depends on it.
pub fn start(announcement: Announcement<'_>, backends: &Backends, tasks: &Tasks) {
    let Some(url) = &backends.advertised else { return };
    let Announcement { node, instance, topic } = announcement;
    let key = serde_json::json!(["node", instance]).to_string();
    let value = serde_json::json!({ "v": VERSION, "node": node, "admin": url }).to_string();
    let (log, replication) = (backends.log.clone(), backends.replication);
    let drain = tasks.drain();
    tasks.thread("announcement", move || {
        let written = retry_blocking(RetryPolicy::START, &drain, || {
            let written = write(&*log, &topic, &[key.as_bytes(), value.as_bytes()], replication);
            written.map_err(|error| match error.action() {
                event_log::ErrorAction::Retry => AttemptError::Temporary,
                _ => AttemptError::Permanent(error),
            })
        });
        if let Err(error) = written {
            tracing::warn!(
                cause = chain(&error),
                "admin address not announced, commands need --admin"
            );
        }
    });
}

fn write(
    log: &dyn EventLog,
    topic: &str,
    [key, value]: &[&[u8]; 2],
    replication: Option<i32>,
) -> event_log::Result<()> {
    log.create_topics(&[TopicSpec {
        name: topic.to_owned(),
        partitions: 1,
        replication,
        config: TopicConfig::new(Cleanup::Compact),
    }])?;
    let mut out = OutBatch::default();
    let record = OutRecord {
        topic: &topic.into(),
        partition: Some(0),
        timestamp: None,
        key: Some(key),
        value: Some(value),
    };
    out.push(record, []);
    log.append(&out).map(drop)
}
