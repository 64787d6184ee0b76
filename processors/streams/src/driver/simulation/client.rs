//! What a process holds of the simulated log: its seat in the group, its readers, its producer.
//!
//! Guarantees: batches are small and come in a random order of partitions; the requests of a transaction keep no order
//! among each other, only within a partition, as the client library's do.
//! Never: a second attempt that the real client would not make.

use super::broker::{Answer, Broker, Refusal, VALUE_BYTES_MAX};
use super::group::Rows;
use super::home::{Home, rows_of, unavailable};
use super::part::{Part, Rec};
use event_log::{
    Error, Event, GroupConsumer, GroupMetadata, Header, Isolation, Millis, Offset, OutBatch, Outcome, Produced, Reader,
    RecordBatch, Result, StartFrom, TimestampType, TopicPartition, TransactionalProducer,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy)]
struct Place {
    next: Offset,
    paused: bool,
}

/// A member of the group.
pub(super) struct Consumer {
    home: Home,
    name: String,
    id: Option<i32>,
    generation: Option<i32>,
    assigned: Vec<TopicPartition>,
    /// Started partitions.
    places: BTreeMap<TopicPartition, Place>,
}

impl Consumer {
    pub(super) fn new(home: Home, name: String) -> Self {
        Consumer {
            home,
            name,
            id: None,
            generation: None,
            assigned: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    fn event(&mut self, broker: &mut Broker, batch: &mut RecordBatch) -> Result<Event> {
        let known = broker.group.members.get(&self.name).map(|(id, _)| *id);
        if self.id.is_none() || known != self.id {
            if self.id.is_some() && known.is_some() {
                return Err(Error::Fenced {
                    attempted: "poll",
                    who: self.name.clone(),
                });
            }
            self.id = None;
            self.generation = None;
            self.places.clear();
            if !self.assigned.is_empty() {
                broker.note("partitions lost");
                return Ok(Event::Lost(std::mem::take(&mut self.assigned)));
            }
            self.join(broker, None);
            return Ok(Event::Idle);
        }
        if let Some(joining) = &broker.group.joining {
            if joining.contains(&self.name) {
                return Ok(Event::Idle);
            }
            self.places.clear();
            if !self.assigned.is_empty() {
                return Ok(Event::Revoked(std::mem::take(&mut self.assigned)));
            }
            self.join(broker, self.id);
            return Ok(Event::Idle);
        }
        if self.generation != Some(broker.group.generation) {
            self.generation = Some(broker.group.generation);
            self.assigned = broker.group.assignment.get(&self.name).cloned().unwrap_or_default();
            return Ok(Event::Assigned(self.assigned.clone()));
        }
        let places = self.places.iter_mut().filter(|(_, p)| !p.paused);
        let places = places.map(|(at, p)| (at, &mut p.next));
        read_some(broker, batch, places, 3, Part::read);
        Ok(if batch.is_empty() { Event::Idle } else { Event::Records })
    }

    fn join(&mut self, broker: &mut Broker, id: Option<i32>) {
        let (group, rng, tasks) = (&mut broker.group, &mut broker.rng, &broker.layout.tasks);
        self.id = Some(group.join(&self.name, id, self.home.process, rng, tasks));
    }
}

type Read = fn(&Part, Offset, usize) -> (Vec<Rec>, Offset);

/// Puts records into a batch.
pub(super) fn fill(batch: &mut RecordBatch, at: &TopicPartition, records: &[Rec]) {
    let index = batch.intern(at);
    for r in records {
        let headers = r.row.headers.iter();
        let headers: Vec<Header<'_>> = headers.map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let (key, value) = (r.row.key.as_deref(), r.row.value.as_deref());
        batch.push(index, r.offset, r.at, TimestampType::LogAppend, key, value, headers);
    }
}

/// Reads a few records of each partition, in a random order of partitions.
fn read_some<'a>(
    broker: &mut Broker,
    batch: &mut RecordBatch,
    places: impl Iterator<Item = (&'a TopicPartition, &'a mut Offset)>,
    most: usize,
    read: Read,
) {
    batch.clear();
    let mut places: Vec<_> = places.collect();
    broker.rng.shuffle(&mut places);
    for (at, next) in places {
        let n = broker.rng.below(most + 1);
        let (records, position) = read(broker.part(at), *next, n);
        fill(batch, at, &records);
        *next = position;
    }
}

impl GroupConsumer for Consumer {
    fn poll(&mut self, batch: &mut RecordBatch, _: usize, _: Duration) -> Result<Event> {
        self.home.stage.pass(self.home.process);
        batch.clear();
        let stage = self.home.stage.clone();
        let mut broker = stage.broker();
        self.event(&mut broker, batch)
    }

    fn start(&mut self, at: &TopicPartition, offset: Offset) -> Result<()> {
        assert!(self.assigned.contains(at), "{at} was not assigned");
        let paused = self.places.get(at).is_some_and(|place| place.paused);
        self.places.insert(at.clone(), Place { next: offset, paused });
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        for at in partitions {
            self.places.entry(at.clone()).and_modify(|place| place.paused = true);
        }
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        for at in partitions {
            self.places.entry(at.clone()).and_modify(|place| place.paused = false);
        }
        Ok(())
    }

    fn group_metadata(&self) -> Result<GroupMetadata> {
        let id = self.id.ok_or_else(|| unavailable("member"))?;
        let generation = self.generation.unwrap_or(-1);
        Ok(GroupMetadata::simulated(format!("{}\n{id}", self.name), generation))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// A reader of partitions without a group.
pub(super) struct PartReader {
    pub home: Home,
    pub isolation: Isolation,
    pub places: BTreeMap<TopicPartition, Offset>,
}

impl Reader for PartReader {
    fn assign(&mut self, partitions: &[(TopicPartition, StartFrom)]) -> Result<()> {
        let places = partitions.iter().map(|(at, from)| match from {
            StartFrom::Offset(offset) => (at.clone(), *offset),
            StartFrom::Earliest | StartFrom::LogEnd => unreachable!("the runtime restores from offsets"),
        });
        self.places = places.collect();
        Ok(())
    }

    fn poll(&mut self, batch: &mut RecordBatch, _: usize, _: Duration) -> Result<usize> {
        self.home.stage.pass(self.home.process);
        let read = match self.isolation {
            Isolation::ReadCommitted => Part::read,
            Isolation::ReadUncommitted => Part::read_uncommitted,
        };
        read_some(&mut self.home.broker(), batch, self.places.iter_mut(), 4, read);
        Ok(batch.len())
    }

    fn position(&self, at: &TopicPartition) -> Option<Offset> {
        self.places.get(at).copied()
    }

    fn at_end(&self, _: &TopicPartition) -> Option<Millis> {
        unreachable!("the runtime compares positions")
    }
}

/// A transactional producer.
pub(super) struct SimulatedProducer {
    home: Home,
    id: String,
    epoch: i32,
    /// Records not yet sent, by partition in the order of first use.
    queue: Vec<(TopicPartition, Rows)>,
    /// First and next offset and append time of what was sent.
    done: BTreeMap<TopicPartition, (Offset, Offset, Millis)>,
}

impl SimulatedProducer {
    pub(super) fn new(home: Home, id: String, epoch: i32) -> Self {
        SimulatedProducer {
            home,
            id,
            epoch,
            queue: Vec::new(),
            done: BTreeMap::new(),
        }
    }

    fn produce(&mut self, at: TopicPartition, rows: Rows) -> Answer<()> {
        let (id, epoch) = (self.id.clone(), self.epoch);
        let n = Offset::try_from(rows.len()).unwrap_or_default();
        let to = at.clone();
        let (first, time) = self.home.call(move |broker| broker.produce(&id, epoch, &to, &rows))?;
        let place = self.done.entry(at).or_insert((first, 0, 0));
        (place.1, place.2) = (first + n, time);
        Ok(())
    }

    fn try_commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Answer<Outcome> {
        // The client keeps no order among its requests, only within a partition.
        let mut requests: Vec<Option<(TopicPartition, Rows)>> = self.queue.drain(..).map(Some).collect();
        requests.push(None);
        self.home.broker().rng.shuffle(&mut requests);
        for request in requests {
            match (request, consumed) {
                (Some((at, rows)), _) => self.produce(at, rows)?,
                (None, Some((member, offsets))) if !offsets.is_empty() => {
                    let (name, member_id) = member.group.split_once('\n').expect("as `member` made it");
                    let member_id = member_id.parse().expect("a number, as `member` made it");
                    let member = (name.to_owned(), member_id, member.generation);
                    let (id, epoch, offsets) = (self.id.clone(), self.epoch, offsets.to_vec());
                    self.home
                        .call(move |broker| broker.send_offsets(&id, epoch, &offsets, &member))?;
                }
                // Without offsets the client sends nothing, so that the group is not asked.
                (None, _) => {}
            }
        }
        let (id, epoch) = (self.id.clone(), self.epoch);
        match self.home.call(move |broker| broker.end(&id, epoch, true)) {
            Ok(()) => {}
            Err(Refusal::Timeout) => {
                self.home.broker().note("outcome unknown");
                return Ok(Outcome::Unknown {
                    reason: "simulated".to_owned(),
                });
            }
            Err(refusal) => return Err(refusal),
        }
        let done = std::mem::take(&mut self.done).into_iter();
        let produced = done.map(|(at, (first_offset, next_offset, timestamp))| Produced {
            at,
            first_offset,
            next_offset,
            timestamp,
        });
        Ok(Outcome::Committed(produced.collect()))
    }
}

impl TransactionalProducer for SimulatedProducer {
    fn begin(&mut self) -> Result<()> {
        self.queue.clear();
        self.done.clear();
        Ok(())
    }

    fn send(&mut self, records: &OutBatch) -> Result<()> {
        for (at, row) in rows_of(records) {
            let bytes = row.value.as_ref().map_or(0, Vec::len);
            if bytes > VALUE_BYTES_MAX && !at.topic.ends_with(".dlq") {
                return Err(Error::TooLarge {
                    topic: at.topic.to_string(),
                    bytes,
                    limit: VALUE_BYTES_MAX,
                });
            }
            let row = Arc::new(row);
            match self.queue.iter_mut().find(|(of, _)| *of == at) {
                Some((_, rows)) => rows.push(row),
                None => self.queue.push((at, vec![row])),
            }
        }
        if !self.queue.is_empty() && self.home.broker().rng.chance(0.3) {
            let (at, rows) = self.queue.swap_remove(0);
            match self.produce(at, rows) {
                Ok(()) => {}
                Err(Refusal::Fenced(_)) => {
                    return Err(Error::Fenced {
                        attempted: "send",
                        who: self.id.clone(),
                    });
                }
                Err(_) => return Err(unavailable("send")),
            }
        }
        Ok(())
    }

    fn commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> Outcome {
        match self.try_commit(consumed) {
            Ok(outcome) => outcome,
            Err(Refusal::Fenced(reason)) => Outcome::Aborted {
                fenced: true,
                reason: reason.to_owned(),
            },
            Err(_) => Outcome::Aborted {
                fenced: false,
                reason: "simulated".to_owned(),
            },
        }
    }

    fn abort(&mut self) -> Result<()> {
        unreachable!("the runtime renews instead")
    }

    fn init_transactions(&mut self) -> Result<()> {
        self.epoch = self.home.init(&self.id)?;
        Ok(())
    }

    fn transactional_id(&self) -> &str {
        &self.id
    }
}
