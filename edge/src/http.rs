//! HTTP interface for devices: listener, routes, request tracing and problem bodies.

mod problem;
mod routes;
pub(crate) mod server;
mod trace;

pub use problem::ApiError;
pub(crate) use routes::KEYS_FIX;
pub use routes::{DEVICE_HEADER, Service, router};
