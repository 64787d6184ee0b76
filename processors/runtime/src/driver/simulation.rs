//! The real stream threads over a simulated Kafka, clock and disk: some processes that are killed, paused, doubled and
//! robbed of their disks while requests are lost and late, against one sequential run.
//!
//! It is the executable model of the commit protocol with the product's own code in the place of the model's; a seed
//! always gives the same run. `TRUNKLINE_SIMULATION=FROM,COUNT` runs other seeds.
//!
//! Guarantees: what it accepts has no loss, no duplicate and no phantom in read_committed output, and starts each task
//! with exactly the committed state.

mod broker;
mod counter;
mod disk;
mod home;

use super::ThreadDriver;
use crate::{Config, Error, TimerClock};
use broker::{Broker, Refusal, Rng, SESSION_TIMEOUT, TXN_TIMEOUT};
use counter::{FULL, LATER, Verdict, application, at, tasks};
use disk::Disk;
use home::{Home, Killed, Stage};
use log::{Millis, Offset, TopicPartition};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// One process: an OS thread that runs only when the scheduler lets it.
struct Process {
    name: String,
    disk: Disk,
    /// Since when it does not answer, paused or dead.
    gone: Option<Millis>,
    alive: bool,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct World {
    stage: Arc<Stage>,
    rng: Rng,
    processes: Vec<Process>,
    names: Vec<String>,
    is_static: bool,
    rates: BTreeMap<&'static str, f64>,
    verdict: Verdict,
}

/// The loop of a process: turns, as production does them.
fn live(home: &Home, name: &str, disk: &Disk, verdict: &Verdict) {
    let mut config = Config::new(name, "unused");
    config.transaction_timeout = Duration::from_millis(u64::try_from(TXN_TIMEOUT).unwrap());
    config.session_timeout = Duration::from_millis(u64::try_from(SESSION_TIMEOUT).unwrap());
    let application = application(home, verdict);
    let log: log::SharedLog = Arc::new(home.clone());
    let thread = ThreadDriver::new(
        &application,
        config,
        log,
        Arc::new(home.clone()),
        Arc::new(disk.clone()),
        0,
    );
    let mut thread = thread.expect("the simulated log has all topics");
    loop {
        home.stage.pass(home.process);
        match thread.turn() {
            Ok(()) => {}
            Err(Error::Fenced { .. }) => return home.stage.broker.lock().unwrap().note("exit"),
            Err(error) => {
                verdict
                    .lock()
                    .unwrap()
                    .get_or_insert(format!("process ended: {}", process::chain(&error)));
                return;
            }
        }
        if let Some(cause) = thread.causes().into_iter().find(|cause| cause.contains("stopped")) {
            verdict.lock().unwrap().get_or_insert(cause);
        }
    }
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng(seed.wrapping_mul(0x2545_F491_4F6C_DD1D).wrapping_add(1));
        let fault = rng.pick(&[0.0, 0.01, 0.05, 0.15]);
        let speed = rng.pick(&[0.7, 0.2, 0.05]);
        let names: Vec<String> = (0..rng.pick(&[2, 3])).map(|i| format!("i{i}")).collect();
        let is_static = rng.chance(0.5);
        let rates = ["kill", "pause", "respawn", "jump", "rebalance", "wipe"];
        let mut rates: BTreeMap<_, _> = rates.map(|what| (what, rng.pick(&[0.0, 0.003, 0.01, 0.03]))).into();
        let mut broker = Broker::new(Rng(rng.next()), tasks(), fault, speed);
        broker.forget = rng.pick(&[0.0, 0.0, 0.02, 0.1]);
        if broker.forget > 0.0 {
            // A recovery then lasts as long as three transactions; leaps in it would outrun every tombstone.
            rates.insert("jump", 0.0);
        }
        let stage = Stage::new(broker);
        let mut world = World {
            stage,
            rng,
            processes: Vec::new(),
            names: names.clone(),
            is_static,
            rates,
            verdict: Verdict::default(),
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
        let (own, its_disk, verdict) = (name.to_owned(), disk.clone(), self.verdict.clone());
        let body = move || {
            let run = || {
                home.stage.wait(home.process);
                live(&home, &own, &its_disk, &verdict);
            };
            if let Err(cause) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
                && !cause.is::<Killed>()
            {
                let text = cause.downcast_ref::<String>().cloned();
                let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                verdict.lock().unwrap().get_or_insert(format!("panic: {text:?}"));
            }
            home.stage.end(home.process);
        };
        let thread = std::thread::Builder::new()
            .name(format!("{name}-{process}"))
            .spawn(body)
            .unwrap();
        self.processes.push(Process {
            name: name.to_owned(),
            disk,
            gone: None,
            alive: true,
            thread: Some(thread),
        });
    }

    fn note(&self, what: &'static str) {
        self.stage.broker.lock().unwrap().note(what);
    }

    fn now(&self) -> Millis {
        self.stage.broker.lock().unwrap().now
    }

    fn kill(&mut self, process: usize) {
        self.stage.kill(process);
        let now = self.now();
        let process = &mut self.processes[process];
        process.alive = false;
        process.gone.get_or_insert(now);
        if let Some(thread) = process.thread.take() {
            thread.join().unwrap();
        }
    }

    /// One moment: time passes, most processes run to their next call, the broker does what it does by itself.
    fn step(&mut self) {
        let pause = Millis::try_from(self.rng.below(20)).unwrap();
        self.stage.broker.lock().unwrap().now += pause;
        let answers = |p: &Process| p.alive && p.gone.is_none();
        let mut who: Vec<usize> = (0..self.processes.len())
            .filter(|&i| answers(&self.processes[i]))
            .collect();
        self.rng.shuffle(&mut who);
        if who.len() > 1 {
            who.pop();
        }
        for process in who {
            if self.stage.run(process) {
                let now = self.now();
                self.processes[process].alive = false;
                self.processes[process].gone = Some(now);
            }
        }
        let gone: Vec<Option<Millis>> = self.processes.iter().map(|p| p.gone).collect();
        self.stage.broker.lock().unwrap().step(&|process| gone[process]);
    }

    /// The outside world writes; a third of the records change nothing.
    fn feed(&mut self) {
        let to = self.rng.pick(&[
            at("change", 0),
            at("event", 0),
            at("event", 1),
            at("left", 0),
            at("right", 0),
        ]);
        let n = self.rng.pick(&[1, 1, 2, 3]);
        for _ in 0..n {
            let key = self.rng.pick(&[b"a", b"b"]).to_vec();
            let value = if self.rng.chance(0.67) { b"+" } else { b"-" }.to_vec();
            let mut broker = self.stage.broker.lock().unwrap();
            let now = broker.now;
            broker
                .parts
                .entry(to.clone())
                .or_default()
                .append(now, &[(Some(key), Some(value))], None);
        }
    }

    fn hit(&mut self, what: &str) -> bool {
        let rate = self.rates[what];
        self.rng.chance(rate)
    }

    fn mischief(&mut self) {
        for process in 0..self.processes.len() {
            if !self.processes[process].alive {
                continue;
            }
            let answers = self.processes[process].gone.is_none();
            if self.hit("kill") {
                self.note("kill");
                self.kill(process);
                let lost = if self.rng.chance(0.3) { self.rng.below(4) } else { 0 };
                self.processes[process].disk.lose(lost);
                if self.hit("wipe") || self.rng.chance(0.1) {
                    self.note("wipe");
                    self.processes[process].disk.wipe();
                }
            } else if answers && self.hit("pause") {
                self.note("pause");
                self.processes[process].gone = Some(self.now());
            } else if answers && self.hit("respawn") && self.alive_as(process) < 2 {
                // A second process under the same names, elsewhere, with its own disk.
                self.note("respawn");
                self.processes[process].gone = Some(self.now());
                let name = self.processes[process].name.clone();
                self.spawn(&name, Disk::default());
            } else if !answers && self.rng.chance(0.02) {
                self.processes[process].gone = None;
            }
        }
        self.revive(0.02);
        if self.hit("jump") {
            self.note("jump");
            self.stage.broker.lock().unwrap().now += self.rng.pick(&[700, 2000, 12_000, 18_000, 26_000, 40_000]);
        }
        if self.hit("rebalance") {
            self.stage.broker.lock().unwrap().group.rebalance();
        }
    }

    fn alive_as(&self, process: usize) -> usize {
        let name = &self.processes[process].name;
        self.processes.iter().filter(|p| p.alive && p.name == *name).count()
    }

    fn revive(&mut self, probability: f64) {
        for name in self.names.clone() {
            let alive = self.processes.iter().any(|p| p.alive && p.name == name);
            if !alive && self.rng.chance(probability) {
                let disk = self
                    .processes
                    .iter()
                    .rev()
                    .find(|p| p.name == name)
                    .map(|p| p.disk.clone());
                self.spawn(&name, disk.unwrap_or_default());
            }
        }
    }

    /// Whether everything is consumed and decided.
    fn idle(&self) -> bool {
        let broker = self.stage.broker.lock().unwrap();
        broker.is_still()
            && broker.tasks.iter().all(|(changelog, inputs)| {
                let waits = TimerClock::Wall.prefix();
                if broker.truth[changelog].keys().any(|key| key.starts_with(&waits)) {
                    return false;
                }
                let marker = broker.truth[changelog].get(crate::MARKER_KEY);
                let marker = marker.map(|value| crate::Marker::read(value).unwrap());
                inputs.iter().all(|input| {
                    let next = marker.as_ref().and_then(|m| m.next_offset(input)).unwrap_or(0);
                    broker
                        .parts
                        .get(input)
                        .is_none_or(|part| part.read(next, 1).0.is_empty())
                })
            })
    }

    fn run(&mut self) -> std::result::Result<(), String> {
        let steps = self.rng.pick(&[100, 200, 400, 800]);
        for _ in 0..steps {
            self.step();
            self.mischief();
            if self.rng.chance(0.12) {
                self.feed();
            }
            self.check()?;
        }
        let mut broker = self.stage.broker.lock().unwrap();
        broker.fault = 0.0;
        broker.speed = 0.9;
        broker.forget = 0.0;
        drop(broker);
        // One process a name survives, the old one or the new; sleepers wake.
        for name in self.names.clone() {
            let mut same: Vec<usize> = (0..self.processes.len()).collect();
            same.retain(|&i| self.processes[i].alive && self.processes[i].name == name);
            self.rng.shuffle(&mut same);
            for process in same.into_iter().skip(1) {
                self.kill(process);
            }
        }
        self.processes
            .iter_mut()
            .filter(|p| p.alive)
            .for_each(|p| p.gone = None);
        for i in 0..6000 {
            self.step();
            self.revive(0.3);
            self.check()?;
            if i % 20 == 0 && self.idle() {
                return self.verify();
            }
        }
        Err("not finished in time".to_owned())
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.verdict.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    /// Output, read_committed, equals one sequential run over what was read.
    fn verify(&self) -> std::result::Result<(), String> {
        let broker = self.stage.broker.lock().unwrap();
        for (changelog, inputs) in &broker.tasks {
            let store = changelog.topic.rsplit('.').next().unwrap();
            let out = at(&format!("out.{store}"), changelog.partition);
            let mut counts: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            let mut seen: BTreeMap<String, Vec<Offset>> = BTreeMap::new();
            for record in broker
                .parts
                .get(&out)
                .map_or(Vec::new(), |part| part.read(0, usize::MAX).0)
            {
                let text = String::from_utf8(record.value.unwrap()).unwrap();
                let words: Vec<&str> = text.split(' ').collect();
                let count = counts.entry(record.key.clone().unwrap()).or_default();
                *count = *count % FULL + 1;
                if count.to_string() != words[0] {
                    return Err(format!("{out}@{}: {text}, sequentially {count}", record.offset));
                }
                seen.entry(words[1].to_owned())
                    .or_default()
                    .push(words[2].parse().unwrap());
            }
            for input in inputs {
                let records = broker
                    .parts
                    .get(input)
                    .map_or(Vec::new(), |part| part.read(0, usize::MAX).0);
                let counting = records.iter().filter(|r| r.value.as_deref() == Some(b"+"));
                let want: Vec<Offset> = counting.map(|r| r.offset).collect();
                let got = seen.remove(&input.to_string()).unwrap_or_default();
                if got != want {
                    return Err(format!("{out} from {input}: got {got:?}, want {want:?}"));
                }
            }
            timers_fired(&broker, store, changelog.partition, inputs)?;
        }
        Ok(())
    }
}

/// Every counted record's timer of the wall clock has fired once, and that of stream time as soon as that was so late.
fn timers_fired(
    broker: &Broker,
    store: &str,
    partition: i32,
    inputs: &[TopicPartition],
) -> std::result::Result<(), String> {
    let read = |at: &TopicPartition| {
        broker
            .parts
            .get(at)
            .map_or(Vec::new(), |part| part.read(0, usize::MAX).0)
    };
    let (mut want, mut newest) = (Vec::new(), 0);
    for input in inputs {
        for record in read(input) {
            newest = record.at.max(newest);
            if record.value.as_deref() == Some(b"+") {
                want.push((record.at, format!("{input} {}", record.offset)));
            }
        }
    }
    let late = want.iter().filter(|(at, _)| at + LATER <= newest);
    let stream = late.map(|(_, place)| format!("stream {place}"));
    let mut want: Vec<String> = want
        .iter()
        .map(|(_, place)| format!("wall {place}"))
        .chain(stream)
        .collect();
    let text = |bytes: Option<Vec<u8>>| String::from_utf8(bytes.unwrap()).unwrap();
    let fired = read(&at(&format!("fired.{store}"), partition)).into_iter();
    let mut got: Vec<String> = fired.map(|r| format!("{} {}", text(r.key), text(r.value))).collect();
    want.sort();
    got.sort();
    if got == want {
        Ok(())
    } else {
        Err(format!("timers of {store}/{partition}: got {got:?}, want {want:?}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in 0..self.processes.len() {
            if self.processes[process].thread.is_some() {
                self.kill(process);
            }
        }
    }
}

/// Runs some seeds; returns what happened in them, or the first that fails.
fn simulate(from: u64, count: u64) -> std::result::Result<BTreeMap<&'static str, u64>, String> {
    let mut notes = BTreeMap::new();
    for seed in from..from + count {
        let mut world = World::new(seed);
        world.run().map_err(|text| format!("seed {seed}: {text}"))?;
        for (what, n) in &world.stage.broker.lock().unwrap().notes {
            *notes.entry(*what).or_default() += n;
        }
    }
    Ok(notes)
}

#[test]
fn output_under_random_faults_equals_one_sequential_run() {
    let seeds = process::config::env("TRUNKLINE_SIMULATION");
    let seeds = seeds.as_deref().and_then(|text| text.split_once(','));
    let (from, count) = seeds.map_or((1, 300), |(from, count)| {
        (from.parse().unwrap(), count.parse().unwrap())
    });
    let began = std::time::Instant::now();
    let notes = simulate(from, count).unwrap();
    println!("{count} seeds from {from} in {:?}: {notes:?}", began.elapsed());
    for what in [
        "started",
        "kill",
        "pause",
        "wipe",
        "committed",
        "aborted",
        "exit",
        "transaction timed out",
        "end forgotten",
    ] {
        assert!(
            count < 300 || notes.contains_key(what),
            "no {what} in {count} seeds: the simulation tests too little"
        );
    }
}

#[test]
fn a_fenced_epoch_is_refused_by_the_simulated_broker() {
    let mut broker = Broker::new(Rng(1), tasks(), 0.0, 1.0);
    let first = broker.init("x").unwrap();
    assert_eq!(broker.init("x"), Ok(first + 1));
    assert_eq!(
        broker.produce("x", first, &at("out.a", 0), &[]),
        Err(Refusal::Fenced("epoch"))
    );
}
