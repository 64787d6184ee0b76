//! A member of a consumer group of Kafka.
//!
//! Guarantees: an assignment is taken with every partition held still, and each is let go by `start`; a revocation is
//! returned before it is answered, and answered by the next `poll`. Range assignor, by either protocol. A member that
//! is dropped without `close` is silent, as one that crashed. Never: a record of a partition after it was revoked.

use super::client::list::List;
use super::client::{Code, Event as RawEvent, Fault, Handle, Kind, Queue, Waker, What};
use super::coordinator::Coordinators;
use super::coverage::{Coverage, Topics};
use super::gather::{Gather, Slot};
use super::members::{Members, Seat};
use super::{Config, KafkaGroupMetadata, fault, protocol, settings};
use crate::consumer::MemberToken;
use crate::{
    Error, Event, GroupConfig, GroupConsumer, GroupMetadata, GroupProtocol, Offset, RecordBatch, Result, TopicPartition,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the library is made to look whether it can go on with a join, and for how long: of what it waits for then,
/// such as the coordinator's connection, it takes notice by itself only twice a second.
const NUDGE: Duration = Duration::from_millis(5);
const NUDGED_FOR: Duration = Duration::from_secs(10);
/// How long a question may take that is asked for its own sake.
const ASK: Duration = Duration::from_millis(100);
/// How long moving to another offset or leaving the group may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A fence so soon after a connection broke may be of this member's own making …
const FENCED_BY_ITSELF: Duration = Duration::from_secs(60);
/// … but not so often in that time: another process has the name then.
const ANEW_MAX: usize = 3;

/// What the members of a log share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Where Kafka is.
    pub kafka: Config,
    /// The members of this process.
    pub members: Arc<Members>,
    /// The client that describes groups.
    pub coordinators: Arc<Coordinators>,
}

/// A member.
#[derive(Debug)]
pub struct KafkaGroup {
    shared: Shared,
    gather: Gather,
    events: Queue,
    config: GroupConfig,
    seat: Arc<Seat>,
    /// A revocation that was returned and is still to be answered.
    giving_up: Option<Vec<TopicPartition>>,
    /// What was heard while a partition was moved, for the next poll.
    heard: Option<Event>,
    /// The instance name is another member's: when to ask for it again.
    occupied: Option<Instant>,
    joined: Instant,
    /// Whether it has been told what is its own since then.
    settled: bool,
    /// When it was joined anew after a fence, of late.
    anew: Vec<Instant>,
    coverage: Coverage,
}

impl KafkaGroup {
    /// Joins a group; the assignment comes by `poll`.
    pub fn join(shared: Shared, group: GroupConfig, topics: Topics) -> Result<KafkaGroup> {
        if group.protocol == GroupProtocol::Consumer {
            protocol::check(super::client::version())?;
        }
        let handle =
            Handle::new(Kind::Consumer, &settings::group(&shared.kafka, &group)).map_err(fault::setting_error)?;
        let waker = Arc::new(Waker::default());
        let mut events = Queue::member(&handle).ok_or_else(|| Error::Refused {
            attempted: "join a group".to_owned(),
            reason: "the group's name is empty; give it one".to_owned(),
        })?;
        events.wake_with(&waker);
        let gather = Gather::new(&handle, waker);
        handle
            .subscribe(&List::of_topics(topics.keys().map(AsRef::as_ref)))
            .map_err(|found| fault::error(format!("join group {}", group.group), &found))?;
        let seat = Arc::new(Seat::new(handle));
        shared.members.add(&group.group, &seat);
        Ok(KafkaGroup {
            coverage: Coverage::new(&group, topics),
            shared,
            gather,
            events,
            config: group,
            seat,
            giving_up: None,
            heard: None,
            occupied: None,
            joined: Instant::now(),
            settled: false,
            anew: Vec::new(),
        })
    }

    fn incremental(&self) -> bool {
        self.config.protocol == GroupProtocol::Consumer
    }

    /// What there is to say; a fence that a broken connection may have made is answered by joining anew.
    ///
    /// A member of an instance name that asks to join, and does not hear the answer, asks again under the member id
    /// that the first request has already replaced: the coordinator then fences it, for itself (KIP-345 names the
    /// id's replacement). Another process of the name would fence the new member too, again and again, and that is
    /// final.
    fn next(&mut self) -> Result<Option<Event>> {
        if let Some(heard) = self.heard.take() {
            return Ok(Some(heard));
        }
        if let Some(again) = self.occupied {
            if Instant::now() < again {
                return Err(self.is_occupied());
            }
            return self.join_anew("its instance name was another member's");
        }
        match self.next_event() {
            Err(Error::Fenced { .. }) if self.may_be_own_fence() => {
                self.anew.push(Instant::now());
                self.join_anew("fenced after a connection broke")
            }
            Err(error @ Error::Occupied { .. }) => {
                self.occupied = Some(Instant::now() + protocol::ASK_AGAIN);
                Err(error)
            }
            Ok(None) => self.check_coverage().map(|()| None),
            said => said,
        }
    }

    /// Compares the assignment with the subscription, and leaves the group and joins it again where they do not match:
    /// only the join of an unknown member always causes a rebalance. A known one that joins with unchanged metadata gets
    /// its current assignment back, unless it leads the group.
    fn check_coverage(&mut self) -> Result<()> {
        let (handle, gather) = (self.gather.handle().clone(), &self.gather);
        let held = || {
            let joined = handle.membership().is_some_and(|now| now.generation() >= 0);
            joined.then(|| gather.partitions())
        };
        if !self.coverage.advance(&self.shared.coordinators, held) {
            return Ok(());
        }
        let topics = List::of_topics(self.coverage.topics().keys().map(AsRef::as_ref));
        let rejoined = handle.unsubscribe().and_then(|()| handle.subscribe(&topics));
        (self.settled, self.joined) = (false, Instant::now());
        rejoined.map_err(|found| self.error("rejoin", &found))
    }

    /// While it joins: makes the library look, and says when to do so again.
    fn nudge(&self) -> Option<Instant> {
        let joins = !self.settled && self.joined.elapsed() < NUDGED_FOR;
        joins.then(|| {
            // The question goes through the library's main thread, which then looks what else there is to do.
            drop(self.handle().membership());
            Instant::now() + NUDGE
        })
    }

    fn may_be_own_fence(&mut self) -> bool {
        self.anew.retain(|at| at.elapsed() < FENCED_BY_ITSELF);
        self.anew.len() < ANEW_MAX && self.handle().reach().broken_within(FENCED_BY_ITSELF)
    }

    fn is_occupied(&self) -> Error {
        Error::Occupied {
            group: self.config.group.clone(),
            instance: self.config.instance.clone().unwrap_or_default(),
        }
    }

    fn join_anew(&mut self, why: &'static str) -> Result<Option<Event>> {
        tracing::warn!(
            target: "log::kafka",
            group = self.config.group,
            instance = self.config.instance,
            why,
            "joining the group anew"
        );
        let lost = self.gather.partitions();
        let anew = std::mem::take(&mut self.anew);
        let topics = self.coverage.topics().clone();
        *self = KafkaGroup::join(self.shared.clone(), self.config.clone(), topics)?;
        self.anew = anew;
        Ok((!lost.is_empty()).then_some(Event::Lost(lost)))
    }

    fn error(&self, attempted: &'static str, found: &Fault) -> Error {
        if found.code == Code::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID {
            let who = self
                .config
                .instance
                .clone()
                .unwrap_or_else(|| self.config.group.clone());
            return Error::Fenced { attempted, who };
        }
        fault::error(format!("{attempted} of group {}", self.config.group), found)
    }

    fn handle(&self) -> &Arc<Handle> {
        self.gather.handle()
    }

    /// Gives partitions up: those that are named, or all of them where the protocol knows no parts.
    fn give_up(&mut self, gone: &[TopicPartition]) -> Result<()> {
        self.giving_up = None;
        self.forget(gone)?;
        let given = if self.incremental() {
            self.handle().unassign(&List::of(gone.iter().map(|at| (at, 0))))
        } else {
            self.handle().assign(None)
        };
        given.map_err(|found| self.error("give partitions up", &found))
    }

    /// Reads no more of what is being given up.
    fn forget(&mut self, gone: &[TopicPartition]) -> Result<()> {
        if self.incremental() {
            self.seat.started().retain(|at| !gone.contains(at));
            return self.gather.remove(gone);
        }
        self.seat.started().clear();
        self.gather.replace(std::iter::empty())
    }

    /// Takes an assignment, held still: forwarded to the inbox and paused *before* it is answered, or the first
    /// records would come from where nobody asked, or go to another queue.
    fn take(&mut self, partitions: Vec<TopicPartition>) -> Result<()> {
        if self.incremental() {
            self.gather.add(&partitions)?;
        } else {
            self.gather
                .replace(partitions.iter().map(|at| (at.clone(), false, None)))?;
        }
        let list = List::of(partitions.iter().map(|at| (at, 0)));
        let still = self.handle().pause(&list);
        partitions.iter().for_each(|at| self.gather.queue().gather(at));
        let handle = self.handle();
        let taken = still.and_then(|()| match self.incremental() {
            true => handle.assign_more(&list),
            false => handle.assign(Some(&list)),
        });
        taken.map_err(|found| self.error("take partitions", &found))
    }

    /// What the group or the client has to say, if anything.
    fn next_event(&mut self) -> Result<Option<Event>> {
        loop {
            let Some(event) = self.events.poll(Duration::ZERO) else {
                return Ok(None);
            };
            let found = event.fault();
            match (event.what(), found) {
                (What::Rebalance, Err(found)) => {
                    let partitions = partitions(&event);
                    drop(event);
                    if let Some(event) = self.rebalance(found.code, partitions)? {
                        return Ok(Some(event));
                    }
                }
                (What::Error, Err(found)) => {
                    drop(event);
                    if let Some(event) = self.client_error(&found)? {
                        return Ok(Some(event));
                    }
                }
                _ => {}
            }
        }
    }

    fn rebalance(&mut self, which: Code, partitions: Vec<TopicPartition>) -> Result<Option<Event>> {
        self.settled = true;
        if which == Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.take(partitions.clone())?;
            self.coverage.assigned();
            return Ok((!partitions.is_empty()).then_some(Event::Assigned(partitions)));
        }
        if self.handle().assignment_lost() {
            self.give_up(&partitions)?;
            return Ok((!partitions.is_empty()).then_some(Event::Lost(partitions)));
        }
        if partitions.is_empty() {
            self.give_up(&partitions)?;
            return Ok(None);
        }
        self.forget(&partitions)?;
        self.giving_up = Some(partitions.clone());
        Ok(Some(Event::Revoked(partitions)))
    }

    /// What an error of the client means; an event where the group was joined anew because of it.
    fn client_error(&mut self, found: &Fault) -> Result<Option<Event>> {
        use Code as C;
        if let Some(fatal) = self.handle().fatal() {
            return match protocol::meaning(&self.config, &fatal) {
                protocol::Meaning::Occupied => Err(self.is_occupied()),
                protocol::Meaning::JoinAnew(why) if self.joined.elapsed() > protocol::JOINED_FOR => self.join_anew(why),
                protocol::Meaning::Refused(error) => Err(error),
                protocol::Meaning::JoinAnew(_) | protocol::Meaning::Final => Err(self.error("poll", &fatal)),
            };
        }
        match found.code {
            C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | C::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {
                Err(Error::UnknownTopic {
                    topic: self.config.topics.join(", "),
                })
            }
            C::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
            | C::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
            | C::RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT
            | C::RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL
            | C::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID => Err(self.error("poll", found)),
            _ => {
                tracing::debug!(target: "log::kafka", group = self.config.group, code = ?found.code, "{}", found.text);
                Ok(None)
            }
        }
    }

    fn slot(&mut self, at: &TopicPartition, attempted: &str) -> Result<&mut Slot> {
        let refused = || Error::Refused {
            attempted: format!("{attempted} {at}"),
            reason: "it is not assigned to this member".to_owned(),
        };
        self.gather.slot(at).ok_or_else(refused)
    }

    /// Moves a partition that has failed, which the library has stopped and does not move: it is given up and taken
    /// again, and none but it where the protocol knows parts.
    fn take_anew(&mut self, moved: &TopicPartition, offset: Offset) -> Result<(), Fault> {
        if !self.incremental() {
            return self.assign_anew(moved, offset);
        }
        let one = List::of(std::iter::once((moved, offset)));
        let handle = self.handle().clone();
        handle.unassign(&one)?;
        // To hold it still also waits until it has stopped, which takes its queue away.
        handle.pause(&one)?;
        self.gather.queue().gather(moved);
        handle.assign_more(&one)?;
        self.gather.forget(moved);
        Ok(())
    }

    /// The whole assignment is taken anew, every other partition at its position.
    fn assign_anew(&mut self, moved: &TopicPartition, offset: Offset) -> Result<(), Fault> {
        let slots = self.gather.slots();
        let position = |slot: &Slot| {
            if slot.at == *moved {
                offset
            } else {
                slot.position.unwrap_or(0)
            }
        };
        let all = List::of(slots.iter().map(|slot| (&slot.at, position(slot))));
        let run: Vec<_> = slots
            .iter()
            .filter(|slot| slot.started && !slot.paused && slot.at != *moved)
            .collect();
        let run = List::of(run.into_iter().map(|slot| (&slot.at, 0)));
        let everything: Vec<_> = slots.iter().map(|slot| slot.at.clone()).collect();
        let handle = self.handle().clone();
        handle.assign(None)?;
        // To hold them still also waits until they have stopped, which takes their queues away.
        handle.pause(&all)?;
        everything.iter().for_each(|at| self.gather.queue().gather(at));
        handle.assign(Some(&all))?;
        everything.iter().for_each(|at| self.gather.forget(at));
        handle.resume(&run)
    }

    /// Makes the library fetch a partition at once that was resumed. It wakes its connection only for a partition that
    /// becomes active, as one does that is moved to another offset than 0, or for a question; else the connection sleeps
    /// on for up to a second.
    fn wake(&self, at: &TopicPartition, offset: Offset) -> Result<(), Fault> {
        self.seek(at, offset)?;
        if offset == 0 {
            self.handle().ask_ends(at, ASK);
        }
        Ok(())
    }

    /// Moves an assigned partition. It may still be on its way to being read: then a little later.
    fn seek(&self, at: &TopicPartition, offset: Offset) -> Result<(), Fault> {
        let end = Instant::now() + PATIENCE;
        loop {
            let list = List::of(std::iter::once((at, offset)));
            let sought = self.handle().seek(&list, PATIENCE);
            match sought.and_then(|()| list.check().map_err(|(_, found)| found)) {
                Err(found) if not_yet(found.code) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }
}

fn not_yet(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::RD_KAFKA_RESP_ERR__STATE | C::RD_KAFKA_RESP_ERR__PREV_IN_PROGRESS | C::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
    )
}

fn partitions(event: &RawEvent<'_>) -> Vec<TopicPartition> {
    let mut partitions: Vec<_> = event.partitions().into_iter().map(|entry| entry.at).collect();
    partitions.sort();
    partitions
}

impl GroupConsumer for KafkaGroup {
    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<Event> {
        batch.clear();
        if let Some(gone) = self.giving_up.take() {
            self.give_up(&gone)?;
        }
        let end = Instant::now() + timeout;
        loop {
            if let Some(event) = self.next()? {
                return Ok(event);
            }
            if self.gather.take(batch, max_bytes)? > 0 {
                return Ok(Event::Records);
            }
            let nudge = self
                .nudge()
                .into_iter()
                .chain(self.coverage.due())
                .fold(end, Instant::min);
            if !self.gather.wait(nudge) && nudge >= end {
                self.gather.check_reach("poll")?;
                return Ok(Event::Idle);
            }
        }
    }

    fn start(&mut self, at: &TopicPartition, offset: Offset) -> Result<()> {
        let slot = self.slot(at, "start")?;
        let (paused, failed) = (slot.paused, slot.failed.is_some());
        // To take a partition anew would answer a revocation that waits to be heard.
        if failed && self.incremental() && self.heard.is_none() {
            self.heard = self.next()?;
            if self.gather.slot(at).is_none() {
                return Ok(());
            }
        }
        let moved = if failed {
            self.take_anew(at, offset)
        } else {
            self.seek(at, offset)
        };
        let one = List::of(std::iter::once((at, offset)));
        let moved = moved.and_then(|()| {
            if paused {
                return Ok(());
            }
            self.handle().resume(&one)?;
            self.wake(at, offset)
        });
        moved.map_err(|found| fault::topic_error(&at.topic, format!("start {at} at {offset}"), &found))?;
        self.gather.forget(at);
        let slot = self.slot(at, "start")?;
        (slot.started, slot.position, slot.failed) = (true, Some(offset), None);
        self.seat.started().insert(at.clone());
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        for at in partitions {
            self.slot(at, "pause")?.paused = true;
        }
        let list = List::of(partitions.iter().map(|at| (at, 0)));
        self.handle()
            .pause(&list)
            .map_err(|found| self.error("pause partitions", &found))
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let mut started = Vec::with_capacity(partitions.len());
        for at in partitions {
            let slot = self.slot(at, "resume")?;
            slot.paused = false;
            // One that was never started stays still until it is.
            if slot.started {
                started.push((at, slot.position));
            }
        }
        let list = List::of(started.iter().map(|(at, _)| (*at, 0)));
        let mut resumed = self.handle().resume(&list);
        for (at, position) in started {
            let Some(position) = position else { continue };
            // What was fetched before the pause is fetched again.
            self.gather.forget(at);
            resumed = resumed.and_then(|()| self.wake(at, position));
        }
        resumed.map_err(|found| self.error("resume partitions", &found))
    }

    fn unassigned(&self) -> Vec<Arc<str>> {
        self.coverage.unassigned(&self.gather.partitions())
    }

    fn group_metadata(&self) -> Result<GroupMetadata> {
        let membership = self.handle().membership().ok_or_else(|| Error::Refused {
            attempted: format!("be a member of group {}", self.config.group),
            reason: "this client has no group".to_owned(),
        })?;
        let generation = membership.generation();
        let rises = self.incremental();
        let token = MemberToken::Kafka(Arc::new(KafkaGroupMetadata { membership, rises }));
        Ok(GroupMetadata {
            group: self.config.group.clone(),
            generation,
            token,
        })
    }

    fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        failpoint::hit("log.offsets.before");
        let end = Instant::now() + PATIENCE;
        loop {
            let list = List::of(offsets.iter().map(|(at, offset)| (at, *offset)));
            let done = self.handle().commit(&list);
            let Err(found) = done.and_then(|()| list.check().map_err(|(_, found)| found)) else {
                failpoint::hit("log.offsets.after");
                return Ok(());
            };
            // The member has only not heard yet that its generation has risen; the library asks at once.
            let late = found.code == Code::RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH;
            if late && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            if fault::fenced(found.code) {
                let who = self.config.instance.as_ref().unwrap_or(&self.config.group);
                let (attempted, who) = ("commit offsets", who.clone());
                return Err(Error::Fenced { attempted, who });
            }
            let attempted = format!("commit offsets of group {}", self.config.group);
            return Err(fault::error(attempted, &found));
        }
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        if let Some(gone) = self.giving_up.take() {
            self.give_up(&gone)?;
        }
        self.seat.started().clear();
        self.events.leave().map_err(|found| self.error("leave", &found))?;
        let end = Instant::now() + PATIENCE;
        while !self.handle().left() {
            let revoked = self.events.poll(Duration::from_millis(100));
            let revoked = revoked.filter(|event| event.what() == What::Rebalance);
            if let Some(revoked) = revoked.map(|event| partitions(&event)) {
                self.give_up(&revoked)?;
            }
            if Instant::now() >= end {
                let attempted = format!("leave group {}", self.config.group);
                return Err(Error::Unavailable {
                    attempted,
                    reason: self.handle().reach().explain("no answer"),
                });
            }
        }
        Ok(())
    }
}
