//! Ownership of a process's tasks and threads.
//!
//! Each task has a name and an error policy. A panic is caught and counts as a failure of the task. The first failure
//! of a task with [`OnError::Stop`] starts the drain and becomes the result of the process. [`Tasks::join`] waits for a
//! limited time and returns the names of the tasks that did not end; it never kills a task or a thread.

use crate::{BoxError, Drain, chain};
use futures_util::FutureExt;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;

/// What happens when a task fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The process drains and exits with this error.
    Stop,
    /// The error is logged; other tasks are not affected.
    Log,
}

/// Why a process did not end cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A task with [`OnError::Stop`] ended with an error.
    #[error("task {task} failed")]
    Failed {
        /// Its name.
        task: String,
        /// Its error.
        #[source]
        source: BoxError,
    },
    /// A task with [`OnError::Stop`] panicked.
    #[error("task {task} panicked: {message}")]
    Panicked {
        /// Its name.
        task: String,
        /// The panic's message.
        message: String,
    },
    /// Tasks still ran when the drain limit expired.
    #[error("tasks did not end within the drain limit of {limit_ms} ms: {}", tasks.join(", "))]
    Stuck {
        /// Their names.
        tasks: Vec<String>,
        /// The limit.
        limit_ms: u128,
    },
}

/// Return value of a task: nothing, or a result.
pub trait TaskResult: Send {
    /// Converts to a result.
    fn into_result(self) -> Result<(), BoxError>;
}

impl TaskResult for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<E: Into<BoxError> + Send> TaskResult for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

/// The tasks and threads of a process or of one of its parts. Clones share them.
#[derive(Clone)]
pub struct Tasks {
    shared: Arc<Shared>,
    drain: Drain,
    runtime: Handle,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    idle: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    running: BTreeMap<u64, String>,
    failure: Option<Error>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tasks {
    /// Creates an owner without tasks, with a new drain.
    ///
    /// # Panics
    /// Outside a tokio runtime: tasks run on the runtime in which the owner is created.
    pub fn new() -> Self {
        Self {
            shared: Arc::default(),
            drain: Drain::new(),
            runtime: Handle::current(),
        }
    }

    /// The drain that all tasks of this owner observe.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }

    /// Creates an owner for a part of the process that can be stopped and joined separately. It drains when this owner
    /// drains; a failed task in it does not stop this owner.
    pub fn child(&self) -> Self {
        Self {
            shared: Arc::default(),
            drain: self.drain.child(),
            runtime: self.runtime.clone(),
        }
    }

    /// Runs a future as a task with [`OnError::Stop`].
    pub fn spawn<F>(&self, name: impl Into<String>, future: F)
    where
        F: Future<Output: TaskResult> + Send + 'static,
    {
        self.spawn_with(name, OnError::Stop, future);
    }

    /// Runs a future as a task.
    pub fn spawn_with<F>(&self, name: impl Into<String>, on_error: OnError, future: F)
    where
        F: Future<Output: TaskResult> + Send + 'static,
    {
        let running = self.begin(name.into(), on_error);
        self.runtime.spawn(async move {
            let end = AssertUnwindSafe(future).catch_unwind().await;
            running.end(end.map(TaskResult::into_result));
        });
    }

    /// Runs a closure on a dedicated thread with [`OnError::Stop`].
    pub fn thread<R: TaskResult>(&self, name: impl Into<String>, body: impl FnOnce() -> R + Send + 'static) {
        self.thread_with(name, OnError::Stop, body);
    }

    /// Runs a closure on a dedicated thread. If the system cannot create the thread, the task fails.
    pub fn thread_with<R: TaskResult>(
        &self,
        name: impl Into<String>,
        on_error: OnError,
        body: impl FnOnce() -> R + Send + 'static,
    ) {
        let name = name.into();
        let running = Arc::new(Mutex::new(Some(self.begin(name.clone(), on_error))));
        let inside = Arc::clone(&running);
        let take = |slot: &Mutex<Option<Running>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let started = std::thread::Builder::new().name(name).spawn(move || {
            let end = catch_unwind(AssertUnwindSafe(|| body().into_result()));
            if let Some(running) = take(&inside) {
                running.end(end);
            }
        });
        if let Err(error) = started
            && let Some(running) = take(&running)
        {
            running.end(Ok(Err(error.into())));
        }
    }

    /// Names of the running tasks.
    pub fn running(&self) -> Vec<String> {
        self.shared.state().running.values().cloned().collect()
    }

    /// Waits until no task is running. Cancellation-safe.
    pub async fn idle(&self) {
        loop {
            let idle = self.shared.idle.notified();
            if self.shared.state().running.is_empty() {
                return;
            }
            idle.await;
        }
    }

    /// Starts the drain and waits up to `limit` for all tasks. Cancellation-safe.
    ///
    /// # Errors
    /// The first failure of a task with [`OnError::Stop`], otherwise [`Error::Stuck`].
    pub async fn join(&self, limit: Duration) -> Result<(), Error> {
        self.drain.start();
        let stuck = match tokio::time::timeout(limit, self.idle()).await {
            Ok(()) => Vec::new(),
            Err(_) => self.running(),
        };
        let failure = self.shared.state().failure.take();
        match failure {
            // Both are reported: the first failure is returned, and the tasks that did not end are logged.
            Some(failure) => {
                if !stuck.is_empty() {
                    tracing::error!(tasks = stuck.join(", "), "tasks did not end within the drain limit");
                }
                Err(failure)
            }
            None if stuck.is_empty() => Ok(()),
            None => Err(Error::Stuck {
                tasks: stuck,
                limit_ms: limit.as_millis(),
            }),
        }
    }

    fn begin(&self, name: String, on_error: OnError) -> Running {
        let mut state = self.shared.state();
        let id = state.next;
        state.next += 1;
        state.running.insert(id, name.clone());
        Running {
            id,
            name,
            on_error,
            shared: Arc::clone(&self.shared),
            drain: self.drain.clone(),
        }
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

/// A running task. Dropping it removes the task from the list, including when the runtime shuts down and drops the
/// future.
struct Running {
    id: u64,
    name: String,
    on_error: OnError,
    shared: Arc<Shared>,
    drain: Drain,
}

impl Running {
    fn end(self, end: std::thread::Result<Result<(), BoxError>>) {
        let task = self.name.clone();
        let failure = match end {
            Ok(Ok(())) => {
                tracing::debug!(task, "task ended");
                return;
            }
            Ok(Err(source)) => Error::Failed { task, source },
            Err(panic) => Error::Panicked {
                task,
                message: message(&*panic),
            },
        };
        match self.on_error {
            OnError::Log => tracing::error!("{}", chain(&failure)),
            OnError::Stop => {
                tracing::error!("{}; draining the process", chain(&failure));
                // The failure is stored before the drain starts, so that a task that observes the drain finds the
                // reason.
                self.shared.state().failure.get_or_insert(failure);
                self.drain.start();
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.running.remove(&self.id);
        let idle = state.running.is_empty();
        drop(state);
        if idle {
            self.shared.idle.notify_waiters();
        }
    }
}

/// The text of a panic.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn fall(message: &str) {
        panic!("{message}");
    }

    #[tokio::test]
    async fn drain_ends_tasks_and_threads() {
        let tasks = Tasks::new();
        let (drain, other) = (tasks.drain(), tasks.drain());
        tasks.spawn("task", async move { drain.started().await });
        tasks.thread("thread", move || {
            other.sleep_blocking(Duration::from_secs(3600));
            Ok::<(), BoxError>(())
        });
        assert_eq!(tasks.running(), ["task", "thread"]);
        tasks.join(LIMIT).await.unwrap();
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn first_failure_starts_the_drain_and_is_returned() {
        let tasks = Tasks::new();
        let drain = tasks.drain();
        tasks.spawn("second", async move {
            drain.started().await;
            Err("because of the first")
        });
        tasks.thread("first", || Err::<(), _>("no more disk"));
        tasks.drain().started().await;
        let error = tasks.join(LIMIT).await.unwrap_err();
        assert_eq!(chain(&error), "task first failed: no more disk");
    }

    #[tokio::test]
    async fn panic_is_reported_with_the_task_name() {
        let tasks = Tasks::new();
        tasks.spawn("restless", async { fall("row 7 of none") });
        tasks.idle().await;
        assert_eq!(
            tasks.join(LIMIT).await.unwrap_err().to_string(),
            "task restless panicked: row 7 of none"
        );

        let tasks = Tasks::new();
        tasks.thread("thread", || fall("in a thread"));
        tasks.idle().await;
        assert_eq!(
            tasks.join(LIMIT).await.unwrap_err().to_string(),
            "task thread panicked: in a thread"
        );
    }

    #[tokio::test]
    async fn logged_failure_does_not_stop_the_process() {
        let tasks = Tasks::new();
        tasks.spawn_with("fails", OnError::Log, async { Err("once") });
        tasks.thread_with("panics", OnError::Log, || fall("once"));
        tasks.idle().await;
        assert!(!tasks.drain().is_draining());
        tasks.join(LIMIT).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn join_names_tasks_that_do_not_end() {
        let tasks = Tasks::new();
        tasks.spawn("hanging", std::future::pending::<()>());
        tasks.spawn("willing", async {});
        let error = tasks.join(Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "tasks did not end within the drain limit of 30000 ms: hanging"
        );
    }

    #[tokio::test]
    async fn child_stops_separately_and_drains_with_its_parent() {
        let tasks = Tasks::new();
        let part = tasks.child();
        let drain = part.drain();
        part.spawn("of the part", async move { drain.started().await });
        part.join(LIMIT).await.unwrap();
        assert!(!tasks.drain().is_draining());
        let part = tasks.child();
        tasks.drain().start();
        assert!(part.drain().is_draining());
    }
}
