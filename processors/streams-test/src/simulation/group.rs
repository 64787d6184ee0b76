//! The consumer group of the simulated broker, with its committed offsets.
//!
//! Members, generations, static membership, undecided offsets and the expiry of offsets of an empty group behave as in
//! Kafka. The seed determines which member gets a task.

use super::protocol::{BrokerError, BrokerResult, OFFSET_RETENTION, SESSION_TIMEOUT, Tasks};
use super::{Rng, partition::Row};
use event_log::{Millis, Offset, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Identity of a member in a request.
#[derive(Debug, Clone)]
pub(super) struct GroupMember {
    pub name: String,
    pub id: i32,
    pub generation: i32,
}

/// A request to join the group.
pub(super) struct Join<'j> {
    pub name: &'j str,
    /// Member id, if the process has one.
    pub id: Option<i32>,
    pub process: usize,
}

/// Rows of a produce request.
pub(super) type Rows = Vec<Arc<Row>>;

/// The group.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Member id and process by name.
    pub members: BTreeMap<String, (i32, usize)>,
    pub generation: i32,
    pub joining: Option<BTreeSet<String>>,
    pub assignment: BTreeMap<String, Vec<TopicPartition>>,
    /// Committed offsets, each with a sequence number in the order in which the commits arrived.
    committed: BTreeMap<TopicPartition, (u64, Offset)>,
    /// Offsets that were sent by transactions that are not yet committed or aborted in the group, by transaction
    /// number. Each offset has a sequence number like a committed offset.
    pending: BTreeMap<u64, BTreeMap<TopicPartition, (u64, Offset)>>,
    came: u64,
    empty_since: Millis,
    ids: i32,
}

impl Group {
    /// Committed offsets; an error if one is part of an undecided transaction (KIP-447).
    pub(super) fn fetch(&self, of: &[TopicPartition]) -> BrokerResult<BTreeMap<TopicPartition, Option<Offset>>> {
        if self.pending.values().any(|p| of.iter().any(|at| p.contains_key(at))) {
            return Err(BrokerError::Undecided);
        }
        Ok(of
            .iter()
            .map(|at| (at.clone(), self.committed.get(at).map(|(_, offset)| *offset)))
            .collect())
    }

    /// Whether the group accepts transactional offsets from this member. As in Kafka, a negative generation is not
    /// checked.
    pub(super) fn accepts(&self, member: &GroupMember) -> bool {
        let known = self.members.get(&member.name).map(|(id, _)| *id);
        member.generation < 0 || (known == Some(member.id) && member.generation == self.generation)
    }

    pub(super) fn put_pending(&mut self, txn: u64, offsets: &[(TopicPartition, Offset)]) {
        self.came += 1;
        let pending = self.pending.entry(txn).or_default();
        pending.extend(offsets.iter().map(|(at, offset)| (at.clone(), (self.came, *offset))));
    }

    /// Applies the commit or abort of a transaction. If it arrives late, it does not overwrite offsets that were sent
    /// after the transaction's offsets.
    pub(super) fn mark(&mut self, txn: u64, commit: bool) {
        let offsets = self.pending.remove(&txn).unwrap_or_default();
        if commit {
            for (at, offset) in offsets {
                let newest = self.committed.entry(at).or_insert(offset);
                *newest = offset.max(*newest);
            }
        }
    }

    /// Joins. A known static member without a member id replaces its predecessor without a rebalance (KIP-345).
    pub(super) fn join(&mut self, request: Join<'_>, rng: &mut Rng, tasks: &Tasks) -> i32 {
        let Join { name, id, process } = request;
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

    /// Starts a rebalance, unless one is in progress. Returns whether one was started.
    pub(super) fn rebalance(&mut self) -> bool {
        let begins = self.joining.is_none() && !self.members.is_empty();
        if begins {
            self.joining = Some(BTreeSet::new());
        }
        begins
    }

    /// Processes that own a partition according to the group's assignment.
    pub(super) fn owners(&self, at: &TopicPartition) -> Vec<usize> {
        let owns = |name: &str| self.assignment.get(name).is_some_and(|own| own.contains(at));
        let members = self.members.iter().filter(|(name, _)| owns(name));
        members.map(|(_, (_, process))| *process).collect()
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
            if let Some(own) = self.assignment.get_mut(&member) {
                own.extend(inputs.iter().cloned());
            }
        }
    }

    /// Removes members whose session timed out, and the offsets of a group that was empty for too long. Returns whether
    /// offsets were removed.
    pub(super) fn expire(
        &mut self,
        now: Millis,
        unresponsive_since: &dyn Fn(usize) -> Option<Millis>,
        rng: &mut Rng,
        tasks: &Tasks,
    ) -> bool {
        let late = |process: usize| unresponsive_since(process).is_some_and(|since| now - since > SESSION_TIMEOUT);
        let names: Vec<String> = self
            .members
            .iter()
            .filter(|(_, (_, process))| late(*process))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
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
        if !self.members.is_empty() || now - self.empty_since <= OFFSET_RETENTION {
            return false;
        }
        let busy: BTreeSet<_> = self.pending.values().flat_map(|p| p.keys().cloned()).collect();
        let before = self.committed.len();
        self.committed.retain(|at, _| busy.contains(at));
        self.committed.len() < before
    }
}
