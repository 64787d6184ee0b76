//! A consumer group as a value: seats, generations, range assignment, committed and pending offsets.
//!
//! A rebalance is eager, as with Kafka's classic protocol: every member is told `Revoked`, gives up at its next poll,
//! and when all have, a new generation is assigned. A member that does not poll for five minutes meanwhile (Kafka's
//! `max.poll.interval.ms`) loses its partitions. As every member lives in this process, there are no heartbeats: a
//! member is alive until it is closed or dropped. Members of the newer protocol are in `incremental`.
//!
//! Guarantees: a partition is never held by two seats of one generation; a commit under another generation, or of a
//! member that lost its seat, is refused. Never: IO, a clock, a lock.

mod incremental;

use super::signal::Signal;
use crate::{Event, Millis, Offset, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a rebalance waits for members that do not poll: they may be busy restoring.
const PATIENCE_MS: Millis = 300_000;

/// A subscribed topic with its partition count.
pub(super) type Subscription = (Arc<str>, u32);

/// A member: the seat's number in the group, never used again.
pub(super) type MemberId = u64;

/// What is waiting for a member's next poll.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Nothing,
    /// The held partitions are new.
    Assigned,
    /// The held partitions are to be given up.
    Revoke,
    /// The member knows; its next poll gives them up.
    Revoking,
    /// It was silent too long: these were taken from it.
    Lost(Vec<TopicPartition>),
}

/// Who joins.
pub(super) struct Joining {
    pub id: MemberId,
    pub instance: Option<String>,
    pub topics: Vec<Subscription>,
    pub timeout_ms: Millis,
    pub signal: Arc<Signal>,
    pub incremental: bool,
}

/// Why nobody was seated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turned {
    /// The instance name is a live member's, and the protocol lets that one keep it.
    Occupied,
    /// Live members speak the other protocol.
    Mixed,
}

/// Why a commit of a member is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Whether its seat or its partitions are another's.
    pub fenced: bool,
    pub reason: String,
}

struct Seat {
    instance: Option<String>,
    topics: Vec<Subscription>,
    timeout_ms: Millis,
    signal: Arc<Signal>,
    held: Vec<TopicPartition>,
    news: News,
    /// Generation that the member was told with its assignment.
    generation: i32,
    /// What it reads.
    started: BTreeSet<TopicPartition>,
    /// A static member has left; its seat is kept until its session timeout.
    left_at: Option<Millis>,
    /// Of the newer protocol alone: what it should hold, what it was told to give up, and until when it may take to.
    target: Vec<TopicPartition>,
    revoking: Vec<TopicPartition>,
    gives_up_until: Option<Millis>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Settled,
    /// Members give up; at that time those that did not have lost.
    Preparing(Millis),
}

/// A group.
pub(super) struct Group {
    generation: i32,
    phase: Phase,
    /// Whether its members speak the newer protocol.
    incremental: bool,
    seats: BTreeMap<MemberId, Seat>,
    /// Since when it has no seat, and what of that is in the store.
    pub idle: Option<Millis>,
    pub idle_stored: Option<Millis>,
    /// Committed offsets.
    pub offsets: BTreeMap<TopicPartition, Offset>,
    /// Offsets of transactions that are being decided, by transaction.
    pub pending: BTreeMap<u64, Vec<TopicPartition>>,
}

/// Why a member has no seat any more: another took it over by the same instance name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Replaced;

/// A seat for people to see.
pub(super) struct Seen {
    pub id: MemberId,
    pub instance: Option<String>,
    pub held: Vec<TopicPartition>,
}

impl Group {
    pub fn new() -> Self {
        Group {
            generation: 0,
            phase: Phase::Settled,
            incremental: false,
            seats: BTreeMap::new(),
            idle: None,
            idle_stored: None,
            offsets: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }

    /// Takes a seat. A static member takes its old one, whoever sat there, unless the protocol says otherwise.
    pub fn join(&mut self, joining: Joining, now: Millis) -> Result<(), Turned> {
        self.tick(now);
        if self.incremental != joining.incremental {
            if self.seats.values().any(|seat| seat.left_at.is_none()) {
                return Err(Turned::Mixed);
            }
            self.seats.clear();
            self.phase = Phase::Settled;
            self.incremental = joining.incremental;
        }
        if self.incremental && self.is_taken(joining.instance.as_deref()) {
            return Err(Turned::Occupied);
        }
        self.seat(joining, now);
        Ok(())
    }

    fn seat(&mut self, joining: Joining, now: Millis) {
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
        let old = instance.as_ref().and_then(|_| self.seat_of(instance.as_deref()));
        let mut seat = Seat {
            instance,
            topics,
            timeout_ms,
            signal,
            held: Vec::new(),
            news: News::Nothing,
            generation: -1,
            started: BTreeSet::new(),
            left_at: None,
            target: Vec::new(),
            revoking: Vec::new(),
            gives_up_until: None,
        };
        self.idle = None;
        let old = old.and_then(|id| self.seats.remove(&id));
        if let Some(old) = &old {
            old.signal.wake();
        }
        match old {
            Some(old) if self.incremental && old.topics == seat.topics && !matches!(old.news, News::Lost(_)) => {
                seat.target = old.target;
                self.seats.insert(id, seat);
            }
            Some(old) if self.phase == Phase::Settled && old.topics == seat.topics => {
                // A restart costs no rebalance: the same partitions, in the same generation.
                seat.held = match old.news {
                    News::Nothing | News::Assigned => old.held,
                    News::Revoke | News::Revoking | News::Lost(_) => Vec::new(),
                };
                seat.news = News::Assigned;
                self.seats.insert(id, seat);
            }
            _ => {
                self.seats.insert(id, seat);
                self.rebalance(now);
            }
        }
    }

    fn seat_of(&self, instance: Option<&str>) -> Option<MemberId> {
        self.seats
            .iter()
            .find(|(_, seat)| seat.instance.as_deref() == instance)
            .map(|(id, _)| *id)
    }

    /// Leaves: a static member's seat is kept for its session timeout.
    pub fn leave(&mut self, id: MemberId, now: Millis) {
        let Some(seat) = self.seats.get_mut(&id) else {
            return;
        };
        if seat.instance.is_some() {
            seat.left_at = Some(now);
            seat.started.clear();
            if self.incremental {
                seat.let_go();
            }
            if matches!(self.phase, Phase::Preparing(_)) {
                seat.held.clear();
                seat.news = News::Nothing;
                self.settle();
            }
            // The others now wait for the end of that seat, or have what it was giving up.
            self.seats.values().for_each(|seat| seat.signal.wake());
        } else {
            self.seats.remove(&id);
            self.rebalance(now);
        }
        self.note_idle(now);
    }

    /// Notes since when nobody is there.
    fn note_idle(&mut self, now: Millis) {
        self.idle = self.seats.is_empty().then(|| self.idle.unwrap_or(now));
    }

    /// Lets time pass: kept seats end, silent members lose their partitions.
    pub fn tick(&mut self, now: Millis) {
        let before = self.seats.len();
        self.seats.retain(|_, seat| {
            seat.left_at
                .is_none_or(|left| left.saturating_add(seat.timeout_ms) > now)
        });
        if self.seats.len() != before {
            self.rebalance(now);
        }
        self.tick_incremental(now);
        if let Phase::Preparing(until) = self.phase
            && until <= now
        {
            for seat in self.seats.values_mut().filter(|seat| !seat.held.is_empty()) {
                seat.news = News::Lost(std::mem::take(&mut seat.held));
                seat.started.clear();
                seat.signal.wake();
            }
            self.settle();
        }
        self.note_idle(now);
    }

    /// The next moment at which [`Group::tick`] changes something.
    pub fn deadline(&self) -> Option<Millis> {
        let seats = self
            .seats
            .values()
            .filter_map(|seat| Some(seat.left_at?.saturating_add(seat.timeout_ms)));
        let phase = match self.phase {
            Phase::Settled => None,
            Phase::Preparing(until) => Some(until),
        };
        let patience = self.seats.values().filter_map(|seat| seat.gives_up_until);
        seats.chain(phase).chain(patience).min()
    }

    fn rebalance(&mut self, now: Millis) {
        if self.incremental {
            return self.aim(now);
        }
        let mut patience = 0;
        for seat in self.seats.values_mut() {
            if seat.left_at.is_some() || seat.news == News::Assigned {
                // Nobody reads them yet, or any more.
                seat.held.clear();
                seat.news = News::Nothing;
            }
            if !seat.held.is_empty() {
                patience = patience.max(seat.timeout_ms).max(PATIENCE_MS);
                if seat.news == News::Nothing {
                    seat.news = News::Revoke;
                }
            }
            seat.signal.wake();
        }
        if self.phase == Phase::Settled {
            self.phase = Phase::Preparing(now.saturating_add(patience));
        }
        self.settle();
    }

    /// Assigns a new generation once everything was given up.
    fn settle(&mut self) {
        if self.phase == Phase::Settled || self.seats.values().any(|seat| !seat.held.is_empty()) {
            return;
        }
        self.phase = Phase::Settled;
        self.generation += 1;
        for (id, share) in self.shares() {
            let seat = self.seats.get_mut(&id).expect("members are seats");
            seat.held = share;
            seat.started.clear();
            if seat.left_at.is_none() {
                seat.news = News::Assigned;
                seat.signal.wake();
            }
        }
    }

    /// Who should hold what. A member that has to be told of its loss first takes part the next time.
    fn shares(&self) -> BTreeMap<MemberId, Vec<TopicPartition>> {
        let mut order: Vec<(bool, Option<&str>, MemberId)> = self
            .seats
            .iter()
            .filter(|(_, seat)| !matches!(seat.news, News::Lost(_)))
            .map(|(id, seat)| (seat.instance.is_none(), seat.instance.as_deref(), *id))
            .collect();
        order.sort();
        let members: Vec<MemberId> = order.into_iter().map(|(_, _, id)| id).collect();
        let mut shares: BTreeMap<MemberId, Vec<TopicPartition>> = members.iter().map(|id| (*id, Vec::new())).collect();
        let topics: BTreeSet<&Subscription> = self.seats.values().flat_map(|seat| &seat.topics).collect();
        for topic in topics {
            let wants = |id: &MemberId| self.seats.get(id).is_some_and(|seat| seat.topics.contains(topic));
            let of_topic: Vec<MemberId> = members.iter().copied().filter(wants).collect();
            for (id, partition) in range(&of_topic, topic.1) {
                let number = i32::try_from(partition).expect("partition counts are i32");
                let at = TopicPartition::new(topic.0.clone(), number);
                shares.entry(id).or_default().push(at);
            }
        }
        shares
    }

    /// What a member is told at its poll, if anything.
    pub fn event(&mut self, id: MemberId, now: Millis) -> Result<Option<Event>, Replaced> {
        self.tick(now);
        if self.incremental {
            return self.next_step(id, now);
        }
        let seat = self.seats.get_mut(&id).ok_or(Replaced)?;
        match std::mem::replace(&mut seat.news, News::Nothing) {
            News::Nothing => Ok(None),
            News::Revoke => {
                seat.news = News::Revoking;
                Ok(Some(Event::Revoked(seat.held.clone())))
            }
            News::Revoking => {
                seat.held.clear();
                seat.started.clear();
                self.settle();
                self.event(id, now)
            }
            News::Lost(lost) => {
                self.rebalance(now);
                Ok(Some(Event::Lost(lost)))
            }
            News::Assigned => {
                seat.generation = self.generation;
                Ok((!seat.held.is_empty()).then(|| Event::Assigned(seat.held.clone())))
            }
        }
    }

    /// Whether a poll of this member would be told something.
    pub fn has_news(&self, id: MemberId) -> bool {
        if self.incremental {
            return self.has_step(id);
        }
        self.seats.get(&id).is_none_or(|seat| seat.news != News::Nothing)
    }

    /// Notes that a member reads a partition.
    pub fn started(&mut self, id: MemberId, at: &TopicPartition) {
        if let Some(seat) = self.seats.get_mut(&id) {
            seat.started.insert(at.clone());
        }
    }

    /// Whether some member reads the partition: then nobody sets its offset from outside.
    pub fn reads(&self, at: &TopicPartition) -> bool {
        self.seats.values().any(|seat| seat.started.contains(at))
    }

    /// The generation that a member knows; -1 before its first assignment.
    pub fn generation_of(&self, id: MemberId) -> i32 {
        self.seats.get(&id).map_or(-1, |seat| seat.generation)
    }

    /// Why a commit of this member under this generation is refused.
    pub fn refuses(&self, id: MemberId, generation: i32) -> Option<Refusal> {
        let fenced = |reason: &str| Some((true, reason.to_owned()));
        let refusal = match self.seats.get(&id) {
            None => fenced("the member has no seat in the group any more"),
            Some(seat) if matches!(seat.news, News::Lost(_)) => fenced("the member has lost its partitions"),
            Some(seat) if self.incremental => (generation != seat.generation).then(|| {
                // It has lost nothing by that, so that it is no fence.
                let now = seat.generation;
                (
                    false,
                    format!("the membership is of generation {generation}, the member of {now}"),
                )
            }),
            Some(_) if generation != self.generation => Some((
                true,
                format!(
                    "the member is of generation {generation}, the group of {}",
                    self.generation
                ),
            )),
            Some(_) => None,
        };
        refusal.map(|(fenced, reason)| Refusal { fenced, reason })
    }

    pub fn seen(&self) -> Vec<Seen> {
        let seen = |(id, seat): (&MemberId, &Seat)| Seen {
            id: *id,
            instance: seat.instance.clone(),
            held: seat.held.clone(),
        };
        self.seats.iter().map(seen).collect()
    }

    /// Whether it has a member, and the store does not know that yet.
    pub fn woke(&self) -> bool {
        !self.seats.is_empty() && self.idle_stored.is_some()
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// The group's state by Kafka's name.
    pub fn state(&self) -> &'static str {
        match self.phase {
            _ if self.seats.is_empty() => "Empty",
            Phase::Settled if self.incremental && self.seats.keys().any(|id| self.has_step(*id)) => "Reconciling",
            Phase::Settled => "Stable",
            Phase::Preparing(_) => "PreparingRebalance",
        }
    }

    /// Nothing is left of it.
    pub fn is_gone(&self) -> bool {
        self.seats.is_empty() && self.offsets.is_empty() && self.pending.is_empty()
    }
}

/// Kafka's range assignment of one topic: contiguous ranges, the first members get one more.
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
