//! The scheduler: lets one process at a time run, on its thread, until the process yields.
//!
//! The scheduler alone decides which process runs, so a seed always results in the same run. A process crashes only
//! where it yields or passes a failpoint.

use super::broker::Broker;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

/// Panic payload of a killed process.
pub(super) struct Killed;

/// Value of `running` while no process runs.
const SCHEDULER: usize = usize::MAX;

/// The state of a process.
#[derive(Default)]
struct ProcessState {
    thread: Option<Thread>,
    killed: bool,
    ended: bool,
    crashed: bool,
}

/// The broker, the running process, and the first violated invariant.
pub(super) struct Scheduler {
    broker: Mutex<Broker>,
    scheduler_thread: Thread,
    /// The process that runs.
    running: AtomicUsize,
    processes: Mutex<Vec<ProcessState>>,
    violation: Mutex<Option<String>>,
}

/// A panic ends the run, so the data behind a poisoned lock is not used again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scheduler {
    /// A scheduler that runs on the calling thread.
    pub(super) fn new(broker: Broker) -> Self {
        Scheduler {
            broker: Mutex::new(broker),
            scheduler_thread: std::thread::current(),
            running: AtomicUsize::new(SCHEDULER),
            processes: Mutex::default(),
            violation: Mutex::default(),
        }
    }

    pub(super) fn broker(&self) -> MutexGuard<'_, Broker> {
        lock(&self.broker)
    }

    /// Records a violated invariant; the first one ends the run.
    pub(super) fn fail(&self, text: String) {
        lock(&self.violation).get_or_insert(text);
    }

    pub(super) fn result(&self) -> Result<(), String> {
        lock(&self.violation).clone().map_or(Ok(()), Err)
    }

    /// Registers a process with its thread.
    pub(super) fn enter(&self, process: usize, thread: Thread) {
        let mut processes = lock(&self.processes);
        if processes.len() <= process {
            processes.resize_with(process + 1, ProcessState::default);
        }
        if let Some(state) = processes.get_mut(process) {
            state.thread = Some(thread);
        }
    }

    fn state<T>(&self, process: usize, update: impl FnOnce(&mut ProcessState) -> T) -> T {
        update(
            lock(&self.processes)
                .get_mut(process)
                .expect("a process is registered before it runs"),
        )
    }

    /// Lets a process run until it yields or ends; returns whether it has ended.
    pub(super) fn run(&self, process: usize) -> bool {
        let Some(thread) = self.state(process, |state| state.thread.clone().filter(|_| !state.ended)) else {
            return true;
        };
        self.running.store(process, Ordering::Release);
        thread.unpark();
        while self.running.load(Ordering::Acquire) != SCHEDULER {
            std::thread::park();
        }
        self.state(process, |state| state.ended)
    }

    /// Kills a process that waits to be scheduled.
    pub(super) fn kill(&self, process: usize) {
        self.state(process, |state| state.killed = true);
        self.run(process);
    }

    /// Whether a process that has ended crashed at a failpoint.
    pub(super) fn has_crashed(&self, process: usize) -> bool {
        self.state(process, |state| state.crashed)
    }

    /// Called by a process: waits until it is scheduled.
    pub(super) fn wait(&self, process: usize) {
        while self.running.load(Ordering::Acquire) != process {
            std::thread::park();
        }
        if self.state(process, |state| state.killed) {
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// Called by a process: yields and waits until it is scheduled again.
    pub(super) fn yield_now(&self, process: usize) {
        self.running.store(SCHEDULER, Ordering::Release);
        self.scheduler_thread.unpark();
        self.wait(process);
    }

    /// Called by a process at a failpoint, where it may crash.
    pub(super) fn point(&self, process: usize, name: &'static str) {
        if self.broker().crashes_at(name) {
            self.state(process, |state| state.crashed = true);
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// Called by a process when it ends.
    pub(super) fn end(&self, process: usize) {
        self.state(process, |state| state.ended = true);
        self.running.store(SCHEDULER, Ordering::Release);
        self.scheduler_thread.unpark();
    }
}
