//! Edge: serves sync views to devices over HTTP from a replica of `view.log`.
//!
//! The thread of [`replica::Follower`] reads `view.log` into the replica and wakes long polls. For each request,
//! [`http`] verifies the bearer token ([`auth`]) and [`sync`] answers with a page of the changes since the device's
//! cursor. A response contains only buckets that the token may read now, in the state at the end of a source
//! transaction, from a replica that was proven current within the last 30 s. An edge has no state that cannot be read
//! from the log again, except a generated cursor key.

pub mod auth;
pub mod config;
mod edge;
pub mod http;
pub mod notifier;
pub mod replica;
pub mod sync;

pub use auth::dev_token as token;
pub use config::Config;
pub use edge::{EdgeContext, EdgeError, start};
