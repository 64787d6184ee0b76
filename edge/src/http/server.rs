//! Connection handling: HTTP/1.1 and h2c on one listener, with a connection limit and a graceful drain.
//!
//! When the drain starts, the listener is closed, requests in progress are answered and idle connections are closed.
//! Connections that are left after `drain_s` are aborted. No task outlives [`serve`].

use crate::config::Limits;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use service::Drain;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// Maximum time to receive a request head, and thus the maximum idle time of a connection. Longer than the interval
/// between two polls, so that devices reuse their connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Interval and timeout of HTTP/2 keep-alive pings. Detects devices that lost their network.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Maximum concurrent requests per HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// Maximum bytes of an HTTP/2 request head.
const HEAD_BYTES_MAX: u32 = 32 * 1024;
/// Pause after a failed accept. "Too many open files" persists, and a loop without a pause would use a whole core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until `drain` starts, and then until they have ended or `drain_s` has elapsed.
pub async fn serve(listener: TcpListener, router: Router, limits: &Limits, drain: Drain) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let builder = Arc::new(builder());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.started() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, slot)) => {
                let connection = connection(builder.clone(), stream, router.clone(), drain.clone(), slot);
                connections.spawn(connection);
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let left = connections.len();
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(limits.drain_s), ended)
        .await
        .is_err()
    {
        tracing::warn!(left, "drain timed out, aborting connections");
        connections.shutdown().await;
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX);
    builder
}

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, slot))
}

async fn connection(
    builder: Arc<Builder<TokioExecutor>>,
    stream: TcpStream,
    router: Router,
    drain: Drain,
    _slot: OwnedSemaphorePermit,
) {
    metrics::gauge!("trunkline_edge_connections").increment(1.0);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = drain.started() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        // Not a warning: mobile devices lose connections all the time.
        tracing::debug!(error, "connection failed");
    }
    metrics::gauge!("trunkline_edge_connections").decrement(1.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// Starts a server whose handler reports the arrival of a request and responds when the drain starts, or never.
    async fn serving(answers: bool, drain_s: u64) -> (TcpStream, mpsc::Receiver<()>, Drain, JoinSet<()>) {
        let (drain, (arrived, arrivals)) = (Drain::new(), mpsc::channel(8));
        let waits = drain.clone();
        let wait = move || {
            let (arrived, waits) = (arrived.clone(), waits.clone());
            async move {
                arrived.send(()).await.unwrap();
                waits.started().await;
                if !answers {
                    std::future::pending::<()>().await;
                }
                "answered"
            }
        };
        let listener = service::http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (router, limits) = (
            Router::new().route("/", get(wait)),
            Limits {
                drain_s,
                ..Limits::default()
            },
        );
        let (mut task, drains) = (JoinSet::new(), drain.clone());
        task.spawn(async move { serve(listener, router, &limits, drains).await });
        (stream, arrivals, drain, task)
    }

    #[tokio::test]
    async fn drain_answers_requests_and_closes_idle_connections() {
        let (mut stream, mut arrivals, drain, task) = serving(true, 60).await;
        let mut idle = TcpStream::connect(stream.peer_addr().unwrap()).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        arrivals.recv().await.unwrap();
        drain.start();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("answered"),
            "{answer}"
        );
        task.join_all().await;
        // Closed, or reset if it had not been accepted yet.
        assert!(!matches!(idle.read(&mut [0; 8]).await, Ok(1..)));
        assert!(TcpStream::connect(idle.peer_addr().unwrap()).await.is_err());
    }

    #[tokio::test]
    async fn drain_timeout_aborts_connections() {
        let (mut stream, mut arrivals, drain, task) = serving(false, 0).await;
        stream.write_all(REQUEST).await.unwrap();
        arrivals.recv().await.unwrap();
        drain.start();
        task.join_all().await;
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer).await);
        assert_eq!(answer, "");
    }
}
