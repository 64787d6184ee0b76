//! Connections: HTTP/1.1 and h2c on one listener, a limit on their number, and a drain.
//!
//! Guarantees: when the drain begins no connection is accepted any more, requests under way are answered, idle
//! connections are closed; after the drain's time what is left is cut off, and `serve` returns.
//! Never: a task that outlives `serve`.

use crate::config::Limits;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use process::Drain;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// How long a connection may be idle, or take to send a request's head: more than the time between two polls.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How often an HTTP/2 peer is asked whether it is still there, and how long it has to answer.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Requests that one HTTP/2 connection may have under way.
const STREAMS_MAX: u32 = 128;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: u32 = 32 * 1024;
/// Pause after an error of accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until `drain`, and then until they have ended or the drain's time is over.
pub async fn serve(listener: TcpListener, router: Router, limits: &Limits, drain: Drain) {
    let seats = Arc::new(Semaphore::new(limits.connections_max));
    let builder = Arc::new(builder());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.started() => break,
            accepted = accept(&listener, &seats) => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, seat)) => {
                let connection = connection(builder.clone(), stream, router.clone(), drain.clone(), seat);
                connections.spawn(connection);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
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
        tracing::warn!(left, "connections did not end within the drain's time and are cut off");
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
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX);
    builder
}

async fn accept(listener: &TcpListener, seats: &Arc<Semaphore>) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let seat = seats
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, seat))
}

async fn connection(
    builder: Arc<Builder<TokioExecutor>>,
    stream: TcpStream,
    router: Router,
    drain: Drain,
    _seat: OwnedSemaphorePermit,
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
        // Devices come and go; a connection that breaks is nobody's fault here.
        tracing::debug!(error, "a connection ended with an error");
    }
    metrics::gauge!("trunkline_edge_connections").decrement(1.0);
}
