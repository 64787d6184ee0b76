//! Serves one connection: TLS handshake, HTTP/1.1 or HTTP/2, limits and drain.

use super::activity::{Activity, Expired};
use super::bodies::{RequestBody, ResponseBody};
use super::limits::Limits;
use super::peer::Peer;
use super::tls::Tls;
use crate::{Drain, Problem, problem};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

/// Interval and timeout of HTTP/2 keep-alive pings. Detects clients that lost their network.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Time for an idle HTTP/2 connection to end after GOAWAY, and for requests that crossed it.
const GOAWAY_LIMIT: Duration = Duration::from_secs(2);

/// State that all connections of a listener share.
pub(super) struct Connections {
    name: &'static str,
    limits: Limits,
    tls: Option<Arc<Tls>>,
    routes: Router,
    http: Builder<Tracked>,
    drain: Drain,
    tasks: Tracked,
}

/// Tasks of connections, including those of HTTP/2 streams. All of them end when they are aborted.
#[derive(Clone, Default)]
pub(super) struct Tracked {
    tasks: TaskTracker,
    abort: CancellationToken,
}

impl Tracked {
    pub(super) fn spawn(&self, task: impl Future<Output: Send> + Send + 'static) {
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = abort.cancelled() => {}
                _ = task => {}
            }
        });
    }

    /// Waits up to `limit` for all tasks, then aborts the remaining ones. Returns the number of aborted tasks.
    pub(super) async fn end(&self, limit: Duration) -> usize {
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let left = self.tasks.len();
        self.abort.cancel();
        self.tasks.wait().await;
        left
    }
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Tracked {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

impl Connections {
    pub(super) fn new(name: &'static str, limits: Limits, tls: Option<Arc<Tls>>, routes: Router, drain: Drain) -> Self {
        let tasks = Tracked::default();
        let mut http = Builder::new(tasks.clone());
        let head_bytes = usize::try_from(limits.head_bytes).unwrap_or(usize::MAX);
        http.http1()
            .timer(TokioTimer::new())
            // `Activity` limits the time for the head, and distinguishes it from the time between two requests.
            .header_read_timeout(None)
            .max_buf_size(head_bytes);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL)
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.head_bytes);
        Self {
            name,
            limits,
            tls,
            routes,
            http,
            drain,
            tasks,
        }
    }

    pub(super) fn tasks(&self) -> &Tracked {
        &self.tasks
    }

    /// Serves a connection until it ends or exceeds a limit.
    pub(super) async fn serve(&self, stream: TcpStream, address: SocketAddr) {
        let Some(tls) = &self.tls else {
            return self.serve_http(stream, Peer::plain(address)).await;
        };
        let handshake = TlsAcceptor::from(tls.current()).accept(stream);
        match tokio::time::timeout(self.limits.handshake, handshake).await {
            Ok(Ok(stream)) => {
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let peer = Peer::new(address, certificate.cloned());
                self.serve_http(stream, peer).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(listener = self.name, %address, %error, "TLS handshake failed");
                self.count_closed("handshake_failed");
            }
            Err(_) => self.count_closed("handshake_timeout"),
        }
    }

    async fn serve_http<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Activity::new(self.limits);
        let stream = Observed {
            stream,
            activity: Arc::clone(&activity),
        };
        let handler = Handler {
            limits: self.limits,
            routes: self.routes.clone(),
            activity: Arc::clone(&activity),
            peer: peer.clone(),
        };
        let service = hyper::service::service_fn(move |request| handler.clone().handle(request));
        let mut served = pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let mut expired = pin!(activity.expired());
        let mut draining = false;
        loop {
            tokio::select! {
                ended = served.as_mut() => {
                    if let Err(error) = ended {
                        // This is not a warning, because clients lose connections frequently.
                        tracing::debug!(listener = self.name, address = %peer.address, error, "connection failed");
                    }
                    return;
                }
                expired = expired.as_mut() => {
                    self.count_closed(expired.label());
                    if expired == Expired::Idle && !draining {
                        // GOAWAY tells an HTTP/2 client that a request that it sends now was not processed, so that it
                        // repeats the request on another connection.
                        served.as_mut().graceful_shutdown();
                        drop(tokio::time::timeout(GOAWAY_LIMIT, served.as_mut()).await);
                    }
                    return;
                }
                () = self.drain.started(), if !draining => {
                    draining = true;
                    served.as_mut().graceful_shutdown();
                }
            }
        }
    }

    fn count_closed(&self, reason: &'static str) {
        metrics::counter!("trunkline_listener_closed_total", "listener" => self.name, "reason" => reason).increment(1);
    }
}

/// Handles the requests of a connection.
#[derive(Clone)]
struct Handler {
    limits: Limits,
    routes: Router,
    activity: Arc<Activity>,
    peer: Peer,
}

impl Handler {
    async fn handle(mut self, request: hyper::Request<Incoming>) -> Result<Response, Infallible> {
        let in_flight = self.activity.begin(request.version());
        let limit = self.limits.body;
        let mut request: Request = request.map(|body| RequestBody::wrap(body, limit));
        request.extensions_mut().insert(self.peer);
        let response = self.routes.call(request);
        let response = match self.limits.response {
            None => response.await?,
            Some(limit) => match tokio::time::timeout(limit, response).await {
                Ok(response) => response?,
                Err(_) => timed_out().into_response(),
            },
        };
        Ok(response.map(|body: Body| ResponseBody::wrap(body, in_flight)))
    }
}

fn timed_out() -> Problem {
    problem::TIMEOUT
        .detail("the request took too long; retry")
        .retry_after(1)
}

/// A stream that records when bytes arrive.
struct Observed<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() && buffer.filled().len() > before {
            self.activity.received();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
