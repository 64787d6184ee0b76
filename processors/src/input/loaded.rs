//! Loaded marks of declarative processors: a task of the processor has read the first snapshots of its inputs.
//!
//! A task writes its mark once to each partition of a topic, after the rows to which those snapshots led. So a reader has
//! the whole first state when it has the marks of all tasks. A mark is recognized by its key: the key of a row never
//! contains an array.

use event_log::RecordRef;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// First bytes of the key of a mark.
const KEY: &[u8] = b"[[\"~loaded\",";

/// The loaded mark of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedMark {
    /// The task, by its partition.
    pub writer: i32,
    /// Number of tasks that write a mark.
    pub writers: i32,
}

impl LoadedMark {
    /// Whether a record is a mark.
    pub fn is_in(record: &RecordRef<'_>) -> bool {
        record.key().is_some_and(|key| key.starts_with(KEY))
    }

    /// The mark in a record; `None` if the record is not a mark, or its key is corrupt.
    pub fn of(record: &RecordRef<'_>) -> Option<LoadedMark> {
        let key = record.key().filter(|key| key.starts_with(KEY))?;
        let [(_, writer, writers)]: [(String, i32, i32); 1] = serde_json::from_slice(key).ok()?;
        Some(LoadedMark { writer, writers })
    }

    /// The key of the mark.
    pub fn key(self) -> Vec<u8> {
        let LoadedMark { writer, writers } = self;
        format!("[[\"~loaded\",{writer},{writers}]]").into_bytes()
    }
}

/// The tasks of a processor whose marks were read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedWriters(BTreeSet<i32>);

impl LoadedWriters {
    /// Whether no mark was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a mark. Returns whether the marks of all tasks were read.
    pub fn add(&mut self, mark: LoadedMark) -> bool {
        self.0.insert(mark.writer);
        (0..mark.writers).all(|writer| self.0.contains(&writer))
    }
}
