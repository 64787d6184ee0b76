//! HTTP listener for backends: `POST /v1/ingest/{topic}` and `POST /v1/ingest/{topic}/deletions`.
//!
//! The URL contains a topic name without the prefix of the topology, so that backends post to the same URL in every
//! environment. A request to `event.<name>` contains one event or several; one to `change.<source>` contains one
//! transaction of an HTTP source. Status 200 means that the log has committed it. Errors are problem bodies (RFC 9457)
//! that name the JSON path and the reason. Devices use a separate listener.

mod access;
mod admission;
mod appender;
mod config;
mod counts;
mod endpoints;
mod events;
mod idempotency;
mod post;
mod rate_limit;
mod reply;
mod request;
mod state;
mod transaction;

pub use access::{Credential, CredentialError, Credentials};
pub use appender::Appender;
pub use config::{Config, ConfigError};
pub use rate_limit::Rate;
pub use state::{EventTopic, Ingest};

use admission::Admission;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use endpoints::{DELETE, POST, stored_schema};
use serde_json::json;
use service::admin::Routes;
use service::openapi::Api;
use state::Shared;
use std::sync::Arc;

impl Ingest {
    /// The routes.
    pub fn router(self) -> Router {
        self.routes()
            .router()
            .fallback(service::http::not_found)
            .method_not_allowed_fallback(service::http::method_not_allowed)
    }

    fn routes(self) -> Routes {
        let credentials = Arc::clone(&self.credentials);
        let limit = self.config.body_bytes_max;
        let state = Shared {
            admission: Admission::new(self.config.waiting_bytes_max, limit),
            ingest: Arc::new(self),
        };
        Routes::new()
            .route(POST, post::records, state.clone())
            .route(DELETE, post::deletions, state)
            .layered(|router| {
                router
                    .route_layer(DefaultBodyLimit::max(limit))
                    .route_layer(middleware::from_fn_with_state(credentials, access::authenticate))
            })
            .schema("Items", json!({ "description": "One event, or an array of events; or a transaction of a source" }))
            .schema("Keys", json!({ "description": "The key columns of one row as an object, or an array of objects" }))
            .schema("Stored", stored_schema())
            .described(&Api::with_tokens(
                "Trunkline ingest",
                "Backends post transactions of http sources (`change.<source>`) and events (`event.<name>`). With the header \
                 `Idempotency-Key`, a repeated request is stored once. Errors are problem bodies; branch on `type` and `status`.",
            ))
    }
}

#[cfg(test)]
mod tests;
