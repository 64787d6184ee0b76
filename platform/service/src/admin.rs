//! The admin listener: liveness, readiness and metrics.
//!
//! `/healthz` responds while the process serves requests. `/readyz` is 503 while a component is not ready or the
//! process drains, and names each cause and the command that the operator should run next. `/metrics` is Prometheus
//! text. The listener binds to loopback unless configured otherwise.

use crate::http::{self, Error};
use crate::readiness::{Report, State};
use crate::telemetry::Metrics;
use crate::{Drain, Readiness, Tasks};
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How long a response may still take after the drain has started.
const DRAIN: Duration = Duration::from_secs(2);

/// Configuration of the admin listener.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// URL under which other processes reach the listener, such as `http://views-1:9464`. Default: the address that it
    /// listens on, unless that is the unspecified address.
    pub advertise: Option<String>,
}

impl Config {
    /// The URL under which other processes reach the listener that is bound to `address`.
    pub fn url(&self, address: SocketAddr) -> Option<String> {
        let own = || (!address.ip().is_unspecified()).then(|| format!("http://{address}"));
        self.advertise
            .as_ref()
            .map(|url| url.trim_end_matches('/').to_owned())
            .or_else(own)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 9464).into(),
            advertise: None,
        }
    }
}

/// State of the routes.
#[derive(Clone)]
pub struct Admin {
    /// The process's components.
    pub readiness: Readiness,
    /// The process's metrics.
    pub metrics: Metrics,
    /// The process's drain. A draining process is not ready.
    pub drain: Drain,
}

impl Admin {
    /// The routes, to be merged with others.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self.clone())
    }

    /// Binds the listener and serves the routes and `more` as a task until the drain. Returns the bound address.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub async fn serve(&self, tasks: &Tasks, config: &Config, more: Router) -> Result<SocketAddr, Error> {
        let listener = http::bind(config.listen).await?;
        let address = listener.local_addr().map_err(|source| Error::Bind {
            address: config.listen,
            source,
        })?;
        http::serve(tasks, "admin", listener, self.router().merge(more), DRAIN);
        Ok(address)
    }

    fn report(&self) -> Report {
        let mut report = self.readiness.report();
        if self.drain.is_draining() {
            report.ready = false;
            report.components.push(State {
                name: "process".to_owned(),
                ready: false,
                cause: Some("draining".to_owned()),
                next_command: Some("none; the process received a signal or a task failed, see the log".to_owned()),
            });
        }
        report
    }
}

async fn readyz(Shared(admin): Shared<Admin>) -> impl IntoResponse {
    let report = admin.report();
    let status = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(report))
}

async fn metrics(Shared(admin): Shared<Admin>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        admin.metrics.render(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn routes_report_liveness_readiness_and_metrics() {
        let tasks = Tasks::new();
        let admin = Admin {
            readiness: Readiness::new(),
            metrics: telemetry::metrics(),
            drain: tasks.drain(),
        };
        let config = Config {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: None,
        };
        let more = Router::new().route("/more", axum::routing::get(|| async { "more" }));
        let address = admin.serve(&tasks, &config, more).await.unwrap();

        let log = admin.readiness.register("log");
        log.not_ready("no broker answers at 127.0.0.1:9092", "trunkline doctor");
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let red = get(address, "/readyz").await;
        assert!(red.starts_with("HTTP/1.1 503"), "{red}");
        let body = r#"{"ready":false,"components":[{"name":"log","ready":false,"cause":"no broker answers at 127.0.0.1:9092","next_command":"trunkline doctor"}]}"#;
        assert!(red.ends_with(body), "{red}");

        log.ready();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/more").await.ends_with("more"));
        metrics::counter!("trunkline_test_total", "kind" => "routes").increment(3);
        let numbers = get(address, "/metrics").await;
        assert!(numbers.contains("trunkline_test_total{kind=\"routes\"} 3"), "{numbers}");
        assert!(numbers.contains("process_resident_memory_bytes "), "{numbers}");

        tasks.drain().start();
        assert!(!admin.report().ready, "a draining process is not ready");
        tasks.join(Duration::from_secs(10)).await.unwrap();
    }
}
