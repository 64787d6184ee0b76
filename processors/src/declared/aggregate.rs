//! Aggregates: groups of rows, and what is said of each.
//!
//! Groups that were touched are kept in memory and written once a commit, with one record of output each. A window's
//! groups are closed by durable timers of stream time, which fire when its end and its grace have passed; those that a
//! record from the future lets fire wait in the state until the time has come.
//! Guarantees: a group's record is that of its rows as of the commit; a final record is written exactly once; a group
//! without rows is a tombstone. Never: a window that was closed and opens again.

mod acc;
mod exact;
mod readable;

use super::delta::Part;
use super::reader::{Change, Sink, stop};
use super::shape::OutputTopic;
use super::values::{read, read_byte, read_bytes, read_row, read_signed, write_bytes, write_signed};
use ::metrics::{Counter, counter};
use acc::{Acc, Best, Index, Step};
use event_log::{Millis, OutRecord};
pub use readable::readable;
use schemas::codec::Datum;
use schemas::key::KeyWriter;
use schemas::schema::TypeId;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use streams::{Context, Output, Result, State, Timer, TimerClock};
use topology::expr::Type;
use topology::{Function, Processor, Window, Work};

/// Format of a group in the state.
const FORMAT: u8 = 1;
/// Groups that are kept in memory between commits.
const GROUPS_MAX: usize = 1 << 17;
/// Key of the greatest time that was seen.
const CLOCK: &[u8] = b"[\"clock\"]";
/// What the keys begin with of windows whose timers have fired before their time.
const CLOSING: &[u8] = b"[\"closing\",\"";
/// Digits of a time in such a key.
const CLOSING_DIGITS: usize = 20;

/// One field of the output.
#[derive(Debug, Clone, Copy)]
struct Field {
    function: Function,
    has_arg: bool,
    of_doubles: bool,
    is_best: bool,
}

impl Field {
    fn of(field: &topology::AggregateField) -> Field {
        Field {
            function: field.function,
            has_arg: field.arg.is_some(),
            of_doubles: field.arg.as_ref().is_some_and(|arg| *arg.ty() == Type::Double),
            is_best: matches!(
                field.function,
                Function::Min | Function::Max | Function::First | Function::Latest
            ),
        }
    }
}

/// A group in memory.
#[derive(Debug)]
struct Group {
    state_key: Vec<u8>,
    /// The inside of its key's JSON array, without the window.
    inside: Vec<u8>,
    /// Beginning of its window, in ms.
    start: Option<Millis>,
    /// Values of its group columns, as written in contributions.
    cells: Vec<u8>,
    rows: i64,
    accs: Vec<Acc>,
    /// Whether the output holds a record of it.
    shown: bool,
    dirty: bool,
}

impl Group {
    fn new(state_key: Vec<u8>, inside: &[u8], start: Option<Millis>, fields: &[Field]) -> Group {
        let accs = fields.iter().map(|field| Acc::new(field.function, field.of_doubles));
        Group {
            state_key,
            inside: inside.to_vec(),
            start,
            cells: Vec::new(),
            rows: 0,
            accs: accs.collect(),
            shown: false,
            dirty: false,
        }
    }
}

/// Keeps groups and says what changes.
pub struct Groups {
    name: Arc<str>,
    fields: Vec<Field>,
    group_columns: usize,
    window: Option<Window>,
    /// Types of the window's columns in the output's schema.
    window_type: Option<TypeId>,
    schema: Arc<schemas::schema::Schema>,
    has_rows: bool,
    output: OutputTopic,
    known: HashMap<Vec<u8>, usize>,
    groups: Vec<Group>,
    dirty: Vec<usize>,
    clock: Millis,
    clock_moved: bool,
    /// When the first window is due of those that wait in the state; `None` when it must be looked up.
    first_closing: Option<Millis>,
    late: Counter,
    key: Vec<u8>,
    value: Vec<u8>,
    prefix: Vec<u8>,
}

impl Groups {
    /// Groups of a processor; `None` if it is no aggregate.
    pub fn new(name: &Arc<str>, processor: &Processor, output: OutputTopic) -> Option<Self> {
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
            window: aggregate.window.clone(),
            schema: processor.schema.clone(),
            has_rows: aggregate.feed.is_table,
            output,
            known: HashMap::new(),
            groups: Vec::new(),
            dirty: Vec::new(),
            clock: 0,
            clock_moved: false,
            first_closing: None,
            late: counter!("trunkline_processor_late_records_total", "processor" => name.to_string()),
            key: Vec::new(),
            value: Vec::new(),
            prefix: Vec::new(),
        })
    }

    fn part(&mut self, row: &[u8], part: &Part<'_>, by: i64, state: &mut State) -> Result<Option<String>> {
        let Some(window) = &self.window else {
            return self.one(None, row, part, by, state);
        };
        let (size, every, grace) = (window.size_ms, window.every_ms, window.grace_ms);
        let newest = part.time.div_euclid(every) * every;
        let (mut complaint, mut is_late) = (None, false);
        for hop in (0..size / every).rev() {
            let start = newest - hop * every;
            if start + size + grace <= self.clock {
                is_late = true;
                continue;
            }
            let said = self.one(Some(start), row, part, by, state)?;
            complaint = complaint.or(said);
        }
        if is_late && by > 0 {
            self.late.increment(1);
        }
        Ok(complaint)
    }

    fn one(
        &mut self,
        start: Option<Millis>,
        row: &[u8],
        part: &Part<'_>,
        by: i64,
        state: &mut State,
    ) -> Result<Option<String>> {
        let inside = part.key.get(1..part.key.len().saturating_sub(1)).unwrap_or_default();
        let at = self.group(start, inside, state)?;
        let Some(group) = self.groups.get_mut(at) else {
            return Ok(None);
        };
        if !group.dirty {
            group.dirty = true;
            self.dirty.push(at);
        }
        let mut rest = part.values;
        for _ in 0..self.group_columns {
            read(&mut rest).ok_or_else(|| stop(&self.name, "a contribution is damaged"))?;
        }
        if group.cells.is_empty() {
            let cells = part.values.len() - rest.len();
            group
                .cells
                .extend_from_slice(part.values.get(..cells).unwrap_or_default());
        }
        group.rows += by;
        let mut complaint = None;
        for (number, (field, acc)) in self.fields.iter().zip(&mut group.accs).enumerate() {
            if !field.has_arg {
                if let Acc::Count(count) = acc {
                    *count += by;
                }
                continue;
            }
            let before = rest;
            let datum = read(&mut rest).ok_or_else(|| stop(&self.name, "a contribution is damaged"))?;
            let step = Step {
                by,
                datum: &datum,
                raw: before.get(..before.len() - rest.len()).unwrap_or_default(),
                order: part.order,
                row,
            };
            let index = if field.is_best && self.has_rows {
                index_prefix(number, start, inside, &mut self.prefix);
                Some(Index {
                    prefix: &self.prefix,
                    state: &mut *state,
                })
            } else {
                None
            };
            complaint = complaint.or(acc.take(field.function, &step, index));
            if by > 0 && field.function == Function::SumInt && acc.value(field.function).is_none() {
                let group = String::from_utf8_lossy(part.key);
                complaint = Some(format!(
                    "a sum of group {group} leaves the range of int8: its record stays as it was"
                ));
            }
        }
        Ok(complaint)
    }

    /// The group of a key, read from the state if it is not in memory.
    fn group(&mut self, start: Option<Millis>, inside: &[u8], state: &mut State) -> Result<usize> {
        state_key(start, inside, &mut self.key);
        if let Some(at) = self.known.get(self.key.as_slice()) {
            return Ok(*at);
        }
        let found = state.get(&self.key)?.map(std::borrow::Cow::into_owned);
        let mut group = Group::new(self.key.clone(), inside, start, &self.fields);
        match found {
            Some(bytes) => read_group(&mut group, &self.fields, &bytes).map_err(|why| stop(&self.name, why))?,
            None => {
                if let (Some(window), Some(start)) = (&self.window, start) {
                    let closes = start + window.size_ms + window.grace_ms;
                    let name = String::from_utf8_lossy(&self.key);
                    state.set_timer(Timer::new(TimerClock::Stream, closes, name));
                }
            }
        }
        self.known.insert(self.key.clone(), self.groups.len());
        self.groups.push(group);
        Ok(self.groups.len() - 1)
    }

    /// Writes what a group is now, if it can be said.
    fn say(&mut self, at: usize, state: &State, output: &mut Output) -> Result<()> {
        let Some(group) = self.groups.get_mut(at) else {
            return Ok(());
        };
        for (number, acc) in group.accs.iter_mut().enumerate() {
            if let Acc::Best(best @ Best::Unknown) = acc {
                index_prefix(number, group.start, &group.inside, &mut self.prefix);
                best.settle(&self.prefix, state)?;
            }
        }
        let size = self.window.as_ref().map_or(0, |window| window.size_ms);
        self.key.clear();
        let inside = std::str::from_utf8(&group.inside).unwrap_or_default();
        let mut key = KeyWriter::new(&mut self.key).inside(inside);
        if let (Some(start), Some(ty)) = (group.start, self.window_type) {
            key = key.datum(&self.schema, ty, &Datum::Long(start.saturating_mul(1000)));
        }
        key.finish();
        let is_there = group.rows > 0;
        if is_there {
            let cells = read_row(&group.cells, self.group_columns);
            let mut row = cells.ok_or_else(|| stop(&self.name, "a group's columns are damaged"))?;
            if let Some(start) = group.start {
                row.push(Datum::Long(start.saturating_mul(1000)));
                row.push(Datum::Long((start + size).saturating_mul(1000)));
            }
            for (field, acc) in self.fields.iter().zip(&group.accs) {
                // Who made the sum too large was told so: until it fits, the record stays as it was.
                let Some(value) = acc.value(field.function) else {
                    return Ok(());
                };
                row.push(value);
            }
            let written = self.output.write(&mut row, &mut self.value);
            written.map_err(|error| stop(&self.name, error))?;
        } else if !group.shown {
            return Ok(());
        }
        let record = OutRecord {
            topic: &self.output.topic,
            partition: None,
            timestamp: None,
            key: Some(&self.key),
            value: is_there.then_some(self.value.as_slice()),
        };
        output.send(record, []);
        group.shown = is_there;
        Ok(())
    }

    fn close(&mut self, at: usize, state: &mut State, output: &mut Output) -> Result<()> {
        let is_final = self.window.as_ref().is_some_and(|window| window.is_final);
        let Some(group) = self.groups.get(at) else {
            return Ok(());
        };
        if is_final || group.dirty {
            self.say(at, state, output)?;
        }
        let Some(group) = self.groups.get_mut(at) else {
            return Ok(());
        };
        group.dirty = false;
        state.delete(&group.state_key);
        self.known.remove(&group.state_key);
        let bests = self
            .fields
            .iter()
            .enumerate()
            .filter(|(_, field)| field.is_best && self.has_rows);
        for (number, _) in bests {
            index_prefix(number, group.start, &group.inside, &mut self.prefix);
            let mut keys = Vec::new();
            state.scan(&self.prefix, &mut |key, _| {
                keys.push(key.to_vec());
                ControlFlow::Continue(())
            })?;
            keys.iter().for_each(|key| state.delete(key));
        }
        Ok(())
    }

    fn close_key(&mut self, key: &[u8], state: &mut State, output: &mut Output) -> Result<()> {
        let Some((start, inside)) = of_state_key(key) else {
            return Ok(());
        };
        if !self.known.contains_key(key) && state.get(key)?.is_none() {
            return Ok(());
        }
        let at = self.group(Some(start), inside, state)?;
        self.close(at, state, output)
    }

    /// Closes the windows whose timers have fired before their time, and whose time has come.
    fn close_waiting(&mut self, state: &mut State, output: &mut Output) -> Result<()> {
        if self.first_closing.is_some_and(|first| first > self.clock) {
            return Ok(());
        }
        let (mut due, mut first, clock) = (Vec::new(), Millis::MAX, self.clock);
        state.scan(CLOSING, &mut |key, _| match of_closing_key(key) {
            Some((at, group)) if at <= clock => {
                due.push((key.to_vec(), group));
                ControlFlow::Continue(())
            }
            found => {
                first = found.map_or(first, |(at, _)| at);
                ControlFlow::Break(())
            }
        })?;
        for (key, group) in due {
            state.delete(&key);
            self.close_key(&group, state, output)?;
        }
        self.first_closing = Some(first);
        Ok(())
    }

    fn forget(&mut self) {
        self.known.clear();
        self.groups.clear();
        self.dirty.clear();
    }
}

impl Sink for Groups {
    fn advance(&mut self, at: Millis) {
        if at > self.clock {
            self.clock = at;
            self.clock_moved = true;
        }
    }

    fn take(&mut self, _: Context, change: Change<'_>, state: &mut State, _: &mut Output) -> Result<Option<String>> {
        let Change { delta, .. } = change;
        let old = match &delta.old {
            Some(part) => self.part(delta.row, part, -1, state)?,
            None => None,
        };
        let new = match &delta.new {
            Some(part) => self.part(delta.row, part, 1, state)?,
            None => None,
        };
        Ok(new.or(old))
    }

    fn on_timer(&mut self, timer: &Timer, state: &mut State, output: &mut Output) -> Result<()> {
        if timer.at > self.clock {
            state.put(&closing_key(timer.at, timer.key.as_bytes()), Vec::new());
            self.first_closing = self.first_closing.map(|first| first.min(timer.at));
            return Ok(());
        }
        self.close_key(timer.key.as_bytes(), state, output)
    }

    fn before_commit(&mut self, state: &mut State, output: &mut Output) -> Result<()> {
        if self.window.is_some() && (self.clock_moved || self.first_closing.is_none()) {
            self.close_waiting(state, output)?;
        }
        let is_final = self.window.as_ref().is_some_and(|window| window.is_final);
        for at in std::mem::take(&mut self.dirty) {
            if !self.groups.get(at).is_some_and(|group| group.dirty) {
                continue;
            }
            if !is_final {
                self.say(at, state, output)?;
            }
            let Some(group) = self.groups.get_mut(at) else { continue };
            group.dirty = false;
            if group.rows == 0 {
                state.delete(&group.state_key);
                self.known.remove(&group.state_key);
            } else {
                state.put(&group.state_key, write_group(group));
            }
        }
        if self.clock_moved && self.window.is_some() {
            state.put(CLOCK, self.clock.to_be_bytes().to_vec());
            self.clock_moved = false;
        }
        if self.groups.len() > GROUPS_MAX {
            self.forget();
        }
        Ok(())
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.forget();
        self.clock_moved = false;
        self.first_closing = None;
        let clock = state.get(CLOCK)?;
        self.clock = match clock.as_deref().map(<[u8; 8]>::try_from) {
            None => 0,
            Some(Ok(bytes)) => i64::from_be_bytes(bytes),
            Some(Err(_)) => return Err(stop(&self.name, "the clock in the state is damaged")),
        };
        Ok(())
    }
}

/// `["g",group…]`, or `["w","window's beginning",group…]`.
fn state_key(start: Option<Millis>, inside: &[u8], out: &mut Vec<u8>) {
    out.clear();
    match start {
        None => out.extend_from_slice(b"[\"g\","),
        Some(start) => {
            out.extend_from_slice(b"[\"w\",\"");
            out.extend_from_slice(start.to_string().as_bytes());
            out.extend_from_slice(b"\",");
        }
    }
    out.extend_from_slice(inside);
    out.push(b']');
}

fn of_state_key(key: &[u8]) -> Option<(Millis, &[u8])> {
    let rest = key.strip_prefix(b"[\"w\",\"")?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    let start = std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()?;
    let inside = rest.get(end..)?.strip_prefix(b"\",")?.strip_suffix(b"]")?;
    Some((start, inside))
}

/// `["closing","time with 20 digits",window's beginning,group…]`.
fn closing_key(at: Millis, state_key: &[u8]) -> Vec<u8> {
    let mut out = CLOSING.to_vec();
    out.extend_from_slice(format!("{at:0CLOSING_DIGITS$}\",").as_bytes());
    out.extend_from_slice(state_key.strip_prefix(b"[\"w\",").unwrap_or_default());
    out
}

fn of_closing_key(key: &[u8]) -> Option<(Millis, Vec<u8>)> {
    let (digits, rest) = key.strip_prefix(CLOSING)?.split_at_checked(CLOSING_DIGITS)?;
    let at = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((at, [b"[\"w\",", rest.strip_prefix(b"\",")?].concat()))
}

/// `["x",field,"window's beginning",group…,"`, the beginning empty without windows.
fn index_prefix(number: usize, start: Option<Millis>, inside: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(b"[\"x\",");
    out.extend_from_slice(number.to_string().as_bytes());
    out.extend_from_slice(b",\"");
    if let Some(start) = start {
        out.extend_from_slice(start.to_string().as_bytes());
    }
    out.extend_from_slice(b"\",");
    out.extend_from_slice(inside);
    out.extend_from_slice(b",\"");
}

fn write_group(group: &Group) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + group.cells.len() + 12 * group.accs.len());
    out.push(FORMAT);
    out.push(u8::from(group.shown));
    write_signed(&mut out, group.rows);
    write_bytes(&mut out, &group.cells);
    group.accs.iter().for_each(|acc| acc.write(&mut out));
    out
}

fn read_group(group: &mut Group, fields: &[Field], mut bytes: &[u8]) -> Result<(), String> {
    let rest = &mut bytes;
    match read_byte(rest) {
        Some(FORMAT) => {}
        Some(found) => {
            return Err(format!(
                "a group in the state has format {found}, this release reads up to {FORMAT}; update it"
            ));
        }
        None => return Err(String::from("a group in the state is damaged")),
    }
    let mut body = || {
        group.shown = read_byte(rest)? == 1;
        group.rows = read_signed(rest)?;
        group.cells = read_bytes(rest)?.to_vec();
        let accs = fields
            .iter()
            .map(|field| Acc::read(field.function, field.of_doubles, rest));
        group.accs = accs.collect::<Option<_>>()?;
        Some(())
    };
    body().ok_or_else(|| String::from("a group in the state is damaged"))
}
