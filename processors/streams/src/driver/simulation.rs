//! A simulated log for tests of applications: the real stream threads over a Kafka, a clock and disks in memory, some
//! processes that are killed (also at every failpoint), paused, doubled and robbed of their disks while requests are
//! lost and late.
//!
//! A [`Scene`] says which application runs, what the world around it does, and what must come out of it. The runtime's
//! own scene counts; scenes of packages above simulate their processors and what reads their output.
//!
//! Guarantees: a seed always gives the same run, on every machine and beside whatever else runs.
//! Never: part of a program that serves anybody; an unexpected call of it panics, which ends the run with its words.

mod broker;
mod checked;
mod client;
mod core;
#[cfg(test)]
mod counting;
mod disk;
mod group;
mod home;
mod part;
mod rng;
mod stage;
mod world;

pub use broker::{Broker, Layout, Notes, Tasks};
pub use checked::Checked;
pub use disk::Disk;
pub use home::Home;
pub use part::{Cleaning, Part, Rec, Row};
pub use rng::Rng;
pub use world::Faults;

use crate::{Application, Config};
use event_log::{Millis, Offset, RecordBatch, TopicPartition};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Notes that a failing run prints.
const LAST_NOTES: usize = 25;

/// What is simulated.
pub trait Scene {
    /// What the processes need, on threads of their own.
    type Program: Clone + Send + 'static;

    /// The topics.
    fn layout(&self) -> Layout;

    /// What every process gets that starts.
    fn program(&self) -> Self::Program;

    /// The application, as a process runs it that starts.
    fn application(program: &Self::Program, home: &Home, config: &mut Config) -> Application;

    /// Changes how likely faults are.
    fn adjust(&mut self, _: &mut Faults) {}

    /// The world around the application does something, or nothing.
    ///
    /// # Errors
    /// What it sees that is wrong.
    fn moment(&mut self, outside: &mut Outside<'_>) -> Result<(), String>;

    /// Whether the world around has nothing more to do, when the application has not.
    fn is_idle(&mut self, _: &mut Broker) -> bool {
        true
    }

    /// Judges the whole run.
    ///
    /// # Errors
    /// What is wrong.
    fn verify(&mut self, broker: &mut Broker, rng: &mut Rng) -> Result<(), String>;
}

/// What the world around an application has to act with.
pub struct Outside<'a> {
    /// The broker.
    pub broker: &'a mut Broker,
    /// Choices.
    pub rng: &'a mut Rng,
    /// Whether the faults have ended, so that everything must come to rest.
    pub heals: bool,
}

/// A run that was done.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// What is wrong, if anything.
    pub outcome: Result<(), String>,
    /// How often what happened; a failpoint's name counts the deaths there.
    pub notes: Notes,
    /// Folds every choice of the run: the same for the same seed.
    pub trail: u64,
    /// What happened, with its time.
    pub trace: Vec<(Millis, &'static str)>,
}

/// Runs one seed of a scene.
pub fn run<S: Scene>(seed: u64, make: &dyn Fn(&mut Rng) -> S) -> Run {
    let mut world = world::World::new(seed, make);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|cause| Err(world::words(&*cause)));
    let mut broker = world.stage.broker();
    Run {
        outcome,
        notes: std::mem::take(&mut broker.notes),
        trail: broker.trail,
        trace: std::mem::take(&mut broker.trace),
    }
}

/// The first seed that fails.
#[derive(Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Its run.
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

/// Runs seeds of a scene, on as many threads as the machine has cores; what happened in all of them, or the first that
/// fails. A scene is made for every seed, from the seed's own choices.
///
/// # Errors
/// The first seed that fails.
pub fn simulate<S: Scene>(seeds: Range<u64>, make: impl Fn(&mut Rng) -> S + Sync) -> Result<Notes, Failure> {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(None::<Failure>));
    let notes = Mutex::new(BTreeMap::new());
    let work = |worker: usize| {
        core::keep_to(worker);
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
                .expect("a simulation has a thread a core");
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(notes.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// The seeds to run: those that this environment variable names as `FROM,COUNT`, or so many from 1 on.
///
/// # Panics
/// When the variable cannot be read.
pub fn seeds(variable: &str, count: u64) -> Range<u64> {
    let Some(text) = service::config::env(variable) else {
        return 1..1 + count;
    };
    let parsed = text
        .split_once(',')
        .and_then(|(from, count)| Some((from.parse::<u64>().ok()?, count.parse::<u64>().ok()?)));
    let (from, count) = parsed.expect("the variable that names seeds is FROM,COUNT");
    from..from + count
}

/// Committed records of a partition as a reader gets them, at most `n` from an offset on, and the position behind them.
pub fn batch(broker: &mut Broker, at: &TopicPartition, from: Offset, n: usize) -> (RecordBatch, Offset) {
    let (records, position) = broker.part(at).read(from, n);
    (batch_of(at, &records), position)
}

/// These records of a partition as a batch.
pub fn batch_of(at: &TopicPartition, records: &[Rec]) -> RecordBatch {
    let mut batch = RecordBatch::default();
    client::fill(&mut batch, at, records);
    batch
}

/// Does work that the scene itself simulates, such as a reader's, and with a number lets it die at the failpoint that it
/// passes after so many others.
///
/// # Errors
/// The failpoint at which it died; what it held is as a crash leaves it.
pub fn mortal<T>(dies_after: Option<u32>, work: impl FnOnce() -> T) -> Result<T, &'static str> {
    let Some(after) = dies_after else { return Ok(work()) };
    let (left, died) = (Cell::new(after), Rc::new(Cell::new(None)));
    let point = died.clone();
    failpoint::watch(move |name| match left.get().checked_sub(1) {
        Some(less) => left.set(less),
        None if point.get().is_none() => {
            point.set(Some(name));
            std::panic::resume_unwind(Box::new(stage::Killed));
        }
        None => {}
    });
    let done = catch_unwind(AssertUnwindSafe(work));
    failpoint::watch(|_| {});
    match (done, died.get()) {
        (Ok(done), _) => Ok(done),
        (Err(_), Some(point)) => Err(point),
        (Err(cause), None) => std::panic::resume_unwind(cause),
    }
}
