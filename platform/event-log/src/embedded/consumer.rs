//! A member of a consumer group of the embedded log. A member that is dropped leaves its group.

use super::broker::Broker;
use super::fetch::Fetcher;
use super::group::{self, Group, JoinError, Joining, MemberId};
use super::signal::until;
use super::state::{State, unknown};
use crate::consumer::MemberToken;
use crate::{
    Error, ErrorScope, Event, GroupConfig, GroupConsumer, GroupMetadata, GroupProtocol, Isolation, Millis, Offset,
    RecordBatch, Result, StartFrom, TopicPartition,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct EmbeddedConsumer {
    fetcher: Fetcher,
    id: MemberId,
    config: GroupConfig,
    /// Whether the consumer is a member of the group; if not, each poll tries to join.
    is_member: bool,
    assigned: Vec<TopicPartition>,
    paused: BTreeSet<TopicPartition>,
    /// Subscribed topics that were deleted, and for which an error was returned.
    deleted: BTreeSet<Arc<str>>,
}

impl EmbeddedConsumer {
    pub fn join(broker: Arc<Broker>, config: GroupConfig) -> Result<Self> {
        group::check_group_id(&config.group)?;
        let fetcher = Fetcher::new(broker, Isolation::ReadCommitted).reporting_once();
        let mut consumer = EmbeddedConsumer {
            fetcher,
            id: 0,
            config,
            is_member: false,
            assigned: Vec::new(),
            paused: BTreeSet::new(),
            deleted: BTreeSet::new(),
        };
        match consumer.join_group() {
            Ok(()) | Err(Error::Occupied { .. }) => Ok(consumer),
            Err(error) => Err(error),
        }
    }

    fn join_group(&mut self) -> Result<()> {
        let broker = &self.fetcher.broker;
        let now = broker.now();
        let mut state = broker.state();
        let mut topics = Vec::new();
        for name in &self.config.topics {
            let topic = state.topic(name)?;
            topics.push((topic.name.clone(), topic.partitions));
        }
        let name = &self.config.group;
        let id = state.number();
        let group = state.groups.entry(name.clone()).or_insert_with(Group::new);
        let joining = Joining {
            id,
            instance: self.config.instance.clone(),
            topics,
            timeout_ms: Millis::try_from(self.config.session_timeout.as_millis()).unwrap_or(Millis::MAX),
            signal: self.fetcher.signal.clone(),
            incremental: self.config.protocol == GroupProtocol::Consumer,
        };
        match group.join(joining, now) {
            Ok(()) => {
                (self.id, self.is_member) = (id, true);
                drop(state);
                let awake = broker.clear_idle(name);
                if awake.is_err() {
                    self.leave();
                    self.is_member = false;
                }
                awake
            }
            Err(JoinError::Occupied) => Err(Error::Occupied {
                group: name.clone(),
                instance: self.config.instance.clone().unwrap_or_default(),
            }),
            Err(JoinError::ProtocolMismatch) => Err(Error::Rejected {
                attempted: format!("join group {name}"),
                reason:
                    "its active members use the other group protocol; configure the same group_protocol for all members"
                        .to_owned(),
            }),
        }
    }

    fn event(&mut self) -> Result<Option<Event>> {
        if !self.is_member {
            self.join_group()?;
        }
        let broker = self.fetcher.broker.clone();
        let now = broker.now();
        let mut state = broker.state();
        self.deleted.retain(|name| !state.topics.contains_key(name));
        if let Some(gone) = new_deleted(&self.config.topics, &self.deleted, &state) {
            self.deleted.insert(gone.clone());
            return Err(unknown(gone));
        }
        let event = state
            .groups
            .get_mut(&self.config.group)
            .map(|group| group.event(self.id, now));
        drop(state);
        let Some(Ok(event)) = event else {
            self.fetcher.stop_all();
            self.assigned.clear();
            let GroupConfig { group, instance, .. } = &self.config;
            let who = instance.clone().unwrap_or_else(|| group.clone());
            return Err(Error::Fenced { attempted: "poll", who });
        };
        match &event {
            Some(Event::Assigned(partitions)) => {
                self.assigned.retain(|at| !partitions.contains(at));
                self.assigned.extend(partitions.iter().cloned());
                self.paused.retain(|at| !partitions.contains(at));
            }
            Some(Event::Revoked(partitions) | Event::Lost(partitions)) => {
                self.fetcher.stop(partitions);
                self.assigned.retain(|at| !partitions.contains(at));
            }
            _ => {}
        }
        Ok(event)
    }

    fn check_assigned(&self, partitions: &[TopicPartition], attempted: &str) -> Result<()> {
        match partitions.iter().find(|at| !self.assigned.contains(at)) {
            None => Ok(()),
            Some(at) => Err(Error::Rejected {
                attempted: format!("{attempted} {at}"),
                reason: format!(
                    "the partition is not assigned to this member of group {}",
                    self.config.group
                ),
            }),
        }
    }

    /// Notes that a partition is not read until `start`, so that its offset may be set from outside.
    fn stopped(&self, at: &TopicPartition) {
        let mut state = self.fetcher.broker.state();
        if let Some(group) = state.groups.get_mut(&self.config.group) {
            group.stopped(self.id, at);
        }
    }

    fn set_paused(&mut self, partitions: &[TopicPartition], paused: bool) {
        for at in partitions {
            match paused {
                true => self.paused.insert(at.clone()),
                false => self.paused.remove(at),
            };
            if let Some(cursor) = self.fetcher.cursor_mut(at) {
                cursor.paused = paused;
            }
        }
    }

    fn leave(&mut self) {
        self.fetcher.stop_all();
        if !self.is_member {
            return;
        }
        let broker = &self.fetcher.broker;
        let now = broker.now();
        let mut state = broker.state();
        if let Some(group) = state.groups.get_mut(&self.config.group) {
            group.leave(self.id, now);
            if group.is_unused() {
                state.groups.remove(&self.config.group);
            }
        }
    }
}

/// Returns a deleted topic for which no error was returned yet.
fn new_deleted<'t>(topics: &'t [Arc<str>], known: &BTreeSet<Arc<str>>, state: &State) -> Option<&'t Arc<str>> {
    topics
        .iter()
        .find(|name| !state.topics.contains_key(*name) && !known.contains(*name))
}

impl GroupConsumer for EmbeddedConsumer {
    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<Event> {
        batch.clear();
        let until = until(timeout);
        loop {
            if let Some(event) = self.event()? {
                return Ok(event);
            }
            if let Err(error) = self.fetcher.fill(batch, max_bytes) {
                if let Some(ErrorScope::Partition(at)) = error.scope() {
                    self.stopped(at);
                }
                return Err(error);
            }
            if !batch.is_empty() {
                return Ok(Event::Records);
            }
            let (id, name, topics, deleted) = (self.id, &self.config.group, &self.config.topics, &self.deleted);
            let left = self.fetcher.wait(
                until,
                |state| state.groups.get(name).and_then(Group::deadline),
                |state| {
                    let group = state.groups.get(name);
                    group.is_none_or(|group| group.has_event(id)) || new_deleted(topics, deleted, state).is_some()
                },
            );
            if !left {
                return Ok(Event::Idle);
            }
        }
    }

    fn start(&mut self, at: &TopicPartition, offset: Offset) -> Result<()> {
        self.check_assigned(std::slice::from_ref(at), "start reading")?;
        self.fetcher.start(at, StartFrom::Offset(offset))?;
        let paused = self.paused.contains(at);
        if let Some(cursor) = self.fetcher.cursor_mut(at) {
            cursor.paused = paused;
        }
        let mut state = self.fetcher.broker.state();
        if let Some(group) = state.groups.get_mut(&self.config.group) {
            group.started(self.id, at);
        }
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.check_assigned(partitions, "pause")?;
        self.set_paused(partitions, true);
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.check_assigned(partitions, "resume")?;
        self.set_paused(partitions, false);
        Ok(())
    }

    fn group_metadata(&self) -> Result<GroupMetadata> {
        let state = self.fetcher.broker.state();
        let generation = state
            .groups
            .get(&self.config.group)
            .map_or(-1, |group| group.generation_of(self.id));
        Ok(GroupMetadata {
            group: self.config.group.clone(),
            generation,
            token: MemberToken::Embedded(self.id),
        })
    }

    fn commit(&mut self, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        let member = self.group_metadata()?;
        let who = self.config.instance.as_ref().unwrap_or(&self.config.group);
        self.fetcher.broker.commit_offsets(&member, who, offsets)
    }

    fn close(self: Box<Self>) -> Result<()> {
        // `drop` leaves the group.
        Ok(())
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.leave();
    }
}
