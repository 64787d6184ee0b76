//! A member of a consumer group of the embedded log.
//!
//! Guarantees: those of [`GroupConsumer`]. A member that is dropped leaves. Never: an offset of its own choice.

use super::broker::Broker;
use super::fetch::Fetcher;
use super::group::{Group, Joining, MemberId};
use super::signal::until;
use super::state::unknown;
use crate::consumer::MemberToken;
use crate::{Error, Event, GroupConfig, GroupConsumer, Isolation, Member, Millis, Offset, RecordBatch, Result};
use crate::{StartFrom, TopicPartition};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct EmbeddedConsumer {
    fetcher: Fetcher,
    id: MemberId,
    group: String,
    instance: Option<String>,
    topics: Vec<Arc<str>>,
    assigned: Vec<TopicPartition>,
    paused: BTreeSet<TopicPartition>,
}

impl EmbeddedConsumer {
    pub fn join(broker: Arc<Broker>, config: GroupConfig) -> Result<Self> {
        super::check_group(&config.group)?;
        let fetcher = Fetcher::new(broker, Isolation::ReadCommitted);
        let now = fetcher.broker.now();
        let mut state = fetcher.broker.state();
        let mut topics = Vec::new();
        for name in &config.topics {
            let topic = state.topic(name)?;
            topics.push((topic.name.clone(), topic.partitions));
        }
        let id = state.number();
        let group = state.groups.entry(config.group.clone()).or_insert_with(Group::new);
        let joining = Joining {
            id,
            instance: config.instance.clone(),
            topics,
            timeout_ms: Millis::try_from(config.session_timeout.as_millis()).unwrap_or(Millis::MAX),
            signal: fetcher.signal.clone(),
        };
        group.join(joining, now);
        drop(state);
        let GroupConfig {
            group,
            instance,
            topics,
            ..
        } = config;
        Ok(EmbeddedConsumer {
            fetcher,
            id,
            group,
            instance,
            topics,
            assigned: Vec::new(),
            paused: BTreeSet::new(),
        })
    }

    fn event(&mut self) -> Result<Option<Event>> {
        let broker = self.fetcher.broker.clone();
        let now = broker.now();
        let mut state = broker.state();
        if let Some(gone) = self.topics.iter().find(|name| !state.topics.contains_key(*name)) {
            return Err(unknown(gone));
        }
        let event = state.groups.get_mut(&self.group).map(|group| group.event(self.id, now));
        drop(state);
        let Some(Ok(event)) = event else {
            self.fetcher.stop_all();
            self.assigned.clear();
            let who = self.instance.clone().unwrap_or_else(|| self.group.clone());
            return Err(Error::Fenced { attempted: "poll", who });
        };
        match &event {
            Some(Event::Assigned(partitions)) => {
                self.assigned.clone_from(partitions);
                self.paused.clear();
            }
            Some(Event::Revoked(partitions) | Event::Lost(partitions)) => {
                self.fetcher.stop(partitions);
                self.assigned.clear();
            }
            _ => {}
        }
        Ok(event)
    }

    fn check_assigned(&self, partitions: &[TopicPartition], attempted: &str) -> Result<()> {
        match partitions.iter().find(|at| !self.assigned.contains(at)) {
            None => Ok(()),
            Some(at) => Err(Error::Refused {
                attempted: format!("{attempted} {at}"),
                reason: format!("it is not assigned to this member of group {}", self.group),
            }),
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
        let broker = &self.fetcher.broker;
        let now = broker.now();
        let mut state = broker.state();
        if let Some(group) = state.groups.get_mut(&self.group) {
            group.leave(self.id, now);
            if group.is_gone() {
                state.groups.remove(&self.group);
            }
        }
    }
}

impl GroupConsumer for EmbeddedConsumer {
    fn poll(&mut self, batch: &mut RecordBatch, max_bytes: usize, timeout: Duration) -> Result<Event> {
        batch.clear();
        let until = until(timeout);
        loop {
            if let Some(event) = self.event()? {
                return Ok(event);
            }
            self.fetcher.fill(batch, max_bytes)?;
            if !batch.is_empty() {
                return Ok(Event::Records);
            }
            let (id, name, topics) = (self.id, &self.group, &self.topics);
            let left = self.fetcher.wait(
                until,
                |state| state.groups.get(name).and_then(Group::deadline),
                |state| {
                    let group = state.groups.get(name);
                    group.is_none_or(|group| group.has_news(id)) || topics.iter().any(|t| !state.topics.contains_key(t))
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
        if let Some(group) = state.groups.get_mut(&self.group) {
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

    fn member(&self) -> Result<Member> {
        let state = self.fetcher.broker.state();
        let generation = state
            .groups
            .get(&self.group)
            .map_or(-1, |group| group.generation_of(self.id));
        Ok(Member {
            group: self.group.clone(),
            generation,
            token: MemberToken::Embedded(self.id),
        })
    }

    fn close(self: Box<Self>) -> Result<()> {
        // Dropping leaves.
        Ok(())
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.leave();
    }
}
