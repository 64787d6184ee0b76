//! A run of a scenario: processes that run one at a time, crash, pause, resume, are started twice and lose their disks.
//!
//! Every choice comes from the seed. Only faults occur that a real machine, network or broker can have. After the
//! faults have ended, everything must be processed within a limited number of steps. The first violated invariant ends
//! the run.

use super::broker::{Broker, FaultPlan};
use super::connection::Connection;
use super::protocol::{SESSION_TIMEOUT, TXN_TIMEOUT};
use super::scenario::{Environment, FaultRates, Scenario};
use super::scheduler::{Killed, Scheduler};
use super::{Disk, ProcessLog, Rng};
use event_log::Millis;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use streams::testing::{self, ThreadDriver, timer_of_key};
use streams::{COMMIT_RECORD_KEY, CommitRecord, Config, Error, TimerClock};

/// Steps after the faults within which all input must be processed. Most runs take a few hundred; the isolation of a poison
/// record takes a few hundred more.
const STEPS_TO_FINISH: usize = 20_000;

/// A process: an OS thread that runs only when it is scheduled.
struct Process {
    name: String,
    disk: Disk,
    /// Since when the process has not responded, because it is paused or has crashed.
    unresponsive_since: Option<Millis>,
    alive: bool,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    fn responds(&self) -> bool {
        self.alive && self.unresponsive_since.is_none()
    }
}

/// A run of a scenario.
pub(super) struct Simulation<S> {
    pub scheduler: Arc<Scheduler>,
    scenario: S,
    rng: Rng,
    processes: Vec<Process>,
    names: Vec<String>,
    is_static: bool,
    faults: FaultRates,
}

/// The message of a panic.
pub(super) fn panic_message(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

/// The loop of a process.
fn run_process<S: Scenario>(program: &S::Program, process_log: &ProcessLog, name: &str, disk: &Disk) {
    let duration = |ms: Millis| Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    let mut config = Config::new(name, "unused");
    config.commit.transaction_timeout = duration(TXN_TIMEOUT);
    config.group.session_timeout = duration(SESSION_TIMEOUT);
    let application = S::application(program, process_log, &mut config);
    let environment = || testing::Environment {
        log: Arc::new(process_log.clone()),
        clock: Arc::new(process_log.clone()),
        stores: Arc::new(disk.clone()),
    };
    let mut thread = loop {
        match ThreadDriver::new(&application, config.clone(), environment(), 0) {
            Ok(thread) => break thread,
            // A process retries until its topics exist.
            Err(_) if process_log.broker().unreadable.lack_topic() => process_log.connection.yield_now(),
            Err(error) => return process_log.fail(format!("a process failed to start: {}", service::chain(&error))),
        }
    };
    loop {
        process_log.connection.yield_now();
        match thread.turn() {
            Ok(()) => {}
            Err(Error::Fenced { .. }) => return process_log.broker().note("exit"),
            Err(error) => {
                return process_log.fail(format!("a process ended with an error: {}", service::chain(&error)));
            }
        }
        // Because of clock jumps, an undecided transaction may appear to be undecided forever, and a store may be too
        // old in each recovery. Such a task must retry by itself; if it did not, the run would not end in time.
        let retried = [
            "never decided",
            "in one recovery",
            // The task retries until its input or changelog can be read.
            "cannot read",
            "out of range",
            "access to topic",
            "does not exist",
        ];
        let stopped = |cause: &String| cause.contains("stopped") && !retried.iter().any(|text| cause.contains(text));
        if let Some(cause) = thread.causes().into_iter().find(stopped) {
            process_log.fail(cause);
        }
    }
}

impl<S: Scenario> Simulation<S> {
    /// Creates a simulation before its first step.
    pub(super) fn new(seed: u64, make: &dyn Fn(&mut Rng) -> S) -> Simulation<S> {
        let mut rng = Rng::of_seed(seed);
        let mut scenario = make(&mut rng);
        let mut fault_plan = FaultPlan {
            fault: rng.pick(&[0.0, 0.01, 0.05, 0.15]),
            speed: rng.pick(&[0.7, 0.2, 0.05]),
            forget: 0.0,
            crash: rng.pick(&[0.0, 0.005, 0.02, 0.05]),
        };
        let names: Vec<String> = (0..rng.pick(&[2, 3])).map(|i| format!("i{i}")).collect();
        let is_static = rng.chance(0.5);
        let mut rate = || rng.pick(&[0.0, 0.003, 0.01, 0.03]);
        let mut faults = FaultRates {
            kill: rate(),
            pause: rate(),
            respawn: rate(),
            jump: rate(),
            rebalance: rate(),
            wipe: rate(),
            forget: rng.pick(&[0.0, 0.0, 0.02, 0.1]),
            unreadable: rng.pick(&[0.0, 0.01, 0.03]),
        };
        scenario.adjust(&mut faults);
        fault_plan.forget = faults.forget;
        if fault_plan.forget > 0.0 {
            // Such a recovery takes so long that, with clock jumps, it would exceed the retention of tombstones each
            // time.
            faults.jump = 0.0;
            fault_plan.crash = fault_plan.crash.min(0.005);
        }
        let scheduler = Arc::new(Scheduler::new(Broker::new(rng.fork(), scenario.layout(), fault_plan)));
        let mut simulation = Simulation {
            scheduler,
            scenario,
            rng,
            processes: Vec::new(),
            names: names.clone(),
            is_static,
            faults,
        };
        for name in &names {
            simulation.spawn(name, Disk::default());
        }
        simulation
    }

    fn spawn(&mut self, name: &str, disk: Disk) {
        let process = self.processes.len();
        let log = ProcessLog {
            connection: Connection {
                scheduler: self.scheduler.clone(),
                process,
            },
            is_static: self.is_static,
        };
        let (own, its_disk, program) = (name.to_owned(), disk.clone(), self.scenario.program());
        let body = move || {
            let at_point = log.connection.clone();
            failpoint::watch(move |name| at_point.scheduler.point(at_point.process, name));
            let run = || {
                log.connection.scheduler.wait(log.connection.process);
                run_process::<S>(&program, &log, &own, &its_disk);
            };
            if let Err(cause) = catch_unwind(AssertUnwindSafe(run))
                && !cause.is::<Killed>()
            {
                log.fail(format!("a process panicked: {}", panic_message(&*cause)));
            }
            log.connection.scheduler.end(log.connection.process);
        };
        let thread = std::thread::Builder::new()
            .name(format!("{name}-{process}"))
            .spawn(body)
            .expect("the thread of a simulated process starts");
        self.scheduler.enter(process, thread.thread().clone());
        self.processes.push(Process {
            name: name.to_owned(),
            disk,
            unresponsive_since: None,
            alive: true,
            thread: Some(thread),
        });
    }

    fn note(&self, what: &'static str) {
        self.scheduler.broker().note(what);
    }

    fn now(&self) -> Millis {
        self.scheduler.broker().now
    }

    /// Joins the thread of a process that ended.
    fn join(&mut self, index: usize) {
        let now = self.now();
        let Some(process) = self.processes.get_mut(index) else {
            return;
        };
        process.alive = false;
        process.unresponsive_since.get_or_insert(now);
        if let Some(thread) = process.thread.take() {
            // Its panic message is in the result already.
            drop(thread.join());
        }
    }

    /// Damages the disk of a crashed process: its newest batches, or all of its stores, may be lost.
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
        self.scheduler.kill(process);
        self.join(process);
    }

    /// Performs one step: time advances, all responding processes but one run to their next call, and the broker does
    /// its background work.
    fn step(&mut self) {
        let pause = Millis::try_from(self.rng.below(20)).unwrap_or_default();
        self.scheduler.broker().now += pause;
        let mut running: Vec<usize> = Vec::with_capacity(self.processes.len());
        running.extend(
            self.processes
                .iter()
                .enumerate()
                .filter(|(_, p)| p.responds())
                .map(|(i, _)| i),
        );
        self.rng.shuffle(&mut running);
        if running.len() > 1 {
            running.pop();
        }
        for process in running {
            if self.scheduler.run(process) {
                self.join(process);
                if self.scheduler.has_crashed(process) {
                    self.damage(process);
                }
            }
            let mut broker = self.scheduler.broker();
            let rng_state = broker.rng.state();
            broker.mix(u64::try_from(process).unwrap_or_default() ^ rng_state);
        }
        let gone: Vec<Option<Millis>> = self.processes.iter().map(|p| p.unresponsive_since).collect();
        let mut broker = self.scheduler.broker();
        broker.step(&|process| gone.get(process).copied().flatten());
        let rng_state = self.rng.state();
        broker.mix(rng_state);
    }

    fn inject_faults(&mut self) {
        for process in 0..self.processes.len() {
            self.inject_process_fault(process);
        }
        self.revive(0.02);
        if self.rng.chance(self.faults.jump) {
            self.note("jump");
            self.scheduler.broker().now += self.rng.pick(&[700, 2000, 12_000, 18_000, 26_000, 40_000]);
        }
        if self.rng.chance(self.faults.unreadable) {
            let mut broker = self.scheduler.broker();
            let tasks = broker.layout.tasks.iter();
            let all: Vec<_> = tasks
                .flat_map(|(changelog, inputs)| inputs.iter().chain([changelog]))
                .cloned()
                .collect();
            let event = broker.unreadable.toggle(&all, &mut self.rng);
            broker.note(event);
        }
        if self.rng.chance(self.faults.rebalance) && self.scheduler.broker().group.rebalance() {
            self.note("rebalance");
        }
    }

    fn inject_process_fault(&mut self, index: usize) {
        let now = self.now();
        let same_name = self.alive_as(index);
        let Some(process) = self.processes.get_mut(index).filter(|p| p.alive) else {
            return;
        };
        let responds = process.responds();
        if self.rng.chance(self.faults.kill) {
            self.note("kill");
            self.kill(index);
            self.damage(index);
        } else if responds && self.rng.chance(self.faults.pause) {
            process.unresponsive_since = Some(now);
            self.note("pause");
        } else if responds && self.rng.chance(self.faults.respawn) && same_name < 2 {
            // A second process with the same name starts, with another disk.
            process.unresponsive_since = Some(now);
            let name = process.name.clone();
            self.note("respawn");
            self.spawn(&name, Disk::default());
        } else if !responds && self.rng.chance(0.02) {
            process.unresponsive_since = None;
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

    /// What has not been completed; `None` if all input is processed and all transactions are decided.
    fn remaining(&mut self) -> Option<String> {
        let mut broker = self.scheduler.broker();
        if !broker.is_still() {
            return Some("a transaction is not decided".to_owned());
        }
        for (changelog, inputs) in broker.layout.tasks.clone() {
            let Some(committed_state) = broker.committed_state.get(&changelog) else {
                continue;
            };
            let commit_record = committed_state
                .get(COMMIT_RECORD_KEY)
                .and_then(|value| CommitRecord::read(value).ok());
            // Wall-clock timers are all due soon; stream-time timers are due once stream time has reached them.
            let stream_time = commit_record
                .as_ref()
                .map_or(0, |commit_record| commit_record.stream_time);
            let is_due = |key: &Vec<u8>| {
                timer_of_key(key).is_some_and(|timer| timer.clock == TimerClock::Wall || timer.at <= stream_time)
            };
            if committed_state.keys().any(is_due) {
                return Some(format!("{changelog} has timers that are due"));
            }
            for input in inputs {
                let next = commit_record.as_ref().and_then(|m| m.next_offset(&input)).unwrap_or(0);
                if !broker.part(&input).is_read(next) {
                    return Some(format!("{input} has unprocessed records from offset {next} on"));
                }
            }
        }
        let idle = self.scenario.is_idle(&mut broker);
        (!idle).then(|| "the environment is not idle".to_owned())
    }

    fn step_environment(&mut self, draining: bool) -> Result<(), String> {
        let mut broker = self.scheduler.broker();
        let mut environment = Environment {
            broker: &mut broker,
            rng: &mut self.rng,
            draining,
        };
        self.scenario.step(&mut environment)
    }

    /// Runs with faults, and then without faults until everything is processed.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let steps = self.rng.pick(&[100, 200, 400, 800]);
        for _ in 0..steps {
            self.step();
            self.inject_faults();
            self.step_environment(false)?;
            self.scheduler.result()?;
        }
        self.end_faults();
        for i in 0..STEPS_TO_FINISH {
            self.step();
            self.revive(0.3);
            self.step_environment(true)?;
            self.scheduler.result()?;
            if i % 20 == 0 && self.remaining().is_none() {
                let broker = &mut self.scheduler.broker();
                return self.scenario.verify(broker, &mut self.rng);
            }
        }
        let remaining = self.remaining().unwrap_or_default();
        Err(format!(
            "liveness: not idle {STEPS_TO_FINISH} steps after the faults ended: {remaining}"
        ))
    }

    /// Ends all faults: of two processes with the same name, either the old or the new one survives, and paused
    /// processes resume.
    fn end_faults(&mut self) {
        self.scheduler.broker().fault_plan = FaultPlan {
            fault: 0.0,
            speed: 0.9,
            forget: 0.0,
            crash: 0.0,
        };
        self.scheduler.broker().unreadable.clear();
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
            process.unresponsive_since = None;
        }
    }
}

impl<S> Drop for Simulation<S> {
    fn drop(&mut self) {
        for (index, process) in self.processes.iter_mut().enumerate() {
            if let Some(thread) = process.thread.take() {
                self.scheduler.kill(index);
                drop(thread.join());
            }
        }
    }
}
