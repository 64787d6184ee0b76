//! A member of a consumer group on Kafka, with the range assignor and either group protocol.
//!
//! Assigned partitions are paused before the assignment is confirmed, and resumed by `start`. A revocation is returned by
//! one `poll` and confirmed by the next, so that the application can commit in between. No record of a partition is
//! returned after its revocation. A member that is dropped without `close` sends nothing, like one that crashed.

use super::client::list::List;
use super::client::{ClientError, ClientKind, Code, Event as RawEvent, EventKind, Handle, Queue, Waker};
use super::config::Config;
use super::coordinator::Coordinators;
use super::coverage::{Coverage, Topics};
use super::fetcher::{ErrorReports, FetchFailure, Fetcher, PartitionState};
use super::group_metadata::KafkaGroupMetadata;
use super::members::{LocalMember, Members};
use super::{errors, protocol, settings};
use crate::consumer::MemberToken;
use crate::{
    Error, Event, GroupConfig, GroupConsumer, GroupMetadata, GroupProtocol, Offset, RecordBatch, Result, TopicPartition,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Interval and duration of the calls that make librdkafka check its progress while it joins. By itself it checks only
/// every 500 ms whether what it waits for, such as the connection to the coordinator, is available.
const NUDGE_INTERVAL: Duration = Duration::from_millis(5);
const NUDGE_PERIOD: Duration = Duration::from_secs(10);
/// Timeout of a request whose only purpose is to wake up a connection.
const WAKE_TIMEOUT: Duration = Duration::from_millis(100);
/// Timeout for seeking, committing and leaving.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Fencing within this time after a connection failure may have been caused by this member itself: see `poll_event` …
const SELF_FENCE_WINDOW: Duration = Duration::from_secs(60);
/// … but only this often, for example once for each restarted broker. After that, another process uses the instance name.
const REJOINS_MAX: usize = 6;

/// What the members of one event log share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Connection settings.
    pub kafka: Config,
    /// The group members in this process.
    pub members: Arc<Members>,
    /// The client for admin requests to coordinators.
    pub coordinators: Arc<Coordinators>,
}

/// A group consumer.
#[derive(Debug)]
pub struct KafkaGroup {
    shared: Shared,
    fetcher: Fetcher,
    events: Queue,
    config: GroupConfig,
    member: Arc<LocalMember>,
    /// A revocation that was returned and is not yet confirmed.
    revoked: Option<Vec<TopicPartition>>,
    /// An event that arrived while a partition's position was changed; the next poll returns it.
    pending_event: Option<Event>,
    /// When to join again because another member has the instance name.
    retry_instance_at: Option<Instant>,
    joined_at: Instant,
    /// Whether an assignment or revocation arrived since then.
    assigned: bool,
    /// Times of recent rejoins after fencing.
    rejoins: Vec<Instant>,
    coverage: Coverage,
}

impl KafkaGroup {
    /// Joins a group. The assignment is returned by `poll`.
    pub fn join(shared: Shared, group: GroupConfig, topics: Topics) -> Result<KafkaGroup> {
        if group.protocol == GroupProtocol::Consumer {
            protocol::check(super::client::version())?;
        }
        let handle = Handle::new(ClientKind::Consumer, &settings::group(&shared.kafka, &group))
            .map_err(errors::setting_error)?;
        let waker = Arc::new(Waker::default());
        let mut events = Queue::member(&handle).ok_or_else(|| Error::Rejected {
            attempted: "join a group".to_owned(),
            reason: "the group id is empty; set a group id".to_owned(),
        })?;
        events.wake_with(&waker);
        let fetcher = Fetcher::new(&handle, waker, ErrorReports::Once);
        handle
            .subscribe(&List::of_topics(topics.keys().map(AsRef::as_ref)))
            .map_err(|found| errors::request_error(format!("join group {}", group.group), &found))?;
        let member = Arc::new(LocalMember::new(handle));
        shared.members.add(&group.group, &member);
        Ok(KafkaGroup {
            coverage: Coverage::new(&group, topics),
            shared,
            fetcher,
            events,
            config: group,
            member,
            revoked: None,
            pending_event: None,
            retry_instance_at: None,
            joined_at: Instant::now(),
            assigned: false,
            rejoins: Vec::new(),
        })
    }

    fn incremental(&self) -> bool {
        self.config.protocol == GroupProtocol::Consumer
    }

    /// Returns the next event of the group or client. If the member was fenced, it rejoins if it may have caused the
    /// fencing itself.
    ///
    /// If a static member misses the response to its JoinGroup request, it repeats the request with the member id that the
    /// coordinator has already replaced (KIP-345), and the coordinator fences it. A rejoin resolves that. If another
    /// process uses the instance name, the new member is fenced again each time; after `REJOINS_MAX` rejoins the error is
    /// returned.
    fn poll_event(&mut self) -> Result<Option<Event>> {
        if let Some(event) = self.pending_event.take() {
            return Ok(Some(event));
        }
        if let Some(again) = self.retry_instance_at {
            if Instant::now() < again {
                return Err(self.occupied_error());
            }
            return self.rejoin("its instance name was in use");
        }
        match self.client_event() {
            Err(Error::Fenced { .. }) if self.may_have_fenced_itself() => {
                self.rejoins.push(Instant::now());
                self.rejoin("fenced after a connection failure")
            }
            Err(error @ Error::Occupied { .. }) => {
                self.retry_instance_at = Some(Instant::now() + protocol::OCCUPIED_RETRY);
                Err(error)
            }
            Ok(None) => self.check_coverage().map(|()| None),
            other => other,
        }
    }

    /// Compares the assignment with the subscription. If they differ, leaves the group and joins again: only the join of an
    /// unknown member always causes a rebalance. A known member that joins with unchanged metadata gets its current
    /// assignment back, unless it is the group leader.
    fn check_coverage(&mut self) -> Result<()> {
        let (handle, fetcher) = (self.fetcher.handle().clone(), &self.fetcher);
        let assigned = || {
            let joined = handle.group_metadata().is_some_and(|now| now.generation() >= 0);
            joined.then(|| fetcher.partitions())
        };
        if !self.coverage.advance(&self.shared.coordinators, assigned) {
            return Ok(());
        }
        let topics = List::of_topics(self.coverage.topics().keys().map(AsRef::as_ref));
        let rejoined = handle.unsubscribe().and_then(|()| handle.subscribe(&topics));
        (self.assigned, self.joined_at) = (false, Instant::now());
        rejoined.map_err(|found| self.error("rejoin", &found))
    }

    /// Makes librdkafka check the state of its join, and returns when to do that again; `None` if it is not joining.
    fn nudge(&self) -> Option<Instant> {
        let joins = !self.assigned && self.joined_at.elapsed() < NUDGE_PERIOD;
        joins.then(|| {
            // librdkafka's main thread executes the call. It then also handles everything else that is due.
            drop(self.handle().group_metadata());
            Instant::now() + NUDGE_INTERVAL
        })
    }

    fn may_have_fenced_itself(&mut self) -> bool {
        self.rejoins.retain(|at| at.elapsed() < SELF_FENCE_WINDOW);
        self.rejoins.len() < REJOINS_MAX && self.handle().connectivity().broken_within(SELF_FENCE_WINDOW)
    }

    fn occupied_error(&self) -> Error {
        Error::Occupied {
            group: self.config.group.clone(),
            instance: self.config.instance.clone().unwrap_or_default(),
        }
    }

    fn rejoin(&mut self, why: &'static str) -> Result<Option<Event>> {
        tracing::warn!(
            target: "event_log::kafka",
            group = self.config.group,
            instance = self.config.instance,
            why,
            "rejoining the group"
        );
        let lost = self.fetcher.partitions();
        let rejoins = std::mem::take(&mut self.rejoins);
        let topics = self.coverage.topics().clone();
        *self = KafkaGroup::join(self.shared.clone(), self.config.clone(), topics)?;
        self.rejoins = rejoins;
        Ok((!lost.is_empty()).then_some(Event::Lost(lost)))
    }

    fn error(&self, attempted: &'static str, found: &ClientError) -> Error {
        if found.code == Code::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID {
            let who = self
                .config
                .instance
                .clone()
                .unwrap_or_else(|| self.config.group.clone());
            return Error::Fenced { attempted, who };
        }
        errors::request_error(format!("{attempted} of group {}", self.config.group), found)
    }

    fn handle(&self) -> &Arc<Handle> {
        self.fetcher.handle()
    }

    /// Removes partitions from the assignment: the given ones with the incremental protocol, otherwise all.
    fn unassign(&mut self, gone: &[TopicPartition]) -> Result<()> {
        self.revoked = None;
        self.stop_reading(gone)?;
        let given = if self.incremental() {
            self.handle()
                .incremental_unassign(&List::of(gone.iter().map(|at| (at, 0))))
        } else {
            self.handle().assign(None)
        };
        given.map_err(|found| self.error("give partitions up", &found))
    }

    /// Stops returning records of revoked partitions.
    fn stop_reading(&mut self, gone: &[TopicPartition]) -> Result<()> {
        if self.incremental() {
            self.member.started().retain(|at| !gone.contains(at));
            return self.fetcher.remove(gone);
        }
        self.member.started().clear();
        self.fetcher.replace(std::iter::empty())
    }

    /// Confirms an assignment with all partitions paused. Each partition is forwarded to the inbox and paused before the
    /// confirmation; otherwise its first records would come from an undefined offset or go to another queue.
    fn assign(&mut self, partitions: Vec<TopicPartition>) -> Result<()> {
        if self.incremental() {
            self.fetcher.add(&partitions)?;
        } else {
            self.fetcher
                .replace(partitions.iter().map(|at| (at.clone(), false, None)))?;
        }
        let list = List::of(partitions.iter().map(|at| (at, 0)));
        let still = self.handle().pause(&list);
        partitions
            .iter()
            .for_each(|at| self.fetcher.queue().forward_partition(at));
        let handle = self.handle();
        let taken = still.and_then(|()| match self.incremental() {
            true => handle.incremental_assign(&list),
            false => handle.assign(Some(&list)),
        });
        taken.map_err(|found| self.error("take partitions", &found))
    }

    /// Returns the next rebalance, or an event caused by a client error.
    fn client_event(&mut self) -> Result<Option<Event>> {
        loop {
            let Some(event) = self.events.poll(Duration::ZERO) else {
                return Ok(None);
            };
            let found = event.error();
            match (event.kind(), found) {
                (EventKind::Rebalance, Err(found)) => {
                    let partitions = partitions(&event);
                    drop(event);
                    if let Some(event) = self.rebalance(found.code, partitions)? {
                        return Ok(Some(event));
                    }
                }
                (EventKind::Error, Err(found)) => {
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
        self.assigned = true;
        if which == Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(partitions.clone())?;
            self.coverage.assigned();
            return Ok((!partitions.is_empty()).then_some(Event::Assigned(partitions)));
        }
        if self.handle().assignment_lost() {
            self.unassign(&partitions)?;
            return Ok((!partitions.is_empty()).then_some(Event::Lost(partitions)));
        }
        if partitions.is_empty() {
            self.unassign(&partitions)?;
            return Ok(None);
        }
        self.stop_reading(&partitions)?;
        self.revoked = Some(partitions.clone());
        Ok(Some(Event::Revoked(partitions)))
    }

    /// Handles a client error. Returns an event if the member rejoined because of it.
    fn client_error(&mut self, found: &ClientError) -> Result<Option<Event>> {
        use Code as C;
        if let Some(fatal) = self.handle().fatal() {
            return match protocol::meaning(&self.config, &fatal) {
                protocol::Meaning::Occupied => Err(self.occupied_error()),
                protocol::Meaning::Rejoin(why) if self.joined_at.elapsed() > protocol::REJOIN_AFTER => self.rejoin(why),
                protocol::Meaning::Rejected(error) => Err(error),
                protocol::Meaning::Rejoin(_) | protocol::Meaning::Final => Err(self.error("poll", &fatal)),
            };
        }
        match found.code {
            // librdkafka reports a topic again only if its error changes.
            C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | C::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | C::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => {
                Err(errors::subscription_error(&self.config.topics, found).unwrap_or_else(|| self.error("poll", found)))
            }
            C::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
            | C::RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT
            | C::RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL
            | C::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID => Err(self.error("poll", found)),
            _ => {
                tracing::debug!(target: "event_log::kafka", group = self.config.group, code = ?found.code, error = found.text, "client error");
                Ok(None)
            }
        }
    }

    fn state(&mut self, at: &TopicPartition, attempted: &str) -> Result<&mut PartitionState> {
        let rejected = || Error::Rejected {
            attempted: format!("{attempted} {at}"),
            reason: "it is not assigned to this member".to_owned(),
        };
        self.fetcher.state(at).ok_or_else(rejected)
    }

    /// Sets another position for a partition whose fetching failed. librdkafka has stopped it and ignores seeks, so it
    /// is removed from the assignment and added again; the classic protocol requires that for the whole assignment.
    fn reassign(&mut self, moved: &TopicPartition, offset: Offset) -> Result<(), ClientError> {
        if !self.incremental() {
            return self.reassign_all(moved, offset);
        }
        let one = List::of(std::iter::once((moved, offset)));
        let handle = self.handle().clone();
        handle.incremental_unassign(&one)?;
        // `pause` also waits until the partition has stopped, which removes the forwarding of its queue.
        handle.pause(&one)?;
        self.fetcher.queue().forward_partition(moved);
        handle.incremental_assign(&one)?;
        self.fetcher.forget(moved);
        Ok(())
    }

    /// Replaces the whole assignment, keeping the positions of all partitions except `moved`.
    fn reassign_all(&mut self, moved: &TopicPartition, offset: Offset) -> Result<(), ClientError> {
        let states = self.fetcher.states();
        let position = |state: &PartitionState| {
            if state.at == *moved {
                offset
            } else {
                state.position.unwrap_or(0)
            }
        };
        let all = List::of(states.iter().map(|state| (&state.at, position(state))));
        let run: Vec<_> = states
            .iter()
            .filter(|state| state.started && !state.paused && state.at != *moved)
            .collect();
        let run = List::of(run.into_iter().map(|state| (&state.at, 0)));
        let everything: Vec<_> = states.iter().map(|state| state.at.clone()).collect();
        let handle = self.handle().clone();
        handle.assign(None)?;
        // `pause` also waits until the partitions have stopped, which removes the forwarding of their queues.
        handle.pause(&all)?;
        everything
            .iter()
            .for_each(|at| self.fetcher.queue().forward_partition(at));
        handle.assign(Some(&all))?;
        everything.iter().for_each(|at| self.fetcher.forget(at));
        handle.resume(&run)
    }

    /// Makes librdkafka fetch a resumed partition immediately. Otherwise its broker thread may sleep for up to a second: it
    /// wakes up for a seek to an offset other than 0 and for requests, but not for a resume.
    fn wake(&self, at: &TopicPartition, offset: Offset) -> Result<(), ClientError> {
        self.seek(at, offset)?;
        if offset == 0 {
            self.handle().query_watermarks(at, WAKE_TIMEOUT);
        }
        Ok(())
    }

    /// Seeks an assigned partition. Retries while librdkafka is still starting the partition.
    fn seek(&self, at: &TopicPartition, offset: Offset) -> Result<(), ClientError> {
        let end = Instant::now() + CALL_TIMEOUT;
        loop {
            let list = List::of(std::iter::once((at, offset)));
            let sought = self.handle().seek(&list, CALL_TIMEOUT);
            match sought.and_then(|()| list.check().map_err(|(_, found)| found)) {
                Err(found) if is_transient_seek_error(found.code) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }
}

fn is_transient_seek_error(code: Code) -> bool {
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
        if let Some(gone) = self.revoked.take() {
            self.unassign(&gone)?;
        }
        let end = Instant::now() + timeout;
        loop {
            if let Some(event) = self.poll_event()? {
                return Ok(event);
            }
            match self.fetcher.take(batch, max_bytes) {
                Ok(0) => {}
                Ok(_) => return Ok(Event::Records),
                Err(error) => {
                    // Until `start`, the partition is not read, so its offset may be set from outside.
                    let is_failed = |at: &TopicPartition| error.scope().is_some_and(|scope| scope.contains(at));
                    self.member.started().retain(|at| !is_failed(at));
                    return Err(error);
                }
            }
            let nudge = self
                .nudge()
                .into_iter()
                .chain(self.coverage.due())
                .fold(end, Instant::min);
            if !self.fetcher.wait(nudge) && nudge >= end {
                self.fetcher.check_reachable("poll")?;
                return Ok(Event::Idle);
            }
        }
    }

    fn start(&mut self, at: &TopicPartition, offset: Offset) -> Result<()> {
        let state = self.state(at, "start")?;
        let (paused, failed) = (state.paused, state.failed.is_some());
        // `reassign` would confirm a revocation that is already in the queue, so that revocation is returned first.
        if failed && self.incremental() && self.pending_event.is_none() {
            self.pending_event = self.poll_event()?;
            if self.fetcher.state(at).is_none() {
                return Ok(());
            }
        }
        let moved = if failed {
            self.reassign(at, offset)
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
        moved.map_err(|found| errors::topic_error(&at.topic, format!("start {at} at {offset}"), &found))?;
        self.fetcher.forget(at);
        let state = self.state(at, "start")?;
        (state.started, state.position, state.failed) = (true, Some(offset), None);
        self.member.started().insert(at.clone());
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        for at in partitions {
            self.state(at, "pause")?.paused = true;
        }
        let list = List::of(partitions.iter().map(|at| (at, 0)));
        self.handle()
            .pause(&list)
            .map_err(|found| self.error("pause partitions", &found))
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let (mut started, mut failed) = (Vec::with_capacity(partitions.len()), Vec::new());
        for at in partitions {
            let state = self.state(at, "resume")?;
            state.paused = false;
            // An error that arrived during the pause may be that of a later record than the next one.
            if let (Some(FetchFailure { reported: false, .. }), Some(position)) = (&state.failed, state.position) {
                failed.push((at, position));
                continue;
            }
            // A partition that was never started remains paused until `start`.
            if state.started {
                started.push((at, state.position));
            }
        }
        let list = List::of(started.iter().map(|(at, _)| (*at, 0)));
        let mut resumed = self.handle().resume(&list);
        for (at, position) in started {
            let Some(position) = position else { continue };
            // The pause discarded fetched messages, so they are fetched again.
            self.fetcher.forget(at);
            resumed = resumed.and_then(|()| self.wake(at, position));
        }
        resumed.map_err(|found| self.error("resume partitions", &found))?;
        failed
            .into_iter()
            .try_for_each(|(at, position)| self.start(at, position))
    }

    fn unassigned(&self) -> Vec<Arc<str>> {
        self.coverage.unassigned(&self.fetcher.partitions())
    }

    fn group_metadata(&self) -> Result<GroupMetadata> {
        let metadata = self.handle().group_metadata().ok_or_else(|| Error::Rejected {
            attempted: format!("be a member of group {}", self.config.group),
            reason: "the client has no consumer group".to_owned(),
        })?;
        let generation = metadata.generation();
        let rises = self.incremental();
        let token = MemberToken::Kafka(Arc::new(KafkaGroupMetadata {
            metadata,
            generation_rises: rises,
        }));
        Ok(GroupMetadata {
            group: self.config.group.clone(),
            generation,
            token,
        })
    }

    fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        failpoint::hit("log.offsets.before");
        let end = Instant::now() + CALL_TIMEOUT;
        loop {
            let list = List::of(offsets.iter().map(|(at, offset)| (at, *offset)));
            let done = self.handle().commit(&list);
            let Err(found) = done.and_then(|()| list.check().map_err(|(_, found)| found)) else {
                failpoint::hit("log.offsets.after");
                return Ok(());
            };
            // The member has not learned its new epoch yet; librdkafka requests it without delay.
            let late = found.code == Code::RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH;
            if late && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            if errors::is_fenced(found.code) {
                let who = self.config.instance.as_ref().unwrap_or(&self.config.group);
                let (attempted, who) = ("commit offsets", who.clone());
                return Err(Error::Fenced { attempted, who });
            }
            let attempted = format!("commit offsets of group {}", self.config.group);
            return Err(errors::request_error(attempted, &found));
        }
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        if let Some(gone) = self.revoked.take() {
            self.unassign(&gone)?;
        }
        self.member.started().clear();
        self.events.leave().map_err(|found| self.error("leave", &found))?;
        let end = Instant::now() + CALL_TIMEOUT;
        while !self.handle().left() {
            let revoked = self.events.poll(Duration::from_millis(100));
            let revoked = revoked.filter(|event| event.kind() == EventKind::Rebalance);
            if let Some(revoked) = revoked.map(|event| partitions(&event)) {
                self.unassign(&revoked)?;
            }
            if Instant::now() >= end {
                let attempted = format!("leave group {}", self.config.group);
                return Err(Error::Unavailable {
                    attempted,
                    reason: self.handle().connectivity().explain("no answer"),
                });
            }
        }
        Ok(())
    }
}
