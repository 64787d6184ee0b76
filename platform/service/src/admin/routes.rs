//! Routes of the admin listener, each with the role that it requires.
//!
//! Each route must be added with its [`Access`]. [`Routes::endpoints`] lists all routes for tests.

use crate::access::{Caller, Role, Tokens};
use crate::http::{bearer, method_not_allowed, not_found};
use crate::{Problem, problem};
use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use std::net::IpAddr;
use std::sync::Arc;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everyone. The response contains nothing that requires protection.
    Public,
    /// Clients with this role or a greater one.
    Role(Role),
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Method: `GET`, `POST`, `PUT` or `DELETE`.
    pub method: &'static str,
    /// Path, with parameters in braces.
    pub path: &'static str,
    /// Who may use the route.
    pub access: Access,
}

impl Endpoint {
    /// `GET` of a path.
    pub const fn get(path: &'static str, access: Access) -> Self {
        let method = "GET";
        Self { method, path, access }
    }

    /// `POST` to a path.
    pub const fn post(path: &'static str, access: Access) -> Self {
        let method = "POST";
        Self { method, path, access }
    }

    /// `PUT` of a path.
    pub const fn put(path: &'static str, access: Access) -> Self {
        let method = "PUT";
        Self { method, path, access }
    }

    /// `DELETE` of a path.
    pub const fn delete(path: &'static str, access: Access) -> Self {
        let method = "DELETE";
        Self { method, path, access }
    }

    fn filter(&self) -> MethodFilter {
        match self.method {
            "GET" => MethodFilter::GET,
            "POST" => MethodFilter::POST,
            "DELETE" => MethodFilter::DELETE,
            _ => MethodFilter::PUT,
        }
    }
}

/// Routes with their access.
#[derive(Default)]
pub struct Routes {
    router: Router,
    endpoints: Vec<Endpoint>,
}

impl Routes {
    /// No routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a route.
    #[must_use]
    pub fn route<H, T, S>(mut self, endpoint: Endpoint, handler: H, state: S) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
        S: Clone + Send + Sync + 'static,
    {
        let mut route: MethodRouter = on(endpoint.filter(), handler).with_state(state);
        if let Access::Role(role) = endpoint.access {
            route = route.route_layer(from_fn(move |request: Request, next: Next| {
                require(role, request, next)
            }));
        }
        self.router = self.router.route(endpoint.path, route);
        self.endpoints.push(endpoint);
        self
    }

    /// Adds routes.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.endpoints.extend(other.endpoints);
        self
    }

    /// All routes.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Returns the router. It identifies the client of each request before the route checks the role.
    pub fn protected(self, tokens: Arc<Tokens>) -> Router {
        self.router
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .layer(from_fn_with_state(tokens, identify))
    }
}

/// Why a request has no [`Caller`].
#[derive(Debug, Clone, Copy)]
enum Anonymous {
    TokenMissing,
    TokenInvalid,
    Host,
}

/// Determines the client that sent the request. Without configured tokens, every client has the role admin, because the
/// listener is on loopback.
async fn identify(State(tokens): State<Arc<Tokens>>, mut request: Request, next: Next) -> Response {
    let identified = if tokens.is_empty() {
        is_local(request.headers(), request.uri())
            .then(|| Caller {
                name: "local".into(),
                role: Role::Admin,
            })
            .ok_or(Anonymous::Host)
    } else {
        bearer(request.headers())
            .ok_or(Anonymous::TokenMissing)
            .and_then(|token| tokens.find(token).ok_or(Anonymous::TokenInvalid))
    };
    match identified {
        Ok(caller) => drop(request.extensions_mut().insert(caller)),
        Err(anonymous) => drop(request.extensions_mut().insert(anonymous)),
    }
    next.run(request).await
}

/// Whether the host of a request is an IP address or `localhost`. Protects against DNS rebinding: a web page of another
/// site could reach a listener on loopback through a domain name that resolves to 127.0.0.1, and would then have the
/// same origin.
fn is_local(headers: &HeaderMap, uri: &Uri) -> bool {
    let header = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = uri.authority().map(|authority| authority.as_str()).or(header);
    // Browsers always send the header `Host`.
    let Some(text) = authority else { return true };
    let Ok(host) = text.parse::<axum::http::uri::Authority>() else {
        return false;
    };
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Rejects a request of a client without the role.
async fn require(role: Role, request: Request, next: Next) -> Response {
    let Some(caller) = request.extensions().get::<Caller>() else {
        let anonymous = request.extensions().get::<Anonymous>().copied();
        return reject(anonymous.unwrap_or(Anonymous::TokenMissing));
    };
    if let Err(problem) = caller.check(role) {
        return problem.into_response();
    }
    next.run(request).await
}

impl Caller {
    /// Checks that the client has a role.
    ///
    /// # Errors
    /// 403 if the role of the client is smaller.
    pub fn check(&self, role: Role) -> Result<(), Box<Problem>> {
        if self.role >= role {
            return Ok(());
        }
        let (name, has, needs) = (&self.name, self.role.name(), role.name());
        let detail =
            format!("token `{name}` has the role {has}, but this request needs {needs}; use a token with that role");
        Err(Box::new(problem::FORBIDDEN.detail(detail)))
    }
}

fn reject(anonymous: Anonymous) -> Response {
    let (kind, detail, challenge) = match anonymous {
        Anonymous::Host => {
            let detail = "the header Host is a domain name; use 127.0.0.1 or localhost, or configure [[admin.tokens]]";
            return problem::FORBIDDEN.detail(detail).into_response();
        }
        Anonymous::TokenMissing => (
            problem::TOKEN_MISSING,
            "send `Authorization: Bearer TOKEN` with a token of [[admin.tokens]]",
            "Bearer",
        ),
        Anonymous::TokenInvalid => (
            problem::TOKEN_INVALID,
            "the token is not one of [[admin.tokens]]; it may have been replaced",
            "Bearer error=\"invalid_token\"",
        ),
    };
    let mut response = kind.detail(detail).into_response();
    let challenge = HeaderValue::from_static(challenge);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        let check = |host: &str| {
            let headers = [(header::HOST, HeaderValue::try_from(host).unwrap())]
                .into_iter()
                .collect();
            is_local(&headers, &Uri::from_static("/metrics"))
        };
        for local in [
            "127.0.0.1:8082",
            "localhost:8082",
            "LOCALHOST",
            "[::1]:8082",
            "10.0.0.5",
        ] {
            assert!(check(local), "{local}");
        }
        for other in ["rebind.example:8082", "127.0.0.1.example", "", "localhost.example"] {
            assert!(!check(other), "{other}");
        }
        assert!(is_local(&HeaderMap::new(), &Uri::from_static("/metrics")));
        assert!(!is_local(
            &HeaderMap::new(),
            &Uri::from_static("http://rebind.example/metrics")
        ));
    }
}
