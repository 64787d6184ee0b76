//! What a process stands on: tasks with owners, one drain, configuration, readiness, numbers, logs, time.
//!
//! Guarantees: every task and thread has a name, an owner and an error policy; a process drains once and says what did
//! not end; the environment is read in one file.
//! Never: a topic's or an event's name.

pub mod admin;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod drain;
pub mod failpoint;
pub mod http;
pub mod problem;
pub mod readiness;
pub mod service;
pub mod tasks;
pub mod telemetry;
pub mod trace;

pub use clock::{Clock, SharedClock};
pub use config::Secret;
pub use drain::Drain;
pub use problem::Problem;
pub use readiness::{Component, Readiness};
pub use service::Service;
pub use tasks::{OnError, Tasks};

/// Any error, as tasks end with it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An error and all its sources on one line: each boundary's own Display leaves its source out.
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
