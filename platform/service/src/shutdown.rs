//! Graceful shutdown of a process: starts the drain and waits for the tasks.
//!
//! SIGTERM, SIGINT, the first failed task, or the end of all tasks start the drain. The tasks then have until the drain
//! limit to end. A second signal ends the wait immediately.

use crate::Tasks;
use crate::tasks::Error as TaskError;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Reason why a shutdown was not clean.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A task failed or did not end.
    #[error(transparent)]
    Task(TaskError),
    /// A second signal arrived before all tasks had ended.
    #[error("interrupted by a second signal while tasks were running: {}", tasks.join(", "))]
    Interrupted {
        /// Their names.
        tasks: Vec<String>,
    },
}

/// The signals that stop a process.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the signal handlers. Must be called in an async runtime.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and returns its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Waits for the start of the drain, then for its end.
pub(crate) async fn wait(tasks: &Tasks, signals: &mut Signals, limit: Duration) -> Result<(), Error> {
    let drain = tasks.drain();
    tokio::select! {
        () = drain.started() => {}
        () = tasks.idle() => {}
        name = signals.next() => tracing::info!(signal = name, "signal received, draining"),
    }
    drain.start();
    tokio::select! {
        joined = tasks.join(limit) => joined.map_err(Error::Task),
        _ = signals.next() => Err(Error::Interrupted { tasks: tasks.running() }),
    }
}
