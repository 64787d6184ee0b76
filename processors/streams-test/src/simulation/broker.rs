//! The simulated broker: partitions with transactions, one group, one transaction coordinator, and a network that loses
//! and delays requests and responses.
//!
//! Producer epochs, generations, pending offsets, transaction timeouts, and control records that reach each partition
//! at a different time behave as in Kafka. The broker does not compensate for errors of the client: with a wrong
//! protocol, the results are wrong.

use super::Rng;
use super::group::{Group, GroupMember, Rows};
use super::partition::{Cleaning, Partition, Row, batch_of};
use super::protocol::{BrokerError, BrokerResult, DELETE_RETENTION, TXN_TIMEOUT, Tasks};
use super::read_fault::ReadFaults;
use event_log::{Millis, Offset, RecordBatch, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The topics of a simulation.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Tasks. The broker contains their input topics and changelogs.
    pub tasks: Tasks,
    /// Compacted topics other than changelogs.
    pub compacted: BTreeMap<TopicPartition, Cleaning>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Ongoing,
    Ending { commit: bool },
}

/// A participant of a transaction, to which the commit or abort must be applied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Touched {
    Partition(TopicPartition),
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

/// A delayed request.
type Late = Box<dyn FnOnce(&mut Broker) + Send>;

/// The committed rows of a changelog.
pub(super) type CommittedState = BTreeMap<Vec<u8>, Vec<u8>>;

/// How often each event happened.
pub type Notes = BTreeMap<&'static str, u64>;

/// Probabilities of faults of the broker and at failpoints.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FaultPlan {
    /// Probability that a request or its response is lost or delayed.
    pub fault: f64,
    /// Probability, per step, that a commit or abort is applied to a participant.
    pub speed: f64,
    /// Probability that a commit is never applied to the group, as can happen when a single broker restarts.
    pub forget: f64,
    /// Probability that a process crashes at a failpoint that it passes.
    pub crash: f64,
}

/// Record of a run.
#[derive(Default)]
pub(super) struct Journal {
    pub notes: Notes,
    /// All events with their times; a failing run prints the last ones.
    pub trace: Vec<(Millis, &'static str)>,
    /// Hash of all random choices. It must be equal in two runs with the same seed.
    pub trail: u64,
}

/// The transaction coordinator.
#[derive(Default)]
struct Transactions {
    /// Coordinators by transactional id.
    coordinators: BTreeMap<String, Coordinator>,
    /// Number of the newest transaction.
    newest: u64,
}

/// The simulated broker.
pub struct Broker {
    /// The time of the broker and of every process.
    pub(super) now: Millis,
    pub(super) rng: Rng,
    parts: BTreeMap<TopicPartition, Partition>,
    pub(super) group: Group,
    pub(super) layout: Layout,
    pub(super) committed_state: BTreeMap<TopicPartition, CommittedState>,
    transactions: Transactions,
    net: Vec<Late>,
    /// Partitions that cannot be read.
    pub(super) unreadable: ReadFaults,
    pub(super) fault_plan: FaultPlan,
    /// How often each failpoint was passed.
    passed: BTreeMap<&'static str, u32>,
    pub(super) journal: Journal,
}

impl Broker {
    pub(super) fn new(rng: Rng, layout: Layout, fault_plan: FaultPlan) -> Self {
        let committed_state = layout
            .tasks
            .keys()
            .map(|at| (at.clone(), CommittedState::new()))
            .collect();
        Broker {
            now: 1_000_000,
            rng,
            parts: BTreeMap::new(),
            group: Group::default(),
            layout,
            committed_state,
            transactions: Transactions::default(),
            net: Vec::new(),
            unreadable: ReadFaults::default(),
            fault_plan,
            passed: BTreeMap::new(),
            journal: Journal::default(),
        }
    }

    /// Now, in ms.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Advances the time.
    pub fn pass(&mut self, ms: Millis) {
        self.now += ms.max(0);
    }

    /// Counts an event.
    pub fn note(&mut self, what: &'static str) {
        *self.journal.notes.entry(what).or_default() += 1;
        self.journal.trace.push((self.now, what));
    }

    /// Adds a choice to the hash.
    pub(super) fn mix(&mut self, choice: u64) {
        self.journal.trail = (self.journal.trail ^ choice)
            .wrapping_mul(0x0000_0100_0000_01B3)
            .rotate_left(23);
    }

    /// Returns a partition, which is created empty if it does not exist.
    pub fn part(&mut self, at: &TopicPartition) -> &mut Partition {
        self.parts.entry(at.clone()).or_default()
    }

    /// Returns at most `n` committed records of a partition from an offset on, and the position after them.
    pub fn batch(&mut self, at: &TopicPartition, from: Offset, n: usize) -> (RecordBatch, Offset) {
        let (records, position) = self.part(at).read(from, n);
        (batch_of(at, &records), position)
    }

    /// Appends without a transaction, as the environment does. Returns the first offset.
    pub fn append(&mut self, at: &TopicPartition, rows: impl IntoIterator<Item = Row>) -> Offset {
        let (now, rows): (_, Rows) = (self.now, rows.into_iter().map(Arc::new).collect());
        self.part(at).append(now, &rows, None)
    }

    /// Whether a process that passes this failpoint crashes. A crash is more likely at failpoints that were rarely
    /// passed.
    pub(super) fn crashes_at(&mut self, point: &'static str) -> bool {
        let passed = self.passed.entry(point).or_default();
        *passed += 1;
        let rarity = if *passed <= 6 { 3.0 } else { 1.0 };
        let crashes = self.fault_plan.crash > 0.0 && self.rng.chance(self.fault_plan.crash * rarity);
        if crashes {
            self.note(point);
        }
        crashes
    }

    /// Handles a request. The request may be lost or delayed, or its response may be lost.
    pub(super) fn request<T: 'static>(
        &mut self,
        request: impl FnOnce(&mut Broker) -> BrokerResult<T> + Send + 'static,
    ) -> BrokerResult<T> {
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
        Err(BrokerError::Timeout)
    }

    pub(super) fn init(&mut self, id: &str) -> BrokerResult<i32> {
        let fresh = || Coordinator {
            epoch: 0,
            phase: Phase::Idle,
            txn: 0,
            started: 0,
            touched: BTreeSet::new(),
            last_commit: None,
        };
        let c = self
            .transactions
            .coordinators
            .entry(id.to_owned())
            .or_insert_with(fresh);
        if matches!(c.phase, Phase::Ending { .. }) {
            return Err(BrokerError::Retry);
        }
        c.epoch += 1;
        if c.phase == Phase::Ongoing {
            self.decide(id, false);
            return Err(BrokerError::Retry);
        }
        Ok(c.epoch)
    }

    /// The coordinator's state of a producer, if its epoch is the current one.
    fn coordinator(&mut self, id: &str, epoch: i32) -> BrokerResult<&mut Coordinator> {
        let current = self.transactions.coordinators.get(id).map(|c| c.epoch);
        if current != Some(epoch) {
            self.note("fenced");
            return Err(BrokerError::Fenced("epoch"));
        }
        Ok(self
            .transactions
            .coordinators
            .get_mut(id)
            .expect("its epoch was just read"))
    }

    fn enter(&mut self, id: &str, epoch: i32, touched: Touched) -> BrokerResult<u64> {
        let (now, next) = (self.now, self.transactions.newest + 1);
        let c = self.coordinator(id, epoch)?;
        match c.phase {
            Phase::Ending { .. } => return Err(BrokerError::Retry),
            Phase::Idle => {
                (c.phase, c.txn, c.started) = (Phase::Ongoing, next, now);
                c.touched.clear();
            }
            Phase::Ongoing => {}
        }
        c.touched.insert(touched);
        let txn = c.txn;
        self.transactions.newest = self.transactions.newest.max(txn);
        Ok(txn)
    }

    /// Returns the first offset and the append time.
    pub(super) fn produce(
        &mut self,
        id: &str,
        epoch: i32,
        at: &TopicPartition,
        rows: &[Arc<Row>],
    ) -> BrokerResult<(Offset, Millis)> {
        let txn = self.enter(id, epoch, Touched::Partition(at.clone()))?;
        let now = self.now;
        Ok((self.part(at).append(now, rows, Some(txn)), now))
    }

    pub(super) fn send_offsets(
        &mut self,
        id: &str,
        epoch: i32,
        offsets: &[(TopicPartition, Offset)],
        member: &GroupMember,
    ) -> BrokerResult<()> {
        self.coordinator(id, epoch)?;
        if !self.group.accepts(member) {
            self.note("fenced by generation");
            return Err(BrokerError::Fenced("generation"));
        }
        let txn = self.enter(id, epoch, Touched::Group)?;
        self.group.put_pending(txn, offsets);
        Ok(())
    }

    pub(super) fn end(&mut self, id: &str, epoch: i32, commit: bool) -> BrokerResult<()> {
        let c = self.coordinator(id, epoch)?;
        match c.phase {
            Phase::Idle if c.last_commit == Some(commit) => Ok(()),
            Phase::Ending { commit: ending } if ending == commit => Ok(()),
            Phase::Ongoing => {
                self.decide(id, commit);
                Ok(())
            }
            _ => Err(BrokerError::Fenced("state")),
        }
    }

    /// Commits or aborts a transaction. The decision is durable: the committed state changes immediately, and control
    /// records follow later.
    fn decide(&mut self, id: &str, commit: bool) {
        let c = self
            .transactions
            .coordinators
            .get_mut(id)
            .expect("a decided transaction has a coordinator");
        c.phase = Phase::Ending { commit };
        let txn = c.txn;
        if c.touched.is_empty() {
            c.phase = Phase::Idle;
            c.last_commit = Some(commit);
        }
        let changelogs = self.committed_state.iter_mut().filter(|_| commit);
        for (at, rows) in changelogs {
            let Some(part) = self.parts.get(at) else { continue };
            for r in part.of_transaction(txn) {
                let key = r.row.key.clone().expect("changelog records have keys");
                match &r.row.value {
                    Some(value) => rows.insert(key, value.clone()),
                    None => rows.remove(&key),
                };
            }
        }
        self.note(if commit { "committed" } else { "aborted" });
    }

    /// Background work: control records, transaction timeouts, delayed requests, log compaction, expiry of offsets.
    pub(super) fn step(&mut self, unresponsive_since: &dyn Fn(usize) -> Option<Millis>) {
        self.mark_some();
        self.time_out();
        if !self.net.is_empty() && self.rng.chance(0.15) {
            let request = self.net.swap_remove(self.rng.below(self.net.len()));
            request(self);
        }
        if self
            .group
            .expire(self.now, unresponsive_since, &mut self.rng, &self.layout.tasks)
        {
            self.note("offsets expired");
        }
        if self.rng.chance(0.1) {
            self.clean_one();
        }
    }

    fn writers(&self, of: impl Fn(&Coordinator) -> bool) -> Vec<String> {
        let found = self.transactions.coordinators.iter().filter(|(_, c)| of(c));
        found.map(|(id, _)| id.clone()).collect()
    }

    /// Applies commits and aborts to some participants of their transactions.
    fn mark_some(&mut self) {
        for id in self.writers(|c| matches!(c.phase, Phase::Ending { .. })) {
            let Some(c) = self.transactions.coordinators.get(&id) else {
                continue;
            };
            let Phase::Ending { commit } = c.phase else { continue };
            let (txn, touched): (u64, Vec<Touched>) = (c.txn, c.touched.iter().cloned().collect());
            for participant in touched {
                if self.rng.chance(self.fault_plan.speed) {
                    self.mark(&id, txn, participant, commit);
                }
            }
        }
    }

    fn mark(&mut self, id: &str, txn: u64, participant: Touched, commit: bool) {
        if let Some(c) = self.transactions.coordinators.get_mut(id) {
            c.touched.remove(&participant);
            if c.touched.is_empty() {
                c.phase = Phase::Idle;
                c.last_commit = Some(commit);
            }
        }
        match participant {
            Touched::Partition(at) => {
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
            if let Some(c) = self.transactions.coordinators.get_mut(&id) {
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

    /// Whether no request is delayed, and no transaction is open or being completed.
    pub(super) fn is_still(&self) -> bool {
        self.net.is_empty() && self.transactions.coordinators.values().all(|c| c.phase == Phase::Idle)
    }
}
