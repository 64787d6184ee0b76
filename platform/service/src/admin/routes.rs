//! Routes of a listener, each with the access that it requires.
//!
//! Each route must be added with its [`Endpoint`]. [`Routes::endpoints`] lists all routes, for tests and for the OpenAPI
//! document.

pub(crate) mod endpoint;

pub use endpoint::{Access, Endpoint, Parameter, Success};

use crate::access::{Caller, Role, Tokens};
use crate::audit::Audit;
use crate::http::{bearer, is_local, method_not_allowed, not_found};
use crate::openapi::Api;
use crate::{Problem, problem};
use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, on};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Path of the document that describes a listener's routes.
pub const OPENAPI: &str = "/openapi.json";

const DOCUMENT: &[Success] = &[Success::text(200, "The document", "application/json")];

/// Routes with their access.
#[derive(Default)]
pub struct Routes {
    router: Router,
    endpoints: Vec<Endpoint>,
    /// JSON schemas of bodies by name, for the document.
    schemas: Map<String, Value>,
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
            let path = endpoint.path;
            route = route.route_layer(from_fn(move |request: Request, next: Next| {
                require(Required { role, path }, request, next)
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
        self.schemas.extend(other.schemas);
        self
    }

    /// Changes the router of the routes that were added so far, such as by adding a layer.
    #[must_use]
    pub fn layered(mut self, change: impl FnOnce(Router) -> Router) -> Self {
        self.router = change(self.router);
        self
    }

    /// Adds the JSON schema of a body, to which endpoints refer by its name.
    #[must_use]
    pub fn schema(mut self, name: &str, schema: Value) -> Self {
        self.schemas.insert(name.to_owned(), schema);
        self
    }

    /// Adds the public route `GET /openapi.json`, which describes all routes.
    #[must_use]
    pub fn described(self, api: &Api) -> Self {
        let own = Endpoint::get(OPENAPI, Access::Public)
            .summary("Get this document")
            .answers(DOCUMENT);
        let endpoints: Vec<Endpoint> = self.endpoints.iter().cloned().chain([own.clone()]).collect();
        let document: Arc<str> = api.document(&endpoints, &self.schemas).to_string().into();
        let send = move || async move { ([(header::CONTENT_TYPE, "application/json")], document.to_string()) };
        self.route(own, send, ())
    }

    /// All routes.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Returns the router, which does not check the access of clients.
    pub fn router(self) -> Router {
        self.router
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

/// What a route requires.
#[derive(Debug, Clone, Copy)]
struct Required {
    role: Role,
    path: &'static str,
}

/// Rejects a request of a client without the role, and records the request.
async fn require(required: Required, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let caller = request.extensions().get::<Caller>().cloned();
    let response = match &caller {
        None => {
            let anonymous = request.extensions().get::<Anonymous>().copied();
            reject(anonymous.unwrap_or(Anonymous::TokenMissing))
        }
        Some(caller) => match caller.check(required.role) {
            Err(problem) => problem.into_response(),
            Ok(()) => next.run(request).await,
        },
    };
    let is_rejected = matches!(response.status().as_u16(), 401 | 403);
    Audit {
        listener: "admin",
        credential: caller.as_ref().map(|caller| &*caller.name),
        method: &method,
        path: &path,
        status: response.status(),
    }
    .record(required.role > Role::Viewer || is_rejected, required.path);
    response
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
