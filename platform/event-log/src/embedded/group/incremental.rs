//! The newer group protocol as a value: every member has a target, and moves towards it by what is free.
//!
//! When members come or go each one's target is dealt anew, by the same ranges as ever. A member that holds more than its
//! target is told `Revoked` for the difference and gives that up at its next poll; one that lacks something of its
//! target is told `Assigned` as soon as nobody else holds it. What is in both stays, without a word.
//!
//! Guarantees: a partition is never held by two seats; a member that does not give up in time loses all that it has.
//! Never: a partition taken from a member that was not told, while it polls.

use super::{Group, MemberId, News, PATIENCE_MS, Replaced, Seat};
use crate::{Event, Millis, TopicPartition};

impl Seat {
    /// What it holds and should not.
    fn surplus(&self) -> Vec<TopicPartition> {
        let over = self.held.iter().filter(|at| !self.target.contains(at));
        over.cloned().collect()
    }

    /// Its member is gone, so that nobody reads what it was giving up.
    pub(super) fn let_go(&mut self) {
        self.revoking.clear();
        self.gives_up_until = None;
        let target = &self.target;
        self.held.retain(|at| target.contains(at));
    }
}

impl Group {
    /// Whether a live member has this instance name.
    pub(super) fn is_taken(&self, instance: Option<&str>) -> bool {
        let taken = |seat: &Seat| seat.left_at.is_none() && seat.instance.as_deref() == instance;
        instance.is_some() && self.seats.values().any(taken)
    }

    /// Deals every member its target anew.
    pub(super) fn aim(&mut self, now: Millis) {
        self.generation += 1;
        for (id, share) in self.shares() {
            let Some(seat) = self.seats.get_mut(&id) else { continue };
            seat.target = share;
            if seat.left_at.is_some() {
                seat.held.retain(|at| seat.target.contains(at));
            }
            let patience = now.saturating_add(seat.timeout_ms.max(PATIENCE_MS));
            seat.gives_up_until = (!seat.surplus().is_empty()).then(|| seat.gives_up_until.unwrap_or(patience));
        }
        self.seats.values().for_each(|seat| seat.signal.wake());
    }

    /// Takes everything from members that did not give up in time.
    pub(super) fn tick_incremental(&mut self, now: Millis) {
        let late = |seat: &&mut Seat| seat.gives_up_until.is_some_and(|until| until <= now);
        let mut lost = false;
        for seat in self.seats.values_mut().filter(late) {
            seat.gives_up_until = None;
            seat.revoking.clear();
            seat.started.clear();
            seat.target.clear();
            seat.news = News::Lost(std::mem::take(&mut seat.held));
            lost = true;
        }
        if lost {
            self.aim(now);
        }
    }

    /// The next thing that a member is told, if anything.
    pub(super) fn next_step(&mut self, id: MemberId, now: Millis) -> Result<Option<Event>, Replaced> {
        let seat = self.seats.get_mut(&id).ok_or(Replaced)?;
        if let News::Lost(lost) = std::mem::replace(&mut seat.news, News::Nothing) {
            self.aim(now);
            return Ok(Some(Event::Lost(lost)));
        }
        let on_dead_letter = std::mem::take(&mut seat.revoking);
        if !on_dead_letter.is_empty() {
            seat.held.retain(|at| !on_dead_letter.contains(at));
            seat.started.retain(|at| !on_dead_letter.contains(at));
            self.seats.values().for_each(|seat| seat.signal.wake());
        }
        let generation = self.generation;
        let seat = self.seats.get_mut(&id).ok_or(Replaced)?;
        seat.generation = generation;
        let surplus = seat.surplus();
        if !surplus.is_empty() {
            seat.revoking.clone_from(&surplus);
            return Ok(Some(Event::Revoked(surplus)));
        }
        seat.gives_up_until = None;
        let free = self.free_for(id);
        let seat = self.seats.get_mut(&id).ok_or(Replaced)?;
        seat.held.extend(free.iter().cloned());
        Ok((!free.is_empty()).then_some(Event::Assigned(free)))
    }

    /// Whether [`Group::next_step`] would say or change something.
    pub(super) fn has_step(&self, id: MemberId) -> bool {
        self.seats.get(&id).is_none_or(|seat| {
            matches!(seat.news, News::Lost(_))
                || !seat.revoking.is_empty()
                || !seat.surplus().is_empty()
                || !self.free_for(id).is_empty()
        })
    }

    /// What a member should hold and nobody holds.
    fn free_for(&self, id: MemberId) -> Vec<TopicPartition> {
        let Some(seat) = self.seats.get(&id) else {
            return Vec::new();
        };
        let held = |at: &TopicPartition| self.seats.values().any(|seat| seat.held.contains(at));
        seat.target.iter().filter(|at| !held(at)).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
