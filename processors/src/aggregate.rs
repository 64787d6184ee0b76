//! Aggregates: groups of rows and their aggregate functions, with or without windows.
//!
//! Groups that changed are buffered in memory and written once per commit, each with one output record that has the
//! group's value as of the commit. A group without rows is a tombstone. A window with `emit = "final"` writes one
//! record when it closes. A closed window never opens again, so rows that arrive later are counted as late.

mod accumulator;
mod exact_sum;
mod group;
mod inspect;
mod window;

pub use inspect::readable;

use crate::dead_letter::stop;
use crate::declarative::{Change, Contribution, OutputTopic, Sink, read, read_row};
use crate::step::Step;
use ::metrics::{Counter, counter};
use accumulator::{Accumulator, Best, Index, TEXT_BYTES_MAX, Value};
use event_log::{Millis, OutRecord, TopicPartition};
use group::{Field, Group, group_state_key, index_prefix};
use schemas::codec::Datum;
use schemas::key::KeyWriter;
use schemas::schema::{Schema, TypeId};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use streams::{Output, Result, Stage, State, Timer, TimerClock};
use topology::{Function, Processor, Work};
use window::{Windows, closes_at, parse_window_key, starts};

/// Maximum number of groups that are kept in memory after a commit.
const GROUPS_MAX: usize = 1 << 17;

/// The aggregate of one task.
pub struct Groups {
    name: Arc<str>,
    fields: Vec<Field>,
    /// Number of columns that the groups have.
    group_columns: usize,
    windows: Windows,
    /// Type of the window's columns in the output schema.
    window_type: Option<TypeId>,
    schema: Arc<Schema>,
    /// Whether the input is a table. Only rows of a table can be removed from their groups.
    is_table: bool,
    output: OutputTopic,
    /// The input partition to which the dead letter of a window belongs.
    input: TopicPartition,
    /// Index in `groups` by state key.
    known: HashMap<Vec<u8>, usize>,
    groups: Vec<Group>,
    /// Groups that changed since the last commit.
    dirty: Vec<usize>,
    late: Counter,
    key: Vec<u8>,
    value: Vec<u8>,
    prefix: Vec<u8>,
}

/// What a group does not include of a contribution.
#[derive(Default)]
struct Rejections {
    /// A text is too long for `min` or `max`.
    long_text: bool,
    /// A sum is out of range since the contribution was added.
    out_of_range: Option<String>,
}

impl Rejections {
    fn and(self, other: Rejections) -> Rejections {
        Rejections {
            long_text: self.long_text || other.long_text,
            out_of_range: self.out_of_range.or(other.out_of_range),
        }
    }
}

/// A window whose final record cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("the final record of window {start} of group [{group}] cannot be written: {reason}")]
struct UnwrittenWindow {
    /// Start of the window, in ms since 1970.
    start: Millis,
    group: String,
    reason: String,
}

/// A contribution that is added to or removed from its groups.
struct Update<'u> {
    /// Key of the row; empty for an event.
    row: &'u [u8],
    contribution: &'u Contribution<'u>,
    /// 1 to add the contribution, -1 to remove it.
    by: i64,
}

impl Groups {
    /// The aggregate of a processor, which reads this partition; `None` if it is a join.
    pub fn new(name: &Arc<str>, processor: &Processor, output: OutputTopic, input: TopicPartition) -> Option<Self> {
        let Work::Aggregate(aggregate) = &processor.work else {
            return None;
        };
        let group_columns = aggregate.group.len();
        let window_type = processor.schema.fields().get(group_columns).map(|field| field.ty);
        Some(Groups {
            name: name.clone(),
            fields: aggregate.fields.iter().map(Field::of).collect(),
            group_columns,
            window_type: window_type.filter(|_| aggregate.window.is_some()),
            windows: Windows::new(aggregate.window.clone()),
            schema: processor.schema.clone(),
            is_table: aggregate.feed.is_table,
            output,
            input,
            known: HashMap::new(),
            groups: Vec::new(),
            dirty: Vec::new(),
            late: counter!("trunkline_processor_late_records_total", "processor" => name.to_string()),
            key: Vec::new(),
            value: Vec::new(),
            prefix: Vec::new(),
        })
    }

    /// Updates the group of a contribution, in each window that contains its time and is open.
    fn update(&mut self, update: &Update<'_>, state: &mut State) -> Result<Rejections> {
        let Some(window) = self.windows.declared.clone() else {
            return self.update_group(None, update, state);
        };
        let (mut rejections, mut is_late) = (Rejections::default(), false);
        for start in starts(&window, update.contribution.time) {
            if self.windows.is_closed(&window, start) {
                is_late = true;
                continue;
            }
            rejections = rejections.and(self.update_group(Some(start), update, state)?);
        }
        if is_late && update.by > 0 {
            self.late.increment(1);
        }
        Ok(rejections)
    }

    fn update_group(&mut self, start: Option<Millis>, update: &Update<'_>, state: &mut State) -> Result<Rejections> {
        let contribution = update.contribution;
        let key = contribution
            .key
            .get(1..contribution.key.len().saturating_sub(1))
            .unwrap_or_default();
        let at = self.load(start, key, state)?;
        let group = self.groups.get_mut(at).expect("a loaded group is in memory");
        if !group.dirty {
            group.dirty = true;
            self.dirty.push(at);
        }
        let damaged = || stop(&self.name, "a contribution is corrupt");
        let mut rest = contribution.values;
        for _ in 0..self.group_columns {
            read(&mut rest).ok_or_else(damaged)?;
        }
        if group.columns.is_empty() {
            let length = contribution.values.len() - rest.len();
            let columns = contribution.values.get(..length).unwrap_or_default();
            group.columns.extend_from_slice(columns);
        }
        group.rows += update.by;
        let mut rejections = Rejections::default();
        for (number, (field, accumulator)) in self.fields.iter().zip(&mut group.accumulators).enumerate() {
            if !field.has_arg {
                if let Accumulator::Count(count) = accumulator {
                    *count += update.by;
                }
                continue;
            }
            let before = rest;
            let datum = read(&mut rest).ok_or_else(damaged)?;
            let value = Value {
                by: update.by,
                datum: &datum,
                raw: before.get(..before.len() - rest.len()).unwrap_or_default(),
                order: contribution.order,
                row: update.row,
            };
            let index = if field.is_best && self.is_table {
                index_prefix(number, start, key, &mut self.prefix);
                Some(Index {
                    prefix: &self.prefix,
                    state: &mut *state,
                })
            } else {
                None
            };
            rejections.long_text |= !accumulator.update(field.function, &value, index);
            let is_sum = field.function == Function::SumInt;
            if update.by > 0 && is_sum && accumulator.value(field.function).is_none() {
                let group = String::from_utf8_lossy(contribution.key);
                rejections.out_of_range = Some(format!(
                    "a sum of group {group} is out of the range of int8; the group's record stays unchanged until the \
                     sum is in range"
                ));
            }
        }
        Ok(rejections)
    }

    /// The index of a group in memory, where the group is loaded from the state if necessary. For a new window, a timer
    /// is set.
    fn load(&mut self, start: Option<Millis>, key: &[u8], state: &mut State) -> Result<usize> {
        group_state_key(start, key, &mut self.key);
        if let Some(at) = self.known.get(self.key.as_slice()) {
            return Ok(*at);
        }
        let found = state.get(&self.key)?.map(std::borrow::Cow::into_owned);
        let mut group = Group::new(self.key.clone(), key, start, &self.fields);
        match found {
            Some(bytes) => group
                .decode(&self.fields, &bytes)
                .map_err(|reason| stop(&self.name, reason))?,
            None => {
                if let (Some(window), Some(start)) = (&self.windows.declared, start) {
                    let name = String::from_utf8_lossy(&self.key);
                    state.set_timer(Timer::new(TimerClock::Stream, closes_at(window, start), name));
                }
            }
        }
        self.known.insert(self.key.clone(), self.groups.len());
        self.groups.push(group);
        Ok(self.groups.len() - 1)
    }

    /// Sends the output record of a group, if it has one. Returns why the record cannot be written.
    fn send(&mut self, at: usize, state: &State, output: &mut Output) -> Result<Option<String>> {
        let group = self.groups.get_mut(at).expect("a loaded group is in memory");
        for (number, accumulator) in group.accumulators.iter_mut().enumerate() {
            if let Accumulator::Best(best @ Best::Unknown) = accumulator {
                index_prefix(number, group.start, &group.key, &mut self.prefix);
                best.resolve(&self.prefix, state)?;
            }
        }
        let exists = group.rows > 0;
        if !exists && !group.written {
            return Ok(None);
        }
        self.key.clear();
        let key = std::str::from_utf8(&group.key).unwrap_or_default();
        let mut writer = KeyWriter::new(&mut self.key).inside(key);
        if let (Some(start), Some(ty)) = (group.start, self.window_type) {
            writer = writer.datum(&self.schema, ty, &Datum::Long(start.saturating_mul(1000)));
        }
        writer.finish();
        if exists {
            let columns = read_row(&group.columns, self.group_columns);
            let mut row = columns.ok_or_else(|| stop(&self.name, "the columns of a group are corrupt"))?;
            if let Some(start) = group.start {
                let end = start + self.windows.size_ms();
                row.push(Datum::Long(start.saturating_mul(1000)));
                row.push(Datum::Long(end.saturating_mul(1000)));
            }
            for (field, accumulator) in self.fields.iter().zip(&group.accumulators) {
                // The record that caused it is a dead letter, and the output remains unchanged.
                let Some(value) = accumulator.value(field.function) else {
                    return Ok(Some(String::from("a sum is out of the range of int8")));
                };
                row.push(value);
            }
            // `min` and `max` have no value if they ignore all texts of the group.
            if let Err(error) = self.output.write(&mut row, &mut self.value) {
                return Ok(Some(error.to_string()));
            }
        }
        let record = OutRecord {
            topic: &self.output.topic,
            partition: None,
            timestamp: None,
            key: Some(&self.key),
            value: exists.then_some(self.value.as_slice()),
        };
        output.send(record, []);
        group.written = exists;
        Ok(None)
    }

    /// Closes the window of a group: sends its final record, and deletes it and its indexes from the state.
    fn close(&mut self, at: usize, state: &mut State, output: &mut Output) -> Result<()> {
        let is_dirty = self.groups.get(at).is_some_and(|group| group.dirty);
        let mut unwritten = None;
        if self.windows.is_final() || is_dirty {
            unwritten = self.send(at, state, output)?;
        }
        let group = self.groups.get_mut(at).expect("a loaded group is in memory");
        if let Some((start, reason)) = group.start.zip(unwritten).filter(|_| self.windows.is_final()) {
            let group = String::from_utf8_lossy(&group.key).into_owned();
            let error = UnwrittenWindow { start, group, reason };
            output.dead_letter_of_input(&self.input, Stage::Transformation, &error);
        }
        group.dirty = false;
        state.delete(&group.state_key);
        self.known.remove(&group.state_key);
        let indexed = self
            .fields
            .iter()
            .enumerate()
            .filter(|(_, field)| field.is_best && self.is_table);
        for (number, _) in indexed {
            index_prefix(number, group.start, &group.key, &mut self.prefix);
            let mut keys = Vec::new();
            state.scan(&self.prefix, &mut |key, _| {
                keys.push(key.to_vec());
                ControlFlow::Continue(())
            })?;
            keys.iter().for_each(|key| state.delete(key));
        }
        Ok(())
    }

    /// Closes the window of the group with this state key, unless the group no longer exists.
    fn close_window(&mut self, state_key: &[u8], state: &mut State, output: &mut Output) -> Result<()> {
        let Some((start, key)) = parse_window_key(state_key) else {
            return Ok(());
        };
        if !self.known.contains_key(state_key) && state.get(state_key)?.is_none() {
            return Ok(());
        }
        let at = self.load(Some(start), key, state)?;
        self.close(at, state, output)
    }

    fn forget(&mut self) {
        self.known.clear();
        self.groups.clear();
        self.dirty.clear();
    }
}

impl Sink for Groups {
    fn advance(&mut self, at: Millis) {
        self.windows.advance(at);
    }

    fn apply(&mut self, change: Change<'_>, step: &mut Step<'_>) -> Result<Option<String>> {
        let delta = change.delta;
        let (mut added, mut removed) = (Rejections::default(), Rejections::default());
        // Remove the old contribution first, so that a row that replaces itself is not compared with itself.
        for (contribution, by) in [(&delta.old, -1), (&delta.new, 1)] {
            let Some(contribution) = contribution else { continue };
            let update = Update {
                row: delta.row,
                contribution,
                by,
            };
            let rejections = self.update(&update, step.state)?;
            if by > 0 {
                added = rejections;
            } else {
                removed = rejections;
            }
        }
        // A row that had such a text before is not rejected again for each of its changes.
        let long_text = added.long_text && !removed.long_text;
        Ok(added.out_of_range.or(long_text.then(|| {
            format!("min and max ignore a text of more than {TEXT_BYTES_MAX} bytes; the record's other fields count")
        })))
    }

    fn on_timer(&mut self, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        let state_key = timer.key.as_bytes();
        if self.windows.may_close(timer.at, state_key, state) {
            self.close_window(state_key, state, output)?;
        }
        Ok(())
    }

    fn before_commit(&mut self, state: &mut State, output: &mut Output) -> Result<()> {
        for state_key in self.windows.remove_due(state)? {
            self.close_window(&state_key, state, output)?;
        }
        let is_final = self.windows.is_final();
        for at in std::mem::take(&mut self.dirty) {
            if !self.groups.get(at).is_some_and(|group| group.dirty) {
                continue;
            }
            if !is_final {
                self.send(at, state, output)?;
            }
            let group = self.groups.get_mut(at).expect("a loaded group is in memory");
            group.dirty = false;
            if group.rows == 0 {
                state.delete(&group.state_key);
                self.known.remove(&group.state_key);
            } else {
                state.put(&group.state_key, group.encode());
            }
        }
        self.windows.before_commit(state);
        if self.groups.len() > GROUPS_MAX {
            self.forget();
        }
        Ok(())
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.forget();
        self.windows.restore(&self.name, state)
    }
}
