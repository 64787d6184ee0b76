//! The task that receives a replication stream, so that the server gets its status updates while the connector is busy.
//!
//! What it has received and the connector has not processed is limited in bytes; beyond the limit it stops reading, and
//! TCP slows down the server.

use super::super::server::{Session, SessionError};
use bytes::{Buf as _, Bytes};
use schemas::version::Lsn;
use service::SharedClock;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Limit of what is received and not processed, in bytes. One larger message is accepted if nothing else is buffered.
const BUFFER_BYTES: u32 = 16 << 20;
/// Limit of the number of messages in one delivery. With small messages, the memory of their descriptions counts more
/// than their bytes.
const DELIVERY_MESSAGES_MAX: usize = 1_024;
/// Bytes that a message costs besides its content.
const MESSAGE_OVERHEAD_BYTES: usize = 64;
/// Minimum time between two status updates with a new LSN.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which the server must reply, whether or not there is something new to report.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);
/// Default limit of the time without a message from the server.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(60);

/// One message of the stream.
#[derive(Debug)]
pub(super) enum Received {
    /// The server is alive; it has sent everything below `end`.
    KeepAlive { end: Lsn },
    /// A message of the output plugin.
    Data(Bytes),
}

struct Delivery {
    messages: VecDeque<Received>,
    /// Returned when all messages were processed.
    _bytes: OwnedSemaphorePermit,
}

/// A running task. Dropping it closes the connection.
pub(super) struct Receiver {
    current: Option<Delivery>,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    acknowledged: watch::Sender<Lsn>,
    task: AbortOnDropHandle<SessionError>,
}

impl Receiver {
    /// Starts the task on the current runtime.
    pub(super) fn start(session: Session, from: Lsn, silence_max: Duration) -> Self {
        // Not limited in number: the semaphore limits the bytes, and every delivery costs some.
        let (send, deliveries) = mpsc::unbounded_channel();
        let (acknowledged, changed) = watch::channel(from);
        let now = Instant::now();
        let worker = Worker {
            session,
            deliveries: send,
            budget: Arc::new(Semaphore::new(usize::try_from(BUFFER_BYTES).unwrap_or(usize::MAX))),
            acknowledged: changed,
            reported: Lsn(0),
            reported_at: now,
            received_at: now,
            silence_max,
            clock: service::clock::system(),
        };
        Receiver {
            current: None,
            deliveries,
            acknowledged,
            task: AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(worker.run())),
        }
    }

    /// The next message; `None` if none arrives within `wait`.
    pub(super) async fn next(&mut self, wait: Duration) -> Result<Option<Received>, SessionError> {
        loop {
            if let Some(message) = self.current.as_mut().and_then(|delivery| delivery.messages.pop_front()) {
                return Ok(Some(message));
            }
            self.current = None;
            let delivery = match self.deliveries.try_recv() {
                Ok(delivery) => Some(delivery),
                Err(mpsc::error::TryRecvError::Empty) if wait.is_zero() => return Ok(None),
                Err(mpsc::error::TryRecvError::Empty) => {
                    match tokio::time::timeout(wait, self.deliveries.recv()).await {
                        Ok(delivery) => delivery,
                        Err(_) => return Ok(None),
                    }
                }
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            };
            match delivery {
                Some(delivery) => self.current = Some(delivery),
                None => {
                    return Err((&mut self.task)
                        .await
                        .unwrap_or_else(|e| SessionError::Io(io::Error::other(e))));
                }
            }
        }
    }

    pub(super) fn acknowledge(&self, lsn: Lsn) {
        self.acknowledged.send_if_modified(|current| {
            let is_later = lsn > *current;
            *current = lsn.max(*current);
            is_later
        });
    }
}

struct Worker {
    session: Session,
    deliveries: mpsc::UnboundedSender<Delivery>,
    budget: Arc<Semaphore>,
    acknowledged: watch::Receiver<Lsn>,
    /// The LSN of the last status update.
    reported: Lsn,
    reported_at: Instant,
    received_at: Instant,
    silence_max: Duration,
    clock: SharedClock,
}

impl Worker {
    async fn run(mut self) -> SessionError {
        loop {
            if let Err(error) = self.step().await {
                return error;
            }
        }
    }

    async fn step(&mut self) -> Result<(), SessionError> {
        self.deliver().await?;
        let silent_at = self.received_at + self.silence_max;
        let status_at = self.status_due();
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(status_at) => self.report().await,
            () = tokio::time::sleep_until(silent_at) => {
                let text = format!("the server sent nothing for {:?}, although a reply was requested", self.silence_max);
                Err(io::Error::new(io::ErrorKind::TimedOut, text).into())
            }
            read = self.session.fill() => {
                self.received_at = Instant::now();
                read
            }
            changed = self.acknowledged.changed() => {
                // The receiver was dropped, which aborts this task.
                changed.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe).into())
            }
        }
    }

    /// When the next status update is due.
    fn status_due(&mut self) -> Instant {
        let is_new = *self.acknowledged.borrow_and_update() > self.reported;
        self.reported_at + if is_new { STATUS_INTERVAL } else { PROBE_INTERVAL }
    }

    /// Passes on everything that was received completely.
    async fn deliver(&mut self) -> Result<(), SessionError> {
        loop {
            let (mut messages, mut bytes) = (VecDeque::new(), 0);
            while messages.len() < DELIVERY_MESSAGES_MAX {
                let Some(content) = self.session.received()? else { break };
                bytes += content.len() + MESSAGE_OVERHEAD_BYTES;
                let (message, wants_reply) = decode(content)?;
                messages.push_back(message);
                if wants_reply {
                    self.report().await?;
                }
            }
            if messages.is_empty() {
                return Ok(());
            }
            let permit = self.permit(bytes).await?;
            let delivery = Delivery {
                messages,
                _bytes: permit,
            };
            if self.deliveries.send(delivery).is_err() {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
            }
        }
    }

    /// Waits until the connector has processed enough. Meanwhile, status updates keep the connection alive.
    async fn permit(&mut self, bytes: usize) -> Result<OwnedSemaphorePermit, SessionError> {
        let count = u32::try_from(bytes).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        let mut waiting = std::pin::pin!(Arc::clone(&self.budget).acquire_many_owned(count));
        let mut has_waited = false;
        loop {
            let status_at = self.status_due();
            tokio::select! {
                biased;
                permit = &mut waiting => {
                    if has_waited {
                        // Nothing was read meanwhile, so the silence was not the server's.
                        self.received_at = Instant::now();
                    }
                    return permit.map_err(|e| SessionError::Io(io::Error::other(e)));
                }
                () = tokio::time::sleep_until(status_at) => {
                    has_waited = true;
                    self.report().await?;
                }
            }
        }
    }

    /// Sends a status update. It always asks for a reply, so that the silence of a server that is gone is noticed.
    async fn report(&mut self) -> Result<(), SessionError> {
        let lsn = *self.acknowledged.borrow_and_update();
        let mut status = Vec::with_capacity(34);
        status.push(b'r');
        for position in [lsn, lsn, lsn] {
            status.extend_from_slice(&position.0.to_be_bytes());
        }
        status.extend_from_slice(&since_2000_micros(self.clock.now_ms()).to_be_bytes());
        let since_received = self.received_at.elapsed();
        status.push(u8::from(since_received >= STATUS_INTERVAL));
        self.session.send_copy(&status).await?;
        (self.reported, self.reported_at) = (lsn, Instant::now());
        Ok(())
    }
}

/// Decodes a message of the streaming replication protocol; returns whether the server wants a reply.
fn decode(mut content: Bytes) -> Result<(Received, bool), SessionError> {
    // XLogData: start, end and time before the data. Keepalive: end, time, and whether to reply.
    const DATA_HEADER_BYTES: usize = 24;
    let kind = content.try_get_u8().map_err(|_| SessionError::Unexpected)?;
    match kind {
        b'w' if content.len() >= DATA_HEADER_BYTES => {
            content.advance(DATA_HEADER_BYTES);
            Ok((Received::Data(content), false))
        }
        b'k' if content.len() >= 17 => {
            let end = Lsn(content.get_u64());
            content.advance(8);
            Ok((Received::KeepAlive { end }, content.get_u8() != 0))
        }
        _ => Err(SessionError::Unexpected),
    }
}

/// A time in the protocol's unit: microseconds since 2000.
fn since_2000_micros(unix_ms: i64) -> i64 {
    const YEAR_2000_MS: i64 = 946_684_800_000;
    unix_ms.saturating_sub(YEAR_2000_MS).saturating_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A message of the stream in its frame.
    fn framed(content: &[u8]) -> Vec<u8> {
        let mut message = vec![b'd'];
        message.extend(u32::try_from(content.len() + 4).unwrap().to_be_bytes());
        message.extend(content);
        message
    }

    fn data(bytes: usize) -> Vec<u8> {
        let mut content = vec![0; 25 + bytes];
        content[0] = b'w';
        framed(&content)
    }

    #[tokio::test]
    async fn what_is_not_processed_is_limited_in_bytes_and_status_updates_continue() {
        const COUNT: usize = 40;
        let (client, server) = tokio::io::duplex(64 << 10);
        let mut receiver = Receiver::start(Session::over(client), Lsn(7), Duration::from_secs(60));
        let (mut from_client, mut to_client) = tokio::io::split(server);
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let writing = tokio::runtime::Handle::current().spawn(async move {
            for _ in 0..COUNT {
                to_client.write_all(&data(1 << 20)).await.unwrap();
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            // Keeps the connection open.
            to_client
        });
        // Two status updates arrive while nothing is processed.
        let mut status = [0; 39];
        for _ in 0..2 {
            from_client.read_exact(&mut status).await.unwrap();
            assert_eq!((status[0], status[5]), (b'd', b'r'));
            assert_eq!(status[6..14], 7_u64.to_be_bytes());
        }
        let ahead = sent.load(std::sync::atomic::Ordering::SeqCst);
        assert!((15..=18).contains(&ahead), "{ahead} messages of 1 MiB were accepted");
        for _ in 0..COUNT {
            let received = receiver.next(Duration::from_secs(10)).await.unwrap();
            assert!(matches!(received, Some(Received::Data(data)) if data.len() == 1 << 20));
        }
        drop(writing.await.unwrap());
    }

    #[tokio::test]
    async fn silent_server_ends_the_stream() {
        let (client, mut server) = tokio::io::duplex(64 << 10);
        let limit = Duration::from_millis(300);
        let mut receiver = Receiver::start(Session::over(client), Lsn(7), limit);
        server.write_all(&data(1)).await.unwrap();
        assert!(receiver.next(Duration::from_secs(10)).await.unwrap().is_some());
        match receiver.next(Duration::from_secs(10)).await {
            Err(SessionError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::TimedOut),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_of_the_stream_are_decoded_and_short_ones_are_errors() {
        let mut data = vec![b'w'];
        data.extend([0; 24]);
        data.extend(b"Rx");
        let (received, reply) = decode(Bytes::from(data)).unwrap();
        assert!(matches!(received, Received::Data(data) if &data[..] == b"Rx") && !reply);
        let mut alive = vec![b'k'];
        alive.extend(7_u64.to_be_bytes());
        alive.extend([0; 8]);
        alive.push(1);
        let (received, reply) = decode(Bytes::from(alive.clone())).unwrap();
        assert!(matches!(received, Received::KeepAlive { end: Lsn(7) }) && reply);
        for bad in [&b""[..], b"w", &alive[..12], b"x123"] {
            assert!(decode(Bytes::copy_from_slice(bad)).is_err());
        }
    }
}
