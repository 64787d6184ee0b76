//! The simulated broker as a `Log`, seen by one process; every call first hands control to the scheduler.
//!
//! Guarantees: one process runs at a time, and which one is decided by the seed, so a seed always gives the same run.
//! Never: real time, real waiting.

use super::broker::{Answer, Broker, DELETE_RETENTION, Refusal, Row};
use crate::Clock;
use log::{
    At, Committed, Error, Event, GroupConfig, GroupConsumer, GroupInfo, Isolation, Log, Member, Millis, Offset,
    OutBatch, Outcome, Produced, Reader, RecordBatch, Result, Session, SessionConfig, StartFrom, TimestampType,
    TopicId, TopicInfo, TopicPartition, TopicSpec,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What a killed process unwinds with.
pub(super) struct Killed;

/// The broker and who may run.
pub(super) struct Stage {
    pub broker: Mutex<Broker>,
    running: Mutex<Running>,
    changed: Condvar,
}

#[derive(Default)]
struct Running {
    /// The process that has control; `None` is the scheduler.
    who: Option<usize>,
    killed: Vec<usize>,
    ended: Vec<usize>,
}

impl Stage {
    pub(super) fn new(broker: Broker) -> Arc<Stage> {
        Arc::new(Stage {
            broker: Mutex::new(broker),
            running: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// The scheduler lets a process run until it gives control back or ends; says whether it has ended.
    pub(super) fn run(&self, process: usize) -> bool {
        let mut running = self.running.lock().unwrap();
        if running.ended.contains(&process) {
            return true;
        }
        running.who = Some(process);
        self.changed.notify_all();
        let running = self.changed.wait_while(running, |r| r.who.is_some()).unwrap();
        running.ended.contains(&process)
    }

    pub(super) fn kill(&self, process: usize) {
        self.running.lock().unwrap().killed.push(process);
        self.run(process);
    }

    /// A process waits until it may run.
    pub(super) fn wait(&self, process: usize) {
        let running = self.running.lock().unwrap();
        let running = self.changed.wait_while(running, |r| r.who != Some(process)).unwrap();
        if running.killed.contains(&process) {
            drop(running);
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// A process gives control back and waits until it may run again.
    pub(super) fn pass(&self, process: usize) {
        self.running.lock().unwrap().who = None;
        self.changed.notify_all();
        self.wait(process);
    }

    pub(super) fn end(&self, process: usize) {
        let mut running = self.running.lock().unwrap();
        running.ended.push(process);
        running.who = None;
        self.changed.notify_all();
    }
}

/// One process' way to the log.
#[derive(Clone)]
pub(super) struct Home {
    pub stage: Arc<Stage>,
    pub process: usize,
    /// Whether its members keep their names over a restart.
    pub is_static: bool,
}

impl Clock for Home {
    fn now(&self) -> Millis {
        self.stage.broker.lock().unwrap().now
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.now()).unwrap())
    }
}

fn unavailable(what: &str) -> Error {
    Error::Unavailable {
        attempted: what.to_owned(),
        reason: "simulated".to_owned(),
    }
}

fn id_of(topic: &str) -> TopicId {
    let mut id = [0; 16];
    id.iter_mut().zip(topic.bytes()).for_each(|(to, from)| *to = from);
    TopicId(uuid_of(id))
}

fn uuid_of(bytes: [u8; 16]) -> uuid::Uuid {
    uuid::Uuid::from_bytes(bytes)
}

impl Home {
    /// A request that is sent again while the broker says "not now".
    fn call<T: 'static>(&self, request: impl Fn(&mut Broker) -> Answer<T> + Send + Clone + 'static) -> Answer<T> {
        loop {
            self.stage.pass(self.process);
            match self.stage.broker.lock().unwrap().request(request.clone()) {
                Err(Refusal::Retry) => {}
                answer => return answer,
            }
        }
    }

    fn init(&self, id: &str) -> Result<i32> {
        let id = id.to_owned();
        self.call(move |broker| broker.init(&id))
            .map_err(|_| unavailable("init"))
    }
}

impl Log for Home {
    fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<bool>> {
        Ok(vec![false; topics.len()])
    }

    fn describe(&self, topic: &str) -> Result<Option<TopicInfo>> {
        let broker = self.stage.broker.lock().unwrap();
        let of = |at: &&TopicPartition| *at.topic == *topic.trim_end_matches(".dlq");
        let partitions = broker
            .tasks
            .iter()
            .flat_map(|(log, inputs)| inputs.iter().chain([log]))
            .filter(of)
            .count();
        let settings = [
            ("cleanup.policy", "compact".to_owned()),
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            ("delete.retention.ms", DELETE_RETENTION.to_string()),
        ];
        Ok((partitions > 0).then(|| TopicInfo {
            name: topic.to_owned(),
            id: id_of(topic),
            partitions: i32::try_from(partitions).unwrap(),
            settings: settings
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }))
    }

    fn topics(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn alter_topic(&self, _: &str, _: &[(String, String)]) -> Result<()> {
        unreachable!("the runtime alters no topic")
    }

    fn delete_topic(&self, _: &str) -> Result<()> {
        unreachable!("the runtime deletes no topic")
    }

    fn offset(&self, at: &TopicPartition, which: At) -> Result<Offset> {
        let at = at.clone();
        let answer = self.call(move |broker| {
            let part = broker.parts.entry(at.clone()).or_default();
            Ok(match which {
                At::Start => 0,
                At::End => part.end,
                At::Stable => part.lso(),
                At::Time(_) => unreachable!("the runtime looks up no times"),
            })
        });
        answer.map_err(|_| unavailable("offset"))
    }

    fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Committed> {
        let partitions = partitions.to_vec();
        let group = group.to_owned();
        self.call(move |broker| broker.group.fetch(&partitions, true))
            .map_err(|refusal| match refusal {
                Refusal::Undecided => Error::Undecided { group },
                _ => unavailable("fetch offsets"),
            })
    }

    fn set_committed(&self, _: &str, _: &[(TopicPartition, Offset)]) -> Result<()> {
        unreachable!("the runtime sets no offsets outside a transaction")
    }

    fn groups(&self) -> Result<Vec<GroupInfo>> {
        unreachable!("the runtime lists no groups")
    }

    fn group(&self, config: GroupConfig) -> Result<Box<dyn GroupConsumer>> {
        let mut name = config.instance.expect("the runtime names its members");
        if !self.is_static {
            let unique = self.stage.broker.lock().unwrap().rng.next();
            name = format!("{name}#{unique}");
        }
        Ok(Box::new(Consumer {
            home: self.clone(),
            name,
            id: None,
            generation: None,
            assigned: Vec::new(),
            places: BTreeMap::new(),
        }))
    }

    fn reader(&self, isolation: Isolation) -> Result<Box<dyn Reader>> {
        assert_eq!(isolation, Isolation::ReadCommitted);
        Ok(Box::new(ChangelogReader {
            home: self.clone(),
            places: BTreeMap::new(),
        }))
    }

    fn session(&self, config: SessionConfig) -> Result<Box<dyn Session>> {
        let epoch = self.init(&config.transactional_id)?;
        Ok(Box::new(Producer {
            home: self.clone(),
            id: config.transactional_id,
            epoch,
            queue: Vec::new(),
            done: BTreeMap::new(),
        }))
    }

    fn append(&self, _: &OutBatch) -> Result<Vec<Produced>> {
        unreachable!("the runtime appends nothing outside a transaction")
    }

    fn describe_self(&self) -> String {
        "simulated".to_owned()
    }

    fn incarnation(&self) -> Result<String> {
        Ok("simulated".to_owned())
    }
}

#[derive(Clone, Copy)]
struct Place {
    next: Offset,
    paused: bool,
}

struct Consumer {
    home: Home,
    name: String,
    id: Option<i32>,
    generation: Option<i32>,
    assigned: Vec<TopicPartition>,
    /// Started partitions.
    places: BTreeMap<TopicPartition, Place>,
}

impl Consumer {
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
        read_some(
            broker,
            batch,
            self.places
                .iter_mut()
                .filter(|(_, p)| !p.paused)
                .map(|(at, p)| (at, &mut p.next)),
            3,
        );
        Ok(if batch.is_empty() { Event::Idle } else { Event::Records })
    }

    fn join(&mut self, broker: &mut Broker, id: Option<i32>) {
        let tasks = std::mem::take(&mut broker.tasks);
        self.id = Some(
            broker
                .group
                .join(&self.name, id, self.home.process, &mut broker.rng, &tasks),
        );
        broker.tasks = tasks;
    }
}

/// Reads a few records of each partition, in a random order of partitions.
fn read_some<'a>(
    broker: &mut Broker,
    batch: &mut RecordBatch,
    places: impl Iterator<Item = (&'a TopicPartition, &'a mut Offset)>,
    most: usize,
) {
    batch.clear();
    let mut places: Vec<_> = places.collect();
    broker.rng.shuffle(&mut places);
    for (at, next) in places {
        let n = broker.rng.below(most + 1);
        let (records, position) = broker.parts.entry(at.clone()).or_default().read(*next, n);
        let index = batch.intern(at);
        for r in records {
            batch.push(
                index,
                r.offset,
                r.at,
                TimestampType::LogAppend,
                r.key.as_deref(),
                r.value.as_deref(),
                [],
            );
        }
        *next = position;
    }
}

impl GroupConsumer for Consumer {
    fn poll(&mut self, batch: &mut RecordBatch, _: usize, _: Duration) -> Result<Event> {
        self.home.stage.pass(self.home.process);
        batch.clear();
        let stage = self.home.stage.clone();
        let mut broker = stage.broker.lock().unwrap();
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

    fn member(&self) -> Result<Member> {
        let id = self.id.ok_or_else(|| unavailable("member"))?;
        let generation = self.generation.unwrap_or(-1);
        Ok(Member::simulated(format!("{}\n{id}", self.name), generation))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct ChangelogReader {
    home: Home,
    places: BTreeMap<TopicPartition, Offset>,
}

impl Reader for ChangelogReader {
    fn assign(&mut self, partitions: &[(TopicPartition, StartFrom)]) -> Result<()> {
        self.places = partitions
            .iter()
            .map(|(at, from)| match from {
                StartFrom::Offset(offset) => (at.clone(), *offset),
                StartFrom::Start | StartFrom::End => unreachable!("the runtime restores from offsets"),
            })
            .collect();
        Ok(())
    }

    fn poll(&mut self, batch: &mut RecordBatch, _: usize, _: Duration) -> Result<usize> {
        self.home.stage.pass(self.home.process);
        let mut broker = self.home.stage.broker.lock().unwrap();
        read_some(&mut broker, batch, self.places.iter_mut(), 4);
        Ok(batch.len())
    }

    fn position(&self, at: &TopicPartition) -> Option<Offset> {
        self.places.get(at).copied()
    }

    fn at_end(&self, _: &TopicPartition) -> Option<Millis> {
        unreachable!("the runtime compares positions")
    }
}

struct Producer {
    home: Home,
    id: String,
    epoch: i32,
    /// Records not yet sent, by partition in the order of first use.
    queue: Vec<(TopicPartition, Vec<Row>)>,
    /// First and next offset and append time of what was sent.
    done: BTreeMap<TopicPartition, (Offset, Offset, Millis)>,
}

impl Producer {
    fn produce(&mut self, at: TopicPartition, rows: Vec<Row>) -> Answer<()> {
        let (id, epoch, n) = (self.id.clone(), self.epoch, Offset::try_from(rows.len()).unwrap());
        let to = at.clone();
        let (first, time) = self.home.call(move |broker| broker.produce(&id, epoch, &to, &rows))?;
        let place = self.done.entry(at).or_insert((first, 0, 0));
        (place.1, place.2) = (first + n, time);
        Ok(())
    }

    fn try_commit(&mut self, consumed: Option<(&Member, &[(TopicPartition, Offset)])>) -> Answer<Outcome> {
        // The client keeps no order among its requests, only within a partition.
        let mut requests: Vec<Option<(TopicPartition, Vec<Row>)>> = self.queue.drain(..).map(Some).collect();
        requests.push(None);
        self.home.stage.broker.lock().unwrap().rng.shuffle(&mut requests);
        for request in requests {
            match (request, consumed) {
                (Some((at, rows)), _) => self.produce(at, rows)?,
                (None, Some((member, offsets))) => {
                    let (name, member_id) = member.group.split_once('\n').expect("as `member` made it");
                    let member = (name.to_owned(), member_id.parse().expect("a number"), member.generation);
                    let (id, epoch, offsets) = (self.id.clone(), self.epoch, offsets.to_vec());
                    self.home
                        .call(move |broker| broker.send_offsets(&id, epoch, &offsets, &member))?;
                }
                (None, None) => {}
            }
        }
        let (id, epoch) = (self.id.clone(), self.epoch);
        match self.home.call(move |broker| broker.end(&id, epoch, true)) {
            Ok(()) => {}
            Err(Refusal::Timeout) => {
                return Ok(Outcome::Unknown {
                    reason: "simulated".to_owned(),
                });
            }
            Err(refusal) => return Err(refusal),
        }
        let produced =
            std::mem::take(&mut self.done)
                .into_iter()
                .map(|(at, (first_offset, next_offset, timestamp))| Produced {
                    at,
                    first_offset,
                    next_offset,
                    timestamp,
                });
        Ok(Outcome::Committed(produced.collect()))
    }
}

impl Session for Producer {
    fn begin(&mut self) -> Result<()> {
        self.queue.clear();
        self.done.clear();
        Ok(())
    }

    fn send(&mut self, records: &OutBatch) -> Result<()> {
        for (record, _) in records.iter() {
            let partition = record.partition.expect("tests choose partitions");
            let at = TopicPartition {
                topic: record.topic.clone(),
                partition,
            };
            let row = (record.key.map(<[u8]>::to_vec), record.value.map(<[u8]>::to_vec));
            match self.queue.iter_mut().find(|(of, _)| *of == at) {
                Some((_, rows)) => rows.push(row),
                None => self.queue.push((at, vec![row])),
            }
        }
        if self.home.stage.broker.lock().unwrap().rng.chance(0.3) {
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

    fn commit(&mut self, consumed: Option<(&Member, &[(TopicPartition, Offset)])>) -> Outcome {
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

    fn renew(&mut self) -> Result<()> {
        self.epoch = self.home.init(&self.id)?;
        Ok(())
    }

    fn transactional_id(&self) -> &str {
        &self.id
    }
}
