//! Parameters of a run, kills so far, and progress of the processors.

use crate::support::wait_for;
use event_log::{
    Error, ErrorAction, Isolation, Offset, OffsetSpec, RecordBatch, SharedEventLog, StartFrom, TopicPartition,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Topics that grow whenever a task makes progress.
const WORK: [&str; 2] = ["cluster.processor.joined", "cluster.counts.changelog.groups"];
/// Partitions of each topic.
pub const PARTITIONS: i32 = 6;
/// Groups and their inputs, in the order of the data flow.
const READS: [(&str, &str); 4] = [
    ("cluster.joined", "cluster.event.ordered"),
    ("cluster.joined", "cluster.change.shop"),
    ("cluster.joined", "cluster.joined.repartition.right"),
    ("cluster.counts", "cluster.processor.joined"),
];
const LIMIT: Duration = Duration::from_secs(180);

/// Parameters of a run. It ends when all four minimums are reached.
#[derive(Debug, Clone, Copy)]
pub struct RunPlan {
    /// Minimum duration.
    pub time: Duration,
    /// Minimum number of kills of each broker.
    pub rounds: usize,
    /// Minimum number of kills of processes.
    pub kills: usize,
    /// Minimum number of orders.
    pub orders: usize,
    /// Orders per second.
    pub rate: usize,
    /// Orders between changes of prices.
    pub epoch: usize,
}

/// Kills so far.
#[derive(Debug, Default)]
pub struct Kills {
    pub processes: AtomicUsize,
    pub brokers: AtomicUsize,
}

/// Retries while the log is unavailable, because a broker may be down.
fn retry<T>(what: &str, mut call: impl FnMut() -> event_log::Result<T>) -> T {
    wait_for(what, LIMIT, || match call() {
        Err(error) if error.action() == ErrorAction::Retry => None,
        // The topic is not created yet, or the metadata is from a broker that has just restarted.
        Err(Error::UnknownTopic { .. }) => None,
        found => Some(found.expect(what)),
    })
}

/// Waits for `time`, or until `over` is set.
pub fn pass(time: Duration, over: &AtomicBool) {
    let end = Instant::now() + time;
    wait_for("time to pass", time + LIMIT, || {
        (Instant::now() >= end || over.load(Ordering::SeqCst)).then_some(())
    });
}

/// Progress of the processors.
pub struct Progress(SharedEventLog);

impl Progress {
    pub fn new(log: SharedEventLog) -> Progress {
        Progress(log)
    }

    /// Sum of the last stable offsets of the processors' output; `None` while the log is unavailable.
    pub fn stable(&self) -> Option<Offset> {
        let at: Vec<TopicPartition> = WORK.iter().flat_map(|topic| partitions(topic)).collect();
        Some(self.0.offsets(&at, OffsetSpec::LastStable).ok()?.into_iter().sum())
    }

    /// Waits until all input has been processed and committed.
    pub fn barrier(&self) {
        for (group, topic) in READS {
            wait_for(&format!("{group} to have processed {topic}"), LIMIT, || {
                let partitions = self.partitions(topic);
                let committed = retry("read the offsets", || self.0.committed(group, &partitions));
                let done = |(at, next): (&TopicPartition, &Option<Offset>)| self.is_read(at, next.unwrap_or(0));
                committed.iter().all(done).then_some(())
            });
        }
    }

    fn partitions(&self, topic: &str) -> Vec<TopicPartition> {
        let found = retry("describe a topic", || self.0.describe(topic));
        let count = found.map_or(0, |found| found.partitions);
        (0..count).map(|p| TopicPartition::new(topic, p)).collect()
    }

    /// Whether no committed record is at or after an offset. The log end may be greater, because of control records
    /// after the last record.
    fn is_read(&self, at: &TopicPartition, next: Offset) -> bool {
        let end = retry("read the end", || self.0.offset(at, OffsetSpec::LogEnd));
        if next >= end {
            return true;
        }
        retry("read what is left", || {
            let mut reader = self.0.reader(Isolation::ReadCommitted)?;
            reader.assign(&[(at.clone(), StartFrom::Offset(next))])?;
            let (mut batch, began) = (RecordBatch::default(), Instant::now());
            while reader.position(at).is_none_or(|position| position < end) {
                let open = began.elapsed() > Duration::from_secs(1);
                if open || reader.poll(&mut batch, 1 << 20, Duration::from_millis(50))? > 0 {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }
}

fn partitions(topic: &str) -> impl Iterator<Item = TopicPartition> {
    (0..PARTITIONS).map(move |p| TopicPartition::new(topic, p))
}
