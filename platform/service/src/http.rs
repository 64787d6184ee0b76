//! A minimal HTTP server without TLS that shuts down gracefully.
//!
//! It stops accepting connections when the drain starts, lets requests in progress finish, and closes the remaining
//! connections after a time limit.

use crate::Tasks;
use axum::Router;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Binding the address failed.
    #[error("cannot listen on {address}; another process may use it, or it is not an address of this machine")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// Binds a TCP listener.
///
/// # Errors
/// [`Error::Bind`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Bind { address, source })
}

/// Serves routes as a task until the drain, and requests in progress for up to `limit` after it.
pub fn serve(tasks: &Tasks, name: impl Into<String>, listener: TcpListener, routes: Router, limit: Duration) {
    let (drain, cut) = (tasks.drain(), tasks.drain());
    tasks.spawn(name, async move {
        let graceful = async move { drain.started().await };
        let service = routes.into_make_service_with_connect_info::<SocketAddr>();
        let serving = axum::serve(listener, service).with_graceful_shutdown(graceful);
        tokio::select! {
            ended = serving => ended,
            () = async { cut.started().await; tokio::time::sleep(limit).await } => Ok(()),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Drain;
    use axum::routing::get;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn ask(listener: &TcpListener) -> TcpStream {
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stream
    }

    #[tokio::test]
    async fn request_in_progress_finishes_during_the_drain() {
        let tasks = Tasks::new();
        let drain = tasks.drain();
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let mut stream = ask(&listener).await;
        // The response is sent only after the drain has started.
        let slow = move || {
            let drain: Drain = drain.clone();
            async move {
                drain.start();
                tokio::task::yield_now().await;
                "ended"
            }
        };
        serve(
            &tasks,
            "test",
            listener,
            Router::new().route("/", get(slow)),
            Duration::from_secs(60),
        );
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("ended"), "{answer}");
        tasks.join(Duration::from_secs(10)).await.unwrap();
    }

    #[tokio::test]
    async fn request_that_never_ends_is_closed() {
        let tasks = Tasks::new();
        let drain = tasks.drain();
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let mut stream = ask(&listener).await;
        let endless = move || {
            drain.start();
            std::future::pending::<&str>()
        };
        serve(
            &tasks,
            "test",
            listener,
            Router::new().route("/", get(endless)),
            Duration::from_millis(1),
        );
        tasks.idle().await;
        tasks.join(Duration::from_secs(10)).await.unwrap();
        drop(stream.shutdown().await);
    }

    #[tokio::test]
    async fn address_in_use_is_named() {
        let first = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
