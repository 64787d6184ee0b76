//! The rows of a table as stored in the state, with version and contribution, so that a change removes exactly what the
//! row contributed before.
//!
//! A change is applied only once, because a change that is not newer than the row's version is ignored. Deleted rows
//! stay in the state until the horizon. When a deleted row is removed from the state, the floor (the version up to
//! which changes of unknown rows are ignored) rises to its version (docs/protocol/view-sync.md, "The writer").

use super::stored_row::{Row, StateError, readable_version};
use super::sweeps::{self, Sweeps};
use super::values::{read_array, read_byte, read_bytes, write_bytes};
use crate::input::{ChangeRecord, StepLimits, keys};
use event_log::Millis;
use schemas::version::Version;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use streams::{Result, State};

/// Format of the progress in the state.
const FORMAT: u8 = 1;
/// Maximum number of deleted rows that are removed from the state per commit, so that a commit stays short.
const FORGET_MAX: usize = 256;

/// The progress of a table as JSON; `None` if the bytes are not a progress record.
pub fn readable_progress(bytes: &[u8]) -> Option<Value> {
    let progress = Progress::decode(bytes).ok()?;
    Some(json!({
        "source_epoch": progress.source_epoch,
        "floor": readable_version(progress.floor),
        "topic_id": progress.topic_id,
    }))
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
    /// Lower limit of the time at which a row of the list of deleted rows was deleted; `None` if it must be read.
    first_deleted: Option<Millis>,
    /// Removals of many rows.
    pub sweeps: Sweeps,
}

impl TableRows {
    /// Creates the rows of an input that is read from the topic with this id; `limits` are those of a step of a sweep.
    pub fn new(name: &'static str, topic_id: String, horizon_ms: i64, limits: StepLimits) -> Self {
        TableRows {
            name,
            first_deleted: None,
            sweeps: sweeps::queue(name, limits),
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

    /// Name of the table in state keys.
    pub fn name(&self) -> &'static str {
        self.name
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
    pub fn put(&mut self, state_key: &[u8], was_deleted: Option<Millis>, row: &Row, state: &mut State) {
        if let Some(at) = was_deleted {
            state.delete(&keys::deleted_key(at, state_key));
        }
        if let Some(at) = row.deleted_ms {
            self.first_deleted = self.first_deleted.map(|first| first.min(at));
            state.put(&keys::deleted_key(at, state_key), vec![1]);
        }
        state.put(state_key, row.encode());
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
        (self.open, self.dirty, self.first_deleted) = (false, false, None);
        if let Err(error) = self.sweeps.restore(state)? {
            return Ok(Err(error.into()));
        }
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

    /// Removes rows that were deleted before the horizon from the state, and writes jobs and progress if they changed.
    pub fn before_commit(&mut self, now: Millis, state: &mut State) -> Result<Result<(), StateError>> {
        self.sweeps.store(now, state);
        if let Err(error) = self.forget(now - self.horizon_ms, state)? {
            return Ok(Err(error));
        }
        if self.dirty {
            state.put(&self.progress_key(), self.progress.encode());
            self.dirty = false;
        }
        Ok(Ok(()))
    }

    /// Removes rows that were deleted before this time from the state. The list of deleted rows is only read if it may
    /// contain such a row, because a commit happens many times a second.
    fn forget(&mut self, before: Millis, state: &mut State) -> Result<Result<(), StateError>> {
        if self.first_deleted.is_some_and(|first| first >= before) {
            return Ok(Ok(()));
        }
        let mut old: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let (mut first, prefix) = (Some(Millis::MAX), self.prefix());
        state.scan(keys::DELETED, &mut |key, _| {
            match keys::parse_deleted_key(key) {
                Some((at, state_key)) if at < before && old.len() < FORGET_MAX => {
                    // The list contains the deleted rows of both tables of a join.
                    if state_key.starts_with(&prefix) {
                        old.push((key.to_vec(), state_key));
                    }
                }
                found => {
                    first = found.map(|(at, _)| at);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        self.first_deleted = first;
        for (deleted_key, state_key) in old {
            match self.get(&state_key, state)? {
                // The next record of the open transaction may be this row under its new key, for which the kept values
                // are needed.
                Some(Ok(row)) if self.open && !row.kept.is_empty() => {
                    self.first_deleted = None;
                    continue;
                }
                Some(Ok(row)) => self.progress.floor = self.progress.floor.max(row.version),
                Some(Err(error)) => return Ok(Err(error)),
                None => {}
            }
            state.delete(&deleted_key);
            state.delete(&state_key);
            self.dirty = true;
        }
        Ok(Ok(()))
    }

    /// Writes the progress with the next commit even if it does not change, so that a topic that is created again is
    /// noticed.
    pub fn write_progress(&mut self) {
        self.dirty = true;
    }
}
