//! The application that is simulated: it counts, forgets full counts, and checks what it starts with.
//!
//! Guarantees: its output follows from the order of its input alone. Never: a look at the broker but to judge.

use super::broker::Tasks;
use crate::{
    Application, Context, Effects, FirstStart, Processor, Result, State, SubTopology, TaskInfo, Timer, TimerClock,
};

use super::home::Home;
use log::{Millis, OutRecord, RecordBatch, TopicPartition};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};

const APPLICATION: &str = "sim";
/// A count that reaches this begins anew, so that keys are deleted.
pub(super) const FULL: u64 = 3;
/// How long after a record its two timers are due.
pub(super) const LATER: Millis = 150;

pub(super) type Verdict = Arc<Mutex<Option<String>>>;

pub(super) fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(topic, partition)
}

/// Three sub-topologies: one partition, two partitions, two joined inputs.
pub(super) fn tasks() -> Tasks {
    let log = |store: &str, partition| at(&format!("{APPLICATION}.changelog.{store}"), partition);
    BTreeMap::from([
        (log("a", 0), vec![at("change", 0)]),
        (log("b", 0), vec![at("event", 0)]),
        (log("b", 1), vec![at("event", 1)]),
        (log("c", 0), vec![at("left", 0), at("right", 0)]),
    ])
}

pub(super) fn application(home: &Home, verdict: &Verdict) -> Application {
    let sub = |name: &str, inputs: &[&str]| {
        let (home, verdict) = (home.clone(), verdict.clone());
        SubTopology {
            name: name.to_owned(),
            inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
            store: name.to_owned(),
            factory: Arc::new(move |info: &TaskInfo| {
                let (topic, partition) = (format!("out.{}", info.id.subtopology).into(), info.id.partition);
                let fired = format!("fired.{}", info.id.subtopology).into();
                let changelog = at(&format!("{APPLICATION}.changelog.{}", info.id.subtopology), partition);
                let (home, verdict) = (home.clone(), verdict.clone());
                Box::new(Counter {
                    topic,
                    fired,
                    partition,
                    changelog,
                    home,
                    verdict,
                })
            }),
            first_start: FirstStart::Earliest,
        }
    };
    Application {
        name: APPLICATION.to_owned(),
        subtopologies: vec![
            sub("a", &["change"]),
            sub("b", &["event"]),
            sub("c", &["left", "right"]),
        ],
    }
}

/// Counts records by key; a record whose value is `-` changes nothing, every other one sets two timers.
struct Counter {
    topic: Arc<str>,
    fired: Arc<str>,
    partition: i32,
    changelog: TopicPartition,
    home: Home,
    verdict: Verdict,
}

impl Counter {
    fn emit(&self, effects: &mut Effects, topic: &Arc<str>, key: &[u8], value: &str) {
        let record = OutRecord {
            topic,
            partition: Some(self.partition),
            timestamp: None,
            key: Some(key),
            value: Some(value.as_bytes()),
        };
        effects.emit(record, []);
    }
}

impl Processor for Counter {
    fn step(
        &mut self,
        context: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        effects: &mut Effects,
    ) -> Result<()> {
        for record in range.filter_map(|index| records.get(index)) {
            if record.value() == Some(b"-") {
                continue;
            }
            let name = record.key().unwrap();
            let key = [b"[\"", name, b"\"]"].concat();
            let count = state
                .get(&key)?
                .map_or(0, |v| std::str::from_utf8(&v).unwrap().parse().unwrap())
                + 1_u64;
            if count == FULL {
                state.delete(&key);
            } else {
                state.put(&key, count.to_string().into_bytes());
            }
            let place = format!("{} {}", record.partition(), record.offset());
            state.set_timer(Timer::new(TimerClock::Wall, context.now + LATER, place.as_str()));
            state.set_timer(Timer::new(
                TimerClock::Stream,
                record.timestamp() + LATER,
                place.as_str(),
            ));
            self.emit(effects, &self.topic, name, &format!("{count} {place}"));
        }
        Ok(())
    }

    /// Says where the record stood that has set it.
    fn timer(&mut self, context: Context, timer: &Timer, _: &mut State, effects: &mut Effects) -> Result<()> {
        let (now, fired) = match timer.clock {
            TimerClock::Stream => (context.stream_time, "stream"),
            TimerClock::Wall => (context.now, "wall"),
        };
        assert!(timer.at <= now, "{timer:?} fires at {now}");
        self.emit(effects, &self.fired, fired.as_bytes(), &timer.key);
        Ok(())
    }

    /// A task starts: its state must be the committed one, unless its process has lost the task and does not know yet.
    fn reset(&mut self, state: &State) -> Result<()> {
        let mut found = BTreeMap::new();
        state.scan_any(b"", &mut |key, value| {
            found.insert(key.to_vec(), [b"\x01", value].concat());
            ControlFlow::Continue(())
        })?;
        let mut broker = self.home.stage.broker.lock().unwrap();
        let mut truth = broker.truth[&self.changelog].clone();
        truth.remove(crate::MARKER_KEY);
        let group = &broker.group;
        let owners: Vec<usize> = group
            .members
            .iter()
            .filter(|(name, _)| {
                group
                    .assignment
                    .get(*name)
                    .is_some_and(|a| a.contains(&broker.tasks[&self.changelog][0]))
            })
            .map(|(_, (_, process))| *process)
            .collect();
        if owners != [self.home.process] {
            broker.note("zombie started");
        } else if found != truth {
            let text = format!("{} starts with {found:?}, committed is {truth:?}", self.changelog);
            self.verdict.lock().unwrap().get_or_insert(text);
        } else {
            broker.note("started");
        }
        Ok(())
    }
}
