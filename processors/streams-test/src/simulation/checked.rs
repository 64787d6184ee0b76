//! A processor that compares its state with the committed state each time it is restored.
//!
//! The run fails if a task of the partition's owner starts with a state that differs from the committed transactions in
//! its changelog.

use super::ProcessLog;
use event_log::{RecordRef, RecordSlice, TopicPartition};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use streams::testing::scan_all;
use streams::{CHANGELOG_VERSION, COMMIT_RECORD_KEY, Context, Output, Processor, RejectedTimer, Result, State, Timer};

/// A processor whose state is checked.
pub struct Checked {
    inner: Box<dyn Processor>,
    log: ProcessLog,
    changelog: TopicPartition,
}

impl Checked {
    /// Checks a processor whose state has this changelog.
    pub fn new(inner: Box<dyn Processor>, log: ProcessLog, changelog: TopicPartition) -> Self {
        Checked { inner, log, changelog }
    }

    /// The state must be equal to the committed state, unless the process has lost the partition and has not been
    /// notified yet.
    fn check(&self, state: &State) -> Result<()> {
        let mut found = BTreeMap::new();
        scan_all(state, &mut |key, value| {
            found.insert(key.to_vec(), [&[CHANGELOG_VERSION], value].concat());
            ControlFlow::Continue(())
        })?;
        let mut broker = self.log.broker();
        let mut committed_state = broker.committed_state.get(&self.changelog).cloned().unwrap_or_default();
        committed_state.remove(COMMIT_RECORD_KEY);
        let first = broker
            .layout
            .tasks
            .get(&self.changelog)
            .and_then(|inputs| inputs.first());
        let owners = first.map(|input| broker.group.owners(input)).unwrap_or_default();
        if owners != [self.log.connection.process] {
            broker.note("zombie started");
        } else if found == committed_state {
            broker.note("started");
        } else {
            let text = format!(
                "a task of {} started with {found:?}, but its committed state is {committed_state:?}",
                self.changelog
            );
            drop(broker);
            self.log.fail(text);
        }
        Ok(())
    }
}

impl Processor for Checked {
    fn prepare(&mut self, records: RecordSlice<'_>) -> Result<()> {
        self.inner.prepare(records)
    }

    fn process(
        &mut self,
        context: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        self.inner.process(context, records, state, output)
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

    fn on_rejected_timer(
        &mut self,
        context: Context,
        timer: &Timer,
        state: &mut State,
        output: &mut Output,
    ) -> Result<RejectedTimer> {
        self.inner.on_rejected_timer(context, timer, state, output)
    }

    fn before_commit(&mut self, context: Context, state: &mut State, output: &mut Output) -> Result<()> {
        self.inner.before_commit(context, state, output)
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.check(state)?;
        self.inner.restore(state)
    }

    fn wants_commit(&self) -> bool {
        self.inner.wants_commit()
    }
}
