//! Checks whether the assignment of a group matches the subscription of one of its static members.
//!
//! With the classic protocol it may not. A static member that joins a stable group with its old instance name gets the
//! assignment of its predecessor: the coordinator only compares the name of the selected assignor (KIP-345), not the
//! subscription or the partition counts (KAFKA-12759 and KAFKA-13435, open in Kafka 4.3). Until the next rebalance, a
//! topic that was added between two runs is not read, and a topic that was removed remains assigned.
//!
//! Each static member therefore compares the two once after it has joined. Comparing the subscription with the one that
//! the coordinator has stored would not suffice: joining replaces the stored subscription, and the process may be
//! killed between joining and the rebalance. If both match, as after an ordinary restart, the check costs one request
//! and no rebalance.

use super::coordinator::Coordinators;
use crate::{GroupConfig, GroupInfo, GroupProtocol, MemberInfo, Result, TopicPartition};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Bounds of the pause before the group is described again.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Pause after a forced rebalance; an assignment that arrives earlier ends it.
const PAUSE_FORCED: Duration = Duration::from_secs(1);
/// Interval of polling for the result while the group is being described.
const ANSWER: Duration = Duration::from_millis(5);
/// Maximum number of rebalances that a member forces. More than one is needed only if a LeaveGroup request was lost or the
/// leader did not see a topic. It also bounds the cost of a rack-aware assignor (`client.rack`), whose order differs.
const REBALANCES_MAX: u32 = 3;

/// Subscribed topics with partition counts.
pub type Topics = BTreeMap<Arc<str>, usize>;

/// The check for one member.
#[derive(Debug)]
pub struct Coverage {
    group: String,
    /// `None` for a dynamic member, whose join always causes a rebalance.
    instance: Option<String>,
    topics: Topics,
    /// Whether this member forces rebalances. With KIP-848 the coordinator computes the assignment from the current
    /// subscriptions, so a forced rebalance is not needed.
    forces: bool,
    rebalances: u32,
    pause: Duration,
    state: State,
    /// Topics with partitions that no member had in the last description of the group; `None` before the first
    /// description.
    uncovered: Option<Vec<Arc<str>>>,
}

#[derive(Debug)]
enum State {
    /// The group will be described at this time.
    Due(Instant),
    /// A separate thread describes the group, because the request can take as long as its timeout.
    Describing(Receiver<Result<Option<GroupInfo>>>),
    /// The assignment matches.
    Covered,
}

/// Result of comparing the group's description with this member.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The group is rebalancing, or the description does not show this member's current assignment.
    Undecided,
    /// The assignment is stable.
    Decided {
        /// Topics with partitions that are not assigned to any member.
        uncovered: Vec<Arc<str>>,
        /// Whether a rebalance would change the assignment of this member.
        stale: bool,
    },
}

impl Coverage {
    /// Starts the check.
    pub fn new(group: &GroupConfig, topics: Topics) -> Coverage {
        Coverage {
            group: group.group.clone(),
            instance: group.instance.clone(),
            topics,
            forces: group.protocol == GroupProtocol::Classic,
            rebalances: 0,
            pause: PAUSE_FIRST,
            state: match group.instance {
                Some(_) => State::Due(Instant::now()),
                None => State::Covered,
            },
            uncovered: None,
        }
    }

    /// Returns the subscribed topics with their partition counts.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// Returns the topics not known to be fully assigned, for a member with these partitions.
    pub fn unassigned(&self, assigned: &[TopicPartition]) -> Vec<Arc<str>> {
        if matches!(self.state, State::Covered) {
            return Vec::new();
        }
        self.uncovered.clone().unwrap_or_else(|| {
            let missing = |topic: &&Arc<str>| !assigned.iter().any(|at| at.topic == **topic);
            self.topics.keys().filter(missing).cloned().collect()
        })
    }

    /// Checks again immediately, because the member received an assignment.
    pub fn assigned(&mut self) {
        if matches!(self.state, State::Due(_)) {
            (self.state, self.pause) = (State::Due(Instant::now()), PAUSE_FIRST);
        }
    }

    /// Returns when [`Coverage::advance`] must be called; `None` once the assignment is known to match.
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Due(at) => Some(*at),
            State::Describing(_) => Some(Instant::now() + ANSWER),
            State::Covered => None,
        }
    }

    /// Advances the check without waiting and returns whether the member must force a rebalance. `assigned` returns the sorted
    /// partitions of the member, or `None` before it has joined.
    pub fn advance(
        &mut self,
        coordinators: &Arc<Coordinators>,
        assigned: impl FnOnce() -> Option<Vec<TopicPartition>>,
    ) -> bool {
        let described = match &self.state {
            State::Covered => return false,
            State::Due(at) if Instant::now() < *at => return false,
            State::Due(_) => {
                match assigned() {
                    Some(_) => self.describe(coordinators),
                    None => self.schedule(),
                }
                return false;
            }
            State::Describing(answer) => answer.try_recv(),
        };
        let verdict = match (described, assigned()) {
            (Err(TryRecvError::Empty), _) => return false,
            (Ok(Ok(Some(group))), Some(assigned)) => self.judge(&group, &assigned),
            (Ok(Err(error)), _) => {
                tracing::debug!(target: "event_log::kafka", group = self.group, %error, "assignment not checked yet");
                Verdict::Undecided
            }
            _ => Verdict::Undecided,
        };
        self.decide(verdict)
    }

    fn decide(&mut self, verdict: Verdict) -> bool {
        self.schedule();
        let Verdict::Decided { uncovered, stale } = verdict else {
            return false;
        };
        if uncovered.is_empty() && !(stale && self.forces) {
            self.state = State::Covered;
            return false;
        }
        let force = stale && self.forces && self.rebalances < REBALANCES_MAX;
        if force {
            self.rebalances += 1;
            // Until the member has its new assignment, the group's description may still show the old one.
            self.pause = PAUSE_FORCED;
            self.schedule();
            tracing::info!(
                target: "event_log::kafka",
                group = self.group,
                instance = self.instance,
                ?uncovered,
                "assignment does not match the subscription; forcing a rebalance"
            );
        } else if stale && uncovered.is_empty() {
            // Each partition is assigned to a member, though not as the range assignor would assign it.
            self.state = State::Covered;
        }
        self.uncovered = (!force).then_some(uncovered);
        force
    }

    fn schedule(&mut self) {
        self.state = State::Due(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn describe(&mut self, coordinators: &Arc<Coordinators>) {
        let (coordinators, group) = (coordinators.clone(), self.group.clone());
        let (sender, answer) = sync_channel(1);
        let thread = std::thread::Builder::new().name("log-coverage".to_owned());
        let started = thread.spawn(move || {
            // Sending fails only if the member was dropped.
            drop(sender.send(coordinators.assignment(&group)));
        });
        match started {
            Ok(_) => self.state = State::Describing(answer),
            Err(error) => {
                tracing::warn!(target: "event_log::kafka", %error, "cannot start a thread to check the assignment");
                self.schedule();
            }
        }
    }

    /// Compares a description of the group with this member's subscription and partitions.
    fn judge(&self, group: &GroupInfo, assigned: &[TopicPartition]) -> Verdict {
        let own = group.members.iter().find(|member| member.instance == self.instance);
        let Some(own) = own.filter(|_| group.state == "Stable") else {
            return Verdict::Undecided;
        };
        let mut described = own.partitions.clone();
        described.sort();
        if described != assigned {
            return Verdict::Undecided;
        }
        let assigned_in_group =
            |topic: &str| -> usize { group.members.iter().map(|member| count(member, topic)).sum() };
        let mut uncovered = self.topics.iter();
        let uncovered: Vec<_> = uncovered
            .by_ref()
            .filter(|(topic, partitions)| assigned_in_group(topic) < **partitions)
            .map(|(topic, _)| topic.clone())
            .collect();
        let stale = !uncovered.is_empty()
            || assigned.iter().any(|at| !self.topics.contains_key(&at.topic))
            || self.topics.keys().any(|topic| self.lacks_share(group, topic));
        Verdict::Decided { uncovered, stale }
    }

    /// Returns whether this member has no partition of a topic although the range assignor would assign one to it.
    ///
    /// The assignor sorts the subscribers of a topic by instance name and gives each subscriber an equal range. A
    /// subscriber has no partition only if there are more subscribers than partitions; then the first subscribers have
    /// one partition each. A task that reads two topics depends on this: it never runs if its partition of the second
    /// topic stays with another member.
    fn lacks_share(&self, group: &GroupInfo, topic: &str) -> bool {
        let after = |owner: &MemberInfo| owner.instance.is_none() || owner.instance < self.instance;
        let owners = || group.members.iter().filter(|member| count(member, topic) > 0);
        let own = owners().any(|owner| owner.instance == self.instance);
        !own && owners().any(|owner| count(owner, topic) > 1 || !after(owner))
    }
}

fn count(member: &MemberInfo, topic: &str) -> usize {
    member.partitions.iter().filter(|at| *at.topic == *topic).count()
}

#[cfg(test)]
mod tests;
