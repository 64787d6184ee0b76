//! The role `registry`: the listener of the embedded registry, with HTTP basic authentication.

use crate::config::{self, RegistryUser};
use anyhow::Result;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use registry::SharedRegistry;
use registry::rest::{self, CONTENT_TYPE};
use service::Tasks;
use service::listener::{Exposure, Limits, Listener, TlsConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The listener of the embedded registry.
pub struct RegistryListener {
    listen: SocketAddr,
    tls: Option<TlsConfig>,
    insecure: bool,
    users: Vec<RegistryUser>,
}

impl RegistryListener {
    /// Creates a listener without users, on loopback.
    pub fn on(listen: SocketAddr) -> Self {
        Self {
            listen,
            tls: None,
            insecure: false,
            users: Vec::new(),
        }
    }

    /// Creates the configured listener.
    pub fn of(config: &config::Registry) -> Option<Self> {
        Some(Self {
            tls: config.tls.clone(),
            insecure: config.insecure,
            users: config.users.clone(),
            ..Self::on(config.listen?)
        })
    }

    /// Serves the registry as a task. Returns the bound address.
    pub fn start(self, tasks: &Tasks, registry: &SharedRegistry) -> Result<SocketAddr> {
        let exposure = Exposure {
            key: "registry",
            address: self.listen,
            authenticated: !self.users.is_empty(),
            fix: "add [[registry.users]]",
            tls: self.tls.is_some(),
            insecure: self.insecure,
        };
        exposure.check()?;
        let limits = Limits {
            drain: Duration::from_secs(2),
            ..Limits::default()
        };
        let listener = Listener::bind("registry", self.listen)?
            .tls(self.tls.as_ref())?
            .limits(limits);
        let address = listener.address();
        let mut routes = rest::router(registry.clone());
        if !self.users.is_empty() {
            let users: Arc<[String]> = self.users.iter().map(expected).collect();
            routes = routes.layer(middleware::from_fn_with_state(users, authenticate));
        }
        listener.serve(tasks, routes);
        Ok(address)
    }
}

/// The credentials that a client of this user sends after `Basic `.
fn expected(user: &RegistryUser) -> String {
    STANDARD.encode(format!("{}:{}", user.name, user.password.expose()))
}

async fn authenticate(State(users): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    if is_allowed(&users, request.headers()) {
        return next.run(request).await;
    }
    let headers = [
        (header::CONTENT_TYPE, CONTENT_TYPE),
        (
            header::WWW_AUTHENTICATE,
            "Basic realm=\"Trunkline schema registry\", charset=\"UTF-8\"",
        ),
    ];
    let body = r#"{"error_code":40101,"message":"Unauthorized; use a user of [[registry.users]]"}"#;
    (StatusCode::UNAUTHORIZED, headers, body).into_response()
}

fn is_allowed(users: &[String], headers: &HeaderMap) -> bool {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, given)) = value.and_then(|value| value.split_once(' ')) else {
        return false;
    };
    // Compare with all users, so that the duration does not reveal which of them exists.
    let same = |user: &&String| service::access::equal_in_constant_time(user, given.trim());
    scheme.eq_ignore_ascii_case("basic") && users.iter().filter(same).count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use service::Secret;

    #[test]
    fn only_users_with_their_password_are_allowed() {
        let user = RegistryUser {
            name: "backend".to_owned(),
            password: Secret::new("s3cret"),
        };
        let users = [expected(&user)];
        let check = |value: &str| {
            let value = HeaderValue::try_from(value).unwrap();
            is_allowed(&users, &[(header::AUTHORIZATION, value)].into_iter().collect())
        };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert!(check(&basic("backend:s3cret")));
        assert!(check(&basic("backend:s3cret").replace("Basic", "basic")));
        for other in ["backend:", "backend:s3cre", "backend:s3cret ", "other:s3cret", ""] {
            assert!(!check(&basic(other)), "{other}");
        }
        assert!(!check("Bearer s3cret"));
        assert!(!is_allowed(&users, &HeaderMap::new()));
    }
}
