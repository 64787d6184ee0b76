//! A thread that owns a value whose methods may block forever, and callers that wait for it with a deadline.
//!
//! After the first call that misses its deadline the worker counts as stuck: every later call fails immediately, and
//! dropping the handle leaks the thread together with the value and its file lock. A thread cannot be ended from
//! outside, so only a restart of the process releases them.

use crate::error::{Error, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Calls that may wait in the queue. Each belongs to a blocked caller; further callers wait for a free place in the
/// queue.
const QUEUED_MAX: usize = 16;

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// Time limits for callers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For the value to be created.
    pub(super) open: Duration,
    /// Maximum duration of a call, including its time in the queue, and of dropping the value.
    pub(super) call: Duration,
}

/// A handle to the thread that owns a `T`. Dropping the handle drops the `T` on the thread and waits until that is
/// done.
pub(super) struct Worker<T> {
    /// `None` only while the handle is being dropped.
    jobs: Option<Sender<Job<T>>>,
    /// Disconnected when the thread has dropped its value.
    closed: Receiver<Infallible>,
    stuck: AtomicBool,
    dir: PathBuf,
    limits: Limits,
}

impl<T: 'static> Worker<T> {
    /// Starts the thread, which creates its value with `open`.
    ///
    /// # Errors
    /// As `open`; [`Error::Stuck`] when it takes too long.
    pub(super) fn start(
        dir: PathBuf,
        limits: Limits,
        open: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (jobs, queue) = bounded::<Job<T>>(QUEUED_MAX);
        let (opened, result) = bounded(1);
        let (closing, closed) = bounded(0);
        let run = move || {
            let _closing: Sender<Infallible> = closing;
            let mut value = match open() {
                Ok(value) => value,
                Err(error) => return drop(opened.send(Err(error))),
            };
            // If the caller no longer waits, the queue of jobs is disconnected, which drops the value.
            drop(opened.send(Ok(())));
            for job in queue {
                job(&mut value);
            }
        };
        std::thread::Builder::new()
            .name("sled".to_owned())
            .spawn(run)
            .map_err(|source| Error::Io {
                attempted: "start a thread for sled",
                source,
            })?;
        let worker = Self {
            jobs: Some(jobs),
            closed,
            stuck: AtomicBool::new(false),
            dir,
            limits,
        };
        match result.recv_timeout(limits.open) {
            Ok(opened) => opened.map(|()| worker),
            Err(RecvTimeoutError::Timeout) => Err(worker.mark_stuck(limits.open)),
            Err(RecvTimeoutError::Disconnected) => Err(panicked("open a store")),
        }
    }

    /// Runs `job` on the thread and returns its result. The outcome of a job that missed its deadline is unknown: it
    /// may still be executed.
    ///
    /// # Errors
    /// As `job`; [`Error::Stuck`] when this call or an earlier one missed its deadline.
    pub(super) fn call<R: Send + 'static>(
        &self,
        attempted: &'static str,
        job: impl FnOnce(&mut T) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        if self.stuck.load(Ordering::Acquire) {
            return Err(self.stuck_error(self.limits.call));
        }
        let (done, result) = bounded(1);
        let job: Job<T> = Box::new(move |value| {
            // The caller may have stopped waiting.
            drop(done.send(job(value)));
        });
        let jobs = self
            .jobs
            .as_ref()
            .expect("the queue exists until the handle is dropped");
        let deadline = Instant::now() + self.limits.call;
        match jobs.send_deadline(job, deadline) {
            Ok(()) => {}
            Err(SendTimeoutError::Timeout(_)) => return Err(self.mark_stuck(self.limits.call)),
            Err(SendTimeoutError::Disconnected(_)) => return Err(panicked(attempted)),
        }
        match result.recv_deadline(deadline) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(self.mark_stuck(self.limits.call)),
            Err(RecvTimeoutError::Disconnected) => Err(panicked(attempted)),
        }
    }

    fn mark_stuck(&self, limit: Duration) -> Error {
        self.stuck.store(true, Ordering::Release);
        self.stuck_error(limit)
    }

    fn stuck_error(&self, limit: Duration) -> Error {
        Error::Stuck {
            dir: self.dir.clone(),
            seconds: limit.as_secs(),
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.jobs = None;
        if *self.stuck.get_mut() {
            return;
        }
        if self.closed.recv_timeout(self.limits.call) == Err(RecvTimeoutError::Timeout) {
            tracing::error!(
                dir = %self.dir.display(),
                seconds = self.limits.call.as_secs(),
                "sled does not close its store; the thread and the lock of the directory stay until the process ends"
            );
        }
    }
}

/// The thread ended with a panic, whose message the panic hook has printed.
fn panicked(attempted: &'static str) -> Error {
    Error::Engine {
        attempted,
        source: "sled panicked; drop the store and open it again".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::TryRecvError;

    const HOUR: Duration = Duration::from_secs(3600);

    fn worker(call: Duration) -> Worker<u32> {
        Worker::start(PathBuf::from("state"), Limits { open: HOUR, call }, || Ok(7)).unwrap()
    }

    fn is_stuck<R>(result: &Result<R>) -> bool {
        matches!(result, Err(Error::Stuck { dir, .. }) if dir.as_os_str() == "state")
    }

    #[test]
    fn call_returns_the_result_of_its_job() {
        let worker = worker(HOUR);
        worker
            .call("count", |value| {
                *value += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(worker.call("read", |value| Ok(*value)).unwrap(), 8);
    }

    #[test]
    fn stuck_call_fails_and_so_do_later_calls_and_drop_returns() {
        let mut worker = worker(Duration::from_millis(20));
        let (unblock, blocked) = bounded::<()>(0);
        let (ended, end) = bounded::<()>(0);
        let stuck = worker.call("block", move |_| {
            blocked.recv().ok();
            drop(ended);
            Ok(())
        });
        assert!(is_stuck(&stuck), "{stuck:?}");
        // With this limit, a call or a drop that waits for the thread would not return within the test.
        worker.limits.call = HOUR;
        let later = worker.call("read", |value| Ok(*value));
        assert!(is_stuck(&later), "{later:?}");
        drop(worker);
        assert_eq!(end.try_recv(), Err(TryRecvError::Empty), "the thread is still blocked");
        drop(unblock);
        assert!(end.recv().is_err(), "the blocked job ends");
    }

    #[test]
    fn full_queue_counts_as_stuck() {
        let worker = worker(Duration::from_millis(20));
        let (unblock, blocked) = bounded::<()>(0);
        let jobs = worker.jobs.clone().unwrap();
        jobs.send(Box::new(move |_| {
            blocked.recv().ok();
        }))
        .unwrap();
        while jobs.try_send(Box::new(|_| {})).is_ok() {}
        let rejected = worker.call("read", |value| Ok(*value));
        assert!(is_stuck(&rejected), "{rejected:?}");
        drop(unblock);
    }

    #[test]
    fn open_that_does_not_return_fails() {
        let (unblock, blocked) = bounded::<()>(0);
        let limits = Limits {
            open: Duration::from_millis(20),
            call: HOUR,
        };
        let opened = Worker::start(PathBuf::from("state"), limits, move || {
            blocked.recv().ok();
            Ok(())
        });
        assert!(is_stuck(&opened.map(|_| ())));
        drop(unblock);
    }

    #[test]
    fn panic_of_a_job_is_an_error_of_its_call() {
        let worker = worker(HOUR);
        let panicked = worker.call::<()>("read", |_| panic!("no such page"));
        assert!(
            matches!(panicked, Err(Error::Engine { attempted: "read", .. })),
            "{panicked:?}"
        );
        let later = worker.call("read", |value| Ok(*value));
        assert!(matches!(later, Err(Error::Engine { .. })), "{later:?}");
    }

    #[test]
    fn drop_waits_until_the_value_is_dropped() {
        struct Flag(std::sync::Arc<AtomicBool>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let dropped = std::sync::Arc::new(AtomicBool::new(false));
        let flag = dropped.clone();
        let limits = Limits { open: HOUR, call: HOUR };
        let worker = Worker::start(PathBuf::from("state"), limits, move || Ok(Flag(flag))).unwrap();
        drop(worker);
        assert!(dropped.load(Ordering::SeqCst));
    }
}
