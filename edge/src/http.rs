//! HTTP interface for devices: routes, request tracing and problem bodies.

mod problem;
mod routes;
mod trace;

pub use problem::ApiError;
pub(crate) use routes::KEYS_FIX;
pub use routes::{DEVICE_HEADER, Service, router};
