//! The life of a process: start, signals, drain, end.
//!
//! Guarantees: SIGTERM, SIGINT, the first failed task, or the end of all tasks start the one drain; the end says which
//! task failed or did not end; a second signal ends the wait at once.
//! Never: `exit` in the middle. The result goes back to `main`.

use crate::tasks::{Ending, Error as TaskError};
use crate::{Tasks, failpoint};
use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Why a process did not end cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The list of failpoints cannot be read.
    #[error(transparent)]
    Failpoints(&'static failpoint::Unreadable),
    /// The system refused threads or signal handlers.
    #[error("start the runtime")]
    Runtime(#[source] std::io::Error),
    /// A task failed or did not end.
    #[error(transparent)]
    Task(TaskError),
    /// A second signal came before all tasks had ended.
    #[error("interrupted while these still ran: {}", tasks.join(", "))]
    Interrupted {
        /// Their names.
        tasks: Vec<String>,
    },
}

/// How a process runs.
#[derive(Debug, Clone)]
pub struct Service {
    drain_limit: Duration,
    worker_threads: Option<usize>,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            drain_limit: Duration::from_secs(25),
            worker_threads: None,
        }
    }
}

impl Service {
    /// With the defaults: 25 s to drain (less than the 30 s that supervisors give), a worker thread a core.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long the drain may take.
    #[must_use]
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.drain_limit = limit;
        self
    }

    /// How many threads run tasks.
    #[must_use]
    pub fn worker_threads(mut self, threads: usize) -> Self {
        self.worker_threads = Some(threads.max(1));
        self
    }

    /// Runs a process: `start` sets its tasks going (it is the task `start` itself, so it may wait, fail and drain as
    /// every task). Returns when all have ended, or when the limit is over; what hangs then ends with the process.
    ///
    /// # Errors
    /// Why it did not end cleanly.
    pub fn run<F, Fut>(self, start: F) -> Result<(), Error>
    where
        F: FnOnce(Tasks) -> Fut,
        Fut: Future<Output: Ending> + Send + 'static,
    {
        failpoint::check().map_err(Error::Failpoints)?;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        if let Some(threads) = self.worker_threads {
            builder.worker_threads(threads);
        }
        let runtime = builder
            .enable_all()
            .thread_name("worker")
            .build()
            .map_err(Error::Runtime)?;
        let ended = runtime.block_on(async {
            let mut signals = Signals::new().map_err(Error::Runtime)?;
            let tasks = Tasks::new();
            tasks.spawn("start", start(tasks.clone()));
            live(&tasks, &mut signals, self.drain_limit).await
        });
        // A task that hangs must not hold the process.
        runtime.shutdown_background();
        ended
    }
}

/// From the start to the end of the drain.
async fn live(tasks: &Tasks, signals: &mut Signals, limit: Duration) -> Result<(), Error> {
    let drain = tasks.drain();
    tokio::select! {
        () = drain.started() => {}
        () = tasks.idle() => {}
        name = signals.next() => tracing::info!(signal = name, "draining"),
    }
    drain.start();
    tokio::select! {
        joined = tasks.join(limit) => joined.map_err(Error::Task),
        _ = signals.next() => Err(Error::Interrupted { tasks: tasks.running() }),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal's name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BoxError, chain};

    #[test]
    fn a_process_ends_when_all_its_tasks_have_ended() {
        let run = Service::new().worker_threads(1).run(|tasks| async move {
            tasks.thread("work", || {});
        });
        run.unwrap();
    }

    #[test]
    fn a_start_that_fails_is_what_the_process_ends_with() {
        let run = Service::new().worker_threads(1).run(|tasks| async move {
            let drain = tasks.drain();
            tasks.spawn("listener", async move { drain.started().await });
            Err::<(), BoxError>("no broker".into())
        });
        assert_eq!(chain(&run.unwrap_err()), "task start failed: no broker");
    }

    #[test]
    fn a_task_that_hangs_is_named_and_left_behind() {
        let run = Service::new()
            .worker_threads(1)
            .drain_limit(Duration::from_millis(1))
            .run(|tasks| async move {
                tasks.spawn("deaf", std::future::pending::<()>());
                tasks.drain().start();
            });
        let error = run.unwrap_err().to_string();
        assert!(error.ends_with("deaf"), "{error}");
    }
}
