//! Encodes and decodes the records of a changelog.

use crate::api::state::Layer;
use crate::api::state::keys::RESERVED;
use crate::api::timer::TIMER_PREFIX;
use crate::task::commit_record::{CHANGELOG_VERSION, COMMIT_RECORD_KEY, CommitRecord, body};
use event_log::{OutBatch, OutRecord, TopicPartition};
use service::chain;

/// Appends one record per changed row: its last value, or a tombstone. `scratch` is reused between calls.
pub(crate) fn push_rows(out: &mut OutBatch, changelog: &TopicPartition, rows: &Layer, scratch: &mut Vec<u8>) {
    for (key, value) in rows.iter() {
        scratch.clear();
        scratch.push(CHANGELOG_VERSION);
        scratch.extend_from_slice(value.as_deref().unwrap_or_default());
        push(out, changelog, key, value.as_ref().map(|_| scratch.as_slice()));
    }
}

/// Appends a commit record. `scratch` is reused between calls.
pub(crate) fn push_commit_record(
    out: &mut OutBatch,
    changelog: &TopicPartition,
    record: &CommitRecord,
    scratch: &mut Vec<u8>,
) {
    scratch.clear();
    record.write(scratch);
    push(out, changelog, COMMIT_RECORD_KEY, Some(scratch));
}

fn push(out: &mut OutBatch, changelog: &TopicPartition, key: &[u8], value: Option<&[u8]>) {
    let record = OutRecord {
        topic: &changelog.topic,
        partition: Some(changelog.partition),
        timestamp: None,
        key: Some(key),
        value,
    };
    out.push(record, []);
}

/// Decodes one changelog record: passes a row to `put`, or replaces the commit record.
pub(crate) fn read_record(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    commit_record: &mut Option<CommitRecord>,
    put: impl FnOnce(&[u8], Option<&[u8]>),
) -> Result<(), String> {
    let Some(key) = key else { return Ok(()) };
    match value {
        Some(value) if key == COMMIT_RECORD_KEY => {
            *commit_record = Some(CommitRecord::read(value).map_err(|error| chain(&error))?);
        }
        // The keys of timers are reserved, but timers are rows of the state (C12).
        _ if key.starts_with(RESERVED) && !key.starts_with(TIMER_PREFIX) => {}
        Some(value) => put(key, Some(body(value).map_err(|error| chain(&error))?)),
        None => put(key, None),
    }
    Ok(())
}
