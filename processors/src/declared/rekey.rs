//! Keys a side anew: each change goes to the partition of its group's or pair's key.
//!
//! Guarantees: what a row gave is taken back where it was given, and given where it belongs now; both in one record
//! where the key is the same. A record's time never leads the clock, so that a row from the future closes no window.
//! Never: state of its own; what a row gave is remembered by who reads it.

use super::reader::{Change, Sink};
use event_log::{Millis, OutRecord};
use std::sync::Arc;
use streams::{Context, Output, Result, State};

/// Writes deltas to a repartition topic.
pub struct Rekey {
    topic: Arc<str>,
    declaration: u64,
    /// Whether records stand by the time of their rows.
    by_time: bool,
    value: Vec<u8>,
}

impl Rekey {
    /// Writes to a topic.
    pub fn new(topic: Arc<str>, declaration: u64, by_time: bool) -> Self {
        Rekey {
            topic,
            declaration,
            by_time,
            value: Vec::new(),
        }
    }

    fn emit(&mut self, key: &[u8], at: Millis, delta: &super::delta::Delta<'_>, output: &mut Output) {
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

impl Sink for Rekey {
    fn take(
        &mut self,
        context: Context,
        change: Change<'_>,
        _: &mut State,
        output: &mut Output,
    ) -> Result<Option<String>> {
        let by_time = self.by_time;
        let at = |time: Millis| (if by_time { time.min(context.now) } else { change.at }).max(0);
        let delta = change.delta;
        let one_key = delta.old.map(|part| part.key) == delta.new.map(|part| part.key);
        if let Some(new) = delta.new.filter(|_| one_key) {
            self.emit(new.key, at(new.time), &delta, output);
            return Ok(None);
        }
        if let Some(old) = delta.old {
            self.emit(
                old.key,
                at(old.time),
                &super::delta::Delta { new: None, ..delta },
                output,
            );
        }
        if let Some(new) = delta.new {
            self.emit(
                new.key,
                at(new.time),
                &super::delta::Delta { old: None, ..delta },
                output,
            );
        }
        Ok(None)
    }
}
