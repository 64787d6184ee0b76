//! A processor whose every start is held against the committed state.
//!
//! Guarantees: a task that starts as the group's owner with anything but what its changelog's decided transactions say
//! ends the run. Never: a change of what the processor does.

use super::Home;
use crate::{Context, Output, Processor, Result, State, Timer};
use event_log::{RecordBatch, RecordRef, TopicPartition};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

/// A processor that is watched.
pub struct Checked {
    inner: Box<dyn Processor>,
    home: Home,
    changelog: TopicPartition,
}

impl Checked {
    /// Watches a processor whose state has this changelog.
    pub fn new(inner: Box<dyn Processor>, home: Home, changelog: TopicPartition) -> Self {
        Checked { inner, home, changelog }
    }

    /// The state must be the committed one, unless the process has lost the task and does not know yet.
    fn check(&self, state: &State) -> Result<()> {
        let mut found = BTreeMap::new();
        state.scan_any(b"", &mut |key, value| {
            found.insert(key.to_vec(), [&[crate::CHANGELOG_VERSION], value].concat());
            ControlFlow::Continue(())
        })?;
        let mut broker = self.home.broker();
        let mut truth = broker.truth.get(&self.changelog).cloned().unwrap_or_default();
        truth.remove(crate::COMMIT_RECORD_KEY);
        let first = broker
            .layout
            .tasks
            .get(&self.changelog)
            .and_then(|inputs| inputs.first());
        let owners = first.map(|input| broker.group.owners(input)).unwrap_or_default();
        if owners != [self.home.process] {
            broker.note("zombie started");
        } else if found == truth {
            broker.note("started");
        } else {
            let text = format!("{} starts with {found:?}, committed is {truth:?}", self.changelog);
            drop(broker);
            self.home.blame(text);
        }
        Ok(())
    }
}

impl Processor for Checked {
    fn prepare(&mut self, records: &RecordBatch, range: Range<usize>) -> Result<()> {
        self.inner.prepare(records, range)
    }

    fn process(
        &mut self,
        context: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        self.inner.process(context, records, range, state, output)
    }

    fn on_dead_letter(
        &mut self,
        context: Context,
        record: RecordRef<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        self.inner.on_dead_letter(context, record, state, output)
    }

    fn on_timer(&mut self, context: Context, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        self.inner.on_timer(context, timer, state, output)
    }

    fn before_commit(&mut self, context: Context, state: &mut State, output: &mut Output) -> Result<()> {
        self.inner.before_commit(context, state, output)
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.check(state)?;
        self.inner.restore(state)
    }
}
