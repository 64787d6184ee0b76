//! The edge: HTTP for devices over a replica of the sync views.
//!
//! One event's last steps: the [`replica::Follower`]'s thread reads `view.log` into the replica and wakes long polls;
//! [`routes`] checks who asks ([`auth`]); [`sync`] answers with a page of what has changed since the device's cursor.
//! Guarantees: an answer is the state at a transaction boundary, proven current within 30 s, of the buckets that the
//! token may read now.
//! Never: state of its own that the log does not have; a device's write decided here; metrics or admin routes.

pub mod auth;
pub mod config;
mod edge;
pub mod error;
pub mod keys;
pub mod notifier;
pub mod replica;
pub mod routes;
mod server;
pub mod sync;
pub mod token;
mod trace;

pub use config::Config;
pub use edge::{EdgeError, Parts, start};
