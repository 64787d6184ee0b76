//! A small HTTP server that drains.
//!
//! Guarantees: it stops accepting when the drain starts, lets requests in progress end, and cuts what is left after a
//! limit.
//! Never: TLS; what listens beyond this machine brings its own.

use crate::Tasks;
use axum::Router;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be listened on.
    #[error("listen on {address}; another process may have it, or it is not an address of this machine")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// Listens on an address.
///
/// # Errors
/// [`Error::Bind`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Bind { address, source })
}

/// Serves routes as a task until the drain, and then for `limit` at most.
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
    async fn a_request_in_progress_ends_after_the_drain_began() {
        let tasks = Tasks::new();
        let drain = tasks.drain();
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let mut stream = ask(&listener).await;
        // The answer comes only after the drain has started.
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
    async fn a_request_that_never_ends_is_cut() {
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
    async fn an_address_that_is_taken_is_named() {
        let first = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
