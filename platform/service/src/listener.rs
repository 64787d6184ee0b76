//! HTTP listeners: TLS with certificate reload, limits on each phase of a connection, and a graceful drain.
//!
//! All listeners of a process use this module. A connection is closed if its TLS handshake, a request head, a request
//! body or the reading of a response takes too long, or if it is idle for too long; see [`Limits`]. Each listener has a
//! share of the process's file descriptors, so that the clients of one listener cannot use up the descriptors of
//! another.
//!
//! When the drain starts, the socket is closed, requests in progress are answered and idle connections are closed.
//! Connections that are still open after [`Limits::drain`] are aborted. No task outlives [`Listener::run`].

mod activity;
pub mod bodies;
mod connection;
pub mod descriptors;
mod error;
mod exposure;
mod limits;
mod peer;
mod tls;

pub use bodies::is_body_timeout;
pub use error::{Error, TlsError};
pub use exposure::{Exposure, is_loopback};
pub use limits::Limits;
pub use peer::Peer;
pub use tls::TlsConfig;

use crate::{Drain, Tasks, chain};
use axum::Router;
use connection::Connections;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tls::{Reload, Tls};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Length of the queue of connections that are not accepted yet. The kernel limits it to `net.core.somaxconn`, 4,096 by
/// default. If the queue is short and many clients connect at the same time, some of them must retransmit their SYN,
/// which takes at least 1 s.
const BACKLOG: u32 = 4_096;
/// Pause after a failed accept. "Too many open files" persists, and a loop without a pause would use a whole core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Interval at which the files of the TLS configuration are checked for changes.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// A bound listener.
pub struct Listener {
    key: &'static str,
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    limits: Limits,
    reload_interval: Duration,
}

impl Listener {
    /// Binds a TCP socket. `key` is the table of the configuration; it is also the listener's name in logs and metrics.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub fn bind(key: &'static str, address: SocketAddr) -> Result<Self, Error> {
        let socket = listen(address).map_err(|source| Error::Bind { address, source })?;
        let address = socket.local_addr().map_err(|source| Error::Bind { address, source })?;
        Ok(Self {
            key,
            socket,
            address,
            tls: None,
            limits: Limits::default(),
            reload_interval: RELOAD_INTERVAL,
        })
    }

    /// Uses TLS if `tls` is not `None`.
    ///
    /// # Errors
    /// [`Error::Tls`].
    pub fn tls(mut self, config: Option<&TlsConfig>) -> Result<Self, Error> {
        let key = self.key;
        let failed = |source| Error::Tls {
            key,
            source: Box::new(source),
        };
        self.tls = config
            .map(|files| Tls::load(files).map(Arc::new))
            .transpose()
            .map_err(failed)?;
        Ok(self)
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves routes as a task until the drain.
    pub fn serve(self, tasks: &Tasks, routes: Router) {
        let (name, drain) = (format!("{}-listener", self.key), tasks.drain());
        tasks.spawn(name, self.run(routes, drain));
    }

    /// Serves routes until `drain` starts, then until the connections have ended or [`Limits::drain`] has elapsed.
    pub async fn run(self, routes: Router, drain: Drain) {
        let allowed = self.limits.connections_here();
        if allowed < self.limits.connections {
            let wanted = self.limits.connections;
            tracing::info!(
                listener = self.key,
                wanted,
                allowed,
                "fewer connections because of the limit of open files"
            );
        }
        let slots = Arc::new(Semaphore::new(allowed));
        let tls = self.tls.clone();
        let connections = Connections::new(self.key, self.limits, tls, routes, drain.clone());
        let connections = Arc::new(connections);
        if let Some(tls) = &self.tls {
            let reload = reload_on_change(self.key, Arc::clone(tls), self.reload_interval, drain.clone());
            connections.tasks().spawn(reload);
        }
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.started() => break,
                accepted = accept(&self.socket, &slots) => accepted,
            };
            match accepted {
                Ok((stream, address, slot)) => {
                    failing = false;
                    let (key, all) = (self.key, Arc::clone(&connections));
                    connections.tasks().spawn(async move {
                        let _open = Open::new(key, slot);
                        all.serve(stream, address).await;
                    });
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(listener = self.key, %error, "accept failed, retrying");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.socket);
        let left = connections.tasks().end(self.limits.drain).await;
        if left > 0 {
            tracing::warn!(listener = self.key, left, "drain timed out, connections aborted");
        }
    }
}

/// Reads the files of the TLS configuration again when they change, until the drain starts. Connections are accepted
/// meanwhile, because reading a file may block, for example on a network file system.
async fn reload_on_change(listener: &'static str, tls: Arc<Tls>, interval: Duration, drain: Drain) {
    let mut interval = tokio::time::interval(interval);
    loop {
        let check = async {
            interval.tick().await;
            reload(listener, Arc::clone(&tls)).await;
        };
        tokio::select! {
            biased;
            () = drain.started() => return,
            () = check => {}
        }
    }
}

async fn reload(listener: &'static str, tls: Arc<Tls>) {
    match tokio::task::spawn_blocking(move || tls.reload()).await {
        Ok(Ok(Reload::Reloaded)) => tracing::info!(listener, "TLS certificate reloaded"),
        Ok(Ok(Reload::Unchanged)) | Err(_) => {}
        Ok(Err(error)) => {
            metrics::counter!("trunkline_listener_reload_failures_total", "listener" => listener).increment(1);
            let cause = chain(&error);
            tracing::warn!(listener, %cause, "TLS certificate not reloaded, the previous one stays in use");
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // With SO_REUSEADDR, as in the standard library, a restarted process can bind while connections of its predecessor
    // are in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(
    socket: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    let (stream, address) = socket.accept().await?;
    // This fails if the client has already reset the connection, which is detected when the connection is served.
    drop(stream.set_nodelay(true));
    Ok((stream, address, slot))
}

/// Guard of an open connection: until it is dropped, the connection is counted in the metrics and occupies a slot.
struct Open {
    listener: &'static str,
    _slot: OwnedSemaphorePermit,
}

impl Open {
    fn new(listener: &'static str, slot: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("trunkline_listener_connections", "listener" => listener).increment(1.0);
        Self { listener, _slot: slot }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("trunkline_listener_connections", "listener" => self.listener).decrement(1.0);
    }
}

#[cfg(test)]
mod tests;
