//! Baseline for benchmarks: an exactly-once copy with plain librdkafka calls, the upper limit for producers and streams.
//!
//! It uses the same settings, transactions and delivery-report thread as [`super::KafkaLog`], but does not recover from
//! errors. Nothing else in this crate uses it.

use super::client::consumer::Inbox;
use super::client::list::List;
use super::client::producer::Topic;
use super::client::{ClientError, ClientKind, Handle, Queue};
use super::config::Config;
use super::errors;
use super::settings::{self, Settings};
use crate::{GroupConfig, Result, TopicPartition, TransactionalProducerConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Messages taken from librdkafka at a time.
const TAKEN: usize = 4096;
/// Timeout of a librdkafka call.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options of a copy.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Topic to read from the first record.
    pub from: Arc<str>,
    /// Topic to write.
    pub to: Arc<str>,
    /// Partition count of both topics.
    pub partitions: i32,
    /// Number of records to copy.
    pub records: usize,
    /// Time between commits.
    pub commit_every: Duration,
    /// Additional consumer settings, which override those of a group member.
    pub settings: Vec<(&'static str, &'static str)>,
}

/// Copies on the calling thread, with a consumer group and transactional id of this name.
///
/// # Errors
/// The first error of librdkafka.
pub fn copy(config: &Config, name: &str, copy: &Copy) -> Result<()> {
    let member = GroupConfig {
        group: name.to_owned(),
        instance: None,
        topics: vec![copy.from.clone()],
        session_timeout: Duration::from_secs(10),
        protocol: crate::GroupProtocol::Classic,
    };
    let mut reading: Settings = settings::group(config, &member);
    reading.extend(
        copy.settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    let transactional = TransactionalProducerConfig {
        transactional_id: name.to_owned(),
        transaction_timeout: Duration::from_secs(10),
    };
    let consumer = Handle::new(ClientKind::Consumer, &reading).map_err(errors::setting_error)?;
    let producer = Handle::new(
        ClientKind::Producer,
        &settings::transactional_producer(config, &transactional),
    )
    .map_err(errors::setting_error)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (reports, done) = (Queue::main(&producer), &done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                drop(reports.poll(Duration::from_millis(100)));
            }
        });
        let copied = work(&consumer, &producer, copy);
        done.store(true, Ordering::Relaxed);
        copied.map_err(|found| errors::request_error("copy", &found))
    })
}

fn work(consumer: &Arc<Handle>, producer: &Arc<Handle>, copy: &Copy) -> Result<(), ClientError> {
    let queue = Queue::member(consumer).expect("the settings name a group");
    let mut inbox = Inbox::new(queue, TAKEN);
    let inputs: Vec<_> = (0..copy.partitions)
        .map(|p| TopicPartition::new(copy.from.clone(), p))
        .collect();
    consumer.assign(Some(&List::of(inputs.iter().map(|at| (at, 0)))))?;
    let to = Topic::new(producer, &copy.to)?;
    producer.init_transactions(PATIENCE)?;
    let mut next = vec![0; inputs.len()];
    let mut copied = 0;
    while copied < copy.records {
        producer.begin_transaction()?;
        let begun = Instant::now();
        while begun.elapsed() < copy.commit_every && copied < copy.records {
            copied += inbox.forward(&to, Duration::from_millis(20), |partition, offset| {
                if let Some(next) = usize::try_from(partition).ok().and_then(|at| next.get_mut(at)) {
                    *next = offset + 1;
                }
            })?;
        }
        let offsets = List::of(inputs.iter().zip(&next).map(|(at, next)| (at, *next)));
        let member = consumer.group_metadata().expect("the settings name a group");
        producer.send_offsets(&offsets, &member)?;
        producer.commit_transaction(PATIENCE)?;
    }
    Ok(())
}
