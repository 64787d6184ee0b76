//! The clients of a simulated process: group consumer, reader and transactional producer.
//!
//! Batches are small and have a random order of partitions. The requests of a transaction are sent in a random order,
//! except within a partition, because librdkafka guarantees no other order. A request is retried only if the real
//! client would retry it.

use super::broker::Broker;
use super::connection::{Connection, rows_of, unavailable};
use super::group::{GroupMember, Join, Rows};
use super::partition::{LogRecord, Partition, fill};
use super::protocol::{BrokerError, BrokerResult, VALUE_BYTES_MAX};
use event_log::{
    Error, Event, GroupConsumer, GroupMetadata, Isolation, Millis, Offset, OutBatch, Outcome, Produced, Reader,
    RecordBatch, Result, StartFrom, TopicPartition, TransactionalProducer,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy)]
struct Progress {
    next: Offset,
    paused: bool,
    /// Whether the error of the partition was returned. It is then not read until `start`.
    failed: bool,
}

/// A member of the group.
pub(super) struct Consumer {
    connection: Connection,
    name: String,
    id: Option<i32>,
    generation: Option<i32>,
    assigned: Vec<TopicPartition>,
    /// Positions of started partitions.
    positions: BTreeMap<TopicPartition, Progress>,
}

impl Consumer {
    pub(super) fn new(connection: Connection, name: String) -> Self {
        Consumer {
            connection,
            name,
            id: None,
            generation: None,
            assigned: Vec::new(),
            positions: BTreeMap::new(),
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
            self.positions.clear();
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
            self.positions.clear();
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
        for (at, progress) in self.positions.iter_mut().filter(|(_, p)| !p.paused && !p.failed) {
            if let Some(error) = broker.unreadable.error(at, progress.next) {
                progress.failed = true;
                broker.note("input unreadable");
                return Err(error);
            }
        }
        let positions = self.positions.iter_mut().filter(|(_, p)| !p.paused && !p.failed);
        let positions = positions.map(|(at, p)| (at, &mut p.next));
        read_some(broker, batch, positions, 3, Partition::read);
        Ok(if batch.is_empty() { Event::Idle } else { Event::Records })
    }

    fn join(&mut self, broker: &mut Broker, id: Option<i32>) {
        let (group, rng, tasks) = (&mut broker.group, &mut broker.rng, &broker.layout.tasks);
        let join = Join {
            name: &self.name,
            id,
            process: self.connection.process,
        };
        self.id = Some(group.join(join, rng, tasks));
    }
}

type Read = fn(&Partition, Offset, usize) -> (Vec<LogRecord>, Offset);

/// Reads a few records of each partition, in a random order of partitions.
fn read_some<'a>(
    broker: &mut Broker,
    batch: &mut RecordBatch,
    positions: impl Iterator<Item = (&'a TopicPartition, &'a mut Offset)>,
    most: usize,
    read: Read,
) {
    batch.clear();
    let mut positions: Vec<_> = positions.collect();
    broker.rng.shuffle(&mut positions);
    for (at, next) in positions {
        let n = broker.rng.below(most + 1);
        let (records, position) = read(broker.part(at), *next, n);
        fill(batch, at, &records);
        *next = position;
    }
}

impl GroupConsumer for Consumer {
    fn poll(&mut self, batch: &mut RecordBatch, _: usize, _: Duration) -> Result<Event> {
        self.connection.yield_now();
        batch.clear();
        let scheduler = self.connection.scheduler.clone();
        let mut broker = scheduler.broker();
        self.event(&mut broker, batch)
    }

    fn start(&mut self, at: &TopicPartition, offset: Offset) -> Result<()> {
        assert!(self.assigned.contains(at), "{at} was not assigned");
        let paused = self.positions.get(at).is_some_and(|progress| progress.paused);
        let progress = Progress {
            next: offset,
            paused,
            failed: false,
        };
        self.positions.insert(at.clone(), progress);
        Ok(())
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        for at in partitions {
            self.positions
                .entry(at.clone())
                .and_modify(|progress| progress.paused = true);
        }
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        for at in partitions {
            self.positions
                .entry(at.clone())
                .and_modify(|progress| progress.paused = false);
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
pub(super) struct PartitionReader {
    pub connection: Connection,
    pub isolation: Isolation,
    pub positions: BTreeMap<TopicPartition, Offset>,
}

impl Reader for PartitionReader {
    fn assign(&mut self, partitions: &[(TopicPartition, StartFrom)]) -> Result<()> {
        let positions = partitions.iter().map(|(at, from)| match from {
            StartFrom::Offset(offset) => (at.clone(), *offset),
            StartFrom::Earliest | StartFrom::LogEnd => unreachable!("streams restores from offsets"),
        });
        self.positions = positions.collect();
        Ok(())
    }

    fn poll(&mut self, batch: &mut RecordBatch, _: usize, _: Duration) -> Result<usize> {
        self.connection.yield_now();
        let read = match self.isolation {
            Isolation::ReadCommitted => Partition::read,
            Isolation::ReadUncommitted => Partition::read_uncommitted,
        };
        let mut broker = self.connection.broker();
        let mut failed = Vec::new();
        for (at, next) in &self.positions {
            failed.extend(broker.unreadable.error(at, *next).map(|error| (at.clone(), error)));
        }
        let readable = |(at, _): &(&TopicPartition, &mut Offset)| failed.iter().all(|(other, _)| other != *at);
        let positions = self.positions.iter_mut().filter(readable);
        read_some(&mut broker, batch, positions, 4, read);
        match failed.into_iter().next() {
            Some((_, error)) if batch.is_empty() => {
                broker.note("changelog unreadable");
                Err(error)
            }
            _ => Ok(batch.len()),
        }
    }

    fn position(&self, at: &TopicPartition) -> Option<Offset> {
        self.positions.get(at).copied()
    }

    fn at_end(&self, _: &TopicPartition) -> Option<Millis> {
        unreachable!("streams compares positions")
    }
}

/// A transactional producer.
pub(super) struct SimulatedProducer {
    connection: Connection,
    id: String,
    epoch: i32,
    /// Records not yet sent, by partition in the order of first use.
    queue: Vec<(TopicPartition, Rows)>,
    /// For each partition, the first offset, the next offset and the append time of the records that were sent.
    done: BTreeMap<TopicPartition, (Offset, Offset, Millis)>,
}

impl SimulatedProducer {
    pub(super) fn new(connection: Connection, id: String, epoch: i32) -> Self {
        SimulatedProducer {
            connection,
            id,
            epoch,
            queue: Vec::new(),
            done: BTreeMap::new(),
        }
    }

    fn produce(&mut self, at: TopicPartition, rows: Rows) -> BrokerResult<()> {
        let (id, epoch) = (self.id.clone(), self.epoch);
        let n = Offset::try_from(rows.len()).unwrap_or_default();
        let to = at.clone();
        let (first, time) = self
            .connection
            .call(move |broker| broker.produce(&id, epoch, &to, &rows))?;
        let progress = self.done.entry(at).or_insert((first, 0, 0));
        (progress.1, progress.2) = (first + n, time);
        Ok(())
    }

    fn try_commit(&mut self, consumed: Option<(&GroupMetadata, &[(TopicPartition, Offset)])>) -> BrokerResult<Outcome> {
        // The client guarantees the order of requests only within a partition.
        let mut requests: Vec<Option<(TopicPartition, Rows)>> = self.queue.drain(..).map(Some).collect();
        requests.push(None);
        self.connection.broker().rng.shuffle(&mut requests);
        for request in requests {
            match (request, consumed) {
                (Some((at, rows)), _) => self.produce(at, rows)?,
                (None, Some((member, offsets))) if !offsets.is_empty() => {
                    let (name, member_id) = member
                        .group
                        .split_once('\n')
                        .expect("`group_metadata` writes name and id");
                    let member_id = member_id.parse().expect("`group_metadata` writes a number");
                    let member = GroupMember {
                        name: name.to_owned(),
                        id: member_id,
                        generation: member.generation,
                    };
                    let (id, epoch, offsets) = (self.id.clone(), self.epoch, offsets.to_vec());
                    self.connection
                        .call(move |broker| broker.send_offsets(&id, epoch, &offsets, &member))?;
                }
                // Without offsets, the client does not send a request to the group.
                (None, _) => {}
            }
        }
        let (id, epoch) = (self.id.clone(), self.epoch);
        match self.connection.call(move |broker| broker.end(&id, epoch, true)) {
            Ok(()) => {}
            Err(BrokerError::Timeout) => {
                self.connection.broker().note("outcome unknown");
                return Ok(Outcome::Unknown {
                    reason: "simulated".to_owned(),
                });
            }
            Err(rejection) => return Err(rejection),
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
        if !self.queue.is_empty() && self.connection.broker().rng.chance(0.3) {
            let (at, rows) = self.queue.swap_remove(0);
            match self.produce(at, rows) {
                Ok(()) => {}
                Err(BrokerError::Fenced(_)) => {
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
            Err(BrokerError::Fenced(reason)) => Outcome::Aborted {
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
        unreachable!("streams calls init_transactions instead of abort")
    }

    fn init_transactions(&mut self) -> Result<()> {
        self.epoch = self.connection.init(&self.id)?;
        Ok(())
    }

    fn transactional_id(&self) -> &str {
        &self.id
    }
}
