//! A consumer group: members, generations, range assignment, committed and pending offsets. Pure: no IO, clock or lock.
//!
//! Rebalances are eager, as in Kafka's classic protocol: every member gets `Revoked` and gives up its partitions with
//! the next poll. When all members have done so, a new generation is assigned. A member that does not poll for five
//! minutes during the rebalance (Kafka's `max.poll.interval.ms`) loses its partitions. All members are in this process,
//! so there are no heartbeats: a member is alive until it is closed or dropped. Members with the consumer protocol are
//! in `incremental`.
//!
//! A partition never belongs to two members of one generation. A commit of another generation, or of a member that was
//! removed, is rejected (invariant C6 of `docs/protocol/commit.md`).

mod incremental;

use super::signal::Signal;
use crate::{Error, Event, Millis, Offset, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a rebalance waits for members that do not poll, for example because they restore their state.
const REVOCATION_TIMEOUT_MS: Millis = 300_000;

/// A subscribed topic with its partition count.
pub(super) type Subscription = (Arc<str>, u32);

/// Number of a member, never reused.
pub(super) type MemberId = u64;

/// What the next poll of a member returns or does.
#[derive(Debug, PartialEq, Eq)]
enum NextPoll {
    Nothing,
    /// Returns the assignment.
    Assigned,
    /// Returns the revocation.
    Revoke,
    /// Gives up the partitions, because the revocation was returned.
    Revoking,
    /// Returns the partitions that it lost because it did not poll in time.
    Lost(Vec<TopicPartition>),
}

/// A member that is joining.
pub(super) struct Joining {
    pub id: MemberId,
    pub instance: Option<String>,
    pub topics: Vec<Subscription>,
    pub timeout_ms: Millis,
    pub signal: Arc<Signal>,
    pub incremental: bool,
}

/// Why a member cannot join.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum JoinError {
    /// An active member has the instance name. This protocol does not fence that member.
    Occupied,
    /// Active members use the other protocol.
    ProtocolMismatch,
}

/// Why a commit of offsets is rejected.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CommitRejection {
    /// Whether the member was removed or lost its partitions.
    pub fenced: bool,
    pub reason: String,
}

struct Member {
    instance: Option<String>,
    topics: Vec<Subscription>,
    timeout_ms: Millis,
    signal: Arc<Signal>,
    owned: Vec<TopicPartition>,
    next_poll: NextPoll,
    /// Generation of the last assignment that was returned to the member.
    generation: i32,
    /// Partitions that the member reads.
    started: BTreeSet<TopicPartition>,
    /// When a static member left. Its membership is kept until the session timeout.
    left_at: Option<Millis>,
    /// With the consumer protocol only: the partitions that the member should own, those whose revocation was returned,
    /// and the deadline for giving them up.
    target: Vec<TopicPartition>,
    revoking: Vec<TopicPartition>,
    revocation_deadline: Option<Millis>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Stable,
    /// Members are giving up their partitions. Members that have not done so at this time lose them.
    PreparingRebalance(Millis),
}

/// A consumer group.
pub(super) struct Group {
    generation: i32,
    phase: Phase,
    /// Whether its members use the consumer protocol.
    incremental: bool,
    members: BTreeMap<MemberId, Member>,
    /// Since when the group has had no member, and the value that is stored.
    pub idle: Option<Millis>,
    pub idle_stored: Option<Millis>,
    /// Committed offsets.
    pub offsets: BTreeMap<TopicPartition, Offset>,
    /// Offsets of transactions that are being committed, by transaction.
    pub pending: BTreeMap<u64, Vec<TopicPartition>>,
}

/// The member was replaced by another one with the same instance name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MemberReplaced;

/// Fails for invalid group ids.
pub(super) fn check_group_id(name: &str) -> crate::Result<()> {
    if (1..=32_767).contains(&name.len()) {
        return Ok(());
    }
    Err(Error::Rejected {
        attempted: format!("use group {name}"),
        reason: "a group id must have 1 to 32,767 bytes".to_owned(),
    })
}

/// Description of a member.
pub(super) struct MemberDescription {
    pub id: MemberId,
    pub instance: Option<String>,
    pub owned: Vec<TopicPartition>,
}

impl Group {
    pub fn new() -> Self {
        Group {
            generation: 0,
            phase: Phase::Stable,
            incremental: false,
            members: BTreeMap::new(),
            idle: None,
            idle_stored: None,
            offsets: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }

    /// Adds a member. With the classic protocol a static member replaces the member with the same instance name.
    pub fn join(&mut self, joining: Joining, now: Millis) -> Result<(), JoinError> {
        self.tick(now);
        if self.incremental != joining.incremental {
            if self.members.values().any(|member| member.left_at.is_none()) {
                return Err(JoinError::ProtocolMismatch);
            }
            self.members.clear();
            self.phase = Phase::Stable;
            self.incremental = joining.incremental;
        }
        if self.incremental && self.is_taken(joining.instance.as_deref()) {
            return Err(JoinError::Occupied);
        }
        self.add_member(joining, now);
        Ok(())
    }

    fn add_member(&mut self, joining: Joining, now: Millis) {
        let Joining {
            id,
            instance,
            mut topics,
            timeout_ms,
            signal,
            incremental: _,
        } = joining;
        topics.sort();
        topics.dedup();
        let old = instance
            .as_ref()
            .and_then(|_| self.member_with_instance(instance.as_deref()));
        let mut member = Member {
            instance,
            topics,
            timeout_ms,
            signal,
            owned: Vec::new(),
            next_poll: NextPoll::Nothing,
            generation: -1,
            started: BTreeSet::new(),
            left_at: None,
            target: Vec::new(),
            revoking: Vec::new(),
            revocation_deadline: None,
        };
        self.idle = None;
        let old = old.and_then(|id| self.members.remove(&id));
        if let Some(old) = &old {
            old.signal.wake();
        }
        match old {
            Some(old)
                if self.incremental && old.topics == member.topics && !matches!(old.next_poll, NextPoll::Lost(_)) =>
            {
                member.target = old.target;
                self.members.insert(id, member);
            }
            Some(old) if self.phase == Phase::Stable && old.topics == member.topics => {
                // A restart causes no rebalance: the new member gets the same partitions in the same generation.
                member.owned = match old.next_poll {
                    NextPoll::Nothing | NextPoll::Assigned => old.owned,
                    NextPoll::Revoke | NextPoll::Revoking | NextPoll::Lost(_) => Vec::new(),
                };
                member.next_poll = NextPoll::Assigned;
                self.members.insert(id, member);
            }
            _ => {
                self.members.insert(id, member);
                self.rebalance(now);
            }
        }
    }

    fn member_with_instance(&self, instance: Option<&str>) -> Option<MemberId> {
        self.members
            .iter()
            .find(|(_, member)| member.instance.as_deref() == instance)
            .map(|(id, _)| *id)
    }

    /// Removes a member. The membership of a static member is kept until its session timeout.
    pub fn leave(&mut self, id: MemberId, now: Millis) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.instance.is_some() {
            member.left_at = Some(now);
            member.started.clear();
            if self.incremental {
                member.release_excess();
            }
            if matches!(self.phase, Phase::PreparingRebalance(_)) {
                member.owned.clear();
                member.next_poll = NextPoll::Nothing;
                self.finish_rebalance();
            }
            // Other members may be waiting for this member's partitions or for its session timeout.
            self.members.values().for_each(|member| member.signal.wake());
        } else {
            self.members.remove(&id);
            self.rebalance(now);
        }
        self.note_idle(now);
    }

    /// Records since when the group has had no member.
    fn note_idle(&mut self, now: Millis) {
        self.idle = self.members.is_empty().then(|| self.idle.unwrap_or(now));
    }

    /// Handles timeouts: removes static members whose session timed out, and takes the partitions of members that do
    /// not poll.
    pub fn tick(&mut self, now: Millis) {
        let before = self.members.len();
        self.members.retain(|_, member| {
            member
                .left_at
                .is_none_or(|left| left.saturating_add(member.timeout_ms) > now)
        });
        if self.members.len() != before {
            self.rebalance(now);
        }
        self.tick_incremental(now);
        if let Phase::PreparingRebalance(until) = self.phase
            && until <= now
        {
            for member in self.members.values_mut().filter(|member| !member.owned.is_empty()) {
                member.next_poll = NextPoll::Lost(std::mem::take(&mut member.owned));
                member.started.clear();
                member.signal.wake();
            }
            self.finish_rebalance();
        }
        self.note_idle(now);
    }

    /// Returns the time of the next timeout that [`Group::tick`] handles.
    pub fn deadline(&self) -> Option<Millis> {
        let members = self
            .members
            .values()
            .filter_map(|member| Some(member.left_at?.saturating_add(member.timeout_ms)));
        let phase = match self.phase {
            Phase::Stable => None,
            Phase::PreparingRebalance(until) => Some(until),
        };
        let deadline = self.members.values().filter_map(|member| member.revocation_deadline);
        members.chain(phase).chain(deadline).min()
    }

    fn rebalance(&mut self, now: Millis) {
        if self.incremental {
            return self.update_targets(now);
        }
        let mut deadline = 0;
        for member in self.members.values_mut() {
            if member.left_at.is_some() || member.next_poll == NextPoll::Assigned {
                // The member does not read these partitions yet, or no longer reads them.
                member.owned.clear();
                member.next_poll = NextPoll::Nothing;
            }
            if !member.owned.is_empty() {
                deadline = deadline.max(member.timeout_ms).max(REVOCATION_TIMEOUT_MS);
                if member.next_poll == NextPoll::Nothing {
                    member.next_poll = NextPoll::Revoke;
                }
            }
            member.signal.wake();
        }
        if self.phase == Phase::Stable {
            self.phase = Phase::PreparingRebalance(now.saturating_add(deadline));
        }
        self.finish_rebalance();
    }

    /// Assigns a new generation when all partitions have been given up.
    fn finish_rebalance(&mut self) {
        if self.phase == Phase::Stable || self.members.values().any(|member| !member.owned.is_empty()) {
            return;
        }
        self.phase = Phase::Stable;
        self.generation += 1;
        for (id, share) in self.shares() {
            let member = self.members.get_mut(&id).expect("shares are those of members");
            member.owned = share;
            member.started.clear();
            if member.left_at.is_none() {
                member.next_poll = NextPoll::Assigned;
                member.signal.wake();
            }
        }
    }

    /// Computes the assignment. A member that has lost its partitions takes part after it was notified.
    fn shares(&self) -> BTreeMap<MemberId, Vec<TopicPartition>> {
        let mut order: Vec<(bool, Option<&str>, MemberId)> = self
            .members
            .iter()
            .filter(|(_, member)| !matches!(member.next_poll, NextPoll::Lost(_)))
            .map(|(id, member)| (member.instance.is_none(), member.instance.as_deref(), *id))
            .collect();
        order.sort();
        let members: Vec<MemberId> = order.into_iter().map(|(_, _, id)| id).collect();
        let mut shares: BTreeMap<MemberId, Vec<TopicPartition>> = members.iter().map(|id| (*id, Vec::new())).collect();
        let topics: BTreeSet<&Subscription> = self.members.values().flat_map(|member| &member.topics).collect();
        for topic in topics {
            let wants = |id: &MemberId| self.members.get(id).is_some_and(|member| member.topics.contains(topic));
            let of_topic: Vec<MemberId> = members.iter().copied().filter(wants).collect();
            for (id, partition) in range(&of_topic, topic.1) {
                let number = i32::try_from(partition).expect("partition counts are i32");
                let at = TopicPartition::new(topic.0.clone(), number);
                shares.entry(id).or_default().push(at);
            }
        }
        shares
    }

    /// Returns the next event of a member.
    pub fn event(&mut self, id: MemberId, now: Millis) -> Result<Option<Event>, MemberReplaced> {
        self.tick(now);
        if self.incremental {
            return self.next_incremental_event(id, now);
        }
        let member = self.members.get_mut(&id).ok_or(MemberReplaced)?;
        match std::mem::replace(&mut member.next_poll, NextPoll::Nothing) {
            NextPoll::Nothing => Ok(None),
            NextPoll::Revoke => {
                member.next_poll = NextPoll::Revoking;
                Ok(Some(Event::Revoked(member.owned.clone())))
            }
            NextPoll::Revoking => {
                member.owned.clear();
                member.started.clear();
                self.finish_rebalance();
                self.event(id, now)
            }
            NextPoll::Lost(lost) => {
                self.rebalance(now);
                Ok(Some(Event::Lost(lost)))
            }
            NextPoll::Assigned => {
                member.generation = self.generation;
                Ok((!member.owned.is_empty()).then(|| Event::Assigned(member.owned.clone())))
            }
        }
    }

    /// Returns whether a poll of this member would return or change something.
    pub fn has_event(&self, id: MemberId) -> bool {
        if self.incremental {
            return self.has_incremental_event(id);
        }
        self.members
            .get(&id)
            .is_none_or(|member| member.next_poll != NextPoll::Nothing)
    }

    /// Records that a member reads a partition.
    pub fn started(&mut self, id: MemberId, at: &TopicPartition) {
        if let Some(member) = self.members.get_mut(&id) {
            member.started.insert(at.clone());
        }
    }

    /// Records that a member no longer reads a partition.
    pub fn stopped(&mut self, id: MemberId, at: &TopicPartition) {
        if let Some(member) = self.members.get_mut(&id) {
            member.started.remove(at);
        }
    }

    /// Returns whether a member reads the partition. If so, its offset must not be set from outside the group.
    pub fn reads(&self, at: &TopicPartition) -> bool {
        self.members.values().any(|member| member.started.contains(at))
    }

    /// Returns the generation that a member knows; −1 before its first assignment.
    pub fn generation_of(&self, id: MemberId) -> i32 {
        self.members.get(&id).map_or(-1, |member| member.generation)
    }

    /// Checks whether a member may commit offsets under this generation.
    pub fn check_commit(&self, id: MemberId, generation: i32) -> Result<(), CommitRejection> {
        let reject = |fenced, reason| Err(CommitRejection { fenced, reason });
        let Some(member) = self.members.get(&id) else {
            return reject(true, "the member is no longer in the group".to_owned());
        };
        if matches!(member.next_poll, NextPoll::Lost(_)) {
            return reject(true, "the member has lost its partitions".to_owned());
        }
        // With the consumer protocol a member keeps its partitions when its generation rises, so it is not fenced.
        let (current, fenced) = match self.incremental {
            true => (member.generation, false),
            false => (self.generation, true),
        };
        if generation != current {
            let reason =
                format!("the group metadata has generation {generation}, but the current generation is {current}");
            return reject(fenced, reason);
        }
        Ok(())
    }

    pub fn describe_members(&self) -> Vec<MemberDescription> {
        let seen = |(id, member): (&MemberId, &Member)| MemberDescription {
            id: *id,
            instance: member.instance.clone(),
            owned: member.owned.clone(),
        };
        self.members.iter().map(seen).collect()
    }

    /// Returns whether the group has a member although an idle time is stored.
    pub fn has_stale_idle_time(&self) -> bool {
        !self.members.is_empty() && self.idle_stored.is_some()
    }

    /// Returns whether the group has no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Returns the group's state, as Kafka names it.
    pub fn state(&self) -> &'static str {
        match self.phase {
            _ if self.members.is_empty() => "Empty",
            Phase::Stable if self.incremental && self.members.keys().any(|id| self.has_incremental_event(*id)) => {
                "Reconciling"
            }
            Phase::Stable => "Stable",
            Phase::PreparingRebalance(_) => "PreparingRebalance",
        }
    }

    /// Returns whether the group has no members, offsets or pending offsets.
    pub fn is_unused(&self) -> bool {
        self.members.is_empty() && self.offsets.is_empty() && self.pending.is_empty()
    }
}

/// Kafka's range assignment of one topic: contiguous ranges, with one more partition for the first members.
fn range(members: &[MemberId], partitions: u32) -> Vec<(MemberId, u32)> {
    let count = u32::try_from(members.len()).expect("a process has few members");
    let Some(each) = partitions.checked_div(count) else {
        return Vec::new();
    };
    let extra = partitions % count;
    let mut next = 0;
    let mut assigned = Vec::new();
    for (n, id) in (0..).zip(members) {
        let end = next + each + u32::from(n < extra);
        assigned.extend((next..end).map(|partition| (*id, partition)));
        next = end;
    }
    assigned
}

#[cfg(test)]
mod tests;
