//! A librdkafka producer and the thread that receives its delivery reports.
//!
//! Delivery reports have their own thread because librdkafka's commit call wakes up only every 10 ms if it has to poll
//! for the reports itself. The thread and the client end when the [`ProducerClient`] is dropped. Senders block while
//! the queue is full. Records above the topic's size limit are rejected before they are queued.

use super::client::admin::Admin;
use super::client::producer::{HeaderList, Report, Topic};
use super::client::{ClientError, ClientKind, Code, EventKind, Handle, Queue};
use super::errors;
use super::settings::Settings;
use crate::{Error, Millis, Offset, OutBatch, OutRecord, Produced, Result, TopicPartition};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Upper bounds of the bytes that Kafka's format adds to a batch of one record, to a record, and to a header.
const BATCH_OVERHEAD_BYTES: usize = 61;
const RECORD_OVERHEAD_BYTES: usize = 36;
const HEADER_OVERHEAD_BYTES: usize = 10;
/// The default of `max.message.bytes`, for topics whose settings this user may not read.
const LIMIT_BYTES: usize = 1_048_588;

/// A producer that tracks the delivery of its records by tag.
#[derive(Debug)]
pub struct ProducerClient {
    thread: Option<JoinHandle<()>>,
    topics: Mutex<HashMap<Arc<str>, Arc<OpenTopic>>>,
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    request_timeout: Duration,
}

/// A topic that is known to exist.
#[derive(Debug)]
struct OpenTopic {
    name: Arc<str>,
    topic: Topic,
    limit_bytes: usize,
}

/// How a record is sent.
#[derive(Debug, Clone, Copy)]
struct SendOptions {
    /// Tag of the delivery report.
    tag: usize,
    /// How long to wait for space in the queue.
    timeout: Duration,
}

/// State shared by the delivery-report thread and senders.
#[derive(Debug, Default)]
struct Shared {
    deliveries: Mutex<Vec<(usize, Delivery)>>,
    changed: Condvar,
    stop: AtomicBool,
    fatal: AtomicBool,
    connection_errors: AtomicU64,
}

/// Delivery of the records with one tag.
#[derive(Debug, Default)]
struct Delivery {
    done: usize,
    last: usize,
    ends: Vec<End>,
    failed: Option<Failed>,
}

/// The first record that was not written, or not provably written.
#[derive(Debug, Clone, Copy)]
struct Failed {
    topic: usize,
    bytes: usize,
    /// `None` if the client reports the record as written only because a later record was written: see [`note`].
    code: Option<Code>,
}

#[derive(Debug)]
struct End {
    topic: usize,
    partition: i32,
    first_offset: Offset,
    next_offset: Offset,
    timestamp: Millis,
}

impl ProducerClient {
    /// Starts a producer and its thread.
    pub fn new(settings: &Settings, request_timeout: Duration) -> Result<ProducerClient> {
        let handle = Handle::new(ClientKind::Producer, settings).map_err(errors::setting_error)?;
        let queue = Arc::new(Queue::main(&handle));
        let shared = Arc::new(Shared::default());
        let (thread_queue, thread_shared) = (queue.clone(), shared.clone());
        let thread = std::thread::Builder::new()
            .name("kafka-reports".to_owned())
            .spawn(move || thread_shared.run(&thread_queue))
            .map_err(|e| Error::Rejected {
                attempted: "start a thread".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(ProducerClient {
            thread: Some(thread),
            topics: Mutex::default(),
            queue,
            shared,
            request_timeout,
        })
    }

    /// Returns the client.
    pub fn handle(&self) -> &Arc<Handle> {
        self.queue.handle()
    }

    /// Returns whether a fatal error has made the client unusable.
    pub fn is_fatal(&self) -> bool {
        self.shared.fatal.load(Ordering::Relaxed)
    }

    /// Returns the number of connection errors. If it changes during a call, a response of that call may be lost.
    pub fn connection_errors(&self) -> u64 {
        self.shared.connection_errors.load(Ordering::SeqCst)
    }

    /// Returns whether a record with this tag was reported as written without proof: see [`note`].
    pub fn has_unproven(&self, tag: usize) -> bool {
        let deliveries = self.shared.lock();
        deliveries
            .iter()
            .any(|(m, d)| *m == tag && d.failed.is_some_and(|failed| failed.code.is_none()))
    }

    /// Starts to track the delivery of records sent with a tag, which must not be 0.
    pub fn watch(&self, tag: usize) {
        let mut deliveries = self.shared.lock();
        deliveries.retain(|(m, _)| *m != tag);
        deliveries.push((tag, Delivery::default()));
    }

    /// Queues records with a tag; blocks for up to `limit` while the queue is full.
    pub fn send(&self, records: &OutBatch, tag: usize, limit: Duration) -> Result<()> {
        let mut open: Option<Arc<OpenTopic>> = None;
        for (record, headers) in records.iter() {
            let topic = match &open {
                Some(topic) if Arc::ptr_eq(&topic.name, record.topic) || topic.name == *record.topic => topic,
                _ => open.insert(self.open(record.topic)?),
            };
            let options = SendOptions { tag, timeout: limit };
            self.send_one(topic, &record, HeaderList::of(headers), options)?;
        }
        Ok(())
    }

    fn send_one(
        &self,
        topic: &OpenTopic,
        record: &OutRecord<'_>,
        mut headers: Option<HeaderList>,
        options: SendOptions,
    ) -> Result<()> {
        let bytes = size(record, headers.as_ref());
        if bytes > topic.limit_bytes {
            return Err(Error::TooLarge {
                topic: topic.name.to_string(),
                bytes,
                limit: topic.limit_bytes,
            });
        }
        let mut end: Option<Instant> = None;
        loop {
            let Err(found) = topic.topic.produce(record, &mut headers, options.tag) else {
                return Ok(());
            };
            if found.code != Code::RD_KAFKA_RESP_ERR__QUEUE_FULL {
                return Err(self.produce_error(topic, bytes, &found));
            }
            let end = *end.get_or_insert_with(|| Instant::now() + options.timeout);
            if Instant::now() >= end {
                let reason = self
                    .handle()
                    .connectivity()
                    .explain("the producer queue remains full because records are not acknowledged");
                return Err(Error::Unavailable {
                    attempted: format!("send to {}", topic.name),
                    reason,
                });
            }
            drop(self.shared.wait(self.shared.lock(), Duration::from_millis(10)));
        }
    }

    fn produce_error(&self, topic: &OpenTopic, bytes: usize, found: &ClientError) -> Error {
        if found.code == Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE {
            return Error::TooLarge {
                topic: topic.name.to_string(),
                bytes,
                limit: topic.limit_bytes,
            };
        }
        errors::topic_error(&topic.name, format!("send to {}", topic.name), found)
    }

    /// Appends records and waits until they are durable.
    pub fn append(&self, records: &OutBatch) -> Result<Vec<Produced>> {
        let results = self.append_each(std::slice::from_ref(records));
        results.into_iter().next().unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Appends batches and waits until they are durable. Each batch has its own tag, and therefore its own result.
    pub fn append_each(&self, batches: &[OutBatch]) -> Vec<Result<Vec<Produced>>> {
        static NEXT_TAG: AtomicUsize = AtomicUsize::new(1);
        // All batches share the time limit, so that many of them do not wait longer than one for a full queue.
        let sent_by = Instant::now() + self.request_timeout;
        let send = |records: &OutBatch| {
            let tag = NEXT_TAG.fetch_add(1, Ordering::Relaxed);
            self.watch(tag);
            let left = sent_by.saturating_duration_since(Instant::now());
            (tag, self.send(records, tag, left))
        };
        let sent: Vec<(usize, Result<()>)> = batches.iter().map(send).collect();
        // librdkafka fails a record after `message.timeout.ms`. The addition only guards against a missing report.
        let end = Instant::now() + self.request_timeout + Duration::from_secs(5);
        let finish = |((tag, sent), records): ((usize, Result<()>), &OutBatch)| {
            let written = sent.and_then(|()| self.wait(tag, records.len(), end));
            let result = self.collect(tag);
            written.and(result)
        };
        sent.into_iter().zip(batches).map(finish).collect()
    }

    /// Waits for the delivery reports of all records with a tag.
    fn wait(&self, tag: usize, count: usize, end: Instant) -> Result<()> {
        let mut deliveries = self.shared.lock();
        while done(&deliveries, tag) < count && Instant::now() < end {
            deliveries = self.shared.wait(deliveries, Duration::from_millis(500));
        }
        if done(&deliveries, tag) < count {
            let reason = self.handle().connectivity().explain("no delivery report");
            return Err(Error::Unavailable {
                attempted: "append".to_owned(),
                reason,
            });
        }
        Ok(())
    }

    /// Stops tracking a tag and returns the offsets by partition, or the error of the first record that was not
    /// written.
    pub fn collect(&self, tag: usize) -> Result<Vec<Produced>> {
        let mut deliveries = self.shared.lock();
        let at = deliveries.iter().position(|(m, _)| *m == tag);
        let Some((_, delivery)) = at.map(|at| deliveries.swap_remove(at)) else {
            return Ok(Vec::new());
        };
        drop(deliveries);
        let topics = self.topics();
        let name = |address| {
            let found = topics.values().find(|open| open.topic.address() == address);
            found.map_or_else(|| Arc::from("(unknown)"), |open| open.name.clone())
        };
        if let Some(Failed { topic, bytes, code }) = delivery.failed {
            let topic = name(topic);
            let attempted = format!("write to {topic}");
            let Some(code) = code else {
                let reason = "the broker acknowledged a later record but not this one".to_owned();
                return Err(Error::Unavailable { attempted, reason });
            };
            let mut found = ClientError::new(code);
            found.text = self.handle().connectivity().explain(&found.text);
            if code == Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE {
                let limit = topics.get(&topic).map_or(LIMIT_BYTES, |open| open.limit_bytes);
                return Err(Error::TooLarge {
                    topic: topic.to_string(),
                    bytes,
                    limit,
                });
            }
            return Err(errors::topic_error(&topic, attempted, &found));
        }
        let ends = delivery.ends.into_iter().map(|end| Produced {
            at: TopicPartition {
                topic: name(end.topic),
                partition: end.partition,
            },
            first_offset: end.first_offset,
            next_offset: end.next_offset,
            timestamp: end.timestamp,
        });
        let mut ends: Vec<_> = ends.collect();
        ends.sort_by(|a, b| a.at.cmp(&b.at));
        Ok(ends)
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<OpenTopic>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a topic and looks up its `max.message.bytes`.
    fn open(&self, name: &Arc<str>) -> Result<Arc<OpenTopic>> {
        if let Some(open) = self.topics().get(name) {
            return Ok(open.clone());
        }
        let attempted = || format!("open topic {name}");
        let failed = |mut found: ClientError| {
            found.text = self.handle().connectivity().explain(&found.text);
            errors::topic_error(name, attempted(), &found)
        };
        let topic = Topic::new(self.handle(), name).map_err(failed)?;
        topic.partitions(self.request_timeout).map_err(failed)?;
        let admin = Admin::new(self.handle(), self.request_timeout);
        // Writing a topic does not imply the permission to read its settings. The broker still enforces the limit.
        let settings = admin.settings(name).unwrap_or_default();
        let limit_bytes = settings
            .get("max.message.bytes")
            .and_then(|v| v.parse().ok())
            .unwrap_or(LIMIT_BYTES);
        let open = Arc::new(OpenTopic {
            name: name.clone(),
            topic,
            limit_bytes,
        });
        Ok(self.topics().entry(name.clone()).or_insert(open).clone())
    }
}

impl Drop for ProducerClient {
    fn drop(&mut self) {
        self.handle().purge();
        self.shared.stop.store(true, Ordering::SeqCst);
        self.queue.interrupt();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(target: "event_log::kafka", "delivery-report thread panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<(usize, Delivery)>> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'g>(
        &self,
        deliveries: MutexGuard<'g, Vec<(usize, Delivery)>>,
        limit: Duration,
    ) -> MutexGuard<'g, Vec<(usize, Delivery)>> {
        self.changed
            .wait_timeout(deliveries, limit)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn run(&self, queue: &Queue) {
        while !self.stop.load(Ordering::SeqCst) {
            queue.handle().remind();
            let Some(event) = queue.poll(Duration::from_millis(500)) else {
                continue;
            };
            match event.kind() {
                EventKind::Reports => {
                    let mut deliveries = self.lock();
                    event.reports(|report| note(&mut deliveries, &report));
                }
                EventKind::Error => self.on_error(&event.error().err()),
                EventKind::Rebalance | EventKind::Other => {}
            }
            // The event must be freed before senders are woken: until then, librdkafka counts its records as
            // outstanding.
            drop(event);
            self.changed.notify_all();
        }
    }

    fn on_error(&self, found: &Option<ClientError>) {
        let Some(found) = found else { return };
        if errors::is_unavailable(found) {
            self.connection_errors.fetch_add(1, Ordering::SeqCst);
        }
        if found.fatal || found.code == Code::RD_KAFKA_RESP_ERR__FATAL {
            self.fatal.store(true, Ordering::Relaxed);
        }
        tracing::debug!(target: "event_log::kafka", code = ?found.code, error = found.text, "client error");
    }
}

/// Adds a delivery report to the delivery with its tag. Reports of abandoned transactions belong to no delivery and are
/// ignored.
///
/// A report without an error and without an offset means that librdkafka considers the record written because a later
/// record was written. That is no proof: a broker accepts any first sequence number from a producer that is new to a
/// partition. If the broker rejected the first batch because the leader was not ready, it accepts the second batch,
/// which is already in flight, in its place.
fn note(deliveries: &mut [(usize, Delivery)], report: &Report<'_>) {
    let tag = report.tag();
    let Some((_, delivery)) = deliveries.iter_mut().find(|(m, _)| *m == tag) else {
        return;
    };
    delivery.done += 1;
    let written = report.code() == Code::RD_KAFKA_RESP_ERR_NO_ERROR;
    if !written || report.offset() < 0 {
        let code = (!written).then(|| report.code());
        let (topic, bytes) = (report.topic_address(), report.size());
        delivery.failed.get_or_insert(Failed { topic, bytes, code });
        return;
    }
    let (topic, partition, offset) = (report.topic_address(), report.partition(), report.offset());
    let same = |end: &End| end.topic == topic && end.partition == partition;
    if !delivery.ends.get(delivery.last).is_some_and(same) {
        delivery.last = delivery.ends.iter().position(same).unwrap_or_else(|| {
            let next_offset = offset;
            delivery.ends.push(End {
                topic,
                partition,
                first_offset: offset,
                next_offset,
                timestamp: 0,
            });
            delivery.ends.len() - 1
        });
    }
    let Some(end) = delivery.ends.get_mut(delivery.last) else {
        return;
    };
    end.first_offset = end.first_offset.min(offset);
    if offset >= end.next_offset {
        end.next_offset = offset + 1;
        end.timestamp = report.timestamp();
    }
}

fn done(deliveries: &[(usize, Delivery)], tag: usize) -> usize {
    deliveries
        .iter()
        .find(|(m, _)| *m == tag)
        .map_or(usize::MAX, |(_, delivery)| delivery.done)
}

/// Returns an upper bound of the record's size in the broker's log.
fn size(record: &OutRecord<'_>, headers: Option<&HeaderList>) -> usize {
    let headers = headers.map_or(0, |list| list.bytes() + list.len() * HEADER_OVERHEAD_BYTES);
    let body = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
    BATCH_OVERHEAD_BYTES + RECORD_OVERHEAD_BYTES + body + headers
}
