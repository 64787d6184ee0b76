//! A small Kafka in memory: partitions with transactions, one group, one transaction coordinator, and a network that
//! loses, delays and hides answers.
//!
//! Guarantees: epochs, generations, pending offsets, transaction timeouts and control records that reach each partition
//! at a moment of its own behave as Kafka's do; every choice comes from the seed.
//! Never: helping the client. A protocol that is wrong gets wrong results.

use super::Rng;
use super::group::{Group, Rows};
use super::part::{Cleaning, Part, Row};
use event_log::{Millis, Offset, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// `transaction.timeout.ms` of every simulated process.
pub(super) const TXN_TIMEOUT: Millis = 600;
/// `session.timeout.ms` of every simulated process.
pub(super) const SESSION_TIMEOUT: Millis = 800;
/// `delete.retention.ms` of changelogs.
pub(super) const DELETE_RETENTION: Millis = 20_000;
/// How long an empty group keeps its offsets.
pub(super) const OFFSET_RETENTION: Millis = 25_000;
/// The largest value that a topic takes, but for one of dead letters.
pub(super) const VALUE_BYTES_MAX: usize = 4096;

/// What the broker answers when it does not do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not now.
    Retry,
    /// Offsets are part of a transaction that is not decided.
    Undecided,
    /// Epoch, generation or member refused.
    Fenced(&'static str),
    /// Nobody knows whether it happened.
    Timeout,
}

pub(super) type Answer<T> = Result<T, Refusal>;

/// Tasks by changelog, with their inputs.
pub type Tasks = BTreeMap<TopicPartition, Vec<TopicPartition>>;

/// The topics of a simulation.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// The tasks; their inputs and changelogs are topics.
    pub tasks: Tasks,
    /// Compacted topics but for the changelogs.
    pub compacted: BTreeMap<TopicPartition, Cleaning>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Ongoing,
    Ending { commit: bool },
}

/// What a transaction touched: partitions, and perhaps the group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Touched {
    Part(TopicPartition),
    Group,
}

#[derive(Debug)]
struct Coordinator {
    epoch: i32,
    phase: Phase,
    txn: u64,
    started: Millis,
    touched: BTreeSet<Touched>,
    last_commit: Option<bool>,
}

/// A request that arrives late.
type Late = Box<dyn FnOnce(&mut Broker) + Send>;

/// What a changelog holds once a transaction was decided.
pub(super) type Truth = BTreeMap<Vec<u8>, Vec<u8>>;

/// How often what happened.
pub type Notes = BTreeMap<&'static str, u64>;

/// How likely what is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FaultPlan {
    /// A request or its answer is lost.
    pub fault: f64,
    /// The end of a transaction arrives at a place that it touched, at a step.
    pub speed: f64,
    /// A commit never comes to the group, as after a lone broker's restart.
    pub forget: f64,
    /// A process dies at a failpoint that it passes.
    pub crash: f64,
}

/// The simulated broker.
pub struct Broker {
    /// Its time, which is also that of every process.
    pub(super) now: Millis,
    pub(super) rng: Rng,
    parts: BTreeMap<TopicPartition, Part>,
    pub(super) group: Group,
    pub(super) layout: Layout,
    pub(super) truth: BTreeMap<TopicPartition, Truth>,
    coordinators: BTreeMap<String, Coordinator>,
    net: Vec<Late>,
    txns: u64,
    pub(super) fault_plan: FaultPlan,
    pub(super) notes: Notes,
    /// Every note with its time: what a failing run prints the end of.
    pub(super) trace: Vec<(Millis, &'static str)>,
    /// Folds every choice: two runs of a seed must end with the same.
    pub(super) trail: u64,
    passed: BTreeMap<&'static str, u32>,
}

impl Broker {
    pub(super) fn new(rng: Rng, layout: Layout, fault_plan: FaultPlan) -> Self {
        let truth = layout.tasks.keys().map(|at| (at.clone(), Truth::new())).collect();
        Broker {
            now: 1_000_000,
            rng,
            parts: BTreeMap::new(),
            group: Group::default(),
            layout,
            truth,
            coordinators: BTreeMap::new(),
            net: Vec::new(),
            txns: 0,
            fault_plan,
            notes: BTreeMap::new(),
            trace: Vec::new(),
            trail: 0,
            passed: BTreeMap::new(),
        }
    }

    /// Now, in ms.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Lets time pass.
    pub fn pass(&mut self, ms: Millis) {
        self.now += ms.max(0);
    }

    /// Counts something that happened.
    pub fn note(&mut self, what: &'static str) {
        *self.notes.entry(what).or_default() += 1;
        self.trace.push((self.now, what));
    }

    /// Folds a choice into the trail.
    pub(super) fn mix(&mut self, choice: u64) {
        self.trail = (self.trail ^ choice)
            .wrapping_mul(0x0000_0100_0000_01B3)
            .rotate_left(23);
    }

    /// A partition as it stands; one that was never written is empty.
    pub fn part(&mut self, at: &TopicPartition) -> &mut Part {
        self.parts.entry(at.clone()).or_default()
    }

    /// Appends outside of any transaction, as the world does that is not simulated. Returns the first offset.
    pub fn append(&mut self, at: &TopicPartition, rows: impl IntoIterator<Item = Row>) -> Offset {
        let (now, rows): (_, Rows) = (self.now, rows.into_iter().map(Arc::new).collect());
        self.part(at).append(now, &rows, None)
    }

    /// Whether a process dies that passes this failpoint: rather at one that was passed seldom.
    pub(super) fn crashes_at(&mut self, point: &'static str) -> bool {
        let passed = self.passed.entry(point).or_default();
        *passed += 1;
        let seldom = if *passed <= 6 { 3.0 } else { 1.0 };
        let dies = self.fault_plan.crash > 0.0 && self.rng.chance(self.fault_plan.crash * seldom);
        if dies {
            self.note(point);
        }
        dies
    }

    /// A request; it may get lost, lose its answer, or arrive late.
    pub(super) fn request<T: 'static>(
        &mut self,
        request: impl FnOnce(&mut Broker) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        if !self.rng.chance(self.fault_plan.fault) {
            return request(self);
        }
        match self.rng.below(3) {
            0 => self.note("request lost"),
            1 => {
                self.note("answer lost");
                let _ = request(self);
            }
            _ => {
                self.note("request late");
                self.net.push(Box::new(move |broker| {
                    let _ = request(broker);
                }));
            }
        }
        Err(Refusal::Timeout)
    }

    pub(super) fn init(&mut self, id: &str) -> Answer<i32> {
        let fresh = || Coordinator {
            epoch: 0,
            phase: Phase::Idle,
            txn: 0,
            started: 0,
            touched: BTreeSet::new(),
            last_commit: None,
        };
        let c = self.coordinators.entry(id.to_owned()).or_insert_with(fresh);
        if matches!(c.phase, Phase::Ending { .. }) {
            return Err(Refusal::Retry);
        }
        c.epoch += 1;
        if c.phase == Phase::Ongoing {
            self.decide(id, false);
            return Err(Refusal::Retry);
        }
        Ok(c.epoch)
    }

    /// The coordinator of a writer whose epoch it still is.
    fn coordinator(&mut self, id: &str, epoch: i32) -> Answer<&mut Coordinator> {
        let current = self.coordinators.get(id).map(|c| c.epoch);
        if current != Some(epoch) {
            self.note("fenced");
            return Err(Refusal::Fenced("epoch"));
        }
        Ok(self.coordinators.get_mut(id).expect("it was found above"))
    }

    fn enter(&mut self, id: &str, epoch: i32, touched: Touched) -> Answer<u64> {
        let (now, next) = (self.now, self.txns + 1);
        let c = self.coordinator(id, epoch)?;
        match c.phase {
            Phase::Ending { .. } => return Err(Refusal::Retry),
            Phase::Idle => {
                (c.phase, c.txn, c.started) = (Phase::Ongoing, next, now);
                c.touched.clear();
            }
            Phase::Ongoing => {}
        }
        c.touched.insert(touched);
        let txn = c.txn;
        self.txns = self.txns.max(txn);
        Ok(txn)
    }

    /// Returns the first offset and the append time.
    pub(super) fn produce(
        &mut self,
        id: &str,
        epoch: i32,
        at: &TopicPartition,
        rows: &[Arc<Row>],
    ) -> Answer<(Offset, Millis)> {
        let txn = self.enter(id, epoch, Touched::Part(at.clone()))?;
        let now = self.now;
        Ok((self.part(at).append(now, rows, Some(txn)), now))
    }

    pub(super) fn send_offsets(
        &mut self,
        id: &str,
        epoch: i32,
        offsets: &[(TopicPartition, Offset)],
        (name, member, generation): &(String, i32, i32),
    ) -> Answer<()> {
        self.coordinator(id, epoch)?;
        if !self.group.accepts(name, *member, *generation) {
            self.note("fenced by generation");
            return Err(Refusal::Fenced("generation"));
        }
        let txn = self.enter(id, epoch, Touched::Group)?;
        self.group.put_pending(txn, offsets);
        Ok(())
    }

    pub(super) fn end(&mut self, id: &str, epoch: i32, commit: bool) -> Answer<()> {
        let c = self.coordinator(id, epoch)?;
        match c.phase {
            Phase::Idle if c.last_commit == Some(commit) => Ok(()),
            Phase::Ending { commit: ending } if ending == commit => Ok(()),
            Phase::Ongoing => {
                self.decide(id, commit);
                Ok(())
            }
            _ => Err(Refusal::Fenced("state")),
        }
    }

    /// The decision is durable: from here the truth is settled, control records follow.
    fn decide(&mut self, id: &str, commit: bool) {
        let c = self.coordinators.get_mut(id).expect("it has a transaction");
        c.phase = Phase::Ending { commit };
        let txn = c.txn;
        if c.touched.is_empty() {
            c.phase = Phase::Idle;
            c.last_commit = Some(commit);
        }
        let truths = self.truth.iter_mut().filter(|_| commit);
        for (at, truth) in truths {
            let Some(part) = self.parts.get(at) else { continue };
            for r in part.of_transaction(txn) {
                let key = r.row.key.clone().expect("changelog records have keys");
                match &r.row.value {
                    Some(value) => truth.insert(key, value.clone()),
                    None => truth.remove(&key),
                };
            }
        }
        self.note(if commit { "committed" } else { "aborted" });
    }

    /// What happens by itself: a control record, timeouts, a late request, cleaning, expiry.
    pub(super) fn step(&mut self, gone: &dyn Fn(usize) -> Option<Millis>) {
        self.mark_some();
        self.time_out();
        if !self.net.is_empty() && self.rng.chance(0.15) {
            let request = self.net.swap_remove(self.rng.below(self.net.len()));
            request(self);
        }
        if self.group.expire(self.now, gone, &mut self.rng, &self.layout.tasks) {
            self.note("offsets expired");
        }
        if self.rng.chance(0.1) {
            self.clean_one();
        }
    }

    fn writers(&self, of: impl Fn(&Coordinator) -> bool) -> Vec<String> {
        let found = self.coordinators.iter().filter(|(_, c)| of(c));
        found.map(|(id, _)| id.clone()).collect()
    }

    /// The ends of transactions come to some of the places that these touched.
    fn mark_some(&mut self) {
        for id in self.writers(|c| matches!(c.phase, Phase::Ending { .. })) {
            let Some(c) = self.coordinators.get(&id) else { continue };
            let Phase::Ending { commit } = c.phase else { continue };
            let (txn, touched): (u64, Vec<Touched>) = (c.txn, c.touched.iter().cloned().collect());
            for place in touched {
                if self.rng.chance(self.fault_plan.speed) {
                    self.mark(&id, txn, place, commit);
                }
            }
        }
    }

    fn mark(&mut self, id: &str, txn: u64, place: Touched, commit: bool) {
        if let Some(c) = self.coordinators.get_mut(id) {
            c.touched.remove(&place);
            if c.touched.is_empty() {
                c.phase = Phase::Idle;
                c.last_commit = Some(commit);
            }
        }
        match place {
            Touched::Part(at) => {
                let now = self.now;
                self.part(&at).mark(now, txn, commit);
            }
            Touched::Group if commit && self.rng.chance(self.fault_plan.forget) => self.note("end forgotten"),
            Touched::Group => self.group.mark(txn, commit),
        }
    }

    fn time_out(&mut self) {
        let now = self.now;
        for id in self.writers(|c| c.phase == Phase::Ongoing && now - c.started > TXN_TIMEOUT) {
            if let Some(c) = self.coordinators.get_mut(&id) {
                c.epoch += 1;
            }
            self.note("transaction timed out");
            self.decide(&id, false);
        }
    }

    fn clean_one(&mut self) {
        let own = Cleaning {
            lag_ms: 0,
            delete_retention_ms: DELETE_RETENTION,
        };
        let changelogs = self.layout.tasks.keys().map(|at| (at.clone(), own));
        let others = self.layout.compacted.iter().map(|(at, how)| (at.clone(), *how));
        let all: Vec<(TopicPartition, Cleaning)> = changelogs.chain(others).collect();
        let (at, how) = self.rng.pick(&all);
        let (now, mut rng) = (self.now, self.rng.fork());
        let done = self.part(&at).clean(now, &how, &mut rng);
        if done.records > 0 {
            self.note("cleaned");
        }
        if done.tombstones > 0 {
            self.note("tombstones cleaned");
        }
    }

    /// Whether nothing is on its way any more.
    pub(super) fn is_still(&self) -> bool {
        self.net.is_empty() && self.coordinators.values().all(|c| c.phase == Phase::Idle)
    }
}
