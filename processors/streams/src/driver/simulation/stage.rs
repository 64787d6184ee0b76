//! Who may run: one process at a time, on a thread of its own, until it gives control back to the scheduler.
//!
//! Guarantees: which process runs is decided by the scheduler alone, so a seed always gives the same run; a process dies
//! only where it gives control back or passes a failpoint.
//! Never: two of them at the same time.

use super::broker::Broker;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

/// What a killed process unwinds with.
pub(super) struct Killed;

/// Nobody runs but the scheduler.
const SCHEDULER: usize = usize::MAX;

/// How a process stands.
#[derive(Default)]
struct Seat {
    thread: Option<Thread>,
    killed: bool,
    ended: bool,
    crashed: bool,
}

/// The broker, who may run, and what went wrong.
pub(super) struct Stage {
    broker: Mutex<Broker>,
    scheduler: Thread,
    /// The process that has control.
    who: AtomicUsize,
    seats: Mutex<Vec<Seat>>,
    verdict: Mutex<Option<String>>,
}

/// A process that panics ends the run with its words, so what it held is not looked at again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    /// The calling thread is the scheduler's.
    pub(super) fn new(broker: Broker) -> Self {
        Stage {
            broker: Mutex::new(broker),
            scheduler: std::thread::current(),
            who: AtomicUsize::new(SCHEDULER),
            seats: Mutex::default(),
            verdict: Mutex::default(),
        }
    }

    pub(super) fn broker(&self) -> MutexGuard<'_, Broker> {
        lock(&self.broker)
    }

    /// The first thing that went wrong ends the run.
    pub(super) fn blame(&self, text: String) {
        lock(&self.verdict).get_or_insert(text);
    }

    pub(super) fn verdict(&self) -> Result<(), String> {
        lock(&self.verdict).clone().map_or(Ok(()), Err)
    }

    /// A process takes part, on this thread.
    pub(super) fn enter(&self, process: usize, thread: Thread) {
        let mut seats = lock(&self.seats);
        if seats.len() <= process {
            seats.resize_with(process + 1, Seat::default);
        }
        if let Some(seat) = seats.get_mut(process) {
            seat.thread = Some(thread);
        }
    }

    fn seat<T>(&self, process: usize, look: impl FnOnce(&mut Seat) -> T) -> T {
        look(
            lock(&self.seats)
                .get_mut(process)
                .expect("a process enters before it runs"),
        )
    }

    /// The scheduler lets a process run until it gives control back or ends; says whether it has ended.
    pub(super) fn run(&self, process: usize) -> bool {
        let Some(thread) = self.seat(process, |seat| seat.thread.clone().filter(|_| !seat.ended)) else {
            return true;
        };
        self.who.store(process, Ordering::Release);
        thread.unpark();
        while self.who.load(Ordering::Acquire) != SCHEDULER {
            std::thread::park();
        }
        self.seat(process, |seat| seat.ended)
    }

    /// Kills a process where it waits.
    pub(super) fn kill(&self, process: usize) {
        self.seat(process, |seat| seat.killed = true);
        self.run(process);
    }

    /// Whether a process that has ended died at a failpoint.
    pub(super) fn has_crashed(&self, process: usize) -> bool {
        self.seat(process, |seat| seat.crashed)
    }

    /// A process waits until it may run.
    pub(super) fn wait(&self, process: usize) {
        while self.who.load(Ordering::Acquire) != process {
            std::thread::park();
        }
        if self.seat(process, |seat| seat.killed) {
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// A process gives control back and waits until it may run again.
    pub(super) fn pass(&self, process: usize) {
        self.who.store(SCHEDULER, Ordering::Release);
        self.scheduler.unpark();
        self.wait(process);
    }

    /// A process passes a failpoint, or dies there.
    pub(super) fn point(&self, process: usize, name: &'static str) {
        if self.broker().crashes_at(name) {
            self.seat(process, |seat| seat.crashed = true);
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// A process has ended.
    pub(super) fn end(&self, process: usize) {
        self.seat(process, |seat| seat.ended = true);
        self.who.store(SCHEDULER, Ordering::Release);
        self.scheduler.unpark();
    }
}
