//! The scheduler: processes that run in turns, die, sleep, come back, are doubled and lose their disks.
//!
//! Guarantees: every choice comes from the seed; after the faults have ended everything must be done within a number of
//! steps; whatever a process, the scene or an oracle holds against the run ends it.
//! Never: a fault that a real machine, network or broker cannot have.

use super::broker::{Broker, FaultPlan, SESSION_TIMEOUT, TXN_TIMEOUT};
use super::stage::{Killed, Stage};
use super::{Disk, Home, Outside, Rng, Scene};
use crate::driver::ThreadDriver;
use crate::{Config, Error, Timer, TimerClock};
use event_log::Millis;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Steps after the faults within which everything must be done: most runs take some hundred, the search for a record that
/// the log refuses some hundred each.
const STEPS_TO_HEAL: usize = 20_000;

/// How likely a process or the broker meets what, at a step.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// A process dies between two calls of the log.
    pub kill: f64,
    /// A process stops answering, and goes on later.
    pub pause: f64,
    /// A second process begins under a living one's name.
    pub respawn: f64,
    /// Time leaps.
    pub jump: f64,
    /// The group rebalances.
    pub rebalance: f64,
    /// A commit never comes to the group, as after a lone broker's restart; a recovery then lasts as long as four
    /// transactions.
    pub forget: f64,
    /// A killed process finds its disk empty, beside the one in ten that does anyway.
    pub wipe: f64,
}

/// One process: an OS thread that runs only when the scheduler lets it.
struct Process {
    name: String,
    disk: Disk,
    /// Since when it does not answer, paused or dead.
    gone: Option<Millis>,
    alive: bool,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    fn answers(&self) -> bool {
        self.alive && self.gone.is_none()
    }
}

/// A run of a scene.
pub(super) struct World<S> {
    pub stage: Arc<Stage>,
    scene: S,
    rng: Rng,
    processes: Vec<Process>,
    names: Vec<String>,
    is_static: bool,
    faults: Faults,
}

/// What a panic says.
pub(super) fn words(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").to_owned()
}

/// The loop of a process: turns, as production does them.
fn live<S: Scene>(program: &S::Program, home: &Home, name: &str, disk: &Disk) {
    let duration = |ms: Millis| Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    let mut config = Config::new(name, "unused");
    config.commit.transaction_timeout = duration(TXN_TIMEOUT);
    config.group.session_timeout = duration(SESSION_TIMEOUT);
    let application = S::application(program, home, &mut config);
    let (log, clock, stores) = (Arc::new(home.clone()), Arc::new(home.clone()), Arc::new(disk.clone()));
    let thread = ThreadDriver::new(&application, config, log, clock, stores, 0);
    let mut thread = match thread {
        Ok(thread) => thread,
        Err(error) => return home.blame(format!("process cannot begin: {}", service::chain(&error))),
    };
    loop {
        home.stage.pass(home.process);
        match thread.turn() {
            Ok(()) => {}
            Err(Error::Fenced { .. }) => return home.broker().note("exit"),
            Err(error) => return home.blame(format!("process ended: {}", service::chain(&error))),
        }
        // Leaps of time make what is merely undecided look as if it never would be, and a store too old again and again;
        // such a task looks again by itself, or the run does not end in time.
        let leapt = |cause: &str| cause.contains("never decided") || cause.contains("in one recovery");
        let stopped = |cause: &String| cause.contains("stopped") && !leapt(cause);
        if let Some(cause) = thread.causes().into_iter().find(stopped) {
            home.blame(cause);
        }
    }
}

impl<S: Scene> World<S> {
    /// A world before its first step.
    pub(super) fn new(seed: u64, make: &dyn Fn(&mut Rng) -> S) -> World<S> {
        let mut rng = Rng::of_seed(seed);
        let mut scene = make(&mut rng);
        let mut fault_plan = FaultPlan {
            fault: rng.pick(&[0.0, 0.01, 0.05, 0.15]),
            speed: rng.pick(&[0.7, 0.2, 0.05]),
            forget: 0.0,
            crash: rng.pick(&[0.0, 0.005, 0.02, 0.05]),
        };
        let names: Vec<String> = (0..rng.pick(&[2, 3])).map(|i| format!("i{i}")).collect();
        let is_static = rng.chance(0.5);
        let mut rate = || rng.pick(&[0.0, 0.003, 0.01, 0.03]);
        let mut faults = Faults {
            kill: rate(),
            pause: rate(),
            respawn: rate(),
            jump: rate(),
            rebalance: rate(),
            wipe: rate(),
            forget: rng.pick(&[0.0, 0.0, 0.02, 0.1]),
        };
        scene.adjust(&mut faults);
        fault_plan.forget = faults.forget;
        if fault_plan.forget > 0.0 {
            // Leaps in such a recovery would outrun every tombstone.
            faults.jump = 0.0;
            fault_plan.crash = fault_plan.crash.min(0.005);
        }
        let stage = Arc::new(Stage::new(Broker::new(rng.fork(), scene.layout(), fault_plan)));
        let mut world = World {
            stage,
            scene,
            rng,
            processes: Vec::new(),
            names: names.clone(),
            is_static,
            faults,
        };
        for name in &names {
            world.spawn(name, Disk::default());
        }
        world
    }

    fn spawn(&mut self, name: &str, disk: Disk) {
        let process = self.processes.len();
        let home = Home {
            stage: self.stage.clone(),
            process,
            is_static: self.is_static,
        };
        let (own, its_disk, program) = (name.to_owned(), disk.clone(), self.scene.program());
        let body = move || {
            let at_point = home.clone();
            failpoint::watch(move |name| at_point.stage.point(at_point.process, name));
            let run = || {
                home.stage.wait(home.process);
                live::<S>(&program, &home, &own, &its_disk);
            };
            if let Err(cause) = catch_unwind(AssertUnwindSafe(run))
                && !cause.is::<Killed>()
            {
                home.blame(format!("a process panics: {}", words(&*cause)));
            }
            home.stage.end(home.process);
        };
        let thread = std::thread::Builder::new()
            .name(format!("{name}-{process}"))
            .spawn(body)
            .expect("a simulated process has a thread");
        self.stage.enter(process, thread.thread().clone());
        self.processes.push(Process {
            name: name.to_owned(),
            disk,
            gone: None,
            alive: true,
            thread: Some(thread),
        });
    }

    fn note(&self, what: &'static str) {
        self.stage.broker().note(what);
    }

    fn now(&self) -> Millis {
        self.stage.broker().now
    }

    /// A process has ended, by itself or not.
    fn bury(&mut self, index: usize) {
        let now = self.now();
        let Some(process) = self.processes.get_mut(index) else {
            return;
        };
        process.alive = false;
        process.gone.get_or_insert(now);
        if let Some(thread) = process.thread.take() {
            // What it panicked with is in the verdict.
            drop(thread.join());
        }
    }

    /// What a death does to the disk.
    fn damage(&mut self, process: usize) {
        let lost = if self.rng.chance(0.3) { self.rng.below(4) } else { 0 };
        let wiped = self.rng.chance(self.faults.wipe) || self.rng.chance(0.1);
        let Some(process) = self.processes.get(process) else {
            return;
        };
        if lost > 0 {
            process.disk.lose(lost);
            self.note("batches lost");
        }
        if wiped {
            process.disk.wipe();
            self.note("wipe");
        }
    }

    fn kill(&mut self, process: usize) {
        self.stage.kill(process);
        self.bury(process);
    }

    /// One moment: time passes, most processes run to their next call, the broker does what it does by itself.
    fn step(&mut self) {
        let pause = Millis::try_from(self.rng.below(20)).unwrap_or_default();
        self.stage.broker().now += pause;
        let mut who: Vec<usize> = Vec::with_capacity(self.processes.len());
        who.extend(
            self.processes
                .iter()
                .enumerate()
                .filter(|(_, p)| p.answers())
                .map(|(i, _)| i),
        );
        self.rng.shuffle(&mut who);
        if who.len() > 1 {
            who.pop();
        }
        for process in who {
            if self.stage.run(process) {
                self.bury(process);
                if self.stage.has_crashed(process) {
                    self.damage(process);
                }
            }
            let mut broker = self.stage.broker();
            let place = broker.rng.place();
            broker.mix(u64::try_from(process).unwrap_or_default() ^ place);
        }
        let gone: Vec<Option<Millis>> = self.processes.iter().map(|p| p.gone).collect();
        let mut broker = self.stage.broker();
        broker.step(&|process| gone.get(process).copied().flatten());
        let place = self.rng.place();
        broker.mix(place);
    }

    fn mischief(&mut self) {
        for process in 0..self.processes.len() {
            self.trouble(process);
        }
        self.revive(0.02);
        if self.rng.chance(self.faults.jump) {
            self.note("jump");
            self.stage.broker().now += self.rng.pick(&[700, 2000, 12_000, 18_000, 26_000, 40_000]);
        }
        if self.rng.chance(self.faults.rebalance) && self.stage.broker().group.rebalance() {
            self.note("rebalance");
        }
    }

    fn trouble(&mut self, index: usize) {
        let now = self.now();
        let twins = self.alive_as(index);
        let Some(process) = self.processes.get_mut(index).filter(|p| p.alive) else {
            return;
        };
        let answers = process.answers();
        if self.rng.chance(self.faults.kill) {
            self.note("kill");
            self.kill(index);
            self.damage(index);
        } else if answers && self.rng.chance(self.faults.pause) {
            process.gone = Some(now);
            self.note("pause");
        } else if answers && self.rng.chance(self.faults.respawn) && twins < 2 {
            // A second process under the same names, elsewhere, with its own disk.
            process.gone = Some(now);
            let name = process.name.clone();
            self.note("respawn");
            self.spawn(&name, Disk::default());
        } else if !answers && self.rng.chance(0.02) {
            process.gone = None;
            self.note("wake");
        }
    }

    fn alive_as(&self, process: usize) -> usize {
        let name = self.processes.get(process).map(|p| &p.name);
        let same = |p: &&Process| p.alive && Some(&p.name) == name;
        self.processes.iter().filter(same).count()
    }

    fn revive(&mut self, probability: f64) {
        for name in self.names.clone() {
            let alive = self.processes.iter().any(|p| p.alive && p.name == name);
            if !alive && self.rng.chance(probability) {
                let last = self.processes.iter().rev().find(|p| p.name == name);
                let disk = last.map(|p| p.disk.clone());
                self.spawn(&name, disk.unwrap_or_default());
            }
        }
    }

    /// What is not done yet; `None` when everything is consumed and decided.
    fn rest(&mut self) -> Option<String> {
        let mut broker = self.stage.broker();
        if !broker.is_still() {
            return Some("a transaction is not decided".to_owned());
        }
        for (changelog, inputs) in broker.layout.tasks.clone() {
            let Some(truth) = broker.truth.get(&changelog) else {
                continue;
            };
            let commit_record = truth
                .get(crate::COMMIT_RECORD_KEY)
                .and_then(|value| crate::CommitRecord::read(value).ok());
            // Those of the wall clock are all due before long, those of stream time once that has come.
            let stream_time = commit_record
                .as_ref()
                .map_or(0, |commit_record| commit_record.stream_time);
            let is_due = |key: &Vec<u8>| {
                let of = |clock: TimerClock| Timer::of_row(clock, key).filter(|_| key.starts_with(&clock.prefix()));
                of(TimerClock::Wall).is_some() || of(TimerClock::Stream).is_some_and(|timer| timer.at <= stream_time)
            };
            if truth.keys().any(is_due) {
                return Some(format!("{changelog} has timers that are due"));
            }
            for input in inputs {
                let next = commit_record.as_ref().and_then(|m| m.next_offset(&input)).unwrap_or(0);
                if !broker.part(&input).is_read(next) {
                    return Some(format!("{input} is not read from {next} on"));
                }
            }
        }
        let idle = self.scene.is_idle(&mut broker);
        (!idle).then(|| "the scene is not done".to_owned())
    }

    fn outside(&mut self, heals: bool) -> Result<(), String> {
        let mut broker = self.stage.broker();
        let mut outside = Outside {
            broker: &mut broker,
            rng: &mut self.rng,
            heals,
        };
        self.scene.moment(&mut outside)
    }

    /// Runs to the end.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let steps = self.rng.pick(&[100, 200, 400, 800]);
        for _ in 0..steps {
            self.step();
            self.mischief();
            self.outside(false)?;
            self.stage.verdict()?;
        }
        self.calm();
        for i in 0..STEPS_TO_HEAL {
            self.step();
            self.revive(0.3);
            self.outside(true)?;
            self.stage.verdict()?;
            if i % 20 == 0 && self.rest().is_none() {
                let broker = &mut self.stage.broker();
                return self.scene.verify(broker, &mut self.rng);
            }
        }
        let rest = self.rest().unwrap_or_default();
        Err(format!("not finished in time: {rest}"))
    }

    /// Faults end: one process a name survives, the old one or the new; sleepers wake.
    fn calm(&mut self) {
        self.stage.broker().fault_plan = FaultPlan {
            fault: 0.0,
            speed: 0.9,
            forget: 0.0,
            crash: 0.0,
        };
        for name in self.names.clone() {
            let same = self
                .processes
                .iter()
                .enumerate()
                .filter(|(_, p)| p.alive && p.name == name);
            let mut same: Vec<usize> = same.map(|(i, _)| i).collect();
            self.rng.shuffle(&mut same);
            for process in same.into_iter().skip(1) {
                self.kill(process);
            }
        }
        for process in self.processes.iter_mut().filter(|p| p.alive) {
            process.gone = None;
        }
    }
}

impl<S> Drop for World<S> {
    fn drop(&mut self) {
        for (index, process) in self.processes.iter_mut().enumerate() {
            if let Some(thread) = process.thread.take() {
                self.stage.kill(index);
                drop(thread.join());
            }
        }
    }
}
