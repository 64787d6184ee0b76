//! The processes of an application as they tell of themselves: the compacted topic `members`.
//!
//! Whether a process lives is the group's to say; here stands only what the group does not know, its address.
//! Guarantees: a record a process and start, keyed `["processor","<application>","<instance>"]`; a newer format is
//! refused. Never: a heartbeat.

use crate::commit_record::FormatError;
use event_log::{
    Cleanup, EventLog, Isolation, OffsetSpec, OutBatch, OutRecord, RecordBatch, StartFrom, TopicConfig, TopicPartition,
    TopicSpec,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The topic.
pub const MEMBERS_TOPIC: &str = "members";
/// Format that this program writes, and the newest that it reads.
const VERSION: u8 = 1;
const READ_BYTES: usize = 1 << 20;
const READ_WAIT: Duration = Duration::from_millis(50);

/// What a process tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MemberAddress {
    /// Format.
    v: u8,
    /// URL of its operators' listener.
    admin: String,
    /// Stream threads.
    threads: usize,
}

/// Tells where this process's operators' listener is.
pub(crate) fn announce(
    log: &dyn EventLog,
    application: &str,
    instance: &str,
    admin: &str,
    threads: usize,
    replication: Option<i32>,
) -> event_log::Result<()> {
    log.create_topics(&[TopicSpec {
        name: MEMBERS_TOPIC.to_owned(),
        partitions: 1,
        replication,
        config: TopicConfig::new(Cleanup::Compact),
    }])?;
    let told = MemberAddress {
        v: VERSION,
        admin: admin.to_owned(),
        threads,
    };
    let key = serde_json::to_vec(&["processor", application, instance]).expect("texts become JSON");
    let value = serde_json::to_vec(&told).expect("plain values become JSON");
    let mut out = OutBatch::default();
    let record = OutRecord {
        topic: &MEMBERS_TOPIC.into(),
        partition: Some(0),
        timestamp: None,
        key: Some(&key),
        value: Some(&value),
    };
    out.push(record, []);
    log.append(&out).map(drop)
}

/// The URLs of the operators' listeners of an application's processes, or of all, by application and instance, as last
/// told; some of them may not live any more.
///
/// # Errors
/// A log that fails.
pub fn addresses(
    log: &dyn EventLog,
    application: Option<&str>,
) -> event_log::Result<BTreeMap<(String, String), String>> {
    let at = TopicPartition::new(MEMBERS_TOPIC, 0);
    let mut found = BTreeMap::new();
    if log.describe(MEMBERS_TOPIC)?.is_none() {
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
                Some(Ok(told)) => drop(found.insert(process, told.admin)),
                Some(Err(error)) => {
                    tracing::warn!(at = %at, offset = record.offset(), reason = %error, "passed over");
                }
                None => drop(found.remove(&process)),
            }
        }
    }
    Ok(found)
}

/// Application and instance that a key names.
fn process_of(key: &[u8]) -> Option<(String, String)> {
    let (kind, application, instance): (String, String, String) = serde_json::from_slice(key).ok()?;
    (kind == "processor").then_some((application, instance))
}

fn read(value: &[u8]) -> Result<MemberAddress, FormatError> {
    #[derive(Deserialize)]
    struct Version {
        v: u8,
    }
    let version: Version = serde_json::from_slice(value).map_err(|source| FormatError::GroupMetadata { source })?;
    if version.v > VERSION {
        return Err(FormatError::Newer {
            what: "member",
            found: version.v,
            known: VERSION,
        });
    }
    serde_json::from_slice(value).map_err(|source| FormatError::GroupMetadata { source })
}
