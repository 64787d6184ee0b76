//! Repartitioning: sends each delta of an input to the partition of its group's or pair's key.
//!
//! An old contribution is removed in the partition of its key, and a new contribution is added in the partition of its
//! key. If both keys are the same, one record contains both contributions, so that the group changes once. A record's
//! timestamp never exceeds the wall-clock time, so that a row with a time in the future does not close windows
//! downstream. The sink has no state: earlier contributions are in the state of the task that reads the input.

use crate::declarative::{Change, Delta, Sink};
use crate::step::Step;
use event_log::{Millis, OutRecord};
use std::sync::Arc;
use streams::{Output, Result};

/// Writes deltas to a repartition topic.
pub struct Repartition {
    topic: Arc<str>,
    declaration: u64,
    /// Whether records have the time of their rows as timestamp, as windows require.
    by_time: bool,
    value: Vec<u8>,
}

impl Repartition {
    /// Creates a sink that writes to a topic; `declaration` is the id that the topic's readers expect.
    pub fn new(topic: Arc<str>, declaration: u64, by_time: bool) -> Self {
        Repartition {
            topic,
            declaration,
            by_time,
            value: Vec::new(),
        }
    }

    fn send(&mut self, key: &[u8], at: Millis, delta: &Delta<'_>, output: &mut Output) {
        self.value.clear();
        delta.write(self.declaration, &mut self.value);
        let record = OutRecord {
            topic: &self.topic,
            partition: None,
            timestamp: Some(at),
            key: Some(key),
            value: Some(&self.value),
        };
        output.send(record, []);
    }
}

/// The value of a loaded mark: a delta without contributions.
pub fn mark(declaration: u64) -> Vec<u8> {
    let delta = Delta {
        row: b"",
        old: None,
        new: None,
    };
    let mut value = Vec::new();
    delta.write(declaration, &mut value);
    value
}

impl Sink for Repartition {
    fn apply(&mut self, change: Change<'_>, step: &mut Step<'_>) -> Result<Option<String>> {
        let (by_time, now) = (self.by_time, step.context.now);
        let at = |time: Millis| (if by_time { time.min(now) } else { change.at }).max(0);
        let delta = change.delta;
        let same_key = delta.old.map(|old| old.key) == delta.new.map(|new| new.key);
        if let Some(new) = delta.new.filter(|_| same_key) {
            self.send(new.key, at(new.time), &delta, step.output);
            return Ok(None);
        }
        if let Some(old) = delta.old {
            self.send(old.key, at(old.time), &Delta { new: None, ..delta }, step.output);
        }
        if let Some(new) = delta.new {
            self.send(new.key, at(new.time), &Delta { old: None, ..delta }, step.output);
        }
        Ok(None)
    }
}
