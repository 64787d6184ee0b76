//! The consumer protocol (KIP-848): each member has a target assignment and reaches it in steps.
//!
//! A change of members computes all targets again, with the range assignor. A member that owns more than its target gets
//! `Revoked` for the excess and gives it up with its next poll. A member that owns fewer partitions gets `Assigned` as
//! soon as no other member owns the partitions. Partitions that a member owns and keeps are not affected.
//!
//! A partition never belongs to two members. A member that does not give up partitions in time loses all its
//! partitions; a member that polls does not lose a partition without having been notified.

use super::{Group, Member, MemberId, MemberReplaced, NextPoll, REVOCATION_TIMEOUT_MS};
use crate::{Event, Millis, TopicPartition};

impl Member {
    /// Returns the partitions that the member owns but that are not in its target.
    fn excess(&self) -> Vec<TopicPartition> {
        let over = self.owned.iter().filter(|at| !self.target.contains(at));
        over.cloned().collect()
    }

    /// Gives up the excess of a static member that has left and no longer reads.
    pub(super) fn release_excess(&mut self) {
        self.revoking.clear();
        self.revocation_deadline = None;
        let target = &self.target;
        self.owned.retain(|at| target.contains(at));
    }
}

impl Group {
    /// Returns whether an active member has this instance name.
    pub(super) fn is_taken(&self, instance: Option<&str>) -> bool {
        let taken = |member: &Member| member.left_at.is_none() && member.instance.as_deref() == instance;
        instance.is_some() && self.members.values().any(taken)
    }

    /// Computes the targets of all members.
    pub(super) fn update_targets(&mut self, now: Millis) {
        self.generation += 1;
        for (id, share) in self.shares() {
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            member.target = share;
            if member.left_at.is_some() {
                member.owned.retain(|at| member.target.contains(at));
            }
            let deadline = now.saturating_add(member.timeout_ms.max(REVOCATION_TIMEOUT_MS));
            member.revocation_deadline =
                (!member.excess().is_empty()).then(|| member.revocation_deadline.unwrap_or(deadline));
        }
        self.members.values().for_each(|member| member.signal.wake());
    }

    /// Takes all partitions from members that did not give up their excess in time.
    pub(super) fn tick_incremental(&mut self, now: Millis) {
        let late = |member: &&mut Member| member.revocation_deadline.is_some_and(|until| until <= now);
        let mut lost = false;
        for member in self.members.values_mut().filter(late) {
            member.revocation_deadline = None;
            member.revoking.clear();
            member.started.clear();
            member.target.clear();
            member.next_poll = NextPoll::Lost(std::mem::take(&mut member.owned));
            lost = true;
        }
        if lost {
            self.update_targets(now);
        }
    }

    /// Returns the next event of a member.
    pub(super) fn next_incremental_event(
        &mut self,
        id: MemberId,
        now: Millis,
    ) -> Result<Option<Event>, MemberReplaced> {
        let member = self.members.get_mut(&id).ok_or(MemberReplaced)?;
        if let NextPoll::Lost(lost) = std::mem::replace(&mut member.next_poll, NextPoll::Nothing) {
            self.update_targets(now);
            return Ok(Some(Event::Lost(lost)));
        }
        let revoked = std::mem::take(&mut member.revoking);
        if !revoked.is_empty() {
            member.owned.retain(|at| !revoked.contains(at));
            member.started.retain(|at| !revoked.contains(at));
            self.members.values().for_each(|member| member.signal.wake());
        }
        let generation = self.generation;
        let member = self.members.get_mut(&id).ok_or(MemberReplaced)?;
        member.generation = generation;
        let excess = member.excess();
        if !excess.is_empty() {
            member.revoking.clone_from(&excess);
            return Ok(Some(Event::Revoked(excess)));
        }
        member.revocation_deadline = None;
        let free = self.free_for(id);
        let member = self.members.get_mut(&id).ok_or(MemberReplaced)?;
        member.owned.extend(free.iter().cloned());
        Ok((!free.is_empty()).then_some(Event::Assigned(free)))
    }

    /// Returns whether [`Group::next_incremental_event`] would return or change something.
    pub(super) fn has_incremental_event(&self, id: MemberId) -> bool {
        self.members.get(&id).is_none_or(|member| {
            matches!(member.next_poll, NextPoll::Lost(_))
                || !member.revoking.is_empty()
                || !member.excess().is_empty()
                || !self.free_for(id).is_empty()
        })
    }

    /// Returns the partitions of a member's target that no member owns.
    fn free_for(&self, id: MemberId) -> Vec<TopicPartition> {
        let Some(member) = self.members.get(&id) else {
            return Vec::new();
        };
        let owned = |at: &TopicPartition| self.members.values().any(|member| member.owned.contains(at));
        member.target.iter().filter(|at| !owned(at)).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
