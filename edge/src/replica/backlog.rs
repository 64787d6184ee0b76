//! Applies polled batches so that a large source transaction of one partition does not delay the other partitions.
//!
//! A partition whose transaction is applied in pieces is behind: its further records wait here. Each call of
//! [`Backlog::advance`] applies one piece of the partition that is behind for longest, so that it is served again first.

#[cfg(test)]
mod tests;

use event_log::{RecordBatch, TopicPartition};
use std::collections::VecDeque;
use std::mem::take;
use std::sync::Arc;
use views::Replica;
use views::replica::{Applied, Result};

/// No further records are read while those that wait have this size.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// Records that were read and not applied yet.
pub(super) struct Backlog {
    replica: Arc<Replica>,
    /// Batches with records of a partition that is behind.
    waiting: VecDeque<RecordBatch>,
    behind: VecDeque<TopicPartition>,
}

impl Backlog {
    pub(super) fn new(replica: Arc<Replica>) -> Self {
        Backlog {
            replica,
            waiting: VecDeque::new(),
            behind: VecDeque::new(),
        }
    }

    /// Whether a partition is behind.
    pub(super) fn contains(&self, at: &TopicPartition) -> bool {
        self.behind.contains(at)
    }

    /// Whether every record that was read has been applied.
    pub(super) fn is_empty(&self) -> bool {
        self.behind.is_empty()
    }

    /// Whether so many records wait that no more may be read.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.iter().map(RecordBatch::byte_len).sum::<usize>() >= WAITING_BYTES_MAX
    }

    /// Applies the records of a batch whose partition is not behind, and keeps the others. Takes the batch if a record
    /// must wait.
    pub(super) fn add(&mut self, batch: &mut RecordBatch, now: i64) -> Result<Vec<(TopicPartition, Applied)>> {
        let mut all = Vec::new();
        let mut waits = false;
        for (index, at) in batch.partitions().iter().enumerate() {
            if self.contains(at) {
                waits = true;
                continue;
            }
            let records = batch.iter().filter(|r| r.partition_index() == index);
            let applied = self.replica.apply_piece(at.partition, records, now)?;
            if applied.is_partial {
                waits = true;
                self.behind.push_back(at.clone());
            }
            all.push((at.clone(), applied));
        }
        if waits {
            self.waiting.push_back(take(batch));
        }
        Ok(all)
    }

    /// Applies one more piece.
    pub(super) fn advance(&mut self, now: i64) -> Result<Option<(TopicPartition, Applied)>> {
        let Some(at) = self.behind.front().cloned() else {
            return Ok(None);
        };
        let records = self.waiting.iter().flat_map(RecordBatch::iter);
        let records = records.filter(|record| *record.partition() == at);
        let applied = self.replica.apply_piece(at.partition, records, now)?;
        if !applied.is_partial {
            self.behind.pop_front();
            let behind = &self.behind;
            self.waiting
                .retain(|batch| batch.partitions().iter().any(|at| behind.contains(at)));
        }
        Ok(Some((at, applied)))
    }
}
