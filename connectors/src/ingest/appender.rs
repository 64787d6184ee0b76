//! Appends events to the log on a few threads, because appends block.
//!
//! What waits at the same time is appended together. Each request still has its own result: the offsets of its records,
//! or its error. The threads end when all handles are dropped, after the last request has its result.

use event_log::{Error, OutBatch, Produced, Result, SharedEventLog};
use service::Tasks;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// Number of threads. While one waits for the log, another one collects and appends the next requests.
const THREADS: usize = 4;
/// Number of requests that may wait for a thread. Further requests are rejected with 503. Their bytes are limited by
/// `waiting_bytes_max`.
const QUEUE_MAX: usize = 4_096;
/// Limits of what is appended together.
const TOGETHER_MAX: usize = 512;
const TOGETHER_BYTES_MAX: usize = 4 << 20;

struct Request {
    records: OutBatch,
    respond_to: oneshot::Sender<Result<Vec<Produced>>>,
    /// Kept until the records are appended, because they are in memory also if the client has disconnected.
    permit: Arc<OwnedSemaphorePermit>,
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum AppendError {
    /// Too many requests wait.
    #[error("too many requests wait for the log; retry later")]
    Busy,
    /// The process ends.
    #[error("the process stopped before the log answered; the outcome is unknown")]
    UnknownOutcome,
    /// The log.
    #[error(transparent)]
    Log(#[from] Error),
}

/// Handle with which request handlers append events.
#[derive(Clone)]
pub struct Appender {
    requests: mpsc::Sender<Request>,
}

impl Appender {
    /// Starts the threads.
    pub fn start(tasks: &Tasks, log: SharedEventLog) -> Self {
        Self::with(tasks, move |batches| log.append_each(batches))
    }

    /// Starts the threads, which call `append_each` instead of a log.
    fn with<F>(tasks: &Tasks, append_each: F) -> Self
    where
        F: Fn(&[OutBatch]) -> Vec<Result<Vec<Produced>>> + Send + Sync + 'static,
    {
        let (send, receive) = mpsc::channel(QUEUE_MAX);
        let (receive, append_each) = (Arc::new(Mutex::new(receive)), Arc::new(append_each));
        for thread in 0..THREADS {
            let (receive, append_each) = (Arc::clone(&receive), Arc::clone(&append_each));
            tasks.thread(format!("ingest-append-{thread}"), move || {
                while let Some(requests) = next(&receive) {
                    append(requests, &*append_each);
                }
            });
        }
        Self { requests: send }
    }

    /// Appends the records of a request and waits until they are durable.
    pub(super) async fn append(
        &self,
        records: OutBatch,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> Result<Vec<Produced>, AppendError> {
        let (respond_to, result) = oneshot::channel();
        let request = Request {
            records,
            respond_to,
            permit,
        };
        self.requests.try_send(request).map_err(|_| AppendError::Busy)?;
        Ok(result.await.map_err(|_| AppendError::UnknownOutcome)??)
    }
}

/// Waits for a request, and returns it with those that wait behind it; `None` if all handles are dropped.
fn next(receive: &Mutex<mpsc::Receiver<Request>>) -> Option<Vec<Request>> {
    // The threads take turns: the others wait for the lock while one waits for a request.
    let mut receive = receive.lock().unwrap_or_else(PoisonError::into_inner);
    let first = receive.blocking_recv()?;
    let mut bytes = first.records.byte_len();
    let mut requests = vec![first];
    while requests.len() < TOGETHER_MAX && bytes < TOGETHER_BYTES_MAX {
        let Ok(request) = receive.try_recv() else { break };
        bytes += request.records.byte_len();
        requests.push(request);
    }
    Some(requests)
}

fn append(requests: Vec<Request>, append_each: &impl Fn(&[OutBatch]) -> Vec<Result<Vec<Produced>>>) {
    let (mut batches, mut waiting) = (Vec::with_capacity(requests.len()), Vec::with_capacity(requests.len()));
    for request in requests {
        batches.push(request.records);
        waiting.push((request.respond_to, request.permit));
    }
    let results = append_each(&batches);
    for ((respond_to, _permit), result) in waiting.into_iter().zip(results) {
        // A failed send means that the client has disconnected. Without an idempotency key, its retry is another request.
        let _ = respond_to.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::{OutRecord, TopicPartition};
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::sync::Semaphore;

    /// A log whose appends wait until it is opened. The offset of a record is the number in its value.
    #[derive(Default)]
    struct SlowLog {
        is_open: Mutex<bool>,
        opened: Condvar,
        calls: AtomicUsize,
        running: AtomicUsize,
        running_max: AtomicUsize,
    }

    impl SlowLog {
        fn append_each(&self, batches: &[OutBatch]) -> Vec<Result<Vec<Produced>>> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.running_max.fetch_max(running, Ordering::SeqCst);
            let is_open = self.is_open.lock().unwrap();
            drop(self.opened.wait_while(is_open, |is_open| !*is_open).unwrap());
            self.running.fetch_sub(1, Ordering::SeqCst);
            batches.iter().map(Self::result).collect()
        }

        fn result(records: &OutBatch) -> Result<Vec<Produced>> {
            let (record, _) = records.iter().next().unwrap();
            let number: i64 = std::str::from_utf8(record.value.unwrap()).unwrap().parse().unwrap();
            if number % 10 == 0 {
                return Err(Error::TooLarge {
                    topic: "t".to_owned(),
                    bytes: 1,
                    limit: 0,
                });
            }
            Ok(vec![Produced {
                at: TopicPartition::new("t", 0),
                first_offset: number,
                next_offset: number + 1,
                timestamp: 0,
            }])
        }

        fn open(&self) {
            *self.is_open.lock().unwrap() = true;
            self.opened.notify_all();
        }
    }

    fn batch(number: usize) -> OutBatch {
        let mut out = OutBatch::default();
        let value = number.to_string();
        let record = OutRecord {
            topic: &Arc::from("t"),
            partition: None,
            timestamp: None,
            key: None,
            value: Some(value.as_bytes()),
        };
        out.push(record, []);
        out
    }

    #[tokio::test]
    async fn waiting_requests_share_appends_of_few_threads() {
        const COUNT: usize = 2_000;
        let (tasks, log) = (Tasks::new(), Arc::new(SlowLog::default()));
        let shared = Arc::clone(&log);
        let appender = Appender::with(&tasks, move |batches| shared.append_each(batches));
        let permits = Arc::new(Semaphore::new(COUNT));
        let answered = Arc::new(AtomicBool::new(false));
        let mut requests = tokio::task::JoinSet::new();
        for number in 0..COUNT {
            let permit = Arc::new(Arc::clone(&permits).try_acquire_owned().unwrap());
            let (appender, answered) = (appender.clone(), Arc::clone(&answered));
            requests.spawn(async move {
                let result = appender.append(batch(number), permit).await;
                answered.store(true, Ordering::SeqCst);
                (number, result)
            });
        }
        while log.running.load(Ordering::SeqCst) < THREADS {
            tokio::task::yield_now().await;
        }
        assert!(!answered.load(Ordering::SeqCst), "answered before the append");
        log.open();
        while let Some(done) = requests.join_next().await {
            let (number, result) = done.unwrap();
            match result {
                Ok(produced) => assert_eq!(produced[0].first_offset, i64::try_from(number).unwrap()),
                Err(AppendError::Log(Error::TooLarge { .. })) => assert_eq!(number % 10, 0),
                Err(error) => panic!("request {number}: {error}"),
            }
        }
        assert!(log.running_max.load(Ordering::SeqCst) <= THREADS);
        let calls = log.calls.load(Ordering::SeqCst);
        assert!(calls <= COUNT / 10, "{calls} appends for {COUNT} requests");
        assert_eq!(permits.available_permits(), COUNT);
        drop(appender);
        tasks.join(Duration::from_secs(10)).await.unwrap();
    }

    #[tokio::test]
    async fn request_of_a_disconnected_client_counts_until_it_is_appended() {
        let (tasks, log) = (Tasks::new(), Arc::new(SlowLog::default()));
        let shared = Arc::clone(&log);
        let appender = Appender::with(&tasks, move |batches| shared.append_each(batches));
        let permits = Arc::new(Semaphore::new(1));
        let permit = Arc::new(Arc::clone(&permits).try_acquire_owned().unwrap());
        let disconnected = tokio::time::timeout(Duration::ZERO, appender.append(batch(1), permit));
        assert!(disconnected.await.is_err());
        assert_eq!(permits.available_permits(), 0);
        log.open();
        let _appended = permits.acquire().await.unwrap();
    }
}
