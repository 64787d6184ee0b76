//! The rows in which a task's store describes itself: its format, the checkpoint and the newest commit record.
//!
//! A checkpoint is written in one batch with the rows that it includes. A store is used only with the log epoch, topic
//! and partition from which it was filled; otherwise it is quarantined (C11).

use crate::api::error::FormatError;
use crate::task::commit_record::CommitRecord;
use event_log::{Millis, Offset, TopicId, TopicPartition};
use serde::{Deserialize, Serialize};
use state_store::{Batch, Direction, KeyRange, Space, Store};
use std::ops::ControlFlow;

/// Keyspace of the runtime's rows.
pub const META: Space = Space(0);
/// Keyspace of the processor's rows.
pub const STATE: Space = Space(1);
/// Names of the keyspaces, in order.
pub const SPACES: [&str; 2] = ["meta", "state"];

/// Format version of stores: the one that this program writes, and the newest that it reads.
pub const STORE_FORMAT: u8 = 1;

const FORMAT_KEY: &[u8] = b"format";
const CHECKPOINT_KEY: &[u8] = b"checkpoint";
/// Key of the newest commit record in [`META`]. Part of the stored format, so it keeps its former name.
pub const COMMIT_RECORD_ROW: &[u8] = b"marker";

/// States which part of its changelog a store contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Topic, partition and next offset of the changelog.
    pub changelog: (String, i32, Offset),
    /// A broker time in ms at which no record at or after that offset had been written. It determines whether the store
    /// may have missed tombstones (C10).
    pub as_of: Millis,
    /// Log epoch.
    pub log: String,
    /// Topic id of the changelog.
    pub topic_id: String,
}

/// The changelog partition from which a store is filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Topic and partition.
    pub changelog: TopicPartition,
    /// Topic id.
    pub topic_id: TopicId,
    /// Log epoch.
    pub log: String,
}

impl Origin {
    /// Checkpoint of a store that contains everything below this offset, as of this time.
    pub fn checkpoint(&self, next_offset: Offset, as_of: Millis) -> Checkpoint {
        Checkpoint {
            changelog: (self.changelog.topic.to_string(), self.changelog.partition, next_offset),
            as_of,
            log: self.log.clone(),
            topic_id: self.topic_id.to_string(),
        }
    }

    /// Why a checkpoint belongs to another origin; `None` if it belongs to this origin.
    pub fn mismatch(&self, checkpoint: &Checkpoint) -> Option<String> {
        let (topic, partition, _) = &checkpoint.changelog;
        if checkpoint.log != self.log {
            return Some(format!(
                "the store was filled from a log with epoch {}, but the log now has epoch {}",
                checkpoint.log, self.log
            ));
        }
        if **topic != *self.changelog.topic || *partition != self.changelog.partition {
            return Some(format!(
                "the store was filled from {topic}/{partition}, but the changelog is {}",
                self.changelog
            ));
        }
        (checkpoint.topic_id != self.topic_id.to_string())
            .then(|| format!("{topic} was deleted and created again since the store was filled"))
    }
}

/// Content of an opened store.
#[derive(Debug)]
pub enum StoreContent {
    /// No checkpoint was written yet.
    Empty,
    /// The changelog up to the checkpoint.
    UpTo(Checkpoint, Option<CommitRecord>),
}

/// Why the checkpoint of a store cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store has rows but no checkpoint. They may be old: a crash of the machine can remove the checkpoint and keep
    /// rows that were written in bulk.
    #[error("the store has rows but no checkpoint")]
    Missing,
    /// The store failed.
    #[error("cannot read store")]
    Store(#[from] state_store::Error),
    /// The format is newer, or the rows are corrupt.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Reads the checkpoint and commit record of a store.
///
/// # Errors
/// [`FormatError::Newer`] if a newer program wrote the store; other errors if the store cannot be used.
pub fn read(store: &dyn Store) -> Result<StoreContent, CheckpointError> {
    let Some(format) = store.get(META, FORMAT_KEY)? else {
        return without_checkpoint(store);
    };
    match format.first() {
        Some(&STORE_FORMAT) => {}
        Some(&found) => Err(FormatError::Newer {
            what: "store",
            found,
            known: STORE_FORMAT,
        })?,
        None => Err(FormatError::Empty { what: "store" })?,
    }
    let Some(checkpoint) = store.get(META, CHECKPOINT_KEY)? else {
        return without_checkpoint(store);
    };
    let checkpoint = match checkpoint.split_first() {
        Some((&STORE_FORMAT, body)) => {
            serde_json::from_slice(body).map_err(|source| FormatError::Checkpoint { source })?
        }
        Some((&found, _)) => Err(FormatError::Newer {
            what: "checkpoint",
            found,
            known: STORE_FORMAT,
        })?,
        None => Err(FormatError::Empty { what: "checkpoint" })?,
    };
    let commit_record = store
        .get(META, COMMIT_RECORD_ROW)?
        .map(|value| CommitRecord::read(&value))
        .transpose()?;
    Ok(StoreContent::UpTo(checkpoint, commit_record))
}

fn without_checkpoint(store: &dyn Store) -> Result<StoreContent, CheckpointError> {
    let mut has_rows = false;
    store.scan(STATE, KeyRange::ALL, Direction::Forward, &mut |_, _| {
        has_rows = true;
        ControlFlow::Break(())
    })?;
    if has_rows {
        return Err(CheckpointError::Missing);
    }
    Ok(StoreContent::Empty)
}

/// Adds a checkpoint to a batch.
pub fn put_checkpoint(batch: &mut Batch, checkpoint: &Checkpoint) {
    let mut value = vec![STORE_FORMAT];
    serde_json::to_writer(&mut value, checkpoint).expect("writing JSON of plain values into memory cannot fail");
    batch.put(META, FORMAT_KEY, [STORE_FORMAT]);
    batch.put(META, CHECKPOINT_KEY, value);
}

/// Adds a commit record, encoded as in the changelog, to a batch.
pub fn put_commit_record(batch: &mut Batch, value: &[u8]) {
    batch.put(META, COMMIT_RECORD_ROW, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            changelog: TopicPartition::new("app.changelog.rows", 3),
            topic_id: TopicId("00000000-0000-4000-8000-000000000001".parse().unwrap()),
            log: "one".to_owned(),
        }
    }

    #[test]
    fn checkpoint_round_trips() {
        let store = state_store::MemoryStore::new(SPACES.len());
        assert!(matches!(read(&store).unwrap(), StoreContent::Empty));
        let mut batch = Batch::default();
        put_checkpoint(&mut batch, &origin().checkpoint(17, 4711));
        let commit_record = CommitRecord {
            seq: 1,
            offsets: vec![],
            topic_ids: std::collections::BTreeMap::new(),
            stream_time: 0,
            at_least_once: false,
        };
        let mut value = Vec::new();
        commit_record.write(&mut value);
        put_commit_record(&mut batch, &value);
        store.commit(batch).unwrap();
        let StoreContent::UpTo(checkpoint, found) = read(&store).unwrap() else {
            panic!("store is empty")
        };
        assert_eq!(
            (checkpoint.changelog.2, checkpoint.as_of, found),
            (17, 4711, Some(commit_record))
        );
        assert_eq!(origin().mismatch(&checkpoint), None);
    }

    #[test]
    fn checkpoint_of_another_log_topic_or_partition_mismatches() {
        let own = origin();
        let of = |change: &dyn Fn(&mut Origin)| {
            let mut other = origin();
            change(&mut other);
            own.mismatch(&other.checkpoint(0, 0))
        };
        assert!(of(&|o| o.log = "two".to_owned()).unwrap().contains("epoch two"));
        assert!(of(&|o| o.changelog.partition = 4).unwrap().contains("rows/4"));
        assert!(of(&|o| o.topic_id = TopicId("00000000-0000-4000-8000-000000000002".parse().unwrap())).is_some());
    }

    #[test]
    fn rows_without_checkpoint_are_not_an_empty_store() {
        let store = state_store::MemoryStore::new(SPACES.len());
        let mut batch = Batch::default();
        batch.put(STATE, b"row".to_vec(), b"old".to_vec());
        store.commit(batch).unwrap();
        assert!(matches!(read(&store), Err(CheckpointError::Missing)));
    }

    #[test]
    fn store_of_a_newer_format_is_rejected() {
        let store = state_store::MemoryStore::new(SPACES.len());
        let mut batch = Batch::default();
        batch.put(META, FORMAT_KEY, [9]);
        store.commit(batch).unwrap();
        assert!(matches!(
            read(&store),
            Err(CheckpointError::Format(FormatError::Newer { found: 9, .. }))
        ));
    }
}
