//! A simulated Kafka for tests of applications: production stream threads over a log, a clock and disks in memory.
//!
//! Several processes are killed (including at every failpoint), paused, started twice and lose their disks, while
//! requests and responses are lost or delayed. A [`Scenario`] defines the application, its environment and the expected
//! result. The scenario in this crate counts records. Crates that depend on this one simulate their processors and the
//! readers of their output. A seed always results in the same run, on every machine and regardless of its load.
//! Unexpected calls panic, which ends the run with the panic message.

mod affinity;
mod broker;
mod checked;
mod client;
mod connection;
#[cfg(test)]
mod counting;
mod disk;
mod group;
mod partition;
mod process_log;
mod protocol;
mod read_fault;
mod rng;
mod scenario;
mod scheduler;
mod simulator;

pub use broker::{Broker, Layout, Notes};
pub use checked::Checked;
pub use disk::Disk;
pub use partition::{Cleaning, LogRecord, Partition, Row, batch_of};
pub use process_log::ProcessLog;
pub use protocol::Tasks;
pub use rng::Rng;
pub use scenario::{Environment, FaultRates, Scenario};

use event_log::Millis;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Number of the last events that a failing run prints.
const LAST_NOTES: usize = 25;

/// A finished run.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// The violated invariant, if any.
    pub outcome: Result<(), String>,
    /// How often each kind of event happened. Crashes are counted under the name of their failpoint.
    pub notes: Notes,
    /// Hash of all random choices: equal for equal seeds.
    pub trail: u64,
    /// The events with their times.
    pub trace: Vec<(Millis, &'static str)>,
}

/// Runs one seed of a scenario.
pub fn run<S: Scenario>(seed: u64, make: &dyn Fn(&mut Rng) -> S) -> Run {
    let mut simulation = simulator::Simulation::new(seed, make);
    let outcome = catch_unwind(AssertUnwindSafe(|| simulation.run()))
        .unwrap_or_else(|cause| Err(simulator::panic_message(&*cause)));
    let mut broker = simulation.scheduler.broker();
    Run {
        outcome,
        notes: std::mem::take(&mut broker.journal.notes),
        trail: broker.journal.trail,
        trace: std::mem::take(&mut broker.journal.trace),
    }
}

/// The first seed that fails.
#[derive(Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The run that failed.
    pub run: Run,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.run.trace.len().saturating_sub(LAST_NOTES);
        for (at, what) in self.run.trace.get(from..).unwrap_or_default() {
            writeln!(f, "{at:>9} ms  {what}")?;
        }
        let text = self.run.outcome.as_ref().err();
        write!(f, "seed {}: {}", self.seed, text.map_or("", String::as_str))
    }
}

/// Runs seeds of a scenario on one thread per core, and returns the counted events of all runs. `make` builds the
/// scenario of a seed from the seed's choices.
///
/// # Errors
/// The first seed that fails.
pub fn simulate<S: Scenario>(seeds: Range<u64>, make: impl Fn(&mut Rng) -> S + Sync) -> Result<Notes, Failure> {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(None::<Failure>));
    let notes = Mutex::new(BTreeMap::new());
    let work = |worker: usize| {
        affinity::pin_thread(worker);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let worse = failed.lock().unwrap_or_else(PoisonError::into_inner);
            if seed >= seeds.end || worse.as_ref().is_some_and(|failure| failure.seed < seed) {
                return;
            }
            drop(worse);
            let run = run(seed, &make);
            let mut all = notes.lock().unwrap_or_else(PoisonError::into_inner);
            for (what, n) in &run.notes {
                *all.entry(*what).or_default() += n;
            }
            drop(all);
            if run.outcome.is_err() {
                let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|failure| failure.seed > seed) {
                    *first = Some(Failure { seed, run });
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let own = std::thread::Builder::new().name(format!("seeds-{thread}"));
            own.spawn_scoped(scope, move || work(thread))
                .expect("the thread of a simulation starts");
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(notes.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// The seeds to run: those in this environment variable, `FROM,COUNT`, or else the `count` seeds from 1 on.
///
/// # Panics
/// If the variable is not of this form.
pub fn seeds(variable: &str, count: u64) -> Range<u64> {
    let Some(text) = service::config::env(variable) else {
        return 1..1 + count;
    };
    let parsed = text
        .split_once(',')
        .and_then(|(from, count)| Some((from.parse::<u64>().ok()?, count.parse::<u64>().ok()?)));
    let (from, count) = parsed.expect("the environment variable must be of the form FROM,COUNT");
    from..from + count
}

/// Runs work that the scenario itself simulates, such as that of a reader. With `crash_after` = *n*, the work crashes
/// when it passes a failpoint for the *n* + 1st time.
///
/// # Errors
/// The failpoint at which the work crashed.
pub fn crash_at<T>(crash_after: Option<u32>, work: impl FnOnce() -> T) -> Result<T, &'static str> {
    let Some(after) = crash_after else { return Ok(work()) };
    let (left, crashed) = (Cell::new(after), Rc::new(Cell::new(None)));
    let point = crashed.clone();
    failpoint::watch(move |name| match left.get().checked_sub(1) {
        Some(less) => left.set(less),
        None if point.get().is_none() => {
            point.set(Some(name));
            std::panic::resume_unwind(Box::new(scheduler::Killed));
        }
        None => {}
    });
    let done = catch_unwind(AssertUnwindSafe(work));
    failpoint::watch(|_| {});
    match (done, crashed.get()) {
        (Ok(done), _) => Ok(done),
        (Err(_), Some(point)) => Err(point),
        (Err(cause), None) => std::panic::resume_unwind(cause),
    }
}
