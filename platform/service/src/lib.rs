//! Process infrastructure: tasks, graceful shutdown, configuration, readiness, metrics, logs and time.
//!
//! Every task and thread has a name, an owner ([`Tasks`]) and an error policy. A process drains once ([`Drain`]) and
//! reports the tasks that did not end in time. Only [`config`] reads the environment. The crate does not depend on
//! topics or records.

pub mod access;
pub mod admin;
pub mod audit;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod drain;
pub mod http;
pub mod listener;
pub mod openapi;
pub mod problem;
pub mod readiness;
pub mod retry;
pub mod service;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
pub mod trace;

pub use clock::{Clock, SharedClock};
pub use config::Secret;
pub use drain::Drain;
pub use problem::Problem;
pub use readiness::{Component, Readiness};
pub use retry::{AttemptError, RetryPolicy, retry, retry_blocking};
pub use service::Service;
pub use tasks::{OnError, Tasks};

/// The error type of a task.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Formats an error and all its sources on one line. The `Display` of error enums does not include their source.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
