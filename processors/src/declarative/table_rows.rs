//! The rows of a table as stored in the state, with version and contribution, so that a change removes exactly what the
//! row contributed before.
//!
//! A change is applied only once, because a change that is not newer than the row's version is ignored. Deleted rows
//! stay in the state until the horizon. When a deleted row is removed from the state, the floor (the version up to
//! which changes of unknown rows are ignored) rises to its version (docs/protocol/view-sync.md, "The writer").

use super::delta::Contribution;
use super::names::named;
use super::values::{json, read_array, read_byte, read_bytes, read_number, write_bytes, write_number};
use crate::input::{ChangeRecord, keys};
use event_log::Millis;
use schemas::codec::Datum;
use schemas::version::Version;
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use streams::{Result, State};

/// Format of rows and progress in the state.
const FORMAT: u8 = 1;
/// Maximum number of deleted rows that are removed from the state per commit, so that a commit stays short.
const FORGET_MAX: usize = 256;

/// A column's name and value.
pub type Kept = (String, Vec<u8>);

/// Rows with their state keys.
pub type Found = Vec<(Vec<u8>, Row)>;

/// A value in the state that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A newer release wrote the value.
    #[error("its state has format {0}, but this release reads up to format {FORMAT}; update Trunkline")]
    Newer(u8),
    /// The bytes are corrupt.
    #[error("its state is corrupt: {0} cannot be decoded")]
    Damaged(&'static str),
}

/// The stored contribution of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowContribution {
    /// Key of the group or pair.
    pub key: Vec<u8>,
    /// Order among rows.
    pub order: u128,
    /// Time of the row, in ms.
    pub time: Millis,
    /// The values, encoded.
    pub values: Vec<u8>,
}

impl RowContribution {
    /// The contribution as part of a delta.
    pub fn as_contribution(&self) -> Contribution<'_> {
        Contribution {
            key: &self.key,
            order: self.order,
            time: self.time,
            values: &self.values,
        }
    }
}

/// A row after its last change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// Version.
    pub version: Version,
    /// When it was deleted, by the processor's clock in ms.
    pub deleted_ms: Option<Millis>,
    /// What the row contributes.
    pub contribution: Option<RowContribution>,
    /// Large values that the source may omit when they do not change, by column name. A deleted row has them only until
    /// the same row is written under another key.
    pub kept: Vec<Kept>,
}

impl Row {
    /// Encodes the row, including the format byte.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.version.to_bytes());
        out.extend_from_slice(&self.deleted_ms.unwrap_or(i64::MIN).to_be_bytes());
        out.push(u8::from(self.contribution.is_some()));
        if let Some(contribution) = &self.contribution {
            write_bytes(&mut out, &contribution.key);
            out.extend_from_slice(&contribution.order.to_be_bytes());
            out.extend_from_slice(&contribution.time.to_be_bytes());
            write_bytes(&mut out, &contribution.values);
        }
        write_number(&mut out, u64::try_from(self.kept.len()).unwrap_or(u64::MAX));
        for (name, value) in &self.kept {
            write_bytes(&mut out, name.as_bytes());
            write_bytes(&mut out, value);
        }
        out
    }

    /// Decodes the output of [`Self::encode`].
    pub fn decode(mut bytes: &[u8]) -> Result<Row, StateError> {
        let rest = &mut bytes;
        match read_byte(rest) {
            Some(FORMAT) => {}
            Some(found) => return Err(StateError::Newer(found)),
            None => return Err(StateError::Damaged("a row")),
        }
        let mut body = || {
            let version = Version::from_bytes(&read_array::<17>(rest)?).ok()?;
            let deleted = i64::from_be_bytes(read_array(rest)?);
            let contribution = match read_byte(rest)? {
                0 => None,
                _ => Some(RowContribution {
                    key: read_bytes(rest)?.to_vec(),
                    order: u128::from_be_bytes(read_array(rest)?),
                    time: i64::from_be_bytes(read_array(rest)?),
                    values: read_bytes(rest)?.to_vec(),
                }),
            };
            let mut kept = Vec::new();
            for _ in 0..read_number(rest)? {
                let name = std::str::from_utf8(read_bytes(rest)?).ok()?.to_owned();
                kept.push((name, read_bytes(rest)?.to_vec()));
            }
            let deleted_ms = (deleted != i64::MIN).then_some(deleted);
            Some(Row {
                version,
                deleted_ms,
                contribution,
                kept,
            })
        };
        body().ok_or(StateError::Damaged("a row"))
    }
}

/// A row of the state as JSON; `names` are the names of the values of its contribution. `None` if the bytes are not a
/// row.
pub fn readable(bytes: &[u8], names: &[String]) -> Option<Value> {
    let row = Row::decode(bytes).ok()?;
    let contribution = match &row.contribution {
        Some(contribution) => json!({
            "key": serde_json::from_slice::<Value>(&contribution.key).ok()?,
            "time_ms": contribution.time,
            "values": named(names, &contribution.values)?,
        }),
        None => Value::Null,
    };
    let kept = row.kept.into_iter().map(|(name, value)| {
        let value = String::from_utf8(value).map_or_else(|e| json(&Datum::Bytes(e.as_bytes())), Value::from);
        (name, value)
    });
    Some(json!({
        "version": readable_version(row.version),
        "deleted_ms": row.deleted_ms,
        "contribution": contribution,
        "kept": kept.collect::<Map<_, _>>(),
    }))
}

/// The progress of a table as JSON; `None` if the bytes are not a progress record.
pub fn readable_progress(bytes: &[u8]) -> Option<Value> {
    let progress = Progress::decode(bytes).ok()?;
    Some(json!({
        "source_epoch": progress.source_epoch,
        "floor": readable_version(progress.floor),
        "topic_id": progress.topic_id,
    }))
}

fn readable_version(version: Version) -> Value {
    json!({ "source_epoch": version.source_epoch, "position": version.position, "ordinal": version.ordinal })
}

/// The progress of a table's source stream.
#[derive(Debug)]
struct Progress {
    /// Epoch of the source, or of the topic for the output of a processor.
    source_epoch: u32,
    floor: Version,
    topic_id: String,
}

impl Progress {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.source_epoch.to_be_bytes());
        out.extend_from_slice(&self.floor.to_bytes());
        write_bytes(&mut out, self.topic_id.as_bytes());
        out
    }

    fn decode(mut bytes: &[u8]) -> Result<Progress, StateError> {
        let rest = &mut bytes;
        match read_byte(rest) {
            Some(FORMAT) => {}
            Some(found) => return Err(StateError::Newer(found)),
            None => return Err(StateError::Damaged("the progress of a table")),
        }
        let mut body = || {
            let source_epoch = u32::from_be_bytes(read_array(rest)?);
            let floor = Version::from_bytes(&read_array::<17>(rest)?).ok()?;
            let topic_id = String::from_utf8(read_bytes(rest)?.to_vec()).ok()?;
            Some(Progress {
                source_epoch,
                floor,
                topic_id,
            })
        };
        body().ok_or(StateError::Damaged("the progress of a table"))
    }
}

/// The rows of one table in one task, and the progress of its source stream.
#[derive(Debug)]
pub struct TableRows {
    /// Name of the table in state keys: the name of the processor's input.
    name: &'static str,
    progress: Progress,
    horizon_ms: i64,
    /// Whether a source transaction is open after the newest record.
    open: bool,
    dirty: bool,
}

impl TableRows {
    /// Creates the rows of an input that is read from the topic with this id.
    pub fn new(name: &'static str, topic_id: String, horizon_ms: i64) -> Self {
        TableRows {
            name,
            progress: Progress {
                source_epoch: 1,
                floor: Version::default(),
                topic_id,
            },
            horizon_ms,
            open: false,
            dirty: false,
        }
    }

    /// Epoch of the source, or of the topic for the output of a processor.
    pub fn source_epoch(&self) -> u32 {
        self.progress.source_epoch
    }

    /// Version up to which changes of unknown rows are ignored.
    pub fn floor(&self) -> Version {
        self.progress.floor
    }

    /// Prefix of the state keys of the table's rows.
    pub fn prefix(&self) -> Vec<u8> {
        keys::table_prefix(self.name)
    }

    /// State key of a row.
    pub fn state_key(&self, row_key: &str) -> Vec<u8> {
        keys::row_state_key(self.name, row_key)
    }

    fn progress_key(&self) -> Vec<u8> {
        format!("[\"source\",\"{}\"]", self.name).into_bytes()
    }

    /// The remembered row of a key.
    pub fn get(&self, state_key: &[u8], state: &State) -> Result<Option<Result<Row, StateError>>> {
        Ok(state.get(state_key)?.map(|bytes| Row::decode(&bytes)))
    }

    /// Stores a row. While the row is deleted, it is also in the list of deleted rows; `was_deleted` is the time under
    /// which it was in the list before.
    pub fn put(&self, state_key: &[u8], was_deleted: Option<Millis>, row: &Row, state: &mut State) {
        if let Some(at) = was_deleted {
            state.delete(&keys::deleted_key(at, state_key));
        }
        if let Some(at) = row.deleted_ms {
            state.put(&keys::deleted_key(at, state_key), vec![1]);
        }
        state.put(state_key, row.encode());
    }

    /// Returns the live rows for which `matches` is true.
    pub fn select(&self, state: &State, matches: &dyn Fn(&str, &Row) -> bool) -> Result<Result<Found, StateError>> {
        let prefix = self.prefix();
        let (mut found, mut failed) = (Vec::new(), None);
        state.scan(&prefix, &mut |key, value| {
            match Row::decode(value) {
                Ok(row) if row.deleted_ms.is_none() && matches(keys::row_key_of(key, prefix.len()), &row) => {
                    found.push((key.to_vec(), row));
                }
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
            ControlFlow::Continue(())
        })?;
        Ok(failed.map_or(Ok(found), Err))
    }

    /// Stores the source epoch of a record, and whether a source transaction is open after the record.
    pub fn begin(&mut self, input: &ChangeRecord<'_>) {
        let source_epoch = input.version.source_epoch;
        if input.replayed.is_none() {
            self.open = !input.last;
        }
        if source_epoch > self.progress.source_epoch {
            self.progress.source_epoch = source_epoch;
            self.dirty = true;
        }
    }

    /// Reads the committed progress.
    pub fn restore(&mut self, state: &State) -> Result<Result<(), StateError>> {
        (self.open, self.dirty) = (false, false);
        (self.progress.source_epoch, self.progress.floor) = (1, Version::default());
        let Some(bytes) = state.get(&self.progress_key())? else {
            return Ok(Ok(()));
        };
        let written = match Progress::decode(&bytes) {
            Ok(written) => written,
            Err(error) => return Ok(Err(error)),
        };
        (self.progress.source_epoch, self.progress.floor) = (written.source_epoch, written.floor);
        if written.topic_id != self.progress.topic_id {
            // The topic was deleted and created again. Its offsets start at 0 again, so the epoch increases so that
            // versions increase.
            self.progress.source_epoch += 1;
            self.dirty = true;
        }
        Ok(Ok(()))
    }

    /// Removes rows that were deleted before the horizon from the state, and writes the progress if it changed.
    pub fn before_commit(&mut self, now: Millis, state: &mut State) -> Result<Result<(), StateError>> {
        let mut old: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let (before, prefix) = (now - self.horizon_ms, self.prefix());
        state.scan(keys::DELETED, &mut |key, _| {
            match keys::parse_deleted_key(key) {
                Some((at, state_key)) if at < before && old.len() < FORGET_MAX => {
                    // The list contains the deleted rows of both tables of a join.
                    if state_key.starts_with(&prefix) {
                        old.push((key.to_vec(), state_key));
                    }
                }
                _ => return ControlFlow::Break(()),
            }
            ControlFlow::Continue(())
        })?;
        for (deleted_key, state_key) in old {
            match self.get(&state_key, state)? {
                // The next record of the open transaction may be this row under its new key, for which the kept values
                // are needed.
                Some(Ok(row)) if self.open && !row.kept.is_empty() => continue,
                Some(Ok(row)) => self.progress.floor = self.progress.floor.max(row.version),
                Some(Err(error)) => return Ok(Err(error)),
                None => {}
            }
            state.delete(&deleted_key);
            state.delete(&state_key);
            self.dirty = true;
        }
        if self.dirty {
            state.put(&self.progress_key(), self.progress.encode());
            self.dirty = false;
        }
        Ok(Ok(()))
    }

    /// Writes the progress with the next commit even if it does not change, so that a topic that is created again is
    /// noticed.
    pub fn write_progress(&mut self) {
        self.dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_round_trips_and_truncation_is_an_error() {
        let contribution = RowContribution {
            key: b"[1]".to_vec(),
            order: 77,
            time: -3,
            values: vec![3, 1],
        };
        let row = Row {
            version: Version {
                source_epoch: 1,
                position: 9,
                ordinal: 2,
            },
            deleted_ms: Some(5),
            contribution: Some(contribution),
            kept: vec![("note".into(), b"long".to_vec())],
        };
        for row in [row, Row::default()] {
            let bytes = row.encode();
            assert_eq!(Row::decode(&bytes), Ok(row));
            for cut in 0..bytes.len() {
                assert!(Row::decode(&bytes[..cut]).is_err(), "{cut} bytes");
            }
        }
        assert_eq!(Row::decode(&[2]), Err(StateError::Newer(2)));
    }
}
