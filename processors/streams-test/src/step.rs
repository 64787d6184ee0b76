//! Runs one processor with its state and without a log. The test passes records and receives the output.

use event_log::{Header, Millis, NewRecord, Offset, OutBatch, RecordBatch, TimestampType, TopicPartition};
use state_store::{MemoryStore, SharedStore};
use std::sync::Arc;
use streams::testing::{ManualTask, STORE_SPACES};
use streams::{Context, Processor, RejectedTimer, Result, State};

/// A record that a processor sent, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Topic.
    pub topic: String,
    /// Partition, if the processor chose it.
    pub partition: Option<i32>,
    /// Timestamp in ms, if the processor set it.
    pub timestamp: Option<Millis>,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
    /// Headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Runs one processor with a state in memory.
pub struct StepDriver {
    processor: Box<dyn Processor>,
    task: ManualTask,
    stream_time: Millis,
    /// The wall-clock time of the next steps, in ms.
    pub now: Millis,
}

impl StepDriver {
    /// Creates a driver of a processor with an empty state.
    ///
    /// # Errors
    /// An error of its `restore`.
    pub fn new(name: &str, processor: Box<dyn Processor>) -> Result<Self> {
        Self::over(name, processor, Arc::new(MemoryStore::new(STORE_SPACES)))
    }

    /// Creates a driver of a processor with its state in `store`, which must have the keyspaces of a task store. For
    /// benchmarks.
    ///
    /// # Errors
    /// An error of its `restore`.
    pub fn over(name: &str, mut processor: Box<dyn Processor>, store: SharedStore) -> Result<Self> {
        let task = ManualTask::new(name, store);
        processor.restore(task.state())?;
        Ok(StepDriver {
            processor,
            task,
            stream_time: 0,
            now: 0,
        })
    }

    /// Processes records of one task, and fires due timers.
    ///
    /// # Errors
    /// An error of `prepare`, `process` or `on_timer`, or a state write that every store rejects.
    pub fn feed(&mut self, records: &RecordBatch) -> Result<()> {
        let newest = records.iter().map(|record| record.timestamp()).max().unwrap_or(0);
        self.stream_time = self.stream_time.max(newest);
        let context = self.context();
        let all = records.slice(0..records.len());
        self.processor.prepare(all)?;
        let processor = &mut self.processor;
        self.task
            .step(|state, output| processor.process(context, all, state, output))?;
        self.advance(self.now)
    }

    /// Calls `on_dead_letter` for records, as if the log or the store had rejected their effects.
    ///
    /// # Errors
    /// An error of `on_dead_letter`, or a state write that every store rejects.
    pub fn give_up(&mut self, records: &RecordBatch) -> Result<()> {
        let (context, processor) = (self.context(), &mut self.processor);
        self.task.step(|state, output| {
            records
                .iter()
                .try_for_each(|record| processor.on_dead_letter(context, record, state, output))
        })
    }

    /// Sets the wall clock, and fires due timers.
    ///
    /// # Errors
    /// An error of `on_timer` or the store, or a state write that every store rejects.
    pub fn advance(&mut self, now: Millis) -> Result<()> {
        self.now = now;
        let (context, processor) = (self.context(), &mut self.processor);
        self.task.fire_timers(context, &mut |timer, state, output| {
            processor.on_timer(context, timer, state, output)
        })
    }

    /// Sets the wall clock, and treats the timers that are due as if the log or the store had rejected their effects.
    ///
    /// # Errors
    /// An error of `on_rejected_timer` or the store, or a state write that every store rejects.
    pub fn reject_timers(&mut self, now: Millis) -> Result<Vec<RejectedTimer>> {
        self.now = now;
        let (context, processor, mut reactions) = (self.context(), &mut self.processor, Vec::new());
        self.task.fire_timers(context, &mut |timer, state, output| {
            reactions.push(processor.on_rejected_timer(context, timer, state, output)?);
            Ok(())
        })?;
        Ok(reactions)
    }

    /// Commits, and returns the records that were sent since the last commit.
    ///
    /// # Errors
    /// An error of `before_commit` or the store, or a state write that every store rejects.
    pub fn commit(&mut self) -> Result<Vec<Written>> {
        let (context, processor) = (self.context(), &mut self.processor);
        self.task
            .step(|state, output| processor.before_commit(context, state, output))?;
        self.task.commit().map(|sent| written(&sent))
    }

    /// Discards everything since the last commit, as an aborted transaction does.
    ///
    /// # Errors
    /// An error of `restore`.
    pub fn abort(&mut self) -> Result<()> {
        self.task.abort();
        self.processor.restore(self.task.state())
    }

    /// Replaces the processor, as a restart with another configuration does. Discards what is not committed.
    ///
    /// # Errors
    /// An error of `restore`.
    pub fn restart(&mut self, processor: Box<dyn Processor>) -> Result<()> {
        self.processor = processor;
        self.abort()
    }

    fn context(&self) -> Context {
        Context {
            now: self.now,
            stream_time: self.stream_time,
        }
    }

    /// The state, including uncommitted writes.
    pub fn state(&self) -> &State {
        self.task.state()
    }

    /// The state, for preparing a test.
    pub fn state_mut(&mut self) -> &mut State {
        self.task.state_mut()
    }
}

/// A batch of records of one partition with ascending offsets: keys, values (`None` is a tombstone) and timestamps.
pub fn records(at: &TopicPartition, first: Offset, rows: &[(&str, Option<&str>, Millis)]) -> RecordBatch {
    let mut batch = RecordBatch::default();
    let partition = batch.intern(at);
    for (offset, (key, value, timestamp)) in (first..).zip(rows) {
        let (key, value) = (Some(key.as_bytes()), value.map(str::as_bytes));
        batch.push(
            partition,
            NewRecord {
                offset,
                timestamp: *timestamp,
                timestamp_type: TimestampType::Create,
                key,
                value,
            },
            [],
        );
    }
    batch
}

/// Creates a batch of one record.
pub fn record<'h>(
    at: &TopicPartition,
    record: NewRecord<'_>,
    headers: impl IntoIterator<Item = Header<'h>>,
) -> RecordBatch {
    let mut batch = RecordBatch::default();
    let partition = batch.intern(at);
    batch.push(partition, record, headers);
    batch
}

/// The records of a batch, owned.
pub fn written(records: &OutBatch) -> Vec<Written> {
    let owned = records.iter().map(|(record, headers)| Written {
        topic: record.topic.to_string(),
        partition: record.partition,
        timestamp: record.timestamp,
        key: record.key.map(<[u8]>::to_vec),
        value: record.value.map(<[u8]>::to_vec),
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)))
            .collect(),
    });
    owned.collect()
}
