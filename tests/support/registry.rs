//! Registries for tests: a REST server for any registry, a client, and an embedded log in which schemas are stored.

use registry::remote::{Config, Remote};
use registry::{SharedRegistry, rest};
use std::sync::Arc;

/// A registry's REST API on a free port; dropping it stops the server.
pub struct Served {
    /// Base URL.
    pub url: String,
    runtime: Option<tokio::runtime::Runtime>,
}

/// Serves a registry with Confluent's REST API.
pub fn serve(registry: SharedRegistry) -> Served {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    runtime.spawn(async move { axum::serve(listener, rest::router(registry)).await });
    Served {
        url,
        runtime: Some(runtime),
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A client of a registry at a URL.
pub fn remote(url: &str) -> SharedRegistry {
    Arc::new(Remote::new(Config::new(url)).expect("a usable URL"))
}

/// An embedded log in memory.
pub fn memory_log() -> event_log::SharedEventLog {
    let clock: event_log::embedded::Clock = Arc::new(|| 1_732_390_000_000);
    event_log::embedded::EmbeddedLog::open(event_log::embedded::Config::new(None, clock)).expect("a log in memory")
}
