//! The role `registry`: the listener of the embedded registry, with HTTP basic authentication.

use crate::config::{self, RegistryUser};
use anyhow::Result;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use registry::SharedRegistry;
use registry::rest::{self, CONTENT_TYPE};
use service::Tasks;
use service::admin::routes::OPENAPI;
use service::audit::Audit;
use service::http::is_local;
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
        let users: Arc<[User]> = self.users.iter().map(User::of).collect();
        let routes = rest::router(registry.clone()).layer(middleware::from_fn_with_state(users, admit));
        listener.serve(tasks, routes);
        Ok(address)
    }
}

/// A user that may use the registry.
struct User {
    name: String,
    /// What a client of this user sends after `Basic `.
    credentials: String,
}

impl User {
    fn of(user: &RegistryUser) -> Self {
        Self {
            name: user.name.clone(),
            credentials: STANDARD.encode(format!("{}:{}", user.name, user.password.expose())),
        }
    }
}

/// Admits requests of users, or without users, requests to a local host. Records what they change.
async fn admit(State(users): State<Arc<[User]>>, request: Request, next: Next) -> Response {
    let is_document = request.uri().path() == OPENAPI;
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let user = find(&users, request.headers());
    let response = if users.is_empty() && !is_local(request.headers(), request.uri()) {
        let message = "the header Host is a domain name; use 127.0.0.1 or localhost, or configure [[registry.users]]";
        failure(StatusCode::FORBIDDEN, 40301, message)
    } else if users.is_empty() || user.is_some() || is_document {
        next.run(request).await
    } else {
        let mut response = failure(
            StatusCode::UNAUTHORIZED,
            40101,
            "Unauthorized; use a user of [[registry.users]]",
        );
        let challenge = HeaderValue::from_static("Basic realm=\"Trunkline schema registry\", charset=\"UTF-8\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        response
    };
    let is_change = method != Method::GET && method != Method::HEAD;
    let is_rejected = matches!(response.status().as_u16(), 401 | 403);
    Audit {
        listener: "registry",
        credential: user.map(|user| user.name.as_str()),
        method: &method,
        path: &path,
        status: response.status(),
    }
    .record(is_change || is_rejected, if is_change { "change" } else { "read" });
    response
}

fn failure(status: StatusCode, code: u32, message: &str) -> Response {
    let body = serde_json::json!({ "error_code": code, "message": message });
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body.to_string()).into_response()
}

/// The user whose credentials the request contains.
fn find<'u>(users: &'u [User], headers: &HeaderMap) -> Option<&'u User> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, given) = value.and_then(|value| value.split_once(' '))?;
    // Compare with all users, so that the duration does not reveal which of them exists.
    let is_same = |user: &&User| service::access::equal_in_constant_time(&user.credentials, given.trim());
    let found = users
        .iter()
        .fold(None, |found, user| if is_same(&user) { Some(user) } else { found });
    found.filter(|_| scheme.eq_ignore_ascii_case("basic"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::Secret;
    use tower::ServiceExt as _;

    #[test]
    fn only_users_with_their_password_are_allowed() {
        let user = RegistryUser {
            name: "backend".to_owned(),
            password: Secret::new("s3cret"),
        };
        let users = [User::of(&user)];
        let check = |value: &str| {
            let value = HeaderValue::try_from(value).unwrap();
            find(&users, &[(header::AUTHORIZATION, value)].into_iter().collect()).is_some()
        };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert!(check(&basic("backend:s3cret")));
        assert!(check(&basic("backend:s3cret").replace("Basic", "basic")));
        for other in ["backend:", "backend:s3cre", "backend:s3cret ", "other:s3cret", ""] {
            assert!(!check(&basic(other)), "{other}");
        }
        assert!(!check("Bearer s3cret"));
        assert!(find(&users, &HeaderMap::new()).is_none());
    }

    /// Status of a request to the routes behind the check.
    async fn status(users: &[RegistryUser], request: axum::http::request::Builder) -> StatusCode {
        let users: Arc<[User]> = users.iter().map(User::of).collect();
        let routes = axum::Router::new()
            .route("/subjects", axum::routing::get(|| async { "[]" }))
            .route(OPENAPI, axum::routing::get(|| async { "{}" }))
            .layer(middleware::from_fn_with_state(users, admit));
        let request = request.body(axum::body::Body::empty()).unwrap();
        routes.oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn without_users_only_local_hosts_have_access() {
        let to = |host: &str| axum::http::Request::get("/subjects").header("host", host);
        assert_eq!(status(&[], to("127.0.0.1:8081")).await, StatusCode::OK);
        assert_eq!(status(&[], to("localhost:8081")).await, StatusCode::OK);
        assert_eq!(status(&[], to("rebind.example:8081")).await, StatusCode::FORBIDDEN);
        let users = [RegistryUser {
            name: "backend".to_owned(),
            password: Secret::new("s3cret"),
        }];
        let anonymous = to("registry.example:8081");
        assert_eq!(status(&users, anonymous).await, StatusCode::UNAUTHORIZED);
        let authorization = format!("Basic {}", STANDARD.encode("backend:s3cret"));
        let user = to("registry.example:8081").header("authorization", authorization);
        assert_eq!(status(&users, user).await, StatusCode::OK);
        assert_eq!(status(&users, axum::http::Request::get(OPENAPI)).await, StatusCode::OK);
    }
}
