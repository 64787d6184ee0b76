//! A small Kafka in memory: partitions with transactions, one group, one transaction coordinator, and a network that
//! loses, delays and hides answers.
//!
//! Guarantees: control records, the last stable offset, compaction with tombstones that expire, epochs, generations,
//! pending offsets and their expiry behave as Kafka's do; every choice comes from the seed.
//! Never: helping the client. A protocol that is wrong gets wrong results.

use log::{Millis, Offset, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const TXN_TIMEOUT: Millis = 600;
pub(super) const SESSION_TIMEOUT: Millis = 800;
pub(super) const DELETE_RETENTION: Millis = 20_000;
const OFFSET_RETENTION: Millis = 25_000;

/// Choices from a seed (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct Rng(pub u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in 0..n.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let n = u64::try_from(n.max(1)).unwrap();
        usize::try_from(self.next() % n).unwrap()
    }

    pub(super) fn chance(&mut self, p: f64) -> bool {
        let max = 1_u64 << 32;
        f64::from(u32::try_from(self.next() % max).unwrap()) < p * f64::from(u32::MAX)
    }

    pub(super) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    pub(super) fn shuffle<T>(&mut self, of: &mut [T]) {
        for i in (1..of.len()).rev() {
            of.swap(i, self.below(i + 1));
        }
    }
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Open,
    Committed,
    Aborted,
    Control,
}

#[derive(Debug, Clone)]
pub(super) struct Rec {
    pub offset: Offset,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub at: Millis,
    pub txn: Option<u64>,
    pub state: State,
    horizon: Option<Millis>,
}

pub(super) type Row = (Option<Vec<u8>>, Option<Vec<u8>>);

#[derive(Debug, Default)]
pub(super) struct Part {
    pub log: Vec<Rec>,
    pub end: Offset,
    open: BTreeMap<u64, Offset>,
}

impl Part {
    pub(super) fn lso(&self) -> Offset {
        self.open.values().copied().min().unwrap_or(self.end)
    }

    pub(super) fn append(&mut self, now: Millis, rows: &[Row], txn: Option<u64>) -> Offset {
        let first = self.end;
        if let Some(txn) = txn {
            self.open.entry(txn).or_insert(first);
        }
        for (key, value) in rows {
            let state = if txn.is_some() { State::Open } else { State::Committed };
            let (key, value) = (key.clone(), value.clone());
            self.log.push(Rec {
                offset: self.end,
                key,
                value,
                at: now,
                txn,
                state,
                horizon: None,
            });
            self.end += 1;
        }
        first
    }

    fn mark(&mut self, now: Millis, txn: u64, commit: bool) {
        let state = if commit { State::Committed } else { State::Aborted };
        self.log
            .iter_mut()
            .filter(|r| r.txn == Some(txn) && r.state == State::Open)
            .for_each(|r| r.state = state);
        let control = Rec {
            offset: self.end,
            key: None,
            value: None,
            at: now,
            txn: None,
            state: State::Control,
            horizon: None,
        };
        self.log.push(control);
        self.end += 1;
        self.open.remove(&txn);
    }

    /// read_committed: some records, and the position after them.
    pub(super) fn read(&self, from: Offset, n: usize) -> (Vec<Rec>, Offset) {
        let (mut out, mut position, limit) = (Vec::new(), from, self.lso());
        let first = self.log.partition_point(|r| r.offset < from);
        for record in &self.log[first..] {
            if record.offset >= limit || out.len() == n {
                return (out, position);
            }
            position = record.offset + 1;
            if record.state == State::Committed {
                out.push(record.clone());
            }
        }
        (out, position.max(limit))
    }

    /// Below a random dirty limit, never past the last stable offset.
    pub(super) fn compact(&mut self, now: Millis, rng: &mut Rng) {
        let limit = Offset::try_from(rng.below(usize::try_from(self.lso()).unwrap() + 1)).unwrap();
        let mut last = BTreeMap::new();
        for r in self
            .log
            .iter()
            .filter(|r| r.offset < limit && r.state == State::Committed)
        {
            last.insert(r.key.clone(), r.offset);
        }
        self.log.retain_mut(|r| {
            if r.offset >= limit {
                return true;
            }
            if r.state != State::Committed || last.get(&r.key) != Some(&r.offset) {
                return false;
            }
            if r.value.is_some() {
                return true;
            }
            now < *r.horizon.get_or_insert(now + DELETE_RETENTION)
        });
    }
}

/// A consumer group with the offsets that it has committed.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Member id and process by name.
    pub members: BTreeMap<String, (i32, usize)>,
    pub generation: i32,
    pub joining: Option<BTreeSet<String>>,
    pub assignment: BTreeMap<String, Vec<TopicPartition>>,
    pub committed: BTreeMap<TopicPartition, Offset>,
    /// Offsets of transactions whose end has not come here.
    pending: BTreeMap<u64, BTreeMap<TopicPartition, Offset>>,
    empty_since: Millis,
    ids: i32,
}

impl Group {
    pub(super) fn fetch(
        &self,
        of: &[TopicPartition],
        stable: bool,
    ) -> Answer<BTreeMap<TopicPartition, Option<Offset>>> {
        if stable && self.pending.values().any(|p| of.iter().any(|at| p.contains_key(at))) {
            return Err(Refusal::Undecided);
        }
        Ok(of
            .iter()
            .map(|at| (at.clone(), self.committed.get(at).copied()))
            .collect())
    }

    /// Joins; a known static name without a member id takes the old seat without a rebalance.
    pub(super) fn join(&mut self, name: &str, id: Option<i32>, process: usize, rng: &mut Rng, tasks: &Tasks) -> i32 {
        if self.members.contains_key(name) && id.is_none() && self.joining.is_none() {
            self.ids += 1;
            self.members.insert(name.to_owned(), (self.ids, process));
            return self.ids;
        }
        let known = self.members.get(name).map(|(id, _)| *id);
        let id = id.filter(|id| known == Some(*id)).unwrap_or_else(|| {
            self.ids += 1;
            self.ids
        });
        self.members.insert(name.to_owned(), (id, process));
        self.joining.get_or_insert_default().insert(name.to_owned());
        self.complete(rng, tasks);
        id
    }

    pub(super) fn rebalance(&mut self) {
        if self.joining.is_none() && !self.members.is_empty() {
            self.joining = Some(BTreeSet::new());
        }
    }

    fn complete(&mut self, rng: &mut Rng, tasks: &Tasks) {
        let all = self
            .joining
            .as_ref()
            .is_some_and(|joined| self.members.keys().all(|name| joined.contains(name)));
        if !all {
            return;
        }
        self.generation += 1;
        self.joining = None;
        self.assignment = self.members.keys().map(|name| (name.clone(), Vec::new())).collect();
        let names: Vec<String> = self.members.keys().cloned().collect();
        for inputs in tasks.values() {
            let member = rng.pick(&names);
            self.assignment.get_mut(&member).unwrap().extend(inputs.iter().cloned());
        }
    }

    fn expire(&mut self, now: Millis, gone: &dyn Fn(usize) -> Option<Millis>, rng: &mut Rng, tasks: &Tasks) {
        let names: Vec<String> = self.members.keys().cloned().collect();
        for name in names {
            let process = self.members[&name].1;
            if gone(process).is_none_or(|since| now - since <= SESSION_TIMEOUT) {
                continue;
            }
            self.members.remove(&name);
            self.rebalance();
            if let Some(joining) = &mut self.joining {
                joining.remove(&name);
            }
            if self.members.is_empty() {
                self.empty_since = now;
                self.joining = None;
            } else {
                self.complete(rng, tasks);
            }
        }
        if self.members.is_empty() && now - self.empty_since > OFFSET_RETENTION {
            let busy: BTreeSet<_> = self.pending.values().flat_map(|p| p.keys().cloned()).collect();
            self.committed.retain(|at, _| busy.contains(at));
        }
    }
}

/// Tasks by changelog, with their inputs.
pub(super) type Tasks = BTreeMap<TopicPartition, Vec<TopicPartition>>;

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

pub(super) struct Broker {
    pub now: Millis,
    pub rng: Rng,
    pub parts: BTreeMap<TopicPartition, Part>,
    pub group: Group,
    pub tasks: Tasks,
    pub truth: BTreeMap<TopicPartition, Truth>,
    coordinators: BTreeMap<String, Coordinator>,
    net: Vec<Late>,
    txns: u64,
    /// Probability that a request or its answer is lost.
    pub fault: f64,
    /// Probability that a marker arrives at a step.
    pub speed: f64,
    /// Probability that a commit never comes to the group, as after a lone broker's restart.
    pub forget: f64,
    pub notes: BTreeMap<&'static str, u64>,
}

impl Broker {
    pub(super) fn new(rng: Rng, tasks: Tasks, fault: f64, speed: f64) -> Self {
        Broker {
            now: 1_000_000,
            rng,
            parts: BTreeMap::new(),
            group: Group::default(),
            truth: tasks.keys().map(|at| (at.clone(), Truth::new())).collect(),
            tasks,
            coordinators: BTreeMap::new(),
            net: Vec::new(),
            txns: 0,
            fault,
            speed,
            forget: 0.0,
            notes: BTreeMap::new(),
        }
    }

    pub(super) fn note(&mut self, what: &'static str) {
        *self.notes.entry(what).or_default() += 1;
    }

    /// A request; it may get lost, lose its answer, or arrive late.
    pub(super) fn request<T: 'static>(
        &mut self,
        request: impl FnOnce(&mut Broker) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        if !self.rng.chance(self.fault) {
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

    fn enter(&mut self, id: &str, epoch: i32, touched: Touched) -> Answer<u64> {
        let c = self.coordinators.get_mut(id).expect("initialised");
        if c.epoch != epoch {
            return Err(Refusal::Fenced("epoch"));
        }
        match c.phase {
            Phase::Ending { .. } => return Err(Refusal::Retry),
            Phase::Idle => {
                self.txns += 1;
                c.phase = Phase::Ongoing;
                c.txn = self.txns;
                c.started = self.now;
                c.touched.clear();
            }
            Phase::Ongoing => {}
        }
        c.touched.insert(touched);
        Ok(c.txn)
    }

    /// Returns the first offset and the append time.
    pub(super) fn produce(
        &mut self,
        id: &str,
        epoch: i32,
        at: &TopicPartition,
        rows: &[Row],
    ) -> Answer<(Offset, Millis)> {
        let txn = self.enter(id, epoch, Touched::Part(at.clone()))?;
        let now = self.now;
        Ok((
            self.parts.entry(at.clone()).or_default().append(now, rows, Some(txn)),
            now,
        ))
    }

    pub(super) fn send_offsets(
        &mut self,
        id: &str,
        epoch: i32,
        offsets: &[(TopicPartition, Offset)],
        member: &(String, i32, i32),
    ) -> Answer<()> {
        let (name, member_id, generation) = member;
        let c = self.coordinators.get(id).expect("initialised");
        if c.epoch != epoch {
            return Err(Refusal::Fenced("epoch"));
        }
        let known = self.group.members.get(name).map(|(id, _)| *id);
        if known != Some(*member_id) || *generation != self.group.generation {
            return Err(Refusal::Fenced("generation"));
        }
        let txn = self.enter(id, epoch, Touched::Group)?;
        let pending = self.group.pending.entry(txn).or_default();
        pending.extend(offsets.iter().cloned());
        Ok(())
    }

    pub(super) fn end(&mut self, id: &str, epoch: i32, commit: bool) -> Answer<()> {
        let c = self.coordinators.get(id).expect("initialised");
        if c.epoch != epoch {
            return Err(Refusal::Fenced("epoch"));
        }
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

    /// The decision is durable: from here the truth is settled, markers follow.
    fn decide(&mut self, id: &str, commit: bool) {
        let c = self.coordinators.get_mut(id).expect("initialised");
        c.phase = Phase::Ending { commit };
        let txn = c.txn;
        if commit {
            for (at, truth) in &mut self.truth {
                let Some(part) = self.parts.get(at) else { continue };
                for r in part.log.iter().filter(|r| r.txn == Some(txn) && r.state == State::Open) {
                    let key = r.key.clone().expect("changelog records have keys");
                    match &r.value {
                        Some(value) => truth.insert(key, value.clone()),
                        None => truth.remove(&key),
                    };
                }
            }
        }
        if c.touched.is_empty() {
            c.phase = Phase::Idle;
            c.last_commit = Some(commit);
        }
        self.note(if commit { "committed" } else { "aborted" });
    }

    /// What happens by itself: a marker, timeouts, a late request, compaction, expiry.
    pub(super) fn step(&mut self, gone: &dyn Fn(usize) -> Option<Millis>) {
        let ending = |c: &Coordinator| matches!(c.phase, Phase::Ending { .. });
        let ids: Vec<String> = self
            .coordinators
            .iter()
            .filter(|(_, c)| ending(c))
            .map(|(id, _)| id.clone())
            .collect();
        if !ids.is_empty() && self.rng.chance(self.speed) {
            let id = self.rng.pick(&ids);
            let c = self.coordinators.get_mut(&id).expect("listed");
            let touched: Vec<Touched> = c.touched.iter().cloned().collect();
            let next = self.rng.pick(&touched);
            let Phase::Ending { commit } = c.phase else {
                unreachable!()
            };
            c.touched.remove(&next);
            match next {
                Touched::Part(at) => self.parts.entry(at).or_default().mark(self.now, c.txn, commit),
                Touched::Group if commit && self.rng.chance(self.forget) => {
                    *self.notes.entry("end forgotten").or_default() += 1;
                }
                Touched::Group => {
                    let offsets = self.group.pending.remove(&c.txn).unwrap_or_default();
                    if commit {
                        self.group.committed.extend(offsets);
                    }
                }
            }
            if c.touched.is_empty() {
                c.phase = Phase::Idle;
                c.last_commit = Some(commit);
            }
        }
        let late = |c: &Coordinator, now: Millis| c.phase == Phase::Ongoing && now - c.started > TXN_TIMEOUT;
        let now = self.now;
        let ids: Vec<String> = self
            .coordinators
            .iter()
            .filter(|(_, c)| late(c, now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            self.coordinators.get_mut(&id).expect("listed").epoch += 1;
            self.note("transaction timed out");
            self.decide(&id, false);
        }
        if !self.net.is_empty() && self.rng.chance(0.15) {
            let request = self.net.swap_remove(self.rng.below(self.net.len()));
            request(self);
        }
        let tasks = std::mem::take(&mut self.tasks);
        self.group.expire(self.now, gone, &mut self.rng, &tasks);
        if self.rng.chance(0.1) {
            let changelogs: Vec<_> = tasks.keys().cloned().collect();
            let at = self.rng.pick(&changelogs);
            self.parts.entry(at).or_default().compact(self.now, &mut self.rng);
        }
        self.tasks = tasks;
    }

    /// Whether nothing is on its way any more.
    pub(super) fn is_still(&self) -> bool {
        self.net.is_empty() && self.coordinators.values().all(|c| c.phase == Phase::Idle)
    }
}
