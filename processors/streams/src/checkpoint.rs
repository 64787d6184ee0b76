//! What a task's store knows of itself: its format, how much of which changelog it contains, and since when that is
//! known.
//!
//! Guarantees: the checkpoint is committed in one batch with the rows that it speaks of.
//! Never: a store used with another log, topic or partition than those it was filled from.

use crate::commit_record::{CommitRecord, FormatError};
use event_log::{Millis, Offset, TopicId, TopicPartition};
use serde::{Deserialize, Serialize};
use state_store::{Batch, Space, Store};

/// Space of the runtime's own rows.
pub const META: Space = Space(0);
/// Space of the processor's rows.
pub const STATE: Space = Space(1);
/// Names of the spaces, in order.
pub const SPACES: [&str; 2] = ["meta", "state"];

/// Format of a store that this program writes, and the newest that it reads.
pub const STORE_FORMAT: u8 = 1;

const FORMAT_KEY: &[u8] = b"format";
const CHECKPOINT_KEY: &[u8] = b"checkpoint";
/// Key of the newest commit_record, in [`META`].
pub const MARKER: &[u8] = b"commit_record";

/// How much of its changelog a store contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Topic, partition and the offset of the next changelog record to read.
    pub changelog: (String, i32, Offset),
    /// A time by the broker's clock, in ms, at which nothing at or after that offset had been written. It tells
    /// whether tombstones that the store has not read may be gone.
    pub as_of: Millis,
    /// Incarnation of the log.
    pub log: String,
    /// Id of the changelog topic.
    pub topic_id: String,
}

/// Where a store's rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The changelog's partition.
    pub changelog: TopicPartition,
    /// Its topic's id.
    pub topic_id: TopicId,
    /// The log's log_epoch.
    pub log: String,
}

impl Origin {
    /// The checkpoint that says: everything below this offset, as of this time.
    pub fn checkpoint(&self, next_offset: Offset, as_of: Millis) -> Checkpoint {
        Checkpoint {
            changelog: (self.changelog.topic.to_string(), self.changelog.partition, next_offset),
            as_of,
            log: self.log.clone(),
            topic_id: self.topic_id.to_string(),
        }
    }

    /// Why a checkpoint is of another origin; `None` when it is of this one.
    pub fn foreign(&self, checkpoint: &Checkpoint) -> Option<String> {
        let (topic, partition, _) = &checkpoint.changelog;
        if checkpoint.log != self.log {
            return Some(format!(
                "it was filled from log {}, and this is log {}",
                checkpoint.log, self.log
            ));
        }
        if **topic != *self.changelog.topic || *partition != self.changelog.partition {
            return Some(format!(
                "it was filled from {topic}/{partition}, and the changelog is {}",
                self.changelog
            ));
        }
        (checkpoint.topic_id != self.topic_id.to_string())
            .then(|| format!("{topic} has been deleted and created again since it was filled"))
    }
}

/// What an opened store says of itself.
#[derive(Debug)]
pub enum Found {
    /// Nothing has been written to it yet.
    Fresh,
    /// It contains this much.
    Filled(Checkpoint, Option<CommitRecord>),
}

/// Why a store cannot say how much it contains.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The engine failed.
    #[error("store failed")]
    Store(#[from] state_store::Error),
    /// Its format or rows are refused.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Reads a store's own rows.
///
/// # Errors
/// [`FormatError::Newer`] for a store of a newer program; other format errors for a store that is damaged.
pub fn read(store: &dyn Store) -> Result<Found, MetaError> {
    let Some(format) = store.get(META, FORMAT_KEY)? else {
        return Ok(Found::Fresh);
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
        return Ok(Found::Fresh);
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
        .get(META, MARKER)?
        .map(|value| CommitRecord::read(&value))
        .transpose()?;
    Ok(Found::Filled(checkpoint, commit_record))
}

/// Adds a checkpoint to a batch.
pub fn put_checkpoint(batch: &mut Batch, checkpoint: &Checkpoint) {
    let mut value = vec![STORE_FORMAT];
    serde_json::to_writer(&mut value, checkpoint).expect("writing JSON of plain values into memory cannot fail");
    batch.put(META, FORMAT_KEY, [STORE_FORMAT]);
    batch.put(META, CHECKPOINT_KEY, value);
}

/// Adds a commit_record, as it stands on the changelog, to a batch.
pub fn put_commit_record(batch: &mut Batch, value: &[u8]) {
    batch.put(META, MARKER, value);
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
    fn a_checkpoint_is_read_as_it_was_written() {
        let store = state_store::MemoryStore::new(SPACES.len());
        assert!(matches!(read(&store).unwrap(), Found::Fresh));
        let mut batch = Batch::default();
        put_checkpoint(&mut batch, &origin().checkpoint(17, 4711));
        let commit_record = CommitRecord {
            seq: 1,
            offsets: vec![],
            stream_time: 0,
            alone: false,
        };
        let mut value = Vec::new();
        commit_record.write(&mut value);
        put_commit_record(&mut batch, &value);
        store.commit(batch).unwrap();
        let Found::Filled(checkpoint, found) = read(&store).unwrap() else {
            panic!("not filled")
        };
        assert_eq!(
            (checkpoint.changelog.2, checkpoint.as_of, found),
            (17, 4711, Some(commit_record))
        );
        assert_eq!(origin().foreign(&checkpoint), None);
    }

    #[test]
    fn a_checkpoint_of_another_log_topic_or_partition_is_foreign() {
        let own = origin();
        let of = |change: &dyn Fn(&mut Origin)| {
            let mut other = origin();
            change(&mut other);
            own.foreign(&other.checkpoint(0, 0))
        };
        assert!(of(&|o| o.log = "two".to_owned()).unwrap().contains("log two"));
        assert!(of(&|o| o.changelog.partition = 4).unwrap().contains("rows/4"));
        assert!(of(&|o| o.topic_id = TopicId("00000000-0000-4000-8000-000000000002".parse().unwrap())).is_some());
    }

    #[test]
    fn a_store_of_a_newer_program_is_refused() {
        let store = state_store::MemoryStore::new(SPACES.len());
        let mut batch = Batch::default();
        batch.put(META, FORMAT_KEY, [9]);
        store.commit(batch).unwrap();
        assert!(matches!(
            read(&store),
            Err(MetaError::Format(FormatError::Newer { found: 9, .. }))
        ));
    }
}
