//! Stores the admin addresses of an application's processes in a compacted topic.
//!
//! A process writes one record per start, keyed `["processor","<application>","<instance>"]`. There are no heartbeats:
//! the consumer group shows which processes are alive, and this topic only adds their addresses. A newer format is
//! rejected.

use crate::api::error::FormatError;
use event_log::{
    Cleanup, EventLog, Isolation, OffsetSpec, OutBatch, OutRecord, RecordBatch, StartFrom, TopicConfig, TopicPartition,
    TopicSpec,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Format version: the one that this program writes, and the newest that it reads.
const VERSION: u8 = 1;
const READ_BYTES: usize = 1 << 20;
const READ_WAIT: Duration = Duration::from_millis(50);

/// Value of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MemberAddress {
    /// Format version.
    v: u8,
    /// URL of the admin listener.
    admin: String,
    /// Number of stream threads.
    threads: usize,
}

/// The address of one process.
pub(crate) struct ProcessAddress<'p> {
    pub application: &'p str,
    pub instance: &'p str,
    /// URL of the admin listener.
    pub admin: &'p str,
    /// Number of stream threads.
    pub threads: usize,
}

/// Writes the address of this process to the members topic, which is created if it does not exist.
pub(crate) fn register(
    log: &dyn EventLog,
    topic: &str,
    process: &ProcessAddress<'_>,
    replication: Option<i32>,
) -> event_log::Result<()> {
    log.create_topics(&[TopicSpec {
        name: topic.to_owned(),
        partitions: 1,
        replication,
        config: TopicConfig::new(Cleanup::Compact),
    }])?;
    let address = MemberAddress {
        v: VERSION,
        admin: process.admin.to_owned(),
        threads: process.threads,
    };
    let key = serde_json::to_vec(&["processor", process.application, process.instance]);
    let key = key.expect("strings serialize to JSON");
    let value = serde_json::to_vec(&address).expect("strings and numbers serialize to JSON");
    let mut out = OutBatch::default();
    let record = OutRecord {
        topic: &topic.into(),
        partition: Some(0),
        timestamp: None,
        key: Some(&key),
        value: Some(&value),
    };
    out.push(record, []);
    log.append(&out).map(drop)
}

/// Reads the URLs of the admin listeners of one or all applications from the members topic, by application and instance.
/// Some of the processes may no longer be alive.
///
/// # Errors
/// The log fails.
pub fn addresses(
    log: &dyn EventLog,
    topic: &str,
    application: Option<&str>,
) -> event_log::Result<BTreeMap<(String, String), String>> {
    let at = TopicPartition::new(topic, 0);
    let mut found = BTreeMap::new();
    if log.describe(topic)?.is_none() {
        return Ok(found);
    }
    let end = log.offset(&at, OffsetSpec::LastStable)?;
    let mut reader = log.reader(Isolation::ReadCommitted)?;
    reader.assign(&[(at.clone(), StartFrom::Earliest)])?;
    let mut batch = RecordBatch::default();
    while reader.position(&at).is_none_or(|position| position < end) {
        reader.poll(&mut batch, READ_BYTES, READ_WAIT)?;
        for record in batch.iter() {
            let Some(process) = record.key().and_then(process_of) else {
                continue;
            };
            if application.is_some_and(|only| only != process.0) {
                continue;
            }
            match record.value().map(read) {
                Some(Ok(address)) => drop(found.insert(process, address.admin)),
                Some(Err(error)) => {
                    tracing::warn!(at = %at, offset = record.offset(), reason = %error, "member address skipped");
                }
                None => drop(found.remove(&process)),
            }
        }
    }
    Ok(found)
}

/// Application and instance of a key.
fn process_of(key: &[u8]) -> Option<(String, String)> {
    let (kind, application, instance): (String, String, String) = serde_json::from_slice(key).ok()?;
    (kind == "processor").then_some((application, instance))
}

fn read(value: &[u8]) -> Result<MemberAddress, FormatError> {
    #[derive(Deserialize)]
    struct Version {
        v: u8,
    }
    let version: Version = serde_json::from_slice(value).map_err(|source| FormatError::MemberAddress { source })?;
    if version.v > VERSION {
        return Err(FormatError::Newer {
            what: "member address",
            found: version.v,
            known: VERSION,
        });
    }
    serde_json::from_slice(value).map_err(|source| FormatError::MemberAddress { source })
}
