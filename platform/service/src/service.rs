//! The lifecycle of a process: start, run, [`shutdown`], exit.
//!
//! The result is returned to `main`; no code calls `exit`.

use crate::shutdown::{self, Signals};
use crate::tasks::TaskResult;
use crate::{Tasks, config, listener};
use std::future::Future;
use std::time::Duration;

/// Why a process did not end cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The list of failpoints is invalid.
    #[error("environment variable {} is invalid", config::FAILPOINTS)]
    Failpoints(#[source] failpoint::InvalidEntry),
    /// Threads or signal handlers could not be created.
    #[error("cannot start the async runtime")]
    Runtime(#[source] std::io::Error),
    /// A task failed, did not end in time, or was interrupted by a second signal.
    #[error(transparent)]
    Shutdown(shutdown::Error),
}

/// Options for running a process.
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
    /// Defaults: a drain limit of 25 s (less than the 30 s that supervisors usually allow), one worker thread per core.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long the drain may take.
    #[must_use]
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.drain_limit = limit;
        self
    }

    /// Sets the number of worker threads.
    #[must_use]
    pub fn worker_threads(mut self, threads: usize) -> Self {
        self.worker_threads = Some(threads.max(1));
        self
    }

    /// Runs a process. `start` spawns its tasks; it runs as a task named `start` and may wait and fail like any other.
    /// Returns when all tasks have ended or the drain limit has expired; tasks that still hang end with the process.
    ///
    /// # Errors
    /// Why the process did not end cleanly.
    pub fn run<F, Fut>(self, start: F) -> Result<(), Error>
    where
        F: FnOnce(Tasks) -> Fut,
        Fut: Future<Output: TaskResult> + Send + 'static,
    {
        arm_failpoints()?;
        let open_files = listener::descriptors::raise();
        tracing::debug!(open_files, "limit of open files");
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
            shutdown::wait(&tasks, &mut signals, self.drain_limit)
                .await
                .map_err(Error::Shutdown)
        });
        // A task that hangs must not keep the process alive.
        runtime.shutdown_background();
        ended
    }
}

/// Arms the failpoints that the environment lists. [`Service::run`] does so before it starts anything.
///
/// # Errors
/// [`Error::Failpoints`].
pub fn arm_failpoints() -> Result<(), Error> {
    failpoint::arm(&config::env(config::FAILPOINTS).unwrap_or_default()).map_err(Error::Failpoints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BoxError, chain};

    #[test]
    fn process_ends_when_all_tasks_have_ended() {
        let run = Service::new().worker_threads(1).run(|tasks| async move {
            tasks.thread("work", || {});
        });
        run.unwrap();
    }

    #[test]
    fn failed_start_is_the_result_of_the_process() {
        let run = Service::new().worker_threads(1).run(|tasks| async move {
            let drain = tasks.drain();
            tasks.spawn("listener", async move { drain.started().await });
            Err::<(), BoxError>("no broker".into())
        });
        assert_eq!(chain(&run.unwrap_err()), "task start failed: no broker");
    }

    #[test]
    fn hanging_task_is_named() {
        let run = Service::new()
            .worker_threads(1)
            .drain_limit(Duration::from_millis(1))
            .run(|tasks| async move {
                tasks.spawn("hanging", std::future::pending::<()>());
                tasks.drain().start();
            });
        let error = run.unwrap_err().to_string();
        assert!(error.ends_with("hanging"), "{error}");
    }
}
