//! Which inputs of a task have a first snapshot that has not ended.
//!
//! When all have ended, the task writes its loaded mark after the rows to which they led. A device's first complete page
//! waits for the marks of all tasks (ADR 17).

use super::stored_row::StateError;
use crate::input::{LoadedMark, LoadedWriters, Sweep};
use event_log::OutRecord;
use schemas::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use streams::{Output, Result, State};
use topology::Side;

/// Format of the state.
const FORMAT: u8 = 1;
/// Key of the state.
const KEY: &[u8] = b"[\"loading\"]";

/// The topic to which a task writes its mark.
pub struct MarkTopic {
    /// Name.
    pub name: Arc<str>,
    /// Number of partitions.
    pub partitions: i32,
    /// The mark.
    pub mark: LoadedMark,
    /// Value of the mark.
    pub value: Vec<u8>,
}

/// An input with a first snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Loads {
    /// Id of a snapshot that has begun with the first row of the table and not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    /// The tasks of the input's processor, or of the repartitioning, whose marks were read.
    #[serde(default, skip_serializing_if = "LoadedWriters::is_empty")]
    marks: LoadedWriters,
    /// Whether the first snapshot has ended.
    is_loaded: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// By the name of the input.
    inputs: BTreeMap<String, Loads>,
    /// Whether the mark was written.
    is_marked: bool,
}

/// The inputs of a task that have a first snapshot. Without a topic for its mark, the task ignores snapshots.
pub struct Loading {
    topic: Option<MarkTopic>,
    progress: Progress,
    is_dirty: bool,
}

impl Loading {
    /// A task whose inputs of these sides have a first snapshot.
    pub fn new(topic: Option<MarkTopic>, sides: impl IntoIterator<Item = Side>) -> Loading {
        let inputs = sides.into_iter().map(|side| (side.name().to_owned(), Loads::default()));
        Loading {
            topic,
            progress: Progress {
                inputs: inputs.collect(),
                is_marked: false,
            },
            is_dirty: false,
        }
    }

    /// Called with each chunk end before its sweep. A snapshot that begins at or below the floor proves nothing: changes of
    /// its rows may have been ignored.
    pub fn chunk_ends(&mut self, side: Side, sweep: &Sweep, floor: Version) {
        let (Some(end), Some(loads)) = (&sweep.chunk, self.unloaded(side)) else {
            return;
        };
        let covers = sweep.low(end) > floor;
        if end.is_first() && covers {
            loads.snapshot = Some(end.snapshot.clone());
        } else if !covers {
            loads.snapshot = None;
        }
        self.is_dirty = true;
    }

    /// Called when the sweep of a chunk end has ended.
    pub fn sweep_ended(&mut self, side: Side, sweep: &Sweep) {
        let (Some(end), Some(loads)) = (&sweep.chunk, self.unloaded(side)) else {
            return;
        };
        if end.last && loads.snapshot.as_ref() == Some(&end.snapshot) {
            (loads.snapshot, loads.is_loaded) = (None, true);
            self.is_dirty = true;
        }
    }

    /// Called with each mark in an input.
    pub fn marked(&mut self, side: Side, mark: LoadedMark) {
        let Some(loads) = self.unloaded(side) else { return };
        loads.is_loaded = loads.marks.add(mark);
        self.is_dirty = true;
    }

    fn unloaded(&mut self, side: Side) -> Option<&mut Loads> {
        let loads = self.progress.inputs.get_mut(side.name())?;
        (!loads.is_loaded).then_some(loads)
    }

    /// Whether the mark can be written although no record was processed.
    pub fn is_due(&self) -> bool {
        self.is_dirty && self.topic.is_some() && self.is_mark_due()
    }

    fn is_mark_due(&self) -> bool {
        !self.progress.is_marked && self.progress.inputs.values().all(|loads| loads.is_loaded)
    }

    /// Writes the mark if all inputs are loaded. Called after the rows of the transaction were written.
    pub fn before_commit(&mut self, state: &mut State, output: &mut Output) {
        if !std::mem::take(&mut self.is_dirty) {
            return;
        }
        let Some(topic) = &self.topic else { return };
        if self.is_mark_due() {
            let key = topic.mark.key();
            for partition in 0..topic.partitions {
                let record = OutRecord {
                    topic: &topic.name,
                    partition: Some(partition),
                    timestamp: None,
                    key: Some(&key),
                    value: Some(&topic.value),
                };
                output.send(record, []);
            }
            self.progress.is_marked = true;
        }
        let mut value = vec![FORMAT];
        serde_json::to_writer(&mut value, &self.progress).expect("strings and numbers always have a JSON form");
        state.put(KEY, value);
    }

    /// Reads the committed state. In a state that an earlier release wrote (`is_new` is false), all inputs count as loaded.
    pub fn restore(&mut self, is_new: bool, state: &State) -> Result<Result<(), StateError>> {
        if self.topic.is_none() {
            return Ok(Ok(()));
        }
        let stored = state.get(KEY)?;
        self.is_dirty = stored.is_none();
        match stored {
            Some(bytes) => match Progress::decode(&bytes) {
                Ok(progress) => self.progress = progress,
                Err(error) => return Ok(Err(error)),
            },
            None => {
                self.progress.is_marked = false;
                for loads in self.progress.inputs.values_mut() {
                    *loads = Loads {
                        is_loaded: !is_new,
                        ..Loads::default()
                    };
                }
            }
        }
        Ok(Ok(()))
    }
}

impl Progress {
    fn decode(bytes: &[u8]) -> Result<Progress, StateError> {
        match bytes.split_first() {
            Some((&FORMAT, rest)) => {
                serde_json::from_slice(rest).map_err(|_| StateError::Damaged("the progress of first snapshots"))
            }
            Some((&found, _)) => Err(StateError::Newer(found)),
            None => Err(StateError::Damaged("the progress of first snapshots")),
        }
    }
}

/// The state as JSON; `None` if the bytes are not such a state.
pub fn readable(bytes: &[u8]) -> Option<serde_json::Value> {
    serde_json::to_value(Progress::decode(bytes).ok()?).ok()
}
