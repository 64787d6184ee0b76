//! The admin listener: liveness, readiness, metrics, and the routes of the process for operators.
//!
//! `/healthz` responds while the process serves requests. `/readyz` is 503 while a component is not ready or the process
//! drains; clients with the role viewer also see each cause with the operator's next command. `/metrics` is Prometheus
//! text. Each route requires a role ([`routes`]). The listener binds to loopback unless configured otherwise, and to other
//! addresses only with tokens.

pub mod routes;

pub use routes::{Access, Endpoint, Parameter, Routes, Success};

use crate::access::{self, Caller, Role, TokenConfig, TokenError, Tokens};
use crate::listener::{self, Exposure, Limits, Listener, TlsConfig};
use crate::openapi::Api;
use crate::readiness::{Report, State};
use crate::telemetry::Metrics;
use crate::{Drain, Readiness, Tasks};
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const HEALTHY: &[Success] = &[Success::text(200, "It does", "text/plain")];
const READY: &[Success] = &[
    Success::json(200, "Ready", "Readiness"),
    Success::json(503, "Not ready", "Readiness"),
];
const METRICS: &[Success] = &[Success::text(200, "The metrics", "text/plain")];

/// Configuration of the admin listener.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// URL at which other processes reach the listener, such as `https://views-1:9464`. Default: the address that it
    /// listens on, unless that is the unspecified address.
    pub advertise: Option<String>,
    /// Tokens and their roles. Without tokens, the listener must be on loopback, and every client has the role admin.
    pub tokens: Vec<TokenConfig>,
    /// TLS.
    pub tls: Option<TlsConfig>,
    /// Allows an address beyond loopback without TLS.
    pub insecure: bool,
}

impl Config {
    /// Configuration of a listener without tokens.
    pub fn on(listen: SocketAddr) -> Self {
        Self {
            listen,
            advertise: None,
            tokens: Vec::new(),
            tls: None,
            insecure: false,
        }
    }

    /// The URL under which other processes reach the listener that is bound to `address`.
    pub fn url(&self, address: SocketAddr) -> Option<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let own = || (!address.ip().is_unspecified()).then(|| format!("{scheme}://{address}"));
        self.advertise
            .as_ref()
            .map(|url| url.trim_end_matches('/').to_owned())
            .or_else(own)
    }

    fn exposure(&self) -> Exposure {
        Exposure {
            key: "admin",
            address: self.listen,
            authenticated: !self.tokens.is_empty(),
            fix: "add [[admin.tokens]]",
            tls: self.tls.is_some(),
            insecure: self.insecure,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::on((Ipv4Addr::LOCALHOST, 9464).into())
    }
}

/// Error that prevents the admin listener from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The listener.
    #[error(transparent)]
    Listener(#[from] listener::Error),
    /// A token.
    #[error(transparent)]
    Tokens(#[from] TokenError),
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
    /// The routes that every process has.
    pub fn routes(&self) -> Routes {
        let healthz = Endpoint::get("/healthz", Access::Public)
            .summary("Whether the process serves requests")
            .answers(HEALTHY);
        let ready = Endpoint::get("/readyz", Access::Public)
            .summary("Whether all components are ready; with the role viewer also each cause and its fix")
            .answers(READY);
        let measured = Endpoint::get("/metrics", Access::Role(Role::Metrics))
            .summary("Metrics as Prometheus text")
            .answers(METRICS);
        Routes::new()
            .route(healthz, || async { "ok\n" }, ())
            .route(ready, readyz, self.clone())
            .route(measured, metrics, self.clone())
            .schema("Readiness", readiness_schema())
    }

    /// All routes of the listener: those of every process, `more`, and the document that describes them.
    pub fn all_routes(&self, more: Routes) -> Routes {
        let api = Api::with_tokens(
            "Trunkline admin",
            "Liveness, readiness, metrics, and requests of operators. `x-trunkline-role` is the minimum role of the token.",
        );
        self.routes().merge(more).described(&api)
    }

    /// Binds the listener and serves the routes and `more` as a task until the drain. Returns the bound address.
    ///
    /// # Errors
    /// The listener cannot be bound, is not protected, or a token cannot be used.
    pub fn serve(&self, tasks: &Tasks, config: &Config, more: Routes) -> Result<SocketAddr, Error> {
        config.exposure().check()?;
        let tokens = Arc::new(Tokens::load(&config.tokens)?);
        let limits = Limits {
            drain: Duration::from_secs(2),
            ..Limits::default()
        };
        let listener = Listener::bind("admin", config.listen)?
            .tls(config.tls.as_ref())?
            .limits(limits);
        let address = listener.address();
        if tokens.has_files() {
            let reloaded = Arc::clone(&tokens);
            let reload = access::reload_tokens("admin", tasks.drain(), move || reloaded.reload());
            tasks.spawn("admin-tokens", reload);
        }
        listener.serve(tasks, self.all_routes(more).protected(tokens));
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
                fix: Some("none; the process received a signal or a task failed, see the log".to_owned()),
                detail: None,
            });
        }
        report
    }
}

fn readiness_schema() -> serde_json::Value {
    let text = || serde_json::json!({ "type": "string" });
    let component = serde_json::json!({
        "type": "object",
        "required": ["name", "ready"],
        "properties": {
            "name": text(), "ready": { "type": "boolean" }, "cause": text(), "fix": text(), "detail": text(),
        },
    });
    serde_json::json!({
        "type": "object",
        "required": ["ready"],
        "properties": {
            "ready": { "type": "boolean" },
            "components": { "type": "array", "items": component, "description": "Only with the role viewer" },
        },
    })
}

/// Probes without a token see only the status, because causes contain addresses and names.
async fn readyz(Shared(admin): Shared<Admin>, caller: Option<Extension<Caller>>) -> Response {
    let report = admin.report();
    let status = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let is_viewer = caller.is_some_and(|Extension(caller)| caller.role >= Role::Viewer);
    if is_viewer {
        (status, Json(report)).into_response()
    } else {
        (status, Json(serde_json::json!({ "ready": report.ready }))).into_response()
    }
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
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
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
        let config = Config::on((Ipv4Addr::LOCALHOST, 0).into());
        let more = Endpoint::get("/more", Access::Role(Role::Operator));
        let more = Routes::new().route(more, || async { "more" }, ());
        let address = admin.serve(&tasks, &config, more).unwrap();

        let log = admin.readiness.register("log");
        log.not_ready("no broker answers at 127.0.0.1:9092", "trunkline doctor");
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let red = get(address, "/readyz").await;
        assert!(red.starts_with("HTTP/1.1 503"), "{red}");
        let body = r#"{"ready":false,"components":[{"name":"log","ready":false,"cause":"no broker answers at 127.0.0.1:9092","fix":"trunkline doctor"}]}"#;
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
